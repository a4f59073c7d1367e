"""Run the installed `v2l` in disturbed environments: it works as usual, or prints one error line with the reason.

    python tests/stress/environments.py
    python tests/stress/environments.py --only HOME --only ulimit

Each environment runs `v2l encode` on a small random model and a clip in a folder of its own, and some run `v2l ask`
after it. The right outcome is stated for each. `Same` means exit code 0, the bytes of the undisturbed adapter and,
where asked, its answer. `Refused` means its exit code and one printable error line with the given words. In both cases
no traceback appears, no temporary file remains and no foreign module runs. A kind that this machine does not permit
(namespaces, limits for another user) is listed as not tried and does not count. The run fails if an outcome is wrong.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import numpy as np
import safetensors.numpy
import small
from terminal import SUFFIX, TRACEBACK, V2L, surroundings
from test_decoding import MANY

import v2l

PATIENCE = 300
"""Seconds after which a command counts as hanging."""
ASKED = "what is on the whiteboard?"
RUN = 'exec "$@"'
HOSTILE = 'import os\nopen(os.path.join({place!r}, "PWNED"), "a").close()\nraise SystemExit(99)\n'
FOREIGN = ("numpy", "av", "cv2", "torch", "v2l", "typer", "click", "rich", "tqdm", "sitecustomize", "usercustomize")


@dataclass(frozen=True)
class Same:
    """Exit code 0 and the adapter of the undisturbed run. `bits`: byte for byte; otherwise within 1e-4."""

    bits: bool = True


@dataclass(frozen=True)
class Refused:
    """An exit code and an error line with these words. `written`: the adapter is complete nevertheless; `stderr_read`:
    standard error is open."""

    words: str
    code: int = 1
    written: bool = False
    stderr_read: bool = True


@dataclass(frozen=True)
class Environment:
    """One way to run the command.

    shell: a script of `sh`; "$@" is the command. prepare: called with the folder before the run. name: the video's file
    name. program: the command that starts v2l. where: the working folder, relative to that of the environment. needs: a
    shell command that fails if the machine does not permit this kind. asks: `ask` runs after `encode`.
    """

    shell: str = RUN
    expected: Same | Refused = Same()
    prepare: Callable[[Path], None] | None = None
    name: bytes = b"lecture.mp4"
    program: tuple[str, ...] = (V2L,)
    where: bytes = b""
    needs: str = "true"
    asks: bool = False


# How environments are made -------------------------------------------------------------------------------------------


def variables(*words: str, **options) -> Environment:
    """Run the command with environment variables set, or unset by `-u NAME`."""
    return Environment(f'exec env {shlex.join(words)} "$@"', **options)


def python(*flags: str, module: bool = False, **options) -> Environment:
    """Run the command in an interpreter with these flags, as a script or as `-m v2l`."""
    return Environment(program=(sys.executable, *flags, *(("-m", "v2l") if module else (V2L,))), **options)


def mounts(*commands: str, **options) -> Environment:
    """Run the command after these commands in a new mount namespace."""
    script = "; ".join(["set -e", *commands, RUN])
    return Environment(f'exec unshare -m sh -c {shlex.quote(script)} sh "$@"', needs="unshare -m true", **options)


def unprivileged(before: str = "", user: int = 0, expected: Same | Refused = Same(), **options) -> Environment:
    """Run the command without root's privileges over files, as another user if `user` is not 0."""
    who = f"--reuid={user} --regid={user} --clear-groups" if user else "--bounding-set=-dac_override,-dac_read_search"
    script = f'exec setpriv {who} sh -c {shlex.quote(before + RUN)} sh "$@"'
    return Environment(script, expected, needs=f"setpriv {who} {shlex.quote(V2L)} --version", **options)


def processors(count: int, before: str = "") -> Environment:
    """Run the command with a preloaded library that reports this number of processors."""
    return Environment(before + f'LD_PRELOAD="$SHIMS/processors-{count}.so" exec "$@"', needs="cc --version")


def home_is_a_file(place: Path) -> None:
    (place / "home").touch()


def locked_folder(place: Path) -> None:
    (place / "locked").mkdir(mode=0o500)


def given_away(place: Path) -> None:
    for each in (place, *place.iterdir()):
        os.chown(each, 65534, 65534)


def hostile_modules(place: Path) -> None:
    for name in (*sys.stdlib_module_names, *FOREIGN):
        (place / f"{name}.py").write_text(HOSTILE.format(place=str(place)))


