"""Adapters with parts taken away, and the tables and figures of evaluations that do it, on a small random model."""

import json

import pytest
import torch
from terminal import run

import v2l
from v2l.cli.plots import plot_eval
from v2l.evaluation.ablation import ablated, ablations, layer_table, rank_order, rank_table
from v2l.evaluation.conditions import Ablation
from v2l.evaluation.evaluate import Evaluation, Setting
from v2l.evaluation.report import Run, output_of, settings, summarise, table, varying
from v2l.io.manifest import Example

QUESTIONS = ("what is on the whiteboard?", "where is the square?")


def moved(adapter: v2l.Adapter) -> set[int]:
    """Ranks that still do something in some layer."""
    return set((adapter.a.norm(dim=2) * adapter.b.norm(dim=2)).sum(0).nonzero()[:, 0].tolist())


def test_ranks_are_ordered_by_the_product_of_their_norms(adapters):
    adapter = adapters[0]
    ranks = adapter.rank - adapter.description.bias_rank
    products = [float(adapter.a[:, rank].norm() * adapter.b[:, rank].norm()) for rank in range(ranks)]
    assert rank_order(adapter).tolist() == sorted(range(ranks), key=lambda rank: -products[rank])


def test_what_each_name_leaves(adapters):
    adapter = adapters[0]
    order = rank_order(adapter).tolist()
    bias = set(range(len(order), adapter.rank))
    assert moved(adapter) == {*order} | bias
    assert moved(ablated(adapter, "ranks top 2")) == {*order[:2]} | bias
    assert moved(ablated(adapter, "ranks bottom 2")) == {*order[-2:]} | bias
    assert moved(ablated(adapter, "ranks without top 1")) == {*order[1:]} | bias
    drawn = moved(ablated(adapter, "ranks random 2"))
    assert len(drawn - bias) == 2 and drawn == moved(ablated(adapter, "ranks random 2"))
    assert {frozenset(moved(ablated(each, "ranks random 1"))) for each in adapters} != {frozenset(drawn)}
    without = ablated(adapter, "without layer 1")
    assert not without.b[1].any()
    assert torch.equal(without.b[[0, 2]], adapter.b[[0, 2]]) and torch.equal(without.a, adapter.a)


def test_their_names(adapters):
    names = ablations(Ablation.ranks, 8, 3)
    assert names[:4] == ("ranks top 1", "ranks bottom 1", "ranks random 1", "ranks without top 1")
    assert [name for name in names if name.startswith("ranks top")] == [f"ranks top {count}" for count in (1, 2, 4)]
    assert ablations(Ablation.ranks, 1, 3) == ()
    assert ablations(Ablation.layers, 8, 3) == tuple(f"without layer {layer}" for layer in range(3))


@pytest.fixture(scope="module")
def runs(videos, vlm, hypernetwork, tmp_path_factory):
    """A sweep over frames, segments and frames in context, with both ablations."""
    examples = [
        Example(f"{clip}-{number}", video, "qa", f"kind {number}", question, "a square", None, None)
        for clip, video in enumerate(videos[:2])
        for number, question in enumerate(QUESTIONS)
    ]
    assert (hypernetwork.config.rank, vlm.num_layers) == (4, 3)
    parts = ("ranks top 1", "ranks top 2", "without layer 0", "without layer 1", "without layer 2")
    base = Setting(v2l.Reading(), 3, ("in_context", "adapter", "bias", *parts))
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
    for name in ("ranks top 1", "without layer 2"):
        assert results[0].answers[name] == v2l.ask(ablated(adapter, name), QUESTIONS[0], vlm, 3)
    assert results[0].answers["bias"] == v2l.ask(adapter.bias_alone(), QUESTIONS[0], vlm, 3)
    header, rows = rank_table(first.report.macro)
    assert header == ["ranks", "top of them"]
    assert [row[0] for row in rows] == ["1", "2"]
    assert [row[0] for row in layer_table(first.report.macro)[1]] == ["0", "1", "2"]
    assert rank_table({"adapter": 1.0}) is None and layer_table({"adapter": 1.0}) is None
    assert [row[0] for row in first.report.against_table()[1]] == ["in context", "bias alone"]
    assert first.report.means_table()[0] == ["question", "n", "in context", "adapter", "bias alone"]


def test_a_sweep_tells_its_settings(runs):
    header, rows = table([each for each, _ in runs])
    assert header[:4] == ["frames", "segments", "in context frames", "in context"]
    assert [row[:3] for row in rows] == [["2", "1", "1"], ["3", "2", "2"]]
    json.dumps([run.place for run, _ in runs])


@pytest.mark.parametrize(("form", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_figure_has_a_panel_for_everything(runs, form, magic):
    image = plot_eval([each for each, _ in runs], "title", form)
    assert image.startswith(magic)
    if form == "svg":
        drawn = image.decode()
        for told in ("by kind of question", "adapter minus in context", "layer taken away", "segments"):
            assert f"<!-- {told} -->" in drawn


def test_a_setting_that_cannot_be_answered_does_not_end_a_sweep(videos, model_folder, tmp_path):
    rows = [
        {"id": f"{clip}", "video_path": str(video), "question": QUESTIONS[0], "answer": "a"}
        for clip, video in enumerate(videos[:2])
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", "q.jsonl", "--model", model_folder, "--frames", "2", "--max-new-tokens", "2"]
    lengths = ["--resolution", "1024,32", "--plot", "p.svg", "--json"]  # so many tiles are no prompt any more
    done = run(*words, *lengths, "--without", "other_clip", cwd=tmp_path)
    assert done.code == 1
    assert [record["resolution"] for record in done.records] == [32]
    assert any("resolution 1024: no question was answered" in line for line in done.notes)
    assert (tmp_path / "p.svg").exists()
    assert sorted(path.name for path in tmp_path.glob("q.eval*")) == [
        "q.eval.resolution-1024.jsonl",
        "q.eval.resolution-32.jsonl",
    ]
