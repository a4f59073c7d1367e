"""Say what encoding would do: which adapters would be made, why, and at what cost. Nothing is written or encoded.

Torch is imported if there is something to encode, and not before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from v2l.errors import V2LError
from v2l.inference.batch import EncodeOptions, compare, fill, split_jobs
from v2l.inference.model_loader import ModelLoader
from v2l.inference.readings import plan_timeline
from v2l.inference.targets import Target
from v2l.video.client import probe
from v2l.video.sampling import frames_of

if TYPE_CHECKING:
    from v2l.inference.estimate import Networks


@dataclass(frozen=True)
class Preview:
    """An encoding that would take place, or why it would not.

    status: "missing" or "stale" if the target would be encoded, "current" or "kept" if not, "failed" if it cannot be
    note: why it is stale, kept or failed
    frames, segments: of the encoding; seconds, bytes: estimated; 0 if there is none
    """

    target: Target
    status: str
    note: str = ""
    frames: int = 0
    segments: int = 0
    seconds: float = 0.0
    bytes: int = 0


def preview_targets(targets: Sequence[Target], options: EncodeOptions, loader: ModelLoader) -> Iterator[Preview]:
    """Yield a preview of each adapter that `encode_targets` would make, in its order.

    Finished parts of interrupted timelines are not taken into account. Raises V2LError if the model is missing.
    """
    for target in targets:
        try:
            jobs = split_jobs(target, options, loader) if options.split else [(target, options)]
        except V2LError as error:
            yield Preview(target, "failed", str(error))
            continue
        for job in jobs:
            yield _preview(*job, loader)


def _preview(target: Target, options: EncodeOptions, loader: ModelLoader) -> Preview:
    try:
        target, found = compare(target, options, loader, touch=False)
        forced = "--overwrite was given" if options.overwrite and found.state == "stale" else ""
        result = Preview(target, found.state, found.reason or forced)
        return result if found.state in ("current", "kept") else _with_cost(result, options, loader)
    except V2LError as error:
        return Preview(target, "failed", str(error))


def _with_cost(result: Preview, options: EncodeOptions, loader: ModelLoader) -> Preview:
    """Plan the encoding as `encode_targets` does, and estimate its cost."""
    config, provenance = loader.hypernetwork_header
    video, reading = probe(result.target.video), fill(options, loader)
    segments = plan_timeline(video, reading, provenance.trained_with, options.segmentation)
    chosen = [frames_of(video, part) for part in (reading, *segments)]
    from v2l.inference.estimate import factor_bytes, seconds_per_encoding, seconds_to_decode
    from v2l.inference.timeline import index_questions

    questions = len(index_questions(provenance)) if options.index and segments else 0
    networks = _networks(loader)
    seconds = sum(
        seconds_per_encoding(networks, len(part), questions if number else 0) + seconds_to_decode(video, part)
        for number, part in enumerate(chosen)
    )
    size, frames = factor_bytes(config, len(chosen)), sum(map(len, chosen))
    return replace(result, frames=frames, segments=len(segments) or 1, seconds=seconds, bytes=size)


def _networks(loader: ModelLoader) -> Networks:
    """Return the networks as they would be loaded."""
    from v2l.inference.estimate import Networks
    from v2l.models.device import choose_device, default_dtype

    device, config = choose_device(loader.device), loader.folder.config
    dtype = loader.number_type or default_dtype(device, config.text_config)
    return Networks(config, loader.folder.geometry, loader.hypernetwork_header[0], device, dtype)
