"""Files and text: atomic writes, sealed safetensors files, JSONL journals, manifests, and text that is safe to print."""
