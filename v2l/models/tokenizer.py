"""Load the tokenizer of a model folder, and compare its chat template with the known ones.

The `tokenizers` library compiles and runs any regular expression in a file, without a time limit, and panics on some
files. So v2l checks the file first and passes on only byte-level BPE, the type of the SmolVLM2 models, with known
regular expressions. The chat template is never rendered.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from v2l.errors import V2LError, V2LWarning
from v2l.io.text import printable
from v2l.io.untrusted import read_json, read_limited, shown
from v2l.models.presets import ModelFolder
from v2l.models.processor import END_OF_TURN, GLOBAL_VIEW, IMAGE, IMAGE_EDGE, START

MAX_BYTES = 16 << 20
"""Largest tokenizer.json; that of the published models has 3.5 MB."""
MAX_TEMPLATE_BYTES = 1 << 20
MAX_ADDED_TOKENS = 2048
"""The published models have 145."""
MAX_TOKEN_LENGTH = 64
"""Most characters of an added token: time and memory of the library's automaton grow with their total length."""

WORLD_PIECES = r"\nFrame from |\n| ?\p{L}+|\d{1,2}| ?[^\s\p{L}\d]+|\s"
"""Pre-tokenization of the embedded model."""
STAND_IN_PIECES = r"\nFrame from |\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s"
"""Pre-tokenization of a random model: whole words and single digits."""
KNOWN_PIECES = (WORLD_PIECES, STAND_IN_PIECES)

KNOWN_TEMPLATES = {
    "830005085ddd94cec605b6e21b885b28ffad6e3f82ee6a212c523533e8f04f01",  # published with SmolVLM2
    "36a47ed97c18667acf1150e4fa25e2e2b0e87d468307dd593874f152373c2c5b",  # the same with videos, by transformers
}
"""sha256 of the chat templates that write a question as v2l does."""

_NOT_IN_USE = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")
"""Settings of a BPE model that change the tokenization and that the SmolVLM2 models do not have."""


def load_tokenizer(folder: ModelFolder) -> Any | None:
    """Read the tokenizer.json of a folder. Warns if the folder's chat template is not a known one.

    Returns a `tokenizers.Tokenizer`, or None if the folder has no such file. Raises V2LError if it is not a SmolVLM2
    tokenizer or does not fit the model.
    """
    path = folder.path / "tokenizer.json"
    if not os.path.lexists(path):
        return None
    tokenizer = _build(_checked(read_json(path, MAX_BYTES), path), path)
    for token in (START, END_OF_TURN, IMAGE, IMAGE_EDGE, GLOBAL_VIEW):
        if len(tokenizer.encode(token, add_special_tokens=False).ids) != 1:
            raise V2LError(f"{printable(path)} does not have {token} as one token; it is not SmolVLM2's tokenizer")
    if tokenizer.token_to_id(IMAGE) != folder.config.image_token_id:
        raise V2LError(f"{printable(path)} and config.json disagree about the id of {IMAGE}; get another copy of both")
    largest, size = max(tokenizer.get_vocab().values()), folder.config.text_config.vocab_size
    if largest >= size:
        raise V2LError(
            f"{printable(path)} has a token with the id {largest:,} and the model {size:,} tokens; get another copy of "
            "both"
        )
    _warn_of_template(folder.path)
    return tokenizer


def _checked(stated: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the parts of a tokenizer.json that v2l uses. Truncation, padding and post-processing are dropped: prompts
    are built completely. Raises V2LError if a part is of another type than in the SmolVLM2 models."""

    def need(holds: bool, problem: str) -> None:
        if not holds:
            raise V2LError(
                f"{printable(path)} has {problem}; v2l reads byte-level BPE as in the SmolVLM2 models, get their "
                "tokenizer.json"
            )

    # Any: `need` checks the types, which a type checker does not follow
    model: Any = stated.get("model")
    added: Any = stated.get("added_tokens")
    decoder = stated.get("decoder")
    need(stated.get("normalizer") is None, "a normalizer")
    need(isinstance(model, dict) and model.get("type") == "BPE", "a model that is not BPE")
    vocabulary: Any = model.get("vocab")
    need(isinstance(vocabulary, dict) and isinstance(model.get("merges"), list), "no vocabulary or no merges")
    need(
        model.get("unk_token") is None or model["unk_token"] in list(vocabulary),
        "an unk_token that is not in its vocabulary",
    )
    for name in _NOT_IN_USE:
        need(model.get(name) in (None, False, ""), f"the setting {name}")
    need(isinstance(decoder, dict) and decoder.get("type") == "ByteLevel", "a decoder that is not ByteLevel")
    splitter = stated.get("pre_tokenizer")
    parts: Any = [splitter]
    if isinstance(splitter, dict) and splitter.get("type") == "Sequence":
        parts = splitter.get("pretokenizers")
    need(isinstance(parts, list) and 1 <= len(parts) <= 4, "no pre_tokenizer or too many")
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else part
        need(_is_known(part), f"an unknown pre_tokenizer ({shown(kind)})")
    need(isinstance(added, list) and len(added) <= MAX_ADDED_TOKENS, f"more than {MAX_ADDED_TOKENS:,} added tokens")
    for token in added:
        content = token.get("content") if isinstance(token, dict) else None
        need(
            isinstance(content, str) and 1 <= len(content) <= MAX_TOKEN_LENGTH,
            f"an added token that is not of 1 to {MAX_TOKEN_LENGTH} characters",
        )
    kept = {name: model[name] for name in ("type", "vocab", "merges", "unk_token", "ignore_merges") if name in model}
    return {"added_tokens": added, "pre_tokenizer": splitter, "decoder": decoder, "model": kept}


def _is_known(part: object) -> bool:
    """Return whether a pre_tokenizer has no regular expressions other than the known ones."""
    kind, pattern = (part.get("type"), part.get("pattern")) if isinstance(part, dict) else (None, None)
    return kind in ("ByteLevel", "Digits") or (
        kind == "Split" and pattern in [{"Regex": pieces} for pieces in KNOWN_PIECES]
    )


def _build(stated: Mapping[str, Any], path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps({"version": "1.0", **stated}))
    except BaseException as error:  # the library raises plain Exception, and its panics are not even that
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise V2LError(f"cannot read {printable(path)}: {shown(error)}; get another copy of it") from error


def _warn_of_template(folder: Path) -> None:
    """Warn if the folder's chat template is not known to write the prompts of v2l. Templates are compared by hash: they
    are programs, which rendering would execute."""
    template = _chat_template(folder)
    if template is None or hashlib.sha256(template).hexdigest() in KNOWN_TEMPLATES:
        return
    warnings.warn(
        f"the chat template in {printable(folder)} is not SmolVLM2's; v2l uses SmolVLM2's prompt format",
        V2LWarning,
        stacklevel=3,
    )


def _chat_template(folder: Path) -> bytes | None:
    """Return the folder's chat template from the file of any version of transformers; None if there is none."""
    try:
        return read_limited(folder / "chat_template.jinja", MAX_TEMPLATE_BYTES)
    except FileNotFoundError:
        pass
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(folder / name, optional=True).get("chat_template")
        if isinstance(template, str):
            return template.encode("utf-8", "surrogatepass")
    return None
