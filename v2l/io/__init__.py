"""Files and text: atomic writes, sealed safetensors files, JSONL journals, manifests and printable text."""
