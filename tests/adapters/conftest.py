"""Fixtures for adapters whose effect on random weights is visible."""

import dataclasses

import pytest

import v2l


@pytest.fixture(scope="module")
def strong(adapters) -> v2l.Adapter:
    """An adapter strong enough to change the greedy answers of random weights."""
    return dataclasses.replace(adapters[0], b=adapters[0].b * 100)


@pytest.fixture
def saved(strong, tmp_path):
    path = tmp_path / "clip.v2l.safetensors"
    strong.save(path)
    return path
