"""Claims: one process makes a file, and no claim outlives its owner."""

import os
import subprocess
import sys

import pytest

from v2l.io import files
from v2l.io.claims import Claim, Claims
from v2l.io.files import write_atomically

HOLD = """
import sys
from pathlib import Path
from v2l.io.claims import Claim, Claims
claim = Claim(Claims())
assert claim.take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "talk.v2l.safetensors"


@pytest.fixture
def owner(file):
    """Another process that holds the claim."""
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout.readline() == "held\n"
    yield owner
    owner.kill()
    owner.communicate()


def test_the_claim_of_a_killed_process_is_free_and_its_file_removed(file, owner):
    with Claims() as claims:
        mine = Claim(claims)
        assert not mine.take(file)
        owner.kill()
        assert mine.take(file, wait=True)
        assert len(os.listdir(file.parent)) == 1
    assert os.listdir(file.parent) == []


def test_a_claim_that_a_killed_process_left_is_swept_and_a_held_one_is_not(file, owner, monkeypatch):
    for held in (True, False):
        monkeypatch.setattr(files, "_swept", set())
        write_atomically(file, b"whole")
        assert len(os.listdir(file.parent)) == 1 + held
        owner.kill()
        owner.wait()


def test_two_claims_in_one_process_exclude_each_other(file):
    with Claims() as first, Claims() as second:
        one, other = Claim(first), Claim(second)
        assert one.take(file) and one.take(file) and not other.take(file)
        one.give_back()
        assert other.take(file) and not one.take(file)
        assert one.take(file.with_name("x" * 250))  # leaves no room for an ending
    assert os.listdir(file.parent) == []


def test_a_batch_that_has_ended_takes_no_claim(file):
    with Claims() as claims:
        pass
    assert not Claim(claims).take(file)
    assert os.listdir(file.parent) == []


def test_a_file_system_without_locks_grants_every_claim(file, monkeypatch):
    def none(*_):
        raise OSError("no locks")

    monkeypatch.setattr(files.fcntl, "flock", none)
    with Claims() as claims:
        assert Claim(claims).take(file) and Claim(claims).take(file)
    assert os.listdir(file.parent) == []
