"""Timelines on the command line: what encode announces, what ask says of its evidence, and the commands about files."""

import itertools
import json

import pytest
import small
from terminal import SUFFIX, Terminal, plain
from typer.testing import CliRunner

import v2l
from v2l.adapters.timeline import Timeline
from v2l.cli.app import app
from v2l.models.checkpoint import load_hypernetwork  # noqa: F401  # the library is imported once, here

QUESTION = "Describe what is happening in this video."
"""In the index of every timeline."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory, model_folder):
    """A folder with talk.mp4, 20 seconds, and its timeline of 8 + 8 + 4 seconds, and what `encode` printed."""
    here = tmp_path_factory.mktemp("desk")
    small.write_video(here / "talk.mp4", frames=160)
    done = CliRunner().invoke(app, ["encode", str(here / "talk.mp4"), "--model", str(model_folder), "--json"])
    return here, done


@pytest.fixture
def command(desk, model_folder, monkeypatch):
    """`v2l WORDS...` in the folder: (exit code, lines of standard output, of standard error)."""
    monkeypatch.chdir(desk[0])
    monkeypatch.setenv("V2L_MODEL", str(model_folder))

    def run(*words, code=0):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == code, done.stderr
        return done.stdout.splitlines(), done.stderr.splitlines()

    return run


TALK = f"talk{SUFFIX}"


def test_a_long_video_becomes_a_timeline_and_that_is_said_first(desk):
    here, done = desk
    record = json.loads(done.stdout)
    assert (record["status"], record["segments"], record["rank"]) == ("encoded", 3, 8)
    line = done.stderr.splitlines()[0]
    assert "0:20: overview and 3 segments of 8 s, 8 frames each, about" in line
    assert not list(here.glob(".*"))
    assert Timeline.load(here / TALK).description.questions == (QUESTION,)


def test_a_second_run_has_nothing_to_do_and_other_segments_are_encoded_again(command, desk):
    assert command("encode", "talk.mp4")[1] == ["1 current"]
    assert command("encode", "talk.mp4", "-o", f"other{SUFFIX}", "--segments", "2", "--quiet")[0] == [f"other{SUFFIX}"]
    _, notes = command("encode", "talk.mp4", "-o", f"other{SUFFIX}", "--segment-seconds", "5")
    assert notes[-2:] == [f"other{SUFFIX}: encoded again: it was cut into other segments", "1 encoded"]
    (desk[0] / f"other{SUFFIX}").unlink()


def test_more_frames_than_in_training_are_one_encoding(command, desk):
    command("encode", "talk.mp4", "-o", f"one{SUFFIX}", "--frames", "9", "--quiet")
    assert len(v2l.Adapter.load(desk[0] / f"one{SUFFIX}").description.segments) == 1
    (desk[0] / f"one{SUFFIX}").unlink()


def test_json_says_which_part_answered(command):
    (line,), _ = command("ask", TALK, "what is shown at 0:09?", "--json")
    record = json.loads(line)
    ((start, end),) = [(segment["start"], segment["end"]) for segment in record["segments"]]
    assert (record["routed_by"], start, end) == ("time", 8.0, 16.0)
    assert len(record["segments"][0]["frames"]) == 8


def test_a_pipe_gets_the_answer_alone(command):
    (answer,), notes = command("ask", TALK, "what is shown at 0:09?", "--max-new-tokens", "3")
    assert notes == [] and "0:08" not in answer


def test_a_terminal_says_which_part_answered(desk, model_folder):
    words = ["ask", TALK, "what is shown at 0:09?", "--max-new-tokens", "3"]
    code, screen = Terminal(*words, cwd=desk[0], model=model_folder).end()
    assert code == 0
    assert "(0:08-0:16, frames at 0:08 0:09.1 0:10.2 0:11.4 and 4 more)" in plain(screen)


def test_a_time_outside_of_the_video_fails_alone(command):
    lines, notes = command("ask", TALK, "what is shown at 0:40?", "what is shown at 0:04?", code=1)
    assert len(lines) == 1 and "0:04" in lines[0]
    says = "the question asks about 0:40, and the video is encoded from 0:00 to 0:20; ask about a time in it"
    assert notes == [f"v2l: error: {TALK}: {says}"]


def test_every_segment_answers(command):
    lines, _ = command("ask", TALK, "what is it?", "--each", "--max-new-tokens", "3")
    rows = [line.split("\t") for line in lines]
    assert all(len(row) == 3 for row in rows)
    assert (rows[0][0], rows[-1][1]) == ("0", "20")
    assert all(one[1] == two[0] for one, two in itertools.pairwise(rows))
    lines, _ = command("ask", TALK, "-q", "what is it?", "-q", "where?", "--each", "--max-new-tokens", "3")
    assert {tuple(line.split("\t")[:2]) for line in lines} == {(TALK, "what is it?"), (TALK, "where?")}
    lines, _ = command("ask", TALK, "what is it?", "--each", "--max-new-tokens", "3", "--json")
    assert [str(json.loads(line)["start"]).removesuffix(".0") for line in lines] == [row[0] for row in rows]


def test_subtitles_of_a_question_of_the_index(command, monkeypatch):
    monkeypatch.setattr("v2l.inference.model_loader.ModelLoader._load", lambda *_: pytest.fail("a model was loaded"))
    lines, _ = command("ask", TALK, QUESTION, "--each", "--format", "vtt")
    assert lines[:3] == ["WEBVTT", "", lines[2]] and lines[2].startswith("00:00:00.000 --> 00:00:")
    lines, _ = command("ask", TALK, QUESTION, "--each", "--format", "srt")
    assert lines[0] == "1" and lines[1].startswith("00:00:00,000 --> ")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["what?", "--format", "srt"], "--each"),
        (["--each"], "question"),
        (["what?", "--each", "--whole"], "--whole"),
        (["what?", "where?", "--each", "--format", "srt"], "one adapter and one question"),
        (["what?", "--each", "--format", "tsv", "--json"], "--json"),
    ],
)
def test_options_that_exclude_each_other(command, words, says):
    _, (note,) = command("ask", TALK, *words, code=2)
    assert says in note


def test_info_summarises_and_lists(command):
    text = "\n".join(command("info", TALK)[0])
    assert "3 of 8 s, 0:00 to 0:20" in text and QUESTION in text
    table = command("info", TALK, "--timeline")[0][-4:]
    assert table[0] == f"segment\tframes\t{QUESTION}" and table[-1].startswith("0:16-0:20\t")
    record = json.loads(command("info", TALK, "--json")[0][0])
    assert record["kind"] == "timeline" and len(record["segments"]) == 3


def test_verify_checks_every_part(command, desk):
    assert "3, all sound" in "\n".join(command("verify", TALK)[0])
    data = bytearray((desk[0] / TALK).read_bytes())
    data[-1] ^= 1
    (desk[0] / f"bad{SUFFIX}").write_bytes(data)
    assert "segments.00002 do not match" in "\n".join(command("verify", f"bad{SUFFIX}", code=1)[1])
    (desk[0] / f"bad{SUFFIX}").unlink()


def test_export_takes_the_overview_a_time_or_a_number(command, desk):
    assert command("export", TALK, "--format", "peft", "--quiet")[0] == ["talk.peft"]
    assert command("export", TALK, "--format", "peft", "--at", "0:09", "--quiet")[0] == ["talk.001.peft"]
    both = command("export", TALK, TALK, "--format", "peft", "--segment", "2", "-o", "out", "--overwrite", "--quiet")
    assert both[0] == ["out/talk.002.peft"] * 2
    assert "it ends at 0:20" in command("export", TALK, "--format", "peft", "--at", "1:00", code=1)[1][0]
    assert "segments 0 to 2" in command("export", TALK, "--format", "peft", "--segment", "3", code=1)[1][0]


def test_compose_joins_timelines_and_parts(command, desk, adapters):
    adapters[0].save(desk[0] / f"part{SUFFIX}")
    _, notes = command("compose", TALK, f"part{SUFFIX}", "-o", f"joined{SUFFIX}")
    assert notes == ["the parts are of 2 different videos: talk.mp4, clip 0.mp4"]
    joined = Timeline.load(desk[0] / f"joined{SUFFIX}")
    assert len(joined.description.segments) == 4 and joined.description.overview is None
    assert joined.description.questions == ()  # the part has no answers
    assert command("compose", TALK, f"part{SUFFIX}", "-o", f"joined{SUFFIX}")  # the same content
    assert "already exists" in command("compose", TALK, "-o", f"joined{SUFFIX}", code=1)[1][0]
    _, (note,) = command("compose", TALK, "-o", f"small{SUFFIX}", "--rank", "2")
    assert note.startswith("reduced to rank 2")
    small_one = Timeline.load(desk[0] / f"small{SUFFIX}").description
    assert {part.rank for part in small_one.parts.values()} == {2} and small_one.questions == (QUESTION,)
