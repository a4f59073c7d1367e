"""Training series of the embedded model: resuming, failing stages, and mixed manifests."""

import json

import pytest

import v2l
from v2l.errors import V2LError
from v2l.io.manifest import read_manifest
from v2l.tiny.recipe.series import DONE, label_free_stages, run, stages
from v2l.tiny.world.dataset import write_dataset
from v2l.tiny.world.mixture import mix

SHARE = 0.002


def records(folder):
    """Return the series' records of its stages."""
    return [json.loads(line) for line in (folder / DONE).read_text().splitlines()][1:]


def unfinished(folder, left):
    """Write the journal of a series with one unfinished stage; return the number of finished ones."""
    commands = {stage.name: stage.command for stage in stages(SHARE)}
    assert left in commands and len(commands) == len(list(stages(SHARE)))
    done = [{"stage": name, "minutes": 1.5, "done": True} for name in commands if name != left]
    folder.mkdir()
    lines = [{"v2l": 1, "stages": commands}, *done]
    (folder / DONE).write_text("".join(json.dumps(each) + "\n" for each in lines))
    return len(done)


def test_a_series_resumes_with_unfinished_stages(tmp_path, capsys):
    folder = tmp_path / "series"
    done = unfinished(folder, "clips, two")
    run(folder, SHARE)
    assert len(records(folder)) == done + 1
    last = records(folder)[-1]
    assert (last["stage"], last["done"]) == ("clips, two", True)
    assert sorted(path.name for path in folder.iterdir()) == [DONE, "train-two", "train-two.jsonl"]
    assert len({example.video for example in read_manifest(folder / "train-two.jsonl")}) == 5
    first = capsys.readouterr().out
    assert "clips, two: python -m v2l.tiny.world.dataset . train 5 two" in first
    run(folder, SHARE)
    assert len(records(folder)) == done + 1
    assert capsys.readouterr().out == first[first.index("\nfinished in") :]
    with pytest.raises(V2LError, match="other settings"):
        run(folder, 2 * SHARE)


def test_a_series_without_labels_is_another_one(tmp_path, capsys):
    """Its stages take the answers of the frozen model, and end with the use of a hypernetwork instead of a model."""
    planned = list(label_free_stages(SHARE))
    commands = [stage.command for stage in planned]
    assert not any(name in command for command in commands for name in ("reading_stage", "language_stage", "vision"))
    assert [command.split()[:2] for command in commands if "train.jsonl" in command and "mixture" not in command] == [
        ["v2l.tiny.recipe.layer_stage", "train.jsonl"],
        ["v2l", "train"],
    ]
    taught = [command for command in commands if command.startswith("v2l train")]
    assert len(taught) == 1 and " --teacher " in taught[0]
    folder = tmp_path / "series"
    folder.mkdir()
    header = {"v2l": 1, "stages": {stage.name: stage.command for stage in planned}}
    done = [{"stage": stage.name, "minutes": 1.5, "done": True} for stage in planned]
    (folder / DONE).write_text("".join(json.dumps(each) + "\n" for each in [header, *done]))
    run(folder, SHARE, label_free=True)
    trained = folder / "hypernetwork" / "hypernetwork.safetensors"
    assert capsys.readouterr().out.strip().endswith(f"use the result with --hypernetwork {trained}")
    with pytest.raises(V2LError, match="other settings"):
        run(folder, SHARE)


def test_a_failed_stage_ends_the_series_and_is_retried(tmp_path, capfd):
    folder = tmp_path / "series"
    done = unfinished(folder, "clips, two")
    (folder / "train-two").write_text("in the way")
    with pytest.raises(V2LError, match="'clips, two' failed with exit code 1"):
        run(folder, SHARE)
    assert records(folder)[-1]["done"] is False
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and "train-two" in errors[0]
    (folder / "train-two").unlink()
    run(folder, SHARE)
    assert [each["done"] for each in records(folder)[done:]] == [False, True]


def test_a_mixture_repeats_captions(tmp_path):
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


def test_a_mixture_repeats_the_kinds_of_its_options(tmp_path):
    ours = write_dataset(tmp_path, "validation", 8)
    mix(tmp_path / "mixed.jsonl", [ours], captions=2, ends=4, motions=3, words=5, neighbours=6)
    apart, mixed = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (ours, tmp_path / "mixed.jsonl")
    )
    often = {"caption": 2, "word first": 4, "word last": 4, "motion": 3, "words": 5, "word after": 6, "word before": 6}
    assert often.keys() <= {row["metadata"]["kind"] for row in apart}
    for row in apart:
        same = [each for each in mixed if {**each, "id": row["id"]} == row]
        assert len(same) == often.get(row["metadata"]["kind"], 1)
    assert len({row["id"] for row in mixed}) == len(mixed)


def test_a_mixture_must_be_in_the_folder_of_its_manifests(tmp_path):
    (tmp_path / "other").mkdir()
    manifest = write_dataset(tmp_path, "train", 1)
    with pytest.raises(V2LError, match="in different folders"):
        mix(tmp_path / "other" / "mixed.jsonl", [manifest])
    with pytest.raises(V2LError, match=r"missing\.jsonl"):
        mix(tmp_path / "mixed.jsonl", [manifest, tmp_path / "missing.jsonl"])
    assert not (tmp_path / "mixed.jsonl").exists()


@pytest.mark.slow
def test_the_whole_series_makes_a_model(tmp_path):
    """With 1/500 of the steps it learns nothing, but every stage reads the output of the previous one."""
    run(tmp_path, SHARE)
    assert all(each["done"] for each in records(tmp_path))
    vlm = v2l.load_vlm(tmp_path / "model", device="cpu")
    hypernetwork = v2l.load_hypernetwork(tmp_path / "model", device="cpu")
    adapter = v2l.encode(tmp_path / "test" / "00000.mp4", vlm, hypernetwork)
    assert isinstance(v2l.ask(adapter, "what is on the whiteboard?", vlm), str)
    assert (tmp_path / "test.eval.jsonl").exists()
