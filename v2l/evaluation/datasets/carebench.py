"""CaReBench in five subsets (huggingface.co/datasets/MCG-NJU/CaReBench).

`json/metadata.json` is a list with one entry per video: {video, caption, events, objects, ...}; the videos are in
`videos`. CaReBench's own evaluation reads these fields. The fields `spatial_caption` and `temporal_caption` are
inferred from the names of the paper's subsets, not confirmed.

Target: the caption; for events and objects, the items of the list joined by "; ", as on the paper's project page. The
prompts are those of appendix B.1. 500 videos are selected and asked in all five subsets.
"""

from __future__ import annotations

from collections.abc import Iterator

from v2l.evaluation.datasets.annotations import BenchmarkQuestion, Folder, Unit

VIDEOS = ("videos", "")
PROMPTS = {
    "caption": "Describe the video in as much useful visual detail as possible. Include the main activity, visible "
    "people or objects, scene context, appearance, and any important visual details that help explain what is "
    "happening.",
    "events": "Describe the key visible events in chronological order. Include all important actions and changes you "
    "can observe, with enough detail to distinguish each event clearly.",
    "objects": "Describe the important visible objects and entities in the video in as much useful detail as possible. "
    "Include their appearance, location, and role in the scene when visible.",
    "spatial_caption": "Describe the spatial layout in as much useful detail as possible: where the people, objects, "
    "and scene elements are located, how they are positioned relative to each other, and what parts of the scene are "
    "in the foreground, background, left, right, center, above, or below.",
    "temporal_caption": "Describe the temporal progression in as much useful detail as possible. Explain what happens "
    "over time, the order of visible actions, and how the scene or subjects change from the beginning to the end.",
}


def read(folder: Folder) -> Iterator[Unit]:
    """Yield one unit per video with five questions."""
    for row in folder.entries("json/metadata.json", "metadata.json"):
        video = row.video("video")
        questions = [
            BenchmarkQuestion(f"{video}/{subset}", subset, prompt, "; ".join(row.texts(subset)))
            for subset, prompt in PROMPTS.items()
        ]
        yield Unit(video, (video,), tuple(questions))
