"""`python -m v2l` is the `v2l` command."""

from v2l.cli.app import main

main()
