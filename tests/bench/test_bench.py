"""The bench: methods that must agree give the same answers, and the counts beside the times are right."""

import dataclasses
import itertools
import re

import pytest
import small
from terminal import run

import v2l
from v2l.bench import methods, runner
from v2l.bench.methods import METHODS, Method, Subject, distinct_methods, prompt_size
from v2l.bench.random_model import Architecture, random_model
from v2l.bench.report import (
    BenchSetting,
    amortization,
    compare,
    first_token,
    question_counts,
    sweep,
    token_load,
    unsteady_line,
)
from v2l.bench.resources import prefill_bytes, prefill_work, vision_work
from v2l.bench.results import Cell, Encoding
from v2l.bench.runner import Bench, Plan, drawn_video
from v2l.cli.plots import plot_bench
from v2l.inference.encode import ADAPTER_TYPE
from v2l.inference.readings import fill_reading
from v2l.io.journal import Journal
from v2l.models.processor import QUESTIONS
from v2l.video.probe import probe
from v2l.video.sampling import Reading

QUICK = {"repeats": 2, "new_tokens": 3}


@pytest.fixture(scope="module")
def subject(vlm, hypernetwork, videos, tmp_path_factory):
    reading = fill_reading(Reading(frames=8), hypernetwork.provenance.trained_with, vlm.geometry)
    folder = tmp_path_factory.mktemp("kept")
    made = Subject(videos[2], reading, vlm, hypernetwork, folder, new_tokens=4).encoded()
    # Scale the adapter until the greedy answers of random weights change.
    return dataclasses.replace(made, adapter=dataclasses.replace(made.adapter, b=made.adapter.b * 100))


def named(name: str) -> Method:
    return next(method for method in METHODS if method.name == name)


def answers(subject: Subject, name: str) -> list[list[list[int]]]:
    """Return the tokens of several questions, one of them repeated."""
    prepared = named(name).prepare(subject)
    with prepared.attach():
        return [list(prepared.answer(question)) for question in (*QUESTIONS[:3], QUESTIONS[0])]


@pytest.mark.parametrize("name", [method.name for method in METHODS if method.in_context and not method.frames][1:])
def test_in_context_answers_do_not_depend_on_what_is_kept(subject, name):
    cold = answers(subject, "in context, cold")
    assert answers(subject, name) == cold
    assert cold[0] != cold[1] and cold[0] == cold[3]


@pytest.mark.parametrize("name", [method.name for method in METHODS if method.needs_adapter])
def test_adapters_answer_alike_however_they_are_applied(subject, name):
    vlm = subject.vlm
    with v2l.applied(vlm, subject.adapter, merged=False):
        expected = list(vlm.greedy([methods.question_embeddings(QUESTIONS[0], vlm)], 4, for_speed=True))
    assert answers(subject, name)[0] == expected


def test_answers_without_a_video_differ(subject):
    assert answers(subject, "no video") != answers(subject, "adapter, attached")


def test_prompt_sizes_are_those_of_the_prompts(subject):
    vlm = subject.vlm
    stream = v2l.inference.ask.stream_in_context(subject.video, QUESTIONS[0], vlm, subject.reading, max_new_tokens=1)
    assert prompt_size(subject, named("in context, KV on disk")) == (stream.prompt_tokens, stream.visual_tokens)
    answer = v2l.stream(subject.adapter, QUESTIONS[0], vlm, max_new_tokens=1)
    assert prompt_size(subject, named("adapter, from disk")) == (answer.prompt_tokens, 0)


def test_what_is_kept_is_counted_in_bytes(subject):
    vlm = subject.vlm
    prompt, visual = prompt_size(subject, named("in context, cold"))
    size = {method.name: method.prepare(subject).kept_bytes for method in METHODS}
    assert size["in context, cold"] == size["no video"] == 0
    assert size["in context, frames decoded"] == 8 * 3 * vlm.geometry.image_size**2
    assert size["in context, features kept"] == visual * 48 * 4
    # All of the prompt except the tokens of the question.
    assert vlm.kv_bytes(prompt - 40) < size["in context, KV in memory"] < vlm.kv_bytes(prompt)
    assert size["in context, KV in memory"] < size["in context, KV on disk"] < size["in context, KV in memory"] + 4096
    assert size["adapter, attached"] == 3 * 8 * (96 + 48) * ADAPTER_TYPE.itemsize
    assert size["adapter, from disk"] == (subject.folder / "clip.v2l.safetensors").stat().st_size


def names(vlm, frames: int) -> list[str]:
    return [method.name for method in distinct_methods(vlm, frames, as_timeline=frames > 16)]


def results_of(vlm, hypernetwork, folder, journal=None, **plan):
    run = Bench(vlm, hypernetwork, Plan(**{"frames": (4, 24), **QUICK, **plan}), folder)
    opened = Journal(journal, run.header(), "bench", "model, machine or setting") if journal else None
    return list(run.run(opened))


