"""The product: the adapter file, composition of segments, and the adapter applied to a model."""
