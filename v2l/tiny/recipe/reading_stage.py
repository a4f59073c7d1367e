"""The first stage of the hypernetwork: its ranks learn to tell what the frames show that they are made from.

Training on answers alone teaches that slowly: what a rank does not hold cannot be bound to a time or to a word, and
nothing tells it to hold what is not bound yet. Here linear heads ask each rank, in every layer from the third on, for
the word that its frame shows, for the word of the frame before where that is another one, for the shape, its colour and
its place, for the second and the minute, and, where a part begins or ends, whether the video does; others ask the same
on the way there, of the projected token that ends the frame and of the latent that reads it. Which latent and which
rank read which frame `v2l train --steer-weight` has taught. With `--bind-weight` the ranks are also drawn to the words,
the times and the ends of the questions that they know the answer to, with `--key-weight` each to its own time among all
that could be asked, as `binding.py` tells, and with `--found-weight` they write there what the frozen model finds there
in context.
`python -m v2l.tiny.recipe.reading_stage MANIFEST VALIDATION MODEL HYPERNETWORK RUN`, of clips of `dataset.py`; in several
processes as `v2l train`.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from v2l.adapters.lora import Factors
from v2l.cli.options import whole_numbers
from v2l.errors import errors_in_one_line
from v2l.io.manifest import read_manifest
from v2l.models.checkpoint import load_hypernetwork
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.loading import load_vlm
from v2l.models.smolvlm import FrozenVLM
from v2l.tiny.recipe.binding import FIRST_LAYER, MINUTES, Binding, TimeKeys
from v2l.tiny.recipe.language_stage import POINTING
from v2l.tiny.recipe.vision_stage import COLOUR_NAMES, PLACE_NAMES
from v2l.tiny.world.dataset import FILMINGS, story_of
from v2l.tiny.world.scene import KINDS, WORDS, place_name
from v2l.training.common import Processes, kept_in
from v2l.training.data import NO_END, SamplingConfig, TrainingSample
from v2l.training.losses import Heard, TrainingObjective, by_row
from v2l.training.packing import IGNORED
from v2l.training.trainer import STATE, Trainer, Training
from v2l.video.client import probe
from v2l.video.limits import LEAST_RESOLUTION

ASKED = {
    "word": len(WORDS),
    "before": len(WORDS),
    "place": len(PLACE_NAMES),
    "colour": len(COLOUR_NAMES),
    "shape": len(KINDS),
}
"""What the heads ask of what a frame shows, and how many answers there are."""
WHEN = {"second": 60, "minute": 60}
"""What other heads ask: when it is there. A rank reads every so many seconds, and must tell its own from those."""
EDGES = {"begins": 2, "ends": 2}
"""And of each part's first frame whether the video begins with it, of its last whether the video ends with it."""
QUICK = 10.0
"""The heads learn so many times as fast as the hypernetwork."""


@functools.cache
def frames_show(path: str, frames: tuple[int, ...]) -> torch.Tensor:
    """What the heads ask, (F, 5) int64, or IGNORED, of those frames of a training clip that `dataset.py` wrote: its
    story follows from the number in its name."""
    clip, video = Path(path), probe(path)
    film = FILMINGS[clip.parent.name.partition("-")[2] or "plain"](np.random.default_rng(int(clip.stem)))
    story = story_of("train", int(clip.stem), film)
    shown = []
    for seconds in (float(video.seconds[frame]) for frame in frames):
        scene = story.at(seconds)
        shape = scene.shapes[0]
        word, place = scene.board.word_at(seconds), place_name(*scene.where(shape, seconds))
        looks = PLACE_NAMES.index(place), COLOUR_NAMES.index(shape.colour), KINDS.index(shape.kind)
        shown.append([WORDS.index(word), IGNORED, *looks])
    for before, after in pairwise(shown):
        if before[0] != after[0]:
            after[1] = before[0]
    return torch.tensor(shown)


def known_of_frames(sample: TrainingSample) -> list[torch.Tensor]:
    """What the frozen model can know of the frames of each part, (F, 5), as `frames_show` tells it: it reads each part
    alone and does not know the frame before the part's first."""
    parts = frames_show(*sample.shows[:2]).clone().split([part.frames for part in sample.parts])
    for part in parts:
        part[0, 1] = IGNORED
    return list(parts)


