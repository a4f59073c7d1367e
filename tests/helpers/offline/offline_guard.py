"""Imported by the tests and by every command that they run: nothing but this machine can be reached, and whoever tries
is written down, so that a library that swallows the error is found out too."""

import os
import socket
import sys

LOG = os.environ.get("OFFLINE_LOG")
LOCAL = ("127.", "::1", "localhost")


def _check(address: object) -> None:
    host = address[0] if isinstance(address, tuple) and address else address
    host = host.decode() if isinstance(host, bytes) else host
    if host is None or not isinstance(host, str) or host == "" or host.startswith(LOCAL):
        return
    if LOG:
        with open(LOG, "a") as file:
            file.write(f"{sys.argv[:2]} reached for {host}\n")
    raise OSError(f"the tests run without a network, and something reached for {host}")


class _Socket(socket.socket):
    def connect(self, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address)
        super().connect(address)

    def connect_ex(self, address: object) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address)
        return super().connect_ex(address)

    def sendto(self, data: bytes, *rest: object) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(rest[-1])
        return super().sendto(data, *rest)


_getaddrinfo = socket.getaddrinfo


def _looked_up(host: object, *rest: object, **named: object) -> list:
    _check(host)
    return _getaddrinfo(host, *rest, **named)


socket.socket = socket.SocketType = _Socket
socket.getaddrinfo = _looked_up
