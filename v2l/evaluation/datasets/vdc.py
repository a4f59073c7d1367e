"""VDC, AuroraCap's Video Detailed Captions in five styles (huggingface.co/datasets/wchai/Video-Detailed-Caption).

`VDC_1k.jsonl` has one row per video: {video_id, video_name, short_caption, detailed_caption, camera_caption,
background_caption, main_object_caption, ...}; public readers use these fields. The videos are in three archives whose
inner folders differ between reports, so several are tried.

500 videos are selected and asked in all five styles, 500 questions per style. It is not known whether the paper used
the same videos for each style.
"""

from __future__ import annotations

from collections.abc import Iterator

from v2l.evaluation.datasets.annotations import BenchmarkQuestion, Folder, Unit

VIDEOS = ("videos", "videos/videos", *(f"{place}videos_{n}" for place in ("videos/", "") for n in (1, 2, 3)), "")
PROMPTS = {
    "short": "Summarize this video in one detailed sentence.",
    "detailed": "Describe this video in detail.",
    "camera": "Describe the camera work, framing, and viewpoint in this video.",
    "background": "Describe the background, setting, and environment in this video.",
    "main_object": "Describe the main subject and its actions in this video.",
}


def read(folder: Folder) -> Iterator[Unit]:
    """Yield one unit per video with five questions."""
    for row in folder.lines("VDC_1k.jsonl"):
        key = row.id("video_id")
        questions = [
            BenchmarkQuestion(f"{key}/{style}", style, prompt, row.text(f"{style}_caption"))
            for style, prompt in PROMPTS.items()
        ]
        yield Unit(key, (row.video("video_name"),), tuple(questions))
