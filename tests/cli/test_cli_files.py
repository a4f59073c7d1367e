"""`v2l compose`, `v2l info` and `v2l import`: commands on files, without a video or OpenCV."""

import json
import stat

import pytest
import small
from places import DATA
from terminal import LIBGL_MISSING, SUFFIX, Terminal, plain, run, run_each, tree
from typer.testing import CliRunner

import v2l
from v2l.cli.app import app
from v2l.cli.console import TINY
from v2l.cli.describe import describe
from v2l.models.presets import EMBEDDED, find_model, is_tiny

PARTS = [f"part.{index}{SUFFIX}" for index in range(3)]
SPANS = [(0.0, 2.0), (2.0, 4.5), (5.5, 8.0)]
FOREIGN = f"foreign{SUFFIX}"


@pytest.fixture(scope="module")
def no_opencv(tmp_path_factory):
    folder = tmp_path_factory.mktemp("no-opencv")
    (folder / "cv2").mkdir()
    (folder / "cv2" / "__init__.py").write_text(LIBGL_MISSING)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def desk(tmp_path_factory, videos, vlm, hypernetwork):
    """Three segments of one video, the last after a gap of a second, and an adapter for another model."""
    folder = tmp_path_factory.mktemp("desk")
    for name, (start, end) in zip(PARTS, SPANS, strict=True):
        v2l.encode(videos[2], vlm, hypernetwork, start=start, end=end).save(folder / name)
    other = small.write_model(tmp_path_factory.mktemp("models") / "other", seed=5)
    small.write_hypernetwork(other, seed=5)
    v2l.encode(videos[0], v2l.load_vlm(other), v2l.load_hypernetwork(other)).save(folder / FOREIGN)
    return folder


def loaded(desk, *names):
    return [v2l.Adapter.load(desk / name) for name in names]


# compose ------------------------------------------------------------------------------------------------------------


def test_compose_keeps_the_order_and_warns_of_gaps_and_overlaps(desk, no_opencv):
    done = run("compose", *PARTS, "-o", f"whole{SUFFIX}", "--json", cwd=desk, env=no_opencv)
    (gap,) = done.notes
    assert "gap from 0:04.5 to 0:05.5" in gap
    (record,) = done.records
    assert record == {
        "v2l": 1,
        "command": "compose",
        "adapter": f"whole{SUFFIX}",
        "segments": 3,
        "rank": 3 * 4 + 4,
        "relative_error": 0.0,
        "bytes": (desk / f"whole{SUFFIX}").stat().st_size,
        "demonstration": False,
    }
    (whole,) = loaded(desk, f"whole{SUFFIX}")
    assert [(segment.start, segment.end) for segment in whole.description.segments] == SPANS
    assert whole.sha256() == v2l.compose(loaded(desk, *PARTS)).sha256()
    assert done.code == 0

    back = run("compose", PARTS[1], PARTS[1], PARTS[0], "-o", f"back{SUFFIX}", cwd=desk)
    assert (back.code, back.out) == (0, f"back{SUFFIX}\n")
    overlap, backwards = back.notes
    assert "overlap from 0:02 to 0:04.5" in overlap
    assert "follows" in backwards
    starts = [segment.start for segment in loaded(desk, f"back{SUFFIX}")[0].description.segments]
    assert starts == [2.0, 2.0, 0.0]


def test_compose_reduces_to_a_rank_and_says_what_that_cost(desk):
    done = run("compose", *PARTS[:2], "-o", f"small{SUFFIX}", "--rank", "3", "--json", cwd=desk)
    assert done.code == 0
    (small_one,) = loaded(desk, f"small{SUFFIX}")
    assert small_one.rank == 3 + 4
    error = small_one.description.blocks[0].relative_error
    assert done.records[0]["relative_error"] == error
    assert done.err == f"reduced to rank 3, relative error {error:.2%}\n"
    too_many = run("compose", *PARTS[:2], "-o", f"never{SUFFIX}", "--rank", "8", cwd=desk)
    assert (too_many.code, too_many.out) == (1, "")
    assert "7" in too_many.err
    assert not (desk / f"never{SUFFIX}").exists()


def test_compose_replaces_another_file_only_when_told_to(desk):
    words = ["compose", *PARTS[:2], "-o", f"taken{SUFFIX}"]
    (desk / f"taken{SUFFIX}").write_bytes((desk / PARTS[2]).read_bytes())
    refused = run(*words, cwd=desk)
    assert (refused.code, refused.out) == (1, "")
    (line,) = refused.notes
    assert "--overwrite" in line
    assert (desk / f"taken{SUFFIX}").read_bytes() == (desk / PARTS[2]).read_bytes()
    done = run(*words, "--overwrite", "--quiet", cwd=desk)
    assert (done.code, done.out, done.err) == (0, f"taken{SUFFIX}\n", "")
    assert len(loaded(desk, f"taken{SUFFIX}")[0].description.segments) == 2
    assert run(*words, cwd=desk).code == 0  # the same bytes are no loss


