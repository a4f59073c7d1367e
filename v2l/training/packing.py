"""Several questions about one video in one sequence, none of which sees another: what training reads.

The video, or nothing, stands first and once; every question with its answer stands behind it as if it were the only
one, with the positions that it would have alone. Training thus pays for the video once, however much is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from v2l.models.processor import END_OF_TURN

IGNORED = -100
"""The label of a token that the loss does not count."""
PLACE = "\0"
"""Stands in a prompt for the question."""


@dataclass(frozen=True)
class PackedSequence:
    """T tokens: ids, labels and positions, (T,) int64.

    group: (T,) int64, 0 for what comes first and n for the n-th question and its answer
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    group: torch.Tensor


def pack_questions(
    shown: str, questions: Sequence[tuple[str, str]], tokenizer: Tokenizer, end: str = END_OF_TURN
) -> PackedSequence:
    """The sequence of some questions, (prompt, answer) each; the loss counts answers and the `end` behind them.

    shown: the prompt as prompt.py builds it, with PLACE where a question goes
    """
    opening, closing = shown.split(PLACE)
    before = opening.rstrip(" ")
    gap = opening[len(before) :]  # a space belongs to the word behind it
    ids = tokenizer.encode(before, add_special_tokens=False).ids
    start = len(ids)
    labels, positions, group = [IGNORED] * start, list(range(start)), [0] * start
    for number, (prompt, answer) in enumerate(questions, 1):
        heard = tokenizer.encode(gap + prompt + closing, add_special_tokens=False).ids
        said = tokenizer.encode(f" {answer}{end}", add_special_tokens=False).ids
        ids += heard + said
        labels += [IGNORED] * len(heard) + said
        positions += range(start, start + len(heard) + len(said))
        group += [number] * (len(heard) + len(said))
    return PackedSequence(*(torch.tensor(values) for values in (ids, labels, positions, group)))


UNASKED = -1
"""The question number of a place in a row where none stands."""


@dataclass(frozen=True)
class PackedRows:
    """C sequences for `side_by_side.py`: what comes first, and the questions in R rows of W tokens, several in a row where
    they fit.

    opening: (C, V) int64, padded on the right; there: (C, V) bool, where it is no padding
    ids, labels, positions: (C, R, W) int64
    question: (C, R, W) int64, numbered over all sequences, or UNASKED
    """

    opening: torch.Tensor
    there: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    question: torch.Tensor

    @classmethod
    def stack(cls, sequences: Sequence[PackedSequence], device: torch.device) -> PackedRows:
        """Several sequences as one batch; the questions of each in their order, as wide as the longest of all."""
        lengths = [torch.bincount(sequence.group)[1:].tolist() for sequence in sequences]
        width = max(max(each) for each in lengths)
        placed = [place_in_rows(each, width) for each in lengths]
        shape = len(sequences), max(rows for _, rows in placed), width
        columns = {
            "ids": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, IGNORED),
            "positions": torch.zeros(shape, dtype=torch.int64),
        }
        question, before = torch.full(shape, UNASKED), 0
        for clip, (sequence, (places, _)) in enumerate(zip(sequences, placed, strict=True)):
            for number, (row, span) in enumerate(places):
                own = sequence.group == number + 1
                question[clip, row, span] = before + number
                for name, column in columns.items():
                    column[clip, row, span] = getattr(sequence, name)[own]
            before += len(places)
        opening = [sequence.ids[sequence.group == 0] for sequence in sequences]
        there = pad_sequence([torch.ones_like(ids, dtype=torch.bool) for ids in opening], batch_first=True)
        found = pad_sequence(opening, batch_first=True), there, *columns.values(), question
        return cls(*(each.to(device) for each in found))

    def in_order(self, values: torch.Tensor) -> torch.Tensor:
        """Of (C, R, W, ...) values what belongs to questions and answers, (N, ...), question after question."""
        there = self.question != UNASKED
        return values[there][self.question[there].argsort(stable=True)]


def place_in_rows(lengths: Sequence[int], width: int) -> tuple[list[tuple[int, slice]], int]:
    """Where in rows of that width to put questions of those lengths, each in the first row that has room: of each its
    row and its span; and how many rows that takes."""
    used: list[int] = []
    places = []
    for length in lengths:
        row = next((row for row, taken in enumerate(used) if taken + length <= width), None)
        if row is None:
            row = len(used)
            used.append(0)
        places.append((row, slice(used[row], used[row] + length)))
        used[row] += length
    return places, len(used)


