"""Run the installed `v2l pull` against hubs that lie, stall, flood and redirect, and check the outcome of each.

    python tests/stress/hubs.py              all of them, two at a time, in about ten minutes
    python tests/stress/hubs.py NAME...      some

Each scenario starts a hub on this machine, the command with a home of its own, and compares: the exit code; one
printable line on standard error that says what is expected; every file of that home outside the Hugging Face cache as
it was; every file in the cache what its name says; less than MEMORY and DISK; no process that must be killed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import small
from hub import LISTING, Hub, Repo, git_blob
from places import DATA
from terminal import V2L, Terminal, surroundings

from v2l.models.presets import PRESETS

MODEL, HYPERNETWORKS = PRESETS["smolvlm2-500m"].model, PRESETS["smolvlm2-500m"].hypernetworks
PT = PRESETS["smolvlm2-500m"].file
MEMORY, DISK, PATIENCE = 800 * 2**20, 64 * 2**20, 240
"""Bytes of memory and of disk that no pull here may take; an honest one takes 400 MB and 2 MB. Seconds until a process
is killed, which is a failure."""
SLOW = 2
"""HF_HUB_DOWNLOAD_TIMEOUT in all of them."""
UP = "../" * 16
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m"

INVALID = "the hub's listing of .* is invalid"
NOTHING_COMES = "fewer than 1000 bytes a second in 2 s"
LINK = "is a link out of the cache"

Request = BaseHTTPRequestHandler
Lie = Callable[[Request], None]


@dataclass
class Scene:
    """A hub and the home directory of its client.

    process: the command, once it runs; others: commands that run at the same time and must succeed
    started: set when an endless response has started
    """

    hub: Hub
    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = None
    others: list[subprocess.Popen] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)

    @property
    def cache(self) -> Path:
        return self.home / ".cache" / "huggingface"

    @property
    def repo(self) -> Path:
        return self.cache / "hub" / f"models--{MODEL.replace('/', '--')}"

    @property
    def victim(self) -> Path:
        return self.home / "notes" / "precious.txt"

    def place(self, path: Path) -> Path:
        """Return the path after creating its folders."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def says(self, **changes: object) -> None:
        """Return the listing of the model with other values."""
        said = json.loads(self.hub.listing(MODEL)) | changes
        self.hub.lies[LISTING] = self.only_model(answer(json.dumps(said).encode()))

    def lists(self, *entries: object, instead: bool = False) -> None:
        """Return the listing of the model with more files, or with these alone."""
        self.says(siblings=[*([] if instead else self.hub.repos[MODEL].siblings()), *entries])

    def only_model(self, lie: Lie) -> Lie:
        """Answer falsely for the model and correctly for the hypernetwork."""

        def told(request: Request) -> None:
            if MODEL in request.path:
                return lie(request)
            name = re.search(r"/api/models/([^/]+/[^/]+)", request.path)[1]
            return answer(self.hub.listing(name))(request)

        return told

    def endless(self, head: bytes, piece: bytes, pause: float = 0.0) -> Lie:
        """Send `head`, then repeat `piece` until the client closes the connection."""

        def told(request: Request) -> None:
            request.close_connection = True
            request.wfile.write(head)
            self.started.set()
            while not self.hub.leaving.wait(pause):
                request.wfile.write(piece)
                request.wfile.flush()

        return told

    def stall(self, head: bytes = b"") -> Lie:
        """Send `head`, then nothing."""

        def told(request: Request) -> None:
            request.close_connection = True
            request.wfile.write(head)
            request.wfile.flush()
            self.started.set()
            self.hub.leaving.wait()

        return told

    def signal_when_started(self, number: int) -> None:
        """Send a signal to the command during the response."""

        def wait() -> None:
            assert self.started.wait(PATIENCE)
            self.process.send_signal(number)

        threading.Thread(target=wait, daemon=True).start()


def answer(body: bytes, status: int = 200, **headers: str) -> Lie:
    """Build a complete response; underscores in names of headers become dashes."""

    def told(request: Request) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return told


def entry(name: object, data: bytes = b"{}", **changes: object) -> dict:
    """Return the entry of a file in a listing."""
    return {"rfilename": name, "size": len(data), "blobId": git_blob(data), **changes}


