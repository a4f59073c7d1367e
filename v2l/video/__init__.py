"""From a video file to frames: probing, sampling, and decoding in a separate process; independent of any model."""
