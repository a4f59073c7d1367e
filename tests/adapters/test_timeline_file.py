"""The timeline's file, version 2: parts are stored once, read alone, and checked when they are read."""

import dataclasses
import hashlib
import json
import random

import pytest
import torch

import v2l
from v2l.adapters.search import IndexedTimeline
from v2l.adapters.timeline import PartSource, Timeline, open_adapter, write_timeline
from v2l.adapters.timeline_description import TimelineDescription
from v2l.io.records import to_json
from v2l.io.safetensors_file import canonical_json


@pytest.fixture(scope="module")
def timeline(adapters, tmp_path_factory) -> Timeline:
    """An overview and two segments, each answered one question."""
    path = tmp_path_factory.mktemp("timeline") / "talk.v2l.safetensors"
    overview, *segments = adapters
    sources = [PartSource(lambda each=each: each, (f"answer {n}",)) for n, each in enumerate(segments)]
    return write_timeline(path, sources, PartSource(lambda: overview), ["what is shown?"], checked_ns=10**18)


def test_parts_are_read_back_as_they_were_written(timeline, adapters):
    overview, first, second = adapters
    assert torch.equal(timeline.overview().a, overview.a)
    assert torch.equal(timeline.select([1]).b, second.b)
    both, composed = timeline.select([0, 1]), v2l.compose([first, second])
    assert torch.equal(both.a, composed.a) and torch.equal(both.b, composed.b)
    assert [segment.timestamps for segment in both.description.segments] == [
        each.description.segments[0].timestamps for each in (first, second)
    ]
    assert both.description.blocks == composed.description.blocks
    assert [part.answers for part in timeline.description.segments] == [("answer 0",), ("answer 1",)]


def test_the_same_parts_give_the_same_bytes_and_hash(timeline, adapters, tmp_path):
    sources = [PartSource(lambda each=each: each, (f"answer {n}",)) for n, each in enumerate(adapters[1:])]
    again = write_timeline(
        tmp_path / "b", sources, PartSource(lambda: adapters[0]), ["what is shown?"], checked_ns=10**18
    )
    assert (tmp_path / "b").read_bytes() == timeline.path.read_bytes()
    assert again.file.sha256 == timeline.file.sha256


def test_each_version_names_the_reader_of_the_other(timeline, adapters, tmp_path):
    with pytest.raises(v2l.V2LError, match=r"timeline.*Timeline\.load"):
        v2l.Adapter.load(timeline.path)
    adapters[0].save(tmp_path / "one.v2l.safetensors")
    with pytest.raises(v2l.V2LError, match=r"Adapter\.load"):
        Timeline.load(tmp_path / "one.v2l.safetensors")
    assert isinstance(open_adapter(timeline.path), Timeline)
    assert isinstance(open_adapter(tmp_path / "one.v2l.safetensors"), v2l.Adapter)


def test_damage_is_found_in_the_part_that_is_read_and_by_check(timeline, tmp_path):
    data = bytearray(timeline.path.read_bytes())
    data[timeline.file.entries["segments.00001.B"].start] ^= 1
    path = tmp_path / "bad.v2l.safetensors"
    path.write_bytes(data)
    opened = Timeline.load(path)
    opened.select([0])
    with pytest.raises(v2l.V2LError, match=r"segments\.00001 do not match"):
        opened.select([1])
    with pytest.raises(v2l.V2LError, match="do not match"):
        opened.check()
    timeline.check()


def test_no_changed_byte_of_the_header_is_accepted(timeline, tmp_path):
    whole = timeline.path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    path = tmp_path / "bad.v2l.safetensors"
    chosen, index, refused = random.Random(0), IndexedTimeline.read(timeline.path), 0
    for place in chosen.sample(range(8 + len(whole[8 : 8 + length].rstrip())), 400):
        data = bytearray(whole)
        data[place] ^= 1 << chosen.randrange(8)
        path.write_bytes(data)
        with pytest.raises(v2l.V2LError):
            Timeline.load(path)
        try:
            assert IndexedTimeline.read(path) == index  # the change is in the place of a tensor
        except v2l.V2LError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1, +1])
def test_cut_and_lengthened_files_are_refused(timeline, tmp_path, size):
    data = timeline.path.read_bytes()
    (tmp_path / "cut").write_bytes(data + b"\0" if size == 1 else data[:size])
    for read in Timeline.load, IndexedTimeline.read:
        with pytest.raises(v2l.V2LError, match="sound"):
            read(tmp_path / "cut")


