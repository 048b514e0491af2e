"""A run whose model reads a signal: file or stdin, limits, recording and replay, the page; on the driving bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefuse.runtime.board import Board
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.decision import Decision
from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.mailbox import Mailbox
from edgefuse.runtime.predictor import predict_once
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.run import run
from edgefuse.runtime.run_options import Options
from tests import driving_fixtures
from tests.driving_fixtures import lines_of_test


@pytest.fixture(scope="module")
def bundle() -> Path:
    return driving_fixtures.bundle()


@pytest.fixture(scope="module")
def sensors() -> dict[str, Path]:
    row = lines_of_test()[0]
    return {modality: driving_fixtures.corpus() / row[modality] for modality in ("image", "signal")}


def last(decisions: list[Decision]) -> dict[str, Any]:
    assert decisions
    return decisions[-1].document()


def test_a_picture_and_a_played_table_end_in_the_answer_of_predict(bundle: Path, sensors: dict[str, Path]) -> None:
    decisions = list(run(bundle, camera=sensors["image"], signal=sensors["signal"], limits_ms={"image": None}))
    expected = predict_once(bundle, **sensors)
    said = last(decisions)
    assert (said["label"], said["presence"]) == (expected["label"], {"image": True, "signal": True})
    assert said["confidence"] == pytest.approx(expected["confidence"], abs=1e-4)
    assert said["weights"] == pytest.approx(expected["weights"], abs=1e-4)


def test_lines_on_stdin_give_a_decision_each_at_most(bundle: Path, sensors: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "edgefuse.runtime.cli", "run", str(bundle), "--signal", "-"]
    done = subprocess.run(command, input=sensors["signal"].read_bytes(), capture_output=True, check=True, timeout=120)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    decisions = [line for line in lines if "label" in line]
    assert 1 <= len(decisions) <= 20
    expected = predict_once(bundle, signal=sensors["signal"])
    assert decisions[-1]["label"] == expected["label"]
    assert decisions[-1]["confidence"] == pytest.approx(expected["confidence"], abs=1e-4)


def test_a_recording_holds_the_rows_exactly_and_replays_to_the_same_answers(
    bundle: Path, sensors: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "recording"
    seen = list(run(bundle, signal=sensors["signal"], record=folder))
    readings = [json.loads(line) for line in (folder / "readings.jsonl").read_text().splitlines()]
    newest = np.load(folder / readings[-1]["signal"], allow_pickle=False)
    table = np.genfromtxt(sensors["signal"], delimiter=",", skip_header=1)
    np.testing.assert_array_equal(newest, table.astype(np.float32))
    replayed = list(run(bundle, replay=folder))
    assert last(replayed)["label"] == last(seen)["label"]
    assert replayed[-1].probabilities == pytest.approx(seen[-1].probabilities, abs=1e-6)


def test_a_signal_that_stops_is_missing_after_its_limit(bundle: Path, sensors: dict[str, Path], tmp_path: Path) -> None:
    readings = [{"t_ms": 0, "image": str(sensors["image"]), "signal": str(sensors["signal"])}]
    readings += [{"t_ms": t_ms, "image": str(sensors["image"])} for t_ms in (400, 900, 1400)]
    path = tmp_path / "readings.jsonl"
    path.write_text("".join(json.dumps(reading) + "\n" for reading in readings))
    decisions = [d.document() for d in run(bundle, replay=path)]
    assert {d["presence"]["signal"] for d in decisions if d["t_ms"] < 1000} == {True}
    assert {d["presence"]["signal"] for d in decisions if d["t_ms"] >= 1000} == {False}
    shorter = [d.document() for d in run(bundle, replay=path, limits_ms={"signal": 200.0})]
    assert {d["presence"]["signal"] for d in shorter if d["t_ms"] < 200} == {True}
    assert {d["presence"]["signal"] for d in shorter if d["t_ms"] >= 200} == {False}


def test_options_know_the_signal(bundle: Path) -> None:
    with pytest.raises(OptionError, match="text and signal cannot both come from stdin"):
        Options(text="-", signal="-")
    with pytest.raises(OptionError, match="mic: the model has no audio encoder; it takes: image, signal"):
        Options(mic="default").check(Bundle.open(bundle).info)


def test_the_page_shows_the_signal_like_any_sensor(bundle: Path, sensors: dict[str, Path]) -> None:
    info = Bundle.open(bundle).info
    preprocessor = Preprocessor(Bundle.open(bundle))
    board = Board(info, Mailbox(preprocessor.empty, info.modalities))
    for decision in run(bundle, signal=sensors["signal"], count=1):
        board.decision(decision)
    state = board.state()
    assert state["presence"] == {"image": False, "signal": True}
    assert state["decision"]["age_ms"]["signal"] >= 0
    assert state["decision"]["weights"]["signal"] == pytest.approx(1, abs=1e-3)
    page = Path(sys.modules[Board.__module__].__file__ or "").with_name("web.html").read_text()
    assert 'signal: "Signal"' in page
