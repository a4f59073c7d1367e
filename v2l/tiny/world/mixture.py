"""Concatenate training manifests and repeat captions, first and last words, motions, lists of words, and neighbours.

`python -m v2l.tiny.world.mixture MIXED MANIFEST ... [--captions TIMES] [--ends TIMES] [--motions TIMES]
[--words TIMES] [--neighbours TIMES]`, all in one folder. A clip has one to three questions of most of these kinds among
about 25, and training samples a few questions per clip: without repetition each kind would be 4 to 10% of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from v2l.errors import V2LError, errors_in_one_line
from v2l.io.files import unreadable, write_atomically
from v2l.io.text import printable

REPEATED = {
    "captions": ("caption",),
    "ends": ("word first", "word last"),
    "motions": ("motion",),
    "words": ("words",),
    "neighbours": ("word after", "word before"),
}
"""The kinds of question that each option repeats."""


def mix(mixed: Path, manifests: Sequence[Path], **times: int) -> None:
    """Write all rows of the manifests, followed by the repeated ones under ids `again-N-ID`.

    times: how often the kinds of a name of REPEATED occur in the result, once without it. Every question of the task
        "caption" is of the kind "caption" here
    Raises V2LError if a manifest cannot be read, or is in another folder: rows name videos relative to their own.
    """
    lines = []
    for path in manifests:
        if path.resolve().parent != mixed.resolve().parent:
            raise V2LError(
                f"{printable(path)} and {printable(mixed)} are in different folders; put them in one, since rows name "
                "videos relative to it"
            )
        try:
            lines += path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise unreadable(path, error) from error
    rows = [json.loads(line) for line in lines]
    kinds = ["caption" if row["task_type"] == "caption" else row.get("metadata", {}).get("kind") for row in rows]
    again = [
        {**row, "id": f"again-{turn}-{row['id']}"}
        for name, count in times.items()
        for turn in range(1, count)
        for row, kind in zip(rows, kinds, strict=True)
        if kind in REPEATED[name]
    ]
    write_atomically(mixed, "".join(line + "\n" for line in (*lines, *map(json.dumps, again))).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m v2l.tiny.world.mixture", description="Concatenate manifests.")
    parser.add_argument("mixed", type=Path)
    parser.add_argument("manifests", type=Path, nargs="+", metavar="manifest")
    for name, kinds in REPEATED.items():
        how = f"how often each {' and '.join(kinds)} question occurs"
        parser.add_argument(f"--{name}", type=int, default=1, metavar="TIMES", help=how)
    given = parser.parse_args()
    with errors_in_one_line():
        mix(given.mixed, given.manifests, **{name: getattr(given, name) for name in REPEATED})
