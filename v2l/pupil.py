"""A batch of lessons to its loss: what the frozen model and the hypernetwork make of clips and of questions about them.

The frozen model reads a clip's windows, the hypernetwork turns what it reads into factors, and the same frozen model,
wearing them, is asked about the clip without seeing it (paper section 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from v2l.hypernetwork import Hypernetwork
from v2l.lessons import Lesson
from v2l.lora import Factors
from v2l.sheet import Rows, mean_by_question
from v2l.side_by_side import read_side_by_side
from v2l.vlm import FrozenVLM, Window

LONGER = 2.0
"""The longest of what is read together, against the shortest."""
SEEN_BYTES = 2**30
"""Of image embeddings that are remembered: a clip is met many times, often by the same frames."""


class Pupil:
    """The hypernetwork as it learns, beside its frozen model.

    kl_weight: of the divergence from the same model with the video in context, beside the cross-entropy
    seen: image embeddings, (N, tokens, D), by `Lesson.shows`
    """

    def __init__(self, vlm: FrozenVLM, hypernetwork: Hypernetwork, kl_weight: float = 0.0):
        self.vlm, self.hypernetwork, self.kl_weight = vlm, hypernetwork, kl_weight
        self.seen: dict[tuple, torch.Tensor] = {}
        self.seen_bytes = 0

    def loss(self, lessons: Sequence[Lesson]) -> torch.Tensor:
        """The sum over the lessons of each one's loss: of a clip the mean over its questions, of a question the mean
        over its answer's tokens of the cross-entropy, and of the divergence from the teacher where it has a weight."""
        images = self.see(lessons)
        logits, wanted, question = self._answer_tokens(lessons, images)
        losses = F.cross_entropy(logits, wanted, reduction="none")
        if self.kl_weight:
            losses = losses + self.kl_weight * self._divergence(lessons, images, logits, question)
        clip = torch.arange(len(lessons), device=losses.device)
        clip = clip.repeat_interleave(torch.tensor([int(lesson.sheet.group.max()) for lesson in lessons]).to(clip))
        return mean_by_question(mean_by_question(losses, question), clip).sum()

    def losses(self, lessons: Sequence[Lesson]) -> torch.Tensor:
        """Each question's cross-entropy, (Q,), the mean over its answer's tokens."""
        logits, wanted, question = self._answer_tokens(lessons, self.see(lessons))
        return mean_by_question(F.cross_entropy(logits, wanted, reduction="none"), question)

    def factors(self, lessons: Sequence[Lesson], images: Sequence[torch.Tensor]) -> Factors:
        """Per layer a (C, R, d_in) and b (C, R, d_out) of C lessons, shorter ranks filled with zeros. A composed
        lesson's generated ranks stand one after the other and the learned bias stands once (paper section 3.4).

        images: (N, tokens, D) embeddings, of each part of each lesson
        """
        parts = [part for lesson in lessons for part in lesson.parts]
        windows = [
            Window(part.frames, part.ids.to(self.vlm.device), seen) for part, seen in zip(parts, images, strict=True)
        ]
        hidden = self._read(windows)
        # what one row of the hypernetwork reads: a part that is composed, or all parts of a lesson that are not
        sizes = [size for lesson in lessons for size in _rows(lesson)]
        rows = [[torch.cat(group) for group in _take(layer, sizes)] for layer in hidden]
        generated = self._generate(rows)
        adapters = [len(_rows(lesson)) for lesson in lessons]
        return [(_composed(a, adapters), _composed(b, adapters)) for a, b in generated]

    def _read(self, windows: Sequence[Window]) -> list[list[torch.Tensor]]:
        """The inputs of every decoder layer, (T, D) for each window."""
        order = sorted(range(len(windows)), key=lambda place: len(windows[place].input_ids))  # little padding
        lengths = [len(windows[place].input_ids) for place in order]
        layers: list[list[torch.Tensor]] = []
        for pieces in self.vlm.read_layers([windows[place] for place in order]):
            tokens = dict(zip(order, torch.cat(list(pieces), dim=1)[0].split(lengths), strict=True))
            layers.append([tokens[place] for place in range(len(windows))])
        return layers

    def _generate(self, layers: Sequence[Sequence[torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Factors of U rows, (U, 2r, d), of the (T, D) tokens of each in every layer; rows of like length together."""
        lengths = [len(tokens) for tokens in layers[0]]
        groups = _alike(lengths)
        made = []
        for group in groups:
            ones = [torch.ones(lengths[place], dtype=torch.bool, device=self.vlm.device) for place in group]
            padded = [pad_sequence([tokens[place] for place in group], batch_first=True) for tokens in layers]
            held = pad_sequence(ones, batch_first=True)
            made.append(self.hypernetwork.generate(torch.stack(padded, dim=1), held))
        order = [place for group in groups for place in group]
        back = torch.tensor(order, device=self.vlm.device).argsort()
        return [
            tuple(torch.cat([factors[layer][side] for factors in made])[back] for side in (0, 1))
            for layer in range(len(layers))
        ]

    def see(self, lessons: Sequence[Lesson]) -> list[torch.Tensor]:
        """The image embeddings, (N, tokens, D), of each part of each lesson; those of frames that were looked at before
        are remembered, as far as `SEEN_BYTES` reach."""
        parts = []
        for lesson in lessons:
            embeddings = self.seen.get(lesson.shows)
            if embeddings is None:  # each lesson alone, so that an interrupted run sees the same to the bit
                embeddings = self.vlm.see(torch.cat([part.images for part in lesson.parts]))
                if self.seen_bytes + embeddings.nbytes <= SEEN_BYTES:
                    self.seen[lesson.shows] = embeddings
                    self.seen_bytes += embeddings.nbytes
            parts += embeddings.split([part.count for part in lesson.parts])
        return parts

    def _answer_tokens(
        self, lessons: Sequence[Lesson], images: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (N, vocabulary), wanted tokens (N,) and the number of each one's question (N,)."""
        rows = Rows.stack([lesson.sheet for lesson in lessons], self.vlm.device)
        return self._logits(rows, None, self.factors(lessons, images))

    def _logits(
        self, rows: Rows, images: torch.Tensor | None, factors: Factors | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        counted, wanted, question = rows.answers()
        opening = self.vlm.embed(rows.opening.flatten(), images).view(*rows.opening.shape, -1)
        asked = self.vlm.text_model.embed_tokens(rows.ids)
        read = read_side_by_side(
            self.vlm.text_model, opening, rows.there, asked, rows.positions, rows.question, factors
        )
        return self.vlm.lm_head(read.rows[:, :, :-1][counted]).float(), wanted, question

    @torch.no_grad()
    def _teacher(self, lesson: Lesson, images: Sequence[torch.Tensor]) -> torch.Tensor:
        return self._logits(Rows.stack([lesson.in_context], self.vlm.device), torch.cat(list(images)), None)[0]

    def _divergence(
        self, lessons: Sequence[Lesson], images: Sequence[torch.Tensor], logits: torch.Tensor, question: torch.Tensor
    ) -> torch.Tensor:
        """KL(teacher || student) of every counted token, (N,); zero where a clip does not fit the teacher's context."""
        counts = [int((lesson.sheet.labels[1:] >= 0).sum()) for lesson in lessons]
        divergences = []
        groups = _take(images, [len(lesson.parts) for lesson in lessons])
        for lesson, seen, student in zip(lessons, groups, logits.split(counts), strict=True):
            if lesson.in_context is None:
                divergences.append(student.new_zeros(len(student)))
                continue
            teacher = self._teacher(lesson, seen).log_softmax(-1)
            divergences.append(F.kl_div(student.log_softmax(-1), teacher, log_target=True, reduction="none").sum(-1))
        return torch.cat(divergences)


def _rows(lesson: Lesson) -> list[int]:
    """How many parts each of the lesson's adapters is made from."""
    return [1] * len(lesson.parts) if lesson.composed else [len(lesson.parts)]


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """The places of items of those lengths, in groups that need little padding."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and lengths[place] <= LONGER * lengths[groups[-1][0]]:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _take(items: Sequence, sizes: Sequence[int]) -> list[Sequence]:
    """The items in groups of those sizes."""
    groups, start = [], 0
    for size in sizes:
        groups.append(items[start : start + size])
        start += size
    return groups


def _composed(factors: torch.Tensor, adapters: Sequence[int]) -> torch.Tensor:
    """(U, 2r, d) factors of U adapters to (C, R, d): each clip's own adapters composed, R the largest rank."""
    rank = factors.shape[1] // 2
    clips = [torch.cat([group[:, :rank].flatten(0, 1), group[0, rank:]]) for group in factors.split(list(adapters))]
    return pad_sequence(clips, batch_first=True)