def head(length: int | None = None, status: str = "200 OK", **headers: str) -> bytes:
    """Return the status line and headers of a response."""
    stated = {"Connection": "close", **({} if length is None else {"Content_Length": str(length)}), **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in stated.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1")


# The scenarios -----------------------------------------------------------------------------------------------------


@dataclass
class Scenario:
    """A change of a scene and the expected outcome: the exit code, and the text of the one error line, if any.

    home: run the command at a terminal, to which no control characters may be written
    after: checks the scene after the command has ended
    """

    name: str
    says: str | None
    prepare: Callable[[Scene], None]
    code: int
    terminal: bool = False
    after: Callable[[Scene], None] = lambda scene: None


SCENARIOS: list[Scenario] = []


def scenario(name: str, says: str | None, code: int | None = None, **more: object) -> Callable:
    def add(prepare: Callable[[Scene], None]) -> Callable[[Scene], None]:
        ends = code if code is not None else 0 if says is None else 1
        SCENARIOS.append(Scenario(name, says, prepare, ends, **more))
        return prepare

    return add


def listings(family: str, says: str, **values: Callable[[Scene], None]) -> None:
    for name, prepare in values.items():
        scenario(f"{family}-{name.replace('_', '-')}", says)(prepare)


def body(content: bytes) -> Callable[[Scene], None]:
    return lambda scene: scene.hub.lies.update({LISTING: answer(content)})


def file(lie: Callable[[Scene], Lie], name: str = "config.json") -> Callable[[Scene], None]:
    return lambda scene: scene.hub.lies.update({name: lie(scene)})


def listing(lie: Callable[[Scene], Lie]) -> Callable[[Scene], None]:
    return lambda scene: scene.hub.lies.update({LISTING: lie(scene)})


# Honest hubs: what must go on working

scenario("honest", None)(lambda scene: None)
scenario("honest-at-a-terminal", None, terminal=True)(lambda scene: None)


@scenario("honest-with-a-cdn-and-a-token", None)
def _(scene: Scene) -> None:
    scene.hub.cdn, scene.hub.token = True, "secret"
    scene.environment["HF_TOKEN"] = "secret"


@scenario("honest-but-slow", None)
def _(scene: Scene) -> None:
    """Send 20 kB a second, for ten times the timeout."""

    def told(request: Request) -> None:
        data = scene.hub.repos[MODEL].files["model.safetensors"][: 20 * 20_000]
        request.wfile.write(head(len(data)))
        for start in range(0, len(data), 10_000):
            request.wfile.write(data[start : start + 10_000])
            request.wfile.flush()
            scene.hub.leaving.wait(0.5)

    repo = scene.hub.repos[MODEL]
    repo.files["more.safetensors"] = repo.files["model.safetensors"][: 20 * 20_000]
    scene.hub.lies["more.safetensors"] = told


@scenario("honest-with-broken-connections", None)
def _(scene: Scene) -> None:
    scene.hub.cut = {"model.safetensors", "tokenizer.json", PT}


@scenario("honest-and-busy-once", None)
def _(scene: Scene) -> None:
    asked = []

    def told(request: Request) -> None:
        asked.append(request.path)
        busy = answer(b"", 503, Retry_After="1") if len(asked) == 1 else answer(scene.hub.repos[MODEL].files["LICENSE"])
        busy(request)

    scene.hub.lies["LICENSE"] = told


@scenario("gated", "requires access; request it on the hub, then set HF_TOKEN")
def _(scene: Scene) -> None:
    scene.hub.token = "secret"


# Commits, hashes and names that become paths

listings(
    "commit",
    INVALID,
    leads_to_bashrc=lambda scene: scene.says(sha=f"{UP}{scene.home}/.bashrc"),
    is_a_path=lambda scene: scene.says(sha=f"{scene.home}/.bashrc"),
    is_dots=lambda scene: scene.says(sha=".."),
    upper_case=lambda scene: scene.says(sha="A" * 40),
    too_short=lambda scene: scene.says(sha="a" * 39),
    with_line_end=lambda scene: scene.says(sha="a" * 40 + "\n"),
    other_digits=lambda scene: scene.says(sha="٣" * 40),
    empty=lambda scene: scene.says(sha=""),
    none=lambda scene: scene.says(sha=None),
    number=lambda scene: scene.says(sha=10**39),
    a_list=lambda scene: scene.says(sha=["a" * 40]),
    true=lambda scene: scene.says(sha=True),
)


@scenario("commit-of-the-record-moved", "answers with commit cccccccccccc of .* instead of aaaaaaaaaaaa")
def _(scene: Scene) -> None:
    record(scene, commit="a" * 40)
    scene.says(sha="c" * 40)


listings(
    "hash",
    INVALID,
    leads_out=lambda scene: scene.lists(entry("config.json", blobId=f"{UP}{scene.victim}"), instead=True),
    is_a_pattern=lambda scene: scene.lists(entry("config.json", blobId="*"), instead=True),
    of_lfs_leads_out=lambda scene: scene.lists(entry("a.safetensors", lfs={"sha256": f"{UP}{scene.victim}"})),
    of_lfs_number=lambda scene: scene.lists(entry("a.safetensors", lfs={"sha256": 5})),
    of_lfs_missing=lambda scene: scene.lists(entry("a.safetensors", lfs=[])),
    of_lfs_of_git=lambda scene: scene.lists(entry("a.safetensors", lfs={"sha256": "a" * 40})),
)


def etag(scene: Scene, tag: str, end: bytes = b"") -> None:
    data = scene.hub.repos[MODEL].files["config.json"]
    headers = {"X_Repo_Commit": "a" * 40, "ETag": f'"{tag}"', "X_Linked_ETag": f'"{tag}"'}
    scene.hub.lies["config.json"] = answer(data[: len(data) - len(end)] + end, **headers)


scenario("etag-leads-out", None)(lambda scene: etag(scene, f"{UP}{scene.home}/.ssh/new"))
scenario("etag-names-a-file", "has the hash")(lambda scene: etag(scene, f"{UP}{scene.victim}", b"!!"))
scenario("commit-of-a-file-leads-out", None)(
    file(lambda scene: answer(scene.hub.repos[MODEL].files["config.json"], X_Repo_Commit=f"{UP}{scene.home}/.bashrc"))
)
scenario("missing-file-with-a-commit-that-leads-out", "the hub does not have .*, or a file of it")(
    file(lambda scene: answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=f"{UP}{scene.home}/.bashrc"))
)

