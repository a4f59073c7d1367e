"""Requests to a Hugging Face hub: list the files of a repository and download them.

The hub is not trusted, because HF_ENDPOINT may name any server. Every value of a listing is checked before it is used.
A listing has a maximum size, a file the size that its listing states, and both a minimum rate, so every transfer ends.
Files are downloaded over plain HTTP, which the hub supports for all files. hf_xet is not used: its transfers bypass
these limits, and the hash of every file is verified in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx2

from v2l import __version__
from v2l.errors import V2LError
from v2l.io.text import printable
from v2l.models.lock_file import is_commit, is_plain_name, is_sha256

LISTING_BYTES, LISTING_FILES = 4 * 2**20, 10_000
"""Limits of a listing. It takes about 300 bytes per file."""
WANTED_BYTES, WANTED_FILES = 64 * 10**9, 100
"""Limits of the files that are downloaded from one repository. A model of 2.2 billion parameters takes up to 9 GB."""
LOWEST_RATE = 1000
"""Minimum bytes per second, averaged over HF_HUB_DOWNLOAD_TIMEOUT seconds (10 by default)."""
REDIRECTS = 10
TRIES = 3
"""Consecutive requests for one file that may fail without PROGRESS."""
PROGRESS = 2**20
"""Bytes that a request must bring to reset the count of TRIES."""
LONGEST_PAUSE = 30
"""Maximum seconds to wait before the next request, whatever Retry-After states."""


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it.

    name: a plain file name (`presets.is_plain_name`); size: in bytes
    digest: the sha256 (64 hexadecimal digits) of a file in LFS, the git object id (40 digits) of any other
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """A repository at one commit.

    licence: as printable text; files: those that were requested
    """

    commit: str
    licence: str
    files: list[HubFile]


class NotThere(V2LError):
    """The hub does not have the repository, or the repository does not have the file."""


class _Refused(Exception):
    """A response with a status other than 200 or 206.

    status: of HTTP; code, message: the hub's X-Error-Code and X-Error-Message; pause: Retry-After in seconds, else 0
    """

    def __init__(self, response: httpx2.Response):
        self.status = response.status_code
        self.code = response.headers.get("X-Error-Code", "")
        self.message = response.headers.get("X-Error-Message", "")
        wait = response.headers.get("Retry-After", "")
        self.pause = int(wait) if wait.isdecimal() and len(wait) < 10 else 0
        super().__init__(f"it answers {self.status}" + (f", {self.message}" if self.message else ""))

    @property
    def is_temporary(self) -> bool:
        """Return whether a later request may succeed."""
        return self.status in (408, 429) or self.status >= 500


class _Broken(Exception):
    """A response that ends early or violates the protocol."""


# Listings ----------------------------------------------------------------------------------------------------------


def list_files(repo: str, revision: str, wanted: Callable[[str], Any]) -> Listing:
    """Return the commit of a revision and its files.

    revision: a branch, tag or commit
    wanted: selects files by name; called for plain names only, files with other names are ignored

    Raises NotThere if the hub does not have the repository, and V2LError if HF_HUB_OFFLINE is set, if the hub cannot be
    reached, or if its answer is too long, too slow or invalid.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise V2LError("HF_HUB_OFFLINE is set, and v2l pull needs the network; unset it")
    content = bytearray()

    def take(piece: bytes) -> None:
        content.extend(piece)
        if len(content) > LISTING_BYTES:
            raise V2LError(f"the hub's listing of {repo} is longer than {LISTING_BYTES} bytes; check HF_ENDPOINT")

    async def fetch() -> None:
        url = f"{constants.ENDPOINT}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
        async with _response(url) as response:
            await _read(response, take)

    with _in_one_line(repo):
        asyncio.run(fetch())
    try:
        return _parse_listing(bytes(content), wanted)
    except (ValueError, RecursionError) as error:
        raise V2LError(f"the hub's listing of {repo} is invalid ({printable(error)}); check HF_ENDPOINT") from error


