"""Run the `v2l` command with `python -m v2l`."""

from v2l.cli.app import main

main()
