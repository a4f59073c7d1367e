"""The embedded model: its weights, the drawn world it was trained on, and its training recipe."""
