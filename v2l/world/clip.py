"""A scene as a real video file, and many of them as a folder with a manifest that `v2l eval` reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from v2l.errors import V2LError
from v2l.files import printable, write_atomically
from v2l.sampling import sample_indices
from v2l.world.draw import draw
from v2l.world.questions import ask_about, caption
from v2l.world.scene import Scene, sample_scene


@dataclass(frozen=True)
class ClipFormat:
    """How a scene is filmed: pixels and frames per second."""

    width: int = 128
    height: int = 96
    fps: float = 8.0


def frames(scene: Scene, form: ClipFormat) -> Iterator[np.ndarray]:
    """All frames of the scene, one at a time, (height, width, 3) uint8 RGB."""
    for index in range(max(1, round(scene.duration * form.fps))):
        yield draw(scene, scene.start + index / form.fps, form.height, form.width)


def write_clip(scene: Scene, path: str | os.PathLike, form: ClipFormat | None = None) -> None:
    """Writes the scene as an MPEG-4 file, whole or not at all; its first frame is the scene's start.

    Raises V2LError where the format cannot be written or the place takes no file.
    """
    form, path = form or ClipFormat(), Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(part), cv2.CAP_FFMPEG, codec, form.fps, (form.width, form.height))
    try:
        if not writer.isOpened():
            raise V2LError(
                f"cannot write {printable(path)} with {form.width} x {form.height} pixels at {form.fps:g} frames a "
                "second; name a .mp4 in a folder that is there, with even sizes"
            )
        for pixels in frames(scene, form):
            writer.write(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        writer.release()
        os.replace(part, path)
    finally:
        writer.release()
        part.unlink(missing_ok=True)


def write_dataset(
    folder: str | os.PathLike, split: str, count: int, seconds: float = 8.0, form: ClipFormat | None = None
) -> Path:
    """`count` clips of a split, seeds 0 up, with their questions; returns the manifest, `{split}.jsonl` in the folder.

    seconds: of each clip; questions are about the frames that the published sampling shows of it, one a second, 12 at
    most. In the splits `test` and `held-out` every other clip is asked in the phrasings that training never sees.
    """
    folder, form = Path(folder), form or ClipFormat()
    (folder / split).mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(count):
        scene = sample_scene(split, seed, seconds)
        name = f"{split}/{seed:05d}.mp4"
        write_clip(scene, folder / name, form)
        total = max(1, round(seconds * form.fps))
        times = [index / form.fps for index in sample_indices(total, form.fps, max_frames=12)]
        random = np.random.default_rng(seed)
        kept = split in ("test", "held-out") and seed % 2 == 1
        asked = [*ask_about(scene, times, random, kept_phrasing=kept), caption(scene, times, random)]
        for number, question in enumerate(asked):
            rows.append(
                {
                    "id": f"{split}-{seed:05d}-{number:02d}",
                    "video_path": name,
                    "task_type": "caption" if question.kind == "caption" else "qa",
                    "prompt": question.prompt,
                    "target_text": question.answer,
                    "split": split,
                    "metadata": {"kind": question.kind, "kept_phrasing": kept},
                }
            )
    manifest = folder / f"{split}.jsonl"
    write_atomically(manifest, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return manifest
