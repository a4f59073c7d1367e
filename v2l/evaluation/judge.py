"""Grade answers with an LLM judge, 0 to 5, through any server with OpenAI's chat completions API (paper section 5).

The only server contacted is the one that the user names, through httpx2, and only for answers without a score. The
rubric defines the prompts; every reply is stored unchanged.
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

from v2l.errors import UsageError, V2LError, missing_extra
from v2l.evaluation.rubric import LONGEST_REPLY, TOP, Item, Rubric, read_score
from v2l.io.journal import Journal
from v2l.io.text import printable

KEY = "V2L_JUDGE_KEY"
"""The environment variable with the server's key, which is sent to that server only."""
TRIES = 5
"""Attempts per request if the server cannot be reached, is busy (429) or fails (5xx)."""
LONGEST_WAIT = 60
"""Maximum seconds to wait for a server; if it asks for more, the run stops."""
IN_A_ROW = 8
"""Consecutive failed judgements after which the run stops."""


@dataclass(frozen=True)
class Server:
    """A judge's server.

    url: the address before /chat/completions; model: its name on the server; timeout: seconds for one reply
    jobs: concurrent requests; pause: seconds before the second attempt, doubled for every further one
    """

    url: str
    model: str
    timeout: float = 120.0
    jobs: int = 8
    pause: float = 1.0

    def check(self) -> None:
        """Raises UsageError if the address or the key is malformed, and V2LError if httpx2 is not installed."""
        httpx2 = _httpx2()
        try:
            url = httpx2.URL(self.url)
        except httpx2.InvalidURL:
            url = httpx2.URL("")
        valid = url.scheme in ("http", "https") and url.host and (url.port or 80) < 2**16
        if not valid or url.userinfo or url.query or url.fragment:  # not shown: it may contain a password
            raise UsageError(f"--judge takes a plain address such as http://localhost:8000/v1; a key goes into {KEY}")
        if not (_key().isascii() and _key().isprintable()):
            raise UsageError(f"{KEY} contains characters that are not allowed in a key; set it again")


class _NoReply(Exception):
    """No reply for one item, after every attempt."""


