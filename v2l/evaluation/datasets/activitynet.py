"""ActivityNet Captions and ActivityNet-QA.

Captions: `val_1.json` of captions.zip (cs.stanford.edu/people/ranjaykrishna/densevid), an object from `v_ID` to
{duration, timestamps, sentences}, confirmed by many public readers. Target: all sentences of a video, joined in the
file's order. The paper states neither which of the two validation files it used nor how it joined the sentences.

QA: `test_q.json` ({video_name, question, question_id}; the name lacks the `v_`) and `test_a.json` ({question_id,
answer, type}) of github.com/MILVLG/activitynet-qa, both verified. The paper does not name the split; others report on
test.

The videos are on YouTube, and ActivityNet publishes no standard layout for them. `v_ID.mp4` (or .mkv, .webm) is
searched in the folders of ActivityNet's archives and in `videos`.
"""

from __future__ import annotations

from collections.abc import Iterator

from v2l.evaluation.datasets.annotations import BenchmarkQuestion, Folder, Row, Unit, ask

VIDEOS = ("videos", "v1-2/val", "v1-2/test", "v1-3/train_val", "v1-3/test", "all_test", "")


def read_captions(folder: Folder) -> Iterator[Unit]:
    """Yield one unit per video of the first validation file."""
    for key, row in folder.objects("val_1.json", "captions/val_1.json"):
        video = Row({"video": key}, row.where).video("video")
        question = BenchmarkQuestion(
            key, "activitynet-captions", "Describe what is happening in this video.", " ".join(row.texts("sentences"))
        )
        yield Unit(key, (video,), (question,))


def read_qa(folder: Folder) -> Iterator[Unit]:
    """Yield one unit per test question."""
    answers = {
        row.id("question_id"): row.text("answer") for row in folder.entries("test_a.json", "dataset/test_a.json")
    }
    for row in folder.entries("test_q.json", "dataset/test_q.json"):
        key = row.id("question_id")
        if key not in answers:
            raise row.wrong(f"asks {key}, which test_a.json does not answer")
        question = BenchmarkQuestion(key, "activitynet-qa", ask(row.text("question")), answers[key])
        yield Unit(key, (f"v_{row.video('video_name')}",), (question,))