def aged(seconds: int) -> Callable[[Path], None]:
    def prepare(place: Path) -> None:
        os.utime(place / "lecture.mp4", (seconds, seconds))

    return prepare


def deep(size: int) -> bytes:
    """Return nested folders whose path has this many bytes, without the folder of the environment."""
    whole, rest = divmod(size, 200)
    return b"/".join([b"d" * 199] * whole + [b"r" * rest] * bool(rest))


SPACIOUS = "ulimit -s 262144 && "
ENVIRONMENTS = {
    "processors: 1": processors(1),
    "processors: 2": processors(2),
    "processors: 48": processors(48),
    "processors: 128": processors(128),
    "processors: 256": processors(256),
    "processors: 1, large stacks": processors(1, SPACIOUS),
    "processors: 2, large stacks": processors(2, SPACIOUS),
    "processors: 48, large stacks": processors(48, SPACIOUS),
    "processors: 128, large stacks": processors(128, SPACIOUS),
    "processors: 256, large stacks": processors(256, SPACIOUS),
    "processors: taskset to one": Environment('exec taskset -c 0 "$@"', needs="taskset -c 0 true"),
    "processors: nice 19": Environment('exec nice -n 19 "$@"'),
    "ulimit: -v 4000000": Environment("ulimit -v 4000000 && " + RUN, asks=True),
    "ulimit: -v 1000000": Environment("ulimit -v 1000000 && " + RUN, Refused("failed to map")),
    "ulimit: -n 64": Environment("ulimit -n 64 && " + RUN),
    "ulimit: -n 24": Environment("ulimit -n 24 && " + RUN),
    "ulimit: -n 8": Environment("ulimit -n 8 && " + RUN, Refused("Too many open files")),
    "ulimit: -f 1": Environment("ulimit -f 1 && " + RUN, Refused("File too large")),
    "ulimit: -f 0": Environment("ulimit -f 0 && " + RUN, Refused("File too large")),
    "ulimit: -c 0": Environment("ulimit -c 0 && " + RUN),
    "ulimit: -l 0": Environment("ulimit -l 0 && " + RUN),
    "ulimit: -s 512": Environment("ulimit -s 512 && " + RUN),
    "ulimit: -u 200, another user": unprivileged("prlimit --pid $$ --nproc=200 && ", 65534, prepare=given_away),
    "ulimit: -u 1, another user": unprivileged(
        "prlimit --pid $$ --nproc=1 && ", 65534, Refused("unavailable"), prepare=given_away
    ),
    "user: without a name": unprivileged("export HOME=/; ", 65534, prepare=given_away, asks=True),
    "HOME: missing": variables("HOME=/missing/home"),
    "HOME: unset": variables("-u", "HOME", asks=True),
    "HOME: empty": variables("HOME="),
    "HOME: unwritable": unprivileged('export HOME="$PWD/locked"; ', prepare=locked_folder),
    "HOME: a file": Environment('HOME="$PWD/home" exec "$@"', prepare=home_is_a_file),
    "HOME: with a newline": variables("HOME=/tmp/a\nb"),
    "HOME: not UTF-8": Environment('HOME=$(printf "/tmp/\\377") exec "$@"'),
    "TMPDIR: missing": variables("TMPDIR=/missing/tmp"),
    "TMPDIR: unwritable": unprivileged('export TMPDIR="$PWD/locked"; ', prepare=locked_folder),
    "caches: HF_HOME is a file": Environment('HF_HOME="$PWD/home" exec "$@"', prepare=home_is_a_file),
    "caches: XDG_CACHE_HOME is relative": variables("XDG_CACHE_HOME=cache"),
    "locale: C": variables("LC_ALL=C", asks=True),
    "locale: POSIX": variables("LC_ALL=POSIX"),
    "locale: C.UTF-8": variables("LC_ALL=C.UTF-8"),
    "locale: de_DE, missing": variables("LC_ALL=de_DE.ISO-8859-1", asks=True),
    "locale: garbage": variables("LC_ALL=\x01%s\N{SNOWMAN}", "LANG=%n"),
    "encoding: PYTHONUTF8=0 in C": variables("PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0", "LC_ALL=C", asks=True),
    "encoding: PYTHONUTF8=1": variables("PYTHONUTF8=1"),
    "encoding: PYTHONIOENCODING=ascii": variables("PYTHONIOENCODING=ascii", asks=True),
    "encoding: PYTHONIOENCODING=latin-1": variables("PYTHONIOENCODING=latin-1"),
    "streams: no stdin": Environment(RUN + " <&-", asks=True),
    "streams: no stdout": Environment(RUN + " >&-"),
    "streams: no stderr": Environment(RUN + " 2>&-"),
    "streams: none at all": Environment(RUN + " <&- >&- 2>&-"),
    "streams: stdout is full": Environment(RUN + " >/dev/full", Refused("standard output", written=True)),
    "streams: stderr is full": Environment(RUN + " 2>/dev/full"),
    "streams: both are full": Environment(RUN + " >/dev/full 2>&1", Refused("", written=True, stderr_read=False)),
    "streams: stdout cannot be written": Environment(RUN + " 1</dev/null", Refused("standard output", written=True)),
    "streams: stderr cannot be written": Environment(RUN + " 2</dev/null"),
    "python: -I": python("-I", asks=True),
    "python: -I -m": python("-I", module=True),
    "python: -P -m": python("-P", module=True),
    "python: -s": python("-s"),
    "python: -E": python("-E"),
    "python: -B -u": python("-B", "-u"),
    "python: -OO": python("-OO"),
    "python: -X dev": python("-X", "dev"),
    "python: -bb": python("-bb"),
    "python: PYTHONOPTIMIZE=2": variables("PYTHONOPTIMIZE=2"),
    "python: PYTHONDONTWRITEBYTECODE": variables("PYTHONDONTWRITEBYTECODE=1"),
    "python: PYTHONPYCACHEPREFIX is unwritable": variables("PYTHONPYCACHEPREFIX=/dev/null/cache"),
    "python: PYTHONSAFEPATH": variables("PYTHONSAFEPATH=1"),
    "python: PYTHONPATH is relative": variables("PYTHONPATH=here:../there"),
    "python: PYTHONPATH is no folder": variables("PYTHONPATH=/etc/passwd:/dev/null:/missing"),
    "python: PYTHONWARNINGS=error": variables("PYTHONWARNINGS=error"),
    "python: PYTHONHASHSEED=1": variables("PYTHONHASHSEED=1"),
    "python: PYTHONNOUSERSITE": variables("PYTHONNOUSERSITE=1"),
    "python: PYTHONUNBUFFERED": variables("PYTHONUNBUFFERED=1"),
    "folder: deleted": Environment('mkdir gone && cd gone && rmdir ../gone && exec "$@"', Refused("no longer exists")),
    "folder: cannot be listed": unprivileged("chmod 300 .; "),
    "folder: cannot be entered": unprivileged("chmod 0 .; ", expected=Refused("ermission")),
    "folder: cannot be written": unprivileged("chmod 500 .; ", expected=Refused("ermission")),
    "folder: hostile modules": Environment(prepare=hostile_modules, asks=True),
    "folder: hostile modules, -P -m": python("-P", module=True, prepare=hostile_modules),
    "folder: hostile modules, PYTHONSAFEPATH -m": Environment(
        'PYTHONSAFEPATH=1 exec "$@"', prepare=hostile_modules, program=(sys.executable, "-m", "v2l")
    ),
    "folder: with spaces": Environment(where=b" a  b ", asks=True),
    "folder: with a newline": Environment(where=b"a\nb"),
    "folder: not UTF-8": Environment(where=b"a\xff\xfeb", asks=True),
    "folder: 3,900 bytes deep": Environment(where=deep(3800)),
    "folder: with a dash": Environment(where=b"-rf"),
    "video: not UTF-8": Environment(name=b"a\xffb.mp4", asks=True),
    "video: leading dash": Environment(name=b"-x.mp4"),
    "video: 255 bytes": Environment(name=b"v" * 251 + b".mp4", expected=Refused("file systems take 255")),
    "video: 242 bytes": Environment(name=b"v" * 238 + b".mp4"),
    "video: newline": Environment(name=b"a\nb.mp4"),
    "video: from 1970": Environment(prepare=aged(0)),
    "video: from 1902": Environment(prepare=aged(-(2**31) + 1)),
    "video: from 2100": Environment(prepare=aged(2**32)),
    "umask: 077": Environment("umask 077; " + RUN),
    "umask: 000": Environment("umask 000; " + RUN),
    "umask: 777": unprivileged("umask 777; "),
    "mounts: own namespace": mounts("true", asks=True),
    "mounts: package is read-only": mounts('mount --bind "$PACKAGE" "$PACKAGE"', 'mount -o remount,ro,bind "$PACKAGE"'),
    "mounts: folder is read-only": mounts(
        "mount --bind . .", "mount -o remount,ro,bind .", 'cd "$PWD"', expected=Refused("Read-only file system")
    ),
    # without /proc/cpuinfo torch does not know the processor and takes other kernels
    "mounts: no /proc": mounts("mount -t tmpfs none /proc", expected=Same(bits=False)),
    "mounts: no /sys": mounts("mount -t tmpfs none /sys"),
    "mounts: no /dev/shm": mounts("mount -t tmpfs -o ro,size=4k none /dev/shm"),
    "mounts: empty /dev": mounts("mount -t tmpfs none /dev", expected=Refused("/dev/urandom")),
    "mounts: the disk is full": mounts(
        "mount -t tmpfs -o size=64k none .",
        'cd "$PWD"',
        'cp "$VIDEO" lecture.mp4',
        "dd if=/dev/zero of=fill bs=1k 2>/dev/null || true",
        expected=Refused("No space left"),
    ),
    "namespace: pid": Environment('exec unshare -pf "$@"', needs="unshare -pf true", asks=True),
    "namespace: pid, its own /proc": Environment(
        'exec unshare -pf --mount-proc "$@"', needs="unshare -pf --mount-proc true"
    ),
    "namespace: net": Environment('exec unshare -n "$@"', needs="unshare -n true", asks=True),
    "namespace: user": Environment('exec unshare -U "$@"', needs="unshare -U true"),
    "namespace: user, ipc, uts": Environment('exec unshare -Uriu "$@"', needs="unshare -Uriu true"),
    "signals: setsid": Environment('exec setsid -w "$@"'),
    "signals: SIGPIPE ignored": Environment("trap '' PIPE; " + RUN),
    "signals: SIGCHLD ignored": Environment("trap '' CHLD; " + RUN, asks=True),
    "signals: SIGINT ignored": Environment("trap '' INT; " + RUN),
    "signals: all ignored": Environment("trap '' HUP INT QUIT PIPE ALRM TERM USR1 USR2 CHLD TSTP TTIN TTOU; " + RUN),
    "variables: only PATH": Environment('exec env -i PATH="$PATH" V2L_MODEL="$V2L_MODEL" "$@"', asks=True),
    "variables: only V2L_MODEL": Environment('exec env -i V2L_MODEL="$V2L_MODEL" "$@"'),
    "variables: 100 kB": Environment('BIG=$(printf %0100000d 0) exec "$@"'),
    "variables: COLUMNS=1": variables("COLUMNS=1", "LINES=1"),
    "variables: COLUMNS=garbage": variables("COLUMNS=x"),
    "variables: TERM=dumb": variables("TERM=dumb"),
    "variables: FORCE_COLOR": variables("FORCE_COLOR=1"),
    "variables: OpenCV and FFmpeg options": variables("OPENCV_FFMPEG_DEBUG=1", "FFREPORT=file=report.log:level=48"),
}


