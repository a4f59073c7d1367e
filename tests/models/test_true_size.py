"""The real architectures at their true size, with random weights."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
import small
import torch
from kept import counting_kept
from peers import transformers_model
from places import ROOT
from true_size import SMOLVLM2_256M, fill_vocabulary, write_published_hypernetwork, write_true_size

from v2l.bench.random_model import random_model
from v2l.evaluation.conditions import CONDITIONS
from v2l.evaluation.report import TITLES
from v2l.io.manifest import Example
from v2l.models.hypernetwork_file import TrainedWith
from v2l.models.loading import published_weights
from v2l.models.presets import find_model
from v2l.models.smolvlm import Window
from v2l.training.data import SampleReader, SamplingConfig, read_sample
from v2l.training.losses import CACHE_BYTES, TrainingObjective

ENCODE = """
import re, sys, time
import v2l

def memory(kind):  # GiB of this process on Linux: VmRSS now, VmHWM at its highest
    return int(re.search(kind + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20

folder, video = sys.argv[1:]
vlm, hypernetwork = v2l.load_vlm(folder, device="cpu"), v2l.load_hypernetwork(folder)
loaded, start = memory("VmRSS"), time.perf_counter()
open("/proc/self/clear_refs", "w").write("5")  # the highest from here on
adapter = v2l.encode(video, vlm, hypernetwork)
seconds = time.perf_counter() - start
(segment,) = adapter.description.segments
adapter.save(folder + "/clip.v2l.safetensors")
print(f"ranks {tuple(adapter.a.shape)} frames {len(segment.timestamps)} windows {segment.windows}")
print(f"memory {loaded:.2f} GiB loaded, {memory('VmHWM'):.2f} GiB at its peak, {seconds:.1f} s")
"""

TRAIN = """
import re, sys, time
from pathlib import Path
import torch
import v2l
from v2l.models.hypernetwork import Hypernetwork
from v2l.training.data import SamplingConfig
from v2l.io.manifest import Example
from v2l.training.trainer import Trainer, Training, sizes_for

def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20

folder, video = sys.argv[1:]
vlm = v2l.load_vlm(folder, device="cpu")
torch.manual_seed(0)
hypernetwork = Hypernetwork(sizes_for(vlm, {}))
before = {name: tensor.clone() for name, tensor in hypernetwork.state_dict().items()}
clips = [Example(str(n), video, "caption", "caption", "Describe it.", "a square", n, n + 12) for n in range(2)]
curriculum = SamplingConfig(resolutions=(384,), windows=1, segments=1, denser=1)
training = Training(curriculum, steps=1, batch=1, together=1, save_every=10**9)
trainer = Trainer(vlm, hypernetwork, (clips[:1], clips[1:]), training, Path(folder) / "run")
trainer.validate = lambda: 0.0  # the step alone is measured
loaded, start = memory("VmRSS"), time.perf_counter()
open("/proc/self/clear_refs", "w").write("5")
(progress,) = trainer.run()
seconds = time.perf_counter() - start
moved = sum(not torch.equal(before[name], tensor) for name, tensor in hypernetwork.state_dict().items())
print(f"loss {progress.loss:.3f}, {moved} of {len(before)} tensors moved")
print(f"memory {loaded:.2f} GiB loaded, {memory('VmHWM'):.2f} GiB at its peak, {seconds:.1f} s")
"""

EVALUATE = """
import re, sys, time
from v2l.cli.app import main

start = time.perf_counter()
try:
    main()
finally:
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20
    print(f"memory {peak:.2f} GiB at its peak, {(time.perf_counter() - start) / 60:.1f} min", file=sys.stderr)
"""


@pytest.mark.slow
def test_500m_takes_an_optimisation_step_on_the_cpu(tmp_path):
    """Train a new hypernetwork of the published size on a 12-frame clip, in float32; print the peak memory."""
    folder = write_true_size(tmp_path / "500m")
    video = small.write_video(tmp_path / "clip.mp4", frames=15 * 8, width=320, height=180)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", TRAIN, str(folder), str(video)]
    printed = subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout
    print(f"\n{printed}")
    moved, of = (int(number) for number in re.search(r"(\d+) of (\d+) tensors", printed).groups())
    # while the scaler of B is zero no gradient reaches what stands before it
    assert 0 < moved <= of
    assert float(re.search(r"loaded, ([\d.]+) GiB at", printed)[1]) < 16


def count_kept(folder, name, clips=2):
    """The bytes that a training step of the documented recipe keeps for its backward pass, a clip, by part: 12 frames
    and an answer of about 50 tokens, in bfloat16."""
    vlm, hypernetwork = random_model(name, folder / "model", "cpu", torch.bfloat16)
    hypernetwork.train().requires_grad_(True)
    video = small.write_video(folder / "clip.mp4", frames=15 * 8, width=320, height=180)
    prompt, answer = "Describe what is happening in this scene.", "a square moves to the right and then to the left. "
    reader = SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)
    sampling = SamplingConfig(resolutions=(384,), windows=1, segments=1, denser=1, questions=1)
    example = Example("a", video, "caption", "caption", prompt, answer * 2, None, None)
    samples = [read_sample([example], reader, sampling, None)] * clips
    objective = TrainingObjective(vlm, hypernetwork, recompute=True)
    frozen = [part for _, part in published_weights(vlm.language_model, vlm.vision)]
    with counting_kept([*frozen, *hypernetwork.parameters()]) as kept:
        loss = objective.loss(samples)
    assert torch.isfinite(loss)
    return {part: size / clips for part, size in kept.most_common()}


@pytest.mark.slow
def test_a_training_step_keeps_little_of_a_clip_at_500m(tmp_path):
    kept = count_kept(tmp_path, "smolvlm2-500m")
    kept["together"] = sum(kept.values())
    print("\n" + "\n".join(f"{size / 2**20:7.1f} MiB a clip  {part}" for part, size in kept.items()))
    assert kept["together"] < 0.25 * 2**30
    # 48 clips, gradients and AdamW's state beside all weights, and the cache of images, in 24 GB
    weights = 4 * 4 * 128_626_176 + 2 * 508_000_000
    assert 48 * kept["together"] + weights + CACHE_BYTES < 20e9


@pytest.mark.slow
def test_256m_is_trained_for_and_answers_in_context(tmp_path):
    """Train a hypernetwork for a model that has none, encode and ask with it, and ask the model itself, by commands."""
    folder = write_true_size(tmp_path / "256m", SMOLVLM2_256M)
    fill_vocabulary(folder)
    weights = find_model(folder).tensors.values()
    assert sum(math.prod(tensor.shape) for tensor in weights) == 256_484_928  # as published
    video = small.write_video(tmp_path / "clip.mp4", frames=8 * 8, width=320, height=180)
    row = {"video_path": str(video), "question": "what moves?", "answer": "a square"}
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("".join(json.dumps({"id": str(number), **row}) + "\n" for number in range(2)))
    sampling = [word for name in ("windows", "segments", "denser") for word in ("--set", f"{name}=1")]
    for command in (
        ["ask", "--in-context", video, "what moves?", "--max-new-tokens", "4"],
        [
            "train",
            manifest,
            "--validation",
            manifest,
            "-o",
            tmp_path / "run",
            "--steps",
            "1",
            "--batch",
            "1",
            *sampling,
        ],
        [
            "ask",
            video,
            "what moves?",
            "--hypernetwork",
            tmp_path / "run" / "hypernetwork.safetensors",
            "--max-new-tokens",
            "4",
        ],
    ):
        run = [sys.executable, "-m", "v2l", *map(str, command), "--model", str(folder), "--device", "cpu", "--json"]
        done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        print(done.stdout)


@pytest.mark.slow
def test_500m_encodes_a_12_frame_clip_on_the_cpu(tmp_path):
    """True dimensions, random weights in a bfloat16 file, float32 on the CPU; prints its peak memory."""
    folder = write_true_size(tmp_path / "500m")
    write_published_hypernetwork(folder)
    video = small.write_video(tmp_path / "clip.mp4", frames=15 * 8, width=320, height=180)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", ENCODE, str(folder), str(video)]
    printed = subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout
    print(f"\n{printed}")
    assert "ranks (32, 32, 2560) frames 12 windows (12,)" in printed
    assert float(re.search(r"loaded, ([\d.]+) GiB at", printed)[1]) < 6
    assert (folder / "clip.v2l.safetensors").stat().st_size < 16e6


@pytest.mark.slow
def test_500m_is_evaluated_on_two_clips_on_the_cpu(tmp_path):
    """Run `v2l eval` as with the published weights, but with random ones; print memory and time."""
    folder = write_true_size(tmp_path / "500m")
    write_published_hypernetwork(folder)
    fill_vocabulary(folder)
    rows = []
    for clip in ("a", "b"):
        small.write_video(tmp_path / f"{clip}.mp4", frames=15 * 8, width=320, height=180, seed=ord(clip))
        caption = {"task_type": "caption", "prompt": "Describe what is happening in this video."}
        question = {"question": "what moves?", "answer": "a square", "metadata": {"kind": "motion"}}
        rows.append({"id": f"{clip}-caption", "video_path": f"{clip}.mp4", "target_text": "a square moves", **caption})
        rows.append({"id": f"{clip}-question", "video_path": f"{clip}.mp4", **question})
    manifest = tmp_path / "rehearsal.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = ["--model", str(folder), "--metric", "f1", "--max-new-tokens", "4", "--device", "cpu"]
    run = [sys.executable, "-c", EVALUATE, "eval", str(manifest), *options]
    done = subprocess.run(run, capture_output=True, text=True, env=environment)
    print(f"\n{done.stdout}\n{done.stderr}")
    assert done.returncode == 0
    titles = [TITLES[condition.name] for condition in CONDITIONS]
    assert all(word in done.stdout for word in ("caption", "motion", *titles))
    _, *results = (json.loads(line) for line in (tmp_path / "rehearsal.eval.jsonl").read_text().splitlines())
    assert [result["id"] for result in results] == [row["id"] for row in rows]
    for result in results:
        assert result["error"] is None
        assert list(result["answers"]) == list(result["scores"]) == [condition.name for condition in CONDITIONS]
        assert all(result["answers"].values())
    assert float(re.search(r"memory ([\d.]+) GiB at its peak", done.stderr)[1]) < 6


@pytest.mark.slow
def test_memory_at_1024_frames(tmp_path):
    """Compare the memory of 1,024 frames with that of 64 on a model of 8 layers x 256, each in its own process."""
    config = small.small_config(
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=8,
        num_attention_heads=8,
        head_dim=32,
        max_position_embeddings=2048,
    )
    folder = small.write_model(tmp_path / "model", config=config)
    small.write_hypernetwork(folder, trained_with=TrainedWith(), latent_size=128)
    peaks = {}
    for frames in (64, 256, 1024):
        video = small.write_video(tmp_path / f"{frames}.mp4", frames=frames)
        code = ENCODE.replace("hypernetwork)\n", f"hypernetwork, frames={frames}, fps=8)\n", 1)
        run = [sys.executable, "-c", code, str(folder), str(video)]
        printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        print(f"\n{printed}")
        assert f"frames {frames} " in printed
        peaks[frames] = float(re.search(r"loaded, ([\d.]+) GiB at", printed)[1])
    assert peaks[1024] < 1.5 * peaks[64]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smolvlm2-500m", "smolvlm2-2.2b"])
@torch.no_grad()
def test_the_modules_compute_what_transformers_does_at_true_size(tmp_path, name):
    vlm, _ = random_model(name, tmp_path / "model", "cpu", torch.float32)
    peer = transformers_model(vlm)
    random = torch.Generator().manual_seed(0)
    side = vlm.geometry.image_size
    images = torch.rand(2, 3, side, side, generator=random) * 2 - 1
    features = peer.model.connector(peer.model.vision_model(pixel_values=images).last_hidden_state)
    assert torch.allclose(vlm.encode_images(images), features, atol=1e-5 * float(features.abs().max()))
    ids = torch.randint(100, 1000, (40,), generator=random)
    expected = peer(input_ids=ids[None], output_hidden_states=True)
    layers = [torch.cat(list(each), dim=1) for each in vlm.read_layers([Window(0, ids, torch.zeros(0, 1, 1))])]
    for found, states in zip(layers, expected.hidden_states, strict=False):
        assert torch.allclose(found, states, atol=1e-5 * float(states.abs().max()))
    logits = expected.logits[0]
    assert torch.allclose(vlm.logits(ids), logits, atol=1e-5 * float(logits.abs().max()))
    answer = peer.generate(input_ids=ids[None], min_new_tokens=6, max_new_tokens=6, do_sample=False)[0, 40:]
    assert [step[0] for step in vlm.greedy([vlm.embed(ids)], 6, for_speed=True)] == answer.tolist()
