"""The embedded model from nothing: its stages go on where they were interrupted, and a manifest of several."""

import json

import pytest

import v2l
from v2l.errors import V2LError
from v2l.io.manifest import read_manifest
from v2l.tiny.recipe.series import DONE, run, stages
from v2l.tiny.world.dataset import write_dataset
from v2l.tiny.world.mixture import mix

SHARE = 0.002


def told(folder):
    """What the series says of its stages' runs."""
    return [json.loads(line) for line in (folder / DONE).read_text().splitlines()][1:]


def begun(folder, left):
    """A series of which all stages are done but one."""
    commands = {stage.name: stage.command for stage in stages(SHARE)}
    assert left in commands and len(commands) == len(list(stages(SHARE)))
    done = [{"stage": name, "minutes": 1.5, "done": True} for name in commands if name != left]
    folder.mkdir()
    lines = [{"v2l": 1, "stages": commands}, *done]
    (folder / DONE).write_text("".join(json.dumps(each) + "\n" for each in lines))
    return len(done)


def test_a_series_goes_on_with_what_is_not_done(tmp_path, capsys):
    folder = tmp_path / "series"
    done = begun(folder, "clips, two")
    run(folder, SHARE)
    assert len(told(folder)) == done + 1
    last = told(folder)[-1]
    assert (last["stage"], last["done"]) == ("clips, two", True)
    assert sorted(path.name for path in folder.iterdir()) == [DONE, "train-two", "train-two.jsonl"]
    assert len({example.video for example in read_manifest(folder / "train-two.jsonl")}) == 5
    first = capsys.readouterr().out
    assert "clips, two: python -m v2l.tiny.world.dataset . train 5 two" in first
    run(folder, SHARE)
    assert len(told(folder)) == done + 1
    assert capsys.readouterr().out == first[first.index("\nin all") :]
    with pytest.raises(V2LError, match="other settings"):
        run(folder, 2 * SHARE)


def test_a_stage_that_fails_ends_the_series_and_is_tried_again(tmp_path, capfd):
    folder = tmp_path / "series"
    done = begun(folder, "clips, two")
    (folder / "train-two").write_text("in the way")
    with pytest.raises(V2LError, match="clips, two ended with code 1"):
        run(folder, SHARE)
    assert told(folder)[-1]["done"] is False
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and "train-two" in said[0]
    (folder / "train-two").unlink()
    run(folder, SHARE)
    assert [each["done"] for each in told(folder)[done:]] == [False, True]


def test_a_mixture_has_captions_as_often_as_they_shall_count(tmp_path):
    ours = [write_dataset(tmp_path, "train", 3), write_dataset(tmp_path, "validation", 2)]
    mix(tmp_path / "mixed.jsonl", ours, captions=3)
    apart = [example for path in ours for example in read_manifest(path)]
    mixed = read_manifest(tmp_path / "mixed.jsonl")
    assert mixed[: len(apart)] == apart
    captions = [example for example in apart if example.task == "caption"]
    assert len(captions) == 5 and len(mixed) == len(apart) + 2 * len(captions)
    again = mixed[len(apart) :]
    assert [(each.prompt, each.target, each.clip) for each in again] == [
        (each.prompt, each.target, each.clip) for each in captions + captions
    ]
    assert again[5].id == f"again-2-{captions[0].id}"


def test_a_mixture_has_first_and_last_words_and_motions_as_often_as_they_shall_count(tmp_path):
    ours = write_dataset(tmp_path, "validation", 8)
    mix(tmp_path / "mixed.jsonl", [ours], captions=2, ends=4, motions=3)
    apart, mixed = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (ours, tmp_path / "mixed.jsonl")
    )
    often = {"caption": 2, "word first": 4, "word last": 4, "motion": 3}
    assert often.keys() <= {row["metadata"]["kind"] for row in apart}
    for row in apart:
        same = [each for each in mixed if {**each, "id": row["id"]} == row]
        assert len(same) == often.get(row["metadata"]["kind"], 1)
    assert len({row["id"] for row in mixed}) == len(mixed)


def test_a_mixture_stays_beside_its_clips(tmp_path):
    (tmp_path / "other").mkdir()
    manifest = write_dataset(tmp_path, "train", 1)
    with pytest.raises(V2LError, match="not in one folder"):
        mix(tmp_path / "other" / "mixed.jsonl", [manifest])
    with pytest.raises(V2LError, match=r"missing\.jsonl"):
        mix(tmp_path / "mixed.jsonl", [manifest, tmp_path / "missing.jsonl"])
    assert not (tmp_path / "mixed.jsonl").exists()


@pytest.mark.slow
def test_the_whole_series_makes_a_model(tmp_path):
    """A five-hundredth of it: it learns nothing, but every stage takes what the one before left."""
    run(tmp_path, SHARE)
    assert all(each["done"] for each in told(tmp_path))
    vlm = v2l.load_vlm(tmp_path / "model", device="cpu")
    hypernetwork = v2l.load_hypernetwork(tmp_path / "model", device="cpu")
    adapter = v2l.encode(tmp_path / "test" / "00000.mp4", vlm, hypernetwork)
    assert isinstance(v2l.ask(adapter, "what is on the whiteboard?", vlm), str)
    assert (tmp_path / "test.eval.jsonl").exists()
