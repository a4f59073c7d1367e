"""PLM-RDCap, PLM-RCap and PLM-SGQA of PLM-VideoBench (huggingface.co/datasets/facebook/PLM-VideoBench).

Fields, from the dataset's card: rdcap {uid, video, masklet_id, total_frames, dense_captions: [{start_frame, end_frame,
caption}]}, rcap {uid, video, masklet_id, total_frames, caption, start_frame, end_frame}, sgqa {uid, video, question,
answer, domain}. The card's files are parquet; JSON lines of the same stem stand beside them (seen for some of the
splits, so the names of the three test files are inferred). Read here: NAME/plm_NAME_test.jsonl.

Target: RDCap all captions in time, one after the other, for the whole video; RCap the caption of its own range; SGQA
the answer. The frame numbers count at 6 frames a second, as the public evaluation says of these annotations, so RCap's
clip is that part of the video: the paper calls it "this video clip" without saying whether it was cut. The paper names
no split and does not mention the red box that the dataset's own evaluation draws around the subject; none is drawn.

SGQA's videos come with the dataset (`videos/sgqa`); those of the other two are SA-V's `videos_fps_6.tar`, whose inner
folders could not be confirmed.
"""

from __future__ import annotations

from collections.abc import Iterator

from v2l.evaluation.datasets.annotations import BenchmarkQuestion, Folder, Unit, ask

SAV_VIDEOS = ("videos", "videos_fps_6", "videos/videos_fps_6", "videos/sav", "")
SGQA_VIDEOS = ("videos/sgqa", "sgqa/videos", "videos", "")
FRAMES_A_SECOND = 6


def read_rdcap(folder: Folder) -> Iterator[Unit]:
    """One unit a subject of a video, what it does from beginning to end."""
    for row in folder.lines("rdcap/plm_rdcap_test.jsonl", "plm_rdcap_test.jsonl"):
        key = row.id("uid")
        events = sorted(row.rows("dense_captions"), key=lambda event: event.number("start_frame"))
        target = " ".join(event.text("caption") for event in events).strip()
        question = BenchmarkQuestion(key, "plm-rdcap", "Describe what happens in this video.", target)
        yield Unit(key, (row.video("video"),), (question,))


def read_rcap(folder: Folder) -> Iterator[Unit]:
    """One unit an event, the part of the video in which it happens."""
    for row in folder.lines("rcap/plm_rcap_test.jsonl", "plm_rcap_test.jsonl"):
        key = row.id("uid")
        first, last = row.number("start_frame"), row.number("end_frame")
        if last < first:
            raise row.wrong("ends before it starts")
        question = BenchmarkQuestion(key, "plm-rcap", "Describe what happens in this video clip.", row.text("caption"))
        start, end = first / FRAMES_A_SECOND, (last + 1) / FRAMES_A_SECOND
        yield Unit(key, (row.video("video"),), (question,), start, end)


def read_sgqa(folder: Folder) -> Iterator[Unit]:
    """One unit a question that the wearer of the glasses asks."""
    for row in folder.lines("sgqa/plm_sgqa_test.jsonl", "plm_sgqa_test.jsonl"):
        key = row.id("uid")
        question = BenchmarkQuestion(key, "plm-sgqa", ask(row.text("question")), row.text("answer"))
        yield Unit(key, (row.video("video"),), (question,))
