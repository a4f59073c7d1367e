"""`v2l ask`: how its words are read, and how answers are printed to pipes, scripts and terminals."""

import dataclasses
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import small
import torch
from terminal import LIBGL_MISSING, SUFFIX, Running, Terminal, fill, nobody_reads, plain, run, run_each, tree
from typer.testing import CliRunner

import v2l
from v2l.adapters.description import AdapterFile, BaseModel
from v2l.cli import sources
from v2l.cli.app import app
from v2l.cli.ask import _is_ready
from v2l.cli.chat import chat, history_file
from v2l.cli.console import Display
from v2l.cli.sources import AnswerSource, batches, sort_words
from v2l.inference.model_loader import ModelLoader
from v2l.io.text import inert, tab_separated
from v2l.models.presets import PRESETS, RELEASE

QUESTION = "what?"
TOKENS = ["--max-new-tokens", "12"]
ENDLESS = 100_000
KEYS = (
    "v2l command question answer model model_chosen_by demonstration prompt_tokens visual_tokens new_tokens "
    "time_to_first_token tokens_per_second together"
).split()


def write_speaker(folder, seed):
    """Write a model that never generates an end token."""
    small.write_model(folder, seed, small.small_config(max_position_embeddings=ENDLESS + 1000))
    settings = {"bos_token_id": 1, "eos_token_id": [], "pad_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    small.write_hypernetwork(folder, seed)
    return folder


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """A model that generates line breaks and control characters, which must be escaped."""
    for seed in range(3, 30):
        folder = write_speaker(tmp_path_factory.mktemp("models") / f"speaker-{seed}", seed)
        vlm, hypernetwork = v2l.load_vlm(folder), v2l.load_hypernetwork(folder)
        still = small.write_video(tmp_path_factory.mktemp("still") / "still.mp4", frames=8)
        answer = v2l.ask(v2l.encode(still, vlm, hypernetwork), QUESTION, vlm, max_new_tokens=12)
        if "\n" in answer and inert(answer) != answer:
            return folder, vlm, hypernetwork
    raise AssertionError("no seed gives a model that says line ends and control characters; try more")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, speaker, videos):
    """A folder with adapters in a folder, and a function that answers from them in Python."""
    _, vlm, hypernetwork = speaker
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "more").mkdir()
    made = {
        f"one's{SUFFIX}": v2l.encode(videos[0], vlm, hypernetwork),
        f"more/b{SUFFIX}": v2l.encode(videos[1], vlm, hypernetwork),
        f"more/c{SUFFIX}": v2l.encode(videos[2], vlm, hypernetwork, end=3.0),
    }
    for name, adapter in made.items():
        adapter.save(folder / name)
    (folder / "more" / "notes.txt").write_text("no adapter")

    def answer(name, question):
        return v2l.ask(made[name], question, vlm, max_new_tokens=12)

    return folder, answer


ONE, B, C = f"one's{SUFFIX}", f"more/b{SUFFIX}", f"more/c{SUFFIX}"

# Through a pipe -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_answers(shelf, speaker, tmp_path_factory):
    """One question on a machine without OpenCV, and several whose answers have no reader."""
    hidden = tmp_path_factory.mktemp("no-opencv")
    (hidden / "cv2").mkdir()
    (hidden / "cv2" / "__init__.py").write_text(LIBGL_MISSING)
    where = {"cwd": shelf[0], "model": speaker[0], "env": {"PYTHONPATH": str(hidden)}}
    one = Running("ask", ONE, QUESTION, *TOKENS, **where)
    unheard = Running("ask", "more", QUESTION, *TOKENS, **where, stdout=nobody_reads())
    return one.end(), unheard.end()


def test_one_answer_is_printed_with_its_line_ends_and_needs_no_opencv(plain_answers, shelf):
    done, _ = plain_answers
    assert (done.code, done.err) == (0, "")
    assert done.out == inert(shelf[1](ONE, QUESTION)) + "\n"