def _parse_listing(content: bytes, wanted: Callable[[str], Any]) -> Listing:
    """Parse a listing. Raise ValueError or RecursionError if it is malformed or exceeds a limit."""
    listing = json.loads(content)
    if not isinstance(listing, dict) or not isinstance(listing.get("siblings"), list):
        raise ValueError("it is not a listing of files")
    if not is_commit(listing.get("sha")):
        raise ValueError(f"{listing.get('sha')!r} is not a commit of 40 hexadecimal digits")
    if len(listing["siblings"]) > LISTING_FILES:
        raise ValueError(f"it lists {len(listing['siblings'])} files")
    named = [(_name(entry), entry) for entry in listing["siblings"]]
    files = [_hub_file(name, entry) for name, entry in named if is_plain_name(name) and wanted(name)]
    if len({file.name for file in files}) < len(files):
        raise ValueError("it lists a file twice")
    if len(files) > WANTED_FILES or sum(file.size for file in files) > WANTED_BYTES:
        raise ValueError(f"it offers {len(files)} files of {sum(file.size for file in files) / 1e9:.1f} GB")
    return Listing(listing["sha"], _licence(listing.get("cardData")), files)


def _name(entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("rfilename"), str):
        raise ValueError("it lists a file without a name")
    return entry["rfilename"]


def _hub_file(name: str, entry: dict[str, Any]) -> HubFile:
    size, in_lfs, digest = entry.get("size"), entry.get("lfs"), entry.get("blobId")
    if type(size) is not int or not 0 <= size <= WANTED_BYTES:
        raise ValueError(f"the size of {name} is not valid")
    if in_lfs is not None:
        digest = in_lfs.get("sha256") if isinstance(in_lfs, dict) else None
    if not isinstance(digest, str) or not (is_commit(digest) if in_lfs is None else is_sha256(digest)):
        raise ValueError(f"the hash of {name} is not valid")
    return HubFile(name, size, digest)


def _licence(card: Any) -> str:
    stated = {} if card is None else card
    stated = stated.get("license") if isinstance(stated, dict) else stated
    stated = [stated] if isinstance(stated, str) else stated
    if stated is not None and not (isinstance(stated, list) and all(isinstance(one, str) for one in stated)):
        raise ValueError("its licence is not a string")
    return printable(", ".join(stated or [])) or "not stated"


# Files -------------------------------------------------------------------------------------------------------------


def download(repo: str, commit: str, file: HubFile, target: BinaryIO, report: Callable[[int], object]) -> None:
    """Download a file into `target`. Resume after the bytes that `target` holds. The caller verifies the hash.

    target: open for appending. On an error it keeps what has arrived, so that the next call resumes; it is emptied if
        the hub sends more bytes than it states.
    report: called with the bytes that are left to download

    Raises NotThere if the hub does not have the file, and V2LError if TRIES requests in a row fail or are too slow, if
    the hub sends too much, or if the disk is full.
    """
    from huggingface_hub import constants

    url = f"{constants.ENDPOINT}/{repo}/resolve/{commit}/{quote(file.name)}"
    failures, start = 0, target.seek(0, os.SEEK_END)
    with _in_one_line(repo):
        while start < file.size:
            error, pause = asyncio.run(_continue(url, target, file, lambda end: report(file.size - end)))
            end = target.seek(0, os.SEEK_END)
            failures = 0 if end - start >= PROGRESS else failures + 1
            if end < file.size and failures == TRIES:
                raise error
            if end < file.size:
                time.sleep(pause)
            start = end


async def _continue(
    url: str, target: BinaryIO, file: HubFile, report: Callable[[int], object]
) -> tuple[Exception, float]:
    """Send one request for the rest of the file and append the response to `target`; replace its content if the server
    sends the whole file. Return the error to raise if the file is still incomplete and requests are used up, and the
    seconds to wait before the next one."""
    start = target.seek(0, os.SEEK_END)

    def empty() -> None:
        target.seek(0)
        target.truncate()

    def take(piece: bytes) -> None:
        if target.tell() + len(piece) > file.size:
            empty()
            raise V2LError(
                f"the hub sends more than the {file.size} bytes that it states for {file.name}; the file was "
                "discarded, check HF_ENDPOINT"
            )
        target.write(piece)
        report(target.tell())

    try:
        async with _response(url, {"Range": f"bytes={start}-"} if start else {}) as response:
            if response.status_code == 200:  # the whole file, even if a part was requested
                empty()
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise _Broken("it sends another part of the file than was requested")
            await _read(response, take)
            return _Broken(f"it ends after {target.tell()} of {file.size} bytes"), 1
    except _Refused as error:
        if not error.is_temporary:
            raise
        return error, min(max(error.pause, 1), LONGEST_PAUSE)
    except (TimeoutError, httpx2.TransportError) as error:
        return error, 1


