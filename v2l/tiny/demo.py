"""The demonstration: a sample lecture, or a video of the user's, and questions answered from its adapter and with the
video in context."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v2l.adapters.adapter import Adapter
from v2l.adapters.timeline import Timeline
from v2l.adapters.timeline_description import read_adapter_file
from v2l.errors import V2LError
from v2l.inference.ask import Stream, stream, stream_in_context
from v2l.inference.encode import encode_reading
from v2l.inference.model_loader import ModelLoader
from v2l.inference.naming import ADAPTER_SUFFIX
from v2l.inference.readings import fill_reading
from v2l.inference.timeline import CAPTION_QUESTIONS
from v2l.io.files import identify, make_folder, unwritable, write_atomically
from v2l.io.text import printable
from v2l.models.presets import RELEASE
from v2l.tiny.world.clip import ClipFormat, frame_times, write_clip
from v2l.tiny.world.questions import Question, ask_about, caption
from v2l.tiny.world.scene import SHAPES, Story, sample_story
from v2l.video.sampling import Reading

SECONDS = 8.0
FORM = ClipFormat(256, 192, 12.0)
TIMES = frame_times(SECONDS, FORM, 12)
SCENE_SEED, QUESTION_SEED = 5, 35
"""Select a clip of the test split, which no training used, and the questions about it."""
OTHER_SEEDS = (10, 9)
"""Select two more clips of the test split."""
NATURAL_QUESTIONS = (
    *CAPTION_QUESTIONS,
    "Who or what can be seen?",
    "Where does it take place?",
    "What happens at the end?",
)
"""Asked about a video whose contents are not known."""
ANSWER_TOKENS = 64
"""Maximum length of an answer."""
ASKED = ("words", "word at", "word last", "colour", "place at", "motion")


@dataclass(frozen=True)
class DemoAnswer:
    """A question and its answers from the adapter and in context.

    truth: the correct answer; None if it is not known
    visual_tokens, first_token: of both answers, the adapter's first; first_token in seconds
    """

    question: str
    truth: str | None
    from_adapter: str
    in_context: str
    visual_tokens: tuple[int, int]
    first_token: tuple[float | None, float | None]


def sample_lecture() -> tuple[Story, list[Question]]:
    """Return the story of the clip and the questions about it with their correct answers."""
    story = sample_story("test", SCENE_SEED, SECONDS, shapes=SHAPES)
    asked = ask_about(story, TIMES, np.random.default_rng(QUESTION_SEED))
    return story, [question for kind in ASKED for question in asked if question.kind == kind]


def ask_for_caption(story: Story) -> Question:
    """Return a request for a caption of the clip, for models that describe more than this world."""
    return Question("caption", *CAPTION_QUESTIONS, caption(story, TIMES, np.random.default_rng(QUESTION_SEED)).answer)


def write_lecture(story: Story, path: Path, overwrite: bool) -> None:
    """Write the clip unless it exists. Raises V2LError if another file has its name and `overwrite` is False."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / path.name
            write_clip(story, made, FORM)
            data = made.read_bytes()
    except OSError as error:  # in the folder for temporary files
        raise unwritable(path, error) from error
    if path.exists() and not overwrite:
        if path.is_file() and path.read_bytes() == data:
            return
        raise V2LError(f"{printable(path)} already exists and is another video; --overwrite replaces it")
    write_atomically(path, data)


def draw_clips(folder: Path, count: int) -> list[Path]:
    """Draw up to two clips that differ from the lecture and from each other, into an existing folder, and return their
    paths. Raises V2LError if they cannot be written."""
    paths = []
    for seed in OTHER_SEEDS[:count]:
        paths.append(folder / f"drawn-{seed}.mp4")
        write_clip(sample_story("test", seed, SECONDS, shapes=SHAPES), paths[-1], FORM)
    return paths


def run(
    loader: ModelLoader, folder: Path, overwrite: bool, note: Callable[[str], None]
) -> tuple[Path, Path, list[DemoAnswer]]:
    """Write lecture.mp4 and its adapter into the folder; return their paths and the answers.

    note: called with a line about each step
    Raises V2LError if the folder has another video, or an adapter of another one, under these names and `overwrite` is
    False.
    """
    video, output = folder / "lecture.mp4", folder / f"lecture{ADAPTER_SUFFIX}"
    story, questions = sample_lecture()
    if loader.folder.id != RELEASE:
        questions.insert(0, ask_for_caption(story))
    make_folder(folder)
    write_lecture(story, video, overwrite)
    if os.path.lexists(output) and not overwrite:
        _check_own(output, video)
    note(f"{printable(video)}: a lecture of {SECONDS:g} seconds, drawn by v2l; no training used it")
    vlm, hypernetwork = loader.load()
    adapter = encode_reading(video, vlm, hypernetwork, Reading())
    adapter.save(output)
    return video, output, answers(adapter, video, [(each.prompt, each.answer) for each in questions], loader)


def _check_own(output: Path, video: Path) -> None:
    """Raise V2LError unless an existing file is an adapter of this video, which may be replaced."""
    sources = read_adapter_file(output).description.sources
    if {each.sha256 for each in sources} != {identify(video).sha256}:
        raise V2LError(f"{printable(output)} already exists and is of another video; --overwrite replaces it")


def answers(
    adapter: Adapter | Timeline, video: Path, questions: Sequence[tuple[str, str | None]], loader: ModelLoader
) -> list[DemoAnswer]:
    """Answer every question from the adapter and in context, after an untimed first question. Of an adapter, both are
    about the same frames.

    questions: each with its correct answer, None if it is not known
    """
    vlm = loader.vlm
    if isinstance(adapter, Adapter):
        reading = adapter.description.segments[0].reading
    else:
        reading = fill_reading(Reading(), loader.provenance.trained_with, vlm.geometry)

    def both(question: str) -> tuple[Stream, str, Stream, str]:
        adapted = stream(adapter, question, vlm, ANSWER_TOKENS)
        text = "".join(adapted)
        in_context = stream_in_context(video, question, vlm, reading, ANSWER_TOKENS)
        return adapted, text, in_context, "".join(in_context)

    both(questions[0][0])
    made = []
    for question, truth in questions:
        adapted, text, in_context, text_in_context = both(question)
        made.append(
            DemoAnswer(
                question,
                truth,
                text,
                text_in_context,
                (adapted.visual_tokens, in_context.visual_tokens),
                (adapted.time_to_first_token, in_context.time_to_first_token),
            )
        )
    return made
