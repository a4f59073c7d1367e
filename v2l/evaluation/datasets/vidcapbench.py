"""VidCapBench's questions (huggingface.co/datasets/VidCapBench/VidCapBench).

`VidCapBench-AE_QA.jsonl`, a row a video: {video_dir, QA_pairs: [{question, answer, sub_category, primary_category}]},
as seen in a public copy. `video_dir` there is a path on somebody's machine; only its last part counts, looked for in
`videos`. The other part of the benchmark, -HE, is for human judges and not read: the paper's 15.23 questions a video
agree with -AE alone.

100 videos are chosen and asked all their questions (1,523 in the paper).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from v2l.evaluation.datasets.annotations import BenchmarkQuestion, Folder, Row, Unit, ask

VIDEOS = ("videos", "")


def read(folder: Folder) -> Iterator[Unit]:
    """One unit a video, all its questions."""
    for row in folder.lines("VidCapBench-AE_QA.jsonl"):
        name = PurePosixPath(row.id("video_dir")).name
        video = Row({"video_dir": name}, row.where).video("video_dir")
        questions = [
            BenchmarkQuestion(f"{video}/{number}", "vidcapbench", ask(pair.text("question")), pair.text("answer"))
            for number, pair in enumerate(row.rows("QA_pairs"), start=1)
        ]
        yield Unit(video, (video,), tuple(questions))
