# SPDX-License-Identifier: Apache-2.0
"""The guard of all tests sees what it is for, and lets the rest pass."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from guard import GUARD, Guard


@pytest.fixture(autouse=True)
def _noted(_nothing_hidden):
    """What is tried here is tried on purpose."""
    yield
    GUARD.tried.clear()


@pytest.mark.parametrize(
    "act",
    [
        lambda: socket.socket(),
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: socket.getaddrinfo("example.com", 80),
        lambda: subprocess.run([sys.executable, "-c", ""], check=False),
        lambda: os.system("true"),
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
    ],
)
def test_networks_and_programs_are_refused(act):
    with pytest.raises(PermissionError, match=r"a test tried (socket|subprocess|os)\."):
        act()
    assert len(GUARD.tried) == 1
    for one in socket.socketpair():  # between processes of this machine
        one.close()


@pytest.mark.processes
def test_marked_tests_stay_on_this_machine():
    assert subprocess.run([sys.executable, "-c", ""], check=False).returncode == 0
    with socket.socket() as one, pytest.raises(PermissionError, match=r"192\.0\.2\.1"):
        one.connect(("192.0.2.1", 80))


def test_a_protected_folder_can_be_read_alone(tmp_path):
    folder, file = tmp_path / "set", tmp_path / "set" / "a.txt"
    folder.mkdir()
    file.write_text("a")
    (tmp_path / "set2").mkdir()
    with GUARD.read_only(folder):
        assert file.read_text() == "a"
        (tmp_path / "set2" / "a.txt").write_text("beside it")
        (tmp_path / "link").symlink_to(file)
        for act in (
            lambda: file.write_text("b"),
            lambda: file.open("r+"),
            lambda: (folder / "b").mkdir(),
            lambda: file.unlink(),
            lambda: file.replace(tmp_path / "b.txt"),
            lambda: (tmp_path / "set2").rename(folder / "set2"),
            lambda: (folder / "link").symlink_to(tmp_path),
            lambda: os.utime(file),
            lambda: file.chmod(0o600),
        ):
            with pytest.raises(PermissionError):
                act()
    file.write_text("b")


def test_changes_that_nobody_announced_are_noticed(tmp_path):
    guard = Guard()  # it is no hook: as if a C library had written
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(AssertionError, match="was written to"), guard.read_only(tmp_path):
        (tmp_path / "b.txt").write_text("b")


def test_there_is_no_home():
    with pytest.raises(OSError, match="Not a directory"):
        (Path.home() / ".config").mkdir(parents=True)