def test_a_sweep_measures_every_method_once(vlm, hypernetwork, tmp_path):
    results = results_of(vlm, hypernetwork, tmp_path, resolutions=(None, 64))
    settings = compare(results)
    assert [(each.frames, each.resolution) for each in settings] == [(4, 32), (4, 64), (24, 32), (24, 64)]
    for setting in settings:
        assert [cell.way for cell in setting.cells] == names(vlm, setting.frames)
        assert {cell.status for cell in setting.cells} == {"measured"}
        assert all(len(cell.first_token) == 2 and cell.median <= cell.p95 for cell in setting.cells)
        assert all(cell.tokens_per_second > 0 for cell in setting.cells)
        # What keeps nothing of the video is not charged for anything once per video, such as the import of a peer.
        assert all((cell.prepare > 0) == (cell.kept_bytes > 0) for cell in setting.cells)
        assert setting.encoding.see > 0 and setting.encoding.read > 0 and setting.encoding.added >= 0
    # 64 pixels are four tiles and the whole frame, which no longer fit 1,024 positions at 24 frames
    tokens = {(each.frames, each.resolution): each.cells[0] for each in settings}
    assert [tokens[place].visual_tokens for place in tokens] == [16, 80, 96, 480]
    assert [tokens[place].beyond_positions for place in tokens] == [False, False, False, True]
    assert [len(table[1]) for table in sweep(settings)] == [2, 2]
    row, timeline = settings[-1].cell("timeline, from disk"), v2l.Timeline.load(tmp_path / "timeline.v2l.safetensors")
    assert len(timeline.description.segments) == 3 and row.kept_bytes == timeline.file.size
    assert row.prompt_tokens > settings[-1].cell("adapter, from disk").prompt_tokens  # its question names a time


def test_no_measurement_appears_under_two_names(vlm, hypernetwork, tmp_path):
    # On the CPU in float32 the attached adapter is the merged one.
    assert [name for name in names(vlm, 12) if name not in names(vlm, 24)] == []
    assert [name for name in names(vlm, 24) if name not in names(vlm, 12)] == [
        "in context, 12 frames, cold",
        "timeline, from disk",
    ]
    assert {method.name for method in METHODS} - {*names(vlm, 24)} == {"adapter, merged"}
    results = results_of(vlm, hypernetwork, tmp_path, frames=(12, 24))
    cells = {(result.frames, result.way): result for result in results if isinstance(result, Cell)}
    few = cells[24, "in context, 12 frames, cold"]
    assert few == dataclasses.replace(cells[12, "in context, cold"], frames=24, way=few.way)


