"""The world that the embedded model was trained in: clips that v2l renders itself, with questions and answers."""
