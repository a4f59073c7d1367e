"""The whole suite runs without a network (tests/offline); here is the proof that it would be found out."""

import os
import socket
import subprocess
import sys

import offline_guard
import pytest
from terminal import V2L, surroundings

REACH = "import socket; s = socket.socket(); s.settimeout(1); s.connect(('192.0.2.1', 80))"


def test_this_process_reaches_nothing_but_itself(monkeypatch, tmp_path):
    monkeypatch.setattr(offline_guard, "LOG", str(tmp_path / "log"))
    with pytest.raises(OSError, match="without a network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match="without a network"):
        socket.getaddrinfo("huggingface.co", 443)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(OSError, match="without"):
        datagrams.sendto(b"x", ("192.0.2.1", 53))
    assert (tmp_path / "log").read_text().count("reached for") == 3
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_commands_reach_nothing_either(tmp_path):
    environment = surroundings(OFFLINE_LOG=str(tmp_path / "log"))
    done = subprocess.run([sys.executable, "-c", REACH], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "without a network" in done.stderr
    assert (tmp_path / "log").read_text() == "['-c'] reached for 192.0.2.1\n"
    # the command is run by that same Python, with that same start
    assert os.path.samefile(os.path.dirname(V2L), os.path.dirname(sys.executable))
