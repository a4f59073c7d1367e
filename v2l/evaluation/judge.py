"""An LLM judge: how much of a reference text a candidate says, 0 to 5, asked of any server that speaks OpenAI's chat
completions (paper section 5).

Only the server that the user names is reached, through httpx2, and only for what was not judged before. What it is
asked is the rubric's; every reply is kept as it came.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from v2l.errors import UsageError, V2LError
from v2l.evaluation.rubric import LONGEST_REPLY, TOP, Item, Rubric, read_score
from v2l.io.journal import Journal
from v2l.io.text import printable

KEY = "V2L_JUDGE_KEY"
"""The environment variable with the server's key, which is sent to that server and goes nowhere else."""
TRIES = 5
"""Of one request, where the server is not there, busy (429) or in trouble (5xx)."""
LONGEST_WAIT = 60
"""Seconds; a server that asks for more is not waited for."""
IN_A_ROW = 8
"""Judgements that fail one after the other before the run stops."""


@dataclass(frozen=True)
class Server:
    """url: what comes before /chat/completions; model: its name there; timeout: seconds for one reply

    jobs: requests at once; pause: seconds before the second try, twice as long before every further one
    """

    url: str
    model: str
    timeout: float = 120.0
    jobs: int = 8
    pause: float = 1.0

    def check(self) -> None:
        """Raises UsageError for an address that cannot be one, or a key that no header takes, and V2LError where
        httpx2 is not installed."""
        httpx2 = _httpx2()
        try:
            url = httpx2.URL(self.url)
        except httpx2.InvalidURL:
            url = httpx2.URL("")
        whole = url.scheme in ("http", "https") and url.host and (url.port or 80) < 2**16
        if not whole or url.userinfo or url.query or url.fragment:  # it may hold a password, so it is not shown
            raise UsageError(f"--judge takes a plain address such as http://localhost:8000/v1; a key goes into {KEY}")
        if not (_key().isascii() and _key().isprintable()):
            raise UsageError(f"{KEY} holds characters that no key has; set it anew")


class _NoReply(Exception):
    """Nothing to read a score from, after every try."""


@dataclass(frozen=True)
class Judgement:
    """What the judge said of an item.

    request: sha256 of all that was sent, by which a second run knows it; rubric: sha256 of its file
    score: 0 to 5, None where there is an error instead; replies: the server's, as they came; seconds: for all of them
    """

    request: str
    judge: str
    rubric: str
    task: str
    prompt: str
    reference: str
    candidate: str
    score: int | None
    error: str | None
    replies: list[Any]
    seconds: float

    @property
    def item(self) -> Item:
        """What was judged."""
        return Item(self.task, self.prompt, self.reference, self.candidate)

    def tokens(self, kind: str) -> int:
        """Tokens of a kind, prompt or completion, as the server counts them; 0 where it does not."""
        counts = [_within(reply, "usage", f"{kind}_tokens") for reply in self.replies]
        return sum(count for count in counts if type(count) is int)


