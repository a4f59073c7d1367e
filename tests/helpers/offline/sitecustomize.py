"""Python imports this at its start where PYTHONPATH names this folder: in every command that the tests run."""

import offline_guard  # noqa: F401
