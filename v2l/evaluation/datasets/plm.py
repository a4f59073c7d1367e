"""PLM-RDCap, PLM-RCap and PLM-SGQA of PLM-VideoBench (huggingface.co/datasets/facebook/PLM-VideoBench).

Fields, from the dataset's card: rdcap {uid, video, masklet_id, total_frames, dense_captions: [{start_frame, end_frame,
caption}]}, rcap {uid, video, masklet_id, total_frames, caption, start_frame, end_frame}, sgqa {uid, video, question,
answer, domain}. The card lists parquet files with JSON Lines files of the same stem beside them; this was verified for
some splits only, so the names of the three test files, NAME/plm_NAME_test.jsonl, are inferred.

Target: for RDCap, all captions of the video joined in order of time; for RCap, the caption of its range; for SGQA, the
answer. Frame numbers count at 6 frames per second, according to the public evaluation, so RCap's clip is that range of
the video. The paper calls it "this video clip" without stating whether it was cut. The paper names no split and does
not mention the red box that the dataset's own evaluation draws around the subject; none is drawn here.

SGQA's videos are part of the dataset (`videos/sgqa`). Those of the other two are in SA-V's `videos_fps_6.tar`, whose
inner folders are not confirmed.
"""

from __future__ import annotations

from collections.abc import Iterator

from v2l.evaluation.datasets.annotations import BenchmarkQuestion, Folder, Unit, ask

SAV_VIDEOS = ("videos", "videos_fps_6", "videos/videos_fps_6", "videos/sav", "")
SGQA_VIDEOS = ("videos/sgqa", "sgqa/videos", "videos", "")
FRAMES_A_SECOND = 6


def read_rdcap(folder: Folder) -> Iterator[Unit]:
    """Yield one unit per subject of a video: its actions from beginning to end."""
    for row in folder.lines("rdcap/plm_rdcap_test.jsonl", "plm_rdcap_test.jsonl"):
        key = row.id("uid")
        events = sorted(row.rows("dense_captions"), key=lambda event: event.number("start_frame"))
        target = " ".join(event.text("caption") for event in events).strip()
        question = BenchmarkQuestion(key, "plm-rdcap", "Describe what happens in this video.", target)
        yield Unit(key, (row.video("video"),), (question,))


def read_rcap(folder: Folder) -> Iterator[Unit]:
    """Yield one unit per event, with the range of the video in which it happens."""
    for row in folder.lines("rcap/plm_rcap_test.jsonl", "plm_rcap_test.jsonl"):
        key = row.id("uid")
        first, last = row.number("start_frame"), row.number("end_frame")
        if last < first:
            raise row.wrong("ends before it starts")
        question = BenchmarkQuestion(key, "plm-rcap", "Describe what happens in this video clip.", row.text("caption"))
        start, end = first / FRAMES_A_SECOND, (last + 1) / FRAMES_A_SECOND
        yield Unit(key, (row.video("video"),), (question,), start, end)


def read_sgqa(folder: Folder) -> Iterator[Unit]:
    """Yield one unit per question of the person who wears the camera."""
    for row in folder.lines("sgqa/plm_sgqa_test.jsonl", "plm_sgqa_test.jsonl"):
        key = row.id("uid")
        question = BenchmarkQuestion(key, "plm-sgqa", ask(row.text("question")), row.text("answer"))
        yield Unit(key, (row.video("video"),), (question,))
