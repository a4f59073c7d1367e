"""Timed-scene annotations of the FineVideo kind to spans of their videos (method section 5.1).

An annotation is a JSON object with `content_metadata.scenes` (each with `timestamps` as HH:MM:SS.sss, `activities`,
`title`), `content_metadata.description` and `youtube_title`; its video stands beside it under the same name. Someone
else wrote it: nothing in it names a file, and what cannot be used is said.
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
from v2l.video.client import probe
from v2l.video.sampling import Video, frame_range

KINDS = ("scene", "adjacent", "full")
"""Of spans: a scene, two or three that follow one another, the full video."""
ADJACENT = (2, 3)
ACTIVITIES = {"scene": 2, "adjacent": 4}
"""So many descriptions of what happens make a target."""
ROUNDING = 1.0
"""Seconds by which annotations round: a scene may end so much after its video does, and then ends with it."""
MAX_BYTES = 16_000_000
MAX_TEXT = 20_000
_TIME = re.compile(r"(\d{1,3}):([0-5]\d):([0-5]\d(?:\.\d{1,9})?)", re.ASCII)


@dataclass(frozen=True)
class Span:
    """A part of a video that can become a row.

    kind: "scene", "adjacent" or "full"; start, end: seconds, None for the full video
    about: what the row's metadata say of it
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
    """A scene whose bounds are sound. number: its place in the annotation, from 0"""

    number: int
    id: int | None
    title: str | None
    start: float
    end: float
    activities: tuple[str, ...]


def read_split(
    folder: Path, split: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[dict[str, list[Span]], list[str]]:
    """All spans in FOLDER/SPLIT by kind, and everything there that cannot be used, one line each.

    Names that lead out of that folder are not followed. Raises V2LError where it is not there.
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
    """The spans of the video that stands beside an annotation, and what is wrong with some of it. Raises ValueError or
    V2LError where one of the two is of no use at all."""
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
            run = scenes[first : first + length]
            if None in run:
                continue
            kind = "scene" if length == 1 else "adjacent"
            name = "-".join([kind, f"{first:03d}", *([f"{first + length - 1:03d}"] if length > 1 else [])])
            with _noted(faults, name):
                add(kind, name, _bounds(run), _told(run, ACTIVITIES[kind]), **_about(run))
    with _noted(faults, "full"):
        target = _text(described.get("description"))
        if target is None:
            raise ValueError("the video has no description")
        add("full", "full", (None, None), target, youtube_title=_text(annotation.get("youtube_title")))
    return spans, faults


@contextlib.contextmanager
def _noted(faults: list[str], about: str) -> Iterator[None]:
    """What goes wrong inside is one fault more."""
    try:
        yield
    except (ValueError, V2LError) as error:
        faults.append(f"{printable(about)}: {error}")


def _within(path: Path) -> Path:
    """The path, proven to lead to a file of its own folder."""
    if Path(os.path.realpath(path)).parent != path.parent:
        raise ValueError(f"{printable(path.name)} leads out of its folder and is not followed")
    if not path.exists():
        raise ValueError(f"there is no {printable(path.name)} beside it")
    return path


def _annotation(path: Path) -> Mapping[str, Any]:
    try:
        with open_regular(_within(path)) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, MAX_BYTES) + 1)  # which reserves as much as it may read
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES // 10**6} MB, no annotation")
        return _object({"it": json.loads(data)}, "it")
    except OSError as error:
        raise unreadable(path, error) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from error


def _object(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(value.get(name), dict):
        raise ValueError("it is not a JSON object" if name == "it" else f"it has no {name}")
    return value[name]


def _text(value: object) -> str | None:
    """A text that says something, without lone surrogates; None for anything else."""
    if not isinstance(value, str) or not value.strip():
        return None
    if len(value) > MAX_TEXT:
        raise ValueError(f"a text of {len(value):,} characters describes no video")
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
    told = scene.get("activities")
    activities = [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []
    texts = (_text(each.get("description")) for each in activities)
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
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{printable(repr(value))} is no time as HH:MM:SS.sss")
    hours, minutes, seconds = found.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _bounds(scenes: Sequence[AnnotatedScene]) -> tuple[float, float]:
    starts = [scene.start for scene in scenes]
    if starts != sorted(starts):
        raise ValueError("its scenes do not follow one another")
    return starts[0], max(scene.end for scene in scenes)


def _told(scenes: Sequence[AnnotatedScene], most: int) -> str:
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
