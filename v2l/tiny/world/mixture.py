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

ENDS = "word first", "word last"
"""Kinds of question repeated by --ends."""
MOTIONS = ("motion",)
"""Kinds of question repeated by --motions."""
WORDS = ("words",)
"""Kinds of question repeated by --words."""
NEIGHBOURS = "word after", "word before"
"""Kinds of question repeated by --neighbours."""


def mix(
    mixed: Path,
    manifests: Sequence[Path],
    captions: int = 1,
    ends: int = 1,
    motions: int = 1,
    words: int = 1,
    neighbours: int = 1,
) -> None:
    """Write all rows of the manifests, followed by the repeated ones under ids `again-N-ID`.

    captions, ends, motions, words, neighbours: how often captions, first and last words, motions, lists of words, and
        `NEIGHBOURS` occur in the result
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
    described = [row for row in rows if row["task_type"] == "caption"]

    def of(kinds: Sequence[str]) -> list[dict]:
        return [row for row in rows if row.get("metadata", {}).get("kind") in kinds]

    again = [
        {**row, "id": f"again-{turn}-{row['id']}"}
        for repeated, times in (
            (described, captions),
            (of(ENDS), ends),
            (of(MOTIONS), motions),
            (of(WORDS), words),
            (of(NEIGHBOURS), neighbours),
        )
        for turn in range(1, times)
        for row in repeated
    ]
    write_atomically(mixed, "".join(line + "\n" for line in (*lines, *map(json.dumps, again))).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m v2l.tiny.world.mixture", description="Concatenate manifests.")
    parser.add_argument("mixed", type=Path)
    parser.add_argument("manifests", type=Path, nargs="+", metavar="manifest")
    parser.add_argument("--captions", type=int, default=1, metavar="TIMES", help="how often captions occur")
    parser.add_argument("--ends", type=int, default=1, metavar="TIMES", help="how often first and last words occur")
    parser.add_argument("--motions", type=int, default=1, metavar="TIMES", help="how often motions occur")
    parser.add_argument("--words", type=int, default=1, metavar="TIMES", help="how often lists of words occur")
    parser.add_argument(
        "--neighbours", type=int, default=1, metavar="TIMES", help="how often the words after and before another occur"
    )
    given = parser.parse_args()
    with errors_in_one_line():
        times = given.captions, given.ends, given.motions, given.words, given.neighbours
        mix(given.mixed, given.manifests, *times)
