"""Measure timelines of an hour: `python tests/stress/long_video.py [NAME...] [--json FILE] [--minutes N...]`.

ask: opening the file of an hour, the first token of a question about a moment relative to that of the adapter of an
8-second clip, and the growth of the memory over 100 questions about different moments (tiny)
encode: seconds, peak memory and size of timelines of N minutes, with the sizes of the 500M, random weights, segments of
a minute and few frames each (the time of an encode grows with its frames, its memory and its file do not)
kills: an encode of an hour, killed 20 times at random moments, ends with the same bytes (tiny)

`kills` fails if a byte differs; the other sections only measure. Times are seconds of the processor, and ratios come
from alternating runs, so that other work on the machine hardly affects them.
"""

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from kills import in_child
from speed import CPU, alternate

import v2l
from v2l.adapters.timeline import Timeline
from v2l.adapters.timeline_description import NO_WISH
from v2l.bench.random_model import random_model
from v2l.bench.resources import PeakMemory, describe_machine
from v2l.bench.runner import drawn_video
from v2l.inference.encode import open_video
from v2l.inference.timeline import encode_timeline
from v2l.io.text import clock
from v2l.models.hypernetwork_file import TrainedWith
from v2l.models.process_memory import return_freed_memory

HOUR = 3600
QUESTIONS, KILLS, STEP = 100, 20, 6
"""Questions about an hour; kills of its encode, each after up to STEP more parts."""