# Running and judging -------------------------------------------------------------------------------------------------


class Trial:
    """The model, the clip and the undisturbed run with which the others are compared."""

    def __init__(self, root: Path):
        self.root = root
        root.chmod(0o755)
        small.write_hypernetwork(small.write_model(root / "model"))
        self.clip = small.write_video(root / "clip.mp4")
        for count in (1, 2, 48, 128, 256):
            source = root / "processors.c"
            source.write_text(MANY.replace("COUNT", str(count)))
            words = ["cc", "-shared", "-fPIC", "-o", str(root / f"processors-{count}.so"), str(source), "-ldl"]
            subprocess.run(words, check=True)
        wrong = self.run("undisturbed", Environment(asks=True), first=True)
        assert not wrong, wrong

    def run(self, title: str, environment: Environment, first: bool = False) -> str:
        """Return the differences from the expected outcome."""
        own = self.root / f"{len(list(self.root.iterdir()))}-{''.join(filter(str.isalnum, title))}"
        place = Path(os.fsdecode(os.path.join(os.fsencode(own), environment.where)))
        place.mkdir(parents=True)
        video = place / os.fsdecode(environment.name)
        shutil.copy(self.clip, video)
        if environment.prepare:
            environment.prepare(place)
        there = set(os.listdir(place))
        code, out, err = self._command(environment, place, "encode", video.name)
        adapter = video.with_name(f"{video.stem}{SUFFIX}")
        place.chmod(0o755)
        written = adapter.read_bytes() if os.path.exists(adapter) else None
        if first:
            self.adapter = written
        expected = environment.expected
        wrong = self._judge(expected, code, err)
        if (written is not None) != (isinstance(expected, Same) or expected.written):
            wrong.append(f"the adapter is {'missing' if written is None else 'there'}")
        elif written is not None and not self._same(written, environment):
            wrong.append("the adapter's bytes differ")
        left = set(os.listdir(place)) - there - {adapter.name}
        if left:
            wrong.append(f"left behind: {sorted(left)}")
        if environment.asks and not wrong:
            code, out, err = self._command(environment, place, "ask", adapter.name, ASKED)
            if first:
                self.answer = out
            wrong += [f"ask: {each}" for each in self._judge(Same(), code, err)]
            if out not in (self.answer, self.answer.decode().encode("ascii", "backslashreplace")):
                wrong.append(f"ask: another answer: {out!r}, not {self.answer!r}")
        return "; ".join(wrong) + (f" (exit {code}, stderr {err.decode(errors='replace')[-1500:]!r})" if wrong else "")

    def _same(self, written: bytes, environment: Environment) -> bool:
        """Compare the bytes, or only the tensors if the video has another name, which the adapter records."""
        if isinstance(environment.expected, Same) and not environment.expected.bits:
            found, wanted = safetensors.numpy.load(written), safetensors.numpy.load(self.adapter)
            close = (np.allclose(found[name], wanted[name], rtol=0, atol=1e-4) for name in wanted)
            return found.keys() == wanted.keys() and all(close)
        if environment.name == b"lecture.mp4":
            return written == self.adapter
        return _tensors(written) == _tensors(self.adapter)

    def _judge(self, expected: Same | Refused, code: int, err: bytes) -> list[str]:
        text = err.decode(errors="replace")
        wrong = ["a traceback"] if TRACEBACK in text or "Fatal Python error" in text else []
        if not all(char.isprintable() or char == "\n" for char in err.decode(errors="surrogateescape")):
            wrong.append("control characters")
        wanted = 0 if isinstance(expected, Same) else expected.code
        if code != wanted:
            wrong.append(f"exit code {code}, not {wanted}")
        errors = [line for line in text.splitlines() if line.startswith("v2l: error: ")]
        if isinstance(expected, Refused) and expected.stderr_read:
            if len(errors) != 1 or expected.words not in errors[0]:
                wrong.append(f"no single error line with {expected.words!r}")
        elif errors:
            wrong.append("an error line")
        return wrong

    def _command(self, environment: Environment, place: Path, command: str, *words: str) -> tuple[int, bytes, bytes]:
        env = surroundings(self.root / "model", SHIMS=str(self.root), VIDEO=str(self.clip))
        env["PACKAGE"] = str(Path(v2l.__file__).parent)
        options = ["--max-new-tokens", "8"] if command == "ask" else []
        script = ["sh", "-c", environment.shell, "sh", *environment.program, command]
        process = subprocess.Popen(
            [*script, "--device", "cpu", *options, "--", *words],
            cwd=place,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            err += b"\nHUNG"
        return process.returncode, out, err


def _tensors(adapter: bytes) -> bytes:
    return adapter[8 + int.from_bytes(adapter[:8], "little") :]


def permitted(environment: Environment) -> bool:
    return subprocess.run(["sh", "-c", environment.needs], capture_output=True).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", help="names that contain this")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    chosen = {
        name: each for name, each in ENVIRONMENTS.items() if not given.only or any(part in name for part in given.only)
    }
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder))

        def attempt(item: tuple[str, Environment]) -> tuple[str, str]:
            name, environment = item
            if not permitted(environment):
                verdict, wrong = "not tried", f"this machine refuses `{environment.needs}`"
            else:
                wrong = trial.run(name, environment)
                verdict = "WRONG" if wrong else "right"
            print(f"{verdict:<9}  {name:<45}  {wrong}", flush=True)
            return verdict, name

        with ThreadPoolExecutor(given.jobs) as pool:
            verdicts = [verdict for verdict, _ in pool.map(attempt, chosen.items())]
    asked = sum(each.asks for each in chosen.values())
    counts = {kind: verdicts.count(kind) for kind in ("right", "WRONG", "not tried")}
    print(f"{len(chosen)} environments, {asked} of them with ask: {counts}, {time.monotonic() - began:.0f} s")
    return 1 if counts["WRONG"] or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
