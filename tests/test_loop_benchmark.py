"""What the loop's benchmark counts and compares, on the tiny bundle; the figures themselves are the benchmark's."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgefuse.benchmarks import loop, loop_explain, loop_load, loop_rates
from edgefuse.benchmarks.latency import summarise
from edgefuse.benchmarks.loop_explain import measure_explain
from edgefuse.benchmarks.loop_load import Load, decision_ms, measure_load, run_load
from edgefuse.benchmarks.loop_memory import GAP_EVERY_S, measure_memory, write_recording
from edgefuse.benchmarks.loop_rates import EveryPart, compare_rates, stream
from edgefuse.benchmarks.loop_readings import Readings, examples_of, readings_of
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.record import INDEX
from edgefuse.runtime.replay import read_recording
from tests.conftest import RATE, Tiny


@pytest.fixture(scope="module")
def bundle(tiny: Tiny) -> Bundle:
    return Bundle.open(tiny.bundle)


@pytest.fixture(scope="module")
def readings(tiny: Tiny, bundle: Bundle) -> Readings:
    return readings_of(bundle, examples_of(bundle, tiny.manifest, 3))


def test_readings_are_those_of_lines_with_every_sensor(tiny: Tiny, bundle: Bundle, readings: Readings) -> None:
    assert {modality: len(each) for modality, each in readings.items()} == {"image": 3, "audio": 3, "text": 3}
    assert len({each["image"].tobytes() for each in readings["image"]}) == 3
    lines = [json.loads(line) for line in tiny.manifest.read_text().splitlines()]
    partial = tiny.manifest.parent / "partial.jsonl"
    partial.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "audio"}) + "\n" for line in lines))
    with pytest.raises(ManifestError, match="no test line has all of image, audio, text"):
        examples_of(bundle, partial, 3)


def test_the_stream_has_each_sensor_at_its_rate_and_no_two_at_once() -> None:
    events = [event for second in range(5) for event in stream(1, second)]
    assert Counter(modality for _, modality, _ in events) == {"image": 150, "audio": 50, "text": 1}
    moments = [t_ns for t_ns, _, _ in events]
    assert moments == sorted(moments)
    assert len(set(moments)) == len(moments)
    assert events == list(stream(5))


def test_running_parts_at_their_rates_gives_the_same_answers(bundle: Bundle, readings: Readings) -> None:
    found = compare_rates(bundle, readings, seconds=2)
    assert found["identical"]
    assert found["compared"] == 81
    assert found["ratio"] == pytest.approx(found["loop_per_cpu_s"] / found["every_part_per_cpu_s"])


def test_a_way_that_keeps_a_stale_sound_is_noticed(
    bundle: Bundle, readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = EveryPart.take

    def forgetful(self: EveryPart, event: loop_rates.Event) -> None:
        take(self, (event[0], event[1], 0) if event[1] == "audio" else event)

    monkeypatch.setattr(EveryPart, "take", forgetful)
    assert not compare_rates(bundle, readings, seconds=1)["identical"]


def test_a_load_counts_every_reading_as_decided_or_dropped(bundle: Bundle, readings: Readings) -> None:
    assert 0 < decision_ms(bundle, readings, "image", 0.2) < 100
    load = run_load(bundle, readings, "image", rate_hz=200.0, seconds=0.5)
    assert load.given > 50
    assert load.given - load.dropped - 1 <= len(load.ages_ms) <= load.given - load.dropped  # the stop may beat the last
    assert min(load.ages_ms) > 0


def test_a_recording_for_the_memory_run_is_long_enough_and_has_gaps(
    tmp_path: Path, bundle: Bundle, readings: Readings
) -> None:
    write_recording(tmp_path / "long", readings, RATE, decisions=4000)
    recorded = read_recording(tmp_path / "long" / INDEX, bundle.info)
    assert len({reading.t_ns for reading in recorded}) >= 4000
    assert max(np.diff([reading.t_ns for reading in recorded])) > 1.9e9
    assert recorded[-1].t_ns > 2 * GAP_EVERY_S * 1e9


def test_memory_is_measured_in_processes_of_their_own(tmp_path: Path, bundle: Bundle, readings: Readings) -> None:
    write_recording(tmp_path / "short", readings, RATE, decisions=200)
    found = measure_memory(bundle.folder, tmp_path / "short", 200)
    assert found["decisions"] == 200
    assert len(found["traced_bytes"]) == len(found["resident_bytes"]) == 20
    assert found["traced_growth_bytes"] < 1e6
    assert found["resident_bytes"][0] > 20e6


def test_an_explanation_that_does_not_add_up_is_noticed(
    bundle: Bundle, readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure_explain(bundle, readings, repeats=10)
    assert found["sum_error"] < 1e-4
    assert found["ratio"] > 0
    values = loop_explain.shapley_values
    monkeypatch.setattr(loop_explain, "shapley_values", lambda *given: {**values(*given), "image": 0.0})
    assert measure_explain(bundle, readings, repeats=10)["sum_error"] > 0.1


def test_the_table_says_what_was_asked_and_whether_it_was_kept(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "loop.json"
    options = ["--manifest", str(tiny.manifest), "--only", "explain", "start", "--quick", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["loop.py", str(tiny.bundle), *options])
    loop.main()
    result = json.loads(out.read_text())
    assert result["quick"] is True
    assert result["rows"][0]["kept"] == "yes"
    assert len(result["rows"]) == 4
    assert {"cpu", "versions"} <= set(result["environment"])
    assert "Shapley" in capsys.readouterr().out


def test_the_ages_of_all_rounds_are_told_with_what_their_number_supports(
    bundle: Bundle, readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ages_ms = iter([[1.0, 2.0], [3.0, 4.0], [5.0], [6.0]] * 2)

    def run(*_: object) -> Load:
        ages = next(ages_ms)
        return Load(ages * 2, ages * 2, given=4, dropped=1)

    monkeypatch.setattr(loop_load, "decision_ms", lambda *_: 10.0)
    monkeypatch.setattr(loop_load, "run_load", run)

    found = measure_load(bundle, readings, seconds=1, rounds=2)

    assert list(found) == ["image", "audio"]
    assert found["image"]["age_at_80"] == summarise([1.0, 2.0] * 2 + [5.0] * 2)
    assert found["image"]["age_at_200"] == summarise([3.0, 4.0] * 2 + [6.0] * 2)
    assert found["image"]["age_at_80"]["p99_ms"] is None
    assert found["image"]["dropped_at_80"] == 0.25
