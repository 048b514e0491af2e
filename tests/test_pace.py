"""The pace: a slow-down is said once when it lasts, taken back once, and never mixed up with other work."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.runtime.decision import Decision, Notice
from edgefuse.runtime.pace import WINDOW, Pace, heat

PERIOD_MS = 50.0


class Told:
    """A pace, its notices, and a clock that runs with each decision."""

    def __init__(self, root: Path = Path("/nowhere")) -> None:
        self.notices: list[Notice] = []
        self.pace = Pace(self.notices.append, root=root)
        self.t_ms = 0.0

    def decide(self, stages: Iterable[dict[str, float]]) -> None:
        for stages_ms in stages:
            self.t_ms += PERIOD_MS
            self.pace.decided(_decision(self.t_ms, stages_ms))

    def run(self, seconds: float, *stages: dict[str, float]) -> None:
        count = int(seconds * 1000 / PERIOD_MS)
        self.decide(stages[index % len(stages)] for index in range(count))

    @property
    def states(self) -> list[bool]:
        return [notice.is_well for notice in self.notices]


def _decision(t_ms: float, stages_ms: dict[str, float]) -> Decision:
    total = {"total": sum(stages_ms.values())}
    return Decision(t_ms, "a", 1.0, {}, {}, {}, 0.0, {**stages_ms, **total}, {}, np.ones(1))


def _both(times: float) -> tuple[dict[str, float], dict[str, float]]:
    """Every other decision has sound too, which takes ten times as long."""
    picture = {"image": 1.0 * times, "head": 0.1 * times}
    return picture, {**picture, "audio": 10.0 * times}


def test_a_slow_down_is_said_once_and_its_end_once() -> None:
    told = Told()
    told.run(10, *_both(1.0))
    told.run(60, *_both(3.0))
    assert told.states == [False]
    assert "3.0 times" in told.notices[0].message
    assert 13_000 <= told.notices[0].t_ms <= 14_500  # three seconds and half a window after it began
    told.run(60, *_both(1.0))
    assert told.states == [False, True]


def test_more_work_is_not_a_slow_down() -> None:
    told = Told()
    told.run(20, {"head": 0.05})
    told.run(20, {"image": 5.0, "head": 0.05})
    told.run(20, {"image": 5.0, "audio": 50.0, "head": 0.05})
    assert told.notices == []


def test_a_short_slow_down_and_late_ones_now_and_then_are_not_said() -> None:
    told = Told()
    told.run(10, {"image": 5.0})
    told.run(2.5, {"image": 50.0})
    told.run(10, {"image": 5.0})
    told.run(60, {"image": 5.0}, {"image": 5.0}, {"image": 500.0})
    assert told.notices == []


def test_between_slow_and_well_nothing_changes() -> None:
    told = Told()
    told.run(10, {"image": 10.0})
    told.run(30, {"image": 17.0})
    assert told.states == []
    told.run(10, {"image": 30.0})
    told.run(30, {"image": 17.0})
    assert told.states == [False]


@given(st.lists(st.floats(0.0, 1e6), max_size=200))
def test_notices_alternate_whatever_the_times(times_ms: list[float]) -> None:
    told = Told()
    told.decide({"image": time_ms} for time_ms in times_ms)
    assert told.states == [bool(number % 2) for number in range(len(told.states))]


def test_it_holds_no_more_after_many_decisions() -> None:
    told = Told()
    told.run(10 * WINDOW * PERIOD_MS / 1000, *_both(1.0))
    tracemalloc.start()
    told.run(100, *_both(1.0))
    before = tracemalloc.get_traced_memory()[0]
    told.run(500, *_both(1.0))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 4096  # 10,000 decisions


def test_the_hottest_zone_the_fan_and_the_clock_are_named(tmp_path: Path) -> None:
    _write(tmp_path / "class/thermal/thermal_zone0", type="cpu-thermal", temp="71500")
    _write(tmp_path / "class/thermal/thermal_zone1", type="tj-thermal", temp="95000")
    _write(tmp_path / "class/thermal/thermal_zone2", type="cv0-thermal")  # asleep: no temperature
    _write(tmp_path / "class/thermal/cooling_device0", type="pwm-fan", cur_state="3", max_state="4")
    _write(tmp_path / "class/thermal/cooling_device1", type="cpufreq-cpu0", cur_state="0", max_state="20")
    _write(tmp_path / "devices/system/cpu/cpu0/cpufreq", scaling_cur_freq="729600", cpuinfo_max_freq="1510400")
    assert list(heat(tmp_path)) == ["tj-thermal 95 °C", "pwm-fan cools at 3 of 4", "CPU at 730 of 1510 MHz"]
    told = Told(tmp_path)
    told.run(10, {"image": 10.0})
    told.run(10, {"image": 30.0})
    assert "tj-thermal 95 °C; pwm-fan" in told.notices[0].message


def test_a_system_that_tells_nothing_or_nonsense_is_no_error(tmp_path: Path) -> None:
    assert list(heat(tmp_path)) == []
    _write(tmp_path / "class/thermal/thermal_zone0", type="cpu", temp="hot")
    _write(tmp_path / "class/thermal/cooling_device0", cur_state="1", max_state="0")
    assert list(heat(tmp_path)) == []


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")
