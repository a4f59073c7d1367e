"""Limits of answers, importable without torch."""

MAX_NEW_TOKENS = 128
"""Tokens of the longest answer."""