def edges_of(sample: TrainingSample) -> list[torch.Tensor]:
    """What EDGES ask of the frames of each part, (F, 2) int64: 1 or 0, or IGNORED of a frame in the midst of a part."""
    parts = [torch.full((part.frames, len(EDGES)), IGNORED) for part in sample.parts]
    begins, ends = sample.edges
    for number, part in enumerate(parts, 1):
        part[0, 0], part[-1, 1] = int(begins and number == 1), int(ends and number == len(parts))
    return parts


@dataclass(frozen=True)
class ReadingTraining(Training):
    """How this stage goes.

    answers: whether the questions of the manifest are asked, too
    reading_weight: of the heads' cross-entropy
    before_weight: therein of the word before, which is asked of few frames
    when_weight: therein of the second and the minute
    edge_weight: therein of where the video begins and ends, which is asked of two frames of each part
    bind_weight: of what ranks lack that should fire at the words and times of the questions
    key_weight: of what their rows of A lack that should fire at their own time and at no other
    found_weight: of the cross-entropy of what is found at times and at words that ask for another, as it is read in
        context
    taught: None, or the folder of a run of this stage whose heads these go on from: new ones have all to learn first
    """

    answers: bool = False
    reading_weight: float = 1.0
    before_weight: float = 4.0
    when_weight: float = 1.0
    edge_weight: float = 1.0
    bind_weight: float = 0.0
    key_weight: float = 0.0
    found_weight: float = 0.0
    taught: str | None = None


