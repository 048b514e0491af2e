"""A little of the driving corpus, a run that learned it in a few seconds, and its bundle; read only."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from edgefuse.optimize.export import export
from edgefuse.train import driving
from edgefuse.train.train import train

LINES = {"train": 96, "val": 24, "test": 24}
CHANGES = ["image.height=64", "image.width=64", "data.groups_per_step=16", "train.epochs=2"]


@functools.cache
def corpus() -> Path:
    """The folder of the corpus."""
    folder = _new_folder()
    with mock.patch.dict(driving.LINES, LINES):
        driving.driving(folder)
    return folder


@functools.cache
def trained_run() -> Path:
    """The folder of a run of the shipped recipe on pictures of 64 x 64."""
    run = _new_folder() / "run"
    train("driving", [f"data.manifest={corpus() / driving.MANIFEST}", *CHANGES], run)
    return run


@functools.cache
def bundle() -> Path:
    """The folder of the run's bundle, with fp32 parts."""
    folder = _new_folder() / "bundle"
    export(trained_run(), folder)
    return folder


def lines_of_test() -> list[dict[str, Any]]:
    """The test lines of the manifest."""
    lines = (corpus() / driving.MANIFEST).read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == "test"]


def _new_folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="edgefuse-driving-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
