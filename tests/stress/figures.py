"""The command line of the measurements in this folder that print a JSON object."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path


def print_figures(
    description: str, measure: Callable[[Path, int, int], dict[str, object]], clips: int, first: int
) -> None:
    """Print the figures of `measure(folder, clips, first)`, with the given defaults, and store them with `--json`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help="working files, kept for the next run")
    parser.add_argument("--clips", type=int, default=clips)
    parser.add_argument("--from", dest="first", type=int, default=first, metavar="SEED", help="seed of the first clip")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(measure(given.folder, given.clips, given.first), indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")
