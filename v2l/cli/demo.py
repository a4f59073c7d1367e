"""`v2l demo`: a sample clip, and questions answered from its adapter and with the video in context, side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v2l.adapters.adapter import Adapter
from v2l.errors import V2LError
from v2l.inference.ask import Stream, stream, stream_in_context
from v2l.inference.encode import encode_reading
from v2l.inference.model_loader import ModelLoader
from v2l.inference.targets import ADAPTER_SUFFIX
from v2l.io.files import unwritable, write_atomically
from v2l.io.text import printable
from v2l.models.smolvlm import FrozenVLM
from v2l.tiny.world.clip import ClipFormat, frame_times, write_clip
from v2l.tiny.world.questions import Question, ask_about
from v2l.tiny.world.scene import SHAPES, Story, sample_story
from v2l.video.sampling import Reading

SECONDS = 8.0
FORM = ClipFormat(256, 192, 12.0)
SCENE_SEED, QUESTION_SEED = 5, 35
"""Which clip of the test split, that no training saw, and which questions about it."""
ASKED = ("words", "word at", "word last", "colour", "place at", "motion")


@dataclass(frozen=True)
class DemoAnswer:
    """A question answered in both ways.

    truth: what the clip shows; visual_tokens, first_token: (adapter, in context), first_token in seconds
    """

    question: str
    truth: str
    from_adapter: str
    in_context: str
    visual_tokens: tuple[int, int]
    first_token: tuple[float, float]


def sample_lecture() -> tuple[Story, list[Question]]:
    """The clip and what is asked about it, with the true answers."""
    story = sample_story("test", SCENE_SEED, SECONDS, shapes=SHAPES)
    asked = ask_about(story, frame_times(SECONDS, FORM, 12), np.random.default_rng(QUESTION_SEED))
    return story, [question for kind in ASKED for question in asked if question.kind == kind]


def write_lecture(story: Story, path: Path, overwrite: bool) -> None:
    """Writes the clip; one that is there already is left alone. Raises V2LError where something else is there."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / path.name
            write_clip(story, made, FORM)
            data = made.read_bytes()
    except OSError as error:  # of the place for temporary files
        raise unwritable(path, error) from error
    if path.exists() and not overwrite:
        if path.is_file() and path.read_bytes() == data:
            return
        raise V2LError(f"{printable(path)} is there already and is another video; --overwrite replaces it")
    write_atomically(path, data)


def run(
    choice: ModelLoader, folder: Path, overwrite: bool, told: Callable[[str], None]
) -> tuple[Path, Path, list[DemoAnswer]]:
    """Writes lecture.mp4 and its adapter into the folder and asks; returns their paths and the answers.

    told: hears what is being done
    """
    video, output = folder / "lecture.mp4", folder / f"lecture{ADAPTER_SUFFIX}"
    if output.exists() and not overwrite:
        Adapter.load(output)  # something else of that name is not replaced
    story, questions = sample_lecture()
    write_lecture(story, video, overwrite)
    told(f"{printable(video)}: a lecture of {SECONDS:g} seconds, drawn by v2l; no training saw it")
    vlm, hypernetwork = choice.load()
    adapter = encode_reading(video, vlm, hypernetwork, Reading())
    adapter.save(output)
    return video, output, answers(adapter, video, questions, vlm)


def answers(adapter: Adapter, video: Path, questions: Sequence[Question], vlm: FrozenVLM) -> list[DemoAnswer]:
    """All questions in both ways, from the same frames; the first of each is asked once unseen, to warm up."""
    (segment,) = adapter.description.segments

    def both(question: str) -> tuple[Stream, str, Stream, str]:
        worn = stream(adapter, question, vlm)
        text = "".join(worn)
        shown = stream_in_context(video, question, vlm, segment.reading)
        return worn, text, shown, "".join(shown)

    both(questions[0].prompt)
    made = []
    for question in questions:
        worn, text, shown, in_context = both(question.prompt)
        made.append(
            DemoAnswer(
                question.prompt,
                question.answer,
                text,
                in_context,
                (worn.visual_tokens, shown.visual_tokens),
                (worn.time_to_first_token, shown.time_to_first_token),
            )
        )
    return made