def resident() -> int:
    """Return the bytes of this process in memory."""
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def ask(folder: Path) -> dict[str, float]:
    """Measure opening, asking and memory of an hour's file, default settings without an index."""
    vlm, hypernetwork = v2l.load_vlm("tiny", device="cpu"), v2l.load_hypernetwork("tiny", device="cpu")
    short, long = folder / "clip.v2l.safetensors", folder / "hour.v2l.safetensors"
    v2l.encode(drawn_video(8, 128, folder), vlm, hypernetwork).save(short)
    encode_timeline(drawn_video(HOUR, 128, folder), vlm, hypernetwork, long, index=False)
    opened, adapter = Timeline.load(long), v2l.Adapter.load(short)
    moments = [HOUR * number // QUESTIONS for number in range(QUESTIONS)]
    random.Random(0).shuffle(moments)
    upcoming = iter(moments * 3)

    def first_token(source: v2l.Adapter | Timeline, seconds: int) -> None:
        with v2l.stream(source, f"what is on the whiteboard at {clock(seconds)}?", vlm, 1) as answer:
            next(answer)

    taken = alternate(
        {
            "opening": lambda: Timeline.load(long),
            "adapter, open": lambda: first_token(adapter, 5),
            "hour, open": lambda: first_token(opened, next(upcoming)),
            "adapter, from disk": lambda: first_token(v2l.Adapter.load(short), 5),
            "hour, from disk": lambda: first_token(Timeline.load(long), next(upcoming)),
        },
        100,
        time.process_time,
    )
    fresh = Timeline.load(long)
    first_token(fresh, 0)
    peak, before = PeakMemory(CPU), resident()
    for seconds in moments:
        first_token(fresh, seconds)
    return taken | {
        "segments": len(opened.description.segments),
        "file in MB": opened.file.size / 1e6,
        "hour / adapter, open": taken["hour, open"] / taken["adapter, open"],
        "hour / adapter, from disk": taken["hour, from disk"] / taken["adapter, from disk"],
        f"memory growth over {QUESTIONS} questions in MB": (resident() - before) / 1e6,
        f"peak growth over {QUESTIONS} questions in MB": (peak.bytes() - before) / 1e6,
    }


# Encoding ----------------------------------------------------------------------------------------------------------

ENCODE = """
import sys, json, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import long_video
print(json.dumps(long_video.encode_minutes(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
"""


def encode(folder: Path, minutes: list[int], frames: int) -> dict[str, float]:
    """Encode timelines of each length in a process of its own."""
    found = {}
    for count in minutes:
        run = [sys.executable, "-c", ENCODE, str(Path(__file__).parent), str(folder), str(count), str(frames)]
        done = subprocess.run(run, check=True, capture_output=True, text=True)
        found |= json.loads(done.stdout.splitlines()[-1])
        print(done.stdout, end="", flush=True)
    return found


def encode_minutes(folder: Path, minutes: int, frames: int) -> dict[str, float]:
    """Encode a drawn video of so many minutes, a segment a minute, with the 500M's sizes and random weights."""
    vlm, hypernetwork = random_model("smolvlm2-500m", folder / f"500m-{minutes}", "cpu")
    video, output = drawn_video(60 * minutes, 384, folder), folder / f"{minutes}.v2l.safetensors"
    return_freed_memory()  # as the command does
    v2l.encode(video, vlm, hypernetwork, frames=frames)
    peak, before = PeakMemory(CPU), time.process_time()
    timeline = encode_timeline(
        video, vlm, hypernetwork, output, v2l.Reading(frames=frames), segments=minutes, index=False
    )
    name = f"{minutes} min, {frames} frames a segment"
    return {
        f"{name}, segments": len(timeline.description.segments),
        f"{name}, processor seconds per encode": (time.process_time() - before) / len(timeline.description.parts),
        f"{name}, peak memory in MB": peak.bytes() / 1e6,
        f"{name}, file in MB": timeline.file.size / 1e6,
    }


# Kills -------------------------------------------------------------------------------------------------------------


def kills(folder: Path) -> dict[str, float]:
    """Kill an encode of an hour at random moments until it was killed KILLS times, and compare the bytes.

    Raises AssertionError if the file differs from that of an undisturbed encode, or if anything is left beside it.
    """
    torch.set_num_threads(1)  # a thread pool does not survive a fork
    chance, video = random.Random(0), drawn_video(HOUR, 128, folder)
    parts_of_one = 1 + len(cut_of(video))
    places = {name: folder / name / "hour.v2l.safetensors" for name in ("undisturbed", "killed")}
    for place in places.values():
        place.parent.mkdir()

    def work(output: Path) -> bool:
        models = v2l.load_vlm("tiny", device="cpu"), v2l.load_hypernetwork("tiny", device="cpu")
        return bool(encode_timeline(video, *models, output).description.segments)

    assert in_child(lambda: work(places["undisturbed"])) == 0
    expected, output = places["undisturbed"].read_bytes(), places["killed"]

    def finished() -> int:
        return len([*output.parent.glob(".*.partial/*.v2l.safetensors")])

    counts = {"kills": 0, "kills after the last part": 0, "finished runs, equal to the byte": 0}
    while counts["kills"] < KILLS:
        target = min(finished() + chance.randint(0, STEP), parts_of_one)
        code = in_child(lambda: work(output), lambda target=target: finished() >= target, chance.uniform(0.0, 1.0))
        if code == -signal.SIGKILL:
            counts["kills"] += 1
            counts["kills after the last part"] += finished() == parts_of_one
            assert not output.exists() or output.read_bytes() == expected
        if output.exists() and code == 0:
            _check_same(output, expected, counts)
    assert in_child(lambda: work(output)) == 0
    _check_same(output, expected, counts)
    return counts | {"parts of the file": parts_of_one, "file in MB": len(expected) / 1e6}


def _check_same(output: Path, expected: bytes, counts: dict[str, int]) -> None:
    assert output.read_bytes() == expected
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    output.unlink()
    counts["finished runs, equal to the byte"] += 1


def cut_of(video: Path) -> list[v2l.Reading]:
    """Return the readings of the segments that tiny would make by default."""
    from v2l.inference.readings import plan_timeline

    return plan_timeline(open_video(video).video, v2l.Reading(frames=12, fps=1.0), TrainedWith(), NO_WISH)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of ask, encode, kills")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, keep those of other names")
    parser.add_argument("--minutes", type=int, nargs="+", default=[1, 4, 16], help="lengths for encode")
    parser.add_argument("--frames", type=int, default=2, help="frames of each segment for encode")
    words = parser.parse_args()
    sections = {"ask": ask, "encode": lambda folder: encode(folder, words.minutes, words.frames), "kills": kills}
    known = json.loads(words.json.read_text()) if words.json and words.json.exists() else {}
    for name in words.names or sections:
        with tempfile.TemporaryDirectory() as place:
            figures = sections[name](Path(place))
        print(name, *(f"  {what}: {value:.4g}" for what, value in figures.items()), sep="\n", flush=True)
        known |= {name: {what: float(f"{value:.4g}") for what, value in figures.items()}}
        known["machine"] = describe_machine(CPU)
        if words.json:
            words.json.write_text(json.dumps(known, indent=1) + "\n")
