"""The `v2l` command: one file a command."""
