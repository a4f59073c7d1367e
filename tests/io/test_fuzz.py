"""Mutated files are read or refused, driven by hypothesis. For a long run: `python tests/stress/fuzz.py 100000`."""

import random

import fuzz
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

KINDS = ("adapter.v2l.safetensors", "hypernetwork.safetensors", "timeline.v2l.safetensors", "published.pt")


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return fuzz.subjects(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("inputs")


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(subjects, place, kind):
    sound, mutations, reader = subjects[kind]
    outcomes = set()

    @settings(max_examples=40 if kind == KINDS[3] else 150, deadline=None, derandomize=True, database=None)
    @given(st.integers(0, len(sound) - 1), st.sampled_from(mutations), st.integers(0, 2**32))
    def mutated(number, mutation, seed):
        (place / kind).write_bytes(mutation(sound[number], random.Random(seed)))
        outcomes.add(fuzz.read(place / kind, reader))

    mutated()
    assert "refused" in outcomes


@pytest.mark.parametrize("kind", KINDS)
def test_the_sound_files_are_read(subjects, place, kind):
    for data in subjects[kind][0]:
        (place / kind).write_bytes(data)
        assert fuzz.read(place / kind, subjects[kind][2]) == "read"


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.binary(max_size=200))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_any_bytes_are_refused(subjects, place, kind, data):
    (place / kind).write_bytes(data)
    assert fuzz.read(place / kind, subjects[kind][2]) == "refused"