def test_questions_come_from_a_pipe_if_none_is_given(shelf, speaker):
    where = {"cwd": shelf[0], "model": speaker[0]}
    piped = run("ask", ONE, *TOKENS, **where, stdin=f"{QUESTION}\n\nwho?\n".encode())
    named = run("ask", ONE, QUESTION, "who?", *TOKENS, **where, stdin=b"never read\n")
    assert (piped.code, piped.out, piped.err) == (0, named.out, "")
    assert len(piped.lines) == 2


def test_verbose_says_what_is_loaded_and_how_long_it_takes_even_with_quiet(shelf, speaker):
    done = run("ask", ONE, QUESTION, "-v", "--quiet", *TOKENS, cwd=shelf[0], model=speaker[0])
    assert (done.code, done.out) == (0, inert(shelf[1](ONE, QUESTION)) + "\n")
    versions, chosen, loaded, answered = done.notes
    assert all(re.match(r"\[\d+\.\d\d s\] ", line) for line in done.notes)
    assert f"v2l {v2l.__version__}, Python 3" in versions and "torch 2" in versions
    assert chosen.endswith(f"model {speaker[0]}, chosen by: environment")
    assert f"from {speaker[0]} in " in loaded and loaded.endswith("s: cpu, torch.float32")
    assert "prompt tokens, 12 new ones, the first after " in answered


def test_raw_answers_keep_their_control_characters(shelf, speaker):
    folder, answer = shelf
    one = run("ask", ONE, QUESTION, "--raw", *TOKENS, cwd=folder, model=speaker[0])
    assert (one.code, one.out) == (0, answer(ONE, QUESTION) + "\n")
    assert inert(one.out) != one.out
    table = run("ask", ONE, QUESTION, "who?", "--raw", *TOKENS, cwd=folder, model=speaker[0])
    assert table.lines[0] == tab_separated(ONE, QUESTION, answer(ONE, QUESTION))


def test_what_is_escaped_can_control_nothing_and_what_text_needs_is_kept():
    assert inert("a\x1b[2J\x9b\r\x00\u202e\ufeff\u2028") == r"a\x1b[2J\x9b\r\x00\u202e\ufeff\u2028"
    kept = "tab\tline\n12\u00a0h, 全\u3000角, می\u200cکنم, 👩\u200d🚀 back\\slash"
    assert inert(kept) == kept


def test_a_reader_that_left_gets_no_traceback(plain_answers):
    _, done = plain_answers
    assert (done.code, done.err) == (0, "")


@pytest.fixture(scope="module")
def table(shelf, speaker):
    """An adapter, a folder of them, questions of all kinds; one of the adapters is damaged, one of another model."""
    folder, _ = shelf
    (folder / "sound").mkdir()
    sound = v2l.Adapter.load(folder / ONE)
    other = dataclasses.replace(sound.description, base_model=BaseModel("someone/else", None, "f" * 64))
    dataclasses.replace(sound, description=other).save(folder / f"other{SUFFIX}")
    (folder / f"broken{SUFFIX}").write_bytes(b"no adapter")
    words = ["more", QUESTION, f"broken{SUFFIX}", ONE, f"other{SUFFIX}", "-", "-q", "a\tb\\c", "-q", "-"]
    stdin = "von der Tafel: ü?\n\n  what else  \n".encode()
    return [*words, *TOKENS], ["a\tb\\c", "-", QUESTION, "von der Tafel: ü?", "what else"], stdin


def test_several_answers_are_lines_of_tabs_in_the_order_of_adapters_and_questions(table, shelf, speaker):
    words, questions, stdin = table
    folder, answer = shelf
    done = run("ask", *words, cwd=folder, model=speaker[0], stdin=stdin)
    assert done.code == 1
    rows = [line.split("\t") for line in done.out.split("\n")[:-1]]
    assert all(len(row) == 3 for row in rows)
    assert [row[0] for row in rows] == [name for name in (B, C, ONE) for _ in questions]
    assert {row[1] for row in rows} == {tab_separated(question) for question in questions}
    assert sorted(map(tuple, rows)) == sorted(
        (name, tab_separated(question), inert(tab_separated(answer(name, question))))
        for name in (B, C, ONE)
        for question in questions
    )
    assert any("\\n" in row[2] for row in rows)
    assert all(line.startswith("v2l: error: ") for line in done.notes)
    assert any(f"broken{SUFFIX}" in line for line in done.notes)
    (line,) = (line for line in done.notes if f"other{SUFFIX}" in line)
    assert "someone/else" in line and "--model FOLDER" in line


