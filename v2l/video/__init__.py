"""A video file to frames: probing, decoding in a process of its own, and sampling; knows no model."""