@pytest.mark.parametrize(
    ("given", "said"),
    [(f"nosuch{SUFFIX}", "nosuch"), (FOREIGN, "different models"), (f"damaged{SUFFIX}", "damaged")],
)
def test_what_cannot_be_composed_is_one_line_and_writes_nothing(desk, given, said):
    (desk / f"damaged{SUFFIX}").write_bytes((desk / PARTS[0]).read_bytes()[:-1])
    before = tree(desk)
    done = run("compose", PARTS[0], given, "-o", f"out{SUFFIX}", cwd=desk)
    assert (done.code, done.out) == (1, "")
    (line,) = done.notes
    assert line.startswith("v2l: error: ")
    assert said in line
    assert tree(desk) == before


# info ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composed(desk):
    adapter = v2l.compose(loaded(desk, *PARTS[:2]))
    adapter.save(desk / f"composed{SUFFIX}")
    return adapter


def facts(adapter):
    """Check that the output of `info` holds the facts of an adapter."""
    made = adapter.description
    yield from (made.base_model.id, made.base_model.fingerprint[:12], made.hypernetwork.id, "4 + 4 + 4 learned bias")
    yield from ("clip 2.mp4", "0:00 to 0:02", "0:02 to 0:04.5", "64x48", "bfloat16", "3 layers")
    yield from (made.segments[0].source.sha256, adapter.sha256(), f"{adapter.rank} = ")


def test_info_in_a_pipe_is_plain_lines_and_a_bad_file_does_not_hide_the_others(desk, composed, no_opencv, model_folder):
    hypernetwork = model_folder / "hypernetwork.safetensors"
    files = [f"composed{SUFFIX}", f"nosuch{SUFFIX}", ".", hypernetwork]
    done = run("info", *files, cwd=desk, env=no_opencv)
    assert done.code == 1
    assert all(fact in done.out for fact in facts(composed))
    missing, folder = done.notes
    assert f"nosuch{SUFFIX}" in missing
    assert folder.startswith("v2l: error: ")
    assert done.out.isascii()
    assert str(hypernetwork) in done.out
    assert "up to 1 windows of 4 frames" in done.out


def test_info_says_what_a_path_is_and_what_it_describes(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for path, kind in (
        (tmp_path, "a folder without a hypernetwork"),
        (tmp_path / "notes.txt", "a file of another kind"),
    ):
        with pytest.raises(v2l.V2LError, match=f"{kind}.* info describes adapters .* and tiny, smolvlm2-500m"):
            describe(path)


def test_info_as_json_is_an_object_a_file(desk, composed, model_folder):
    done = run("info", f"composed{SUFFIX}", model_folder / "hypernetwork.safetensors", "--json", cwd=desk)
    assert (done.code, done.err) == (0, "")
    adapter, hypernetwork = done.records
    assert (adapter["v2l"], adapter["command"], adapter["kind"]) == (1, "info", "adapter")
    assert adapter["file"] == f"composed{SUFFIX}"
    assert adapter["sha256"] == composed.sha256()
    assert (adapter["rank"], adapter["layers"], adapter["dtype"], adapter["bias_rank"]) == (12, 3, "bfloat16", 4)
    assert [(segment["start"], segment["end"]) for segment in adapter["segments"]] == SPANS[:2]
    assert adapter["bytes"] == (desk / f"composed{SUFFIX}").stat().st_size
    assert adapter["base_model"]["id"] == model_folder.name
    assert (hypernetwork["kind"], hypernetwork["base_model"]) == ("hypernetwork", model_folder.name)


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {}], ids=str)
def test_info_at_40_columns_is_a_panel_that_loses_nothing(desk, composed, environment):
    terminal = Terminal("info", f"composed{SUFFIX}", columns=40, cwd=desk, env=environment)
    code, screen = terminal.end()
    assert code == 0
    lines = plain(screen).rstrip("\n").split("\n")
    assert {len(line) for line in lines} == {40}
    inside = [line[2:-2] for line in lines[1:-1]]
    column = next(line for line in inside if line.startswith("model ")).index(composed.description.base_model.id)
    squeezed = "".join("".join(line[column:] for line in inside).split())
    assert all("".join(fact.split()) in squeezed for fact in facts(composed)), screen
    if environment:
        assert {part[:2] for part in screen.split("\x1b[")[1:]} <= {"0m", "1m"}  # bold is no colour


def test_info_at_a_dumb_terminal_is_plain_lines(desk, composed):
    code, screen = Terminal("info", f"composed{SUFFIX}", columns=40, cwd=desk, env={"TERM": "dumb"}).end()
    assert code == 0
    assert plain(screen).isascii()
    assert "\x1b" not in screen
    assert all(fact in screen for fact in facts(composed)), screen