class ReadingObjective(TrainingObjective):
    """A student that is also asked what its ranks hold."""

    def __init__(self, vlm: FrozenVLM, hypernetwork: Hypernetwork, training: ReadingTraining):
        super().__init__(vlm, hypernetwork, training.kl_weight, training.hidden_weight, training.steer_weight)
        self.training = training
        sizes = self.hypernetwork.config
        self.heads = self._learned("heads", ASKED)
        self.when = self._learned("when", WHEN)
        self.edges = self._learned("edges", EDGES)
        self.found = nn.Linear(sizes.hidden_size, sum(ASKED.values()), device=self.vlm.device)
        if training.found_weight:
            self.learners["found"] = self.found
        binds = training.bind_weight or training.found_weight or training.key_weight
        self.binding = Binding(vlm.tokenizer, sizes.rank) if binds else None
        self.keys = TimeKeys(vlm, self.binding) if training.key_weight else None
        self.known: list[list[torch.Tensor]] = []  # what is known of frames: of each sample's parts,
        self.shown: list[torch.Tensor] = []  # and of each row that the hypernetwork reads,
        self.edged: list[torch.Tensor] = []  # as what EDGES ask of it
        self.by_row = 0.0  # what each row counts
        self.kept: dict[str, torch.Tensor] = {}  # of the last pass, (U * L, N, W) each
        encoder = self.hypernetwork.aggregator["perceiver"].encoder
        encoder.register_forward_pre_hook(lambda _, inputs: self.kept.update(tokens=inputs[0]))
        encoder.register_forward_hook(lambda _, inputs, latents: self.kept.update(latents=latents))
        self.hypernetwork.layers[0].register_forward_hook(lambda _, inputs, ranks: self.kept.update(ranks=ranks))

    def _learned(self, name: str, asked: Mapping[str, int]) -> nn.Parameter:
        """New heads of tokens, latents and ranks that learn under that name, (3, L, W + 1, answers)."""
        sizes = self.hypernetwork.config
        shape = 3, sizes.num_layers - FIRST_LAYER, sizes.latent_size + 1, sum(asked.values())
        heads = nn.Parameter(torch.zeros(shape, device=self.vlm.device))
        self.learners[name] = nn.ParameterList([heads])
        return heads

    def loss(self, samples: Sequence[TrainingSample]) -> torch.Tensor:
        """As of any student, and what the heads do not know: of a sample the mean over its adapters and their frames."""
        self.known = [known_of_frames(sample) for sample in samples]
        self.shown = by_row(samples, [part for parts in self.known for part in parts])
        self.edged = by_row(samples, [part for sample in samples for part in edges_of(sample)])
        self.by_row = len(samples) / len(self.shown)
        if self.training.answers:
            return super().loss(samples)
        return self._factors(samples, self.encode_images(samples))[1]

    def _beside(self, rows: Sequence[int], ends: torch.Tensor) -> torch.Tensor | float:
        beside = super()._beside(rows, ends)
        if not torch.is_grad_enabled():
            return beside
        row, token = (ends != NO_END).nonzero(as_tuple=True)
        shown, edged = (torch.cat([of[place] for place in rows]).to(ends.device) for of in (self.shown, self.edged))
        stands = torch.stack([ends[row, token] % 60, ends[row, token] // 60 % 60], dim=1)
        heads_of = (QUICK * heads for heads in (self.heads, self.when, self.edges))
        for heads, when, edges, (name, held) in zip(*heads_of, self.kept.items(), strict=True):
            held = held.unflatten(0, (len(rows), -1))[:, FIRST_LAYER:]
            place = token if name == "tokens" else ends[row, token] % held.shape[2]
            reader = row * held.shape[2] + place
            alone = _alone(reader)
            frames = torch.bincount(row[alone], minlength=len(rows))[row[alone]]
            held = held[row, :, place][alone]
            missed = _missed(heads, held, shown[alone], ASKED, {"before": self.training.before_weight})
            missed = missed + self.training.when_weight * _missed(when, held, stands[alone], WHEN)
            missed = missed / frames + self.training.edge_weight * _missed(edges, held, edged[alone], EDGES)
            beside = beside + self.training.reading_weight * self.by_row * missed.sum()
        return beside

    def _generate(
        self, layers: Sequence[Sequence[torch.Tensor]], ends: Sequence[torch.Tensor]
    ) -> tuple[Factors, torch.Tensor | float]:
        factors, beside = super()._generate(layers, ends)
        if self.keys is None or not torch.is_grad_enabled():
            return factors, beside
        rank = self.hypernetwork.config.rank
        every = pad_sequence(list(ends), batch_first=True, padding_value=NO_END).to(self.vlm.device)
        row, token = (every != NO_END).nonzero(as_tuple=True)
        second = every[row, token]
        asked = _alone(row * rank + second % rank) & (second < 60 * MINUTES)
        row, second = row[asked], second[asked]
        missed = self.keys.missed([a[row, second % rank] for a, _ in factors], second)
        frames = torch.bincount(row)[row]
        beside = beside + self.training.key_weight * self.by_row * (missed / frames).sum()
        return factors, beside

    def _of_hearing(self, samples: Sequence[TrainingSample], own: Heard) -> torch.Tensor | float:
        if not self.training.bind_weight:
            return super()._of_hearing(samples, own)
        return self.training.bind_weight * self.binding.lacked(samples, self.known, own.fired)

    def _beside_teacher(
        self, samples: Sequence[TrainingSample], place: torch.Tensor, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor | float:
        """A head learns from the teacher how what a question's token found is written there; the student shall write it
        so, too."""
        if not self.training.found_weight:
            return super()._beside_teacher(samples, place, pairs)
        told = [self.binding.told(sample, known) for sample, known in zip(samples, self.known, strict=True)]
        head = torch.cat([self.found.weight.T, self.found.bias[None]])[None]
        lacked = 0.0
        for way in torch.cat(told, dim=1).to(place.device)[:, place]:  # (N, 5)
            asks = (way != IGNORED).any(1)
            if asks.any():
                student, teacher = (state[asks][:, None] for state in pairs[POINTING])
                missed = _missed(head, teacher, way[asks], ASKED) + _missed(head.detach(), student, way[asks], ASKED)
                lacked = lacked + missed.sum() / (way != IGNORED).sum()
        return self.training.found_weight * len(samples) * lacked


def _alone(reader: torch.Tensor) -> torch.Tensor:
    """Of K frames, (K,), by the number of what reads each, whether that reads no other: what reads two frames cannot
    tell one from the other."""
    return torch.bincount(reader)[reader] == 1


def _missed(
    heads: torch.Tensor,
    held: torch.Tensor,
    shown: torch.Tensor,
    asked: Mapping[str, int],
    weights: Mapping[str, float] | None = None,
) -> torch.Tensor:
    """What linear heads, (L, W + 1, answers), do not tell of what is asked of K frames, (K, asked), from what is held
    of them, (K, L, W): (K,).

    weights: of what is not to be weighed as one
    """
    held = F.rms_norm(held.float(), held.shape[-1:])
    said = torch.baddbmm(heads[:, -1:], held.transpose(0, 1), heads[:, :-1])  # (L, K, answers)
    missed = 0.0
    for name, part, wanted in zip(asked, said.split(list(asked.values()), dim=-1), shown.T, strict=True):
        lacked = F.cross_entropy(
            part.transpose(1, 2), wanted.expand(len(part), -1), ignore_index=IGNORED, reduction="none"
        )
        missed = missed + (weights or {}).get(name, 1.0) * lacked.mean(0)
    return missed


class ReadingTrainer(Trainer):
    """A run of this stage, of a `ReadingTraining`."""

    def new_objective(self) -> ReadingObjective:
        """One with heads."""
        student = ReadingObjective(self.vlm, self.hypernetwork, self.training)
        if self.training.taught:
            known = kept_in(Path(self.training.taught) / STATE)
            for name in known.keys() & student.learners.keys() - {"hypernetwork"}:
                student.learners[name].load_state_dict(known[name])
        return student


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m v2l.tiny.recipe.reading_stage", description="What ranks shall hold."
    )
    for name in ("manifest", "validation", "model", "hypernetwork", "run"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--longest", type=int, metavar="FRAMES", help="that are read of a clip")
    parser.add_argument(
        "--resolution",
        metavar="PIXELS,...",
        help="of a frame's longest edge: of some clips the first, else any of them",
    )
    parser.add_argument(
        "--at-first", type=float, default=SamplingConfig.at_first, metavar="SHARE", help="of those clips"
    )
    parser.add_argument("--reading-weight", type=float, default=ReadingTraining.reading_weight)
    parser.add_argument("--before-weight", type=float, default=ReadingTraining.before_weight)
    parser.add_argument("--when-weight", type=float, default=ReadingTraining.when_weight)
    parser.add_argument("--edge-weight", type=float, default=ReadingTraining.edge_weight)
    parser.add_argument("--bind-weight", type=float, default=ReadingTraining.bind_weight)
    parser.add_argument("--key-weight", type=float, default=ReadingTraining.key_weight)
    parser.add_argument("--found-weight", type=float, default=ReadingTraining.found_weight)
    parser.add_argument("--taught", metavar="RUN", help="the folder of a run of this stage, to go on from its heads")
    parser.add_argument("--answers", action="store_true", help="ask the questions of the manifest, too")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if (given.bind_weight or given.found_weight) and not given.answers:
        parser.error(
            "--bind-weight and --found-weight are about what questions name and need --answers, which asks them"
        )
    with errors_in_one_line():
        resolutions = whole_numbers(given.resolution, "--resolution", LEAST_RESOLUTION)
    processes = Processes()
    curriculum = SamplingConfig(
        denser=1.0,
        windows=min(2, given.segments),
        segments=given.segments,
        questions=10,
        resolutions=resolutions,
        marks_end=True,
        longest=given.longest,
        at_first=given.at_first,
    )
    said = {field.name: vars(given)[field.name] for field in fields(ReadingTraining) if field.name in vars(given)}
    often = 250 if given.answers else given.steps  # answers are not what it is chosen by
    training = ReadingTraining(curriculum, batch=16, hidden_weight=1.0, validate_every=often, **said)
    with errors_in_one_line():
        vlm = load_vlm(str(given.model), device=processes.device, dtype=torch.bfloat16)
        trainer = ReadingTrainer(
            vlm,
            load_hypernetwork(given.hypernetwork, device=vlm.device),
            (read_manifest(given.manifest), read_manifest(given.validation)),
            training,
            given.run,
            processes=processes,
        )
        for progress in trainer.run():
            if processes.first:
                print(progress, flush=True)
