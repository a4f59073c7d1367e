"""Targets in the frozen model's own words: its answers with the video in context (paper section 4).

They are kept in a JSONL file, from which an interrupted run resumes and later trainings read them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from v2l.errors import ModelError, V2LError
from v2l.inference.ask import ask_each_in_context, ask_in_context
from v2l.io.journal import Journal
from v2l.io.manifest import Example, group_by_clip
from v2l.io.text import printable
from v2l.models.smolvlm import FrozenVLM
from v2l.video.sampling import Reading

MAX_NEW_TOKENS = 64
EMPTY_ANSWER = "Unable to determine."
"""The target in place of an empty answer, as published."""


def with_teacher_answers(
    examples: Sequence[Example],
    vlm: FrozenVLM,
    reading: Reading,
    cache: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    warn: Callable[[str], None] = lambda text: None,
) -> list[Example]:
    """Replace the targets by the frozen model's greedy answers of at most `MAX_NEW_TOKENS` tokens.

    reading: how the model reads the clips; every field but start and end is set
    cache: the file of answers; those for the same model, reading and question are reused

    Examples whose video cannot be read are left out with a warning. Raises V2LError if the cache is another file or no
    example is left.
    """
    header = {"v2l": 1, "teacher": vlm.fingerprint, "dtype": str(vlm.dtype), **dataclasses.asdict(reading)}
    journal = Journal(cache, header, "file of a teacher's answers", "model or another reading")
    answers = {row.get("key"): row.get("text") for row in journal.rows}
    clips = {clip[0].clip: clip for clip in group_by_clip(examples)}
    kept = []
    with journal:
        for done, example in enumerate(examples):
            progress(done, len(examples))
            key = _key(example)
            if key not in answers:
                missing = {_key(each): each.prompt for each in clips[example.clip] if _key(each) not in answers}
                clip = dataclasses.replace(reading, start=example.start, end=example.end)
                try:
                    found = _answers(example, missing, vlm, clip)
                except ModelError:  # out of memory, as with every other example
                    raise
                except V2LError as error:
                    warn(f"{printable(example.id)} is left out: {error}")
                    continue
                for each, text in found.items():
                    answers[each] = text
                    journal.add({"key": each, "text": text})
            kept.append(dataclasses.replace(example, target=answers[key] or EMPTY_ANSWER))
    progress(len(examples), len(examples))
    if not kept:
        raise V2LError("none of the manifest's videos can be read")
    return kept


def _answers(example: Example, prompts: dict[str, str], vlm: FrozenVLM, reading: Reading) -> dict[str, str]:
    """Answer all prompts about the example's clip, by key, or the example's alone if one of them cannot be asked."""
    try:
        texts = ask_each_in_context(example.video, list(prompts.values()), vlm, reading, MAX_NEW_TOKENS)
        return dict(zip(prompts, texts, strict=True))
    except ModelError:
        raise
    except V2LError:
        return {_key(example): ask_in_context(example.video, example.prompt, vlm, reading, MAX_NEW_TOKENS)}


def _key(example: Example) -> str:
    return json.dumps([str(example.video), example.start, example.end, example.prompt])
