"""Notices when decisions take much longer than they did at best, as on a hot device, and says what the system tells."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from edgefuse.runtime.decision import Decision, Notice

SLOW, WELL = 2.0, 1.5  # times the best: slow from here on, well again below; apart, so that it is not said in turns
WINDOW = 15  # decisions whose median counts, so that a single late one does not
HOLD_MS = 3000.0  # how long it must stay so before it is said


class Pace:
    """Compares each decision with the best sustained time of decisions that ran the same parts.

    Args:
        on_notice: is told once when the loop got slow and once when it is well again.
        hold_ms: how long it must stay so before it is said.
        root: where the system tells its temperatures; another one is for tests.
    """

    def __init__(
        self, on_notice: Callable[[Notice], None], *, hold_ms: float = HOLD_MS, root: Path = Path("/sys")
    ) -> None:
        self._on_notice = on_notice
        self._hold_ms = hold_ms
        self._root = root
        self._times_ms: dict[frozenset[str], deque[float]] = {}  # parts that ran -> what they took lately
        self._best_ms: dict[frozenset[str], float] = {}  # parts that ran -> their least median
        self._ratios = deque[float](maxlen=WINDOW)  # each decision lately / the best of its parts
        self._is_slow = False
        self._turned_ms: float | None = None  # since when it has been otherwise

    def decided(self, decision: Decision) -> None:
        """Look at one more decision; call it for each, in the order they were made."""
        ratio = self._ratio(decision.stages_ms)
        if ratio is None:
            return
        self._ratios.append(ratio)
        lately = _median(self._ratios)
        if not (lately < WELL if self._is_slow else lately > SLOW):
            self._turned_ms = None
            return
        if self._turned_ms is None:
            self._turned_ms = decision.t_ms
        if decision.t_ms - self._turned_ms >= self._hold_ms:
            self._is_slow, self._turned_ms = not self._is_slow, None
            self._say(decision.t_ms, lately)

    def _ratio(self, stages_ms: dict[str, float]) -> float | None:
        """What the parts took / their best; None until these parts have run often enough to know it."""
        parts = frozenset(stages_ms)
        took_ms = sum(time_ms for stage, time_ms in stages_ms.items() if stage != "total")
        times_ms = self._times_ms.setdefault(parts, deque(maxlen=WINDOW))
        times_ms.append(took_ms)
        if len(times_ms) == WINDOW:
            self._best_ms[parts] = min(_median(times_ms), self._best_ms.get(parts, float("inf")))
        best_ms = self._best_ms.get(parts)
        return took_ms / best_ms if best_ms else None

    def _say(self, t_ms: float, ratio: float) -> None:
        if self._is_slow:
            told = "; ".join(heat(self._root)) or "the system tells no temperature"
            message = f"the model takes {ratio:.1f} times as long as at best ({told}); answers come later"
        else:
            message = f"the model is quick again: {ratio:.1f} times as long as at best"
        self._on_notice(Notice(t_ms, "pace", not self._is_slow, message))


def heat(root: Path = Path("/sys")) -> Iterator[str]:
    """What the system tells of heat: its hottest zone, its busiest cooling device, the clock of its first core."""
    thermal = root / "class/thermal"
    zones = [(celsius / 1000, _word(zone / "type")) for zone, celsius in _numbers(thermal, "thermal_zone*/temp")]
    if zones:
        celsius, name = max(zones)
        yield f"{name} {celsius:.0f} °C"
    cooling = []
    for device, state in _numbers(thermal, "cooling_device*/cur_state"):
        most = _number(device / "max_state")
        if state > 0 and most:
            cooling.append((state / most, f"{_word(device / 'type')} cools at {state:.0f} of {most:.0f}"))
    if cooling:
        yield max(cooling)[1]
    clocks = root / "devices/system/cpu/cpu0/cpufreq"
    now_khz, most_khz = _number(clocks / "scaling_cur_freq"), _number(clocks / "cpuinfo_max_freq")
    if now_khz and most_khz:
        yield f"CPU at {now_khz / 1000:.0f} of {most_khz / 1000:.0f} MHz"


def _numbers(folder: Path, pattern: str) -> Iterator[tuple[Path, float]]:
    """The folder and the number of each file that can be read; a sensor that sleeps refuses."""
    for path in sorted(folder.glob(pattern)):
        number = _number(path)
        if number is not None:
            yield path.parent, number


def _number(path: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        return float(path.read_text())
    return None


def _word(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return path.parent.name


def _median(numbers: Iterable[float]) -> float:
    """The upper of two middle ones, where there are two."""
    ordered = sorted(numbers)
    return ordered[len(ordered) // 2]
