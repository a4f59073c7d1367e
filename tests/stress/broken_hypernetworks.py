"""How often `v2l verify --video` passes a broken hypernetwork: copies of the embedded one with parts of the weights
shuffled or drawn anew, on every pair of drawn clips.

`python tests/stress/broken_hypernetworks.py [SEEDS]` prints, for each way of breaking, the pairs on which it passes.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from broken import BROKEN

import v2l
from v2l.inference.proof import prove
from v2l.models.hypernetwork import Hypernetwork
from v2l.tiny.demo import FORM, SECONDS
from v2l.tiny.world.clip import write_clip
from v2l.tiny.world.scene import SHAPES, sample_story

CLIPS = range(5, 9)
"""Seeds of the test split."""


def main(seeds: int) -> None:
    vlm, whole = v2l.load_vlm("tiny", device="cpu"), v2l.load_hypernetwork("tiny", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        clips = [Path(folder) / f"{seed}.mp4" for seed in CLIPS]
        for seed, clip in zip(CLIPS, clips, strict=True):
            write_clip(sample_story("test", seed, SECONDS, shapes=SHAPES), clip, FORM)
        pairs = list(itertools.combinations(clips, 2))

        def passing(hypernetwork: Hypernetwork) -> int:
            return sum(all(proof.trouble is None for proof in prove(pair, vlm, hypernetwork)) for pair in pairs)

        print(f"whole: {passing(whole)} of {len(pairs)} pairs pass")
        for name, broken in BROKEN.items():
            count = sum(passing(broken(whole, seed)) for seed in range(seeds))
            print(f"{name}: {count} of {seeds * len(pairs)} pass", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