def test_a_folder_is_asked_without_the_segments_of_what_is_there(adapters, videos, model_folder, tmp_path):
    fill(tmp_path, **{videos[0].stem: videos[0]})
    (tmp_path / "deep").mkdir()
    first, second = adapters[:2]
    made = {"talk": first, "talk.000": first, "talk.1000": first, "old": second, "old.2000": first, "deep/b": second}
    for name, adapter in made.items():
        adapter.save(tmp_path / f"{name}{SUFFIX}")
    words = ["-q", QUESTION, "--max-new-tokens", "1"]
    done = run("ask", ".", *words, "-r", cwd=tmp_path, model=model_folder)
    assert done.code == 0
    assert [line.split("\t")[0] for line in done.lines] == [
        f"{name}{SUFFIX}" for name in ("old.2000", "old", "talk", "deep/b")
    ]
    whole, gone = done.notes
    assert whole.startswith(f"talk{SUFFIX}: asked instead of its 2 segments")
    assert gone == f"old{SUFFIX}: its video {videos[1].name} is not in the folder any more"
    named = run("ask", ".", f"talk.000{SUFFIX}", *words, "--quiet", cwd=tmp_path, model=model_folder)
    assert (named.code, len(named.lines), named.err) == (0, 4, "")


def test_json_says_what_an_answer_cost_also_the_expensive_way(shelf, speaker, videos):
    folder, answer = shelf
    path, vlm, _ = speaker
    words = ["ask", ONE, QUESTION, "--in-context", videos[0], "--json", "--quiet", *TOKENS]
    done = run(*words, "--model", path, cwd=folder, model="/nowhere")
    assert (done.code, done.err) == (0, "")
    adapter, in_context = done.records
    assert adapter.keys() == {*KEYS, "adapter", "segments", "routed_by"}
    ((segment, by),) = [(each, adapter["routed_by"]) for each in adapter["segments"]]
    assert (segment["start"], segment["end"], by) == (0.0, 4.0, "whole") and len(segment["frames"]) == 4
    assert in_context.keys() == {*KEYS, "video"}
    for record in (adapter, in_context):
        assert (record["v2l"], record["command"], record["question"]) == (1, "ask", QUESTION)
        assert (record["model"], record["model_chosen_by"]) == (path.name, "option")
        assert record["new_tokens"] == 12
        assert record["time_to_first_token"] > 0
        assert record["tokens_per_second"] > 0
    assert (adapter["adapter"], adapter["visual_tokens"]) == (ONE, 0)
    assert adapter["answer"] == answer(ONE, QUESTION)
    assert 0 < adapter["prompt_tokens"] < 20
    assert (in_context["video"], in_context["visual_tokens"]) == (str(videos[0]), 4 * 4)
    assert in_context["answer"] == v2l.ask_in_context(videos[0], QUESTION, vlm, v2l.Reading(8), 12)
    assert in_context["prompt_tokens"] > adapter["prompt_tokens"] + 16


def test_a_video_is_encoded_first_where_its_adapter_is_missing_or_stale(tmp_path, speaker, videos):
    path, vlm, hypernetwork = speaker
    here = fill(tmp_path, **{"new one": videos[0], "stale": videos[0], "current": videos[2]})
    v2l.encode(here / "stale.mp4", vlm, hypernetwork).save(here / f"stale{SUFFIX}")
    shutil.copy(videos[1], here / "stale.mp4")
    v2l.encode(here / "current.mp4", vlm, hypernetwork).save(here / f"current{SUFFIX}")
    os.utime(here / f"current{SUFFIX}")  # made long after its video
    kept = (here / f"current{SUFFIX}").stat().st_mtime_ns
    done = run("ask", "new one.mp4", "stale.mp4", "current.mp4", QUESTION, *TOKENS, cwd=here, model=path)
    assert done.code == 0
    names = ["new one", "stale", "current"]
    assert [line.split("\t")[0] for line in done.lines] == [f"{name}{SUFFIX}" for name in names]
    for name, line in zip(names, done.lines, strict=True):
        adapter = v2l.Adapter.load(here / f"{name}{SUFFIX}")
        assert adapter.description.segments[0].source.name == f"{name}.mp4"
        assert line.split("\t")[2] == inert(tab_separated(v2l.ask(adapter, QUESTION, vlm, 12)))
    assert (here / f"current{SUFFIX}").stat().st_mtime_ns == kept
    (note,) = done.notes
    assert note.startswith(f"stale{SUFFIX}: ")
    assert "content changed" in note


