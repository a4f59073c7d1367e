"""NExT-QA, open-ended (github.com/doc-doc/NExT-OE; the multiple-choice files of NExT-QA have the same names).

`test.csv` has the columns video, frame_count, width, height, question, answer, qid, type (verified). The additional
references in add_reference_answer_test.json are not used: the target is the answer in the CSV file. The paper does not
name the split; public open-ended evaluations use test or validation.

Videos: NExTVideo.zip, or VidOR's folder tree. `map_vid_vidorID.json` beside the CSV file (published with NExT-QA) maps
a video to its subfolder ("0101/2909445186"); without it, videos are searched by number.
"""

from __future__ import annotations

from collections.abc import Iterator

from v2l.evaluation.datasets.annotations import BenchmarkQuestion, Folder, Row, Unit, ask

VIDEOS = ("NExTVideo", "videos", "video", "")
PLACES = ("", "dataset/nextqa/", "nextqa/")


def read(folder: Folder) -> Iterator[Unit]:
    """Yield one unit per test question."""
    places = folder.mapping(*(f"{place}map_vid_vidorID.json" for place in PLACES))
    for row in folder.table(*(f"{place}test.csv" for place in PLACES)):
        if "a0" in row:
            raise row.wrong("offers choices: it is the multiple-choice file, the open-ended one is NExT-OE's")
        video = row.video("video")
        mapped = Row({"video": places[video]}, row.where).video("video") if video in places else video
        key = f"{video}_{row.id('qid')}"
        question = BenchmarkQuestion(key, "nextqa", ask(row.text("question")), row.text("answer"))
        yield Unit(key, (mapped, video), (question,))
