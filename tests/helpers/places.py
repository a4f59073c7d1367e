"""Folders of the repository that tests and stress runs read from."""

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
DATA = TESTS / "data"
HELPERS = TESTS / "helpers"
OFFLINE = HELPERS / "offline"
STRESS = TESTS / "stress"
CLIPS = Path(os.environ.get("V2L_TEST_VIDEOS", ROOT.parent / "shared" / "videos"))
"""The real clips, which are not in the repository."""
