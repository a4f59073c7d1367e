"""The drawn world of the embedded model: clips that v2l renders itself, with questions and answers."""