# import -------------------------------------------------------------------------------------------------------------


def test_import_writes_a_published_checkpoint_as_a_file_of_ones_own(tmp_path, no_opencv):
    checkpoint = DATA / "official-a" / "hypernet.pt"
    words = ["import", checkpoint, "-o", "mine.safetensors"]
    done = run(*words, "--json", cwd=tmp_path, env=no_opencv)
    assert done.code == 0
    assert tree(tmp_path) == ["mine.safetensors"]
    (record,) = done.records
    mine = v2l.load_hypernetwork(tmp_path / "mine.safetensors")
    assert record == {
        "v2l": 1,
        "command": "import",
        "hypernetwork": "mine.safetensors",
        "base_model": mine.provenance.base_model,
        "sha256": v2l.load_hypernetwork(checkpoint).provenance.sha256,
    }
    assert stat.S_IMODE((tmp_path / "mine.safetensors").stat().st_mode) & 0o077  # others may read it, as umask says
    again = run(*words, cwd=tmp_path)
    assert (again.code, again.out) == (1, "")
    assert "--overwrite" in again.err


def test_import_of_what_is_no_checkpoint_writes_nothing(tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.")
    given = ["bad.pt", "-o", "a.safetensors"], ["nosuch.pt", "-o", "a.safetensors"], ["bad.pt", "-o", "a.pt"]
    for done in run_each(*(["import", *words] for words in given), cwd=tmp_path):
        assert (done.code, done.out) in [(1, ""), (2, "")]
        (line,) = done.notes
        assert line.startswith("v2l: error: ")
    assert tree(tmp_path) == ["bad.pt"]


# Models -------------------------------------------------------------------------------------------------------------


def test_a_model_that_is_not_there_is_one_line_with_what_to_do(tmp_path, desk, videos):
    home = {"HF_HOME": str(tmp_path / "empty")}
    cases = {
        "/no/such/folder": "no model folder /no/such/folder",
        str(tmp_path): "config.json",
        "smolvlm2-500m": "v2l pull smolvlm2-500m gets it",
    }
    asked = ["ask", PARTS[0], "what?"]
    answers = run_each(*([*asked, "--model", model] for model in cases), asked, cwd=desk, env=home)
    unnamed = answers.pop()
    for (model, said), done in zip(cases.items(), answers, strict=True):
        assert (done.code, done.out) == (1, "")
        (line,) = done.notes
        assert said in line, model
    assert (unnamed.code, unnamed.out) == (1, "")
    (line,) = unnamed.notes
    assert all(word in line for word in ("small", "--model", "V2L_MODEL"))


def test_tiny_says_what_it_is_in_every_command(tmp_path, videos, monkeypatch):
    """One line on stderr, also with --quiet and however it was chosen, and a field of every record."""
    monkeypatch.delenv("V2L_MODEL", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    adapter = tmp_path / f"clip 0{SUFFIX}"
    encode = ["encode", videos[0], "-o", adapter, "--frames", "2"]
    commands = [
        ("fallback", encode),
        ("option", [*encode, "--model", EMBEDDED]),
        ("adapter", ["ask", adapter, "what is on the whiteboard?"]),
        ("environment", ["ask", adapter, "-q", "why?", "--max-new-tokens", "1"]),
        ("verify", ["verify", adapter]),
        ("info", ["info", adapter, EMBEDDED / "hypernetwork.safetensors"]),
        ("compose", ["compose", adapter, "-o", tmp_path / f"other{SUFFIX}"]),
        ("export", ["export", adapter, "--format", "peft"]),
    ]
    for chosen_by, words in commands:
        environment = {"V2L_MODEL": "tiny"} if chosen_by == "environment" else {}
        done = CliRunner().invoke(app, [*map(str, words), "--quiet", "--json"], env=environment)
        assert (done.exit_code, done.stderr) == (0, f"v2l: {TINY}\n"), (words, done)
        for record in map(json.loads, done.stdout.splitlines()):
            assert record["demonstration"] is True, record
            assert record.get("model_chosen_by") in (chosen_by, None), record
    assert "demonstration model" in TINY and "v2l pull smolvlm2-500m" in TINY


def test_the_fingerprint_by_which_tiny_is_known_is_that_of_its_weights(model_folder):
    assert is_tiny(find_model("tiny").fingerprint)
    assert not is_tiny(find_model(model_folder).fingerprint)


def test_keys_of_every_json_record_survive_json(desk):
    """A line holds one object, even if a name contains a line break."""
    name = f"new\nline \u2028 ü{SUFFIX}"
    (desk / name).write_bytes((desk / PARTS[0]).read_bytes())
    done = run("info", name, "--json", cwd=desk)
    assert done.out.count("\n") == 1
    assert done.out.isascii()
    assert json.loads(done.out)["file"] == name
