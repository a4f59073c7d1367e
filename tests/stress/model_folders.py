"""Hostile and broken model folders: `python tests/stress/model_folders.py [NAME ...]` tries all, or those named.

Each case changes a copy of a sound folder. A child process with little address space loads the copy in every way that
the commands do. The folder must load, or be refused with one printable line with the stated words, in time; nothing in
it may be executed. A few cases are then given to every command that takes `--model`.
"""

from __future__ import annotations

import collections
import json
import os
import queue
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import small
from stress.folder_cases import CASES, HYPERNETWORK, LOADS, ON_COMMANDS, WARNS

from v2l.errors import V2LError, V2LWarning
from v2l.models.checkpoint import load_hypernetwork
from v2l.models.hypernetwork_file import locate, read_header
from v2l.models.loading import load_vlm
from v2l.models.presets import find_model
from v2l.models.processor import question_text

ADDRESS_SPACE = 4_000_000 * 1024
"""Bytes: `ulimit -v 4000000`."""
SECONDS = 30.0
"""What one folder may take; a sound one takes 0.2 s."""
PEAK = 2 << 30
"""Bytes of memory that a child may ever hold, the libraries included."""


def attempt(folder: Path) -> tuple[str, str]:
    """(outcome, line) of loading a folder in every way that the commands do: LOADS, WARNS or "refused", and what was
    said."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            _ = find_model(folder).fingerprint
            for vision in (True, False):
                vlm = load_vlm(folder, device="cpu", vision=vision)
            if vlm.tokenizer is not None:
                ids = vlm.tokenize(question_text("what is at 00:12?"))
                assert len(ids) > 10
                assert vlm.detokenize([next(vlm.greedy([vlm.embed(ids)], 1))[0]]) is not None
            read_header(locate(folder))
            load_hypernetwork(folder, device="cpu")
        except V2LError as error:
            return "refused", str(error)
    said = {str(warning.message) for warning in heard if issubclass(warning.category, V2LWarning)}
    return (WARNS, " | ".join(sorted(said))) if said else (LOADS, "")


def fault(expected: str, outcome: str, line: str) -> str | None:
    """Return the difference from the expected outcome; None if there is none."""
    if not line.isprintable() or len(line) > 1500:
        return "the line is not one printable line"
    if expected in (LOADS, WARNS):
        return None if outcome == expected else f"it should be: {expected}"
    return None if outcome == "refused" and re.search(expected, line) else f"it should be refused with: {expected}"


def build(name: str, sound: Path, place: Path) -> Path:
    """Return a changed copy of the sound folder."""
    folder = shutil.copytree(sound, place / f"{len(list(place.iterdir())):03d}" / "model")
    CASES[name].change(folder)
    return folder


def write_sound(folder: Path) -> Path:
    """Write the folder that every case changes."""
    small.write_hypernetwork(small.write_model(folder), latent_size=8, num_blocks=1)
    return folder


def child() -> None:
    """Read paths of folders from standard input; write an object for each: outcome, line, seconds and peak memory."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("pickle.find_class", "os.system", "subprocess.Popen", "socket.connect"):
            Path("EXECUTED").write_text(f"{event} {arguments}")

    sys.addaudithook(listen)
    for line in sys.stdin:
        start = time.perf_counter()
        try:
            outcome, said = attempt(Path(json.loads(line)))
        except BaseException as error:
            outcome, said = "raised", f"{type(error).__name__}: {error}"[:300]
        seconds = round(time.perf_counter() - start, 3)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"outcome": outcome, "line": said, "seconds": seconds, "peak": peak}), flush=True)


