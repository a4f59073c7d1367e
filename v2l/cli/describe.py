"""Descriptions of adapter and hypernetwork files, and the versions of the libraries that v2l uses."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import v2l
from v2l.adapters.description import AdapterFile, Description, Segment
from v2l.adapters.timeline_description import TimelineDescription, TimelineFile, is_adapter_file, read_adapter_file
from v2l.cli.options import cache_destination
from v2l.errors import V2LError
from v2l.inference.naming import ADAPTER_SUFFIX, is_video
from v2l.inference.targets import find_targets
from v2l.io.files import unreadable
from v2l.io.records import to_json
from v2l.io.text import amount, clock, printable
from v2l.models.hypernetwork_file import (
    FILE_NAME,
    HypernetworkConfig,
    HypernetworkFile,
    Provenance,
    locate,
    weight_shapes,
)
from v2l.models.presets import PRESETS, check_no_repository, is_tiny

Rows = list[tuple[str, str]]
"""Names and values."""


def describe(path: Path) -> tuple[str, Rows, dict[str, Any]]:
    """Return the kind of a file, its description as rows, and as a record.

    Raises V2LError if it is no adapter, hypernetwork, preset or video, or is damaged.
    """
    if path.name.endswith(ADAPTER_SUFFIX) or is_adapter_file(path):
        file = read_adapter_file(path)
        if isinstance(file, TimelineFile):
            return "timeline", [*_timeline_rows(file)], _record("timeline", file, path)
        return "adapter", [*_adapter_rows(file)], _record("adapter", file, path)
    if is_video(path.name):
        return "video", *_describe_video(path)
    if not (os.path.exists(path) or os.fspath(path) in ("tiny", *PRESETS)):
        check_no_repository(os.fspath(path))
        raise unreadable(path, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    _check_hypernetwork(path)
    size = os.stat(path).st_size if path.is_file() else 0
    config, provenance = _read_hypernetwork(path)
    trained = provenance.trained_with
    parameters = sum(math.prod(shape) for _, shape in weight_shapes(config))
    rows = [
        ("id", printable(provenance.id)),
        ("for", _model(provenance.base_model, provenance.base_fingerprint)),
        ("size", f"{parameters:,} parameters"),
        ("rank", f"{config.rank} generated + {config.rank} learned bias, multiplier {config.lora_alpha:g}"),
        ("latents", f"{config.num_latents} x {config.latent_size}, {config.num_blocks} blocks"),
        (
            "trained with",
            f"{trained.frames} frames at {trained.fps:g} fps, resolution {trained.resolution or 'native'}",
        ),
        ("", f"up to {trained.windows} windows of {trained.window_frames} frames, {trained.segments} segments"),
        ("prompt", printable(trained.prompt)),
        *([("", "the last frame of a video is announced as its last")] if trained.marks_end else []),
        ("sha256", provenance.sha256),
    ]
    record = {"kind": "hypernetwork", "file": path, "bytes": size, "parameters": parameters}
    record["demonstration"] = is_tiny(provenance.base_fingerprint)
    return "hypernetwork", rows, {**record, "config": to_json(config), **to_json(provenance)}


def _check_hypernetwork(path: Path) -> None:
    """Raise V2LError, with all that can be described, if a path cannot be that of a hypernetwork."""
    if os.path.isdir(path):
        kind = "" if os.path.lexists(path / FILE_NAME) else f"a folder without a hypernetwork ({FILE_NAME})"
    else:
        named = path.suffix in (".pt", ".safetensors") or os.fspath(path) in ("tiny", *PRESETS)
        kind = "" if named else "a file of another kind"
    if kind:
        raise V2LError(
            f"{printable(path)} is {kind}; info describes adapters (*{ADAPTER_SUFFIX}), videos, hypernetworks "
            f"(.safetensors, .pt, or the folder of a model that has one) and {', '.join(['tiny', *PRESETS])}"
        )


def _read_hypernetwork(path: Path) -> tuple[HypernetworkConfig, Provenance]:
    """Read a hypernetwork whole; torch is imported only for a published .pt."""
    located = locate(path)
    if located.suffix == ".safetensors":
        file = HypernetworkFile.read(located)
        return file.config, file.provenance
    from v2l.models.checkpoint import load_hypernetwork

    hypernetwork = load_hypernetwork(located)
    assert hypernetwork.provenance is not None, "a hypernetwork that was loaded has its provenance"
    return hypernetwork.config, hypernetwork.provenance


def _describe_video(path: Path) -> tuple[Rows, dict[str, Any]]:
    """Return the facts about a video, and the state of its adapter if it were encoded now."""
    from v2l.video.client import probe

    video, size = probe(path), os.stat(path).st_size
    adapter, state, reason = _adapter_state(path)
    description = {
        "missing": f"none; v2l encode {printable(path)} makes it",
        "current": "up to date",
        "stale": f"out of date: {reason}",
        "foreign": f"made for {reason}, another model than encode would use",
        "unknown": f"it cannot be compared: {reason}",
    }[state]
    rows = [
        ("size", f"{video.width}x{video.height}, {amount(size)}"),
        ("length", f"{clock(video.duration)}, {video.frame_count:,} frames, {video.fps:.4g} a second"),
        *(("", printable(note)) for note in video.notes),
        *([] if state == "missing" else [("adapter", printable(adapter))]),
        ("adapter" if state == "missing" else "", description),
    ]
    record = {
        "kind": "video",
        "file": path,
        "bytes": size,
        "duration": video.duration,
        "frames": video.frame_count,
        "fps": video.fps,
        "width": video.width,
        "height": video.height,
        "adapter": None if state == "missing" else adapter,
        "adapter_state": state,
        "note": reason,
        "demonstration": _is_of_tiny(adapter),
    }
    return rows, record


def _adapter_state(video: Path) -> tuple[Path, str, str]:
    """Return the path of a video's adapter, its state as in `Staleness`, or "unknown" if the model cannot be read, and
    the reason."""
    from v2l.inference.batch import EncodeOptions, locate_adapter
    from v2l.inference.model_loader import ModelLoader, choose_model
    from v2l.video.sampling import Reading

    (target,) = find_targets([video], cache_destination(), Reading())
    if target.error:
        return target.output, "unknown", target.error
    if not (os.path.lexists(target.output) or (target.cache and os.path.isdir(target.cache.folder))):
        return target.output, "missing", ""
    try:
        loader = ModelLoader(*choose_model(None))
        target, found = locate_adapter(target, EncodeOptions(Reading(), any_reading=True), loader)
    except V2LError as error:
        return target.output, "unknown", str(error)
    return target.output, found.state, found.reason


def _is_of_tiny(adapter: Path) -> bool:
    try:
        return is_tiny(read_adapter_file(adapter).description.base_model.fingerprint)
    except V2LError:
        return False


def versions() -> dict[str, str]:
    """Return versions by name: v2l, Python packages, and the FFmpeg library inside PyAV."""
    found = {"v2l": v2l.__version__}
    for name in ("torch", "transformers", "safetensors", "av", "opencv-python", "opencv-python-headless"):
        with contextlib.suppress(PackageNotFoundError):  # one of the OpenCV packages is enough
            found[name] = version(name)
    from v2l.video.client import library_versions

    try:
        return {**found, "FFmpeg avcodec": library_versions()["libavcodec"]}
    except V2LError:  # a library is missing, which the versions may be printed to find out
        return {**found, "FFmpeg avcodec": "unavailable"}


def _record(kind: str, file: AdapterFile | TimelineFile, path: Path) -> dict[str, Any]:
    return {
        "kind": kind,
        "file": path,
        "bytes": file.size,
        "sha256": file.sha256,
        "layers": file.layers,
        "rank": file.description.rank,
        "dtype": file.dtype,
        "not_validated": file.description.not_validated,
        "demonstration": is_tiny(file.description.base_model.fingerprint),
        **to_json(file.description),
    }


def _maker_rows(made: Description | TimelineDescription) -> Iterator[tuple[str, str]]:
    """Yield the model and the hypernetwork that an adapter was made for and by."""
    base = made.base_model
    yield "model", _model(base.id, base.fingerprint)
    if base.revision:
        yield "revision", printable(base.revision)
    yield "hypernetwork", f"{printable(made.hypernetwork.id)} ({made.hypernetwork.sha256[:12]})"


def _adapter_rows(file: AdapterFile) -> Iterator[tuple[str, str]]:
    made = file.description
    yield from _maker_rows(made)
    blocks = " + ".join(
        str(block.rank) + (f" (error {block.relative_error:.1%})" if block.relative_error else "")
        for block in made.blocks
    )
    yield "rank", f"{made.rank} = {blocks} + {made.bias_rank} learned bias, {file.layers} layers"
    yield "size", f"{amount(file.size)}, {file.dtype}"
    for index, segment in enumerate(made.segments):
        yield from _segment_rows(segment, f"segment {index}" if len(made.segments) > 1 else "video")
    for note in made.not_validated:
        yield "note", note
    yield "made by", f"v2l {printable(made.v2l_version)}"
    yield "sha256", file.sha256


def _timeline_rows(file: TimelineFile) -> Iterator[tuple[str, str]]:
    made = file.description
    start, end = made.span
    yield from _maker_rows(made)
    yield "rank", f"{made.rank - made.bias_rank} a part + {made.bias_rank} learned bias, {file.layers} layers"
    yield "size", f"{amount(file.size)}, {file.dtype}"
    for recipe in {recipe.source: recipe for recipe in made.recipes}.values():
        yield "video", f"{printable(recipe.source.name)}, {recipe.width}x{recipe.height}, {amount(recipe.source.size)}"
        yield "", f"sha256 {recipe.source.sha256}"
    lengths = [part.end - part.start for part in made.segments]
    frames = sorted({len(part.timestamps) for part in made.segments})
    counts = f"{frames[0]} to {frames[-1]}" if len(frames) > 1 else str(frames[0])
    yield "segments", f"{len(lengths)} of {max(lengths):.3g} s, {clock(start)} to {clock(end)}, {counts} frames each"
    overview = "none, it joins several files" if made.overview is None else f"{len(made.overview.timestamps)} frames"
    yield "overview", overview
    yield "index", ", ".join(map(printable, made.questions)) or "none"
    for note in made.not_validated:
        yield "note", note
    yield "made by", f"v2l {printable(made.v2l_version)}"
    yield "sha256", file.sha256


def segment_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the segments of a timeline as a table: times, frames, and the answers of the index."""
    made = TimelineFile.read(path).description
    rows = [
        [f"{clock(part.start)}-{clock(part.end)}", str(len(part.timestamps)), *map(printable, part.answers)]
        for part in made.segments
    ]
    return ["segment", "frames", *map(printable, made.questions)], rows


def _segment_rows(segment: Segment, title: str) -> Iterator[tuple[str, str]]:
    windows = f" in {len(segment.windows)} windows" if len(segment.windows) > 1 else ""
    yield title, f"{printable(segment.source.name)}, {segment.width}x{segment.height}, {amount(segment.source.size)}"
    yield "", f"{clock(segment.start)} to {clock(segment.end)}, {len(segment.timestamps)} frames{windows}"
    decoder, *notes = segment.decoder.split("; ")
    yield "", f"resolution {segment.reading.resolution}, decoded by {printable(decoder)}"
    yield from (("", printable(note)) for note in notes)
    yield "", f"sha256 {segment.source.sha256}"


def _model(name: str, fingerprint: str | None) -> str:
    return printable(name) + (f" ({fingerprint[:12]})" if fingerprint else "")
