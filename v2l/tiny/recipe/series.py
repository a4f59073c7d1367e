"""Train an embedded model from random weights: all stages in one resumable command.

`python -m v2l.tiny.recipe.series FOLDER` draws the training data, trains a frozen model and its hypernetwork, saves
both in FOLDER/model for `--model`, and evaluates them on test clips. Each stage is a separate command, printed before
it runs. FOLDER/series.jsonl records the finished stages and their durations.

With `--label-free` only a hypernetwork for the embedded frozen model is trained, from clips and questions alone: the
answers are the frozen model's own, and no stage uses what the clips were drawn from.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from v2l.errors import V2LError, errors_in_one_line
from v2l.io.files import make_folder
from v2l.io.journal import Journal
from v2l.io.text import printable
from v2l.models.hypernetwork_file import FILE_NAME

DONE = "series.jsonl"
"""Journal of the series: stages and commands in its header, then one line per run of a stage."""
SIZES = "rank=16,lora_alpha=45,latent_size=128,num_latents=16,num_blocks=4,num_heads=4,num_kv_heads=4,head_dim=32"


@dataclass(frozen=True)
class Stage:
    """A Python module and its arguments, run in the folder of the series.

    shared: whether two processes of one thread each run it on a CPU
    """

    name: str
    command: str
    shared: bool = False

    @property
    def arguments(self) -> list[str]:
        """Arguments of the Python interpreter."""
        launcher = "-m torch.distributed.run --standalone --nproc_per_node 2 " if self.parallel else ""
        return shlex.split(f"{launcher}-m {self.command}")

    @property
    def parallel(self) -> bool:
        """Whether two processes run it on this machine."""
        return self.shared and not torch.cuda.is_available()


def _sets(settings: str) -> str:
    """Write NAME=VALUE,... as options of `v2l train`."""
    return " ".join(f"--set {each}" for each in settings.split(","))


def stages(share: float = 1.0) -> Iterator[Stage]:
    """Yield all stages in order. share: fraction of the steps and clips, for a trial run; at least two of each."""

    def of(count: int) -> int:
        return max(2, round(count * share))

    clips = {"varied": 5_000, "long": 1_200, "two": 2_500, "excerpt": 2_000, "sparse": 2_000}
    mixed = " ".join(f"train-{filming}.jsonl" for filming in clips)
    reading = "v2l.tiny.recipe.reading_stage train.jsonl validation-varied.jsonl again/model"
    bound = "--answers --before-weight 1 --learning-rate 1e-3"
    yield Stage("frames", f"v2l.tiny.recipe.vision_stage vision --steps {of(4000)} {of(1500)}")
    yield Stage("answers", f"v2l.tiny.recipe.language_stage vision/pooled/vision.pt language --steps {of(3000)}")
    yield Stage("answers again", f"v2l.tiny.recipe.language_stage language/model again --steps {of(1800)}")
    for filming, count in clips.items():
        yield Stage(f"clips, {filming}", f"v2l.tiny.world.dataset . train {of(count)} {filming}")
    yield Stage("clips to choose by", f"v2l.tiny.world.dataset . validation {of(150)} varied")
    yield Stage("manifest", f"v2l.tiny.world.mixture train.jsonl {mixed} --captions 4")
    yield Stage(
        "where to look",
        f"v2l train train.jsonl --validation validation-varied.jsonl --model again/model -o look "
        f"--steps {of(200)} --batch 16 --learning-rate 1e-3 --dtype bfloat16 --seed 0 {_sets(SIZES)} "
        + _sets(
            f"questions=10,segments=8,windows=2,denser=1,hidden_weight=1,steer_weight=0.5,validate_every={of(200)}"
        ),
        shared=True,
    )
    yield Stage("what to hold", f"{reading} look/hypernetwork.safetensors hold --steps {of(300)} --seed 1", shared=True)
    yield Stage(
        "where to fire",
        f"{reading} hold/hypernetwork.safetensors fire --taught hold --steps {of(500)} --segments 1 {bound} "
        "--reading-weight 0.2 --bind-weight 2 --found-weight 1 --seed 2",
        shared=True,
    )
    yield Stage(
        "hypernetwork",
        f"{reading} fire/hypernetwork.safetensors hypernetwork --taught fire --steps {of(1300)} --segments 8 {bound} "
        "--reading-weight 0.05 --bind-weight 0.5 --found-weight 0.3 --seed 3",
        shared=True,
    )
    yield Stage("model", "v2l.tiny.recipe.release again/model hypernetwork/hypernetwork.safetensors model")
    yield Stage("clips to measure", f"v2l.tiny.world.dataset . test {of(100)}")
    yield Stage("figures", "v2l eval test.jsonl --model model --max-new-tokens 40")


def label_free_stages(share: float = 1.0) -> Iterator[Stage]:
    """Yield the stages that train a hypernetwork for the embedded frozen model without labels. share: as in `stages`"""

    def of(count: int) -> int:
        return max(2, round(count * share))

    times = "--captions 6 --motions 2 --words 3 --neighbours 2"
    yield Stage("clips", f"v2l.tiny.world.dataset . train {of(4000)} varied")
    yield Stage("clips to choose by", f"v2l.tiny.world.dataset . validation {of(128)} varied")
    yield Stage("manifest", f"v2l.tiny.world.mixture train.jsonl train-varied.jsonl {times}")
    yield Stage("layers", f"v2l.tiny.recipe.layer_stage train.jsonl tiny layers --steps {of(1200)}")
    yield Stage(
        "hypernetwork",
        "v2l train train.jsonl --teacher --validation validation-varied.jsonl --model tiny "
        f"--hypernetwork layers/hypernetwork.safetensors -o hypernetwork --frames 16 --steps {of(2200)} --batch 16 "
        "--learning-rate 5e-4 "
        + _sets(f"questions=10,segments=2,windows=1,denser=1,hidden_weight=1,recompute=no,validate_every={of(550)}"),
        shared=True,
    )
    yield Stage("clips to measure", f"v2l.tiny.world.dataset . test {of(1000)}")
    yield Stage(
        "figures",
        "v2l eval test.jsonl --model tiny --hypernetwork hypernetwork/hypernetwork.safetensors "
        "--max-new-tokens 40 --segments 1,2",
    )


def run(folder: Path, share: float = 1.0, label_free: bool = False) -> None:
    """Run the stages that are not finished. label_free: those of `label_free_stages`

    Raises V2LError if a stage fails (the next run repeats it), or if the folder holds a series of other stages.
    """
    make_folder(folder)
    planned = list(label_free_stages(share) if label_free else stages(share))
    header = {"v2l": 1, "stages": {stage.name: stage.command for stage in planned}}
    with Journal(folder / DONE, header, "series", "share or with other settings") as journal:
        minutes = sum(each["minutes"] for each in journal.rows)
        done = {each["stage"] for each in journal.rows if each["done"]}
        for stage in planned:
            if stage.name not in done:
                minutes += _run(stage, folder, journal)
    model, trained = folder / "model", folder / "hypernetwork" / FILE_NAME
    use = f"--hypernetwork {printable(trained)}" if label_free else f"--model {printable(model)}"
    print(f"\nfinished in {minutes:.0f} minutes; use the result with {use}")


def _run(stage: Stage, folder: Path, journal: Journal) -> float:
    """Run one stage, record it in the journal and return its duration in minutes. Raises V2LError if it fails."""
    print(f"\n{stage.name}: python {shlex.join(stage.arguments)}", flush=True)
    started, code = time.monotonic(), None
    threads = {"OMP_NUM_THREADS": "1"} if stage.parallel else {}
    try:
        command = [sys.executable, *stage.arguments]
        code = subprocess.run(command, cwd=folder, env={**os.environ, **threads}, check=False).returncode
    finally:
        minutes = (time.monotonic() - started) / 60
        journal.add({"stage": stage.name, "minutes": round(minutes, 2), "done": code == 0})
    if code:
        raise V2LError(f"stage {stage.name!r} failed with exit code {code}; see above, run the same command to retry")
    return minutes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m v2l.tiny.recipe.series", description="Train an embedded model from random weights."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="fraction of the steps and clips, for a trial run")
    parser.add_argument("--label-free", action="store_true", help="train a hypernetwork alone, without labels")
    given = parser.parse_args()
    try:
        with errors_in_one_line():
            run(given.folder, given.share, given.label_free)
    except KeyboardInterrupt:
        print("interrupted; run the same command to resume", file=sys.stderr)
        sys.exit(130)