def resealed(timeline, path, change, tensors=lambda header: None):
    """Write the timeline with other metadata and a sha256 that fits it."""
    data = timeline.path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = json.loads(header["__metadata__"]["v2l"])
    change(metadata)
    metadata.pop("sha256")
    metadata["sha256"] = hashlib.sha256(canonical_json(metadata).encode()).hexdigest()
    header["__metadata__"]["v2l"] = canonical_json(metadata)
    tensors(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["segments"].clear(), "0 segments"),
        (lambda m: m["segments"].append(m["segments"][0]), "tensors"),
        (lambda m: m["segments"][0].update(recipe=7), "unknown recipe"),
        (lambda m: m["recipes"].append(m["recipes"][0]), "recipes"),
        (lambda m: m["segments"][0].update(rank=3), "rank 3"),
        (lambda m: m["segments"][0].update(answers=[]), "index"),
        (lambda m: m["overview"].update(answers=["x"]), "index"),
        (lambda m: m["segments"][0].update(timestamps=[]), "windows"),
        (lambda m: m["segments"][0].update(sha256="no"), "64 hex digits"),
        (lambda m: m["recipes"][0]["reading"].update(start=1.0), "range"),
        (lambda m: m.update(dtype="float16"), "float16"),
        (lambda m: m.update(bias_rank=9), "rank 9"),
        (lambda m: m.update(more=1), "exactly"),
    ],
)
def test_descriptions_that_contradict_themselves_are_refused(timeline, tmp_path, change, says):
    with pytest.raises(v2l.V2LError, match=says):
        Timeline.load(resealed(timeline, tmp_path / "bad", change))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["segments"].clear(), "index"),
        (lambda m: m["segments"][1].update(recipe=7), "unknown recipe"),
        (lambda m: m["segments"][1].update(start=99.0), "impossible time"),
        (lambda m: m["segments"][1].update(answers=[]), "index"),
        (lambda m: m["segments"][1].update(answers=[1]), r"segments\[1\].answers\[0\] must be of type str"),
        (lambda m: m["recipes"][0]["source"].pop("name"), "must be an object with name"),
        (lambda m: m.pop("questions"), "questions"),
    ],
)
def test_a_search_refuses_what_it_cannot_rely_on(timeline, tmp_path, change, says):
    with pytest.raises(v2l.V2LError, match=says):
        IndexedTimeline.read(resealed(timeline, tmp_path / "bad", change))


def test_a_search_reads_the_same_fields_as_a_timeline(timeline, tmp_path):
    read, made = IndexedTimeline.read(timeline.path), timeline.file.description
    assert (read.questions, read.base_model.fingerprint) == (made.questions, made.base_model.fingerprint)
    assert [each.source.name for each in read.recipes] == [each.source.name for each in made.recipes]
    for one, other in zip(read.segments, made.segments, strict=True):
        assert (one.recipe, one.start, one.end, one.answers) == (other.recipe, other.start, other.end, other.answers)
    another_writers = resealed(timeline, tmp_path / "spaced", lambda metadata: None)
    assert IndexedTimeline.read(another_writers) == read
    another_writers.write_bytes(another_writers.read_bytes()[:-8])
    with pytest.raises(v2l.V2LError, match="describes others"):
        IndexedTimeline.read(another_writers)


@pytest.mark.parametrize(
    ("name", "entry", "says"),
    [
        ("bias.A", {"shape": [2**40, 2**40]}, "impossible"),
        ("bias.A", {"shape": [-1]}, "impossible"),
        ("bias.A", {"shape": [True]}, "impossible"),
        ("bias.A", {"data_offsets": [0, 8]}, "another size"),
        ("bias.B", {"data_offsets": [0, 0], "shape": [0]}, "follow"),
        ("overview.A", {"dtype": "I64"}, "not float32"),
    ],
)
def test_tensors_that_do_not_fill_the_file_are_refused(timeline, tmp_path, name, entry, says):
    path = resealed(timeline, tmp_path / "bad", lambda m: None, lambda header: header[name].update(entry))
    with pytest.raises(v2l.V2LError, match=says):
        Timeline.load(path)


def test_values_that_are_not_finite_are_refused(timeline, adapters, tmp_path):
    infinite = dataclasses.replace(adapters[1], b=adapters[1].b.clone())
    infinite.b[0, 0, 0] = float("inf")
    written = write_timeline(tmp_path / "bad", [PartSource(lambda: infinite)], PartSource(lambda: adapters[0]))
    with pytest.raises(v2l.V2LError, match="not finite"):
        written.select([0])


def test_parts_of_different_hypernetworks_are_refused_and_nothing_is_written(adapters, tmp_path):
    made = adapters[1].description
    other = dataclasses.replace(made.hypernetwork, sha256="0" * 64)
    foreign = dataclasses.replace(adapters[1], description=dataclasses.replace(made, hypernetwork=other))
    with pytest.raises(v2l.V2LError, match="different hypernetworks"):
        write_timeline(tmp_path / "mixed", [PartSource(lambda: adapters[0]), PartSource(lambda: foreign)])
    assert not list(tmp_path.iterdir())


def test_all_segments_together_are_refused_beyond_the_rank_of_engines(adapters, tmp_path):
    many = write_timeline(tmp_path / "many", [PartSource(lambda: adapters[0])] * 130)
    with pytest.raises(v2l.V2LError, match=r"130 segments.*--each"):
        many.whole()
    assert many.select(range(100)).rank == 404


def test_a_file_of_several_videos_has_no_overview(adapters, tmp_path):
    joined = write_timeline(tmp_path / "joined", [PartSource(lambda each=each: each) for each in adapters])
    assert len(joined.description.sources) == 3
    with pytest.raises(v2l.V2LError, match="--each"):
        joined.overview()


def test_the_description_is_plain_json(timeline):
    assert to_json(timeline.description).keys() == TimelineDescription.__dataclass_fields__.keys()
