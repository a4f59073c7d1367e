"""Ablated adapters, and the tables and figures of their evaluations, on a small random model."""

import json

import pytest
import torch
from terminal import run

import v2l
from v2l.cli.plots import MARKS, plot_eval, write_pictures
from v2l.evaluation.ablation import ablated, rank_order
from v2l.evaluation.conditions import (
    ADAPTER,
    BIAS,
    IN_CONTEXT,
    Ablation,
    LayerAblation,
    RankAblation,
    Selection,
    ablations,
)
from v2l.evaluation.evaluate import Evaluation
from v2l.evaluation.report import (
    TITLES,
    Run,
    layer_table,
    output_of,
    rank_table,
    settings,
    summarise,
    sweep_table,
    varying,
)
from v2l.evaluation.setting import Setting
from v2l.io.manifest import Example

QUESTIONS = ("what is on the whiteboard?", "where is the square?")


def active(adapter: v2l.Adapter) -> set[int]:
    """Return the ranks that change the output of some layer."""
    return set((adapter.a.norm(dim=2) * adapter.b.norm(dim=2)).sum(0).nonzero()[:, 0].tolist())


def test_ranks_are_ordered_by_the_product_of_their_norms(adapters):
    adapter = adapters[0]
    ranks = adapter.rank - adapter.description.bias_rank
    products = [float(adapter.a[:, rank].norm() * adapter.b[:, rank].norm()) for rank in range(ranks)]
    assert rank_order(adapter).tolist() == sorted(range(ranks), key=lambda rank: -products[rank])


def test_each_ablation_leaves_the_rest(adapters):
    adapter = adapters[0]
    order = rank_order(adapter).tolist()
    bias = set(range(len(order), adapter.rank))
    assert active(adapter) == {*order} | bias
    assert active(ablated(adapter, RankAblation(Selection.top, 2))) == {*order[:2]} | bias
    assert active(ablated(adapter, RankAblation(Selection.bottom, 2))) == {*order[-2:]} | bias
    assert active(ablated(adapter, RankAblation(Selection.without_top, 1))) == {*order[1:]} | bias
    drawn = active(ablated(adapter, RankAblation(Selection.random, 2)))
    assert len(drawn - bias) == 2 and drawn == active(ablated(adapter, RankAblation(Selection.random, 2)))
    one = RankAblation(Selection.random, 1)
    assert len({frozenset(active(ablated(each, one))) for each in adapters}) > 1
    without = ablated(adapter, LayerAblation(1))
    assert not without.b[1].any()
    assert torch.equal(without.b[[0, 2]], adapter.b[[0, 2]]) and torch.equal(without.a, adapter.a)


def test_the_names_of_ablations():
    names = [condition.name for condition in ablations(Ablation.ranks, 8, 3)]
    assert tuple(names[:4]) == ("ranks top 1", "ranks bottom 1", "ranks random 1", "ranks without top 1")
    assert [name for name in names if name.startswith("ranks top")] == [f"ranks top {count}" for count in (1, 2, 4)]
    assert ablations(Ablation.ranks, 1, 3) == ()
    layers = ablations(Ablation.layers, 8, 3)
    assert [condition.name for condition in layers] == [f"without layer {layer}" for layer in range(3)]


@pytest.fixture(scope="module")
def runs(videos, vlm, hypernetwork, tmp_path_factory):
    """Run a sweep over frames, segments and frames in context, with both ablations."""
    examples = [
        Example(f"{clip}-{number}", video, "qa", f"kind {number}", question, "a square", None, None)
        for clip, video in enumerate(videos[:2])
        for number, question in enumerate(QUESTIONS)
    ]
    assert (hypernetwork.config.rank, vlm.num_layers) == (4, 3)
    parts = [RankAblation(Selection.top, count) for count in (1, 2)] + [LayerAblation(layer) for layer in range(3)]
    base = Setting(v2l.Reading(), 3, (IN_CONTEXT, ADAPTER, BIAS, *parts))
    axes = {"frames": (2, 3), "segments": (1, 2), "in_context_frames": (1, 2)}
    folder = tmp_path_factory.mktemp("sweep")
    chosen = settings(base, axes)
    paths = {output_of(folder / "r.jsonl", setting, varying(chosen)) for setting in chosen}
    assert len(paths) == len(chosen) == 8
    assert folder / "r.frames-2.segments-1.in-context-frames-1.jsonl" in paths
    found = []
    for setting in (chosen[0], chosen[-1]):
        output = output_of(folder / "r.jsonl", setting, varying(chosen))
        results = list(Evaluation(examples, vlm, hypernetwork, setting, output).run())
        found.append((Run(setting, summarise(results, "f1", 0.05)), results))
    return found


