"""Greedy decoding of one sequence over buffers of fixed size, so that CUDA graphs can replay it.

A token of a small model is hundreds of kernels that take less time to run than to launch. A CUDA graph launches them
with one call, but replays the same kernels on the same memory. Prompts are therefore padded to a bucket, the KV cache
has a fixed number of columns, positions are tensors, and adapters are copied into buffers of a bucketed rank. The
results equal those of `KVCache` up to the order of sums; the tests compare them on the CPU.

Axes: as in `language_model.py`; P bucketed prompt length, C columns of the cache.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from v2l.errors import V2LWarning, reason
from v2l.io.text import printable
from v2l.models.language_model import Attend, Factors, KVCache, LanguageModel

LEAST_COLUMNS, MOST_COLUMNS = 256, 8192
"""Bounds of the bucketed number of columns of a cache. A longer sequence is decoded without graphs."""
LEAST_PROMPT, MOST_PROMPT = 16, 1024
"""Bounds of the bucketed prompt length. A longer prompt takes the device longer than its launch and is not padded."""
LEAST_RANK = 16
"""The smallest bucketed rank."""
DECODERS_KEPT, BYTES_KEPT = 8, 1 << 30
"""Limits of the decoders kept for later answers; the most recent one is always kept."""

Work = Callable[[], None]
Capture = Callable[[Work], Work]
"""Turn a computation over fixed buffers into one that repeats it, without running it."""


def bucket(size: int, least: int) -> int:
    """Round up to a power of two, at least `least`."""
    return max(least, 1 << (size - 1).bit_length())


def run_eagerly(work: Work) -> Work:
    """Capture nothing."""
    return work


class GraphCapture:
    """Capture CUDA graphs, which share the memory of their intermediate results."""

    def __init__(self, device: torch.device):
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        """Capture one graph. Raises RuntimeError if CUDA cannot."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            torch.cuda.stream(torch.cuda.current_stream()),  # a failed capture does not restore it
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            work()
        return cast(Work, graph.replay)


@dataclass(frozen=True)
class BufferSizes:
    """Sizes of the buffers of one decoder. rank: 0 without an adapter; dtype: of the factors"""

    columns: int
    rank: int
    dtype: torch.dtype


class StaticDecoding:
    """The decoders of a model, made when first needed and kept within DECODERS_KEPT and BYTES_KEPT.

    capture: makes a computation repeatable; `run_eagerly` on devices without graphs. If it fails, the rest of the
        process runs eagerly, after one warning
    """

    def __init__(self, model: LanguageModel, capture: Capture):
        self._model, self._capture = model, capture
        self._weights = [layer.down_proj for layer in model.layers]
        self._idle: OrderedDict[BufferSizes, StaticDecoder] = OrderedDict()

    @classmethod
    def for_device(cls, model: LanguageModel, device: torch.device) -> StaticDecoding | None:
        """Return the decoders of a model on CUDA, None on other devices, which are faster without padding."""
        return cls(model, GraphCapture(device)) if device.type == "cuda" else None

    def sizes(self, prompt: Tensor, max_new_tokens: int, before: KVCache | None = None) -> BufferSizes | None:
        """Return the buckets for an answer to a prompt, (T, D), after the columns of `before`. None if it needs too
        many columns, or if adapters are merged or one per sequence."""
        model, length = self._model, 0 if before is None else before.length
        if any(layer.down_proj is not weight for layer, weight in zip(model.layers, self._weights, strict=True)):
            return None  # graphs would read the weights that they were captured with
        padded = bucket(len(prompt), LEAST_PROMPT) if len(prompt) <= MOST_PROMPT else 0
        columns = bucket(length + max(len(prompt) + max_new_tokens, padded), LEAST_COLUMNS)
        if columns > MOST_COLUMNS:
            return None
        if model.adapter is None:
            return BufferSizes(columns, 0, model.norm.dtype)
        first, _ = model.adapter[0]
        return BufferSizes(columns, bucket(len(first), LEAST_RANK), first.dtype) if first.ndim == 2 else None

    def steps(self, sizes: BufferSizes, prompt: Tensor, before: KVCache | None = None) -> Iterator[Tensor]:
        """Decode greedily without end: yield `LanguageModel.choose` of each token, (2, 1), overwritten by the next.

        sizes: from `sizes`; before: is copied and not changed
        """
        # A decoder in use is not in the pool, so that answers can alternate
        decoder = self._idle.pop(sizes, None) or StaticDecoder(self._model, sizes)
        try:
            decoder.load(prompt, self._model.adapter, before)
            yield decoder.prefill(prompt, self._repeatable)
            while True:
                yield decoder.step(self._repeatable)
        finally:
            self._keep(sizes, decoder)

    def _repeatable(self, work: Work) -> Work:
        try:
            return self._capture(work)
        except RuntimeError as error:
            self._capture = run_eagerly
            warnings.warn(
                f"CUDA graphs cannot be captured ({printable(reason(error))}); answers are right and take longer",
                V2LWarning,
                stacklevel=2,
            )
            return work

    def _keep(self, sizes: BufferSizes, decoder: StaticDecoder) -> None:
        self._idle[sizes] = decoder
        self._idle.move_to_end(sizes)
        while len(self._idle) > 1 and (
            len(self._idle) > DECODERS_KEPT or sum(each.nbytes for each in self._idle.values()) > BYTES_KEPT
        ):
            self._idle.popitem(last=False)


