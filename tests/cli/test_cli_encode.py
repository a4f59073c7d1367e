"""`v2l encode`: its inputs, the paths of the adapters, and which adapters are encoded again."""

import dataclasses
import os
import shutil

import pytest
from terminal import SUFFIX, Running, counts, fill, run, tree
from typer.testing import CliRunner

import v2l
from v2l.adapters.description import BaseModel
from v2l.cli.app import app
from v2l.models.presets import find_model
from v2l.video.sampling import Reading

LONG_AGO = 1_700_000_000
ADAPTER_KEYS = {"v2l", "command", "video", "adapter", "status", "model", "model_chosen_by", "demonstration"}
MADE_KEYS = ADAPTER_KEYS | {"bytes", "frames", "rank", "seconds"}


def dated(path, seconds):
    os.utime(path, (LONG_AGO + seconds, LONG_AGO + seconds))


def changed(adapter, **parts):
    return dataclasses.replace(adapter, description=dataclasses.replace(adapter.description, **parts))


def with_box(video, content):
    """Return the video with other bytes, the same size and the same frames."""
    return video.read_bytes() + b"\0\0\0\x10free" + content


# Skip and stale -----------------------------------------------------------------------------------------------------

STALE = {  # video -> what its line must say
    "changed": "content changed",
    "damaged": "not a sound v2l adapter",
    "rehypered": "another hypernetwork",
    "tiny": "made for tiny-5 (041f52e5871f), the demonstration model",
}
CURRENT = ["hidden", "quiet", "touched"]
KEPT = {
    "foreign": ("someone/else", "--model replaces it"),
    "segmented": ("composed of 2 segments", "--overwrite replaces it"),
    "settings": ("frames was 2 and is 8", "--overwrite replaces it"),
}
LIBRARY = sorted([*STALE, *CURRENT, *KEPT, "new"])


@pytest.fixture(scope="module")
def made(videos, vlm, hypernetwork):
    """The adapter of the first clip, by the library."""
    return v2l.encode(videos[0], vlm, hypernetwork)


@pytest.fixture(scope="module")
def library(tmp_path_factory, videos, vlm, hypernetwork, made):
    """A folder with a video for every reason to encode it again or not."""
    folder = fill(tmp_path_factory.mktemp("library"), **dict.fromkeys(LIBRARY, videos[0]))
    existing = dict.fromkeys(LIBRARY, made)
    del existing["new"]
    shutil.copy(videos[1], folder / "changed.mp4")
    existing["changed"] = v2l.encode(folder / "changed.mp4", vlm, hypernetwork)
    shutil.copy(videos[0], folder / "changed.mp4")
    existing["settings"] = v2l.encode(videos[0], vlm, hypernetwork, frames=2)
    existing["foreign"] = changed(made, base_model=BaseModel("someone/else", None, "f" * 64))
    existing["tiny"] = changed(made, base_model=BaseModel("tiny-5", None, find_model("tiny").fingerprint))
    maker = dataclasses.replace(made.description.hypernetwork, sha256="e" * 64)
    existing["rehypered"] = changed(made, hypernetwork=maker)
    existing["segmented"] = v2l.compose([made, made])
    (folder / "hidden.mp4").write_bytes(with_box(videos[0], b"before!!"))
    existing["hidden"] = v2l.encode(folder / "hidden.mp4", vlm, hypernetwork)
    (folder / "hidden.mp4").write_bytes(with_box(videos[0], b"after!!!"))
    for name, adapter in existing.items():
        adapter.save(folder / f"{name}{SUFFIX}")
        dated(folder / f"{name}{SUFFIX}", 100)
    damaged = folder / f"damaged{SUFFIX}"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    for name in LIBRARY:
        dated(folder / f"{name}.mp4", 200 if name == "touched" else 0)
    for name in ("hidden", "quiet"):
        os.utime(folder / f"{name}{SUFFIX}")  # not before the video's last change, whatever that was
    return folder


@pytest.fixture(scope="module")
def planned(library, model_folder):
    """A dry run of all of it, and whether it left every file as it was."""

    def files():
        return {name: (library / name).stat().st_mtime_ns for name in tree(library)}

    before = files()
    done = run("encode", ".", "--dry-run", "--json", cwd=library, model=model_folder)
    return done, files() == before


@pytest.fixture(scope="module")
def first_round(library, model_folder, planned):
    kept = [library / f"{name}{SUFFIX}" for name in KEPT]
    before, dates = [path.read_bytes() for path in kept], times(library)
    done = run("encode", ".", "--json", cwd=library, model=model_folder)
    later = {name: time - dates[name] for name, time in times(library).items()}
    return done, later, [path.read_bytes() for path in kept] == before


