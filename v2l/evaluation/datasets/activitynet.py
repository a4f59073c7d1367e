"""ActivityNet Captions and ActivityNet-QA.

Captions: `val_1.json` of captions.zip (cs.stanford.edu/people/ranjaykrishna/densevid), an object from `v_ID` to
{duration, timestamps, sentences}; confirmed by many public readers of it. Target: all sentences of a video in the
file's order, one after the other. The paper says neither which of the two validation files it took nor how it joined
the sentences.

QA: `test_q.json` ({video_name, question, question_id}; the name lacks the `v_`) and `test_a.json` ({question_id,
answer, type}) of github.com/MILVLG/activitynet-qa, both seen. The paper does not name the split; test is the one that
others report.

The videos are YouTube's, and ActivityNet publishes no one layout for them: `v_ID.mp4` (or .mkv, .webm) is looked for
in the folders of its own archives and in a plain `videos`.
"""

from __future__ import annotations

from collections.abc import Iterator

from v2l.evaluation.datasets.annotations import BenchmarkQuestion, Folder, Row, Unit, ask

VIDEOS = ("videos", "v1-2/val", "v1-2/test", "v1-3/train_val", "v1-3/test", "all_test", "")


def read_captions(folder: Folder) -> Iterator[Unit]:
    """One unit a video of the first validation file."""
    for key, row in folder.objects("val_1.json", "captions/val_1.json"):
        video = Row({"video": key}, row.where).video("video")
        question = BenchmarkQuestion(
            key, "activitynet-captions", "Describe what is happening in this video.", " ".join(row.texts("sentences"))
        )
        yield Unit(key, (video,), (question,))


def read_qa(folder: Folder) -> Iterator[Unit]:
    """One unit a test question."""
    answers = {
        row.id("question_id"): row.text("answer") for row in folder.entries("test_a.json", "dataset/test_a.json")
    }
    for row in folder.entries("test_q.json", "dataset/test_q.json"):
        key = row.id("question_id")
        if key not in answers:
            raise row.wrong(f"asks {key}, which test_a.json does not answer")
        question = BenchmarkQuestion(key, "activitynet-qa", ask(row.text("question")), answers[key])
        yield Unit(key, (f"v_{row.video('video_name')}",), (question,))
