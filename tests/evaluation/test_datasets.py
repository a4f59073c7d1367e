"""The paper's benchmarks, in small folders of the published layout: reading, selection, missing files and errors."""

import io
import json
import shutil
import signal
import sys
import warnings

import pytest

from v2l.cli.app import app
from v2l.errors import V2LError
from v2l.evaluation.datasets import __main__ as rows
from v2l.evaluation.datasets import carebench, names, vdc
from v2l.evaluation.datasets.annotations import BenchmarkQuestion, Unit
from v2l.evaluation.datasets.registry import BENCHMARKS, choose, read_benchmark
from v2l.io.manifest import Example, read_manifest

QA = "\n\nAnswer only the question, in one sentence."


def jsonl(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


CAPTIONS = {f"{subset}_caption": f"a {subset} text " for subset in vdc.PROMPTS}
CAREBENCH = {
    "caption": "a man",
    "events": ["he stands", "he sits"],
    "objects": ["man", "pipe"],
    "spatial_caption": "left",
    "temporal_caption": "then",
}
SUBJECT = {"masklet_id": 0, "total_frames": 60}
PAIR = {"sub_category": "subjects", "primary_category": "video content"}
NEXTQA = "video,frame_count,width,height,question,answer,qid,type\n"

FOLDERS = {
    "activitynet-captions": {
        "val_1.json": json.dumps(
            {
                "v_b": {"duration": 9.5, "timestamps": [[0, 4], [4, 9]], "sentences": ["He runs.", " He stops. "]},
                "v_a": {"duration": 5, "timestamps": [[0, 5]], "sentences": ["She sings."]},
            }
        ),
        "v1-3/train_val/v_a.webm": "",
        "videos/v_b.mp4": "",
    },
    "plm-rdcap": {
        "rdcap/plm_rdcap_test.jsonl": jsonl(
            {
                "uid": 7,
                "video": "sav_000001.mp4",
                **SUBJECT,
                "dense_captions": [
                    {"start_frame": 30, "end_frame": 59, "caption": "It sits."},
                    {"start_frame": 0, "end_frame": 29, "caption": "It runs."},
                ],
            }
        ),
        "videos_fps_6/sav_000001.mp4": "",
    },
    "plm-rcap": {
        "rcap/plm_rcap_test.jsonl": jsonl(
            {"uid": 8, "video": "s.mp4", **SUBJECT, "caption": "It sits.", "start_frame": 30, "end_frame": 59}
        ),
        "videos/s.mp4": "",
    },
    "plm-sgqa": {
        "sgqa/plm_sgqa_test.jsonl": jsonl(
            {"uid": "q1", "video": "f_1_2.mp4", "question": "Is it?", "answer": "It is.", "domain": "x"}
        ),
        "videos/sgqa/f_1_2.mp4": "",
    },
    "vdc": {
        "VDC_1k.jsonl": jsonl({"video_id": "9", "video_name": "9.mp4", "source": "x", **CAPTIONS}),
        "videos/videos_2/9.mp4": "",
    },
    "carebench": {
        "json/metadata.json": json.dumps([{"idx": 0, "video": "v_1.mp4", **CAREBENCH}]),
        "videos/v_1.mp4": "",
    },
    "nextqa": {
        "test.csv": NEXTQA + '42,300,640,360,"what is it, really",a dog,5,DO\n43,3,4,5,who,a boy,0,CW\n',
        "map_vid_vidorID.json": '{"42": "0101/42"}',
        "NExTVideo/0101/42.mp4": "",
        "NExTVideo/43.mp4": "",
    },
    "activitynet-qa": {
        "dataset/test_q.json": json.dumps([{"video_name": "-a_1", "question": "is it day", "question_id": "v_-a_1_3"}]),
        "dataset/test_a.json": json.dumps([{"answer": "yes", "type": 3, "question_id": "v_-a_1_3"}]),
        "all_test/v_-a_1.mkv": "",
    },
    "vidcapbench": {
        "VidCapBench-AE_QA.jsonl": jsonl(
            {
                "video_dir": "/somewhere/videos/T_20.mp4",
                "QA_pairs": [
                    {"question": "Who?", "answer": "A child.", **PAIR},
                    {"question": "Where?", "answer": "Here.", **PAIR},
                ],
            }
        ),
        "videos/T_20.mp4": "",
    },
}
"""The files of every benchmark by name. The videos are empty, because only their names are needed."""

READ = {
    "activitynet-captions": [
        ("v_a", "v1-3/train_val/v_a.webm", "Describe what is happening in this video.", "She sings."),
        ("v_b", "videos/v_b.mp4", "Describe what is happening in this video.", "He runs. He stops."),
    ],
    "plm-rdcap": [("7", "videos_fps_6/sav_000001.mp4", "Describe what happens in this video.", "It runs. It sits.")],
    "plm-rcap": [("8", "videos/s.mp4", "Describe what happens in this video clip.", "It sits.")],
    "plm-sgqa": [("q1", "videos/sgqa/f_1_2.mp4", "Is it?" + QA, "It is.")],
    "nextqa": [
        ("42_5", "NExTVideo/0101/42.mp4", "what is it, really" + QA, "a dog"),
        ("43_0", "NExTVideo/43.mp4", "who" + QA, "a boy"),
    ],
    "activitynet-qa": [("v_-a_1_3", "all_test/v_-a_1.mkv", "is it day" + QA, "yes")],
    "vidcapbench": [
        ("T_20.mp4/1", "videos/T_20.mp4", "Who?" + QA, "A child."),
        ("T_20.mp4/2", "videos/T_20.mp4", "Where?" + QA, "Here."),
    ],
}


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def run_eval(capsys, monkeypatch):
    """Run `v2l eval` in this process, restoring its state: returns exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words):
        with pytest.raises(SystemExit) as caught:
            app(["eval", *map(str, words)])
        return caught.value.code, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, handler)


# Reading -----------------------------------------------------------------------------------------------------------


def test_the_command_line_has_the_names_of_the_registry():
    assert tuple(BENCHMARKS) == names.NAMES


@pytest.mark.parametrize("name", READ)
def test_a_benchmark_is_read_as_it_is_published(tmp_path, name):
    chosen = read_benchmark(name, write(tmp_path, FOLDERS[name]))
    found = [
        (each.id, each.video.relative_to(tmp_path).as_posix(), each.prompt, each.target) for each in chosen.examples
    ]
    assert found == READ[name]
    assert {(each.task, each.kind) for each in chosen.examples} == {(BENCHMARKS[name].task, name)}
    assert (chosen.missing, chosen.unanswerable) == ({}, 0)


def test_every_video_is_asked_in_all_styles(tmp_path):
    chosen = read_benchmark("vdc", write(tmp_path / "vdc", FOLDERS["vdc"]))
    assert [(each.kind, each.prompt) for each in chosen.examples] == list(vdc.PROMPTS.items())
    assert chosen.examples[2].target == "a camera text"
    chosen = read_benchmark("carebench", write(tmp_path / "carebench", FOLDERS["carebench"]))
    assert [(each.kind, each.prompt) for each in chosen.examples] == list(carebench.PROMPTS.items())
    assert [each.target for each in chosen.examples] == ["a man", "he stands; he sits", "man; pipe", "left", "then"]
    assert len({each.clip for each in chosen.examples}) == 1


def test_rcap_is_about_a_part_of_the_video_and_the_others_about_all_of_it(tmp_path):
    (example,) = read_benchmark("plm-rcap", write(tmp_path / "rcap", FOLDERS["plm-rcap"])).examples
    assert (example.start, example.end) == (5.0, 10.0)
    (example,) = read_benchmark("plm-rdcap", write(tmp_path / "rdcap", FOLDERS["plm-rdcap"])).examples
    assert (example.start, example.end) == (None, None)


def test_every_benchmark_is_here_and_in_the_help(run_eval):
    assert set(FOLDERS) == set(BENCHMARKS)
    code, out, _ = run_eval("--help")
    assert code == 0
    assert all(name in "".join(out.split()) for name in BENCHMARKS)


# The choice --------------------------------------------------------------------------------------------------------


def captions(*names):
    return json.dumps({name: {"duration": 1, "timestamps": [[0, 1]], "sentences": ["It is."]} for name in names})


NAMES = [f"v_{number:03}" for number in range(40)]


def test_the_selection_depends_on_the_seed_and_not_on_the_folder(tmp_path):
    full = write(tmp_path / "full", {"val_1.json": captions(*NAMES), **{f"videos/{name}.mp4": "" for name in NAMES}})
    half = write(tmp_path / "half", {"val_1.json": captions(*reversed(NAMES)), "videos/v_001.mp4": ""})

    def ids(*options):
        return [example.id for example in read_benchmark("activitynet-captions", *options).examples]

    chosen = ids(full, 10)
    assert len(chosen) == 10
    assert chosen == sorted(chosen)
    assert chosen == ids(full, 10, 0)
    assert set(ids(full, 5)) < set(chosen) != set(ids(full, 10, 1))
    assert ids(full) == NAMES  # fewer than the paper took
    shutil.copy(full / "videos" / f"{chosen[0]}.mp4", half / "videos")
    assert ids(half, 10) == chosen


def test_the_selection_is_pinned():
    units = [Unit(name, (name,), (BenchmarkQuestion(name, "k", "p", "t"),)) for name in NAMES]
    assert [unit.key for unit in choose(units, 4, 0)] == ["v_013", "v_021", "v_030", "v_037"]


def test_vidcapbench_counts_videos(tmp_path):
    video = json.loads(FOLDERS["vidcapbench"]["VidCapBench-AE_QA.jsonl"])
    lines = jsonl(*({**video, "video_dir": f"/x/{number}.mp4"} for number in range(120)))
    root = write(tmp_path, {"VidCapBench-AE_QA.jsonl": lines, **{f"videos/{n}.mp4": "" for n in range(120)}})
    chosen = read_benchmark("vidcapbench", root)
    assert (chosen.videos, len(chosen.examples)) == (100, 200)
    assert chosen.record["samples"] == 100


def test_the_record_identifies_annotations_and_selection(tmp_path):
    root = write(tmp_path, FOLDERS["nextqa"])
    record = read_benchmark("nextqa", root, 1, 3).record
    assert (record["benchmark"], record["samples"], record["seed"]) == ("nextqa", 1, 3)
    assert set(record["annotations"]) == {"test.csv", "map_vid_vidorID.json"}
    (root / "map_vid_vidorID.json").write_text("{}")
    assert read_benchmark("nextqa", root, 1, 3).record["annotations"] != record["annotations"]


# What is missing or wrong ------------------------------------------------------------------------------------------


def test_missing_videos_are_kept_and_counted(tmp_path):
    root = write(tmp_path, {"val_1.json": captions("v_a", "v_b", "v_c"), "videos/v_b.mp4": ""})
    chosen = read_benchmark("activitynet-captions", root)
    assert [example.id for example in chosen.examples] == ["v_a", "v_b", "v_c"]
    assert chosen.missing == {root / "videos/v_a": "v_a", root / "videos/v_c": "v_c"}
    assert chosen.videos == 3


def test_questions_without_a_reference_are_counted_and_not_chosen(tmp_path):
    rows = json.loads(captions("v_a", "v_b"))
    rows["v_a"]["sentences"] = ["  "]
    chosen = read_benchmark("activitynet-captions", write(tmp_path, {"val_1.json": json.dumps(rows), "v_b.avi": ""}))
    assert [example.id for example in chosen.examples] == ["v_b"]
    assert chosen.unanswerable == 1


def refused(name, root, files=None):
    with pytest.raises(V2LError) as caught:
        read_benchmark(name, write(root, files or {}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_root_is_one_line(tmp_path):
    with pytest.raises(V2LError, match="is not a folder; --root names"):
        read_benchmark("vdc", tmp_path / "nowhere")
    for name in BENCHMARKS:
        assert f"{tmp_path} holds no " in refused(name, tmp_path)
    assert "VDC_1k.jsonl" in refused("vdc", tmp_path)


def test_annotations_without_any_video_are_one_line(tmp_path):
    message = refused("activitynet-captions", tmp_path, {"val_1.json": captions(*NAMES)})
    assert f"none of the 40 videos that activitynet-captions asks about is in {tmp_path}" in message
    assert f"looked for as {tmp_path / 'videos' / 'v_000'}" in message


def test_parquet_alone_is_an_error_with_the_command_that_converts_it(tmp_path):
    message = refused("plm-sgqa", tmp_path, {"sgqa/plm_sgqa_test.parquet": "PAR1"})
    assert "plm_sgqa_test.jsonl exists as parquet only" in message
    assert "pandas.read_parquet('sgqa/plm_sgqa_test.parquet').to_json('sgqa/plm_sgqa_test.jsonl'" in message


@pytest.mark.parametrize("video", ["../../etc/passwd", "/etc/passwd", "a/../../b.mp4", "", "c:\\x.mp4", "\ud800", ".."])
def test_no_annotation_leads_out_of_the_folder(tmp_path, video):
    row = {"uid": "q", "video": video, "question": "Is it?", "answer": "It is."}
    message = refused("plm-sgqa", tmp_path, {"sgqa/plm_sgqa_test.jsonl": jsonl(row)})
    assert "plm_sgqa_test.jsonl, line 1, " in message
    assert "names the video" in message or "has no video" in message


def test_no_map_or_path_of_another_machine_leads_out_of_the_folder(tmp_path):
    files = {"test.csv": NEXTQA + "42,1,1,1,q,a,0,DO\n", "map_vid_vidorID.json": '{"42": "../42"}'}
    assert "names the video ../42" in refused("nextqa", tmp_path, files)
    row = {"video_dir": "/x/..", "QA_pairs": []}
    assert "names the video .." in refused("vidcapbench", tmp_path, {"VidCapBench-AE_QA.jsonl": jsonl(row)})


def test_an_impossible_file_name_is_missing(tmp_path):
    root = write(tmp_path, {"val_1.json": captions("v_a", "v" * 5000), "v_a.mp4": ""})
    assert list(read_benchmark("activitynet-captions", root).missing.values()) == ["v" * 5000]


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("activitynet-captions", {"val_1.json": "{"}, "val_1.json is not JSON: "),
        ("activitynet-captions", {"val_1.json": "[" * 100_000}, "val_1.json is not JSON: "),
        ("activitynet-captions", {"val_1.json": "[]"}, "is not one JSON object"),
        ("activitynet-captions", {"val_1.json": '{"v_a": 3}'}, "val_1.json, v_a, is not an object"),
        ("activitynet-captions", {"val_1.json": '{"v_a": {}}'}, "v_a, has no list of texts sentences"),
        ("activitynet-captions", {"val_1.json": '{"v_a": {"sentences": [1]}}'}, "has no list of texts sentences"),
        ("activitynet-captions", {"val_1.json": "{}"}, "ask nothing"),
        ("activitynet-captions", {"val_1.json": '{"\\u001b[2J": 3}'}, "\\x1b[2J, is not an object"),
        ("activitynet-qa", {"test_a.json": "[]", "test_q.json": "{}"}, "test_q.json is not a list"),
        ("activitynet-qa", {"test_q.json": "[]"}, "holds no test_a.json"),
        (
            "activitynet-qa",
            {
                "test_a.json": "[]",
                "test_q.json": json.dumps([{"video_name": "a", "question": "q", "question_id": "x"}]),
            },
            "entry 1, asks x, which test_a.json does not answer",
        ),
        ("plm-rcap", {"rcap/plm_rcap_test.jsonl": '\n{"uid": true}\n'}, "line 2, has no uid"),
        ("plm-rcap", {"rcap/plm_rcap_test.jsonl": "{\n"}, "line 1, is not JSON"),
        (
            "plm-rcap",
            {"rcap/plm_rcap_test.jsonl": jsonl({"uid": 1, "start_frame": 5, "end_frame": 4})},
            "ends before it starts",
        ),
        (
            "plm-rcap",
            {"rcap/plm_rcap_test.jsonl": '{"uid": 1, "start_frame": NaN, "end_frame": 4}'},
            "has no number start_frame",
        ),
        ("plm-rdcap", {"rdcap/plm_rdcap_test.jsonl": jsonl({"uid": 1})}, "has no list dense_captions"),
        (
            "plm-rdcap",
            {"rdcap/plm_rdcap_test.jsonl": jsonl({"uid": 1, "dense_captions": [3]})},
            "dense_captions 1, is not an object",
        ),
        ("vdc", {"VDC_1k.jsonl": jsonl({"video_id": "a", "video_name": "a"})}, "has no text short_caption"),
        (
            "vdc",
            {"VDC_1k.jsonl": 2 * FOLDERS["vdc"]["VDC_1k.jsonl"]},
            "the annotations of vdc have 9 twice",
        ),
        ("carebench", {"json/metadata.json": json.dumps([{"video": "a"}])}, "has no list of texts caption"),
        ("nextqa", {"test.csv": "video,question\n1,q\n"}, "test.csv, line 2, has no qid"),
        ("nextqa", {"test.csv": "video,question,a0,answer,qid\n1,q,x,0,0\n"}, "is the multiple-choice file"),
        ("nextqa", {"test.csv": NEXTQA + "1,1,1,1," + "x" * 200_000 + ",a,0,D\n"}, "is not CSV"),
        ("nextqa", {"test.csv": NEXTQA, "map_vid_vidorID.json": "[]"}, "map_vid_vidorID.json is not one JSON object"),
    ],
)
def test_annotations_that_are_not_as_published_are_one_line(tmp_path, name, files, message):
    assert message in refused(name, tmp_path, files)


def test_bytes_that_are_not_text_are_one_line(tmp_path):
    (tmp_path / "VDC_1k.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(V2LError, match=r"VDC_1k\.jsonl is not UTF-8 text"):
        read_benchmark("vdc", tmp_path)


# As a manifest, and by the command ---------------------------------------------------------------------------------


def test_a_benchmark_can_be_written_as_a_manifest(tmp_path, capsys):
    root = write(tmp_path / "root", FOLDERS["plm-rcap"])
    assert rows.main(["plm-rcap", str(root)]) == 0
    (tmp_path / "m.jsonl").write_text(capsys.readouterr().out)
    assert read_manifest(tmp_path / "m.jsonl") == [
        Example("8", root / "videos/s.mp4", "caption", "plm-rcap", *READ["plm-rcap"][0][2:], 5.0, 10.0)
    ]
    assert rows.main(["plm-rcap", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert rows.main(["plm-rcup", str(root)]) == 2
    assert "NAME is one of activitynet-captions, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quiet"], "name either a manifest or a --benchmark"),
        (["m.jsonl", "--benchmark", "vdc", "--root", "."], "name either a manifest or a --benchmark"),
        (["--benchmark", "vdc"], "--benchmark vdc needs --root"),
        (["m.jsonl", "--set", "seed=0"], "samples and seed choose from a --benchmark"),
    ],
)
def test_either_a_manifest_or_a_benchmark_is_given(run_eval, words, message):
    code, out, err = run_eval(*words)
    assert (code, out) == (2, "")
    assert message in err


def test_eval_of_an_incomplete_benchmark(run_eval, tmp_path, monkeypatch, videos, model_folder):
    """Existing videos are answered; missing ones are reported once, count as failed, and are answered later."""
    monkeypatch.chdir(tmp_path)
    root = write(tmp_path / "anet", {"val_1.json": captions("v_a", "v_b", "v_c"), "videos/.keep": ""})
    words = ["--benchmark", "activitynet-captions", "--root", root, "--model", model_folder, "--max-new-tokens", 4]
    code, out, err = run_eval(*words)
    assert (code, out) == (1, "")
    assert "none of the 3 videos" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anet"]

    for name, video in zip("ab", videos, strict=False):
        shutil.copy(video, root / "videos" / f"v_{name}.mp4")
    code, out, err = run_eval(*words)
    assert code == 1
    assert "1 of 3 videos are missing: v_c; questions about them count as failed" in err
    assert err.count("v_c") == 1
    assert "1 of 3 questions could not be answered" in err
    assert "activitynet-captions\t2\t" in out
    results = tmp_path / "activitynet-captions.eval.jsonl"
    header, *kept = [json.loads(line) for line in results.read_text().splitlines()]
    assert [header[name] for name in ("benchmark", "samples", "seed", "max_new_tokens")] == [words[1], 500, 0, 4]
    assert [row["id"] for row in kept if row["error"]] == ["v_c"]

    code, out, err = run_eval(*words, "--set", "samples=2")
    assert (code, out) == (1, "")
    assert "was made with another model, hypernetwork, setting or choice of samples" in err

    shutil.copy(videos[2], root / "videos" / "v_c.mp4")
    code, out, err = run_eval(*words, "--json")
    assert code == 0
    assert "2 of 3 questions were answered before" in err
    record = json.loads(out)
    assert (record["benchmark"], record["metric"], record["failed"]) == ("activitynet-captions", "f1", 0)
