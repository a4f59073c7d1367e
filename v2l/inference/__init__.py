"""A video to an adapter, and an adapter with a question to an answer; one file or many."""
