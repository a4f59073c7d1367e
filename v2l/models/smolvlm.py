"""The frozen SmolVLM2: encode images, compute the hidden states of a video layer by layer, generate answers.

The model is never trained. Adapters are attached to it from outside, see adapters/lora.py, and a video is read only
while none is attached.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from v2l.errors import V2LError
from v2l.io.text import printable
from v2l.models.language_model import KVCache, LanguageModel, causal, causal_mask
from v2l.models.presets import ModelFolder
from v2l.models.processor import END_OF_TURN, normalise
from v2l.models.static_decoding import StaticDecoding
from v2l.models.vision_tower import VisionTower

TOKENS_AT_ONCE = 2048
"""Tokens that pass through a decoder layer together, in whole windows, at least one."""
IMAGES_AT_ONCE = 8
"""Images that pass through the vision tower together."""


@dataclass(frozen=True)
class Window:
    """One complete prompt with consecutive frames of a video.

    frames: their number
    input_ids: (T,); images: (N, tokens, D), the embeddings that replace the image tokens
    """

    frames: int
    input_ids: torch.Tensor
    images: torch.Tensor


class FrozenVLM:
    """A SmolVLM2 on a device, for inference only.

    id, revision, fingerprint: of the model folder (see presets.py)
    geometry: image size and tokens per image
    language_model: the decoder; vision: the vision tower with its connector, or None if it was not loaded
    tokenizer: a `tokenizers.Tokenizer`, or None if the folder has none
    static_decoding: decodes single prompts with CUDA graphs; None on other devices
    """

    def __init__(
        self,
        folder: ModelFolder,
        language_model: LanguageModel,
        vision: VisionTower | None,
        tokenizer: Any | None,
        device: torch.device,
    ):
        self.folder, self.id, self.revision = folder, folder.id, folder.revision
        self.fingerprint = folder.fingerprint
        self.geometry = folder.geometry
        self.image_token_id = folder.config.image_token_id
        self.max_positions = folder.config.text_config.max_position_embeddings
        self.language_model, self.vision = language_model, vision
        self.device, self.dtype = device, language_model.embed_tokens.dtype
        self.tokenizer = tokenizer
        self.static_decoding = StaticDecoding.for_device(language_model, device)
        self.end_of_answer_ids = folder.end_of_answer_ids
        if tokenizer is not None:
            self.end_of_answer_ids = self.end_of_answer_ids | {tokenizer.token_to_id(END_OF_TURN)}
        self._in_use = threading.Lock()

    @contextmanager
    def exclusively(self, purpose: str) -> Iterator[None]:
        """Hold the model while an adapter is attached, a video is read or a question is answered in context, which
        would interfere with each other. Raises V2LError, without waiting, if the model is in use.

        purpose: what the model is needed for, as the error states it
        """
        if not self._in_use.acquire(blocking=False):
            raise V2LError(
                f"the model cannot be used for {purpose} now: an adapter is attached, or a video or an answer is in "
                "progress; leave that `with` block, exhaust or close that answer, or load a second model"
            )
        try:
            yield
        finally:
            self._in_use.release()

    # Sizes -----------------------------------------------------------------------------------------------------

    @property
    def num_layers(self) -> int:
        return len(self.language_model.layers)

    @property
    def adapted_size(self) -> tuple[int, int, int]:
        """Layers, input width and output width of the `down_proj` that adapters change."""
        text = self.language_model.config
        return text.num_hidden_layers, text.intermediate_size, text.hidden_size

    # Text ------------------------------------------------------------------------------------------------------

    def tokenize(self, text: str) -> torch.Tensor:
        """Return the token ids, (T,) int64, of a prompt from processor.py; no special tokens are added."""
        if self.tokenizer is None:
            raise V2LError(f"the model {printable(self.id)} has no tokenizer.json; put the model's own beside it")
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False).ids, device=self.device)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids without control tokens."""
        assert self.tokenizer is not None  # ids come from `tokenize`, which requires one
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def check_user_text(self, text: str) -> str:
        """Return the text, stripped. Raises V2LError if it is empty, is not UTF-8, exceeds the model's positions
        however it is tokenized, or contains a control token of the tokenizer, which would act as one (an `<image>` in a
        question, for example)."""
        text = text.strip()
        if self.tokenizer and len(text) > self.max_positions:
            most = self.max_positions * max(map(len, self.tokenizer.get_vocab()))
            if len(text) > most:
                raise V2LError(
                    f"a question or prompt of {len(text):,} characters cannot fit the model's {self.max_positions:,} "
                    f"positions, which hold {most:,} at most; shorten it"
                )
        for token in self.tokenizer.get_added_tokens_decoder().values() if self.tokenizer else ():
            if token.content in text:
                raise V2LError(f"{printable(text)!r} holds the control token {printable(token.content)}; leave it out")
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise V2LError(f"{printable(text)!r} is not UTF-8 text; type it again")
        if not text:
            raise V2LError("the question or prompt is empty; say what you want to know")
        return text

    def check_length(self, tokens: int, max_new_tokens: int) -> None:
        """Raise V2LError if a prompt of that many tokens and its answer exceed the model's positions."""
        if tokens + max_new_tokens > self.max_positions:
            raise V2LError(
                f"a prompt of {tokens:,} tokens and {max_new_tokens:,} new ones exceed the model's "
                f"{self.max_positions:,} positions; shorten the question or the answer, or show fewer or smaller frames"
            )

    def kv_bytes(self, tokens: int) -> int:
        """Return the size of the KV cache of `tokens` tokens."""
        text = self.folder.config.text_config
        each = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        return tokens * each * self.dtype.itemsize

    # Images and hidden states ----------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images into the embeddings that replace their `<image>` tokens.

        images: (N, 3, S, S) uint8, or float in the vision tower's range of -1 to 1. Returns (N, tokens, D).
        Raises V2LError if the model was loaded without its vision tower.
        """
        if self.vision is None:
            raise V2LError("this model was loaded without its vision tower; load it with vision=True to read videos")
        features = []
        for batch in images.split(IMAGES_AT_ONCE):
            batch = batch.to(self.device)
            if batch.dtype == torch.uint8:
                batch = normalise(batch)
            features.append(self.vision(batch.to(self.dtype)))
        return torch.cat(features)

    @torch.no_grad()
    def embed(self, input_ids: torch.Tensor, image_embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """Return the input embeddings of a prompt, (T,) -> (T, D), with its image tokens replaced.

        image_embeddings: (N, tokens, D), from `encode_images`

        Raises V2LError if the prompt has another number of image tokens.
        """
        embeddings = self.language_model.embed(input_ids)
        places = input_ids == self.image_token_id
        given = 0 if image_embeddings is None else image_embeddings.shape[0] * image_embeddings.shape[1]
        if int(places.sum()) != given:
            raise V2LError(f"the prompt has {int(places.sum())} image tokens and {given} image embeddings were given")
        if image_embeddings is not None:
            embeddings = embeddings.masked_scatter(places[:, None], image_embeddings.to(embeddings.dtype))
        return embeddings

    def read_layers(self, windows: Sequence[Window]) -> Iterator[Iterator[torch.Tensor]]:
        """Compute the inputs of every decoder layer for the windows of one video, layer by layer (paper section 3: the
        hidden states h_0 .. h_{L-1}; the output of the last layer is not used).

        windows: independent prompts, each with positions from zero

        Yields L iterators. Each yields pieces (1, tokens, D) in the order of the windows, without padding, and runs
        its layer lazily: exhaust one before taking the next. Only one hidden state per token is kept in memory.
        Raises V2LError if the model is in use.
        """
        with self.exclusively("reading a video"):
            batches = self._window_batches(windows)
            for index in range(self.num_layers):
                yield self._read_layer(index, batches)

    @torch.no_grad()
    def _window_batches(self, windows: Sequence[Window]) -> list[_WindowBatch]:
        # The group size depends on the windows of this video only, so that its adapter does not depend on other videos
        together = max(1, TOKENS_AT_ONCE // max(len(window.input_ids) for window in windows))
        groups = [windows[start : start + together] for start in range(0, len(windows), together)]
        return [
            _WindowBatch([self.embed(window.input_ids, window.images) for window in group], self.language_model)
            for group in groups
        ]

    @torch.no_grad()
    def _read_layer(self, index: int, batches: list[_WindowBatch]) -> Iterator[torch.Tensor]:
        last = index == self.num_layers - 1
        for batch in batches:
            yield batch.tokens()
            if not last:
                batch.hidden = self.language_model.layer(index, batch.hidden, batch.rotary, batch.attend)

    # Answering -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the next-token logits of text, (B, T) -> (B, T, vocabulary), or (T,) -> (T, vocabulary), under the
        attached adapter, if any.

        attention_mask: (B, T), non-zero for tokens that count; pad on the right
        """
        if input_ids.ndim == 1:
            return self.logits(input_ids[None])[0]
        model, (batch, length) = self.language_model, input_ids.shape
        model.check_batch(batch)
        mask = None if attention_mask is None else causal_mask(attention_mask.bool())
        positions = torch.arange(length, device=self.device).repeat(batch)
        hidden = model.run(model.embed(input_ids.flatten()), positions, causal(batch, mask))
        return model.logits(hidden.view(batch, length, -1))

    @torch.inference_mode()
    def prefill(self, prompt: torch.Tensor) -> KVCache:
        """Return the KV cache of the first part of a prompt, embeddings of shape (T, D)."""
        cache = KVCache(self.language_model, batch=1, capacity=len(prompt))
        self.language_model.run(prompt, torch.arange(len(prompt), device=self.device), cache.attend(len(prompt)))
        return cache

    @torch.inference_mode()
    def greedy(
        self,
        prompts: Sequence[torch.Tensor],
        max_new_tokens: int,
        cache: KVCache | None = None,
        for_speed: bool = False,
    ) -> Iterator[list[int]]:
        """Generate greedily for several prompts at once, token by token, with a KV cache.

        prompts: input embeddings, (T_b, D) each; the answers are independent of each other
        cache: keys and values of the text before a single prompt (see `prefill`); `crop` it before it is used again
        for_speed: do not stop at the end of an answer or at the model's last position; for timing only

        Yields the B ids of each step; ends when every row has ended or after `max_new_tokens`. Ignore the ids of a row
        after its own end. Raises V2LError if the prompt and the answer exceed the model's positions, or if hidden
        states overflow, as they do under an adapter with very large factors.
        """
        longest = (0 if cache is None else cache.length) + max(map(len, prompts))
        if max_new_tokens < 1:
            raise V2LError(f"an answer of {max_new_tokens} tokens was asked for; give at least 1")
        if not for_speed:
            self.check_length(longest, max_new_tokens)
        self.language_model.check_batch(len(prompts))
        ended = [False] * len(prompts)
        with closing(self._choices(prompts, max_new_tokens, cache)) as choices:
            for step, choice in enumerate(choices, start=1):
                ids, valid = choice.tolist()  # the host waits for the device once a token
                if not (all(valid) or for_speed):
                    raise self._overflow()
                yield ids
                ended = [was or id in self.end_of_answer_ids for was, id in zip(ended, ids, strict=True)]
                if (all(ended) and not for_speed) or step == max_new_tokens:
                    return

    def _choices(
        self, prompts: Sequence[torch.Tensor], max_new_tokens: int, cache: KVCache | None
    ) -> Generator[torch.Tensor]:
        """Yield `LanguageModel.choose` of each step, (2, B), of which the first `max_new_tokens` may be taken. See
        `greedy`, which checks the arguments."""
        if self.static_decoding is not None and len(prompts) == 1:
            sizes = self.static_decoding.sizes(prompts[0], max_new_tokens, cache)
            if sizes is not None:
                yield from self.static_decoding.steps(sizes, prompts[0], cache)
        model, before = self.language_model, 0 if cache is None else cache.length
        longest = before + max(map(len, prompts))
        if cache is None:
            cache = KVCache(model, len(prompts), longest + max_new_tokens)
        cache.reserve(longest + max_new_tokens)

        # Prefill: prompts padded on the right to one length, (B * T, D)
        batch, tokens = len(prompts), longest - before
        lengths = torch.tensor([before + len(prompt) for prompt in prompts], device=self.device)
        inputs = prompts[0] if batch == 1 else pad_sequence(list(prompts), batch_first=True).flatten(0, 1)
        columns = torch.arange(before, longest, device=self.device)
        padding = None if len(set(map(len, prompts))) == 1 else columns < lengths[:, None]
        last = torch.tensor([row * tokens + len(prompt) - 1 for row, prompt in enumerate(prompts)], device=self.device)
        positions = columns if batch == 1 else columns.repeat(batch)
        hidden = model.run(inputs, positions, cache.attend(tokens, padding), keep=last)
        while True:
            choice = model.choose(hidden)
            yield choice
            # Continue with the chosen tokens alone
            if padding is not None:
                padding = F.pad(padding, (0, 1), value=True)
            hidden = model.run(model.embed(choice[0]), lengths, cache.attend(1, padding))
            lengths = lengths + 1

    def _overflow(self) -> V2LError:
        return V2LError(
            f"the model's numbers exceed {str(self.dtype).removeprefix('torch.')}, so there is no answer; use less "
            "of the adapter with a lower --strength (strength= in Python), or another --dtype"
        )


class _WindowBatch:
    """Windows that pass through the decoder layers together, padded on the right to one length.

    hidden: (b * T, D), the input embeddings, then the output of each layer in turn
    rotary, attend: their rotary embedding, from position zero, and their attention, each to itself
    """

    def __init__(self, windows: Sequence[torch.Tensor], model: LanguageModel):
        count, length = len(windows), max(map(len, windows))
        self.hidden = pad_sequence(list(windows), batch_first=True).flatten(0, 1)
        columns = torch.arange(length, device=self.hidden.device)
        lengths = torch.tensor([len(window) for window in windows], device=self.hidden.device)
        there = columns < lengths[:, None]
        self.rotary = model.rotary(columns.repeat(count))
        padded = min(map(len, windows)) < length
        self.attend = causal(count, causal_mask(there) if padded else None)
        self._there = there.flatten() if padded else None

    def tokens(self) -> torch.Tensor:
        """Return the hidden states of all windows, concatenated without padding, (1, tokens, D)."""
        return (self.hidden if self._there is None else self.hidden[self._there])[None]
