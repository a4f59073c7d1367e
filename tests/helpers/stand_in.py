"""A local judge: a server of chat completions with answers chosen by the test."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = '{"extracted_answer": "a square", "score": 4}'


@dataclass(frozen=True)
class Said:
    """A response. body: sent as JSON unless it is text; wait: seconds before it is sent"""

    body: object
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0


def completion(text: str | None, finish: str = "stop", wait: float = 0.0) -> Said:
    """Return a response in the format of chat completions."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Said({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}, wait=wait)


@dataclass
class StandIn:
    """The server. answer: from prompt and number of the request; requests: path, body and headers of all so far"""

    answer: Callable[[str, int], Said] = lambda text, number: completion(GOOD)
    requests: list[tuple[str, dict, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[StandIn]:
        stand_in, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    stand_in.requests.append((self.path, body, dict(self.headers)))
                    reply = stand_in.answer(body["messages"][0]["content"], len(stand_in.requests))
                time.sleep(reply.wait)
                data = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
                with contextlib.suppress(OSError):  # the client may have disconnected
                    self.send_response(reply.status)
                    for name, value in {**reply.headers, "Content-Length": str(len(data))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.handle_error = lambda *_: None  # some tests disconnect on purpose
        self.url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