# HTTP --------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _response(url: str, headers: dict[str, str] | None = None) -> AsyncIterator[httpx2.Response]:
    """Open a response of status 200 or 206; `_read` reads its body. Follow up to REDIRECTS redirects. The body of a
    redirect or an error is never read. Raise _Refused for other statuses, TimeoutError if there is no response within
    the timeout, and errors of httpx2."""
    async with httpx2.AsyncClient(timeout=None, headers=_headers(), verify=_certificates()) as client:
        request = client.build_request("GET", url, headers=headers)
        async with asyncio.timeout(_timeout()):
            for _ in range(REDIRECTS + 1):
                response = await client.send(request, stream=True)
                if response.next_request is None:
                    break
                request = response.next_request
                await response.aclose()
            else:
                raise _Broken(f"it redirects more than {REDIRECTS} times")
        try:
            if response.status_code not in (200, 206):
                raise _Refused(response)
            yield response
        finally:
            await response.aclose()


def _headers() -> dict[str, str]:
    """Return the headers of every request. The token is read as huggingface_hub reads it, but not with its functions:
    they may send requests of their own to the same server (to refresh a login, to list coding agents), without limits,
    and store the answer in HF_HOME."""
    from huggingface_hub import constants

    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not token and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        with contextlib.suppress(OSError):
            token = Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8", errors="replace")
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        raise V2LError("HF_TOKEN, or the token of hf auth login, contains invalid characters; set it again")
    headers = {"User-Agent": f"v2l/{__version__}", "Accept-Encoding": "identity"}
    return {**headers, "Authorization": f"Bearer {token}"} if token else headers


@cache
def _certificates() -> ssl.SSLContext:
    """Return the certificate authorities, cached because loading them takes as long as a request."""
    return httpx2.create_ssl_context()


async def _read(response: httpx2.Response, take: Callable[[bytes], None]) -> None:
    """Pass every piece of the body to `take`. Raise TimeoutError if it is slower than LOWEST_RATE."""
    if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise _Broken("it compresses its answer, which was not requested")  # a few bytes may expand to gigabytes
    timeout, now, received = _timeout(), asyncio.get_running_loop().time, 0
    async with asyncio.timeout(timeout) as deadline:
        async for piece in response.aiter_raw():
            take(piece)
            received += len(piece)
            if received >= LOWEST_RATE * timeout:
                deadline.reschedule(now() + timeout)
                received = 0


def _timeout() -> int:
    """Return the seconds within which a response must begin, and within which each LOWEST_RATE * seconds bytes of its
    body must arrive."""
    from huggingface_hub import constants

    return max(constants.HF_HUB_DOWNLOAD_TIMEOUT, 1)


@contextlib.contextmanager
def _in_one_line(repo: str) -> Iterator[None]:
    """Convert every error of a request into a V2LError."""
    from huggingface_hub import constants

    try:
        yield
    except V2LError:
        raise
    except _Refused as error:
        raise _refusal(repo, error) from error
    except TimeoutError as error:
        slow = f"fewer than {LOWEST_RATE} bytes a second in {_timeout()} s, which HF_HUB_DOWNLOAD_TIMEOUT sets"
        raise _unreachable(slow) from error
    except OSError as error:
        cache = printable(constants.HF_HUB_CACHE)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise V2LError(f"the disk is full: {cache}; make room and pull again") from error
        raise V2LError(f"cannot fetch into {cache}: {error.strerror or error}; check it and pull again") from error
    except Exception as error:  # the HTTP library's own classes
        raise _unreachable(str(error) or type(error).__name__) from error


def _refusal(repo: str, refused: _Refused) -> V2LError:
    if refused.code == "GatedRepo":
        return V2LError(f"{repo} requires access; request it on the hub, then set HF_TOKEN")
    if refused.code == "RevisionNotFound":
        return V2LError(f"{repo} has no such revision; omit --revision for the recorded one")
    # the hub answers 401 for a repository that does not exist, because it may be private
    unknown = refused.status == 401 and refused.message != "Invalid credentials in Authorization header"
    if refused.code in ("RepoNotFound", "EntryNotFound") or unknown:
        return NotThere(f"the hub does not have {repo}, or a file of it")
    return _unreachable(str(refused))


def _unreachable(why: str) -> V2LError:
    from huggingface_hub import constants

    return V2LError(
        f"cannot fetch from {printable(constants.ENDPOINT)} ({printable(why)}); check the network, HF_ENDPOINT "
        "and HF_TOKEN, and pull again: completed parts are kept"
    )