class StaticDecoder:
    """Buffers for one sequence and the computations over them.

    A computation runs once eagerly, which also initialises the libraries it calls, and is captured when repeated: an
    answer of one token costs no capture.
    """

    @torch.inference_mode()
    def __init__(self, model: LanguageModel, sizes: BufferSizes):
        self._model = model
        device, dtype, config = model.norm.device, model.norm.dtype, model.config
        self._cache = KVCache(model, 1, sizes.columns)
        self._inputs = torch.zeros(MOST_PROMPT, config.hidden_size, device=device, dtype=dtype)
        self._rows, self._columns = (torch.arange(n, device=device) for n in (MOST_PROMPT, sizes.columns))
        # The first column of a prompt, the column of the newest token, that token, and its choice
        self._start, self._last, self._token = (torch.zeros(1, device=device, dtype=torch.long) for _ in range(3))
        self._chosen = torch.zeros(2, 1, device=device, dtype=torch.long)
        self._a, self._b = (
            torch.zeros(len(model.layers), sizes.rank, width, device=device, dtype=sizes.dtype)
            for width in (config.intermediate_size, config.hidden_size)
        )
        self._factors = list(zip(self._a, self._b, strict=True)) if sizes.rank else None
        self._repeats: dict[int, Work] = {}  # by padded prompt length; 0 for a step
        self._ran: set[int] = set()

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        buffers = (self._cache.keys, self._cache.values, self._inputs, self._a, self._b)
        return sum(buffer.nbytes for buffer in buffers)

    def load(self, prompt: Tensor, adapter: Factors | None, before: KVCache | None) -> None:
        """Copy an adapter and the start of a sequence into the buffers."""
        start, cache = 0 if before is None else before.length, self._cache
        cache.length = start
        for mine, name in ((cache.keys, "keys"), (cache.values, "values")):
            if before is not None:
                mine[..., :start, :] = getattr(before, name)[..., :start, :]
            mine[..., start:, :] = 0  # values that are not finite would pass through the mask
        self._start.fill_(start)
        self._last.fill_(start + len(prompt) - 1)
        if adapter is not None:
            rank = len(adapter[0][0])
            self._a[:, rank:], self._b[:, rank:] = 0, 0
            torch._foreach_copy_(
                [*self._a[:, :rank], *self._b[:, :rank]],
                [factor for part in zip(*adapter, strict=True) for factor in part],
            )

    def prefill(self, prompt: Tensor, repeatable: Capture) -> Tensor:
        """Run the prompt, (T, D), that was loaded, and choose the first token."""
        tokens = len(prompt)
        if tokens > MOST_PROMPT:
            with self._adapted():
                self._prefill_unpadded(prompt)
            return self._chosen
        padded = bucket(tokens, LEAST_PROMPT)
        self._inputs[:tokens] = prompt
        self._inputs[tokens:padded] = prompt[-1]
        self._run(padded, lambda: self._prefill_padded(padded), repeatable)
        return self._chosen

    def step(self, repeatable: Capture) -> Tensor:
        """Continue with the chosen token."""
        self._run(0, self._step, repeatable)
        return self._chosen

    def _run(self, name: int, work: Work, repeatable: Capture) -> None:
        with self._adapted():
            if name in self._ran and name not in self._repeats:
                self._repeats[name] = repeatable(work)
            self._ran.add(name)
            self._repeats.get(name, work)()

    @contextmanager
    def _adapted(self) -> Iterator[None]:
        """Apply the buffers in place of the attached adapter that was copied into them."""
        model = self._model
        before, model.adapter = model.adapter, self._factors
        try:
            yield
        finally:
            model.adapter = before

    # Computations, of device tensors alone ---------------------------------------------------------------------

    def _prefill_padded(self, padded: int) -> None:
        """Padding repeats the last token at its position, so that the last row equals it whatever the length."""
        rows = self._rows[:padded]
        columns = self._start + rows
        positions = torch.minimum(columns, self._last)
        attend = self._attend(columns, positions)
        self._choose(self._model.run(self._inputs[:padded], positions, attend, keep=rows[-1:]))

    def _prefill_unpadded(self, prompt: Tensor) -> None:
        columns = self._columns[self._cache.length : self._cache.length + len(prompt)]
        keep = torch.full_like(self._last, len(prompt) - 1)
        self._choose(self._model.run(prompt, columns, self._cache.attend(len(prompt)), keep))

    def _step(self) -> None:
        self._last.add_(1)
        attend = self._attend(self._last, self._last)
        self._choose(self._model.run(self._model.embed(self._token), self._last, attend))

    def _choose(self, hidden: Tensor) -> None:
        self._chosen.copy_(self._model.choose(hidden))
        self._token.copy_(self._chosen[0])

    def _attend(self, columns: Tensor, positions: Tensor) -> Attend:
        """Write keys and values to `columns`, (P,), and attend to those up to `positions`, (P,)."""
        tokens, kv_heads = len(columns), self._cache.keys.shape[2]
        groups = self._model.config.num_attention_heads // kv_heads
        mask = torch.zeros(tokens, len(self._columns), device=columns.device, dtype=self._cache.keys.dtype)
        mask = mask.masked_fill(self._columns > positions[:, None], float("-inf")).repeat(groups, 1)  # (H / K * P, C)

        def attend(index: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            known_keys, known_values = self._cache.keys[index], self._cache.values[index]  # (1, K, C, E)
            known_keys[0].index_copy_(1, columns, keys.transpose(0, 1))
            known_values[0].index_copy_(1, columns, values.transpose(0, 1))
            # The query heads of a key/value head are the rows of one matrix
            grouped = queries.unflatten(1, (kv_heads, groups)).permute(1, 2, 0, 3)  # (K, H / K, P, E)
            read = F.scaled_dot_product_attention(grouped.flatten(1, 2)[None], known_keys, known_values, attn_mask=mask)
            return read[0].unflatten(1, (groups, tokens)).permute(2, 0, 1, 3).flatten(1)

        return attend