def test_adapters_that_name_two_models_are_asked_model_by_model(tmp_path, speaker, videos):
    """Their models are in the local cache of the hub, where presets are searched."""
    folder, vlm, hypernetwork = speaker
    write_speaker(tmp_path / "second", seed=1)
    second = v2l.load_vlm(tmp_path / "second"), v2l.load_hypernetwork(tmp_path / "second")
    expected = {}
    made_by = {"smolvlm2-500m": (folder, vlm, hypernetwork), "smolvlm2-2.2b": (tmp_path / "second", *second)}
    for preset, (source, model, maker) in made_by.items():
        cached = tmp_path / "home" / "hub" / f"models--{PRESETS[preset].model.replace('/', '--')}"
        shutil.copytree(source, cached / "snapshots" / "c0ffee")
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("c0ffee")
        for n in range(2):
            adapter = v2l.encode(videos[n], model, maker)
            base = dataclasses.replace(adapter.description.base_model, id=PRESETS[preset].model)
            named = dataclasses.replace(adapter, description=dataclasses.replace(adapter.description, base_model=base))
            named.save(tmp_path / f"{preset}.{n}{SUFFIX}")
            expected[f"{preset}.{n}{SUFFIX}"] = v2l.ask(adapter, QUESTION, model, 12), PRESETS[preset].model
    first, other = (sorted(name for name in expected if name.startswith(preset)) for preset in made_by)
    mixed = [first[0], other[0], first[1], other[1]]
    done = run("ask", *mixed, QUESTION, "--json", *TOKENS, cwd=tmp_path, env={"HF_HOME": str(tmp_path / "home")})
    assert (done.code, done.err) == (0, "")
    assert [record["adapter"] for record in done.records] == [*first, *other]
    assert [(record["answer"], record["model"]) for record in done.records] == [
        expected[name] for name in [*first, *other]
    ]
    assert {record["model_chosen_by"] for record in done.records} == {"adapter"}


@pytest.mark.parametrize("chosen_by", ["default", "fallback", "environment", "option"])
def test_a_model_is_loaded_once_however_it_was_chosen(adapters, monkeypatch, tmp_path, chosen_by, capsys):
    """By an adapter's name for it and as the default, for text and for videos."""
    named = BaseModel(RELEASE, None, adapters[0].description.base_model.fingerprint)
    description = dataclasses.replace(adapters[0].description, base_model=named)
    dataclasses.replace(adapters[0], description=description).save(tmp_path / f"a{SUFFIX}")
    if chosen_by == "environment":
        monkeypatch.setenv("V2L_MODEL", "tiny")
    loads = []
    loader = ModelLoader("tiny", chosen_by, device="cpu", announce=loads.append)
    (source,) = sources.load_sources([tmp_path / f"a{SUFFIX}"], loader)
    assert source.loader is loader
    assert source.chosen_by == ("adapter" if chosen_by in ("default", "fallback") else chosen_by)
    text = source.loader.language_model
    assert text.vision is None and loader.vlm is text and text.vision is not None
    assert loads == ["tiny"] * 2  # the second time for the tower alone
    whole = v2l.load_vlm("tiny", "cpu")
    image = torch.zeros(1, 3, whole.geometry.image_size, whole.geometry.image_size, dtype=torch.uint8)
    assert torch.equal(text.encode_images(image), whole.encode_images(image))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    _is_ready(source, Display(verbose=True))
    assert f"model tiny, chosen by: {source.chosen_by}\n" in capsys.readouterr().err