def times(library):
    there = {name: library / f"{name}{SUFFIX}" for name in LIBRARY}
    return {name: path.stat().st_mtime for name, path in there.items() if path.exists()} | {"new": 0}


def test_a_folder_is_done_in_the_order_of_its_names(first_round):
    done, _, _ = first_round
    assert done.code == 0
    assert [record["video"] for record in done.records] == [f"{name}.mp4" for name in LIBRARY]
    assert [record["adapter"] for record in done.records] == [f"{name}{SUFFIX}" for name in LIBRARY]


def test_every_record_has_the_same_keys(first_round, model_folder):
    for record in first_round[0].records:
        made = record["status"] == "encoded"
        assert record.keys() - {"note"} == (MADE_KEYS if made else ADAPTER_KEYS)
        assert (record["v2l"], record["command"], record["model"]) == (1, "encode", model_folder.name)
        assert record["model_chosen_by"] == "environment"
        if made:
            assert (record["frames"], record["rank"]) == (4, 8)
            assert record["seconds"] > 0


@pytest.mark.parametrize("name", STALE)
def test_a_stale_adapter_is_made_again_and_the_reason_said(first_round, library, made, name):
    done, _, _ = first_round
    (record,) = (record for record in done.records if record["video"] == f"{name}.mp4")
    assert record["status"] == "encoded"
    assert STALE[name] in record["note"]
    (line,) = (line for line in done.notes if line.startswith(f"{name}{SUFFIX}: "))
    assert "encoded again" in line
    assert STALE[name] in line
    again = v2l.Adapter.load(library / f"{name}{SUFFIX}")
    assert again.a.equal(made.a)
    assert again.b.equal(made.b)


def test_a_missing_adapter_is_made_without_a_word(first_round):
    done, _, _ = first_round
    assert [record["status"] for record in done.records if record["video"] == "new.mp4"] == ["encoded"]
    assert not any(line.startswith("new") for line in done.notes)


def test_a_current_adapter_is_left_alone_and_touched_where_its_video_is_newer(first_round):
    done, later, _ = first_round
    states = {record["video"].removesuffix(".mp4"): record["status"] for record in done.records}
    assert [name for name, state in states.items() if state == "current"] == CURRENT
    assert later["quiet"] == later["hidden"] == 0
    assert later["touched"] > 1000


@pytest.mark.parametrize("name", KEPT)
def test_an_adapter_that_encoding_would_not_make_again_is_kept_with_a_line(first_round, name):
    done, later, same = first_round
    (record,) = (record for record in done.records if record["video"] == f"{name}.mp4")
    (line,) = (line for line in done.notes if line.startswith(f"{name}{SUFFIX}: kept: "))
    assert record["status"] == "kept"
    assert all(part in record["note"] and part in line for part in KEPT[name])
    assert later[name] == 0
    assert same


def test_the_last_line_on_stderr_counts(first_round):
    assert counts(first_round[0].notes[-1]) == {"encoded": 5, "current": 3, "kept": 3}


def test_a_dry_run_says_what_the_run_will_do_and_touches_nothing(planned, first_round, made):
    done, untouched = planned
    assert (done.code, untouched) == (0, True)
    for plan, record in zip(done.records, first_round[0].records, strict=True):
        to_do = plan["status"] in ("missing", "stale")
        assert (plan["dry_run"], plan["adapter"]) == (True, record["adapter"])
        assert ("encoded" if to_do else plan["status"]) == record["status"]
        assert plan["note"] == record.get("note", "")
        assert plan["frames"] == record.get("frames", 0)
        assert plan["bytes"] == (made.a.nbytes + made.b.nbytes if to_do else 0)
        assert to_do == (plan["seconds"] > 0)
    assert [plan["adapter"] for plan in done.records if plan["status"] == "missing"] == [f"new{SUFFIX}"]
    assert done.notes[-1].startswith("5 to encode in about ")
    assert done.notes[-1].endswith(", 3 current, 3 kept")


def test_check_hash_looks_at_content_and_model_replaces_what_was_made_for_another(
    first_round, library, made, model_folder
):
    done = run("encode", library, "--check-hash", "--model", model_folder, model="/nowhere")
    assert done.code == 0
    assert done.lines == [str(library / f"{name}{SUFFIX}") for name in LIBRARY]
    assert counts(done.notes[-1]) == {"encoded": 2, "current": 7, "kept": 2}
    foreign, hidden = (line for line in done.notes[:-1] if "kept" not in line)
    assert foreign.startswith(str(library / f"foreign{SUFFIX}"))
    assert "someone/else" in foreign
    assert hidden.startswith(str(library / f"hidden{SUFFIX}"))
    assert "content changed" in hidden
    assert v2l.Adapter.load(library / f"foreign{SUFFIX}").description.base_model.id == model_folder.name

    for name in LIBRARY:
        dated(library / f"{name}{SUFFIX}", 300)
    forced = run("encode", library, "--overwrite", "--quiet", model=model_folder)
    assert (forced.code, forced.err, forced.out) == (0, "", done.out)
    for name in LIBRARY:
        assert os.stat(library / f"{name}{SUFFIX}").st_mtime > LONG_AGO + 1000, name
        assert v2l.Adapter.load(library / f"{name}{SUFFIX}").b.equal(made.b), name


