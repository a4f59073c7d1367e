"""Quality figures of the embedded model: results, resuming and failures."""

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


def test_results_are_saved_and_not_repeated(tmp_path, capsys):
    some = named("tiny/test-kept", "tiny/held-out")
    run(tmp_path, jobs=2, share=SHARE, tests=some[:1])
    kept = (tmp_path / "results" / f"{some[0].name}.json").read_bytes()
    run(tmp_path, jobs=2, share=SHARE, tests=some)
    assert sorted(done(tmp_path)) == ["tiny/held-out", "tiny/test-kept"]
    for test in some:
        (output,) = (tmp_path / "results" / f"{test.name}.json").read_text().splitlines()
        assert json.loads(output)["command"] == "eval" and json.loads(output)["counts"]["colour"] == 2
    assert (tmp_path / "results" / f"{some[0].name}.json").read_bytes() == kept
    assert len(capsys.readouterr().out.splitlines()) == 2  # one line per new test
    with pytest.raises(V2LError, match="another model or share"):
        run(tmp_path, share=2 * SHARE, tests=some)


def test_a_failed_test_is_reported_and_retried(tmp_path):
    some = named("tiny/held-out")
    (tmp_path / "clips").write_text("in the way")
    with pytest.raises(V2LError, match=r"tiny/held-out: .*\.tiny\.world\.dataset .* failed with exit code 1: error: "):
        run(tmp_path, share=SHARE, tests=some)
    (tmp_path / "clips").unlink()
    run(tmp_path, share=SHARE, tests=some)
    assert done(tmp_path) == ["tiny/held-out"]


def test_paths_match_those_of_the_dataset():
    assert Measurement("a", "test 300 two --scenes").videos == "clips/test-two"
    assert Measurement("a", "test 300 two --scenes").manifest == "clips/test-two-scenes.jsonl"
    assert Measurement("a", "test 60", folder="few").manifest == "few/test.jsonl"
    assert Measurement("a", "test 60 --from=9").manifest == "clips/test-from-9.jsonl"
    assert Measurement("a", "test 60 --like=held-out").manifest == "clips/test-like-held-out.jsonl"


def test_every_result_in_the_docs_has_a_test():
    """The command reproduces every file that docs/reproduce.md and docs/model-card.md cite."""
    names = {test.name for test in TESTS}
    assert len(names) == len(TESTS)
    assert {f"reproduce/{path.stem}" for path in (RESULTS / "reproduce").glob("*.json")} <= names
    assert {f"reproduce/{path.stem}" for path in (RESULTS / "reproduce").glob("*.png")} == {
        test.name for test in TESTS if test.plot
    }
