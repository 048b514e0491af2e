"""The log: one process speaks, and what the loop waits for data is counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefuse.train import training_log as module
from edgefuse.train.distributed import Place
from edgefuse.train.training_log import TrainingLog


def slow(count: int) -> Iterator[Any]:
    for number in range(count):
        time.sleep(0.05)
        yield number


def test_the_share_of_time_that_waits_for_data_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingLog(tmp_path, 0, 4) as log:
        for number in log.timed(slow(4)):
            time.sleep(0.05)
            log.step(number, {"task": 1.0})
        log.validation(4, 1.0, {"image": 0.5})
        log.end()
    said = capsys.readouterr().err
    assert "epoch 1: image 0.5000" in said
    share = float(said.partition("waited for data ")[2].partition("%")[0])
    assert 25 < share < 75  # 50, on a machine with nothing else to do


def test_of_several_processes_one_speaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "here", lambda: Place(1, 2))
    with TrainingLog(tmp_path, 0, 4) as log:
        log.step(1, {"task": 1.0})
        log.validation(1, 1.0, {"image": 0.5})
        log.end()
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())
