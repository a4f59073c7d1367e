"""A local server with the endpoints of the Hugging Face hub that huggingface_hub uses for downloads."""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_KNOWN: dict[tuple[mmap.mmap, str], str] = {}
LISTING = "/"
"""Key in `Hub.lies` for listings of repositories, instead of a file name."""


@dataclass
class Repo:
    """A repository. files: contents by name, as bytes or mapped; weights are served from LFS, as on the hub."""

    files: dict[str, bytes | mmap.mmap]
    commit: str = "a" * 40
    licence: str | None = "apache-2.0"
    branches: tuple[str, ...] = ("main",)

    @classmethod
    def of(cls, folder: Path, **values: object) -> Repo:
        return cls({path.name: path.read_bytes() for path in folder.iterdir()}, **values)

    @classmethod
    def mapped(cls, folder: Path, **values: object) -> Repo:
        """Return the repository of a folder with files of any size, which must stay there."""
        return cls({path.name: map_file(path) for path in folder.iterdir()}, **values)

    def __post_init__(self) -> None:
        self.siblings()  # hashes what is mapped before a client waits for it

    def siblings(self) -> list[dict]:
        listed = []
        for name, data in self.files.items():
            one = {"rfilename": name, "size": len(data), "blobId": git_blob(data)}
            if in_lfs(name):
                one["lfs"] = {"size": len(data), "sha256": sha256(data), "pointerSize": 130}
            listed.append(one)
        return listed


def map_file(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def git_blob(data: bytes | mmap.mmap) -> str:
    return _hashed(data, "sha1", b"blob %d\0" % len(data))


def sha256(data: bytes | mmap.mmap) -> str:
    return _hashed(data, "sha256", b"")


def _hashed(data: bytes | mmap.mmap, algorithm: str, start: bytes) -> str:
    """Return the hash of a file's content after `start`; that of a mapped file, which is large, is kept."""
    known = (data, algorithm)
    if isinstance(data, mmap.mmap) and known in _KNOWN:
        return _KNOWN[known]
    digest = hashlib.new(algorithm, start)
    digest.update(data)
    if isinstance(data, mmap.mmap):
        _KNOWN[known] = digest.hexdigest()
    return digest.hexdigest()


def in_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".pt"))


@dataclass
class Hub:
    """The server. repos: by name; requests: method, path and range of all requests so far

    served: contents by file name that differ from the stated hashes
    cut: file names whose next download is interrupted in the middle
    token: required of every request; cdn: serve LFS files from another host, which refuses tokens
    lies: handlers by file name, or LISTING for listings, that answer instead of the hub
    leaving: set when the server shuts down, for handlers that wait
    """

    repos: dict[str, Repo]
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    served: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    token: str | None = None
    cdn: bool = False
    lies: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    leaving: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    @contextmanager
    def running(self) -> Iterator[Hub]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with suppress(ConnectionError):  # the client may disconnect at any time
                    hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.handle_error = lambda *_: None
        self.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield self
        finally:
            self.leaving.set()
            server.shutdown()
            server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.requests.append((request.command, path, request.headers.get("Range")))
        token = request.headers.get("Authorization")
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"(?:/cdn)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        lie = self.lies.get(LISTING if about else file[3] if file else "")
        if lie:
            return lie(request)
        at_cdn = path.startswith("/cdn/")
        if self.token and token != (None if at_cdn else f"Bearer {self.token}"):
            return self.refuse(request, "GatedRepo", 401)
        repo = self.repos.get((about or file)[1]) if about or file else None
        if repo is None:
            return self.refuse(request, "RepoNotFound")
        revision = (about or file)[2] or "main"
        if revision not in (*repo.branches, repo.commit):
            return self.refuse(request, "RevisionNotFound")
        if about:
            return self.give(request, self.listing(about[1]), {"Content-Type": "application/json"})
        if file[3] not in repo.files:
            return self.refuse(request, "EntryNotFound")
        stated, data = repo.files[file[3]], self.served.get(file[3], repo.files[file[3]])
        tag = sha256(stated) if in_lfs(file[3]) else git_blob(stated)
        if self.cdn and not at_cdn and in_lfs(file[3]):
            linked = {"X-Linked-ETag": f'"{tag}"', "X-Linked-Size": str(len(stated))}
            return self.redirect(request, path, {"X-Repo-Commit": repo.commit, **linked})
        return self.give(request, data, {"X-Repo-Commit": repo.commit, "ETag": f'"{tag}"'}, file[3])

    def listing(self, name: str) -> bytes:
        """Return the hub's description of a repository, as JSON."""
        repo = self.repos[name]
        card = {"license": repo.licence} if repo.licence else {}
        info = {"id": name, "sha": repo.commit, "siblings": repo.siblings(), "cardData": card}
        return json.dumps(info).encode()

    def redirect(self, request: BaseHTTPRequestHandler, path: str, headers: dict[str, str]) -> None:
        request.send_response(302)
        address = self.address.replace("127.0.0.1", "localhost")
        for header, value in {**headers, "Location": f"{address}/cdn{path}?signed", "Content-Length": "0"}.items():
            request.send_header(header, value)
        request.end_headers()

    def give(
        self, request: BaseHTTPRequestHandler, data: bytes | mmap.mmap, headers: dict[str, str], name: str = ""
    ) -> None:
        start = int(re.search(r"\d+", request.headers.get("Range") or "0")[0])
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for header, value in {**headers, "Content-Length": str(len(data) - start), "Accept-Ranges": "bytes"}.items():
            request.send_header(header, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        if name in self.cut:
            self.cut.discard(name)
            request.wfile.write(data[start : start + (len(data) - start) // 2])
            request.wfile.flush()
            request.close_connection = True
            request.connection.close()
            return
        request.wfile.write(memoryview(data)[start:])

    def refuse(self, request: BaseHTTPRequestHandler, code: str, status: int = 404) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()
