"""A hub on this machine: the endpoints of the Hugging Face hub that huggingface_hub's client asks for a download."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Repo:
    """files: by name; revisions: branch, tag or commit to commit; weights stand in LFS, as on the hub."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    licence: str | None = "apache-2.0"
    branches: tuple[str, ...] = ("main",)

    @classmethod
    def of(cls, folder: Path, **values: object) -> Repo:
        return cls({path.name: path.read_bytes() for path in folder.iterdir()}, **values)

    def siblings(self) -> list[dict]:
        listed = []
        for name, data in self.files.items():
            one = {"rfilename": name, "size": len(data), "blobId": git_blob(data)}
            if in_lfs(name):
                one["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
            listed.append(one)
        return listed


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def in_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".pt"))


@dataclass
class Hub:
    """repos: by name; requests: method, path and range of all so far

    served: in a file's place, by name, other bytes than its hashes say; cut: names whose next download breaks off in
    the middle
    """

    repos: dict[str, Repo]
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    served: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    address: str = ""

    @contextmanager
    def running(self) -> Iterator[Hub]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.requests.append((request.command, path, request.headers.get("Range")))
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo = self.repos.get((about or file)[1]) if about or file else None
        if repo is None:
            return self.refuse(request, "RepoNotFound")
        revision = (about or file)[2] or "main"
        if revision not in (*repo.branches, repo.commit):
            return self.refuse(request, "RevisionNotFound")
        if about:
            card = {"license": repo.licence} if repo.licence else {}
            said = {"id": about[1], "sha": repo.commit, "siblings": repo.siblings(), "cardData": card}
            return self.give(request, json.dumps(said).encode(), {"Content-Type": "application/json"})
        if file[3] not in repo.files:
            return self.refuse(request, "EntryNotFound")
        stated, data = repo.files[file[3]], self.served.get(file[3], repo.files[file[3]])
        tag = hashlib.sha256(stated).hexdigest() if in_lfs(file[3]) else git_blob(stated)
        return self.give(request, data, {"X-Repo-Commit": repo.commit, "ETag": f'"{tag}"'}, file[3])

    def give(self, request: BaseHTTPRequestHandler, data: bytes, headers: dict[str, str], name: str = "") -> None:
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
        request.wfile.write(data[start:])

    def refuse(self, request: BaseHTTPRequestHandler, code: str) -> None:
        request.send_response(404)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()
