"""The first stage of the hypernetwork: each rank learns to represent the facts of the frames that it is generated from.

Training on answers alone teaches this slowly: a fact that a rank does not represent cannot be bound to a time or a
word, and nothing rewards representing a fact that is not bound yet. Here linear heads read from each rank, in every
layer from the third on, the word that its frame shows, the previous word if it is a different one, the shape, its
colour and its place, the second and the minute, and whether the video begins or ends with the frame. Other heads read
the same from the projected token that ends the frame and from the latent that reads this token. `v2l train
--set steer_weight=X` has taught which latent and which rank read which frame.

With `--bind-weight`, ranks are also trained to be active at the words, times and ends of the questions that they can
answer; with `--key-weight`, each at its own time among all that could be asked (`binding.py`); and with
`--found-weight`, to write there what the frozen model finds there in context.

`python -m v2l.tiny.recipe.reading_stage MANIFEST VALIDATION MODEL HYPERNETWORK RUN` trains on clips of
`v2l.tiny.world.dataset`, in several processes if started as `v2l train` is.
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
from v2l.errors import V2LError, errors_in_one_line
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
from v2l.training.auxiliary import AnswerPass, AuxiliaryLoss
from v2l.training.common import Processes, load_state
from v2l.training.data import NO_END, SamplingConfig, TrainingSample
from v2l.training.losses import by_row, resampler
from v2l.training.packing import IGNORED
from v2l.training.trainer import STATE, Trainer, Training
from v2l.video.client import probe
from v2l.video.limits import LEAST_RESOLUTION

FRAME_FACTS = {
    "word": len(WORDS),
    "before": len(WORDS),
    "place": len(PLACE_NAMES),
    "colour": len(COLOUR_NAMES),
    "shape": len(KINDS),
}
"""The facts of a frame and the number of values of each."""
TIMES = {"second": 60, "minute": 60}
"""The time of a frame. A rank reads one frame in every so many seconds and must represent which."""
EDGES = {"begins": 2, "ends": 2}
"""Whether the video begins with a part's first frame, and whether it ends with its last."""
READ_FROM = ("tokens", "latents", "ranks")
"""The hidden states that the heads read: (U * L, N, W) each, U rows, L layers."""
HEAD_SCALE = 10.0
"""Scales the heads' weights, and thereby their learning rate relative to the hypernetwork's."""


# Targets -----------------------------------------------------------------------------------------------------------


@functools.cache
def frame_facts(path: str, frames: tuple[int, ...]) -> torch.Tensor:
    """The FRAME_FACTS of these frames of a training clip by `v2l.tiny.world.dataset`, (F, 5) int64, or IGNORED. The
    number in the file's name determines the story."""
    clip, video = Path(path), probe(path)
    film = FILMINGS[clip.parent.name.partition("-")[2] or "plain"](np.random.default_rng(int(clip.stem)))
    story = story_of("train", int(clip.stem), film)
    facts = []
    for seconds in (float(video.seconds[frame]) for frame in frames):
        scene = story.at(seconds)
        shape = scene.shapes[0]
        word, place = scene.board.word_at(seconds), place_name(*scene.where(shape, seconds))
        looks = PLACE_NAMES.index(place), COLOUR_NAMES.index(shape.colour), KINDS.index(shape.kind)
        facts.append([WORDS.index(word), IGNORED, *looks])
    for previous, current in pairwise(facts):
        if previous[0] != current[0]:
            current[1] = previous[0]
    return torch.tensor(facts)


def known_facts(sample: TrainingSample) -> list[torch.Tensor]:
    """The `frame_facts` of each part, (F, 5), that the frozen model can know: it reads each part separately, so the
    word before a part's first frame is IGNORED."""
    parts = frame_facts(*sample.shows[:2]).clone().split([part.frames for part in sample.parts])
    for part in parts:
        part[0, 1] = IGNORED
    return list(parts)


def edge_targets(sample: TrainingSample) -> list[torch.Tensor]:
    """The EDGES of the frames of each part, (F, 2) int64: 1 or 0, or IGNORED within a part."""
    parts = [torch.full((part.frames, len(EDGES)), IGNORED) for part in sample.parts]
    begins, ends = sample.edges
    for number, part in enumerate(parts, 1):
        part[0, 0], part[-1, 1] = int(begins and number == 1), int(ends and number == len(parts))
    return parts