def test_no_file_of_anything_else_is_replaced_unasked(tmp_path, videos, model_folder):
    """Two videos of one name that two runs write to one folder, the adapter of another video, and other files."""
    for year, video in (("2023", videos[0]), ("2024", videos[1])):
        fill(tmp_path / year, clip=video)
    first = run("encode", "2023", "--output-dir", "out", cwd=tmp_path, model=model_folder)
    assert first.code == 0
    adapter = tmp_path / "out" / f"clip{SUFFIX}"
    notes = tmp_path / "2023" / f"notes{SUFFIX}"
    notes.write_text("mine")
    fill(tmp_path / "2023", notes=videos[0])
    before = adapter.read_bytes()
    for says, words in {
        "the adapter of another clip.mp4, or of an earlier version": ["2024", "--output-dir", "out"],
        "the adapter of clip.mp4;": ["2023/notes.mp4", "--model", "tiny", "-o", adapter],
        "is there and is no adapter": ["2023/notes.mp4"],
    }.items():
        if says.endswith(";"):
            shutil.copy(videos[2], tmp_path / "2023" / "notes.mp4")
        done = run("encode", *words, cwd=tmp_path, model=model_folder)
        assert done.code == 1 and says in done.err and "--overwrite replaces it" in done.err
    assert adapter.read_bytes() == before and notes.read_text() == "mine"
    assert run("encode", "2024", "--output-dir", "out", "--overwrite", cwd=tmp_path, model=model_folder).code == 0
    assert adapter.read_bytes() != before


def test_a_question_with_other_frames_replaces_no_adapter(tmp_path, videos, model_folder):
    fill(tmp_path, clip=videos[0])
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert run("encode", "clip.mp4", cwd=tmp_path, model=model_folder, env=env).code == 0
    before = (tmp_path / f"clip{SUFFIX}").read_bytes()
    words = ("ask", "clip.mp4", "what?", "--max-new-tokens", "1", "--json")
    first, again, plain = (
        run(*words, *more, cwd=tmp_path, model=model_folder, env=env)
        for more in (["--frames", "2"], ["--frames", "2"], [])
    )
    (record,), (second,), (third,) = (done.records for done in (first, again, plain))
    assert record["adapter"] == second["adapter"] and record["adapter"].startswith(str(tmp_path / "cache"))
    assert "its adapter is kept in the cache" in first.err and "encoded" not in again.err
    assert third["adapter"] == f"clip{SUFFIX}"
    assert (tmp_path / f"clip{SUFFIX}").read_bytes() == before


# Names and places ---------------------------------------------------------------------------------------------------

ODD = ["-dash", 'it\'s "so"', "ünï 漢字 %d", "new\nline", "tab\there; $(rm -rf x)"]


@pytest.fixture(scope="module")
def places(tmp_path_factory, videos, model_folder):
    """Two commands at once: a NUL-separated list, a tree and a range to a folder; and a list of lines."""
    here = fill(tmp_path_factory.mktemp("names"), **dict.fromkeys(ODD, videos[0]))
    fill(here / "tree" / "sub" / "deep", b=videos[1])
    fill(here / "tree" / ".hidden", c=videos[1])
    fill(here / "tree", a=videos[1], d=videos[1])
    (here / "tree" / "d.mp4").rename(here / "tree" / "d.MOV")
    (here / "tree" / "notes.txt").write_text("no video")
    (here / "tree" / "._a.mp4").write_bytes(b"what a Mac leaves behind")
    before = tree(here)
    options = ["--files-from", "-", "--recursive", "--output-dir", "out/far", "--start", "1", "--end", "0:0:2.5"]
    many = Running("encode", *options, "--", "-dash.mp4", "tree", cwd=here, model=model_folder)
    there = fill(tmp_path_factory.mktemp("lines"), **{"a b": videos[0], "c'd": videos[1]})
    (there / "c'd.mp4").rename(there / "c'd")
    (there / "list.txt").write_bytes(b"a b.mp4\r\n\nc'd\n")
    few = Running("encode", "--files-from", "list.txt", "--frames", "2", cwd=there, model=model_folder)
    listed = "\0".join(f"{name}.mp4" for name in ODD[1:]).encode() + b"\0"
    return here, before, many.end(listed), there, few.end()


