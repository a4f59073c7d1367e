"""Manifest rows that are accepted, and the line number in the error for those that are not."""

import json

import pytest

from v2l.errors import V2LError
from v2l.io.manifest import Example, manifest_hash, read_manifest

ROW = {"id": "a", "video_path": "clips/a.mp4", "prompt": "What is it?", "target_text": "a cat"}


def write_manifest(tmp_path, *rows):
    path = tmp_path / "m.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_row_and_its_aliases(tmp_path):
    path = write_manifest(
        tmp_path,
        {**ROW, "task_type": "caption", "clip_start_sec": 2, "clip_end_sec": 4.5, "dataset": "x", "split": "val"},
        "",
        {"id": "b", "video_path": "/b.mp4", "question": "Who?", "answer": "she", "metadata": {"kind": "who", "n": 1}},
    )
    folder = tmp_path
    assert read_manifest(path) == [
        Example("a", folder / "clips/a.mp4", "caption", "caption", "What is it?", "a cat", 2.0, 4.5),
        Example("b", folder / "/b.mp4", "qa", "who", "Who?", "she", None, None),
    ]
    assert read_manifest(path, root="/videos")[0].video.as_posix() == "/videos/clips/a.mp4"
    assert read_manifest(path)[0].clip == (folder / "clips/a.mp4", 2.0, 4.5)


def test_the_hash_is_of_the_rows_wherever_their_folder_is(tmp_path):
    rows = [ROW, {**ROW, "id": "b", "video_path": "clips/b.mp4"}]
    here = manifest_hash(read_manifest(write_manifest(tmp_path, *rows)))
    assert manifest_hash(read_manifest(tmp_path / "m.jsonl", root="/elsewhere")) == here
    others = [
        rows[:1],
        rows[::-1],
        [rows[0], {**rows[1], "target_text": "a dog"}],
        [rows[0], {**rows[1], "video_path": "other/b.mp4"}],
        [rows[0], {**rows[1], "clip_start_sec": 1}],
    ]
    hashes = {manifest_hash(read_manifest(write_manifest(tmp_path, *each))) for each in others}
    assert len(hashes | {here}) == 6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: "),
        ("[1]", "line 2: it is not a JSON object"),
        ("[" * 100_000, "line 2: "),
        ({**ROW, "id": "a"}, "line 2: the id a is repeated"),
        ({**ROW, "id": 3}, "its id is not a non-blank string"),
        ({**ROW, "id": "b", "video_path": None}, "it has no video_path"),
        ({**ROW, "id": "b", "prompt": " "}, "its prompt is not a non-blank string"),
        ({"id": "b", "video_path": "b.mp4", "prompt": "Who?"}, "it has no target_text or answer"),
        ({**ROW, "id": "b", "clip_start_sec": -1}, "its clip_start_sec is -1"),
        ({**ROW, "id": "b", "clip_start_sec": True}, "its clip_start_sec is True"),
        ({**ROW, "id": "b", "clip_start_sec": 5, "clip_end_sec": 5}, "its clip ends at 5 s"),
        ({**ROW, "id": "b", "metadata": [1]}, "its metadata is not an object"),
        ({**ROW, "id": "b", "prompt": "x" * 1_000_001}, "it is too long"),
    ],
)
def test_an_invalid_row_is_reported_with_its_line(tmp_path, row, message):
    with pytest.raises(V2LError, match=message) as caught:
        read_manifest(write_manifest(tmp_path, ROW, row))
    assert "m.jsonl, line 2" in str(caught.value)
    assert str(caught.value).isprintable()


def test_files_that_are_not_manifests(tmp_path):
    with pytest.raises(V2LError, match="cannot read"):
        read_manifest(tmp_path / "missing.jsonl")
    with pytest.raises(V2LError, match="has no examples"):
        read_manifest(write_manifest(tmp_path, "", " "))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(V2LError, match="not UTF-8"):
        read_manifest(tmp_path / "binary.jsonl")
