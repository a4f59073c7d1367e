"""The command in processes that need not import torch and transformers anew: a server that has them forks for each.

What is imported at the start of a real process, and how fast, is shown by the tests that start one; here a test saves
the four seconds. The server reads a request a line, {"words", "env", "cwd", "streams"}, and writes its exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path


def run_warm(words: Sequence[str], env: Mapping[str, str], cwd: Path | None, stdin: bytes) -> tuple[int, bytes, bytes]:
    """Exit code, standard output and standard error of `v2l WORDS...`."""
    with tempfile.TemporaryDirectory() as place:
        streams = [Path(place) / name for name in ("in", "out", "err")]
        streams[0].write_bytes(stdin)
        request = {"words": words, "env": dict(env), "cwd": os.fspath(cwd or Path.cwd())}
        server = _server()
        server.stdin.write(json.dumps(request | {"streams": [*map(str, streams)]}) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline()), *(stream.read_bytes() for stream in streams[1:])


@cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.kill)
    return server


def serve() -> None:
    """Runs until nobody asks any more."""
    import torch  # noqa: F401
    from transformers.models.smolvlm import modeling_smolvlm  # noqa: F401

    import v2l.adapters.verify
    import v2l.inference.ask
    import v2l.inference.batch  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            become(**request)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(words: list[str], env: dict[str, str], cwd: str, streams: list[str]) -> None:
    """This process is the command from here on."""
    for number, (name, flags) in enumerate(
        zip(streams, (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT | os.O_APPEND] * 2), strict=True)
    ):
        os.dup2(os.open(name, flags, 0o600), number)
    sys.stdin = os.fdopen(0, errors="surrogateescape", closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", errors="backslashreplace", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [str(Path(sys.executable).with_name("v2l")), *words]
    from v2l.cli.app import main

    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())


if __name__ == "__main__":
    serve()