@dataclass(frozen=True)
class Judgement:
    """The judge's grade of an item.

    request: sha256 of the request, which identifies it in a second run; rubric: sha256 of its file
    score: 0 to 5, None with an error; replies: of the server, unchanged; seconds: total time
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
        """The judged item."""
        return Item(self.task, self.prompt, self.reference, self.candidate)

    def tokens(self, kind: str) -> int:
        """Number of tokens of a kind, "prompt" or "completion", as reported by the server; 0 if it reports none."""
        counts = [_within(reply, "usage", f"{kind}_tokens") for reply in self.replies]
        return sum(count for count in counts if type(count) is int)


class Judge:
    """Scores items and appends every judgement to a JSONL file, from which a second run resumes. The file may contain
    judgements by other judges or rubrics, which are ignored.

    Raises V2LError if `output` exists and is not such a file.
    """

    def __init__(self, server: Server, rubric: Rubric, output: Path):
        server.check()
        self.server, self.rubric = server, rubric
        self._stopped, self._cause = threading.Event(), V2LError("the judge was stopped")
        self.journal = Journal(output, {"v2l": 1, "judgements": 1}, "file of judgements", "version of v2l")
        try:
            earlier = [Judgement(**row) for row in self.journal.rows]
            self._scores = {each.request: each.score for each in earlier if each.score is not None}
        except TypeError as error:
            raise self.journal.foreign() from error
        if not all(type(score) is int and 0 <= score <= TOP for score in self._scores.values()):
            raise self.journal.foreign()

    def score(self, item: Item) -> float | None:
        """Return the score of an item, 0 to 1; None if it was not judged yet."""
        score = self._scores.get(_digest(self._request(item)))
        return None if score is None else score / TOP

    def missing(self, items: Sequence[Item]) -> list[Item]:
        """Return the items without a score, each once."""
        return [item for item in dict.fromkeys(items) if self.score(item) is None]

    def run(self, items: Sequence[Item]) -> Iterator[Judgement]:
        """Request the missing scores concurrently and yield judgements, including errors, in order of completion.

        Raises V2LError if the server cannot be reached, refuses, or fails too often in a row.
        """
        missing = self.missing(items)
        if not missing:
            return
        failed = 0
        jobs = min(self.server.jobs, len(missing))
        self._stopped.clear()
        # ThreadPool's threads are daemons and are not joined, so an interrupt ends the run at once.
        with self.journal, self._client() as client, ThreadPool(jobs) as pool, self._stopping():
            for judgement in pool.imap_unordered(partial(self._judge, client), missing):
                self.journal.add(asdict(judgement))
                if judgement.score is not None:
                    self._scores[judgement.request] = judgement.score
                failed = 0 if judgement.error is None else failed + 1
                yield judgement
                if failed == IN_A_ROW:
                    raise V2LError(
                        f"the judge failed {failed} times in a row and was stopped; its replies are in "
                        f"{printable(self.journal.path)}, the same command requests the rest"
                    )

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """Stop the threads at the end of the block."""
        try:
            yield
        finally:
            self._stopped.set()

    def _request(self, item: Item) -> dict[str, Any]:
        message = {"role": "user", "content": self.rubric.message(item)}
        return {"model": self.server.model, **self.rubric.request, "messages": [message]}

    def _judge(self, client: Any, item: Item) -> Judgement:
        """Request a judgement, and once more if the reply has no score."""
        request, score = self._request(item), None
        replies: list[Any] = []
        started = time.monotonic()
        try:
            while score is None and len(replies) < 2:
                replies.append(self._reply(client, request))
                score, error = _read(replies[-1])
        except _NoReply as failure:
            error = str(failure)
        except V2LError as failure:
            self._cause = failure  # the other threads stop with the same error
            self._stopped.set()
            raise
        return Judgement(
            request=_digest(request),
            judge=self.server.model,
            rubric=self.rubric.sha256,
            **asdict(item),
            score=score,
            error=error,
            replies=replies,
            seconds=round(time.monotonic() - started, 3),
        )

    def _reply(self, client: Any, request: dict[str, Any]) -> Any:
        """Return the server's reply as JSON, or as text if it is not JSON. Raises _NoReply if another item may succeed,
        V2LError if it would not."""
        httpx2 = _httpx2()
        failure: Exception = self._cause
        for attempt in range(TRIES):
            if self._stopped.is_set():
                raise self._cause
            wait = self.server.pause * 2**attempt
            try:
                response = client.post("chat/completions", content=json.dumps(request).encode())
            except httpx2.ReadTimeout as error:
                limit = f"{self.server.timeout:g} s; --set judge_timeout=SECONDS allows more"
                raise _NoReply(f"the judge gave no answer within {limit}") from error
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = self._unusable(f"cannot be reached ({_first_line(error)})")
            except httpx2.RequestError as error:
                failure = _NoReply(f"the judge closed the connection ({_first_line(error)})")
            else:
                if response.status_code == 200:
                    return _decoded(response)
                failure = self._refusal(response)
                wait = _retry_after(response) or wait
            if attempt < TRIES - 1:
                self._stopped.wait(wait)
        raise failure

    def _refusal(self, response: Any) -> _NoReply:
        """Return the error of a refused request. Raises it at once if another attempt would not help."""
        status, text = response.status_code, response.text
        body = printable(text.replace(_key(), "***") if _key() else text) or "nothing"  # some servers repeat the key
        answer = f"answers {status}: {body}"
        if status < 400 or status in (401, 403, 404):
            raise self._unusable(answer)
        failure = _NoReply(f"the judge {answer}")
        if status != 429 and status < 500:
            raise failure
        wait = _retry_after(response)
        if wait is not None and wait > LONGEST_WAIT:
            raise V2LError(f"the judge {answer}; it asks to wait {wait:.0f} s; run the same command again after that")
        return failure

    def _unusable(self, problem: str) -> V2LError:
        return V2LError(f"the judge at {printable(self.server.url)} {problem}; check --judge, --judge-model and {KEY}")

    def _client(self) -> Any:
        httpx2 = _httpx2()
        headers = {"Content-Type": "application/json"}
        if _key():
            headers["Authorization"] = f"Bearer {_key()}"
        timeout = httpx2.Timeout(self.server.timeout, connect=min(self.server.timeout, 10.0))
        limits = httpx2.Limits(max_connections=self.server.jobs)
        return httpx2.Client(base_url=self.server.url, headers=headers, timeout=timeout, limits=limits)


def _read(reply: Any) -> tuple[int | None, str | None]:
    """Return the score and the error of a reply; one of them is None."""
    choice = _within(reply, "choices", 0)
    text = _within(choice, "message", "content")
    if _within(choice, "finish_reason") == "length":
        return None, "the judge's reply was cut off at the rubric's token limit; another --set rubric may allow more"
    score = read_score(text) if isinstance(text, str) else None
    if score is not None:
        return score, None
    shown = text if isinstance(text, str) else json.dumps(reply)
    return None, f"the judge's reply has no score from 0 to {TOP}: {printable(shown.strip()) or 'it is empty'}"


def _within(value: Any, *path: str | int) -> Any:
    """Return the value at a path in untrusted JSON, None if there is none."""
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


def _retry_after(response: Any) -> float | None:
    """Return the seconds that Retry-After asks for, as a number or a date; None without one."""
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
        raise missing_extra("--judge", "httpx2", "eval") from error
    return httpx2