def test_a_journal_is_resumed_and_belongs_to_its_machine(vlm, hypernetwork, tmp_path):
    path = tmp_path / "bench.jsonl"
    first = results_of(vlm, hypernetwork, tmp_path, path, frames=(4,))
    whole = path.read_text()
    path.write_text(whole[: len(whole) * 2 // 3])  # interrupted in the middle of a line
    kept = path.read_text().count("\n") - 1
    again = results_of(vlm, hypernetwork, tmp_path, path, frames=(4,))
    assert 0 < kept < len(first) == len(again)
    assert again[:kept] == first[:kept] and again != first
    with pytest.raises(v2l.V2LError, match="made with another model, machine or setting"):
        results_of(vlm, hypernetwork, tmp_path, path, frames=(4,), new_tokens=5)
    (tmp_path / "poem.jsonl").write_text("no bench\n")
    with pytest.raises(v2l.V2LError, match="not a resumable bench"):
        results_of(vlm, hypernetwork, tmp_path, tmp_path / "poem.jsonl", frames=(4,))
    assert (tmp_path / "poem.jsonl").read_text() == "no bench\n"


def test_measurements_after_the_budget_are_left_out(vlm, hypernetwork, tmp_path):
    results = results_of(vlm, hypernetwork, tmp_path, tmp_path / "b.jsonl", budget=1e-9)
    assert {cell.status for cell in results} == {"left out"}
    assert (tmp_path / "b.jsonl").read_text().count("\n") == 1  # the header only
    for table in (token_load, first_token, lambda each: amortization(each, 5)):
        header, rows = table(compare(results)[0])
        assert all(len(row) == len(header) for row in rows)


def test_a_prompt_too_large_for_the_memory_is_estimated(vlm, hypernetwork, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "MEMORY_SHARE", 0.0)
    results = results_of(vlm, hypernetwork, tmp_path, frames=(4,))
    in_context = [cell for cell in results if getattr(cell, "in_context", False)]
    assert {cell.status for cell in in_context} == {"estimated"}
    assert all("GB are free" in cell.why for cell in in_context)
    assert {cell.status for cell in results if isinstance(cell, Cell) and not cell.in_context} == {"measured"}


def test_a_video_with_too_few_frames_is_refused(vlm, hypernetwork, videos, tmp_path):
    with pytest.raises(v2l.V2LError, match=r"has 32 frames and 33 were asked for; name a longer video"):
        Bench(vlm, hypernetwork, Plan((8, 33), video=videos[0]), tmp_path)
    with pytest.raises(v2l.V2LError, match=r"^4 frames cannot make 5 segments; give a frame for each$"):
        Bench(vlm, hypernetwork, Plan((8, 4), video=videos[0], segments=5), tmp_path)


def test_adapters_composed_of_segments_are_measured_alike(vlm, hypernetwork, tmp_path):
    results = results_of(vlm, hypernetwork, tmp_path, tmp_path / "b.jsonl", frames=(24,), segments=3)
    cells = {result.way: result for result in results if isinstance(result, Cell)}
    assert list(cells) == names(vlm, 24)
    assert cells["adapter, attached"].kept_bytes == 3 * (3 * 4 + 4) * (96 + 48) * ADAPTER_TYPE.itemsize
    (encoding,) = [result for result in results if isinstance(result, Encoding)]
    assert encoding.windows == 3 and encoding.see > 0 and encoding.read > 0
    with pytest.raises(v2l.V2LError, match="made with another model, machine or setting"):
        results_of(vlm, hypernetwork, tmp_path, tmp_path / "b.jsonl", frames=(24,))


@pytest.mark.parametrize("frames", [1, 2, 30, 4000])
def test_a_drawn_video_has_as_many_real_frames_as_asked(tmp_path, frames):
    video = probe(drawn_video(frames, 32, tmp_path))
    assert (video.frame_count, video.width, video.height) == (frames, 128, 96)


def cell(way: str, first: float, prepare: float, in_context: bool = True) -> Cell:
    return Cell(8, 32, way, in_context, "measured", "", 100, 32, False, (first,) * 3, 9.0, prepare, 1000, 10**6)


def test_break_even_is_the_first_question_count_at_which_the_adapter_is_cheaper():
    for first, prepare, encoding in itertools.product((0.5, 1.0, 1.5, 7.0), (0.0, 3.0), (2.0, 20.0)):
        other = cell("in context, cold", first, prepare)
        setting = BenchSetting((other, cell("adapter, attached", 1.0, encoding, False)), None)
        cheaper = [n for n in range(1, 1000) if encoding + n * 1.0 <= prepare + n * first]
        assert setting.break_even(other) == (cheaper[0] if cheaper else None)


def test_tables_show_the_cells():
    cells = (cell("in context, cold", 2.0, 0.0), cell("adapter, attached", 0.02, 5.0, False))
    setting = BenchSetting(cells, Encoding(8, 32, 1, 3.0, 1.0, 1.2, None))
    assert token_load(setting)[1][0] == ["in context, cold", "32", "100", "1 x", "1.0 kB"]
    _, (cold, adapter) = first_token(setting)
    assert cold == ["in context, cold", "2 s", "2 s", "3", "100 x", "9.0", "1.0 MB", ""]
    assert adapter[4] == ""
    header, (cold, adapter) = amortization(setting, 20)
    assert header[2:-1] == ["1 question", "2 questions", "5 questions", "10 questions", "20 questions"]
    assert cold[1:] == ["nothing"] + ["2 s"] * 5 + ["3 questions"]
    assert adapter[1:] == ["5 s", "5.02 s", "2.52 s", "1.02 s", "520 ms", "270 ms", ""]
    assert setting.encoding.added == pytest.approx(0.3)
    assert question_counts(7) == [1, 2, 5, 7] and question_counts(1) == [1]


def test_what_the_budget_left_out_never_reads_as_never():
    """The adapter pays off never only if both times were measured and it is no faster."""
    fast, slow, attached = cell("in context, cold", 0.01, 0.0), cell("in context, cold", 2.0, 0.0), "adapter, attached"
    adapter = cell(attached, 0.02, 5.0, False)
    left_out = Cell(8, 32, attached, False, "left out", "the budget is spent")
    unmeasured = dataclasses.replace(slow, status="left out", first_token=(), prepare=None)
    estimated = dataclasses.replace(slow, status="estimated", prepare=None)
    for other, mine, expected in (
        (fast, adapter, "never"),
        (slow, adapter, "3 questions"),
        (slow, left_out, "not measured"),
        (unmeasured, adapter, "not measured"),
        (estimated, adapter, "not measured"),
    ):
        header, rows = amortization(BenchSetting((other, mine), None), 20)
        assert rows[0][-1] == expected
        assert all(len(row) == len(header) for row in rows)
        assert [row[1] == "not measured" for row in rows] == [each.status != "measured" for each in (other, mine)]


def test_estimates_follow_the_dimensions(vlm):
    layer = vlm.language_model.layers[0]
    matrices = (layer.qkv_proj, layer.o_proj, layer.gate_up_proj, layer.down_proj)
    weights = vlm.num_layers * sum(matrix.numel() for matrix in matrices)
    # For one token, attention adds little to one multiply-add per weight.
    assert weights < prefill_work(vlm, 1) < weights * 1.02
    assert prefill_work(vlm, 2000) > 2 * prefill_work(vlm, 1000)
    assert vision_work(vlm, 6) == 6 * vision_work(vlm, 1)
    assert vlm.kv_bytes(10) == 10 * 2 * 3 * 2 * 12 * 4
    assert prefill_bytes(vlm, 10) > vlm.kv_bytes(10)


def test_an_architecture_with_random_weights_is_a_model_like_any_other(tmp_path, videos):
    config = small.small_config()
    architecture = Architecture(
        config.text_config.to_dict() | {"vocab_size": 1024},
        config.vision_config.to_dict(),
        scale_factor=2,
        resolution=32,
        hypernetwork={"rank": 4, "latent_size": 32, "num_blocks": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
    )
    vlm, hypernetwork = random_model("mine", tmp_path / "model", "cpu", architecture=architecture)
    adapter = v2l.encode(videos[0], vlm, hypernetwork, frames=3)
    assert adapter.description.base_model.id == "random weights of mine"
    assert adapter.a.shape == (3, 8, 96)
    again, _ = random_model("mine", tmp_path / "again", "cpu", architecture=architecture)
    assert again.fingerprint == vlm.fingerprint and v2l.ask(adapter, "what?", again) == v2l.ask(adapter, "what?", vlm)
    with pytest.raises(v2l.V2LError, match=r"unknown architecture mine; choose from smolvlm2-500m, smolvlm2-2\.2b"):
        random_model("mine", tmp_path / "third")


# The command -------------------------------------------------------------------------------------------------------


def test_bench_prints_three_tables_and_writes_files(model_folder, vlm, tmp_path):
    files = {"-o": "b.jsonl", "--csv": "b.csv", "--plot": "b.png"}
    options = [word for name, file in files.items() for word in (name, tmp_path / file)]
    words = ["bench", "--frames", "4", "--model", model_folder, "--repeats", "1", "--new-tokens", "2"]
    done = run(*words, *options)
    assert done.code == 0, done.err
    titles = [line.split("\t")[0] for line in done.out.splitlines() if "\t" in line]
    assert [t for t in titles if not t.startswith(("in context", "adapter", "no video", "transformers"))] == [
        "token load",
        "time to first token",
        "time per question",
    ]
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "b.csv").read_text().count("\n") == 1 + len(names(vlm, 4))
    # The same times from the journal, nothing is measured again.
    again = run(*words, *options, "--json")
    records = again.records
    assert [record.get("kind") for record in records] == [None, *["way"] * len(names(vlm, 4)), "encoding"]
    shown = next(r for r in records if r.get("way") == "adapter, attached")
    assert f"{1000 * shown['median']:.3g} ms" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frames", "many"], "--frames 'many': give comma-separated whole numbers, such as 12,64"),
        (["--frames", "0"], "--frames '0': give numbers of at least 1"),
        (["--arch", "smolvlm2-500m"], "--arch and --random-weights belong together"),
        (["--arch", "smolvlm2-500m", "--random-weights", "--model", "x"], "--arch builds its own model"),
        (["--plot", "b.gif"], "--plot b.gif: name a .png, .svg or .pdf"),
        (["--budget", "0"], "--budget is 0.0; give a number above 0"),
    ],
)
def test_bench_refuses_what_it_cannot_do(words, message):
    done = run("bench", *words)
    assert done.code == 2 and message in done.err


def test_repeats_that_differ_by_more_than_twice_are_marked():
    steady = Cell(8, 64, "in context, cold", True, "measured", first_token=(1.0, 1.5), prepare=0.0)
    busy = dataclasses.replace(steady, way="adapter, attached", in_context=False, first_token=(0.1, 0.25))
    (setting,) = compare([steady, busy])
    assert [row[1].endswith("*") for row in first_token(setting)[1]] == [False, True]
    assert "2.5 x" in unsteady_line([setting])
    assert unsteady_line(compare([steady])) is None
    pictures = plot_bench([setting], 20, "title", "svg")
    assert list(pictures) == ["first-token", "questions"]
    bars = pictures["first-token"].decode()
    assert "<!--  1.25 s -->" in bars and "<!--  175 ms * -->" in bars
    ends = re.findall(r"<!-- (in context, cold|adapter, attached) -->", pictures["questions"].decode())
    assert sorted(ends) == ["adapter, attached", "in context, cold"]
