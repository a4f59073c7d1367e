"""The proof of a model and its hypernetwork on videos: the library function and `v2l verify --video`."""

import json

import pytest
import torch
from broken import BROKEN
from typer.testing import CliRunner

import v2l
from v2l.cli.app import app
from v2l.cli.console import TINY
from v2l.errors import V2LError
from v2l.inference.proof import LEAST_SHARE, prove
from v2l.inference.timeline import CAPTION_QUESTIONS
from v2l.models.checkpoint import save_hypernetwork
from v2l.models.processor import question_text
from v2l.tiny.demo import draw_clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return draw_clips(tmp_path_factory.mktemp("clips"), 2)


@pytest.fixture(scope="module")
def tiny():
    return v2l.load_vlm("tiny", device="cpu")


@pytest.fixture(scope="module")
def trained():
    return v2l.load_hypernetwork("tiny", device="cpu")


@pytest.fixture(scope="module")
def own_adapters(clips, tiny, trained):
    return [v2l.encode(clip, tiny, trained) for clip in clips]


def test_the_embedded_model_passes_by_far(clips, tiny, trained, own_adapters):
    """The likelihoods equal those of a forward pass per adapter, in float64."""
    proofs = prove(clips, tiny, trained)
    for proof, (own, other) in zip(proofs, (own_adapters, own_adapters[::-1]), strict=True):
        assert proof.trouble is None
        assert proof.own - max(proof.other, proof.bias) > 3 * LEAST_SHARE * (proof.in_context - proof.bias)
        prompt = tiny.tokenize(question_text(*CAPTION_QUESTIONS))
        target = tiny.tokenize(" " + proof.caption)
        found = []
        for adapter in (own, other, own.bias_alone()):
            with v2l.applied(tiny, adapter):
                logits = tiny.logits(torch.cat([prompt, target]))[len(prompt) - 1 : -1]
            found.append(logits.double().log_softmax(-1).gather(1, target[:, None]).mean().item())
        assert [proof.own, proof.other, proof.bias] == pytest.approx(found, abs=1e-4)
        assert proof.tokens == len(target)


@pytest.mark.parametrize("name", ["all shuffled", "all drawn anew but for the bias"])
def test_a_broken_hypernetwork_fails(clips, tiny, trained, name):
    assert any(proof.trouble for proof in prove(clips, tiny, BROKEN[name](trained, 0)))


def test_two_different_videos_are_needed(clips, tiny, trained):
    with pytest.raises(V2LError, match="at least two"):
        prove(clips[:1], tiny, trained)
    with pytest.raises(V2LError, match="are the same video"):
        prove([clips[0], clips[0]], tiny, trained)


def test_verify_proves_a_model_on_a_video_and_a_drawn_clip(clips, own_adapters, tmp_path):
    saved = tmp_path / "clip.v2l.safetensors"
    own_adapters[1].save(saved)
    done = CliRunner().invoke(app, ["verify", str(saved), "--video", str(clips[1]), "--json"])
    assert (done.exit_code, done.stderr) == (0, f"v2l: {TINY}\n")  # the adapter names its model
    adapter, own, drawn = map(json.loads, done.stdout.splitlines())
    assert (adapter["adapter"], own["video"], drawn["video"]) == (str(saved), str(clips[1]), None)
    assert adapter["sound"] and own["sound"] and own["own"] > max(own["other"], own["bias"])


def test_verify_says_which_likelihood_is_too_low(clips, trained, tmp_path):
    path = tmp_path / "silent.safetensors"
    save_hypernetwork(BROKEN["silent"](trained, 0), path)
    words = ["--video", clips[1], "--model", "tiny", "--hypernetwork", path]
    done = CliRunner().invoke(app, ["verify", *map(str, words)])
    assert done.exit_code == 1
    assert "no more of it than the learned bias alone" in done.stderr.splitlines()[1]
    assert "nats per token" in done.stdout
