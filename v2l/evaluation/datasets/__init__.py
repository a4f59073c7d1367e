"""The paper's benchmarks, read from their published files: one file per family, listed in `registry.py`."""