ODD_NAMES = (
    "..safetensors",
    "a\nb.json",
    f"a{ESCAPE}b.json",
    "\u202eb.json",
    " .json",
    "a" * 300 + ".json",
    "a\0b.json",
    f"{UP}etc/x.json",
    "..\\..\\x.json",
    "/etc/x.json",
    "C:x.json",
    "\ud800.json",
    ".json",
    "\0.safetensors",
)
scenario("odd-names-are-left-out", None)(lambda scene: scene.lists(*map(entry, ODD_NAMES)))
scenario("no-name-but-odd-ones", "has none of the required files")(
    lambda scene: scene.lists(*map(entry, ODD_NAMES), instead=True)
)


@scenario("hypernetwork-leads-out", "the hub has the hypernetwork under none of its names")
def _(scene: Scene) -> None:
    for name in HYPERNETWORKS:
        scene.hub.repos[name] = Repo({f"{UP}{scene.home}/.ssh/x-500m.pt": b"evil", "a/x-500m.pt": b"evil"}, "b" * 40)


# Listings of every shape

listings(
    "listing",
    INVALID,
    a_list=body(b"[]"),
    null=body(b"null"),
    number=body(b"5"),
    text=body(b'"listing"'),
    empty_object=body(b"{}"),
    empty=body(b""),
    a_page=body(b"<html><body>Sign in to the network</body></html>"),
    no_utf_8=body(b'{"sha": "\xff"}'),
    half=body(b'{"sha": "aaaa'),
    nested=body(b"[" * 1_000_000),
    long_number=body(b'{"sha": ' + b"9" * 100_000 + b"}"),
    no_siblings=lambda scene: scene.says(siblings=None),
    siblings_object=lambda scene: scene.says(siblings={"config.json": 1}),
    sibling_list=lambda scene: scene.lists([1, 2]),
    sibling_null=lambda scene: scene.lists(None),
    name_number=lambda scene: scene.lists(entry(5)),
    name_missing=lambda scene: scene.lists({"size": 1}),
    no_size=lambda scene: scene.lists({"rfilename": "a.json", "blobId": "a" * 40}),
    size_text=lambda scene: scene.lists(entry("a.json", size="big")),
    size_negative=lambda scene: scene.lists(entry("a.json", size=-(10**18))),
    size_fraction=lambda scene: scene.lists(entry("a.json", size=1e30)),
    size_true=lambda scene: scene.lists(entry("a.json", size=True)),
    size_of_4000_digits=lambda scene: scene.lists(entry("a.json", size=10**4000)),
    twice=lambda scene: scene.lists(entry("a.json"), entry("a.json", b"other")),
    card_list=lambda scene: scene.says(cardData=[1, 2]),
    licence_object=lambda scene: scene.says(cardData={"license": {"x": 1}}),
    licence_number=lambda scene: scene.says(cardData={"license": 5}),
    many_files=lambda scene: scene.lists(*(entry(f"docs/{number}") for number in range(10_001))),
    many_wanted=lambda scene: scene.lists(*(entry(f"{number}.json") for number in range(101))),
    a_petabyte=lambda scene: scene.lists(*(entry(f"{n}.safetensors", size=6 * 10**10) for n in range(2))),
)
scenario("licences", None)(lambda scene: scene.says(cardData={"license": ["mit", "other"]}))
scenario("no-licence", None)(lambda scene: scene.says(cardData=None))

# More than was asked for

