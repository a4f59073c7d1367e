"""The settings behind `--set NAME=VALUE`: complete, and refused in one line that lists them."""

import dataclasses

import pytest

from v2l.cli.eval import EvalCommand
from v2l.cli.settings import read_settings
from v2l.cli.train import TrainCommand
from v2l.errors import UsageError
from v2l.models.hypernetwork_file import HypernetworkConfig
from v2l.training.settings import SIZES, SamplingConfig, Training

NAMED = {"frames", "fps", "resolutions", "steps", "batch", "learning_rate", "seed"}
"""Fields with an option of their own."""
FIXED = {"curriculum", "prompt", "num_layers", "hidden_size", "intermediate_size"}
"""Fields that follow from others or from the frozen model."""


def test_every_field_of_the_library_is_a_setting_or_an_option():
    fields = {field.name for config in (Training, SamplingConfig) for field in dataclasses.fields(config)}
    sizes = {field.name for field in dataclasses.fields(HypernetworkConfig)} - FIXED
    assert {*SIZES} == sizes
    assert {each.name for each in TrainCommand.named_settings()} == (fields - NAMED - FIXED) | sizes


def test_the_help_states_the_defaults_of_the_library():
    rows = {each.name: each.text() for each in TrainCommand.named_settings()}
    assert rows["together"].endswith(f"[default: {Training.together}]")
    assert rows["denser"].endswith(f"[default: {SamplingConfig.denser:g}]")


def test_values_get_the_type_of_their_field():
    assignments = ["rank=8", "lora_alpha=45.5", "marks_end=yes", "kl_weight=0", "longest=96", "rank=4"]
    values = read_settings(assignments, TrainCommand.named_settings())
    assert values == {"rank": 4, "lora_alpha": 45.5, "marks_end": True, "kl_weight": 0.0, "longest": 96}
    assert isinstance(values["kl_weight"], float)
    lists = read_settings(["in_context_frames=4,8", "margin=0.05,0.02"], EvalCommand.named_settings())
    assert lists == {"in_context_frames": (4, 8), "margin": (0.05, 0.02)}
    assert read_settings(None, TrainCommand.named_settings()) == {}


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("rank", "write NAME=VALUE"),
        ("nosuch=1", "unknown setting nosuch"),
        ("rank=0", "rank takes a whole number of at least 1"),
        ("rank=x", "rank takes a whole number of at least 1"),
        ("rank=", "rank takes a whole number of at least 1"),
        ("denser=0.5", "denser takes a number of at least 1"),
        ("clip_norm=0", "clip_norm takes a number above 0"),
        ("clip_norm=nan", "clip_norm takes a number above 0"),
        ("kl_weight=inf", "kl_weight takes a number of at least 0"),
        ("warmup=2", "warmup takes a number from 0 to 1"),
        ("marks_end=1", "marks_end takes yes or no"),
        ("\x1b[31m=1", r"unknown setting \x1b[31m"),
    ],
)
def test_what_cannot_be_set_is_one_line_that_lists_the_names(assignment, complaint):
    with pytest.raises(UsageError) as caught:
        read_settings([assignment], TrainCommand.named_settings())
    (line,) = str(caught.value).splitlines()
    assert complaint in line
    assert all(each.name in line for each in TrainCommand.named_settings())
