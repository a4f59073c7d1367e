"""Several questions about one video in one sequence, none of which attends to another, and the forward pass over it.

The video, or nothing, comes first and once. Every question with its answer follows as if it were the only one, at the
positions that it would have alone, so the video costs the same however many questions are asked about it.

`packed_forward` computes transformers' LlamaModel with the same weights on this layout: the questions about a clip are
laid out in rows of one width, several in a row if they fit, and a token attends to the clip and to the preceding
tokens of its own question. Nothing is computed for two tokens that do not attend to each other, and no key is copied.

Axes: C clips, V tokens of a clip, R rows, W tokens of a row, D hidden size, H query heads, K key/value heads, E head
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence

from v2l.models.language_model import LanguageModel
from v2l.models.processor import END_OF_TURN

IGNORED = -100
"""The label of a token that does not count in the loss."""
PLACE = "\0"
"""The placeholder for the question in a prompt."""
UNASKED = -1
"""The question number of padding in a row."""
MASKED_SCORE = -1e9
"""Added to the attention score of a masked token."""
LENGTH_RATIO = 2.0
"""The longest sequence of a padded batch against the shortest."""


# Sequences ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedSequence:
    """T tokens: ids, labels and positions, (T,) int64.

    group: (T,) int64, 0 for the opening and n for the n-th question and its answer
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    group: torch.Tensor


def pack_questions(
    shown: str, questions: Sequence[tuple[str, str]], tokenizer: Tokenizer, end: str = END_OF_TURN
) -> PackedSequence:
    """Pack (prompt, answer) pairs into one sequence. The loss counts the answers and the `end` after each.

    shown: the prompt as processor.py builds it, with PLACE for the question
    """
    opening, closing = shown.split(PLACE)
    before = opening.rstrip(" ")
    gap = opening[len(before) :]  # a space belongs to the following word
    ids = tokenizer.encode(before, add_special_tokens=False).ids
    start = len(ids)
    labels, positions, group = [IGNORED] * start, list(range(start)), [0] * start
    for number, (prompt, answer) in enumerate(questions, 1):
        question_ids = tokenizer.encode(gap + prompt + closing, add_special_tokens=False).ids
        answer_ids = tokenizer.encode(f" {answer}{end}", add_special_tokens=False).ids
        length = len(question_ids) + len(answer_ids)
        ids += question_ids + answer_ids
        labels += [IGNORED] * len(question_ids) + answer_ids
        positions += range(start, start + length)
        group += [number] * length
    return PackedSequence(*(torch.tensor(values) for values in (ids, labels, positions, group)))


# Batches -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedRows:
    """C sequences as `packed_forward` reads them: the openings, and the questions in R rows of W tokens, several in a
    row if they fit.

    opening: (C, V) int64, padded on the right; there: (C, V) bool, False for padding
    ids, labels, positions: (C, R, W) int64
    question: (C, R, W) int64, numbered over all sequences, UNASKED for padding
    """

    opening: torch.Tensor
    there: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    question: torch.Tensor

    @classmethod
    def stack(cls, sequences: Sequence[PackedSequence], device: torch.device) -> PackedRows:
        """Stack sequences into one batch. Questions keep their order; rows are as wide as the longest question."""
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
        openings = [sequence.ids[sequence.group == 0] for sequence in sequences]
        there = pad_sequence([torch.ones_like(ids, dtype=torch.bool) for ids in openings], batch_first=True)
        fields = pad_sequence(openings, batch_first=True), there, *columns.values(), question
        return cls(*(each.to(device) for each in fields))

    def in_order(self, values: torch.Tensor) -> torch.Tensor:
        """Select the question and answer tokens of (C, R, W, ...) values: (N, ...), question after question."""
        there = self.question != UNASKED
        return values[there][self.question[there].argsort(stable=True)]


def place_in_rows(lengths: Sequence[int], width: int) -> tuple[list[tuple[int, slice]], int]:
    """Assign questions to rows of `width` tokens, each to the first row with room for it.

    Returns the row and the span of each question, and the number of rows.
    """
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
    """Average (N,) token losses per question: (Q,)."""
    count = torch.bincount(question)
    return torch.zeros(len(count), device=losses.device).index_add(0, question, losses) / count


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Group the indices of sequences of similar length (LENGTH_RATIO), so that batches need little padding."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and lengths[index] <= LENGTH_RATIO * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def split_list(items: Sequence, sizes: Sequence[int]) -> list[Sequence]:
    """Split a sequence into consecutive groups of the given sizes."""
    groups, start = [], 0
    for size in sizes:
        groups.append(items[start : start + size])
        start += size
    return groups


# Forward pass ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedOutput:
    """The result of one pass, float32.

    clip, asked: the inputs of every decoder layer, (C, V, D) for the clips and (C, R, W, D) for the rows; `asked` also
        has the output of the last layer
    rows: the last hidden state, normalised, (C, R, W, D)
    attention: in each requested layer, (C, K, H / K, R, W, V + W) from a row's tokens to its clip's and then to its own
    activations: the adapter's rank activations x A^T for each layer's rows, (C, R, W, r); empty without an adapter
    """

    clip: list[torch.Tensor]
    asked: list[torch.Tensor]
    rows: torch.Tensor
    attention: list[torch.Tensor]
    activations: list[torch.Tensor]


