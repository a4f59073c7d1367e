"""Deprecated location of `v2l.inference.ray`, kept for one release."""
