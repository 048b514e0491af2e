"""A history of benches: one JSON line per run, appended whole or not at all, by any number of processes at once."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgefuse.benchmarks.figures import figures


def line_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a run leaves: when, of what, on what, and every figure."""
    bundle, environment = report["bundle"], report["environment"]
    about = {"created": report["created"], "bundle": bundle["name"], "fingerprint": bundle["fingerprint"]}
    return {
        **about,
        "quick": report["quick"],
        "cpu": environment["cpu"],
        "commit": environment["commit"],
        **figures(report),
    }


def append(path: Path, document: Mapping[str, Any]) -> None:
    """Add one compact line; the file and its folder are made if need be.

    Raises:
        OSError: it cannot be written; what was in it before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # given back when it is closed
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # another program left its last line open
            line = b"\n" + line
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