def test_lists_trees_ranges_and_odd_names_lead_to_a_folder_that_is_made(places):
    here, before, done, _, _ = places
    assert done.code == 0
    names = ["-dash", "tree/a", "tree/d", "tree/sub/deep/b", *ODD[1:]]
    assert done.out == "".join(f"out/far/{name}.1-2.5{SUFFIX}\n" for name in names)
    assert counts(done.notes[-1]) == {"encoded": len(names)}
    assert tree(here) == sorted([*before, *(f"out/far/{name}.1-2.5{SUFFIX}" for name in names)])
    (segment,) = v2l.Adapter.load(here / f"out/far/tree/sub/deep/b.1-2.5{SUFFIX}").description.segments
    assert (segment.start, segment.end) == (1.0, 2.5)
    assert all(1 <= time < 2.5 for time in segment.timestamps)


def test_a_list_of_lines_and_a_video_outside_of_any_suffix(places):
    _, _, _, there, done = places
    assert (done.code, done.lines) == (0, [f"a b{SUFFIX}", f"c'd{SUFFIX}"])
    only = v2l.Adapter.load(there / f"a b{SUFFIX}").description.segments[0]
    assert only.reading == Reading(frames=2, fps=1.0, resolution=32)


def test_adapters_and_other_sidecars_beside_videos_are_passed_over(tmp_path, videos, made, model_folder):
    """As `v2l encode FOLDER/*` names them on its second run."""
    folder = fill(tmp_path, talk=videos[0])
    made.save(folder / f"talk{SUFFIX}")
    for name in ("talk.jpg", "talk.en.vtt", "notes.txt", f"other{SUFFIX}", "talk.peft/x", "more/other.srt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "more" / "odd").write_bytes(b"no video")

    def encode(*names):
        return CliRunner().invoke(
            app, ["encode", *(str(folder / name) for name in names), "--model", str(model_folder)]
        )

    done = encode(*sorted({name.partition("/")[0] for name in tree(folder)} - {"more"}))
    assert (done.exit_code, done.stdout) == (0, f"{folder}/talk{SUFFIX}\n"), done
    assert done.stderr == "1 current, 6 passed over\n"
    done = encode("talk.mp4", "more/odd", "missing.txt")
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (1, "1 current, 2 failed")
    done = encode(f"talk{SUFFIX}")
    error, summary = done.stderr.splitlines()
    assert error == f"v2l: error: {folder}/talk{SUFFIX} is an adapter; name the video to encode"
    assert (done.exit_code, summary) == (1, "1 failed")


# Segments -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segments(tmp_path_factory, videos, model_folder):
    here = fill(tmp_path_factory.mktemp("segments"), talk=videos[1])
    there = fill(tmp_path_factory.mktemp("range"), talk=videos[1])
    words = ["talk.mp4", "--segment-seconds", "2", "--start", "1", "--split", "-o", f"my{SUFFIX}"]
    even = Running("encode", "talk.mp4", "--segments", "3", "--split", "--json", cwd=here, model=model_folder)
    within = Running("encode", *words, cwd=there, model=model_folder)
    return here, even.end(), there, within.end()


PARTS = [f"talk.{index:03d}{SUFFIX}" for index in range(3)]


def test_segments_are_adapters_of_their_own_with_the_times_of_the_whole(segments):
    here, done, _, _ = segments
    assert done.code == 0
    assert [record["adapter"] for record in done.records] == PARTS
    assert [record["status"] for record in done.records] == ["encoded"] * 3
    assert tree(here) == sorted(["talk.mp4", *PARTS])
    spans = []
    for part in PARTS:
        (segment,) = v2l.Adapter.load(here / part).description.segments
        spans.append((segment.start, segment.end))
        assert all(segment.start <= time < segment.end for time in segment.timestamps)
    assert spans == [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)]


def test_only_a_missing_segment_is_made_again(segments, model_folder):
    here, *_ = segments
    before = (here / PARTS[1]).read_bytes()
    (here / PARTS[1]).unlink()
    done = run("encode", "talk.mp4", "--segments", "3", "--split", cwd=here, model=model_folder)
    assert (done.code, done.lines) == (0, PARTS)
    assert counts(done.notes[-1]) == {"encoded": 1, "current": 2}
    assert (here / PARTS[1]).read_bytes() == before


def test_segments_of_so_many_seconds_within_a_range_under_a_name_of_ones_own(segments):
    _, _, here, done = segments
    parts = [f"my.{index:03d}{SUFFIX}" for index in range(3)]
    assert (done.code, done.lines) == (0, parts)
    made = [v2l.Adapter.load(here / part).description.segments[0] for part in parts]
    assert [(segment.start, segment.end) for segment in made] == [(1.0, 3.0), (3.0, 5.0), (5.0, 6.0)]
    assert tree(here) == sorted(["talk.mp4", *parts])
