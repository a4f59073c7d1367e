"""The judge against a stand-in server on this machine: what it is asked, what counts as a score, and that a run that
went wrong is gone on from."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from v2l import judge as judging_module
from v2l.errors import UsageError, V2LError
from v2l.judge import IN_A_ROW, KEY, RUBRIC, TRIES, Item, Judge, Server, read_rubric, read_score

ITEMS = [Item("qa", f"what is number {n}?", "a square", f"it is number {n}") for n in range(6)]
GOOD = '{"extracted_answer": "a square", "score": 4}'


def completion(text, finish="stop", **usage):
    """A reply as chat completions are."""
    counted = usage or {"prompt_tokens": 100, "completion_tokens": 10}
    message = {"role": "assistant", "content": text}
    return 200, {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": counted}


class StandIn:
    """A judge on this machine. answer: from the question's text and the number of the request to status and body; a
    third value is headers, a fourth seconds to wait first. requests: bodies and headers of all so far."""

    def __init__(self):
        self.answer = lambda text, number: completion(GOOD)
        self.requests, self.url, self.lock = [], "", threading.Lock()

    @contextlib.contextmanager
    def running(self):
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stand_in.lock:
                    stand_in.requests.append((self.path, body, dict(self.headers)))
                    number = len(stand_in.requests)
                status, said, *rest = stand_in.answer(body["messages"][-1]["content"], number)
                headers, wait = (*rest, {}, 0)[:2] if rest else ({}, 0)
                time.sleep(wait)
                data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
                with contextlib.suppress(OSError):  # the client may have gone
                    self.send_response(status)
                    for name, value in {**headers, "Content-Length": str(len(data))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
