"""VidCapBench's questions (huggingface.co/datasets/VidCapBench/VidCapBench).

`VidCapBench-AE_QA.jsonl` has one row per video: {video_dir, QA_pairs: [{question, answer, sub_category,
primary_category}]}, verified with a public copy. `video_dir` is a path on the authors' machine; only its last part is
used, and searched in `videos`. The other part of the benchmark, -HE, is for human judges and is not read: the paper's
15.23 questions per video match -AE alone.

100 videos are selected with all their questions (1,523 in the paper).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from v2l.evaluation.datasets.annotations import BenchmarkQuestion, Folder, Row, Unit, ask

VIDEOS = ("videos", "")


def read(folder: Folder) -> Iterator[Unit]:
    """Yield one unit per video with all its questions."""
    for row in folder.lines("VidCapBench-AE_QA.jsonl"):
        name = PurePosixPath(row.id("video_dir")).name
        video = Row({"video_dir": name}, row.where).video("video_dir")
        questions = [
            BenchmarkQuestion(f"{video}/{number}", "vidcapbench", ask(pair.text("question")), pair.text("answer"))
            for number, pair in enumerate(row.rows("QA_pairs"), start=1)
        ]
        yield Unit(video, (video,), tuple(questions))
