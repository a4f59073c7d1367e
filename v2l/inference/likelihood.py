"""The likelihood of an answer to a question under many adapters, by which they are ranked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from v2l.adapters.adapter import Adapter
from v2l.adapters.lora import applied
from v2l.adapters.search import Finding
from v2l.adapters.timeline import Timeline, open_adapter
from v2l.errors import V2LError
from v2l.inference.ask import ROWS_AT_ONCE
from v2l.inference.model_loader import ModelLoader, choose_model_for
from v2l.inference.preprocess import EncodedFrames, video_ids
from v2l.io.text import printable
from v2l.models.language_model import causal
from v2l.models.processor import question_text
from v2l.models.smolvlm import FrozenVLM

POSITIONS_AT_ONCE = 32
"""Positions whose logits exist at the same time, twice and in float32: 13 MB with the published vocabulary."""


def answer_likelihoods(adapters: Sequence[Adapter], question: str, answer: str, vlm: FrozenVLM) -> list[float]:
    """Return for each adapter the log-probability of an answer to a question, in nats: the sum over the tokens of the
    answer, at most 0. All adapters are computed in one batch.

    Raises V2LError if an adapter was made for another model, or if the question or the answer is empty, too long or
    contains control tokens.
    """
    prompt = vlm.tokenize(question_text(vlm.check_user_text(question)))
    target = answer_ids(answer, vlm)
    vlm.check_length(len(prompt), len(target))
    with applied(vlm, adapters, merged=False):
        return _likelihoods(vlm.language_model.embed(prompt), target, len(adapters), vlm)


def likelihood_in_context(encoded: EncodedFrames, question: str, answer: str, vlm: FrozenVLM) -> float:
    """Return the log-probability of an answer with the video in the prompt, in nats, as `answer_likelihoods` does under
    adapters. Raises V2LError if the prompt exceeds the model's positions."""
    prompt = video_ids(encoded, vlm, vlm.check_user_text(question), answer=True)
    target = answer_ids(answer, vlm)
    vlm.check_length(len(prompt), len(target))
    with vlm.exclusively("answering in context"):
        (likelihood,) = _likelihoods(vlm.embed(prompt, encoded.images), target, 1, vlm)
    return likelihood


def answer_ids(answer: str, vlm: FrozenVLM) -> torch.Tensor:
    """Return the token ids of an answer as it follows a prompt, (T,). Raises V2LError if it is empty or contains
    control tokens."""
    return vlm.tokenize(" " + vlm.check_user_text(answer))


@torch.inference_mode()
def _likelihoods(prompt: torch.Tensor, target: torch.Tensor, rows: int, vlm: FrozenVLM) -> list[float]:
    """Return the log-probability of the ids `target`, (T,), after a prompt, embeddings (P, D), under the attached
    adapter of each row."""
    # Run prompt and answer once per row; keep the positions that predict a token of the answer
    model = vlm.language_model
    inputs = torch.cat([prompt, model.embed(target[:-1])])
    length = len(inputs)
    positions = torch.arange(length, device=vlm.device)
    predicting = positions[len(prompt) - 1 :]
    keep = (length * torch.arange(rows, device=vlm.device)[:, None] + predicting).flatten()
    model.check_batch(rows)
    hidden = model.run(inputs.repeat(rows, 1), positions.repeat(rows), causal(rows, None), keep)

    # Sum the log-probabilities of the answer's tokens
    parts = zip(hidden.split(POSITIONS_AT_ONCE), target.repeat(rows).split(POSITIONS_AT_ONCE), strict=True)
    found = [model.logits(part).float().log_softmax(-1).gather(-1, ids[:, None]) for part, ids in parts]
    return torch.cat(found).view(rows, len(target)).sum(1).tolist()


@dataclass(frozen=True)
class Candidate:
    """A segment whose likelihood is wanted. finding: without its match and score"""

    finding: Finding
    adapter: Adapter


class Candidates:
    """The segments of timelines, and adapters of one encoding as one segment each, read a batch at a time.

    loader: of the model that the user chose; without a choice, of the model that the first sound adapter names
    read: number of files read so far; errors: a line for each that could not be
    """

    def __init__(self, paths: Sequence[Path], loader: ModelLoader):
        self._paths, self.loader = paths, loader
        self.read, self.errors = 0, list[str]()
        self._model_is_chosen = loader.chosen_by in ("option", "environment")

    def batches(self) -> Iterator[tuple[Candidate, ...]]:
        """Yield the candidates, in order. Raises V2LError if the model cannot be loaded."""
        candidates = self._all()
        while batch := tuple(islice(candidates, ROWS_AT_ONCE)):
            yield batch

    def _all(self) -> Iterator[Candidate]:
        for path in self._paths:
            try:
                source = open_adapter(path)
                if not self._model_is_chosen:
                    self._choose_model(source)
                if source.description.base_model.fingerprint != self.loader.fingerprint:
                    raise V2LError(
                        f"{printable(path)} was made for another model than {printable(self.loader.folder.id)}; "
                        "likelihoods of two models cannot be compared, so search its adapters apart"
                    )
                yield from _segments_of(path, source)
            except V2LError as error:
                self.errors.append(str(error))
            self.read += 1

    def _choose_model(self, source: Adapter | Timeline) -> None:
        model, chosen_by = choose_model_for(source.description.base_model, None)
        self.loader = replace(self.loader, model=model, chosen_by=chosen_by)
        self._model_is_chosen = True


def _segments_of(path: Path, source: Adapter | Timeline) -> Iterator[Candidate]:
    segments = source.description.segments
    if isinstance(source, Adapter):
        start, end = min(each.start for each in segments), max(each.end for each in segments)
        yield Candidate(Finding(path, source.description.segments[0].source.name, start, end, (), 0.0), source)
        return
    for number, part in enumerate(source.description.segments):
        video = source.description.recipes[part.recipe].source.name
        yield Candidate(Finding(path, video, part.start, part.end, (), 0.0), source.select([number]))
