"""The `v2l` command: one file per command or family of small ones."""
