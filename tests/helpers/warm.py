"""Fast runs of the command: a server that has imported torch and transformers forks a process for each.

This saves about four seconds per run. Tests of what a process imports, and how fast, start a real one instead. The
server reads one request per line, {"words", "env", "cwd", "streams"}, and writes the exit code.
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
    """Run `v2l WORDS...` and return its exit code, standard output and standard error."""
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
    """Answer requests until standard input is closed."""
    import torch  # noqa: F401
    from transformers.models.smolvlm import modeling_smolvlm  # noqa: F401

    import v2l.adapters.verify
    import v2l.inference.ask
    import v2l.inference.batch
    import v2l.inference.encode  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            become(**request)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(words: list[str], env: dict[str, str], cwd: str, streams: list[str]) -> None:
    """Replace this process by the command."""
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
