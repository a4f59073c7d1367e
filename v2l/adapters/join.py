"""Join timelines and adapters, of one video or of several, into one timeline file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import partial

import torch

from v2l.adapters.adapter import Adapter
from v2l.adapters.description import Block
from v2l.adapters.segments import keep_segments, oldest_check, reduce_rank, split_bias
from v2l.adapters.timeline import PartSource, Timeline, write_timeline
from v2l.errors import V2LError
from v2l.io.tensors import dtype_name


def join(path: str | os.PathLike, inputs: Sequence[Adapter | Timeline], rank: int | None = None) -> Timeline:
    """Write a timeline with the segments of all inputs, in order.

    The overview is kept if there is one input. The index is kept as far as all inputs have the same questions.

    rank: reduce every segment to this many generated ranks

    Raises V2LError if the inputs do not belong together, if segments were reduced together, or if the file cannot be
    written.
    """
    questions = _common_questions(inputs)
    segments = [source for each in inputs for source in _sources(each, questions)]
    overview = None
    if len(inputs) == 1 and isinstance(inputs[0], Timeline) and inputs[0].description.overview:
        overview = PartSource(inputs[0].overview)
    if rank is not None:
        segments = [_reduced(source, rank) for source in segments]
        overview = overview and _reduced(overview, rank)
    oldest = oldest_check([each.file.checked_ns if isinstance(each, Timeline) else each.checked_ns for each in inputs])
    request = inputs[0].description.request if overview and isinstance(inputs[0], Timeline) else None
    return write_timeline(path, segments, overview, questions, request, oldest, _finest(inputs))


def _finest(inputs: Sequence[Adapter | Timeline]) -> torch.dtype:
    """Return float32 if one of the inputs is, else bfloat16."""
    found = {each.file.dtype if isinstance(each, Timeline) else dtype_name(each.a.dtype) for each in inputs}
    return torch.float32 if "float32" in found else torch.bfloat16


def _common_questions(inputs: Sequence[Adapter | Timeline]) -> tuple[str, ...]:
    """Return the questions that every input has answers to."""
    asked = [() if isinstance(each, Adapter) else each.description.questions for each in inputs]
    return tuple(question for question in asked[0] if all(question in others for others in asked))


def _sources(each: Adapter | Timeline, questions: Sequence[str]) -> list[PartSource]:
    """Return the segments of an input as parts, with their answers to some questions."""
    if isinstance(each, Adapter):
        if any(block.segments > 1 for block in each.description.blocks):
            raise V2LError(
                "an adapter whose segments were reduced together cannot be joined; compose it from its parts"
            )
        return [PartSource(partial(_segment, each, number)) for number in range(len(each.description.segments))]
    places = [each.description.questions.index(question) for question in questions]
    return [
        PartSource(partial(_segment, each, number), tuple(part.answers[place] for place in places))
        for number, part in enumerate(each.description.segments)
    ]


def _segment(each: Adapter | Timeline, number: int) -> Adapter:
    return keep_segments(each, [number]) if isinstance(each, Adapter) else each.select([number])


def _reduced(source: PartSource, rank: int) -> PartSource:
    """Return a part with fewer generated ranks."""

    def load() -> Adapter:
        adapter = source.load()
        generated, bias = split_bias(adapter)
        a, b, error = reduce_rank(*generated, rank)
        reduced = (a.to(adapter.a.dtype), b.to(adapter.b.dtype))
        a, b = (torch.cat(pair, dim=1) for pair in zip(reduced, bias, strict=True))
        description = dataclasses.replace(adapter.description, blocks=(Block(rank, 1, error),))
        return dataclasses.replace(adapter, a=a, b=b, description=description)

    return dataclasses.replace(source, load=load)
