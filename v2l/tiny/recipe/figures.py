"""Reproduce all quality figures of the embedded model in docs/model-card.md and docs/reproduce.md.

`python -m v2l.tiny.recipe.figures FOLDER [--model MODEL] [--jobs N]` draws the clips of each test, evaluates the model
on them and saves the output of `v2l eval --json` in FOLDER/results, under the file names of docs/results. After an
interruption the same command resumes with the remaining tests and answers.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from v2l.errors import V2LError, errors_in_one_line
from v2l.io.files import make_folder, write_atomically
from v2l.io.journal import Journal
from v2l.models.checkpoint import load_hypernetwork

DONE = "figures.jsonl"
"""Journal of the run: the model in its header, then one line per finished test."""
ADAPTER = "--without nothing --without bias --without other_clip"
BIAS = "--without nothing --without other_clip"
TIMES = "--ablate times"
"""For composed adapters: also answer with all segments at once, and from the frames of the segment in context."""


@dataclass(frozen=True)
class Measurement:
    """One evaluation.

    name: file name of the results, without .json
    clips: arguments of `v2l.tiny.world.dataset` after the folder
    options: options of `v2l eval`
    folder: folder of the clips; a smaller set of the same split needs its own
    plot: whether to plot the tables
    """

    name: str
    clips: str
    options: str = ADAPTER
    folder: str = "clips"
    plot: bool = False

    @property
    def videos(self) -> str:
        """Folder to which `v2l.tiny.world.dataset` writes the clips."""
        split, _, *more = self.clips.split()
        return "-".join([f"{self.folder}/{split}", *(part for part in more if not part.startswith("--"))])

    @property
    def manifest(self) -> str:
        """Manifest to which it writes the questions."""
        asked = [part.removeprefix("--").replace("=", "-") for part in self.clips.split() if part.startswith("--")]
        return "-".join([self.videos, *asked]) + ".jsonl"


def _scenes(name: str, count: int, filming: str, frames: int, segments: str = "1") -> Measurement:
    sampling = f"{ADAPTER} --frames {frames} --set in_context_frames={min(frames, 32)}"
    composed = "" if segments == "1" else f" --segments {segments} {TIMES}"
    return Measurement(f"reproduce/{name}", f"test {count} {filming}", sampling + composed)


def _few(name: str, options: str, plot: bool = False) -> Measurement:
    return Measurement(f"reproduce/{name}", "test 60", options, "few", plot)


TESTS = (
    Measurement("tiny/test", "test 1000", "--set margin=0.05,0.02"),
    *(
        _scenes(f"length-{frames}-scenes", 300, f"length-{frames} --scenes", frames, segments)
        for frames, segments in {1024: "1,8", 256: "1,8", 64: "1,8", 12: "1", 8: "1"}.items()
    ),
    Measurement("tiny/test-from-1000", "test 1000 --from=1000", f"{ADAPTER} --set margin=0.05,0.02"),
    Measurement("tiny/test-kept", "test 1000 --kept"),
    Measurement("tiny/held-out", "held-out 300"),
    Measurement("tiny/test-like-held-out", "test 300 --like=held-out"),
    _scenes("two-scenes", 300, "two --scenes", 16, "1,2"),
    _scenes("eight-scenes", 100, "eight --scenes", 64, "1,8"),
    Measurement("tiny/segments", "test 100", f"{ADAPTER} --segments 2,4 {TIMES} --set in_context_frames=8", "some"),
    Measurement("reproduce/test-styles", "test 250 --styles", f"{BIAS} --metric f1"),
    Measurement("reproduce/test-benchmarks", "test 250 --benchmarks", f"{BIAS} --metric f1"),
    replace(_scenes("two", 100, "two", 16, "1,2"), plot=True),
    _scenes("eight", 40, "eight", 64, "1,8"),
    _few("segments", f"{ADAPTER} --segments 1,2,4 {TIMES} --set in_context_frames=8"),
    _few("ranks", f"{BIAS} --ablate ranks", plot=True),
    _few("layers", f"{BIAS} --ablate layers", plot=True),
    _few("budget", f"{ADAPTER} --set in_context_frames=1,2,4,8", plot=True),
    _few("sweep", f"{ADAPTER} --metric f1 --frames 2,4,8 --resolution 64,128", plot=True),
    _few("tiles", f"{ADAPTER} --resolution 64,128"),
    _few("tiles-192", f"{ADAPTER} --resolution 192 --set in_context_frames=4"),
    *(Measurement(f"reproduce/lines-{lines}", f"test 60 lines-{lines}") for lines in (64, 240, 480)),
    Measurement("reproduce/lines-1080", "test 40 lines-1080"),
    *(
        _scenes(f"facts-{frames}", count, f"facts-{frames}", frames)
        for frames, count in {8: 100, 12: 100, 64: 60, 256: 24, 1024: 12}.items()
    ),
)


def run(
    folder: Path, model: str = "tiny", jobs: int = 1, share: float = 1.0, tests: Sequence[Measurement] = TESTS
) -> None:
    """Run the tests that are not finished, `jobs` at a time.

    share: fraction of the clips to use, for a trial run; at least two per test
    Raises V2LError if a test fails (the next run repeats it), or if the folder belongs to another model or share.
    """
    for part in ("answers", "results"):
        for name in {test.name.partition("/")[0] for test in tests}:
            make_folder(folder / part / name)
    provenance = load_hypernetwork(model, device="cpu").provenance
    assert provenance is not None  # always set by load_hypernetwork
    header = {"v2l": 1, "model": str(model), "weights": provenance.sha256, "share": share}
    with Journal(folder / DONE, header, "figures", "model or share") as journal, ThreadPoolExecutor(jobs) as pool:
        done = {each["test"] for each in journal.rows}
        left = [test for test in tests if test.name not in done]
        groups: dict[str, list[Measurement]] = {}
        for test in left:  # draw clips once for all tests that use them
            groups.setdefault(test.videos, []).append(test)
        try:
            for drawn in as_completed([pool.submit(_draw, folder, alike, share) for alike in groups.values()]):
                drawn.result()
            for ended in as_completed([pool.submit(_evaluate, folder, test, model) for test in left]):
                name, minutes = ended.result()
                journal.add({"test": name, "minutes": minutes})
                print(f"{name}: {minutes} minutes", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _draw(folder: Path, tests: Sequence[Measurement], share: float) -> None:
    """Draw the clips that the tests share and write their manifests."""
    for test in tests:
        split, count, *more = test.clips.split()
        some = str(max(2, round(int(count) * share)))
        _output_of(folder, ["v2l.tiny.world.dataset", test.folder, split, some, *more], test.name)


def _evaluate(folder: Path, test: Measurement, model: str) -> tuple[str, float]:
    """Run one test and save its output; return its name and its duration in minutes."""
    started = time.monotonic()
    results = folder / "results" / test.name
    plot = ["--plot", f"results/{test.name}.png"] if test.plot else []
    command = ["v2l", "eval", test.manifest, "--model", model, *test.options.split(), *plot]
    command += ["--max-new-tokens", "40", "-o", f"answers/{test.name}.jsonl", "--json"]
    write_atomically(results.with_name(f"{results.name}.json"), _output_of(folder, command, test.name))
    return test.name, round((time.monotonic() - started) / 60, 1)


def _output_of(folder: Path, arguments: Sequence[str], name: str) -> bytes:
    """Run a module in the folder, on one core, and return its output. Raises V2LError if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise V2LError(
            f"{name}: python -m {shlex.join(arguments)} failed with exit code {done.returncode}: {' '.join(last)}"
        )
    return done.stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m v2l.tiny.recipe.figures", description="Reproduce the quality figures of the embedded model."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="tiny", help="model name or folder, as in v2l eval")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel tests, each on one core")
    parser.add_argument("--share", type=float, default=1.0, help="fraction of the clips, for a trial run")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: give at least 1")
    try:
        with errors_in_one_line():
            model = Path(given.model).resolve() if Path(given.model).exists() else given.model
            run(given.folder, str(model), given.jobs, given.share)
    except KeyboardInterrupt:
        print("interrupted; run the same command to resume", file=sys.stderr)
        sys.exit(130)
