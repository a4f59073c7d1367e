"""What tiny reads on boards that are drawn unlike those of its training: other fonts, smaller words, upper case.

    python tests/stress/unseen_drawings.py [--clips 100] [--fonts FILE.ttf ...] [--json FILE]

Prints the exact match of first and last words of test clips, in context and from adapters. Limits of the model, not of
the method: docs/model-card.md states them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from speed import CPU

from v2l.bench.resources import describe_machine
from v2l.tiny.world import draw
from v2l.tiny.world.dataset import write_dataset
from v2l.tiny.world.opencv import cv2

OWN_FONTS = ("DUPLEX", "SCRIPT_SIMPLEX")
PIXELS = 32
KINDS = "word first", "word last"


def board(size: float = 1.0, upper: bool = False):
    """Draw words of another size or in upper case, while the returned patch is active."""
    original = draw._draw_board

    def drawn(image, board, word):
        original(image, replace(board, size=size * board.size), word.upper() if upper else word)

    return patch.object(draw, "_draw_board", drawn)


def font(file: Path):
    """Draw with a TrueType font, which OpenCV 5 can, while the returned patch is active."""
    face = cv2.FontFace(str(file))

    def size(word, *_):
        _, top, width, height = cv2.getTextSize((0, 0), word, (0, 0), face, PIXELS)
        return (width, -top), height + top  # the part below the line separately

    def put(image, word, place, _, scale, colour, *__):
        cv2.putText(image, word, place, colour, face, max(1, round(PIXELS * scale)))

    changed = {"getTextSize": size, "putText": put}
    return patch.object(draw, "cv2", SimpleNamespace(**{**vars(cv2), **changed}))


DRAWINGS = {
    "as in training": board(),
    "three quarters of the size": board(0.75),
    "half the size": board(0.5),
    "upper case": board(upper=True),
    **{f"OpenCV's {name}": patch.object(draw, "_FONT", getattr(cv2, f"FONT_HERSHEY_{name}")) for name in OWN_FONTS},
}


def accuracy(drawing, clips: int, folder: Path) -> dict[str, float]:
    """Evaluate tiny on so many test clips, drawn in this way."""
    with drawing:
        manifest = write_dataset(folder, "test", clips)
    rows = [line for line in manifest.read_text().splitlines() if json.loads(line)["metadata"]["kind"] in KINDS]
    manifest.write_text("".join(row + "\n" for row in rows))
    run = [sys.executable, "-m", "v2l", "eval", str(manifest), "--model", "tiny", "-o", str(folder / "answers.jsonl")]
    left_out = [word for name in ("nothing", "bias", "other_clip") for word in ("--without", name)]
    found = subprocess.run([*run, *left_out, "--json"], check=True, capture_output=True, text=True)
    return json.loads(found.stdout)["macro"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=100, help="evaluate each drawing on so many")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--fonts", type=Path, nargs="+", default=[], metavar="FILE", help="TrueType fonts")
    words = parser.parse_args()
    found = {}
    for name, drawing in {**DRAWINGS, **{file.stem: font(file) for file in words.fonts}}.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = accuracy(drawing, words.clips, Path(folder))
        print(name, {way: round(share, 3) for way, share in found[name].items()}, flush=True)
    if words.json:
        report = {"machine": describe_machine(CPU), "clips": words.clips, "exact": found}
        words.json.write_text(json.dumps(report, indent=1) + "\n")