def test_words_that_name_nothing_are_errors_that_say_so(shelf, speaker):
    folder, _ = shelf
    before = tree(folder)
    words = f"nosuch{SUFFIX}", "nosuch.mp4", "http://example.org/talk.mp4"
    answers = run_each(*(["ask", word, QUESTION] for word in words), cwd=folder, model=speaker[0])
    for word, done in zip(words, answers, strict=True):
        assert (done.code, done.out) == (1, "")
        (line,) = done.notes
        assert line.startswith("v2l: error: ")
        assert word in line
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("words", "questions"),
    [
        ("A what is on the whiteboard?", ["what is on the whiteboard?"]),
        ("what is it A -", ["what is it"]),
        ("A why", ["why"]),
        ("A who? where?", ["who?", "where?"]),
        ("A who A where", ["who", "where"]),
        ("A|what is it?|why", ["what is it?", "why"]),
        ("A これは何ですか 何色", ["これは何ですか", "何色"]),
    ],
)
def test_a_question_without_quotes_is_one_question(shelf, words, questions):
    given = words.split("|" if "|" in words else " ")
    request = sort_words([str(shelf[0] / ONE) if word == "A" else word for word in given])
    assert request.questions == tuple(questions)
    assert request.is_joined == (len(given) - given.count("A") - given.count("-") > len(questions))


def test_joined_words_are_said(shelf, speaker):
    folder, answer = shelf
    done = CliRunner().invoke(app, ["ask", str(folder / ONE), "is", "it?", *TOKENS, "--model", str(speaker[0])])
    assert done.stdout == inert(answer(ONE, "is it?")) + "\n"
    assert done.stderr == 'asked as one question: "is it?"; quote each to ask several\n'


def test_bytes_that_are_no_text_are_one_line(shelf, speaker):
    folder, _ = shelf
    strict = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"}
    piped = Running("ask", ONE, "-", *TOKENS, cwd=folder, model=speaker[0], env=strict)
    word = Running("ask", ONE, b"what \xff?", *TOKENS, cwd=folder, model=speaker[0])
    for done in (piped.end(stdin=b"what \xff?\n"), word.end()):
        assert (done.code, done.out) == (1, "")
        (line,) = done.notes
        assert line.startswith("v2l: error: ")
        assert "UTF-8" in line


# At a terminal ------------------------------------------------------------------------------------------------------


def test_a_chat_has_commands_and_a_history_and_a_table_comes_whole(shelf, speaker, tmp_path):
    folder, answer = shelf
    history = tmp_path / "state" / "history"
    environment = {"NO_COLOR": "1", "V2L_HISTORY": str(history)}
    history.parent.mkdir()
    history.write_text(QUESTION + "\n")  # of an earlier chat
    terminal = Terminal("ask", ONE, *TOKENS, cwd=folder, model=speaker[0], columns=200, env=environment)
    words = ["ask", "more", QUESTION, *TOKENS]
    whole = Terminal(*words, cwd=folder, model=speaker[0], columns=40)
    begun = terminal.read_until("> ")
    assert "loading " in begun and "/help" in begun and "Ctrl-D" in begun
    text = answer(ONE, QUESTION)
    said = inert(text) + "\n(0:00-0:04, frames at 0:00 0:01.2 0:02.5 0:03.9)\n"
    terminal.type("\x1b[A\n")  # arrow up
    assert plain(terminal.read_until("> ")).endswith(said + "> ")
    terminal.type("/each\n")  # the last question again, this time to all segments
    assert plain(terminal.read_until("> ")).endswith(f"0:00-0:04\t{inert(tab_separated(text))}\n> ")
    for typed, expected in {"/help": "/adapters", "/adapters": "0:00-0:04", "/nosuch": "no command /nosuch"}.items():
        terminal.type(f"{typed}\n")
        assert expected in plain(terminal.read_until("> ")).removeprefix(typed)
    terminal.type("half a question")
    terminal.read_until("half a question")
    terminal.interrupt()
    assert "Ctrl-C again ends the chat" in terminal.read_until("> ")
    terminal.type("\n")  # the line was cleared, and this one counts as none
    terminal.read_until("> ")
    terminal.interrupt()
    terminal.read_until("> ")
    terminal.interrupt()
    code, rest = terminal.end()
    assert code == 0
    assert plain(rest).strip() == ""
    assert history.read_text().splitlines() == [QUESTION, "/each", "/help", "/adapters", "/nosuch"]

    code, screen = whole.end()  # a table is printed whole, and nothing in it can move the cursor
    assert code == 0
    rows = (tab_separated(name, QUESTION, answer(name, QUESTION)) for name in (B, C))
    assert plain(screen).rpartition("\r")[2] == "".join(inert(row) + "\n" for row in rows)