scenario("listing-endless", "is longer than 4194304 bytes")(
    listing(lambda scene: scene.endless(head(), b'{"rfilename": "aaaaaaaa.json", "size": 1},' * 2000))
)
scenario("listing-of-five-megabytes", "is longer than 4194304 bytes")(body(b" " * 5_000_000 + b"{}"))
scenario("listing-gzip-bomb", "compresses its answer")(
    listing(lambda scene: answer(gzip.compress(bytes(300 * 2**20)), Content_Encoding="gzip"))
)
scenario("listing-in-brotli", "compresses its answer")(listing(lambda scene: answer(b"\x8b", Content_Encoding="br")))
scenario("file-endless", "sends more than the [0-9]+ bytes that it states for config.json; the file was discarded")(
    file(lambda scene: scene.endless(head(), b"x" * 2**20))
)
scenario("file-longer-than-stated", "sends more than the")(
    file(lambda scene: answer(scene.hub.repos[MODEL].files["config.json"] + b" "))
)
scenario("file-gzip-bomb", "compresses its answer")(
    file(lambda scene: answer(gzip.compress(bytes(300 * 2**20)), Content_Encoding="gzip"))
)
scenario("file-with-endless-trailers", "cannot fetch from")(
    file(lambda scene: scene.endless(head(Transfer_Encoding="chunked") + b"0\r\n", b"A: b\r\n" * 1000))
)
scenario("headers-endless", "cannot fetch from")(
    listing(lambda scene: scene.endless(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"))
)
scenario("early-hints-endless", NOTHING_COMES)(
    listing(lambda scene: scene.endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000))
)
scenario("refusal-endless", "it answers 404")(
    listing(lambda scene: scene.endless(head(status="404 Not Found"), b"x" * 2**20))
)
scenario("redirect-endless", None)(file(lambda scene: redirects_with_a_body(scene), "LICENSE"))


def redirects_with_a_body(scene: Scene) -> Lie:
    scene.hub.lies["elsewhere"] = answer(scene.hub.repos[MODEL].files["LICENSE"])
    where = f"/{MODEL}/resolve/{'a' * 40}/elsewhere"
    return lambda request: scene.endless(head(status="302 Found", Location=where), b"x" * 2**20)(request)


# Slower than a snail

scenario("listing-trickles", NOTHING_COMES)(listing(lambda scene: scene.endless(head(10**6), b" ", 0.3)))
scenario("listing-stalls", NOTHING_COMES)(listing(lambda scene: scene.stall(head(10**6) + b"{")))
scenario("no-answer", NOTHING_COMES)(listing(lambda scene: scene.stall()))
scenario("headers-trickle", NOTHING_COMES)(listing(lambda scene: scene.endless(b"HTTP/1.1 200 OK\r\nA: ", b"b", 0.3)))
scenario("early-hints-trickle", NOTHING_COMES)(
    listing(lambda scene: scene.endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.3))
)
scenario("file-trickles", NOTHING_COMES)(file(lambda scene: scene.endless(head(), b" ", 0.3)))
scenario("file-stalls", NOTHING_COMES)(file(lambda scene: scene.stall(head(100) + b"{")))
scenario("weights-trickle", NOTHING_COMES)(
    file(lambda scene: scene.endless(head(10**7), b" " * 100, 0.3), "model.safetensors")
)
scenario("chunk-sizes-trickle", "cannot fetch from")(
    file(lambda scene: scene.endless(head(Transfer_Encoding="chunked") + b"1;", b"a", 0.3))
)


@scenario("listing-breaks-off", "cannot fetch from")
def _(scene: Scene) -> None:
    scene.hub.lies[LISTING] = answer(b"{", Content_Length="1000", Connection="close")


@scenario("a-byte-a-connection", "cannot fetch from")
def _(scene: Scene) -> None:
    """Each request returns one more byte, which must not count as progress."""
    data = scene.hub.repos[MODEL].files["model.safetensors"]

    def told(request: Request) -> None:
        start = int(re.search(r"\d+", request.headers.get("Range") or "0")[0])
        stated = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        request.close_connection = True
        request.wfile.write(head(len(data) - start, "206 Partial Content", **stated) + data[start : start + 1])

    scene.hub.lies["model.safetensors"] = told


