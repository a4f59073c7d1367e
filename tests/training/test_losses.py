"""Attention guidance: the ends of frames, the loss against a reference, and that it decreases."""

import dataclasses

import pytest
import torch
from training_runs import TRAINING, fresh, lively

from v2l.io.manifest import Example
from v2l.models.processor import IMAGE, IMAGE_EDGE
from v2l.models.smolvlm import Window
from v2l.training.data import NO_END, SampleReader, SamplingConfig, read_sample
from v2l.training.losses import EPSILON, TrainingObjective
from v2l.training.trainer import Trainer

CURRICULUM = SamplingConfig(frames=6, windows=1, segments=1, questions=1)


@pytest.fixture(scope="module")
def examples(videos):
    return [Example(str(clip), video, "qa", "qa", "where?", "left", None, None) for clip, video in enumerate(videos)]


@pytest.fixture(scope="module")
def reader(vlm):
    return SampleReader(vlm.tokenizer, vlm.geometry, vlm.max_positions)


@pytest.mark.parametrize("tiles", [1, 2])
def test_the_end_of_a_frame_is_the_token_after_its_last_image(examples, reader, vlm, tiles):
    curriculum = dataclasses.replace(CURRICULUM, frames=2, resolutions=(tiles * vlm.geometry.image_size,))
    (part,) = read_sample(examples[:1], reader, curriculum, None).parts
    assert part.count == (part.frames if tiles == 1 else 5 * part.frames)
    tokens = [vlm.tokenizer.id_to_token(number) for number in part.ids.tolist()]
    ends = (part.ends != NO_END).nonzero().flatten().tolist()
    text = vlm.tokenizer.decode(part.ids.tolist(), skip_special_tokens=False)
    announced = [shown[:5].split(":") for shown in text.split("Frame from ")[1:]]
    assert [60 * int(minutes) + int(seconds) for minutes, seconds in announced] == part.ends[ends].tolist()
    assert len(ends) == part.frames == 2
    images = len([token for token in tokens if token == IMAGE]) // 2
    for number, end in enumerate(ends, 1):
        assert (tokens[end - 1], tokens[end]) == (IMAGE, IMAGE_EDGE)
        assert tokens[:end].count(IMAGE) == number * images


def test_the_loss_is_the_mean_over_guided_latents(examples, reader, vlm):
    """Two rows of different lengths in one pass, against each alone, weight by weight."""
    hypernetwork = lively(vlm)
    samples = [read_sample([example], reader, CURRICULUM, None) for example in examples[:2]]
    samples[1] = read_sample([examples[1]], reader, dataclasses.replace(CURRICULUM, frames=2), None)
    objective = TrainingObjective(vlm, hypernetwork, steer_weight=1.0)
    images = objective.encode_images(samples)
    with torch.no_grad():
        _, distance = objective.factors_and_loss(samples, images)
        wanted = 0.0
        for sample, seen in zip(samples, images, strict=True):
            (part,) = sample.parts
            read = vlm.read_layers([Window(part.frames, part.ids, seen)])
            hidden = torch.stack([torch.cat(list(pieces), dim=1) for pieces in read], dim=1)
            hypernetwork.generate(hidden)
            frames = [
                [place for place, end in enumerate(part.ends.tolist()) if end >= 0 and end % 4 == latent]
                for latent in range(4)
            ]
            found = []
            for attention, inputs in objective.guidance.encoder_calls:
                weights = attention.weights(*inputs).view(vlm.num_layers, attention.heads, 4, -1)[1:]
                found.append(
                    [-(weights[:, :, n, own].sum(-1) + EPSILON).log().mean() for n, own in enumerate(frames) if own]
                )
            ((attention, inputs),) = objective.guidance.decoder_calls
            weights = attention.weights(*inputs).view(vlm.num_layers, attention.heads, 4, -1)[1:]
            found.append([-(weights[:, :, n, n] + EPSILON).log().mean() for n in range(4)])
            objective.guidance.encoder_calls.clear(), objective.guidance.decoder_calls.clear()
            wanted += torch.stack([torch.stack(each).mean() for each in found]).mean().item()
    assert distance.item() == pytest.approx(wanted, rel=1e-4)


def test_guided_latents_learn_where_to_attend(examples, vlm, tmp_path):
    training = dataclasses.replace(TRAINING, steps=40, validate_every=40, save_every=40, steer_weight=1.0)
    run = Trainer(vlm, fresh(vlm), (examples, examples[:2]), training, tmp_path)
    samples = run.samples.batch(0)
    images = run.objective.encode_images(samples)

    @torch.no_grad()
    def distance():
        return run.objective.factors_and_loss(samples, images)[1].item()

    before = distance()
    list(run.run())
    assert not run.objective.guidance.encoder_calls  # nothing was read again in a backward pass
    assert distance() < 0.8 * before
