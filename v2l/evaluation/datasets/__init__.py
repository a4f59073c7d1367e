"""The paper's benchmarks, read from their published files: `registry.py` lists them, every family has a file."""