def mean_by_question(losses: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
    """(N,) losses of tokens to (Q,) means over each question's."""
    count = torch.bincount(question)
    return torch.zeros(len(count), device=losses.device).index_add(0, question, losses) / count


BLIND = -1e9
"""Added to the score of a token that must not be seen."""


@dataclass(frozen=True)
class PackedOutput:
    """What came of one pass, float32.

    clip, asked: the inputs of every decoder layer, (C, V, D) of the clips and (C, R, W, D) of the rows
    rows: the last hidden state, normalised, (C, R, W, D)
    attention: of the first head of every key/value head, of each layer that was asked for, (C, K, R, W, V + W) from a
        row's tokens to its clip's and then to its own
    fired: of the adapter, if there is one, what A makes of each layer's rows, (C, R, W, r)
    """

    clip: list[torch.Tensor]
    asked: list[torch.Tensor]
    rows: torch.Tensor
    attention: list[torch.Tensor]
    fired: list[torch.Tensor]


def read_side_by_side(
    model: nn.Module,
    clip: torch.Tensor,
    there: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    question: torch.Tensor,
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
    pointing: tuple[int, ...] = (),
) -> PackedOutput:
    """model: transformers' LlamaModel, without dropout or biases
    clip: (C, V, D) embeddings of the clips, padded on the right; there: (C, V) bool, which of them are no padding
    rows: (C, R, W, D) embeddings of the questions; positions: (C, R, W) int64, each token's own, behind its clip's
    question: (C, R, W) int64, another number for each question
    factors: of the adapter that each clip's tokens and rows wear, per layer a (C, r, d_in) and b (C, r, d_out)
    pointing: layers whose attention is wanted
    """
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    count, tokens, hidden = clip.shape
    across, along = rows.shape[1:3]
    clips, shared = count * tokens, heads // kv_heads
    steps = torch.arange(tokens, device=clip.device).expand(count, tokens)
    turn = _turns(torch.cat([steps.flatten(), positions.flatten()]), width, config.rope_parameters["rope_theta"])
    causal = torch.ones(max(tokens, along), max(tokens, along), dtype=torch.bool, device=clip.device).tril()
    in_clip = _score(causal[:tokens, :tokens] & there[:, None])[:, None, None]  # (C, 1, 1, V, V)
    own = causal[:along, :along] & (question[..., None] == question[:, :, None])
    in_rows = _score(torch.cat([there[:, None, None].expand(-1, across, along, -1), own], dim=-1))[:, None, :, None]

    x = torch.cat([clip.reshape(-1, hidden), rows.reshape(-1, hidden)]).float()
    inputs, asked, attention, fired = [], [], [], []
    for number, layer in enumerate(model.layers):
        inputs.append(x[:clips].view(count, tokens, hidden))
        asked.append(x[clips:].view(count, across, along, hidden))
        normed = _normed(x, layer.input_layernorm, config)
        three = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight
        parts = (
            F.linear(normed, torch.cat(three))
            .view(len(x), heads + 2 * kv_heads, width)
            .split([heads, kv_heads, kv_heads], dim=1)
        )
        parts = _turned(parts[0], turn), _turned(parts[1], turn), parts[2]
        of_clip, of_rows = zip(*(part.split([clips, len(x) - clips]) for part in parts), strict=True)

        q = of_clip[0].view(count, tokens, kv_heads, shared, width).permute(0, 2, 3, 1, 4)  # (C, K, H/K, V, E)
        k, v = (part.view(count, tokens, kv_heads, width).transpose(1, 2) for part in of_clip[1:])
        scores = (q.flatten(2, 3) @ k.transpose(-1, -2)).view(*q.shape[:4], tokens) * width**-0.5 + in_clip
        read = scores.float().softmax(-1).to(v.dtype).flatten(2, 3) @ v
        read_clip = read.view(q.shape).permute(0, 3, 1, 2, 4).reshape(clips, heads * width)

        q = (
            of_rows[0].view(count, across, along, kv_heads, shared, width).permute(0, 3, 1, 4, 2, 5)
        )  # (C, K, R, H/K, W, E)
        own_k, own_v = (part.view(count, across, along, kv_heads, width).permute(0, 3, 1, 2, 4) for part in of_rows[1:])
        to_clip = (q.flatten(2, 4) @ k.transpose(-1, -2)).view(*q.shape[:5], tokens)
        to_own = (q.flatten(3, 4) @ own_k.transpose(-1, -2)).view(*q.shape[:5], along)
        weights = (torch.cat([to_clip, to_own], dim=-1) * width**-0.5 + in_rows).float().softmax(-1)
        if number in pointing:
            attention.append(weights[:, :, :, 0])
        to_clip, to_own = weights.to(v.dtype).split([tokens, along], dim=-1)
        read = (to_clip.flatten(2, 4) @ v).view(q.shape) + (to_own.flatten(3, 4) @ own_v).view(q.shape)
        read_rows = read.permute(0, 2, 4, 1, 3, 5).reshape(len(x) - clips, heads * width)

        x = x + F.linear(torch.cat([read_clip, read_rows]), layer.self_attn.o_proj.weight)
        normed = _normed(x, layer.post_attention_layernorm, config)
        gate, up = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
        inner = F.silu(F.linear(normed, gate)) * F.linear(normed, up)
        x = x + F.linear(inner, layer.mlp.down_proj.weight)
        if factors is not None:
            a, b = (factor.to(inner.dtype) for factor in factors[number])
            of_clip, of_rows = (
                part.view(count, len(part) // count, part.shape[-1]) @ a.transpose(-1, -2)
                for part in inner.split([clips, len(x) - clips])
            )
            fired.append(of_rows.view(count, across, along, -1))
            x = x + torch.cat([(ranks @ b).flatten(0, 1) for ranks in (of_clip, of_rows)])
    last = _normed(x[clips:], model.norm, config)
    return PackedOutput(inputs, asked, last.view(count, across, along, hidden), attention, fired)


def _normed(x: torch.Tensor, norm: nn.Module, config: object) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight.float(), config.rms_norm_eps).to(norm.weight.dtype)


def _score(seen: torch.Tensor) -> torch.Tensor:
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, BLIND)


def _turns(positions: torch.Tensor, width: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the rotary embedding, (N, 1, E) each."""
    rates = base ** -(torch.arange(0, width, 2, device=positions.device).float() / width)
    angles = (positions[:, None].float() * rates).repeat(1, 2)[:, None]
    return angles.cos(), angles.sin()


def _turned(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * turn[0] + torch.cat([-second, first], dim=-1) * turn[1]).to(x.dtype)