class Child:
    """A process that loads folders. It is killed if one takes too long."""

    def __init__(self, place: Path):
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(place / "stderr", "ab"),  # noqa: SIM115
            text=True,
            cwd=place,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def try_folder(self, folder: Path, first: bool) -> dict[str, Any]:
        """Load a folder and return the result; the outcome is "hung" or "died" if the process must be replaced."""
        self.process.stdin.write(json.dumps(str(folder)) + "\n")
        self.process.stdin.flush()
        try:
            line = self.lines.get(timeout=SECONDS * (3 if first else 1))  # the libraries are loaded first
        except queue.Empty:
            return {"outcome": "hung", "line": "", "seconds": SECONDS, "peak": 0}
        if not line:
            return {"outcome": "died", "line": f"code {self.process.wait()}", "seconds": 0, "peak": 0}
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def try_all(names: list[str], place: Path) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """Yield (name, result, fault) of each case."""
    sound = write_sound(place / "sound")
    folders, work = place / "folders", place / "work"
    folders.mkdir()
    work.mkdir()
    worker, first = Child(work), True
    for name in names:
        folder = build(name, sound, folders)
        result = worker.try_folder(folder, first)
        first = result["outcome"] in ("hung", "died")
        if first:
            worker.end()
            worker = Child(work)
        wrong = fault(CASES[name].outcome, result["outcome"], result["line"])
        if (work / "EXECUTED").exists():
            wrong = f"something was executed: {(work / 'EXECUTED').read_text()}"
            (work / "EXECUTED").unlink()
        if result["peak"] > PEAK:
            wrong = wrong or f"{result['peak'] >> 20} MiB were held"
        yield name, result, wrong
        shutil.rmtree(folder.parent, ignore_errors=True)
    worker.end()
    noise = (work / "stderr").read_text()
    yield "standard error", {"outcome": LOADS, "line": "", "seconds": 0, "peak": 0}, noise[:2000] or None


def try_commands(place: Path) -> Iterator[tuple[str, str | None]]:
    """Yield (command and case, fault) for hostile folders given to each command that takes a model."""
    sound, adapter = place / "sound", place / "clip 0.v2l.safetensors"
    videos = [small.write_video(place / f"clip {number}.mp4", seed=number) for number in range(2)]
    rows = [{"id": path.stem, "video_path": path.name, "question": "what?", "answer": "this"} for path in videos]
    manifest = place / "clips.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hub")}

    def run(*words: Any) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "v2l", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, timeout=120)

    made = run("encode", videos[0], "--model", sound)
    assert made.returncode == 0, made.stderr
    for name in ON_COMMANDS:
        folder = build(name, sound, place / "folders")
        for words in (
            ("encode", videos[0], "--overwrite", "-o", place / "other.v2l.safetensors"),
            ("ask", adapter, "what?"),
            ("verify", adapter),
            ("train", manifest, "-o", place / "trained", "--steps", "1"),
            ("eval", manifest, "--hypernetwork", sound / HYPERNETWORK),
            ("bench", videos[0]),
        ):
            done = run(*words, "--model", folder)
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            wrong = None
            if done.returncode != 1 or len(lines) != 1 or not re.search(CASES[name].outcome, lines[0]):
                wrong = f"code {done.returncode}: {done.stderr[-500:]}"
            if (place / "EXECUTED").exists() or (place / "other.v2l.safetensors").exists():
                wrong = "something was executed or written"
            yield f"{words[0]}: {name}", wrong


def main(names: list[str]) -> int:
    """Run the cases and return the number of faults."""
    chosen, counts, faults, slowest, peak = names or list(CASES), collections.Counter(), 0, ("", 0.0), 0
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        for name, result, wrong in try_all(chosen, Path(place)):
            counts[result["outcome"]] += name in CASES
            slowest = max(slowest, (name, result["seconds"]), key=lambda found: found[1])
            peak = max(peak, result["peak"])
            if wrong or names:
                print(f"{name}: {result['outcome']}: {result['line']}" + (f" -- {wrong}" if wrong else ""), flush=True)
            faults += bool(wrong)
        commands = 0
        for name, wrong in [] if names else try_commands(Path(place)):
            commands += 1
            faults += bool(wrong)
            if wrong:
                print(f"{name} -- {wrong}")
    seconds = time.perf_counter() - start
    print({"folders": len(chosen), **counts, "commands": commands, "faults": faults})
    print(f"slowest {slowest[1]} s ({slowest[0]}), peak {peak >> 20} MiB, {seconds:.0f} s in all")
    return faults


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        child()
    else:
        sys.exit(bool(main(sys.argv[1:])))
