"""Read timed-scene annotations like FineVideo's as spans of their videos (method section 5.1).

An annotation is a JSON object with `content_metadata.scenes` (each with `timestamps` as HH:MM:SS.sss, `activities`,
`title`), `content_metadata.description` and `youtube_title`; its video has the same name in the same folder.
Annotations are untrusted input: no file name is taken from them, and every unusable entry is reported.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2l.errors import V2LError
from v2l.io.files import open_regular, unreadable
from v2l.io.text import printable
from v2l.io.untrusted import json_error
from v2l.video.client import probe
from v2l.video.sampling import Video, frame_range

KINDS = ("scene", "adjacent", "full")
"""Kinds of spans: a scene, two or three consecutive scenes, the full video."""
ADJACENT = (2, 3)
"""The numbers of scenes in an adjacent span."""
ACTIVITIES = {"scene": 2, "adjacent": 4}
"""The maximum number of activities whose descriptions make a target."""
ROUNDING = 1.0
"""Annotations round times: a scene may end up to this many seconds after its video, and then ends with it."""
MAX_BYTES = 16_000_000
"""The size limit of an annotation."""
MAX_TEXT = 20_000
"""The length limit of a text in it, in characters."""
_TIME = re.compile(r"(\d{1,3}):([0-5]\d):([0-5]\d(?:\.\d{1,9})?)", re.ASCII)


@dataclass(frozen=True)
class Span:
    """A part of a video that can become a row of the manifest.

    kind: "scene", "adjacent" or "full"; start, end: seconds, None for the full video
    about: the row's metadata
    """

    id: str
    kind: str
    video: Path
    start: float | None
    end: float | None
    target: str
    about: dict[str, Any]


@dataclass(frozen=True)
class AnnotatedScene:
    """A scene with valid bounds. number: its index in the annotation"""

    number: int
    id: int | None
    title: str | None
    start: float
    end: float
    activities: tuple[str, ...]


def read_split(
    folder: Path, split: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[dict[str, list[Span]], list[str]]:
    """Read all spans in FOLDER/SPLIT, by kind, and the faults of unusable entries, one line each.

    Links out of that folder are not followed. Raises V2LError if the folder cannot be read.
    """
    base = Path(os.path.realpath(folder / split))
    try:
        names = {entry.name for entry in os.scandir(base)}
    except OSError as error:
        raise V2LError(
            f"cannot read the folder {printable(folder / split)}: {error.strerror}; pairs of NAME.json and NAME.mp4 "
            "belong there"
        ) from error
    annotations = sorted(name for name in names if name.endswith(".json"))
    pools: dict[str, list[Span]] = {kind: [] for kind in KINDS}
    faults = [
        f"{printable(f'{split}/{name}')}: there is no annotation {printable(Path(name).stem)}.json beside it"
        for name in sorted(names)
        if name.endswith(".mp4") and f"{name[:-4]}.json" not in names
    ]
    for done, name in enumerate(annotations):
        progress(done, len(annotations))
        with _noted(faults, f"{split}/{name}"):
            spans, wrong = read_pair(base / name, split)
            faults += [f"{printable(f'{split}/{name}')}: {fault}" for fault in wrong]
            for span in spans:
                pools[span.kind].append(span)
    progress(len(annotations), len(annotations))
    return pools, faults


def read_pair(path: Path, split: str) -> tuple[list[Span], list[str]]:
    """Read the spans of an annotation and its video, and the faults of unusable entries. Raises ValueError or V2LError
    if the annotation or the video is unusable as a whole."""
    annotation = _annotation(path)
    described = _object(annotation, "content_metadata")
    place = _within(path.with_suffix(".mp4"))
    video = probe(place)
    spans: list[Span] = []
    faults: list[str] = []
    scenes: list[AnnotatedScene | None] = []
    given = described.get("scenes")
    if not isinstance(given, list) or not given:
        given = []
        faults.append("it has no scenes; the full video alone is used")
    for number, each in enumerate(given):
        scenes.append(None)
        with _noted(faults, f"scenes[{number}]"):
            scenes[-1] = _scene(each, number, video)

    def add(kind: str, name: str, bounds: tuple[float | None, float | None], target: str, **about: Any) -> None:
        source = {"dataset": "finevideo", "source_video_path": f"{split}/{place.name}", "kind": kind, "span_type": kind}
        spans.append(Span(f"{split}-{path.stem}-{name}", kind, place, *bounds, target, source | about))

    for length in (1, *ADJACENT):
        for first in range(len(scenes) - length + 1):
            run = [scene for scene in scenes[first : first + length] if scene is not None]
            if len(run) < length:
                continue
            kind = "scene" if length == 1 else "adjacent"
            name = "-".join([kind, f"{first:03d}", *([f"{first + length - 1:03d}"] if length > 1 else [])])
            with _noted(faults, name):
                add(kind, name, _bounds(run), _description(run, ACTIVITIES[kind]), **_about(run))
    with _noted(faults, "full"):
        target = _text(described.get("description"))
        if target is None:
            raise ValueError("the video has no description")
        add("full", "full", (None, None), target, youtube_title=_text(annotation.get("youtube_title")))
    return spans, faults


@contextlib.contextmanager
def _noted(faults: list[str], about: str) -> Iterator[None]:
    """Append an error raised inside to the faults."""
    try:
        yield
    except (ValueError, V2LError) as error:
        faults.append(f"{printable(about)}: {error}")


def _within(path: Path) -> Path:
    """Check that a path is a file of its own folder and no link out of it. Raises ValueError."""
    if Path(os.path.realpath(path)).parent != path.parent:
        raise ValueError(f"{printable(path.name)} leads out of its folder and is not followed")
    if not path.exists():
        raise ValueError(f"there is no {printable(path.name)} beside it")
    return path


def _annotation(path: Path) -> Mapping[str, Any]:
    try:
        with open_regular(_within(path)) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, MAX_BYTES) + 1)  # read() allocates what it is asked for
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES // 10**6} MB")
        return _object({"it": json.loads(data)}, "it")
    except OSError as error:
        raise unreadable(path, error) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {json_error(error)}") from error


def _object(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(value.get(name), dict):
        raise ValueError("it is not a JSON object" if name == "it" else f"it has no {name}")
    return value[name]


def _text(value: object) -> str | None:
    """A non-empty text, stripped and without lone surrogates; None for other values. Raises ValueError if too long."""
    if not isinstance(value, str) or not value.strip():
        return None
    if len(value) > MAX_TEXT:
        raise ValueError(f"a text of {len(value):,} characters is too long; a description has at most {MAX_TEXT:,}")
    return value.encode("utf-8", "replace").decode().strip()


def _scene(given: object, number: int, video: Video) -> AnnotatedScene:
    scene = _object({"it": given}, "it")
    times = _object(scene, "timestamps")
    start, end = (_seconds(times.get(f"{side}_timestamp")) for side in ("start", "end"))
    if start >= end:
        raise ValueError(f"it ends at {end:g} s, not after its start at {start:g} s")
    if end > video.duration + ROUNDING:
        raise ValueError(f"it ends at {end:g} s, past the end of the video at {video.duration:.3f} s")
    frame_range(video, start, end)
    activities = scene.get("activities")
    entries = activities if isinstance(activities, list) else []
    texts = [_text(each.get("description")) for each in entries if isinstance(each, dict)]
    identity = scene.get("sceneId")
    return AnnotatedScene(
        number,
        identity if isinstance(identity, int) else None,
        _text(scene.get("title")),
        start,
        min(end, video.duration),
        tuple(text for text in texts if text),
    )


def _seconds(value: object) -> float:
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{printable(repr(value))} is not a time of the form HH:MM:SS.sss")
    hours, minutes, seconds = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _bounds(scenes: Sequence[AnnotatedScene]) -> tuple[float, float]:
    starts = [scene.start for scene in scenes]
    if starts != sorted(starts):
        raise ValueError("its scenes do not follow one another")
    return starts[0], max(scene.end for scene in scenes)


def _description(scenes: Sequence[AnnotatedScene], most: int) -> str:
    activities = [text for scene in scenes for text in scene.activities]
    if not activities:
        raise ValueError("no activity is described")
    return " ".join(activities[:most])


def _about(scenes: Sequence[AnnotatedScene]) -> dict[str, Any]:
    return {
        "scene_indices": [scene.number for scene in scenes],
        "scene_ids": [scene.id for scene in scenes],
        "title": " / ".join(scene.title for scene in scenes if scene.title),
    }