def test_the_history_is_kept_in_the_state_folder_unless_it_is_turned_off(monkeypatch):
    def file(**variables):
        for name in ("V2L_HISTORY", "XDG_STATE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return history_file()

    assert file(HOME="/h") == Path("/h/.local/state/v2l/history")
    assert file(HOME="/h", XDG_STATE_HOME="/s") == Path("/s/v2l/history")
    assert file(HOME="/h", XDG_STATE_HOME="relative") == file(HOME="/h")
    assert file(HOME="/h", V2L_HISTORY="/own") == Path("/own")
    assert [file(HOME="/h", V2L_HISTORY=value) for value in ("", "0", "off", "OFF")] == [None] * 4


@pytest.mark.parametrize("leave", ["exit", "quit", "/exit", "/quit"])
def test_a_word_ends_a_chat(leave, monkeypatch, tmp_path):
    keys, asked = tmp_path / "keys", []
    keys.write_text(f"why?\n\n{leave}\nnever read\n")
    monkeypatch.setenv("V2L_HISTORY", "off")
    with keys.open() as typed:
        monkeypatch.setattr(sys, "stdin", typed)
        source = AnswerSource(Path(ONE), ModelLoader("tiny", "option"))
        chat([source], lambda _, question: asked.append(question), asked.append, str, Display())
        assert (asked, typed.read()) == (["why?"], "never read\n")


def test_an_answer_streams_to_a_terminal_and_ctrl_c_ends_it_with_130(shelf, speaker):
    folder, answer = shelf
    words = ["ask", ONE, QUESTION, "--max-new-tokens", str(ENDLESS)]
    terminal = Terminal(*words, cwd=folder, model=speaker[0], columns=40, env={"TERM": "dumb"})
    beginning = inert(answer(ONE, QUESTION))[:8].replace("\n", "\r\n")
    assert terminal.read_until("\n").startswith("loading ")
    assert terminal.read_until(beginning) == beginning
    terminal.type("\x03")
    code, rest = terminal.end()
    assert code == 130
    assert "interrupted" in rest
    assert "\x1b" not in rest


def test_a_video_that_fails_does_not_keep_back_the_one_answer(adapters, model_folder, tmp_path):
    adapters[0].save(tmp_path / f"good{SUFFIX}")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    done = run("ask", "bad.mp4", f"good{SUFFIX}", QUESTION, *TOKENS, cwd=tmp_path, model=model_folder)
    alone = run("ask", f"good{SUFFIX}", QUESTION, *TOKENS, cwd=tmp_path, model=model_folder)
    assert (done.code, alone.code) == (1, 0)
    assert done.out == alone.out != ""
    assert "bad.mp4" in done.err


def test_batches_hold_adapters_of_one_model_and_no_more_than_fit(adapters, monkeypatch, tmp_path):
    adapters[0].save(tmp_path / f"a{SUFFIX}")
    file = AdapterFile.read(tmp_path / f"a{SUFFIX}")
    one, other = ModelLoader("one", "option"), ModelLoader("other", "option")
    encoded = [AnswerSource(Path(f"{n}"), one if n < 5 else other, file) for n in range(7)]
    subjects = [*encoded, AnswerSource(Path("a.mp4"), other), encoded[0]]

    def sizes():
        return [len(batch) for batch in batches(subjects, ["what?", "where?"])]

    assert sizes() == [10, 4, 1, 1, 2]
    monkeypatch.setattr(sources, "ANSWERS_AT_ONCE", 4)
    assert sizes() == [4, 4, 2, 4, 1, 1, 2]
    monkeypatch.setattr(sources, "ADAPTER_BYTES_AT_ONCE", 3 * file.size)
    assert sizes() == [3, 3, 3, 1, 3, 1, 1, 1, 2]
    assert [pair for batch in batches(subjects, ["what?"]) for pair in batch] == [(each, "what?") for each in subjects]
