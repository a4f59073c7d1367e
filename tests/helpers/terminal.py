"""Runs of the installed command in separate processes, with pipes or at a terminal that accepts input."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from places import OFFLINE
from warm import run_warm

AT_START = ("HF_", "PYTHON", "OMP_", "LD_", "PATH", "HOME", "LC_", "LANG")
"""Prefixes of variables read at the start of Python and its libraries: tests that set one start a new process."""

V2L = str(Path(sys.executable).with_name("v2l"))
SUFFIX = ".v2l.safetensors"
PATIENCE = 120
"""Seconds without work after which a process counts as hanging."""

TRACEBACK = "Traceback (most recent"
LIBGL_MISSING = 'raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")\n'
_LEFT_OUT = ("V2L_", "FORCE_COLOR", "NO_COLOR", "CLICOLOR", "COLUMNS", "LINES", "TERM", "TTY_", "PYTHONPATH", "_TYPER")


@dataclass(frozen=True)
class Done:
    """The result of a process: exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def notes(self) -> list[str]:
        return self.err.splitlines()

    @property
    def records(self) -> list[dict]:
        """The objects printed with --json, one per line."""
        return [json.loads(line) for line in self.out.splitlines()]


def surroundings(model: Path | str | None = None, **changes: str) -> dict[str, str]:
    """Return this environment without variables that affect v2l or rich. model: value of V2L_MODEL"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_LEFT_OUT)}
    chosen = {} if model is None else {"V2L_MODEL": str(model)}
    offline = {"PYTHONPATH": str(OFFLINE)}
    return {**kept, "TERM": "xterm-256color", "V2L_HISTORY": "off", **offline, **chosen, **changes}


class Patience:
    """Tells a process that hangs from one that waits for the processor: the former does no work for PATIENCE seconds,
    however long the latter takes on a busy machine."""

    def __init__(self, pid: int):
        self.pid, self.work, self.deadline = pid, 0.0, time.monotonic() + PATIENCE

    def left(self) -> float:
        """Return the seconds until the next look; 0 if the process hangs."""
        if time.monotonic() >= self.deadline and (work := processor_seconds(self.pid)) > self.work:
            self.work, self.deadline = work, time.monotonic() + PATIENCE
        return max(0.0, self.deadline - time.monotonic())


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process and its descendants have used, 0 where there is no /proc."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            number = int(path.parent.name)
            parents[number] = int(fields[1])
            seconds[number] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # children that ended included
    family = {pid}
    while more := {number for number, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(seconds.get(number, 0.0) for number in family)


class Running:
    """The command with pipes for its standard streams."""

    def __init__(
        self,
        *words: str | os.PathLike,
        cwd: Path | None = None,
        model: Path | str | None = None,
        stdout: int = subprocess.PIPE,
        prepare: Callable[[], None] | None = None,
        env: dict[str, str] | None = None,
        program: Sequence[str] = (V2L,),
    ):
        """prepare: called in the new process before the command starts"""

        def before() -> None:
            # background jobs of a script ignore interrupts, and so would their children
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if prepare:
                prepare()

        self.process = subprocess.Popen(
            [*program, *map(os.fspath, words)],
            cwd=cwd,
            env=surroundings(model, **(env or {})),
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
            preexec_fn=before,
        )

    def end(self, stdin: bytes = b"", traceback: bool = False) -> Done:
        """Waits for the end."""
        patience = Patience(self.process.pid)
        left, given = patience.left(), stdin
        while True:
            try:
                out, err = self.process.communicate(given, timeout=left)
                break
            except subprocess.TimeoutExpired:
                given = None  # communication has started
                if not (left := patience.left()):
                    self.process.kill()
                    out, err = self.process.communicate()
                    raise AssertionError(f"the command hung; it had said {out!r} and {err!r}") from None
        return checked(Done(self.process.returncode, *(os.fsdecode(text or b"") for text in (out, err))), traceback)


def run(*words: str | os.PathLike, stdin: bytes = b"", traceback: bool = False, **options) -> Done:
    """Run `v2l WORDS...` to its end without a terminal; the options are those of `Running`."""
    changes = options.get("env") or {}
    if options.keys() <= {"cwd", "model", "env"} and not any(name.startswith(AT_START) for name in changes):
        env = surroundings(options.get("model"), **changes)
        code, *output = run_warm([os.fspath(word) for word in words], env, options.get("cwd"), stdin)
        return checked(Done(code, *map(os.fsdecode, output)), traceback)
    return Running(*words, **options).end(stdin, traceback)


def checked(done: Done, traceback: bool) -> Done:
    """Check that output without a terminal has no control sequences, progress bar or, unless `traceback`, traceback."""
    assert traceback or TRACEBACK not in done.err, done.err
    assert not re.search(r"[\x1b\r]", done.out + done.err), done
    return done


def run_each(*commands: Sequence[str | os.PathLike], **options) -> list[Done]:
    """Run several commands, two at a time."""
    done = []
    for at in range(0, len(commands), 2):
        running = [Running(*words, **options) for words in commands[at : at + 2]]
        done += [command.end() for command in running]
    return done


class Terminal:
    """The command with all its streams at a new terminal."""

    def __init__(
        self,
        *words: str | os.PathLike,
        columns: int = 80,
        cwd: Path | None = None,
        model: Path | str | None = None,
        env: dict[str, str] | None = None,
        stdout: int | None = None,
    ):
        """stdout: another target for standard output"""
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        self.process = subprocess.Popen(
            [V2L, *map(os.fspath, words)],
            cwd=cwd,
            env=surroundings(model, **(env or {})),
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            preexec_fn=own_terminal,
        )
        os.close(slave)
        self.screen = ""

    def read_until(self, text: str) -> str:
        """Reads until `text` has come since the last such wait; returns everything up to its end."""
        patience = Patience(self.process.pid)
        while text not in self.screen:
            if not self._read(patience):
                raise AssertionError(f"{text!r} never came, only {self.screen!r}")
        before, _, self.screen = self.screen.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        """Types Ctrl-C when the process waits for input: Python loses one that comes between prompt and wait."""
        stat, patience = Path(f"/proc/{self.process.pid}/stat"), Patience(self.process.pid)
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "S":
            assert patience.left(), "the command never waited for input"
            time.sleep(0.005)
        self.type("\x03")

    def end(self) -> tuple[int, str]:
        """The exit code, and what came since the last wait."""
        patience = Patience(self.process.pid)
        while self._read(patience):
            pass
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the command hung; the terminal showed {self.screen!r}") from None
        finally:
            os.close(self.master)
        assert TRACEBACK not in self.screen, self.screen
        return code, self.screen

    def _read(self, patience: Patience) -> bool:
        ready: list[int] = []
        while not ready:
            if not (left := patience.left()):
                return False
            ready, _, _ = select.select([self.master], [], [], left)
        with contextlib.suppress(OSError):  # how Linux says that nobody holds the other end
            data = os.read(self.master, 65536)
            self.screen += os.fsdecode(data)
            return bool(data)
        return False


def plain(screen: str) -> str:
    """Remove colours from terminal output, and normalise line ends."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen).replace("\r\n", "\n")


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until there is a file at `path`."""
    patience = Patience(process.pid)
    while not path.exists():
        assert process.poll() is None, f"the command ended before it wrote {path}: {process.communicate()}"
        assert patience.left(), f"the command never wrote {path}"
        time.sleep(0.005)


def obey_permissions() -> None:
    """Drop root's privilege to ignore file permissions; for `prepare`."""
    if os.geteuid() != 0:
        return
    kernel = ctypes.CDLL(None, use_errno=True)
    drop_from_bounding_set, read_and_write_anything, read_anything = 24, 1, 2
    for privilege in (read_and_write_anything, read_anything):
        if kernel.prctl(drop_from_bounding_set, privilege, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def nobody_reads() -> int:
    """Return the write end of a pipe whose read end is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def fill(folder: Path, **videos: Path) -> Path:
    """Copy videos into a folder under new names (without .mp4) and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, video in videos.items():
        shutil.copy(video, folder / f"{name}.mp4")
    return folder


def tree(folder: Path) -> list[str]:
    """Return the relative paths of all files below a folder, including hidden ones."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def counts(line: str) -> dict[str, int]:
    """Parse the summary line of `encode`."""
    return {kind: int(number) for number, kind in (part.split(" ") for part in line.split(", "))}
