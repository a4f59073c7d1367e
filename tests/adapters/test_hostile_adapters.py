"""Hostile adapters with a valid sha256: each is reported in one line, and the command handles the others."""

import dataclasses
import json

import pytest
import torch
from terminal import SUFFIX, TRACEBACK
from typer.testing import CliRunner

import v2l
from v2l.adapters.verify import verify
from v2l.cli.app import app
from v2l.io.tensors import write_tensors

HUGE = 3e38
"""Close to the largest float32: finite, but results computed from it are not."""
GOOD, BAD = f"good{SUFFIX}", f"bad{SUFFIX}"


@pytest.fixture(scope="module")
def huge(adapters):
    return dataclasses.replace(
        adapters[1], a=torch.full_like(adapters[1].a, HUGE), b=torch.full_like(adapters[1].b, HUGE)
    )


@pytest.fixture
def v2l_command(tmp_path, adapters, model_folder, monkeypatch):
    """`v2l WORDS...` where the sound adapter stands: (exit code, lines of standard output, of standard error)."""
    dataclasses.replace(adapters[0], b=adapters[0].b * 100).save(tmp_path / GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("V2L_MODEL", str(model_folder))

    def command(*words):
        done = CliRunner().invoke(app, words)
        assert TRACEBACK not in done.output
        return done.exit_code, done.stdout.splitlines(), done.stderr.splitlines()

    return command


def records(lines):
    """Parse strict JSON, without the extensions of Python's parser."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in lines]


@pytest.mark.parametrize(
    "place", [("bias_rank",), ("segments", 0, "source", "size"), ("segments", 0, "windows", 0)], ids=str
)
def test_a_number_too_large_for_any_arithmetic_harms_no_file_beside_it(v2l_command, adapters, place):
    metadata = adapters[1]._metadata()
    *way, last = place
    inner = metadata
    for step in way:
        inner = inner[step]
    inner[last] = 10**309
    write_tensors(BAD, adapters[1].named_tensors(), metadata)
    for command, rest in (("info", []), ("verify", []), ("ask", ["what?", "--max-new-tokens", "3"])):
        code, out, (line,) = v2l_command(command, BAD, GOOD, *rest, "--json")
        assert code == 1 and "whole number from 0" in line and BAD in line
        handled = [record for record in records(out) if not record.get("error")]
        assert [record.get("file", record.get("adapter")) for record in handled] == [GOOD]


def test_an_adapter_that_drives_the_model_beyond_numbers_is_an_error_and_no_empty_answer(v2l_command, huge):
    huge.save(BAD)
    words = ["what?", "--max-new-tokens", "3"]
    code, out, (line,) = v2l_command("ask", BAD, *words)
    assert (code, out) == (1, []) and line.startswith(f"v2l: error: {BAD}: ") and "--strength" in line
    code, (answer,), notes = v2l_command("ask", BAD, GOOD, *words)
    assert (code, notes) == (1, [line]) and answer.startswith(GOOD)


@pytest.mark.parametrize("strength", [1e22, 1e38, -1e38])
def test_a_strength_that_the_model_cannot_bear_is_the_same_error(adapters, vlm, strength):
    """Both cases: the hidden states become infinite, or only their squares do."""
    with pytest.raises(v2l.V2LError, match="--strength"):
        list(v2l.stream(adapters[0], "what?", vlm, strength=strength))
    assert "not finite" in verify(dataclasses.replace(adapters[0], b=adapters[0].b * strength), vlm).trouble


def test_verify_finds_it_unsound_and_its_json_is_json(v2l_command, huge):
    huge.save(BAD)
    code, out, _ = v2l_command("verify", BAD, GOOD, "--json")
    bad, good = records(out)
    assert (code, bad["sound"], good["sound"]) == (1, False, True)
    assert "not finite" in bad["error"] and bad["on_model"]["divergence"] is None
    code, shown, _ = v2l_command("verify", BAD)
    assert code == 1 and "nan" not in "".join(shown)


def test_compose_writes_nothing_that_it_could_not_read_again(v2l_command, huge, tmp_path):
    huge.save(BAD)
    code, out, notes = v2l_command("compose", BAD, BAD, "-o", f"out{SUFFIX}", "--rank", "2")
    assert (code, out) == (1, []) and "too large for float32" in notes[-1]
    assert not (tmp_path / f"out{SUFFIX}").exists()
    code, *_ = v2l_command("compose", BAD, BAD, "-o", f"out{SUFFIX}")
    assert code == 0 and v2l.Adapter.load(f"out{SUFFIX}").rank == 12


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"b": float("inf")}, "not all finite"),
        ({"a": float("nan")}, "not all finite"),
        ({"v2l_version": "x" * 5000}, "longer than"),
        ({"bias_rank": 10**20}, "whole number"),
        ({"blocks": ()}, "do not agree"),
    ],
    ids=["infinite", "nan", "long text", "large number", "no blocks"],
)
def test_saving_refuses_what_loading_would_refuse(tmp_path, adapters, changes, said):
    made = adapters[0]
    for name, value in changes.items():
        if name in ("a", "b"):
            made = dataclasses.replace(made, **{name: torch.full_like(getattr(made, name), value)})
        else:
            made = dataclasses.replace(made, description=dataclasses.replace(made.description, **{name: value}))
    with pytest.raises(v2l.V2LError, match=said):
        made.save(tmp_path / GOOD)
    assert list(tmp_path.iterdir()) == []


def test_a_question_longer_than_any_prompt_is_refused_before_it_takes_memory(vlm, adapters):
    most = vlm.max_positions * max(map(len, vlm.tokenizer.get_vocab()))
    for question in ("what?" * (most // 5 + 1), "漢" * (most + 1)):
        with pytest.raises(v2l.V2LError, match=f"{len(question):,} characters"):
            v2l.ask(adapters[0], question, vlm)
        with pytest.raises(v2l.V2LError, match=f"{len(question):,} characters"):
            v2l.ask_each([adapters[0]] * 2, [question] * 2, vlm)
    with pytest.raises(v2l.V2LError, match="tokens and 128 new ones exceed"):
        v2l.ask(adapters[0], "what? " * (most // 12), vlm)