def packed_forward(
    model: LanguageModel,
    clip: torch.Tensor,
    there: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    question: torch.Tensor,
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
    attention_layers: tuple[int, ...] = (),
) -> PackedOutput:
    """Run the language model over clips and the packed questions about them.

    clip: (C, V, D) embeddings of the clips, padded on the right; there: (C, V) bool, False for padding
    rows: (C, R, W, D) embeddings of the questions; positions: (C, R, W) int64, counted from the start of the clip
    question: (C, R, W) int64, a different number for each question
    factors: the adapter of each clip, applied to its tokens and rows; per layer a (C, r, d_in) and b (C, r, d_out)
    attention_layers: the layers whose attention is returned
    """
    count, tokens, hidden = clip.shape
    across, along = rows.shape[1:3]
    clips = count * tokens

    # Rotary embedding and attention masks
    steps = torch.arange(tokens, device=clip.device).expand(count, tokens)
    rotary = model.rotary(torch.cat([steps.flatten(), positions.flatten()]))
    attend = PackedAttention(there, question, attention_layers)

    # All tokens in one matrix, those of the clips first: (C * V + C * R * W, D)
    x = torch.cat([clip.reshape(-1, hidden), rows.reshape(-1, hidden)]).float()
    clip_inputs, row_inputs, activations = [], [], []
    for index, layer in enumerate(model.layers):
        clip_inputs.append(x[:clips].view(count, tokens, hidden))
        row_inputs.append(x[clips:].view(count, across, along, hidden))
        x = layer.add_attention(x, layer.attention(x, index, rotary, attend))
        inner = layer.activations(x)
        x = layer.add_mlp(x, inner)

        # Each clip's adapter on down_proj
        if factors is not None:
            a, b = (factor.to(inner.dtype) for factor in factors[index])
            clip_ranks, row_ranks = (
                part.view(count, len(part) // count, part.shape[-1]) @ a.transpose(-1, -2)
                for part in inner.split([clips, len(x) - clips])
            )
            activations.append(row_ranks.view(count, across, along, -1))
            x = x + torch.cat([(ranks @ b).flatten(0, 1) for ranks in (clip_ranks, row_ranks)])
    row_inputs.append(x[clips:].view(count, across, along, hidden))
    last = model.final_norm(x[clips:]).view(count, across, along, hidden)
    return PackedOutput(clip_inputs, row_inputs, last, attend.weights, activations)


class PackedAttention:
    """Attention of the clips, each to itself, and of the rows, each to its clip and within each question to itself.

    there, question: as in `packed_forward`; layers: those whose attention is kept
    weights: those of the requested layers, as `PackedOutput.attention` has them
    """

    def __init__(self, there: torch.Tensor, question: torch.Tensor, layers: tuple[int, ...]):
        self.layers, self.weights = layers, list[torch.Tensor]()
        (self.count, self.tokens), (self.across, self.along) = there.shape, question.shape[1:]
        size = max(self.tokens, self.along)
        causal = torch.ones(size, size, dtype=torch.bool, device=there.device).tril()
        clip_mask = _mask(causal[: self.tokens, : self.tokens] & there[:, None])
        self.clip_mask = clip_mask[:, None, None]  # (C, 1, 1, V, V)
        own = causal[: self.along, : self.along] & (question[..., None] == question[:, :, None])
        to_clip = there[:, None, None].expand(-1, self.across, self.along, -1)
        self.row_mask = _mask(torch.cat([to_clip, own], dim=-1))[:, None, :, None]  # (C, 1, R, 1, W, V + W)

    def __call__(self, index: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        count, tokens, across, along = self.count, self.tokens, self.across, self.along
        (heads, width), kv_heads = queries.shape[1:], keys.shape[1]
        clips, shared = count * tokens, heads // kv_heads
        of_clip, of_rows = zip(
            *(part.split([clips, len(part) - clips]) for part in (queries, keys, values)), strict=True
        )

        # Attention within each clip
        q = of_clip[0].view(count, tokens, kv_heads, shared, width).permute(0, 2, 3, 1, 4)  # (C, K, H/K, V, E)
        k, v = (part.view(count, tokens, kv_heads, width).transpose(1, 2) for part in of_clip[1:])  # (C, K, V, E)
        scores = (q.flatten(2, 3) @ k.transpose(-1, -2)).view(*q.shape[:4], tokens) * width**-0.5 + self.clip_mask
        read = scores.float().softmax(-1).to(v.dtype).flatten(2, 3) @ v
        read_clip = read.view(q.shape).permute(0, 3, 1, 2, 4).reshape(clips, heads * width)

        # Attention of each row to its clip and, within each question, to itself
        q = of_rows[0].view(count, across, along, kv_heads, shared, width)
        q = q.permute(0, 3, 1, 4, 2, 5)  # (C, K, R, H/K, W, E)
        own_k, own_v = (part.view(count, across, along, kv_heads, width).permute(0, 3, 1, 2, 4) for part in of_rows[1:])
        to_clip = (q.flatten(2, 4) @ k.transpose(-1, -2)).view(*q.shape[:5], tokens)
        to_own = (q.flatten(3, 4) @ own_k.transpose(-1, -2)).view(*q.shape[:5], along)
        weights = (torch.cat([to_clip, to_own], dim=-1) * width**-0.5 + self.row_mask).float().softmax(-1)
        if index in self.layers:
            self.weights.append(weights.transpose(2, 3))
        to_clip, to_own = weights.to(v.dtype).split([tokens, along], dim=-1)
        read = (to_clip.flatten(2, 4) @ v).view(q.shape) + (to_own.flatten(3, 4) @ own_v).view(q.shape)
        read_rows = read.permute(0, 2, 4, 1, 3, 5).reshape(-1, heads * width)
        return torch.cat([read_clip, read_rows])


def _mask(visible: torch.Tensor) -> torch.Tensor:
    return torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, MASKED_SCORE)