class Judge:
    """Scores items and keeps every judgement in a JSONL file, which a second run goes on from. Judgements of another
    judge or rubric may stand in the same file; they are left alone.

    Raises V2LError where `output` is anything but such a file.
    """

    def __init__(self, server: Server, rubric: Rubric, output: Path):
        server.check()
        self.server, self.rubric = server, rubric
        self._over, self._why = threading.Event(), V2LError("the judge is asked no more")
        self.journal = Journal(output, {"v2l": 1, "judgements": 1}, "file of judgements", "version of v2l")
        try:
            kept = [Judgement(**row) for row in self.journal.rows]
            self._scores = {one.request: one.score for one in kept if one.score is not None}
        except TypeError as error:
            raise self.journal.foreign() from error
        if not all(type(score) is int and 0 <= score <= TOP for score in self._scores.values()):
            raise self.journal.foreign()

    def score(self, item: Item) -> float | None:
        """0 to 1, None where it was not judged yet."""
        score = self._scores.get(_digest(self._request(item)))
        return None if score is None else score / TOP

    def missing(self, items: Sequence[Item]) -> list[Item]:
        """Those without a score, each once."""
        return [item for item in dict.fromkeys(items) if self.score(item) is None]

    def run(self, items: Sequence[Item]) -> Iterator[Judgement]:
        """Asks for the missing scores, several at once, and yields what comes in the order it comes, errors included.

        Raises V2LError where the server is not there, refuses, or fails too often in a row.
        """
        missing = self.missing(items)
        if not missing:
            return
        failed = 0
        jobs = min(self.server.jobs, len(missing))
        self._over.clear()
        # the pool's threads are never waited for, so that an interrupt ends the run at once
        with self.journal, self._client() as client, ThreadPool(jobs) as pool, self._ending():
            for judgement in pool.imap_unordered(partial(self._judge, client), missing):
                self.journal.add(asdict(judgement))
                if judgement.score is not None:
                    self._scores[judgement.request] = judgement.score
                failed = 0 if judgement.error is None else failed + 1
                yield judgement
                if failed == IN_A_ROW:
                    raise V2LError(
                        f"the judge failed {failed} times in a row and was asked no more; what it said is in "
                        f"{printable(self.journal.path)}, the same command asks for the rest"
                    )

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Tells the threads that nothing more is to be asked."""
        try:
            yield
        finally:
            self._over.set()

    def _request(self, item: Item) -> dict[str, Any]:
        message = {"role": "user", "content": self.rubric.message(item)}
        return {"model": self.server.model, **self.rubric.request, "messages": [message]}

    def _judge(self, client: Any, item: Item) -> Judgement:
        """Asks once, and once more where no score comes back."""
        request, replies, score = self._request(item), [], None
        began = time.monotonic()
        try:
            while score is None and len(replies) < 2:
                replies.append(self._reply(client, request))
                score, error = _read(replies[-1])
        except _NoReply as trouble:
            error = str(trouble)
        except V2LError as trouble:
            self._why = trouble  # of the other threads too
            self._over.set()
            raise
        return Judgement(
            request=_digest(request),
            judge=self.server.model,
            rubric=self.rubric.sha256,
            **asdict(item),
            score=score,
            error=error,
            replies=replies,
            seconds=round(time.monotonic() - began, 3),
        )

    def _reply(self, client: Any, request: dict[str, Any]) -> Any:
        """The server's reply as JSON, or as text where it is none. Raises _NoReply for what may go better with another
        item, V2LError for what would not."""
        httpx2 = _httpx2()
        for attempt in range(TRIES):
            if self._over.is_set():
                raise self._why
            wait = self.server.pause * 2**attempt
            try:
                response = client.post("chat/completions", content=json.dumps(request).encode())
            except httpx2.ReadTimeout as error:
                told = f"the judge gave no answer within {self.server.timeout:g} s; --set judge_timeout=SECONDS allows more"
                raise _NoReply(told) from error
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                trouble = self._unusable(f"cannot be reached ({_first_line(error)})")
            except httpx2.RequestError as error:
                trouble = _NoReply(f"the judge broke off ({_first_line(error)})")
            else:
                if response.status_code == 200:
                    return _decoded(response)
                trouble = self._refusal(response)
                wait = _wanted_wait(response) or wait
            if attempt < TRIES - 1:
                self._over.wait(wait)
        raise trouble

    def _refusal(self, response: Any) -> _NoReply:
        """What to say if the server goes on like this; raised at once where another try would change nothing."""
        status, words = response.status_code, response.text
        shown = printable(words.replace(_key(), "***") if _key() else words) or "nothing"  # some repeat the key
        told = f"answers {status}: {shown}"
        if status < 400 or status in (401, 403, 404):
            raise self._unusable(told)
        trouble = _NoReply(f"the judge {told}")
        if status != 429 and status < 500:
            raise trouble
        wait = _wanted_wait(response)
        if wait is not None and wait > LONGEST_WAIT:
            raise V2LError(f"the judge {told}; it asks to wait {wait:.0f} s, run the same command then")
        return trouble

    def _unusable(self, told: str) -> V2LError:
        return V2LError(f"the judge at {printable(self.server.url)} {told}; check --judge, --judge-model and {KEY}")

    def _client(self) -> Any:
        httpx2 = _httpx2()
        headers = {"Content-Type": "application/json"}
        if _key():
            headers["Authorization"] = f"Bearer {_key()}"
        timeout = httpx2.Timeout(self.server.timeout, connect=min(self.server.timeout, 10.0))
        limits = httpx2.Limits(max_connections=self.server.jobs)
        return httpx2.Client(base_url=self.server.url, headers=headers, timeout=timeout, limits=limits)


def _read(reply: Any) -> tuple[int | None, str | None]:
    """Score and error of a reply, one of them None."""
    choice = _within(reply, "choices", 0)
    text = _within(choice, "message", "content")
    if _within(choice, "finish_reason") == "length":
        return None, "the judge's reply was cut off at the rubric's token limit; another --set rubric may allow more"
    score = read_score(text) if isinstance(text, str) else None
    if score is not None:
        return score, None
    said = text if isinstance(text, str) else json.dumps(reply)
    return None, f"the judge's reply holds no score from 0 to {TOP}: {printable(said.strip()) or 'it is empty'}"


def _within(value: Any, *path: str | int) -> Any:
    """What stands there in foreign JSON, None where nothing does."""
    for step in path:
        try:
            value = value[step]
        except (TypeError, LookupError):
            return None
    return value


def _decoded(response: Any) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return response.text[:LONGEST_REPLY]


def _wanted_wait(response: Any) -> float | None:
    """Seconds that Retry-After asks for, as a number or a date."""
    asked = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}", asked):
        return float(asked)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return None


def _digest(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0])


def _key() -> str:
    return os.environ.get(KEY, "").strip()


def _httpx2() -> Any:
    try:
        import httpx2
    except ImportError as error:
        raise V2LError("a judge is asked through httpx2; install it with: pip install 'v2l[eval]'") from error
    return httpx2
