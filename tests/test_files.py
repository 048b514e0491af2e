"""Writing whole or not at all; commits of several files are tested with the bundle, by killing them at every step."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgefuse.runtime.files import commit, finish_commit, write_atomic


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    for content in (b"old", b"new", b""):
        write_atomic(path, content)

        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_commit_that_two_processes_finish_is_finished_once(tmp_path, monkeypatch):
    """Between the look at a pending file and its rename, another process may have renamed it."""
    commit(tmp_path, {"a": b"new", "b": b"new"}, "index", b"")
    digest = "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"  # of b"new"
    replace = Path.replace

    def overtaken(path: Path, target: Path) -> None:
        replace(path, target)
        replace(path, target)  # fails: the other process was first

    monkeypatch.setattr(Path, "replace", overtaken)
    finish_commit(tmp_path, "index", lambda content: {"a": digest, "b": digest})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "index"]
