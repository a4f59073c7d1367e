"""A batch of samples to its loss: what the frozen model and the hypernetwork make of clips and of questions about them.

The frozen model reads a clip's windows, the hypernetwork turns what it reads into factors, and the same frozen model,
wearing them, is asked about the clip without seeing it (paper section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from v2l.adapters.lora import Factors
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.perceiver import Resampler, ResamplerAttention
from v2l.models.smolvlm import FrozenVLM, Window
from v2l.training.data import NO_END, TrainingSample
from v2l.training.packing import IGNORED, PackedRows, PackedSequence, mean_by_question, read_side_by_side

LONGER = 2.0
"""The longest of what is read together, against the shortest."""
SEEN_BYTES = 2**30
"""Of image embeddings that are remembered: a clip is met many times, often by the same frames."""


@dataclass(frozen=True)
class Heard:
    """What the model made of the questions of some samples, question after question.

    logits: (N, vocabulary) for the N tokens that the loss counts, or None where they are not compared; wanted,
        question: (N,) int64, those tokens and the number of each one's question
    hidden: (M, D) behind each layer, of all M tokens of questions and answers, where hidden states are compared
    of_question: (M,) int64, the number of each of these tokens' question
    fired: of each layer what A of the adapter makes of these tokens, (M, R); none without an adapter
    """

    logits: torch.Tensor | None
    wanted: torch.Tensor
    question: torch.Tensor
    hidden: list[torch.Tensor]
    of_question: torch.Tensor
    fired: list[torch.Tensor]


class TrainingObjective:
    """The hypernetwork as it learns, beside its frozen model.

    kl_weight, hidden_weight: of how far its answers, and its hidden states, are from those of the same model with the
        video in context, beside the cross-entropy
    steering: None, or what tells how far the hypernetwork's attention is from the ends of frames, which is then counted
        beside the cross-entropy, too; its weight is steer_weight
    learners: what learns, by name
    seen: image embeddings, (N, tokens, D), by `TrainingSample.shows`
    """

    def __init__(
        self,
        vlm: FrozenVLM,
        hypernetwork: Hypernetwork,
        kl_weight: float = 0.0,
        hidden_weight: float = 0.0,
        steer_weight: float = 0.0,
    ):
        self.vlm, self.hypernetwork = vlm, hypernetwork
        self.learners: dict[str, nn.Module] = {"hypernetwork": hypernetwork}
        self.kl_weight, self.hidden_weight, self.steer_weight = kl_weight, hidden_weight, steer_weight
        reader = hypernetwork.aggregator["perceiver"]
        self.guidance = AttentionGuidance(reader.encoder, reader.decoder, vlm.num_layers) if steer_weight else None
        self.seen: dict[tuple, torch.Tensor] = {}
        self.seen_bytes = 0

    def loss(self, samples: Sequence[TrainingSample]) -> torch.Tensor:
        """The sum over the samples of each one's loss: of a clip the mean over its questions, of a question the mean
        over its answer's tokens of the cross-entropy, and what it lacks of its teacher where that has a weight."""
        images = self.encode_images(samples)
        factors, beside = self._factors(samples, images)
        own = self._hear([sample.sequence for sample in samples], None, factors)
        loss = _sum_by_clip(F.cross_entropy(own.logits, own.wanted, reduction="none"), own.question, samples)
        if self.kl_weight or self.hidden_weight:
            loss = loss + self._difference(samples, images, own)
        return loss + beside + self._of_hearing(samples, own)

    def losses(self, samples: Sequence[TrainingSample]) -> torch.Tensor:
        """Each question's cross-entropy, (Q,), the mean over its answer's tokens."""
        own = self._hear(
            [sample.sequence for sample in samples], None, self.factors(samples, self.encode_images(samples))
        )
        return mean_by_question(F.cross_entropy(own.logits, own.wanted, reduction="none"), own.question)

    def factors(self, samples: Sequence[TrainingSample], images: Sequence[torch.Tensor]) -> Factors:
        """Per layer a (C, R, d_in) and b (C, R, d_out) of C samples, shorter ranks filled with zeros. A composed
        sample's generated ranks stand one after the other and the learned bias stands once (paper section 3.4).

        images: (N, tokens, D) embeddings, of each part of each sample
        """
        return self._factors(samples, images)[0]

    def _factors(
        self, samples: Sequence[TrainingSample], images: Sequence[torch.Tensor]
    ) -> tuple[Factors, torch.Tensor | float]:
        """`factors`, and what is added to the loss for how they were made, summed over all adapters."""
        parts = [part for sample in samples for part in sample.parts]
        windows = [
            Window(part.frames, part.ids.to(self.vlm.device), seen) for part, seen in zip(parts, images, strict=True)
        ]
        hidden = self._read(windows)
        rows = [by_row(samples, layer) for layer in hidden]
        generated, beside = self._generate(rows, by_row(samples, [part.ends for part in parts]))
        adapters = [len(_rows(sample)) for sample in samples]
        return [(_composed(a, adapters), _composed(b, adapters)) for a, b in generated], beside

    def _read(self, windows: Sequence[Window]) -> list[list[torch.Tensor]]:
        """The inputs of every decoder layer, (T, D) for each window."""
        order = sorted(range(len(windows)), key=lambda place: len(windows[place].input_ids))  # little padding
        lengths = [len(windows[place].input_ids) for place in order]
        layers: list[list[torch.Tensor]] = []
        for pieces in self.vlm.read_layers([windows[place] for place in order]):
            tokens = dict(zip(order, torch.cat(list(pieces), dim=1)[0].split(lengths), strict=True))
            layers.append([tokens[place] for place in range(len(windows))])
        return layers

    def _generate(
        self, layers: Sequence[Sequence[torch.Tensor]], ends: Sequence[torch.Tensor]
    ) -> tuple[Factors, torch.Tensor | float]:
        """Factors of U rows, (U, 2r, d), of the (T, D) tokens of each in every layer, and what is added to the loss for
        how they were made; rows of like length together.

        ends: `Part.ends` of each row, (T,)
        """
        lengths = [len(tokens) for tokens in layers[0]]
        groups = _alike(lengths)
        made, beside = [], []
        for group in groups:
            ones = [torch.ones(lengths[place], dtype=torch.bool, device=self.vlm.device) for place in group]
            padded = [pad_sequence([tokens[place] for place in group], batch_first=True) for tokens in layers]
            held = pad_sequence(ones, batch_first=True)
            made.append(self.hypernetwork.generate(torch.stack(padded, dim=1), held))
            own = pad_sequence([ends[place] for place in group], batch_first=True, padding_value=NO_END)
            beside.append(self._beside(group, own.to(self.vlm.device)))
        order = [place for group in groups for place in group]
        back = torch.tensor(order, device=self.vlm.device).argsort()
        factors = [
            tuple(torch.cat([group[layer][side] for group in made])[back] for side in (0, 1))
            for layer in range(len(layers))
        ]
        return factors, sum(beside)

    def _beside(self, rows: Sequence[int], ends: torch.Tensor) -> torch.Tensor | float:
        """What is added to the loss for the rows that the hypernetwork has just read, summed over them.

        rows: U numbers among all; ends: (U, T), `Part.ends` of each
        """
        return 0.0 if self.guidance is None else self.steer_weight * self.guidance.distance(ends)

    def encode_images(self, samples: Sequence[TrainingSample]) -> list[torch.Tensor]:
        """The image embeddings, (N, tokens, D), of each part of each sample; those of frames that were looked at before
        are remembered, as far as `SEEN_BYTES` reach."""
        parts = []
        for sample in samples:
            embeddings = self.seen.get(sample.shows)
            if embeddings is None:  # each sample alone, so that an interrupted run sees the same to the bit
                embeddings = self.vlm.encode_images(torch.cat([part.images for part in sample.parts]))
                if self.seen_bytes + embeddings.nbytes <= SEEN_BYTES:
                    self.seen[sample.shows] = embeddings
                    self.seen_bytes += embeddings.nbytes
            parts += embeddings.split([part.count for part in sample.parts])
        return parts

    def _hear(
        self,
        sequences: Sequence[PackedSequence],
        images: torch.Tensor | None,
        factors: Factors | None,
        told: bool = True,
    ) -> Heard:
        """told: whether logits are wanted"""
        rows = PackedRows.stack(sequences, self.vlm.device)
        opening = self.vlm.embed(rows.opening.flatten(), images).view(*rows.opening.shape, -1)
        asked = self.vlm.text_model.embed_tokens(rows.ids)
        read = read_side_by_side(
            self.vlm.text_model, opening, rows.there, asked, rows.positions, rows.question, factors
        )
        labels, question, last = (rows.in_order(each) for each in (rows.labels, rows.question, read.rows))
        counted = labels[1:] != IGNORED
        return Heard(
            self.vlm.lm_head(last[:-1][counted]).float() if told else None,
            labels[1:][counted],
            question[1:][counted],
            [*map(rows.in_order, read.asked[1:]), last] if self.hidden_weight else [],
            question,
            [rows.in_order(ranks) for ranks in read.fired],
        )

    def _of_hearing(self, samples: Sequence[TrainingSample], own: Heard) -> torch.Tensor | float:
        """What is added to the loss for how the questions were heard, summed over the samples."""
        return 0.0

    def _difference(
        self, samples: Sequence[TrainingSample], images: Sequence[torch.Tensor], own: Heard
    ) -> torch.Tensor:
        """What separates the student from the same model with the video in context, weighted, summed over the samples as
        `loss` is: KL(teacher || student) of every token that the loss counts, and of every token of questions and answers
        the squared difference of its hidden states behind each layer, which are brought to unit root mean square.
        MicroBatches that do not fit the teacher's context are left out.
        """
        total = own.logits.new_zeros(())
        taught = [sample.in_context is not None for sample in samples]
        if not any(taught):
            return total
        chosen = [sample for sample, fits in zip(samples, taught, strict=True) if fits]
        shown = _take(images, [len(sample.parts) for sample in samples])
        seen = torch.cat([each for group, fits in zip(shown, taught, strict=True) if fits for each in group])
        with torch.no_grad():
            teacher = self._hear([sample.in_context for sample in chosen], seen, None, told=self.kl_weight > 0)
        fits = torch.tensor(taught, device=self.vlm.device)[_clip_of_question(samples, self.vlm.device)]  # (Q,)
        if self.kl_weight:
            student = own.logits[fits[own.question]].log_softmax(-1)
            divergence = F.kl_div(student, teacher.logits.log_softmax(-1), log_target=True, reduction="none").sum(-1)
            total = total + self.kl_weight * _sum_by_clip(divergence, teacher.question, chosen)
        if self.hidden_weight:
            here = fits[own.of_question]
            number = fits.cumsum(0) - 1  # among the questions that the teacher heard
            mine, its = _shared(number[own.of_question[here]], teacher.of_question)
            place = here.nonzero().flatten()[mine]
            pairs = [
                (_unit(student[place]), _unit(state[its]))
                for student, state in zip(own.hidden, teacher.hidden, strict=True)
            ]
            distance = torch.stack([(student - state).square().mean(-1) for student, state in pairs]).mean(0)
            total = total + self.hidden_weight * _sum_by_clip(distance, teacher.of_question[its], chosen)
            total = total + self._beside_teacher(samples, place, pairs)
        return total

    def _beside_teacher(
        self, samples: Sequence[TrainingSample], place: torch.Tensor, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor | float:
        """What else is added to the loss for what separates the student from its teacher, summed over the samples.

        place: (N,) int64, tokens among all of the samples' questions and answers that stand in the teacher's, too
        pairs: behind each layer the student's and the teacher's hidden states of these, (N, D), of unit root mean square
        """
        return 0.0


def _unit(hidden: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(hidden, hidden.shape[-1:])


def _shared(own: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of tokens question after question, by the number of their question, (N,) and (M,): which of them stand for each
    other. They are counted from a question's end: its first word may be written in other tokens behind a video."""
    lengths = [torch.bincount(question) for question in (own, other)]
    shared = torch.minimum(*lengths)

    def kept(question: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        behind = length.cumsum(0)[question] - torch.arange(len(question), device=question.device)
        return behind <= shared[question]

    return kept(own, lengths[0]), kept(other, lengths[1])


def _clip_of_question(samples: Sequence[TrainingSample], device: torch.device) -> torch.Tensor:
    """(Q,): the sample of each question."""
    counts = torch.tensor([int(sample.sequence.group.max()) for sample in samples])
    return torch.arange(len(samples)).repeat_interleave(counts).to(device)


def _sum_by_clip(losses: torch.Tensor, question: torch.Tensor, samples: Sequence[TrainingSample]) -> torch.Tensor:
    """(N,) losses of tokens to the sum over samples of the mean over a sample's questions of a question's mean."""
    return mean_by_question(mean_by_question(losses, question), _clip_of_question(samples, losses.device)).sum()


def by_row(samples: Sequence[TrainingSample], parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Of what stands for each part of each sample what stands for each row that the hypernetwork reads: a part that is
    composed, or all parts of a sample that are not."""
    return [torch.cat(list(row)) for row in _take(parts, [size for sample in samples for size in _rows(sample)])]


def _rows(sample: TrainingSample) -> list[int]:
    """How many parts each of the sample's adapters is made from."""
    return [1] * len(sample.parts) if sample.composed else [len(sample.parts)]


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


FAINT = 1e-5
"""Added to a weight before its logarithm is taken."""


class AttentionGuidance:
    """Keeps what the attentions of a hypernetwork's two resamplers were called with, so that `distance` can tell where
    they looked.

    layers: L, of the frozen model; the resamplers read (U * L, T, W), all layers of a row side by side
    """

    def __init__(self, encoder: Resampler, decoder: Resampler, layers: int):
        self.layers = layers
        self.of_encoder: list[tuple] = []
        self.of_decoder: list[tuple] = []
        for resampler, calls in ((encoder, self.of_encoder), (decoder, self.of_decoder)):
            for block in resampler.layers:
                block.self_attn.register_forward_pre_hook(
                    lambda module, inputs, kept=calls: kept.append((module, inputs))
                )

    def distance(self, ends: torch.Tensor) -> torch.Tensor:
        """How far the attentions of the one pass since the last call were from where they shall look: summed over U
        rows, the mean over blocks, layers, heads and latents of the negative logarithm of a weight.

        Latent n of N shall look at the ends of frames at the seconds n, n + N, n + 2N, ...; where there is none it is
        free. Rank n shall look at the latent n, or n - N where there are more ranks. The first decoder layer's inputs,
        in which no token knows of another, are left out.

        ends: (U, T), `Part.ends` of what each row reads
        """
        missed = []
        for calls, of_encoder in ((self.of_encoder, True), (self.of_decoder, False)):
            for attention, inputs in calls:
                weights = self._weights(attention, inputs)  # (U, L-1, H, N, T)
                count, length = weights.shape[-2:]
                number = torch.arange(count, device=ends.device)[:, None]
                if of_encoder:
                    own = (ends[:, None] != NO_END) & (ends[:, None] % count == number)  # (U, N, T)
                else:
                    own = (number % length == torch.arange(length, device=ends.device)).expand(len(ends), -1, -1)
                looked = (weights * own[:, None, None]).sum(-1)
                wanted = own.any(-1)  # (U, N)
                of_latent = -(looked + FAINT).log().mean((1, 2))
                missed.append((of_latent * wanted).sum(-1) / wanted.sum(-1))
            calls.clear()
        return torch.stack(missed).mean(0).sum()

    def _weights(self, attention: ResamplerAttention, inputs: tuple) -> torch.Tensor:
        """Of each layer but the first how much each latent reads of the context, (U, L-1, H, N, T)."""
        latents, context, gain, mask = inputs
        weights = attention.weights(latents.float(), context.float(), gain, mask)[..., : context.shape[1]]
        return weights.view(-1, self.layers, attention.heads, latents.shape[1], context.shape[1])[:, 1:]
