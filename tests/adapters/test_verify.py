"""Verification: the library function and `v2l verify`."""

import dataclasses

import numpy as np
import pytest
import torch
from terminal import run

import v2l
from v2l.adapters.verify import PROBES, verify
from v2l.models.processor import question_text


def test_a_sound_adapter_moves_its_model_further_than_its_bias(vlm, strong, adapters):
    verdict = verify(strong, vlm)
    assert verdict.trouble is None
    assert verdict.on_model.tokens > 0 and verdict.on_model.largest > 0.1
    weak = verify(adapters[0], vlm)
    assert 0 < weak.over_bias.divergence < verdict.over_bias.divergence
    assert weak.weights_sha256 == verdict.weights_sha256


def test_the_effect_is_what_the_definition_says(vlm, strong):
    """Compare with the divergence computed probe by probe in float64."""
    divergences = []
    for probe in PROBES:
        ids = vlm.tokenize(question_text(probe))
        p = vlm.logits(ids).double().softmax(-1)
        with v2l.applied(vlm, strong):
            q = vlm.logits(ids).double().softmax(-1)
        divergences += (q * (q / p).log()).sum(-1).tolist()
    assert verify(strong, vlm).on_model.divergence == pytest.approx(np.mean(divergences), rel=1e-4)


def test_an_adapter_that_does_nothing_is_found_out(vlm, strong):
    silent = dataclasses.replace(strong, b=torch.zeros_like(strong.b))
    assert "changes nothing" in verify(silent, vlm).trouble
    assert "contains nothing of its video" in verify(strong.bias_alone(), vlm).trouble


def test_verify_says_what_it_found(saved, strong, model_folder, tmp_path):
    done = run("verify", saved, "--model", model_folder)
    assert done.code == 0
    rows = dict(line.split(maxsplit=1) for line in done.lines if not line.startswith(" "))
    assert rows["adapter"] == str(saved) and "nats on average" in rows["effect"]
    silent = tmp_path / "silent.v2l.safetensors"
    dataclasses.replace(strong, b=torch.zeros_like(strong.b)).save(silent)
    damaged = tmp_path / "damaged.v2l.safetensors"
    damaged.write_bytes(saved.read_bytes()[:-1])
    done = run("verify", saved, silent, damaged, "--model", model_folder, "--json")
    assert done.code == 1
    assert [record["sound"] for record in done.records] == [True, False, False]
    assert "changes nothing" in done.notes[0] and "damaged" in done.notes[1]
    foreign = run("verify", saved, "--model", "tiny")
    assert foreign.code == 1 and "was made for" in foreign.err