# Loss --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadingTraining(Training):
    """The settings of this stage.

    answers: whether to train on the questions of the manifest, too
    reading_weight: weight of the heads' cross-entropy
    before_weight: relative weight of the previous word, which few frames have
    when_weight: relative weight of the second and the minute
    edge_weight: relative weight of where the video begins and ends, which only two frames of each part have
    bind_weight: weight of the loss of ranks at the words and times of questions (`Binding.loss`)
    key_weight: weight of the loss of their rows of A over all times (`TimeKeys.loss`)
    found_weight: weight of the cross-entropy of what is found at times and words that ask for another one, as the
        model finds it in context
    taught: the folder of a run of this stage whose heads are loaded; None for new heads
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


class ReadingLoss(AuxiliaryLoss):
    """The terms of this stage, with the heads that they train.

    The heads read the hypernetwork's hidden states, which forward hooks capture. A sample's terms are averaged over
    its adapters and their frames.

    facts: `known_facts` of each sample of the batch
    row_facts, row_edges: facts and EDGES of each row that the hypernetwork reads; row_weight: the weight of a row
    captured: the hidden states of the last forward pass, by READ_FROM
    """

    def __init__(self, vlm: FrozenVLM, hypernetwork: Hypernetwork, training: ReadingTraining):
        self.vlm, self.training, self.sizes = vlm, training, hypernetwork.config
        self.answers = training.answers
        self.heads, self.when, self.edges = (self._new_heads(values) for values in (FRAME_FACTS, TIMES, EDGES))
        self.found = nn.Linear(self.sizes.hidden_size, sum(FRAME_FACTS.values()), device=vlm.device)
        self.modules: dict[str, nn.Module] = {
            "heads": nn.ParameterList([self.heads]),
            "when": nn.ParameterList([self.when]),
            "edges": nn.ParameterList([self.edges]),
        }
        if training.found_weight:
            self.modules["found"] = self.found
        self.binding: Binding | None = None
        self.keys: TimeKeys | None = None
        if training.bind_weight or training.found_weight or training.key_weight:
            self.binding = Binding(vlm.tokenizer, self.sizes.rank)
            self.keys = TimeKeys(vlm, self.binding) if training.key_weight else None
        self.facts: list[list[torch.Tensor]] = []
        self.row_facts: list[torch.Tensor] = []
        self.row_edges: list[torch.Tensor] = []
        self.row_weight = 0.0
        self.captured: dict[str, torch.Tensor] = {}
        encoder = resampler(hypernetwork, "encoder")
        encoder.register_forward_pre_hook(lambda _, inputs: self.captured.update(tokens=inputs[0]))
        encoder.register_forward_hook(lambda _, inputs, latents: self.captured.update(latents=latents))
        hypernetwork.layers[0].register_forward_hook(lambda _, inputs, ranks: self.captured.update(ranks=ranks))
        if training.taught is not None:
            self._load_heads(Path(training.taught))

    def _new_heads(self, values: Mapping[str, int]) -> nn.Parameter:
        """Zero heads for each of READ_FROM, weights and bias, (3, L, W + 1, values)."""
        shape = len(READ_FROM), self.sizes.num_layers - FIRST_LAYER, self.sizes.latent_size + 1, sum(values.values())
        return nn.Parameter(torch.zeros(shape, device=self.vlm.device))

    def _load_heads(self, run: Path) -> None:
        """Load the heads of another run; those that it lacks stay new."""
        state = load_state(run / STATE)
        for name in state.keys() & self.modules.keys():
            self.modules[name].load_state_dict(state[name])

    def begin(self, samples: Sequence[TrainingSample]) -> None:
        """Look up the targets of the samples."""
        self.facts = [known_facts(sample) for sample in samples]
        self.row_facts = by_row(samples, [part for parts in self.facts for part in parts])
        self.row_edges = by_row(samples, [part for sample in samples for part in edge_targets(sample)])
        self.row_weight = len(samples) / len(self.row_facts)

    def rows_loss(self, rows: Sequence[int], ends: torch.Tensor) -> torch.Tensor | float:
        """The heads' cross-entropy on the hidden states of the rows."""
        # The K frames of all rows and their targets
        row, token = (ends != NO_END).nonzero(as_tuple=True)
        second = ends[row, token]
        facts, edges = (torch.cat([of[i] for i in rows]).to(ends.device) for of in (self.row_facts, self.row_edges))
        times = torch.stack([second % 60, second // 60 % 60], dim=1)

        loss: torch.Tensor | float = 0.0
        for number, name in enumerate(READ_FROM):
            scaled = (HEAD_SCALE * heads[number] for heads in (self.heads, self.when, self.edges))
            fact_heads, time_heads, edge_heads = scaled
            states = self.captured[name].unflatten(0, (len(rows), -1))[:, FIRST_LAYER:]  # (U, L, N, W)

            # The state that reads each frame, if it reads no other frame
            place = token if name == "tokens" else second % states.shape[2]
            alone = _unshared(row * states.shape[2] + place)
            states = states[row, :, place][alone]  # (K, L, W)
            frames = torch.bincount(row[alone], minlength=len(rows))[row[alone]]

            missed = _head_loss(fact_heads, states, facts[alone], FRAME_FACTS, {"before": self.training.before_weight})
            missed = missed + self.training.when_weight * _head_loss(time_heads, states, times[alone], TIMES)
            missed = missed / frames
            missed = missed + self.training.edge_weight * _head_loss(edge_heads, states, edges[alone], EDGES)
            loss = loss + self.training.reading_weight * self.row_weight * missed.sum()
        return loss

    def factors_loss(self, factors: Factors, ends: Sequence[torch.Tensor]) -> torch.Tensor | float:
        """The loss of the ranks' rows of A over all times."""
        if self.keys is None:
            return 0.0
        rank = self.sizes.rank
        padded = pad_sequence(list(ends), batch_first=True, padding_value=NO_END).to(self.vlm.device)
        row, token = (padded != NO_END).nonzero(as_tuple=True)
        second = padded[row, token]
        counted = _unshared(row * rank + second % rank) & (second < 60 * MINUTES)
        row, second = row[counted], second[counted]
        loss = self.keys.loss([a[row, second % rank] for a, _ in factors], second)
        frames = torch.bincount(row)[row]
        return self.training.key_weight * self.row_weight * (loss / frames).sum()

    def answers_loss(self, samples: Sequence[TrainingSample], student: AnswerPass) -> torch.Tensor | float:
        """The loss of the ranks' activations at the words and times of questions."""
        if self.binding is None or not self.training.bind_weight:
            return 0.0
        return self.training.bind_weight * self.binding.loss(samples, self.facts, student.activations)

    def teacher_loss(
        self,
        samples: Sequence[TrainingSample],
        tokens: torch.Tensor,
        pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor | float:
        """The cross-entropy of what the questions' tokens find. A head learns from the teacher how it is represented
        there, and the student learns to represent it in the same way."""
        if self.binding is None or not self.training.found_weight:
            return 0.0
        targets = [self.binding.targets(*pair) for pair in zip(samples, self.facts, strict=True)]
        head = torch.cat([self.found.weight.T, self.found.bias[None]])[None]
        loss: torch.Tensor | float = 0.0
        for target in torch.cat(targets, dim=1).to(tokens.device)[:, tokens]:  # (N, 5) for each kind of query
            asking = (target != IGNORED).any(1)
            if asking.any():
                student, teacher = (state[asking][:, None] for state in pairs[POINTING])
                missed = _head_loss(head, teacher, target[asking], FRAME_FACTS)
                missed = missed + _head_loss(head.detach(), student, target[asking], FRAME_FACTS)
                loss = loss + missed.sum() / (target != IGNORED).sum()
        return self.training.found_weight * len(samples) * loss


def _unshared(reader: torch.Tensor) -> torch.Tensor:
    """Whether the reader of each of K frames reads no other frame, (K,): a state that reads two cannot separate them.

    reader: (K,) int64, numbers of the states that read the frames
    """
    return torch.bincount(reader)[reader] == 1


def _head_loss(
    heads: torch.Tensor,
    states: torch.Tensor,
    targets: torch.Tensor,
    values: Mapping[str, int],
    weights: Mapping[str, float] | None = None,
) -> torch.Tensor:
    """The cross-entropy of linear heads for K frames, summed over the facts and averaged over layers: (K,).

    heads: weights and bias, (L, W + 1, values); states: (K, L, W); targets: (K, facts), or IGNORED
    values: the number of values of each fact; weights: of facts that do not weigh 1
    """
    states = F.rms_norm(states.float(), states.shape[-1:])
    logits = torch.baddbmm(heads[:, -1:], states.transpose(0, 1), heads[:, :-1])  # (L, K, values)
    loss = logits.new_zeros(len(states))
    for name, part, target in zip(values, logits.split(list(values.values()), dim=-1), targets.T, strict=True):
        missed = F.cross_entropy(
            part.transpose(1, 2), target.expand(len(part), -1), ignore_index=IGNORED, reduction="none"
        )
        loss = loss + (weights or {}).get(name, 1.0) * missed.mean(0)
    return loss


# The program -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m v2l.tiny.recipe.reading_stage", description="Train ranks to represent the facts of frames."
    )
    for name in ("manifest", "validation", "model", "hypernetwork", "run"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--longest", type=int, metavar="FRAMES", help="Read at most this many frames of a clip.")
    parser.add_argument(
        "--resolution",
        metavar="PIXELS,...",
        help="Pixels of a frame's longest edge: the first for some clips, any of them for the others.",
    )
    parser.add_argument(
        "--at-first", type=float, default=SamplingConfig.at_first, metavar="SHARE", help="The share of those clips."
    )
    for name in ("reading", "before", "when", "edge", "bind", "key", "found"):
        parser.add_argument(f"--{name}-weight", type=float, default=getattr(ReadingTraining, f"{name}_weight"))
    parser.add_argument("--taught", metavar="RUN", help="Load the heads of a run of this stage.")
    parser.add_argument("--answers", action="store_true", help="Train on the questions of the manifest, too.")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _resolutions(text: str | None) -> tuple[int, ...]:
    """Parse `--resolution`. Raises V2LError unless it is a list of numbers that frames can have."""
    if text is None:
        return ()
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise V2LError(f"--resolution {text!r}: give comma-separated whole numbers, such as 64,128") from error
    if min(numbers) < LEAST_RESOLUTION:
        raise V2LError(f"--resolution {text!r}: give numbers of at least {LEAST_RESOLUTION}")
    return tuple(dict.fromkeys(numbers))


def main() -> None:
    """Run the stage as the command line says."""
    parser = _parser()
    given = parser.parse_args()
    if (given.bind_weight or given.found_weight) and not given.answers:
        parser.error("--bind-weight and --found-weight concern the words of questions and need --answers")
    processes = Processes()
    sampling = SamplingConfig(
        denser=1.0,
        windows=min(2, given.segments),
        segments=given.segments,
        questions=10,
        resolutions=_resolutions(given.resolution),
        marks_end=True,
        longest=given.longest,
        at_first=given.at_first,
    )
    options = {field.name: vars(given)[field.name] for field in fields(ReadingTraining) if field.name in vars(given)}
    interval = 250 if given.answers else given.steps  # without answers, validation does not measure what is trained
    training = ReadingTraining(sampling, batch=16, hidden_weight=1.0, validate_every=interval, **options)
    vlm = load_vlm(str(given.model), device=processes.device, dtype=torch.bfloat16)
    hypernetwork = load_hypernetwork(given.hypernetwork, device=vlm.device)
    trainer = Trainer(
        vlm,
        hypernetwork,
        (read_manifest(given.manifest), read_manifest(given.validation)),
        training,
        given.run,
        processes=processes,
        auxiliary=ReadingLoss(vlm, hypernetwork, training),
    )
    for progress in trainer.run():
        if processes.first:
            print(progress, flush=True)


if __name__ == "__main__":
    with errors_in_one_line():
        main()
