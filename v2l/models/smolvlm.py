"""The frozen SmolVLM2: look at images, read a video layer by layer, answer.

Everything that touches the model's modules is here. The model is never trained, never changed (adapters are attached
from outside, see lora.py), and reads videos only with no adapter attached.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from v2l.errors import V2LError
from v2l.io.text import printable
from v2l.models.presets import ModelFolder
from v2l.models.processor import END_OF_TURN, PIXEL_MEAN, PIXEL_STD

TOKENS_AT_ONCE = 2048
"""How many tokens of several windows go through a decoder layer together, a whole window at least."""
IMAGES_AT_ONCE = 8
"""How many images go through the vision tower together."""


@dataclass(frozen=True)
class Window:
    """One complete prompt about consecutive frames of a video.

    frames: how many it shows
    input_ids: (T,); images: (N, tokens, D), what stands in the image tokens' places
    """

    frames: int
    input_ids: torch.Tensor
    images: torch.Tensor


class FrozenVLM:
    """A SmolVLM2 on a device, for reading only.

    id, revision, fingerprint: of the model folder (see models.py)
    geometry: image size and tokens per image
    text_model, lm_head: the language model; vision: (vision tower, connector), or None where it was not loaded
    tokenizer: a `tokenizers.Tokenizer`, or None where the folder has none
    """

    def __init__(self, folder: ModelFolder, modules: dict[str, Any], tokenizer: Any | None, device: torch.device):
        self.folder, self.id, self.revision = folder, folder.id, folder.revision
        self.fingerprint = folder.fingerprint()
        self.geometry = folder.geometry
        self.image_token_id = folder.config.image_token_id
        self.max_positions = folder.config.text_config.max_position_embeddings
        self.text_model, self.lm_head, self.vision = modules["text"], modules["head"], modules["vision"]
        self.device, self.dtype = device, self.text_model.embed_tokens.weight.dtype
        self.tokenizer = tokenizer
        self.end_of_answer_ids = folder.end_of_answer_ids
        if self.tokenizer is not None:
            self.end_of_answer_ids = self.end_of_answer_ids | {self.tokenizer.token_to_id(END_OF_TURN)}
        self._in_use = threading.Lock()

    @contextmanager
    def exclusively(self, purpose: str) -> Iterator[None]:
        """Held while an adapter is attached, a video is read or one is asked in context: each would spoil the others.
        Raises V2LError, without waiting, where the model is in use; `purpose` says for what it was wanted."""
        if not self._in_use.acquire(blocking=False):
            raise V2LError(
                f"the model cannot be used for {purpose} now: an adapter is attached, or a video or an answer is under "
                "way; leave that `with` block, exhaust or close that answer, or load a second model"
            )
        try:
            yield
        finally:
            self._in_use.release()

    # Sizes -----------------------------------------------------------------------------------------------------

    @property
    def num_layers(self) -> int:
        return len(self.text_model.layers)

    @property
    def down_projections(self) -> list[torch.nn.Linear]:
        """The `mlp.down_proj` of every decoder layer, in order: what adapters change."""
        return [layer.mlp.down_proj for layer in self.text_model.layers]

    # Text ------------------------------------------------------------------------------------------------------

    def tokenize(self, text: str) -> torch.Tensor:
        """Token ids, (T,) int64, of a prompt that prompt.py built; nothing is added to it."""
        if self.tokenizer is None:
            raise V2LError(f"the model {printable(self.id)} has no tokenizer.json; put the model's own beside it")
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False).ids, device=self.device)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of generated ids, control tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def check_user_text(self, text: str) -> str:
        """The text, stripped, if it may stand in a prompt. Raises V2LError where it is empty, exceeds the model's
        positions whatever its tokens are, or holds one of the tokenizer's control tokens, which would otherwise act as
        one (an `<image>` in a question, say)."""
        text = text.strip()
        if self.tokenizer and len(text) > self.max_positions:
            most = self.max_positions * max(map(len, self.tokenizer.get_vocab()))
            if len(text) > most:
                raise V2LError(
                    f"a question or prompt of {len(text):,} characters cannot fit the model's {self.max_positions:,} "
                    f"positions, which hold {most:,} at the very most; shorten it"
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
        """Raises V2LError where a prompt of so many tokens and its answer exceed the model's positions."""
        if tokens + max_new_tokens > self.max_positions:
            raise V2LError(
                f"a prompt of {tokens:,} tokens and {max_new_tokens:,} new ones exceed the model's "
                f"{self.max_positions:,} positions; shorten the question or the answer, or show fewer or smaller frames"
            )

    # Seeing and reading ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images to what the language model gets in the place of their `<image>` tokens.

        images: (N, 3, S, S) uint8, or float as the vision tower takes them (-1 to 1). Returns (N, tokens, D).
        """
        if self.vision is None:
            raise V2LError("this model was loaded without its vision tower; load it with vision=True to read videos")
        vision_tower, connector = self.vision
        seen = []
        for batch in images.split(IMAGES_AT_ONCE):
            batch = batch.to(self.device)
            if batch.dtype == torch.uint8:
                batch = (batch.float() / 255 - PIXEL_MEAN) / PIXEL_STD
            seen.append(connector(vision_tower(pixel_values=batch.to(self.dtype)).last_hidden_state))
        return torch.cat(seen)

    @torch.no_grad()
    def embed(self, input_ids: torch.Tensor, image_embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """Input embeddings, (T,) -> (T, D), with image_embeddings, (N, tokens, D), in the image tokens' places.
        Raises V2LError where the prompt has another number of places."""
        embeddings = self.text_model.embed_tokens(input_ids)
        places = input_ids == self.image_token_id
        given = 0 if image_embeddings is None else image_embeddings.shape[0] * image_embeddings.shape[1]
        if int(places.sum()) != given:
            raise V2LError(f"the prompt has {int(places.sum())} image tokens and {given} image embeddings were given")
        if given:
            embeddings = embeddings.masked_scatter(places[:, None], image_embeddings.to(embeddings.dtype))
        return embeddings

    def read_layers(self, windows: Sequence[Window]) -> Iterator[Iterator[torch.Tensor]]:
        """The inputs of every decoder layer for the windows of one video, layer by layer (paper section 3: the
        hidden states h_0 .. h_{L-1}; the output of the last layer is not read).

        windows: each a prompt of its own, with positions from zero

        Yields L iterators; each yields pieces (1, tokens, D) in the order of the windows, without padding, and runs
        that layer as it goes: exhaust one before taking the next. One hidden state per token is held, never a stack.
        """
        with self.exclusively("reading a video"):
            batches = self._window_batches(windows)
            for index in range(self.num_layers):
                yield self._read_layer(index, batches)

    @torch.no_grad()
    def _window_batches(self, windows: Sequence[Window]) -> list[_WindowBatch]:
        # groups of one size that depends on nothing but this video's own windows
        together = max(1, TOKENS_AT_ONCE // max(len(window.input_ids) for window in windows))
        groups = [windows[start : start + together] for start in range(0, len(windows), together)]
        return [_WindowBatch([self.embed(window.input_ids, window.images) for window in group]) for group in groups]

    @torch.no_grad()
    def _read_layer(self, index: int, batches: list[_WindowBatch]) -> Iterator[torch.Tensor]:
        last = index == self.num_layers - 1
        for batch in batches:
            yield batch.tokens()
            if not last:  # nobody reads what comes out of the last layer
                positions = torch.arange(batch.hidden.shape[1], device=self.device)[None]
                batch.hidden = self.text_model.layers[index](
                    batch.hidden,
                    attention_mask=batch.attention_mask(),
                    position_ids=positions,
                    position_embeddings=self.text_model.rotary_emb(batch.hidden, positions),
                )

    # Answering -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Next-token logits of text, (B, T) -> (B, T, vocabulary), or (T,) -> (T, vocabulary), with whatever adapter
        is attached. attention_mask: (B, T), non-zero where a token counts; pad on the right."""
        if input_ids.ndim == 1:
            return self.logits(input_ids[None])[0]
        hidden = self.text_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return self.lm_head(hidden.last_hidden_state)

    def new_cache(self) -> Any:
        """An empty KV cache, transformers' own."""
        from transformers.cache_utils import DynamicCache

        return DynamicCache(config=self.text_model.config)

    @torch.no_grad()
    def prefill(self, prompt: torch.Tensor) -> Any:
        """The KV cache of a prompt's beginning, (T, D), for questions that go on from it."""
        cache = self.new_cache()
        self.text_model(inputs_embeds=prompt[None], past_key_values=cache, use_cache=True)
        return cache

    @torch.no_grad()
    def greedy(
        self, prompts: Sequence[torch.Tensor], max_new_tokens: int, cache: Any | None = None, for_speed: bool = False
    ) -> Iterator[list[int]]:
        """The most likely continuation, token by token, of several prompts at once, with a KV cache.

        prompts: input embeddings, (T_b, D) each; the answer of one does not depend on the others
        cache: keys and values of what stands before the one prompt, which are added to (see `new_cache`)
        for_speed: stop neither at the end of an answer nor at the model's last position: only the time is of interest

        Yields the B ids of each step as they are chosen; ends when every row has ended or after `max_new_tokens`.
        What a row says after its own end means nothing. Raises V2LError past the model's positions, and if hidden
        states overflow, as under an adapter with huge factors.
        """
        cache = self.new_cache() if cache is None else cache
        before = cache.get_seq_length()
        lengths = torch.tensor([before + len(prompt) for prompt in prompts], device=self.device)
        if max_new_tokens < 1:
            raise V2LError(f"an answer of {max_new_tokens} tokens was asked for; give at least 1")
        if not for_speed:
            self.check_length(int(lengths.max()), max_new_tokens)
        inputs = pad_sequence(list(prompts), batch_first=True)  # (B, T, D), padded on the right
        steps = torch.arange(before, before + inputs.shape[1], device=self.device)
        mask = (steps[None] < lengths[:, None]).long()
        positions, chosen = steps[None], lengths - before - 1
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        stops = torch.tensor(sorted(self.end_of_answer_ids), device=self.device)
        rows = torch.arange(len(prompts), device=self.device)
        for _ in range(max_new_tokens):
            hidden = self.text_model(
                inputs_embeds=inputs,
                attention_mask=None if len(prompts) == 1 else mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[rows, chosen]
            tokens = self.lm_head(hidden).argmax(-1)  # (B,)
            if not for_speed:
                self._check_overflow(hidden)
            yield tokens.tolist()
            ended |= torch.isin(tokens, stops)
            if ended.all() and not for_speed:
                return
            inputs, positions, chosen = self.text_model.embed_tokens(tokens)[:, None], lengths[:, None], 0
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            lengths = lengths + 1

    def _check_overflow(self, hidden: torch.Tensor) -> None:
        """Raises V2LError if states, (B, D), overflowed before the last norm, which turns infinite ones into NaN and
        those whose squares are infinite into zeros."""
        if not all(0 < square < math.inf for square in hidden.float().square().sum(-1).tolist()):
            raise V2LError(
                f"the model's numbers exceed {str(self.dtype).removeprefix('torch.')}, so there is no answer; use less "
                "of the adapter with a lower --strength (strength= in Python), or another --dtype"
            )


class _WindowBatch:
    """Windows that go through the decoder layers together, padded on the right to one length.

    hidden: (b, T, D), first their input embeddings, then what each layer makes of them
    """

    def __init__(self, windows: Sequence[torch.Tensor]):
        self.hidden = pad_sequence(list(windows), batch_first=True)  # (b, T, D)
        lengths = torch.tensor([len(window) for window in windows], device=self.hidden.device)
        self.mask = torch.arange(self.hidden.shape[1], device=self.hidden.device)[None] < lengths[:, None]
        self.padded = not bool(self.mask.all())

    def tokens(self) -> torch.Tensor:
        """(1, tokens, D): the windows one after the other, without their padding."""
        return self.hidden[self.mask][None] if self.padded else self.hidden.flatten(0, 1)[None]

    def attention_mask(self) -> torch.Tensor | None:
        """(b, 1, T, T) bool, causal and without the padding; None, plain causal, where there is none."""
        if not self.padded:
            return None
        length = self.mask.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.mask.device).tril()
        return causal & self.mask[:, None, None, :]