@scenario("never-more-than-the-first-half", "cannot fetch from")
def _(scene: Scene) -> None:
    """Ranges are ignored and every response breaks off; bytes that are sent again must not count as progress."""
    scene.hub.repos[MODEL].files["a.safetensors"] = data = bytes(4 * 2**20)

    def told(request: Request) -> None:
        request.close_connection = True
        request.wfile.write(head(len(data)) + data[: len(data) // 2])

    scene.hub.lies["a.safetensors"] = told


# Wrong content and wrong answers

scenario("file-is-another", "config.json has the hash .* it was discarded")(
    lambda scene: scene.hub.served.update({"config.json": scene.hub.repos[MODEL].files["config.json"][:-2] + b"!!"})
)
scenario("weights-are-others", "model.safetensors has the hash .* it was discarded")(
    lambda scene: scene.hub.served.update(
        {"model.safetensors": bytes(len(scene.hub.repos[MODEL].files["model.safetensors"]))}
    )
)
scenario("file-is-shorter", "it ends after 2 of [0-9]+ bytes")(file(lambda scene: answer(b"{}")))
scenario("file-is-missing", "the hub does not have .*, or a file of it")(
    file(lambda scene: answer(b"", 404, X_Error_Code="EntryNotFound"))
)
scenario("file-is-empty-success", "it answers 204")(file(lambda scene: answer(b"", 204)))
scenario("another-range", "it sends another part of the file")(
    file(lambda scene: answer(b"{}", 206, Content_Range="bytes 7-8/9"))
)
scenario("a-range-that-is-none", "it sends another part of the file")(
    file(lambda scene: answer(b"{}", 206, Content_Range="bytes x-" + "9" * 5000))
)
scenario("always-503", "it answers 503")(file(lambda scene: answer(b"", 503)))
scenario("come-back-in-a-year", "it answers 429")(listing(lambda scene: answer(b"", 429, Retry_After="31536000")))
scenario("repository-disabled", "it answers 403, Access to this resource is disabled")(
    listing(lambda scene: answer(b"", 403, X_Error_Message="Access to this resource is disabled."))
)
scenario("no-http", "cannot fetch from")(
    listing(lambda scene: lambda request: request.wfile.write(b"SSH-2.0-x\r\n" * 9))
)
scenario("content-length-that-is-none", "cannot fetch from")(
    listing(lambda scene: lambda request: request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}"))
)

# Redirects

scenario("redirect-to-a-file", "unsupported protocol 'file://'")(
    file(lambda scene: answer(b"", 302, Location=scene.victim.as_uri()))
)
scenario("redirect-loop", "it redirects more than 10 times")(
    file(lambda scene: answer(b"", 302, Location=f"/{MODEL}/resolve/{'a' * 40}/config.json"))
)
scenario("redirect-of-the-listing-loop", "it redirects more than 10 times")(
    listing(lambda scene: answer(b"", 307, Location=f"/api/models/{MODEL}"))
)
scenario("redirect-to-nobody", "cannot fetch from")(
    file(lambda scene: answer(b"", 302, Location="http://127.0.0.1:9/"))
)
scenario("redirect-to-no-address", "cannot fetch from")(file(lambda scene: answer(b"", 302, Location="http://[::1")))
scenario("redirect-to-ftp", "unsupported protocol 'ftp://'")(
    file(lambda scene: answer(b"", 302, Location="ftp://127.0.0.1/x"))
)
scenario("redirect-without-a-place", "it answers 302")(file(lambda scene: answer(b"", 302)))

# What is printed

for where in ("pipe", "terminal"):
    more = {"terminal": where == "terminal"}
    scenario(f"escapes-in-the-commit-{where}", INVALID, **more)(lambda scene: scene.says(sha=ESCAPE))
    scenario(f"escapes-in-the-licence-{where}", None, **more)(lambda scene: scene.says(cardData={"license": ESCAPE}))
    scenario(f"escapes-in-an-error-{where}", "it answers 403", **more)(
        listing(lambda scene: answer(b"", 403, X_Error_Message="\x9b2J no \xa0 \x85 " + "x" * 3000))
    )
    scenario(f"escapes-in-a-redirect-{where}", "cannot fetch from", **more)(
        file(lambda scene: answer(b"", 302, Location="gopher://\x9b2J/"))
    )
    scenario(f"escapes-in-headers-{where}", None, **more)(
        file(
            lambda scene: answer(
                scene.hub.repos[MODEL].files["config.json"],
                X_HF_Warning="a; \x9b2J",
                Content_Disposition='attachment; filename="\x9b2J";',
            )
        )
    )


@scenario("login-that-ends-soon-is-left-alone", None)
def _(scene: Scene) -> None:
    """huggingface_hub would request a new token from the server and store the answer."""
    scene.hub.token = "secret"
    (scene.cache / "token").write_text("secret")
    login = f"[me]\nhf_token = secret\nrefresh_token = other\nexpires_at = {int(time.time()) + 60}\n"
    (scene.cache / "stored_tokens").write_text(login)


@scenario("xet-headers-are-left-alone", None)
def _(scene: Scene) -> None:
    data = scene.hub.repos[MODEL].files["model.safetensors"]
    headers = {"X_Xet_Hash": "a" * 64, "X_Xet_Refresh_Route": "/api/xet", "X_Xet_Cas_Url": "http://127.0.0.1:9"}
    scene.hub.lies["model.safetensors"] = answer(data, **headers)


# Caches and records that somebody else wrote


def links(path: Callable[[Scene], Path]) -> Callable[[Scene], None]:
    def prepare(scene: Scene) -> None:
        scene.place(path(scene)).symlink_to(scene.home / "notes")

    return prepare


scenario("repository-is-a-link", LINK)(links(lambda scene: scene.repo))
scenario("blobs-are-a-link", LINK)(links(lambda scene: scene.repo / "blobs"))
scenario("snapshots-are-a-link", LINK)(links(lambda scene: scene.repo / "snapshots"))
scenario("snapshot-is-a-link", LINK)(links(lambda scene: scene.repo / "snapshots" / ("a" * 40)))
scenario("locks-are-a-link", LINK)(links(lambda scene: scene.cache / "hub" / ".locks"))
scenario("hub-is-a-link", None)(lambda scene: move_the_cache(scene))


def move_the_cache(scene: Scene) -> None:
    """The cache is a link of the user: its target is used."""
    elsewhere = scene.cache / "elsewhere"
    elsewhere.mkdir(parents=True)
    (scene.cache / "hub").symlink_to(elsewhere)


def config_blob(scene: Scene) -> str:
    return git_blob(scene.hub.repos[MODEL].files["config.json"])


@scenario("pointer-leads-to-a-file", "config.json has the hash .* it was discarded")
def _(scene: Scene) -> None:
    scene.place(scene.repo / "snapshots" / ("a" * 40) / "config.json").symlink_to(scene.victim)


@scenario("content-leads-to-a-file", "config.json has the hash .* it was discarded")
def _(scene: Scene) -> None:
    scene.place(scene.repo / "blobs" / config_blob(scene)).symlink_to(scene.victim)


@scenario("part-leads-to-a-file", "cannot write into .*: Too many levels of symbolic links")
def _(scene: Scene) -> None:
    scene.place(scene.repo / "blobs" / f"{config_blob(scene)}.incomplete").symlink_to(scene.victim)


@scenario("lock-leads-to-a-file", "cannot write into")
def _(scene: Scene) -> None:
    locks = scene.cache / "hub" / ".locks" / scene.repo.name
    scene.place(locks / f"{config_blob(scene)}.lock").symlink_to(scene.victim)


@scenario("two-at-once", None)
def _(scene: Scene) -> None:
    """A second command downloads the same files into the same cache at the same time."""
    scene.hub.lies["model.safetensors"] = both(scene)
    words = [V2L, "pull", "smolvlm2-500m", "--no-proof"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scene.others.append(subprocess.Popen(words, env=environment(scene), **silent))


def both(scene: Scene) -> Lie:
    """Send the weights in small pieces."""
    data = scene.hub.repos[MODEL].files["model.safetensors"]

    def told(request: Request) -> None:
        request.wfile.write(head(len(data)))
        for start in range(0, len(data), len(data) // 20):
            request.wfile.write(data[start : start + len(data) // 20])
            request.wfile.flush()
            scene.hub.leaving.wait(0.2)

    return told


@scenario("part-is-a-pipe", "cannot write into")
def _(scene: Scene) -> None:
    os.mkfifo(scene.place(scene.repo / "blobs" / f"{config_blob(scene)}.incomplete"))


@scenario("part-is-of-another", "config.json has the hash .* it was discarded")
def _(scene: Scene) -> None:
    scene.place(scene.repo / "blobs" / f"{config_blob(scene)}.incomplete").write_bytes(b"XXXX")


@scenario("content-is-of-another", "config.json has the hash .* it was discarded")
def _(scene: Scene) -> None:
    scene.place(scene.repo / "blobs" / config_blob(scene)).write_bytes(b"XXXX")


@scenario("pointer-is-a-pipe", "is a device, pipe or socket")
def _(scene: Scene) -> None:
    os.mkfifo(scene.place(scene.repo / "snapshots" / ("a" * 40) / "config.json"))


def record(scene: Scene, default: object = None, files: object = None, **changes: object) -> None:
    repo = {"revision": "main", "commit": "a" * 40, "files": files or {}, **changes}
    path = scene.place(scene.cache / "v2l.lock.json")
    path.write_text(json.dumps({"v2l": 1, "default": default, "repos": {MODEL: repo}}))


RECORD = "cannot read .*v2l.lock.json"
scenario("record-leads-out", RECORD)(lambda scene: record(scene, commit=f"{UP}{scene.home}/notes"))
scenario("record-without-a-commit", RECORD)(lambda scene: record(scene, commit=None))
scenario("record-names-a-path", RECORD)(lambda scene: record(scene, files={f"{UP}x-500m.pt": "a" * 64}))
scenario("record-with-a-hash-that-is-none", RECORD)(lambda scene: record(scene, files={"config.json": "../x"}))
scenario("record-with-escapes", RECORD)(lambda scene: record(scene, commit=ESCAPE))
scenario("record-of-a-default-elsewhere", RECORD)(lambda scene: record(scene, default=str(scene.home)))
scenario("record-is-nested", RECORD)(
    lambda scene: scene.place(scene.cache / "v2l.lock.json").write_bytes(b"[" * 500_000)
)
scenario("record-is-long", RECORD)(lambda scene: scene.place(scene.cache / "v2l.lock.json").write_bytes(b" " * 2**21))
scenario("record-is-a-pipe", "is a device, pipe or socket")(
    lambda scene: os.mkfifo(scene.place(scene.cache / "v2l.lock.json"))
)
scenario("record-disagrees", "differs from the file that was recorded for this commit")(
    lambda scene: record(scene, files={"config.json": "a" * 64})
)

# Signals


def whole_next_time(scene: Scene) -> None:
    """Partial files are not trusted: a correct hub completes them afterwards."""
    scene.hub.lies.clear()
    done = subprocess.run(
        [V2L, "pull", "smolvlm2-500m", "--no-proof"], env=environment(scene), capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    begins = [rest for _, path, rest in scene.hub.requests if path.endswith("model.safetensors")]
    assert begins[0] is None and (begins[-1] or "").startswith("bytes="), begins


def half(scene: Scene) -> Lie:
    """Send half of the weights, then continue very slowly."""
    data = scene.hub.repos[MODEL].files["model.safetensors"]
    return scene.endless(head(len(data)) + data[: len(data) // 2], data[:1], 0.1)


for name, number, code, says in (
    ("sigterm", signal.SIGTERM, 143, None),
    ("interrupt", signal.SIGINT, 130, "interrupted; what was finished is kept"),
    ("sigkill", signal.SIGKILL, -9, None),
):

    @scenario(f"{name}-half-way", says, code=code, after=whole_next_time)
    def _(scene: Scene, number: int = number) -> None:
        scene.environment["HF_HUB_DOWNLOAD_TIMEOUT"] = "100"
        scene.hub.lies["model.safetensors"] = half(scene)
        when_there(scene, scene.repo / "blobs", number)

    if name != "sigkill":
        scenario(f"{name}-before-an-answer", says, code=code)(
            lambda scene, number=number: (
                scene.hub.lies.update({LISTING: scene.stall()}),
                scene.environment.update(HF_HUB_DOWNLOAD_TIMEOUT="100"),
                scene.signal_when_started(number),
            )
        )


def when_there(scene: Scene, folder: Path, number: int) -> None:
    """Send the signal after half of the weights have arrived in the cache."""
    enough = len(scene.hub.repos[MODEL].files["model.safetensors"]) // 2

    def wait() -> None:
        until = time.monotonic() + PATIENCE
        while not any(path.stat().st_size >= enough for path in folder.glob("*.incomplete")):
            assert time.monotonic() < until
            time.sleep(0.05)
        scene.process.send_signal(number)

    threading.Thread(target=wait, daemon=True).start()


# Running them ------------------------------------------------------------------------------------------------------


def environment(scene: Scene) -> dict[str, str]:
    return surroundings(
        HF_ENDPOINT=scene.hub.address,
        HOME=str(scene.home),
        HF_HOME=str(scene.cache),
        HF_HUB_OFFLINE="0",
        TMPDIR=str(scene.home / "tmp"),
        OMP_NUM_THREADS="1",  # two commands run at a time
        **{"HF_HUB_DOWNLOAD_TIMEOUT": str(SLOW), **scene.environment},
    )


@contextmanager
def scenes(model: dict[str, bytes]) -> Iterator[Scene]:
    """Create a scene: a correct hub, and a home with files in it."""
    hub = Hub({MODEL: Repo(dict(model)), HYPERNETWORKS[0]: Repo({PT: hypernetwork()}, "b" * 40, licence="mit")})
    with tempfile.TemporaryDirectory() as place, hub.running():
        home = Path(place) / "home"
        for name in (".bashrc", ".ssh/authorized_keys", "notes/precious.txt", "tmp/of another", "models/config.json"):
            path = home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"the user's {name}\n")
        scene = Scene(hub, home)
        scene.cache.mkdir(parents=True)
        yield scene


def hypernetwork() -> bytes:
    return (DATA / "official-a" / "hypernet.pt").read_bytes()


def outside(scene: Scene) -> dict[str, object]:
    """Return names, types, modes, times and contents of all files in the home outside the cache, and of the login."""
    found, own = {}, {scene.cache / name for name in ("token", "stored_tokens")}
    for path in sorted(scene.home.rglob("*")):
        if path.is_relative_to(scene.cache) and path not in own:
            continue
        about = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(about.st_mode) else None
        when = None if path.is_dir() else about.st_mtime_ns
        found[str(path.relative_to(scene.home))] = (about.st_mode, when, content)
    return found


def check_cache(scene: Scene) -> None:
    """Assert that only the cache, v2l's folder and the lock file were written, and that blobs have their hashes."""
    names = {path.name for path in scene.cache.iterdir()} if scene.cache.exists() else set()
    assert names <= {"hub", "v2l", "v2l.lock.json", "elsewhere", "token", "stored_tokens"}, names
    for path in (scene.cache / "hub").glob("models--*/blobs/*"):
        a_link = path.is_symlink() or path.parent.is_symlink() or path.parents[1].is_symlink()
        if a_link or not path.is_file() or path.suffix == ".incomplete":
            continue
        data = path.read_bytes()
        assert path.name in (git_blob(data), hashlib.sha256(data).hexdigest()), f"{path.name} holds {data[:40]!r}"
    size = sum(path.lstat().st_size for path in scene.cache.rglob("*"))
    assert size < DISK, f"{size} bytes on disk"


def run(scene: Scene) -> tuple[int, str, str, int]:
    """Return exit code, standard output and error, and peak memory in bytes."""
    words = [V2L, "pull", "smolvlm2-500m", "--no-proof"]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        scene.process = subprocess.Popen(
            words,
            env=environment(scene),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=scene.home,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        until, memory = time.monotonic() + PATIENCE, 0
        while scene.process.poll() is None and time.monotonic() < until:
            memory = max(memory, most_memory(scene.process.pid))
            time.sleep(0.02)
        killed = scene.process.poll() is None
        scene.process.kill()
        scene.process.wait()
        said = []
        for stream in (out, err):
            stream.seek(0)
            said.append(stream.read().decode())
        assert not killed, f"still running after {PATIENCE} s: {said}"
        return scene.process.returncode, *said, memory


def most_memory(process: int) -> int:
    """Return the peak memory of a process in bytes; 0 if it has just ended."""
    with suppress(OSError):
        held = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
        return int(held[1]) * 1024 if held else 0
    return 0


def run_at_terminal(scene: Scene) -> tuple[int, str, str, int]:
    command = Terminal("pull", "smolvlm2-500m", "--no-proof", cwd=scene.home, env=environment(scene))
    code, screen = command.end()
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", screen), f"control characters: {screen!r}"
    return code, screen, screen, 0


def check(wanted: Scenario, model: dict[str, bytes]) -> tuple[str, str]:
    """Run a scenario. Returns (figures, the error line). Raises AssertionError."""
    with scenes(model) as scene:
        wanted.prepare(scene)
        before, started = outside(scene), time.monotonic()
        code, out, err, memory = (run_at_terminal if wanted.terminal else run)(scene)
        seconds = time.monotonic() - started
        assert all(other.wait(PATIENCE) == 0 for other in scene.others)
        assert code == wanted.code, f"exit code {code}: {err!r}"
        lines = err.splitlines()
        errors = [line for line in lines if line.startswith("v2l: error:")]
        if wanted.terminal is False:
            texts = [line.replace("\xa0", " ") for line in [*lines, *out.splitlines()]]  # a space stays a space
            assert all(text.isprintable() for text in texts), (out, err)
        assert len(errors) == (1 if code == 1 else 0) and "Traceback" not in err, err
        assert not wanted.says or re.search(wanted.says, err), f"{err!r} does not say {wanted.says!r}"
        after = outside(scene)
        changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        assert changed == [], f"files of the user's changed: {changed}"
        check_cache(scene)
        asked = {
            path
            for _, path, _ in scene.hub.requests
            if not re.match(r"/api/models/|(/cdn)?/[^/]+/[^/]+/resolve/", path)
        }
        assert not asked, f"it asked for {asked}"
        assert memory < MEMORY, f"{memory / 2**20:.0f} MB of memory"
        wanted.after(scene)
        assert outside(scene) == before, "files of the user's changed later"
        return f"{code:4d} {seconds:5.1f} s {memory / 2**20:4.0f} MB", (errors or lines or [""])[-1]


def model_files() -> dict[str, bytes]:
    """Write a small model with as many tokens per image as the preset."""
    config = small.small_config()
    config.vision_config.image_size, config.scale_factor = 64, 1
    with tempfile.TemporaryDirectory() as place:
        folder = small.write_model(Path(place) / "model", config=config)
        (folder / "LICENSE").write_text("free")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def main(names: list[str]) -> int:
    """Run the scenarios and return the number of failures."""
    chosen = [one for one in SCENARIOS if not names or one.name in names]
    assert len({one.name for one in SCENARIOS}) == len(SCENARIOS)
    model, failed = model_files(), []

    def attempt(one: Scenario) -> None:
        try:
            figures, line = check(one, model)
            print(f"right  {one.name:44} {figures}  {line[:150]}", flush=True)
        except Exception as error:
            failed.append(one.name)
            print(f"WRONG  {one.name:44} {type(error).__name__}: {error}", flush=True)

    with ThreadPoolExecutor(2) as workers:
        list(workers.map(attempt, chosen))
    print(f"{len(chosen) - len(failed)} of {len(chosen)} right", *failed)
    return len(failed)


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
