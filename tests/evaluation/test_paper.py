"""The paper's tables are consistent, and their rows are found by the names of kinds and benchmarks."""

import pytest

from v2l.errors import UsageError
from v2l.evaluation.metrics import MARGINS
from v2l.evaluation.paper import ALL, FAMILIES, METRICS, published

SIZES = ("500m", "2.2b")
TABLES = [(size, metric) for size in SIZES for metric in METRICS]
HALF = 0.0005 + 1e-9
"""Maximum error of a figure that is rounded to three digits."""

STYLES = ("short", "detailed", "camera", "background", "main object")
SUBSETS = ("caption", "events", "objects", "spatial", "temporal")


def both(row):
    return row.in_context, row.adapter


@pytest.mark.parametrize(("size", "metric"), TABLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_agrees_with_itself(size, metric, family):
    rows = published(size, metric, FAMILIES[family])
    assert list(rows) == [*FAMILIES[family], ALL]
    for row in rows.values():
        assert row.difference == pytest.approx(row.adapter - row.in_context, abs=3 * HALF)
        assert row.low <= row.difference <= row.high
        assert row.verdicts(MARGINS[metric]) == (row.equivalent, row.non_inferior)


@pytest.mark.parametrize(("size", "metric"), TABLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_average_is_that_of_its_benchmarks(size, metric, family):
    rows = published(size, metric, FAMILIES[family])
    # The judge's mean over question answering weights questions equally, and VidCapBench has 1,523.
    pooled = (family, metric) == ("qa", "judge")
    weights = [1523 if pooled and name == "vidcapbench" else 500 for name in FAMILIES[family]]
    for place, average in enumerate(both(rows[ALL])):
        parts = [both(rows[name])[place] for name in FAMILIES[family]]
        assert sum(p * w for p, w in zip(parts, weights, strict=True)) / sum(weights) == pytest.approx(
            average, abs=2 * HALF
        )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("benchmark", "kinds"), [("vdc", STYLES), ("carebench", SUBSETS)])
def test_styles_and_subsets_average_to_their_benchmark(size, benchmark, kinds):
    rows = published(size, "judge", kinds, benchmark)
    assert rows == published(size, "judge", kinds)  # known by their names
    assert rows[ALL] == published(size, "judge", [benchmark])[benchmark]
    for place, whole in enumerate(both(rows[ALL])):
        assert sum(both(rows[kind])[place] for kind in kinds) / 5 == pytest.approx(whole, abs=2 * HALF)
        assert rows[kinds[0]].verdicts(0.15) == (None, None)


def test_what_the_paper_says_of_itself():
    for size, share in (("500m", 0.842), ("2.2b", 0.919)):
        captions = published(size, "judge", FAMILIES["captioning"])[ALL]
        assert captions.adapter / captions.in_context == pytest.approx(share, abs=HALF)
    rows = {
        metric: [published(size, metric, FAMILIES["qa"])[name] for size in SIZES for name in FAMILIES["qa"]]
        for metric in METRICS
    }
    assert sum(row.equivalent for row in rows["judge"]) == 7
    assert [sum(row.equivalent for row in rows["f1"]), sum(row.non_inferior for row in rows["f1"])] == [2, 4]


def test_rows_are_found_by_name():
    assert published("500m", "judge", ["Main_Object", "short"], "VDC").keys() == {"Main_Object", "short"}
    kinds = ["caption", "events", "objects", "spatial_caption", "temporal_caption"]
    assert list(published("2.2b", "judge", kinds, "carebench")) == [*kinds, ALL]
    assert published("500m", "f1", [*STYLES], "vdc").keys() == {ALL}  # Table 2 is the judge's alone
    assert published("500m", "f1", ["why", "how"], "nextqa").keys() == {ALL}
    assert published("500m", "f1", ["qa"], "nextqa").keys() == {"qa", ALL}
    assert published("500m", "f1", ["vdc"], "vdc").keys() == {"vdc"}
    assert published("500m", "f1", ["vdc", "other"]).keys() == {"vdc"}


@pytest.mark.parametrize(
    ("metric", "kinds", "message"),
    [
        ("exact", ["vdc"], "the paper has no exact, only"),
        ("f1", ["qa"], "no f1 of qa; its benchmarks are activitynet-captions, "),
        ("judge", ["caption"], "no judge of caption;"),
        ("f1", [*STYLES[:2]], "no f1 of short, detailed;"),
    ],
)
def test_a_missing_row_of_the_paper_is_an_error(metric, kinds, message):
    with pytest.raises(UsageError, match=message):
        published("500m", metric, kinds)
