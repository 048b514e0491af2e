"""Counters of energy that a machine may have: RAPL of CPUs, INA sensors of a Jetson, NVML of NVIDIA's desktop GPUs."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

SYS = Path("/sys")
NVML = "libnvidia-ml.so.1"  # comes with the driver
SAMPLE_S = 0.02  # between two readings of a power that has to be integrated; the INA3221 averages over longer


class Meter(Protocol):
    """Something that counts joules."""

    name: str

    def joules(self) -> float:
        """Energy since this meter was opened; never less than before."""
        ...

    def close(self) -> None:
        """Stop counting."""
        ...


class RaplMeter:
    """One package of Intel's or AMD's RAPL (Linux: Documentation/power/powercap), a counter in uJ that wraps around.

    It must be read more often than it wraps, which takes minutes at the least.

    Raises:
        OSError: the counter cannot be read; since 2020 that takes root.
    """

    def __init__(self, zone: Path) -> None:
        self.name = f"rapl {_read(zone / 'name')} ({zone.name})"
        self._counter = zone / "energy_uj"
        self._range_uj = int(_read(zone / "max_energy_range_uj"))
        self._last_uj = int(_read(self._counter))
        self._sum_uj = 0

    def joules(self) -> float:
        """Energy since this meter was opened."""
        now_uj = int(_read(self._counter))
        step_uj = now_uj - self._last_uj
        self._sum_uj += step_uj if step_uj >= 0 else step_uj + self._range_uj + 1  # it counts 0..range
        self._last_uj = now_uj
        return self._sum_uj / 1e6

    def close(self) -> None:
        """A file is open only while it is read."""


class PowerMeter:
    """One rail of an INA3221 (Linux: Documentation/hwmon/ina3221); a thread integrates its power, by trapezia.

    Args:
        name: of the rail.
        millivolts: the file of its voltage.
        milliamperes: the file of its current.
    """

    def __init__(self, name: str, millivolts: Path, milliamperes: Path) -> None:
        self.name = f"ina3221 {name}"
        self._files = (millivolts, milliamperes)
        self._lock = threading.Lock()
        self._sum_j = 0.0
        self._last = (time.perf_counter(), self._watts())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def joules(self) -> float:
        """Energy since this meter was opened."""
        with self._lock:
            now = (time.perf_counter(), self._watts())
            self._sum_j += (now[0] - self._last[0]) * (now[1] + self._last[1]) / 2
            self._last = now
            return self._sum_j

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _watts(self) -> float:
        millivolts, milliamperes = (int(_read(file)) for file in self._files)
        return millivolts * milliamperes / 1e6

    def _follow(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.joules()


class NvmlMeter:
    """One GPU's own counter, in mJ since its driver was loaded; GPUs have it from Volta on.

    Args:
        library: NVML, initialised.
        index: of the GPU.

    Raises:
        OSError: this GPU does not count.
    """

    def __init__(self, library: ctypes.CDLL, index: int) -> None:
        self.name = f"nvml gpu {index}"
        self._library = library
        self._device = ctypes.c_void_p()
        self._check(library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(self._device)))
        self._first_mj = self._millijoules()

    def joules(self) -> float:
        """Energy since this meter was opened."""
        return (self._millijoules() - self._first_mj) / 1e3

    def close(self) -> None:
        """The library stays open for as long as the process lives."""

    def _millijoules(self) -> int:
        counted = ctypes.c_ulonglong()
        self._check(self._library.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(counted)))
        return counted.value

    @staticmethod
    def _check(code: int) -> None:
        if code:
            raise OSError(f"NVML answers with error {code}")


def open_meters(sys: Path = SYS) -> list[Meter]:
    """Every meter that this machine has and lets us read; most need root, and a virtual machine has none."""
    kinds: list[Callable[[], Meter]] = []
    for zone in sorted((sys / "class/powercap").glob("*-rapl:*")):
        if zone.name.count(":") == 1:  # a package; its cores and its memory, package:0:1, are within it
            kinds.append(partial(RaplMeter, zone))
    for label in sorted((sys / "class/hwmon").glob("hwmon*/in[123]_label")):
        chip, number = label.parent, label.name[2]
        if _read(chip / "name") == "ina3221":
            kinds.append(partial(PowerMeter, _read(label), chip / f"in{number}_input", chip / f"curr{number}_input"))
    meters = []
    for opened in [*kinds, *_gpus()]:
        with contextlib.suppress(OSError, ValueError):  # not for us to read, or of a kind that does not count
            meters.append(opened())
    return meters


def _gpus() -> list[Callable[[], Meter]]:
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return []
    count = ctypes.c_uint()
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    return [partial(NvmlMeter, library, index) for index in range(count.value)]


def _read(path: Path) -> str:
    return path.read_text().strip()
