"""Tokenizer of the embedded model: byte-level BPE with SmolVLM's special tokens, trained on texts of the drawn world.

A time is always three tokens (minutes, colon, seconds), and the words that announce a frame are one token. A frame thus
costs 12 tokens instead of 20, and a question names a time with the same tokens as the frame's announcement.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from v2l.models.config import VisionGeometry
from v2l.models.hypernetwork_file import INTERNALIZATION_PROMPT
from v2l.models.processor import (
    END_OF_TURN,
    GLOBAL_VIEW,
    IMAGE,
    IMAGE_EDGE,
    START,
    PromptFrame,
    number_in_words,
    question_text,
    video_text,
)
from v2l.models.tokenizer import WORLD_PIECES
from v2l.tiny.world.questions import PHRASINGS, ask_about, caption
from v2l.tiny.world.scene import COLOURS, KINDS, PLACES, WORDS, sample_story

PAD = "<|im_end|>"
MOST_TILES = 6
SPECIAL_TOKENS = (
    "<|endoftext|>",
    START,
    PAD,
    IMAGE_EDGE,
    GLOBAL_VIEW,
    IMAGE,
    END_OF_TURN,
    *(f"<row_{row}_col_{col}>" for row in range(1, MOST_TILES + 1) for col in range(1, MOST_TILES + 1)),
)
VOCABULARY = 896


def train_tokenizer() -> Tokenizer:
    """Train the tokenizer, deterministically: digits in pairs, all bytes, the world's words as single tokens."""
    return byte_level_bpe(WORLD_PIECES, VOCABULARY, _texts())


def byte_level_bpe(pieces: str, vocabulary: int, texts: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer with SmolVLM's special tokens.

    pieces: regular expression that splits texts before merging; vocabulary: maximum number of tokens
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Save the tokenizer and the roles of its special tokens for transformers' AutoTokenizer."""
    from transformers import PreTrainedTokenizerFast

    roles = {"bos_token": START, "eos_token": END_OF_TURN, "pad_token": PAD, "unk_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)


def _texts() -> Iterator[str]:
    """Yield single words, repeated until each becomes one token, then complete prompts and answers."""
    names = [*WORDS, *COLOURS, *KINDS, *{word for row in PLACES for place in row for word in place.split()}]
    counts = [number_in_words(count) for count in (*range(1, 101), 256, 1024)]
    yield from (f" {name} {name}?" for name in names for _ in range(200))
    yield from (f"{number:02d}" for number in range(100) for _ in range(200))
    yield from (f" {word}" for count in counts for word in count.replace("-", " ").split() for _ in range(20))
    yield from (phrasing for phrasings in PHRASINGS.values() for phrasing in phrasings for _ in range(50))
    geometry = VisionGeometry(64, 1, 64)
    for seed in range(300):
        random = np.random.default_rng(seed)
        story = sample_story("train", seed, 8.0)
        asked = [*ask_about(story, range(8), random), caption(story, range(8), random)]
        yield from (question_text(question.prompt) + " " + question.answer for question in asked)
        frames = [PromptFrame(float(second)) for second in range(1 + seed % 8)]
        yield video_text(frames, seed * 7, INTERNALIZATION_PROMPT, geometry)
