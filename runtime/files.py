"""Writing files so that a crash at any moment leaves the old content or the new, never a part or a mixture."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

JOURNAL_SUFFIX = ".commit"  # an index whose files are all on disk, some of them still under a .new name


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write one file so that a reader sees the old or the new content, never a part.

    Raises:
        OSError: nothing was written under `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_durably(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def commit(folder: Path, files: Mapping[str, bytes], index: str, content: bytes) -> None:
    """Write `files` (path inside `folder` -> bytes) and their `index` as one step; `finish_commit` must follow.

    Everything goes to a .new name first. Then the index becomes the journal in one rename, the moment of commit:
    before it the old files count, after it the new ones, whoever gives them their names.

    Raises:
        OSError: nothing was committed, and what was there before is untouched.
    """
    staged = [(_new_name(folder / name), data) for name, data in files.items()]
    staged.append((folder / (index + JOURNAL_SUFFIX + ".new"), content))
    try:
        for path, data in staged:
            _write_durably(path, data)
        for parent in {path.parent for path, _ in staged}:
            _sync_folder(parent)
        staged[-1][0].replace(folder / (index + JOURNAL_SUFFIX))
    except OSError:
        for path, _ in staged:
            path.unlink(missing_ok=True)
        raise
    _sync_folder(folder)


def finish_commit(folder: Path, index: str, hashes_in: Callable[[bytes], Mapping[str, str]]) -> None:
    """Give every committed file its name; does nothing where no commit is pending.

    Args:
        folder: where `commit` wrote.
        index: name of the index file.
        hashes_in: reads the files' sha256 (path inside `folder` -> hex digest) out of the index.
    """
    journal = folder / (index + JOURNAL_SUFFIX)
    try:
        content = journal.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, digest in hashes_in(content).items():
        pending = _new_name(folder / name)
        with contextlib.suppress(FileNotFoundError):  # taken already, or another process finishes the same commit
            # A .new file of another hash was left by a write that died before its commit.
            if hashlib.sha256(pending.read_bytes()).hexdigest() == digest:
                pending.replace(folder / name)
            else:
                pending.unlink()
    with contextlib.suppress(FileNotFoundError):
        journal.replace(folder / index)


def _new_name(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _write_durably(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut, as fsync does for a file's content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
