"""Encode videos into adapters and answer questions from them, one file or many."""