def test_an_ablation_is_asked_like_every_condition(runs, videos, vlm, hypernetwork):
    first, results = runs[0]
    adapter = v2l.encode(videos[0], vlm, hypernetwork, frames=2)
    for condition in (RankAblation(Selection.top, 1), LayerAblation(2)):
        assert results[0].answers[condition.name] == v2l.ask(ablated(adapter, condition), QUESTIONS[0], vlm, 3)
    assert results[0].answers["bias"] == v2l.ask(adapter.bias_alone(), QUESTIONS[0], vlm, 3)
    header, rows = rank_table(first)
    assert header == ["ranks", "top of them"]
    assert [row[0] for row in rows] == ["1", "2"]
    assert [row[0] for row in layer_table(first)[1]] == ["0", "1", "2"]
    plain = Run(Setting(v2l.Reading(), 3), first.report)
    assert rank_table(plain) is None and layer_table(plain) is None
    header, rows = first.report.against_table()
    assert [row[0] for row in rows] == ["in context", "bias alone"]
    assert header[-3:] == ["non-inferior", "equivalent", "p of equivalence"]
    assert first.report.means_table()[0] == ["question", "n", "in context", "adapter", "bias alone"]


def test_a_sweep_lists_its_settings(runs):
    header, rows = sweep_table([each for each, _ in runs])
    assert header[:4] == ["frames", "segments", "in context frames", "in context"]
    assert [row[:3] for row in rows] == [["2", "1", "1"], ["3", "2", "2"]]
    json.dumps([run.place for run, _ in runs])


@pytest.mark.parametrize(("form", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_every_question_has_a_picture(runs, form, magic, tmp_path):
    pictures = plot_eval([each for each, _ in runs], "title", form)
    assert list(pictures)[:3] == ["sweep", "segments", "in-context-frames"]
    assert all(image.startswith(magic) for image in pictures.values())
    ablated = plot_eval([runs[0][0]], "title", form)
    assert list(ablated) == ["ranks", "layers", "kinds"]
    if form == "svg":
        titles = ["score by rank", "score without one layer", "score by kind of question"]
        for title, image in zip(titles, ablated.values(), strict=True):
            assert f"<!-- {title}" in image.decode()
        # The picture of one setting of a sweep names it.
        assert f"<!-- {titles[-1]} (frames 3, segments 2, in context frames 2) -->" in pictures["kinds"].decode()
    written = write_pictures(tmp_path / f"a.{form}", ablated)
    assert [path.name for path in written] == [f"a.{form}", f"a.layers.{form}", f"a.kinds.{form}"]
    assert all(path.read_bytes() == image for path, image in zip(written, ablated.values(), strict=True))


def test_no_point_hides_another_of_the_same_score():
    assert set(MARKS) == set(TITLES)
    crosses, others = [], []
    for mark in MARKS.values():
        (crosses if mark["marker"] in "x+|" else others).append(mark)
    assert len({mark["marker"] for mark in crosses}) == len(crosses) == 3
    sizes = [mark["markersize"] for mark in others]  # the lowest first
    assert sizes == sorted({*sizes}, reverse=True)


def test_a_setting_that_cannot_be_answered_does_not_end_a_sweep(videos, model_folder, tmp_path):
    rows = [
        {"id": f"{clip}", "video_path": str(video), "question": QUESTIONS[0], "answer": "a"}
        for clip, video in enumerate(videos[:2])
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", "q.jsonl", "--model", model_folder, "--frames", "2", "--max-new-tokens", "2"]
    lengths = ["--resolution", "1024,32", "--plot", "p.svg", "--json"]  # too many tiles for a prompt
    done = run(*words, *lengths, "--without", "other_clip", cwd=tmp_path)
    assert done.code == 1
    assert [record["resolution"] for record in done.records] == [32]
    assert any("resolution 1024: no question was answered" in line for line in done.notes)
    assert (tmp_path / "p.svg").exists()
    assert sorted(path.name for path in tmp_path.glob("q.eval*")) == [
        "q.eval.resolution-1024.jsonl",
        "q.eval.resolution-32.jsonl",
    ]
