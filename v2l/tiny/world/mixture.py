"""One training manifest of several, with captions, first and last words and motions as often as they shall count.

A clip has one caption, one first and one last word and a motion or none beside some 25 other questions, and training
asks a few of them at a time: each would be one in twenty-five of what is asked. `python -m v2l.tiny.world.mixture MIXED
MANIFEST ... [--captions TIMES] [--ends TIMES] [--motions TIMES]`, all in one folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from v2l.errors import V2LError, errors_in_one_line
from v2l.io.files import unreadable, write_atomically
from v2l.io.text import printable

ENDS = "word first", "word last"
"""Kinds of question about the first and the last word."""
MOTIONS = ("motion",)
"""The kind of question about how a shape moves."""


def mix(mixed: Path, manifests: Sequence[Path], captions: int = 1, ends: int = 1, motions: int = 1) -> None:
    """Writes all rows of the manifests, and after them those of captions `captions - 1` times more, those of first and
    last words `ends - 1` times and those of motions `motions - 1` times, under ids that say so. Raises V2LError where a
    manifest cannot be read or stands in another folder: rows name videos from their own."""
    lines = []
    for path in manifests:
        if path.resolve().parent != mixed.resolve().parent:
            raise V2LError(f"{printable(path)} and {printable(mixed)} are not in one folder; videos would not be found")
        try:
            lines += path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise unreadable(path, error) from error
    rows = [json.loads(line) for line in lines]
    told = [row for row in rows if row["task_type"] == "caption"]
    named, moved = ([row for row in rows if row.get("metadata", {}).get("kind") in kinds] for kinds in (ENDS, MOTIONS))
    again = [
        {**row, "id": f"again-{turn}-{row['id']}"}
        for often, times in ((told, captions), (named, ends), (moved, motions))
        for turn in range(1, times)
        for row in often
    ]
    write_atomically(mixed, "".join(line + "\n" for line in (*lines, *map(json.dumps, again))).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m v2l.tiny.world.mixture", description="One manifest of several.")
    parser.add_argument("mixed", type=Path)
    parser.add_argument("manifests", type=Path, nargs="+", metavar="manifest")
    parser.add_argument("--captions", type=int, default=1, metavar="TIMES", help="how often captions stand in it")
    parser.add_argument("--ends", type=int, default=1, metavar="TIMES", help="how often first and last words do")
    parser.add_argument("--motions", type=int, default=1, metavar="TIMES", help="how often motions do")
    given = parser.parse_args()
    with errors_in_one_line():
        mix(given.mixed, given.manifests, given.captions, given.ends, given.motions)
