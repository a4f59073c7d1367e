"""The training objective: from a batch of samples to its loss (paper section 4).

The frozen model reads a clip's windows, the hypernetwork turns their hidden states into LoRA factors, and the same
frozen model with these factors applied answers questions about the clip without seeing it. The loss is the
cross-entropy of the answers, optionally with the distance from the same model with the video in context.

Further terms are passed in as an `auxiliary.AuxiliaryLoss`. `AttentionGuidance` is the term of `v2l train --set
steer_weight=X`: one resampler reads every layer's hidden states, and on layers unlike those that it has learned to read
it may attend to uninformative tokens; latents may all come to read the same tokens, and ranks the same latent. Guidance
draws each latent to the ends of different frames, where the frozen model has written what it saw and when, and each
rank to a different latent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from v2l.adapters.lora import Factors
from v2l.models.hypernetwork import Hypernetwork
from v2l.models.perceiver import Resampler, ResamplerAttention
from v2l.models.smolvlm import FrozenVLM, Window
from v2l.training.auxiliary import AnswerPass, AuxiliaryLoss
from v2l.training.data import NO_END, TrainingSample
from v2l.training.packing import (
    IGNORED,
    PackedRows,
    PackedSequence,
    group_by_length,
    mean_by_question,
    packed_forward,
    split_list,
)

CACHE_BYTES = 2**30
"""The size limit of the cache of image embeddings. The same frames of a clip recur in training."""
EPSILON = 1e-5
"""Added to an attention weight before the logarithm."""


class TrainingObjective:
    """The hypernetwork in training, with its frozen model.

    kl_weight, hidden_weight: weights of the divergence and of the distance between hidden states, both from the same
        model with the video in context
    steer_weight: weight of the attention guidance
    auxiliary: further terms
    recompute: read hidden states again in the backward pass (see `Hypernetwork.generate`). Guidance and auxiliary terms
        use activations of the hypernetwork, which are then kept
    modules: everything that is trained, by name
    image_cache: image embeddings, (N, tokens, D), by `TrainingSample.shows`
    """

    def __init__(
        self,
        vlm: FrozenVLM,
        hypernetwork: Hypernetwork,
        kl_weight: float = 0.0,
        hidden_weight: float = 0.0,
        steer_weight: float = 0.0,
        auxiliary: AuxiliaryLoss | None = None,
        recompute: bool = False,
    ):
        self.vlm, self.hypernetwork = vlm, hypernetwork
        self.recompute = recompute and not steer_weight and auxiliary is None
        self.kl_weight, self.hidden_weight, self.steer_weight = kl_weight, hidden_weight, steer_weight
        self.auxiliary = auxiliary or AuxiliaryLoss()
        self.modules: dict[str, nn.Module] = {"hypernetwork": hypernetwork, **self.auxiliary.modules}
        self.guidance = AttentionGuidance(hypernetwork, vlm.num_layers) if steer_weight else None
        self.image_cache: dict[tuple, torch.Tensor] = {}
        self.cached_bytes = 0

    def loss(self, samples: Sequence[TrainingSample]) -> torch.Tensor:
        """The loss summed over the samples: for a clip the mean over its questions, for a question the mean over its
        answer's tokens."""
        self.auxiliary.begin(samples)
        images = self.encode_images(samples)
        factors, generation_loss = self.factors_and_loss(samples, images)
        if not self.auxiliary.answers:
            return generation_loss
        student = self._answer([sample.sequence for sample in samples], None, factors)
        loss = _sum_by_clip(student.cross_entropy(), student.question, samples)
        if self.kl_weight or self.hidden_weight:
            loss = loss + self._distillation(samples, images, student)
        return loss + generation_loss + self.auxiliary.answers_loss(samples, student)

    def losses(self, samples: Sequence[TrainingSample]) -> torch.Tensor:
        """The cross-entropy of each question, (Q,), averaged over its answer's tokens."""
        factors = self.factors(samples, self.encode_images(samples))
        student = self._answer([sample.sequence for sample in samples], None, factors)
        return mean_by_question(student.cross_entropy(), student.question)

    # Factors ---------------------------------------------------------------------------------------------------

    def factors(self, samples: Sequence[TrainingSample], images: Sequence[torch.Tensor]) -> Factors:
        """Generate the adapters of C samples: per layer a (C, R, d_in) and b (C, R, d_out), padded with zero ranks. A
        composed sample's generated ranks are concatenated, followed by the learned bias once (paper section 3.4).

        images: (N, tokens, D) embeddings of each part of each sample
        """
        return self.factors_and_loss(samples, images)[0]

    def factors_and_loss(
        self, samples: Sequence[TrainingSample], images: Sequence[torch.Tensor]
    ) -> tuple[Factors, torch.Tensor]:
        """Generate `factors`, and sum the guidance and auxiliary terms for them over all adapters. Auxiliary terms need
        gradients and are left out without."""
        # Read every part with the frozen model, layer by layer
        parts = [part for sample in samples for part in sample.parts]
        windows = [
            Window(part.frames, part.ids.to(self.vlm.device), embeddings)
            for part, embeddings in zip(parts, images, strict=True)
        ]
        ends = by_row(samples, [part.ends for part in parts])
        layers = (by_row(samples, layer) for layer in self._read(windows))

        # Generate the factors of every row, then compose those of one sample
        generated, loss = self._generate(layers, ends)
        if torch.is_grad_enabled():
            loss = loss + self.auxiliary.factors_loss(generated, ends)
        adapters = [len(_row_sizes(sample)) for sample in samples]
        return [(_composed(a, adapters), _composed(b, adapters)) for a, b in generated], loss

    def _read(self, windows: Sequence[Window]) -> Iterator[list[torch.Tensor]]:
        """Yield the inputs of each decoder layer, (T, D) for each window."""
        order = sorted(range(len(windows)), key=lambda index: len(windows[index].input_ids))  # little padding
        lengths = [len(windows[index].input_ids) for index in order]
        for pieces in self.vlm.read_layers([windows[index] for index in order]):
            tokens = dict(zip(order, torch.cat(list(pieces), dim=1)[0].split(lengths), strict=True))
            yield [tokens[index] for index in range(len(windows))]

    def _generate(
        self, layers: Iterable[Sequence[torch.Tensor]], ends: Sequence[torch.Tensor]
    ) -> tuple[Factors, torch.Tensor]:
        """Factors of U rows, (U, 2r, d), from their (T, D) tokens in every layer, and the terms for them.

        ends: `Part.ends` of each row, (T,)
        """
        # Pad rows of similar length together
        groups = group_by_length([len(row) for row in ends])
        stacks = self._stacks(layers, groups)

        # Generate the factors of each group
        generated, loss = [], torch.zeros((), device=self.vlm.device)
        for group, hidden in zip(groups, stacks, strict=True):
            ones = [torch.ones(len(ends[index]), dtype=torch.bool, device=self.vlm.device) for index in group]
            mask = pad_sequence(ones, batch_first=True)
            generated.append(self.hypernetwork.generate(hidden, mask, recompute=self.recompute))
            own = pad_sequence([ends[index] for index in group], batch_first=True, padding_value=NO_END)
            own = own.to(self.vlm.device)
            if self.guidance is not None:
                loss = loss + self.steer_weight * self.guidance.loss(own)
            if torch.is_grad_enabled():
                loss = loss + self.auxiliary.rows_loss(group, own)

        # Restore the order of the rows
        order = torch.tensor([index for group in groups for index in group], device=self.vlm.device).argsort()
        factors = [
            (torch.cat([a for a, _ in layer])[order], torch.cat([b for _, b in layer])[order])
            for layer in zip(*generated, strict=True)
        ]
        return factors, loss

    def _stacks(self, layers: Iterable[Sequence[torch.Tensor]], groups: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The tokens of the rows of each group in all layers, (U, L, T, D), padded with zeros. Each layer is copied
        before the next one is computed, so that every hidden state is in memory once."""
        stacks: list[torch.Tensor] = []
        for number, rows in enumerate(layers):
            padded = [pad_sequence([rows[index] for index in group], batch_first=True) for group in groups]
            if not stacks:
                stacks = [each.new_empty(len(each), self.vlm.num_layers, *each.shape[1:]) for each in padded]
            for stack, each in zip(stacks, padded, strict=True):
                stack[:, number] = each
        return stacks

    def encode_images(self, samples: Sequence[TrainingSample]) -> list[torch.Tensor]:
        """Image embeddings, (N, tokens, D), of each part of each sample, cached up to `CACHE_BYTES`."""
        parts: list[torch.Tensor] = []
        for sample in samples:
            embeddings = self.image_cache.get(sample.shows)
            if embeddings is None:  # one sample at a time, so that a resumed run computes the same bits
                images = [part.images for part in sample.parts if part.images is not None]
                embeddings = self.vlm.encode_images(torch.cat(images))
                if self.cached_bytes + embeddings.nbytes <= CACHE_BYTES:
                    self.image_cache[sample.shows] = embeddings
                    self.cached_bytes += embeddings.nbytes
            parts += embeddings.split([part.count for part in sample.parts])
        return parts

    # Answers ---------------------------------------------------------------------------------------------------

    def _answer(
        self,
        sequences: Sequence[PackedSequence],
        images: torch.Tensor | None,
        factors: Factors | None,
        with_logits: bool = True,
    ) -> AnswerPass:
        # Forward pass over the openings and the packed questions
        rows = PackedRows.stack(sequences, self.vlm.device)
        opening = self.vlm.embed(rows.opening.flatten(), images).view(*rows.opening.shape, -1)
        embedded = self.vlm.language_model.embed(rows.ids)
        output = packed_forward(
            self.vlm.language_model, opening, rows.there, embedded, rows.positions, rows.question, factors
        )

        # Question after question; logits predict the next token
        labels, question, last = (rows.in_order(each) for each in (rows.labels, rows.question, output.rows))
        counted = labels[1:] != IGNORED
        return AnswerPass(
            self.vlm.language_model.logits(last[:-1][counted]).float() if with_logits else None,
            labels[1:][counted],
            question[1:][counted],
            [*map(rows.in_order, output.asked[1:]), last] if self.hidden_weight else [],
            question,
            [rows.in_order(activations) for activations in output.activations],
        )

    def _distillation(
        self, samples: Sequence[TrainingSample], images: Sequence[torch.Tensor], student: AnswerPass
    ) -> torch.Tensor:
        """The weighted distance between the student and the same model with the video in context, summed over the
        samples as `loss` is: KL(teacher || student) for every token that the loss counts, and for every token of
        questions and answers the squared difference of its hidden states after each layer, normalised to unit root
        mean square. Samples that exceed the teacher's context are left out.
        """
        total = student.targets.new_zeros((), dtype=torch.float32)
        fits = [sample.in_context is not None for sample in samples]
        if not any(fits):
            return total

        # The teacher's pass, over the samples that fit
        chosen = [sample for sample in samples if sample.in_context is not None]
        contexts = [sample.in_context for sample in chosen if sample.in_context is not None]
        by_sample = split_list(images, [len(sample.parts) for sample in samples])
        shown = torch.cat([each for parts, fit in zip(by_sample, fits, strict=True) if fit for each in parts])
        with torch.no_grad():
            teacher = self._answer(contexts, shown, None, with_logits=self.kl_weight > 0)
        compared = torch.tensor(fits, device=self.vlm.device)[_clip_of_question(samples, self.vlm.device)]  # (Q,)

        if self.kl_weight:
            assert student.logits is not None and teacher.logits is not None  # `with_logits`
            log_probs = student.logits[compared[student.question]].log_softmax(-1)
            divergence = F.kl_div(log_probs, teacher.logits.log_softmax(-1), log_target=True, reduction="none").sum(-1)
            total = total + self.kl_weight * _sum_by_clip(divergence, teacher.question, chosen)
        if self.hidden_weight:
            # Align the tokens of both passes
            kept = compared[student.token_question]
            number = compared.cumsum(0) - 1  # a question's number in the teacher's pass
            own, theirs = _aligned(number[student.token_question[kept]], teacher.token_question)
            tokens = kept.nonzero().flatten()[own]
            pairs = [
                (_unit_rms(mine[tokens]), _unit_rms(other[theirs]))
                for mine, other in zip(student.hidden, teacher.hidden, strict=True)
            ]
            distance = torch.stack([(mine - other).square().mean(-1) for mine, other in pairs]).mean(0)
            total = total + self.hidden_weight * _sum_by_clip(distance, teacher.token_question[theirs], chosen)
            total = total + self.auxiliary.teacher_loss(samples, tokens, pairs)
        return total


def _unit_rms(hidden: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(hidden, hidden.shape[-1:])


def _aligned(own: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of the tokens that correspond in two passes, given the question number of each token, (N,) and (M,).

    Tokens are counted from a question's end: its first word may be tokenized differently after a video.
    """
    lengths = [torch.bincount(question) for question in (own, other)]
    shared = torch.minimum(*lengths)

    def kept(question: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        from_end = length.cumsum(0)[question] - torch.arange(len(question), device=question.device)
        return from_end <= shared[question]

    return kept(own, lengths[0]), kept(other, lengths[1])


def _clip_of_question(samples: Sequence[TrainingSample], device: torch.device) -> torch.Tensor:
    """The index of the sample of each question, (Q,)."""
    counts = torch.tensor([int(sample.sequence.group.max()) for sample in samples])
    return torch.arange(len(samples)).repeat_interleave(counts).to(device)


def _sum_by_clip(losses: torch.Tensor, question: torch.Tensor, samples: Sequence[TrainingSample]) -> torch.Tensor:
    """Reduce (N,) token losses: mean per question, mean over the questions of a sample, sum over samples."""
    return mean_by_question(mean_by_question(losses, question), _clip_of_question(samples, losses.device)).sum()


def by_row(samples: Sequence[TrainingSample], parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Concatenate the per-part tensors into one per row that the hypernetwork reads: one part of a composed sample, or
    all parts of another."""
    return [torch.cat(list(row)) for row in split_list(parts, [size for each in samples for size in _row_sizes(each)])]


def _row_sizes(sample: TrainingSample) -> list[int]:
    """The number of parts from which each of the sample's adapters is generated."""
    return [1] * len(sample.parts) if sample.composed else [len(sample.parts)]


def _composed(factors: torch.Tensor, adapters: Sequence[int]) -> torch.Tensor:
    """Compose the (U, 2r, d) factors of U adapters into one adapter per clip: (C, R, d), R the largest rank."""
    rank = factors.shape[1] // 2
    clips = [torch.cat([group[:, :rank].flatten(0, 1), group[0, rank:]]) for group in factors.split(list(adapters))]
    return pad_sequence(clips, batch_first=True)


class AttentionGuidance:
    """Records the inputs of the attentions of a hypernetwork's two resamplers, so that `loss` can compute where they
    attended.

    layers: L, of the frozen model; the resamplers read (U * L, T, W), all layers of a row next to each other
    """

    def __init__(self, hypernetwork: Hypernetwork, layers: int):
        self.layers = layers
        self.encoder_calls: list[tuple] = []
        self.decoder_calls: list[tuple] = []
        for name, calls in (("encoder", self.encoder_calls), ("decoder", self.decoder_calls)):
            for block in resampler(hypernetwork, name).layers:
                cast(nn.Module, block.self_attn).register_forward_pre_hook(
                    lambda module, inputs, calls=calls: calls.append((module, inputs))
                )

    def loss(self, ends: torch.Tensor) -> torch.Tensor:
        """Negative log attention weight on the wanted tokens, in the one pass since the last call: summed over U rows,
        averaged over blocks, layers, heads and latents.

        Latent n of N shall attend to the ends of frames at the seconds n, n + N, n + 2N, ...; without such a frame it
        is free. Rank n shall attend to the latent n modulo the number of latents. The first decoder layer's inputs, in
        which no token has attended to another, are left out.

        ends: (U, T), `Part.ends` of each row
        """
        losses = []
        for calls, of_encoder in ((self.encoder_calls, True), (self.decoder_calls, False)):
            for attention, inputs in calls:
                weights = self._weights(attention, inputs)  # (U, L-1, H, N, T)
                count, length = weights.shape[-2:]
                number = torch.arange(count, device=ends.device)[:, None]
                if of_encoder:
                    wanted = (ends[:, None] != NO_END) & (ends[:, None] % count == number)  # (U, N, T)
                else:
                    wanted = (number % length == torch.arange(length, device=ends.device)).expand(len(ends), -1, -1)
                on_wanted = (weights * wanted[:, None, None]).sum(-1)
                guided = wanted.any(-1)  # (U, N)
                per_latent = -(on_wanted + EPSILON).log().mean((1, 2))
                losses.append((per_latent * guided).sum(-1) / guided.sum(-1))
            calls.clear()
        return torch.stack(losses).mean(0).sum()

    def _weights(self, attention: ResamplerAttention, inputs: tuple) -> torch.Tensor:
        """Each latent's attention to the context in every layer but the first, (U, L-1, H, N, T)."""
        latents, context, gain, mask = inputs
        weights = attention.weights(latents.float(), context.float(), gain, mask)[..., : context.shape[1]]
        return weights.view(-1, self.layers, attention.heads, latents.shape[1], context.shape[1])[:, 1:]


def resampler(hypernetwork: Hypernetwork, name: str) -> Resampler:
    """The "encoder" (tokens to latents) or the "decoder" (latents to ranks) of a hypernetwork."""
    return cast(Resampler, hypernetwork.aggregator["perceiver"].get_submodule(name))
