"""What a video changes in every layer of the frozen model: the targets of `layer_stage`. They need no label.

In context, the tokens of a question read the video with the attention of every layer. From the same hidden states but
without the video, a layer returns something else; an adapter has to add the difference. It follows from the frozen
model alone, so it is computed once for each clip and stored.

Axes: L decoder layers, T tokens of a clip's prompt, M tokens of the questions and answers, F frames, H query heads,
K key/value heads, E head width, I input width of `down_proj`, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from v2l.errors import V2LError
from v2l.io.files import atomically, make_folder
from v2l.io.manifest import Example, group_by_clip
from v2l.models.language_model import LanguageModel
from v2l.models.smolvlm import FrozenVLM, Window
from v2l.training.data import NO_END, SampleReader, SamplingConfig, TrainingSample, read_sample
from v2l.training.packing import UNASKED, PackedAttention, PackedRows, packed_forward

CLIPS_IN_FILE = 64
"""Clips whose targets are stored together."""
TOGETHER = 16
"""Clips that the frozen model reads together."""


@dataclass(frozen=True)
class ClipTargets:
    """The targets of one clip, in float16 but for `ends` and `scale`.

    hidden: (L, T, D), the inputs of every layer at the tokens that the hypernetwork reads
    ends: (T,), `Part.ends` of these tokens
    inner: (L, M, I), the inputs of `down_proj` without the video
    change: (L, M, D), what the video adds to the output of the layer
    scale: (L, M), the mean square of the output in context
    attention: (L, M, H, F), to the ends of the frames
    """

    hidden: torch.Tensor
    ends: torch.Tensor
    inner: torch.Tensor
    change: torch.Tensor
    scale: torch.Tensor
    attention: torch.Tensor

    @property
    def seconds(self) -> torch.Tensor:
        """The whole seconds of the frames, (F,)."""
        return self.ends[self.ends != NO_END]


class TargetFiles:
    """The targets of a manifest's clips in a folder, written once and mapped into memory.

    sampling: one window of a clip, and some of its questions, drawn at random

    Clips that are longer than the frozen model's context are left out.
    """

    def __init__(self, vlm: FrozenVLM, examples: Sequence[Example], sampling: SamplingConfig, folder: Path):
        assert vlm.tokenizer is not None  # every embedded model has one
        self.vlm, self.sampling, self.folder = vlm, sampling, folder
        self.reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
        clips = group_by_clip(examples)
        self.files = [clips[start : start + CLIPS_IN_FILE] for start in range(0, len(clips), CLIPS_IN_FILE)]

    def write(self) -> Iterator[tuple[int, int]]:
        """Compute the missing files. Yields the number of complete ones and of all."""
        make_folder(self.folder)
        for number, clips in enumerate(self.files):
            if not self._path(number).exists():
                random = np.random.default_rng(number)
                parts = (clips[start : start + TOGETHER] for start in range(0, len(clips), TOGETHER))
                targets = [each for part in parts for each in self._compute(part, random)]
                with atomically(self._path(number)) as file:
                    torch.save([asdict(each) for each in targets], file)
            yield number + 1, len(self.files)

    def read(self) -> list[ClipTargets]:
        """Map all targets into memory. Raises V2LError if there is no clip."""
        targets = []
        for number in range(len(self.files)):
            stored = torch.load(self._path(number), weights_only=True, mmap=True)
            targets += [ClipTargets(**each) for each in stored]
        if not targets:
            raise V2LError("no clip of the manifest fits the model's context; take fewer frames of each")
        return targets

    def _compute(self, clips: Sequence[Sequence[Example]], random: np.random.Generator) -> list[ClipTargets]:
        samples = [read_sample(clip, self.reader, self.sampling, random) for clip in clips]
        samples = [sample for sample in samples if sample.in_context is not None]
        return clip_targets(self.vlm, self.reader, samples) if samples else []

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.pt"


@torch.no_grad()
def clip_targets(vlm: FrozenVLM, reader: SampleReader, samples: Sequence[TrainingSample]) -> list[ClipTargets]:
    """Compute the targets of samples that fit the context and are read in one window."""
    model, device = vlm.language_model, vlm.device
    rows = PackedRows.stack([sample.sequence for sample in samples], device)
    embedded = model.embed(rows.ids)
    images = [vlm.encode_images(part.images) for sample in samples for part in sample.parts if part.images is not None]

    # The questions after the video, and the start of a prompt without it
    openings = [each.ids[each.group == 0] for each in (sample.in_context for sample in samples) if each is not None]
    there = pad_sequence([torch.ones_like(ids, dtype=torch.bool) for ids in openings], batch_first=True).to(device)
    shown = pad_sequence(openings, batch_first=True).to(device)
    clip = vlm.embed(shown.flatten(), torch.cat(images)).view(*shown.shape, -1)
    positions = rows.positions + (there.sum(1) - rows.there.sum(1))[:, None, None]
    layers = tuple(range(vlm.num_layers))
    context = packed_forward(model, clip, there, embedded, positions, rows.question, attention_layers=layers)
    alone = packed_forward(model, model.embed(rows.opening), rows.there, embedded, rows.positions, rows.question)

    # Each layer from the hidden states in context, without the video
    pairs = [without_video(model, rows, index, alone.clip[index], context.asked[index]) for index in layers]
    inner = torch.stack([inner for inner, _ in pairs])
    output = torch.stack(context.asked[1:])
    change, scale = output - torch.stack([own for _, own in pairs]), output.square().mean(-1)
    targets = []
    for number, (sample, opening, encoded) in enumerate(zip(samples, openings, images, strict=True)):
        (part,) = sample.parts
        window = Window(part.frames, part.ids.to(device), encoded)
        hidden = torch.stack([torch.cat(list(pieces), dim=1)[0] for pieces in vlm.read_layers([window])])
        asked = rows.question[number] != UNASKED
        seconds = part.ends[part.ends != NO_END].tolist()
        ends = (reader.ends(opening, seconds) != NO_END).nonzero().flatten()
        attention = torch.stack([each[number][..., ends].flatten(0, 1)[:, asked] for each in context.attention])
        halves = hidden, inner[:, number][:, asked], change[:, number][:, asked], attention.transpose(1, 2)
        hidden, own_inner, own_change, attention = (each.half() for each in halves)
        own_scale = scale[:, number][:, asked]
        targets.append(ClipTargets(hidden, part.ends, own_inner, own_change, own_scale, attention))
    return targets


def without_video(
    model: LanguageModel, rows: PackedRows, index: int, opening: torch.Tensor, asked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one decoder layer on questions without the video.

    opening, asked: its inputs, (C, V, D) and (C, R, W, D)
    Returns the inputs of `down_proj`, (C, R, W, I), and the output of the layer, (C, R, W, D).
    """
    layer, (count, tokens) = model.layers[index], opening.shape[:2]
    steps = torch.arange(tokens, device=opening.device).repeat(count)
    rotary = model.rotary(torch.cat([steps, rows.positions.flatten()]))
    x = torch.cat([opening.flatten(0, 1), asked.flatten(0, 2)])
    attend = PackedAttention(rows.there, rows.question, ())
    x = layer.add_attention(x, layer.attention(x, index, rotary, attend))[len(steps) :]
    inner = layer.activations(x)
    return inner.view(*asked.shape[:3], -1), layer.add_mlp(x, inner).view(asked.shape)


def keys_and_values(model: LanguageModel, hidden: torch.Tensor) -> torch.Tensor:
    """Return what later tokens can read of N tokens in every layer: keys, before rotation, and values, (L, N, 2 K, E).

    hidden: (L, N, D), the inputs of every layer
    """
    unrotated = model.rotary(torch.zeros(hidden.shape[1], dtype=torch.int64, device=hidden.device))

    def both(index: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return torch.cat([keys, values], dim=1)

    layers = zip(model.layers, hidden, strict=True)
    return torch.stack([layer.attention(x, index, unrotated, both) for index, (layer, x) in enumerate(layers)])
