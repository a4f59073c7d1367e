"""The networks and their files: the frozen SmolVLM2, its processor, the hypernetwork, presets and downloads."""
