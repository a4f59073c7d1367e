"""What a judge is asked about a candidate text, from a file laid out as rubric.md is, and the score in its reply."""

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

RUBRIC = Path(__file__).with_name("rubric.md")
TOP = 5
LONGEST_REPLY = 20_000
"""Characters, thoughts left out; a longer one is no score."""


@dataclass(frozen=True)
class Item:
    """A candidate to judge. prompt: what it answers; reference: what it should say"""

    task: str
    prompt: str
    reference: str
    candidate: str


@dataclass(frozen=True)
class Rubric:
    """request: fields of every request; messages: what is said, by task; sha256: of the file that says so"""

    request: dict[str, Any]
    messages: dict[str, str]
    sha256: str

    def message(self, item: Item) -> str:
        """The one message about an item, its texts in it as JSON strings."""
        fields = asdict(item)
        return re.sub(
            r"\{(prompt|reference|candidate)\}",
            lambda found: json.dumps(fields[found[1]], ensure_ascii=False),
            self.messages[item.task],
        )

    def check(self, tasks: Iterable[str]) -> None:
        """Raises UsageError where it has no message for one of the tasks."""
        for task in tasks:
            if task not in self.messages:
                known = ", ".join(map(printable, self.messages))
                raise UsageError(f"the rubric has no section for the task {printable(task)}, only for {known}; add one")


def read_rubric(path: Path | None) -> Rubric:
    """The rubric in a file laid out as rubric.md is, which it is where None. Raises UsageError."""
    path = path or RUBRIC
    try:
        data = path.read_bytes()
        text = data.decode()
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{printable(path)} is not UTF-8 text; a rubric is laid out as {RUBRIC.name} is") from error
    _, *parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    sections = {name.strip(): body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}
    try:
        request = json.loads(sections.pop("request", "{}"))
    except ValueError as error:
        raise UsageError(f"{printable(path)}: its section request is no JSON ({error}); mend it") from error
    if not isinstance(request, dict) or {"model", "messages", "stream"} & request.keys():
        raise UsageError(f"{printable(path)}: its request must be an object without model, messages and stream")
    if not sections:
        raise UsageError(f"{printable(path)} has no section `## caption` or `## qa`; lay it out as {RUBRIC.name} is")
    for name, body in sections.items():
        missing = [field for field in ("{reference}", "{candidate}") if field not in body]
        if missing:
            raise UsageError(f"{printable(path)}: its section {printable(name)} lacks {' and '.join(missing)}; add it")
    return Rubric(request, sections, hashlib.sha256(data).hexdigest())


def read_score(reply: str) -> int | None:
    """The score of a reply: the whole number from 0 to 5 under "score" in the JSON object that it holds, its thoughts
    left out. None where there is none, or several that differ."""
    said = reply.rpartition("</think>")[2].partition("<think>")[0]  # what opens and never ends was cut short
    if len(said) > LONGEST_REPLY:
        return None
    found = set()
    at = said.find("{")
    while at >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(said, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            if "score" in value:
                score = value["score"]
                found.add(score if type(score) is int and 0 <= score <= TOP else None)
        at = said.find("{", end)
    return found.pop() if len(found) == 1 else None
