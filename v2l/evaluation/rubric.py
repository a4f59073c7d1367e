"""Build the judge's prompt from a rubric file (see rubric.md), and parse the score in its reply."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from v2l.errors import UsageError
from v2l.io.files import unreadable
from v2l.io.text import printable
from v2l.io.untrusted import json_error

RUBRIC = Path(__file__).with_name("rubric.md")
TOP = 5
LONGEST_REPLY = 20_000
"""Maximum characters of a reply without its reasoning; a longer reply has no score."""


@dataclass(frozen=True)
class Item:
    """A candidate text to judge. prompt: the question it answers; reference: the expected content"""

    task: str
    prompt: str
    reference: str
    candidate: str


@dataclass(frozen=True)
class Rubric:
    """A rubric. request: fields of every request; messages: prompt templates by task; sha256: of the file"""

    request: dict[str, Any]
    messages: dict[str, str]
    sha256: str

    def message(self, item: Item) -> str:
        """Return the message about an item, with its texts inserted as JSON strings."""
        fields = asdict(item)
        return re.sub(
            r"\{(prompt|reference|candidate)\}",
            lambda found: json.dumps(fields[found[1]], ensure_ascii=False),
            self.messages[item.task],
        )

    def check(self, tasks: Iterable[str]) -> None:
        """Raises UsageError if there is no message for one of the tasks."""
        for task in tasks:
            if task not in self.messages:
                known = ", ".join(map(printable, self.messages))
                raise UsageError(f"the rubric has no section for the task {printable(task)}, only for {known}; add one")


def read_rubric(path: Path | None) -> Rubric:
    """Read a rubric file in the layout of rubric.md, which is the default. Raises UsageError."""
    path = path or RUBRIC
    try:
        data = path.read_bytes()
        text = data.decode()
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{printable(path)} is not UTF-8 text; use the layout of {RUBRIC.name}") from error
    _, *parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    sections = {name.strip(): body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}
    try:
        request = json.loads(sections.pop("request", "{}"))
    except ValueError as error:
        raise UsageError(
            f"{printable(path)}: its section request is not JSON: {json_error(error)}; correct it"
        ) from error
    if not isinstance(request, dict) or {"model", "messages", "stream"} & request.keys():
        raise UsageError(f"{printable(path)}: its request must be an object without model, messages and stream")
    if not sections:
        raise UsageError(f"{printable(path)} has no section `## caption` or `## qa`; use the layout of {RUBRIC.name}")
    for name, body in sections.items():
        missing = [field for field in ("{reference}", "{candidate}") if field not in body]
        if missing:
            raise UsageError(f"{printable(path)}: its section {printable(name)} lacks {' and '.join(missing)}; add it")
    return Rubric(request, sections, hashlib.sha256(data).hexdigest())


def read_score(reply: str) -> int | None:
    """Parse the score of a reply: the integer from 0 to 5 under "score" in the JSON object that the reply contains
    outside its reasoning. Returns None if there is none, or if several differ."""
    answer = reply.rpartition("</think>")[2].partition("<think>")[0]  # reasoning without an end was cut off
    if len(answer) > LONGEST_REPLY:
        return None
    scores = set()
    position = answer.find("{")
    while position >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(answer, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            if "score" in value:
                score = value["score"]
                scores.add(score if type(score) is int and 0 <= score <= TOP else None)
        position = answer.find("{", end)
    return scores.pop() if len(scores) == 1 else None
