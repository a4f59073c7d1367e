"""All figures of the embedded model in one command: what it leaves, and how it goes on."""

import json

import pytest
from places import ROOT

from v2l.errors import V2LError
from v2l.tiny.recipe.figures import DONE, TESTS, Measurement, run

SHARE = 0.002
RESULTS = ROOT / "docs" / "results"


def named(*names):
    return [test for test in TESTS if test.name in names]


def done(folder):
    return [json.loads(line)["test"] for line in (folder / DONE).read_text().splitlines()[1:]]


def test_tests_leave_results_and_are_not_done_twice(tmp_path, capsys):
    some = named("tiny/test-kept", "tiny/held-out")
    run(tmp_path, jobs=2, share=SHARE, tests=some[:1])
    kept = (tmp_path / "results" / f"{some[0].name}.json").read_bytes()
    run(tmp_path, jobs=2, share=SHARE, tests=some)
    assert sorted(done(tmp_path)) == ["tiny/held-out", "tiny/test-kept"]
    for test in some:
        (told,) = (tmp_path / "results" / f"{test.name}.json").read_text().splitlines()
        assert json.loads(told)["command"] == "eval" and json.loads(told)["counts"]["colour"] == 2
    assert (tmp_path / "results" / f"{some[0].name}.json").read_bytes() == kept
    assert len(capsys.readouterr().out.splitlines()) == 2  # a line for each, none for what was done
    with pytest.raises(V2LError, match="another model or share"):
        run(tmp_path, share=2 * SHARE, tests=some)


def test_a_test_that_fails_says_why_and_is_tried_again(tmp_path):
    some = named("tiny/held-out")
    (tmp_path / "clips").write_text("in the way")
    with pytest.raises(V2LError, match=r"tiny/held-out: python -m v2l\.world\.dataset .* ended with code 1: error: "):
        run(tmp_path, share=SHARE, tests=some)
    (tmp_path / "clips").unlink()
    run(tmp_path, share=SHARE, tests=some)
    assert done(tmp_path) == ["tiny/held-out"]


def test_clips_and_questions_are_looked_for_where_they_are_written():
    assert Measurement("a", "test 300 two --scenes").videos == "clips/test-two"
    assert Measurement("a", "test 300 two --scenes").manifest == "clips/test-two-scenes.jsonl"
    assert Measurement("a", "test 60", folder="few").manifest == "few/test.jsonl"
    assert Measurement("a", "test 60 --from=9").manifest == "clips/test-from-9.jsonl"


def test_every_result_in_the_docs_has_its_test():
    """By name, so that the command makes what docs/reproduce.md and docs/tiny.md tell."""
    names = {test.name for test in TESTS}
    assert len(names) == len(TESTS)
    assert {f"reproduce/{path.stem}" for path in (RESULTS / "reproduce").glob("*.json")} <= names
    assert {f"reproduce/{path.stem}" for path in (RESULTS / "reproduce").glob("*.png")} == {
        test.name for test in TESTS if test.plot
    }
