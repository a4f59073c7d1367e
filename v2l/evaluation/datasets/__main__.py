"""Write a benchmark as a manifest."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from v2l.errors import V2LError
from v2l.evaluation.datasets.registry import BENCHMARKS, read_benchmark

USAGE = "python -m v2l.evaluation.datasets NAME ROOT [SAMPLES [SEED]] > manifest.jsonl"


def main(words: Sequence[str]) -> int:
    """Print a row for every selected question. Missing videos are counted on standard error and give exit code 1."""
    if not 2 <= len(words) <= 4 or words[0] not in BENCHMARKS or not all(word.isdigit() for word in words[2:]):
        print(f"{USAGE}\nNAME is one of {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    try:
        chosen = read_benchmark(words[0], Path(words[1]), *map(int, words[2:]))
    except V2LError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for example in chosen.examples:
        row = {
            "id": example.id,
            "video_path": os.path.abspath(example.video),
            "task_type": example.task,
            "prompt": example.prompt,
            "target_text": example.target,
            "clip_start_sec": example.start,
            "clip_end_sec": example.end,
            "dataset": words[0],
            "metadata": {"kind": example.kind},
        }
        print(json.dumps(row))
    if chosen.missing:
        print(f"{len(chosen.missing)} of {chosen.videos} videos are missing", file=sys.stderr)
    return 1 if chosen.missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
