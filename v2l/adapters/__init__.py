"""Adapters: the file format, composition and selection of segments, application to a model, export and verification."""
