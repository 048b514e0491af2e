"""The machine, the versions and the bundle that a measurement belongs to; what cannot be read is None."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from edgefuse.runtime.pace import heat

_VERSIONS_OF = ("edgefuse", "onnxruntime", "numpy", "opencv-python", "tokenizers", "soundfile", "soxr")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_POWER_MODE = Path("/var/lib/nvpmodel/status")  # of a Jetson, as pmode:0002; `nvpmodel -q` has its name
_BOARD = Path("/proc/device-tree/model")  # what a Jetson calls itself


def describe_environment() -> dict[str, Any]:
    """What a reader needs in order to compare a figure with another machine's; never the name of the machine."""
    return {
        "cpu": _cpu_model(),
        "board": _first_line(_BOARD),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
        "cores_usable": _usable_cores(),
        "load_at_start": round(psutil.getloadavg()[0], 2),  # processes that wanted a core, mean of one minute
        "memory_bytes": psutil.virtual_memory().total,
        "governor": _first_line(_GOVERNOR),
        "power_mode": _first_line(_POWER_MODE),
        "heat_at_start": heat_and_clocks(),
        "os": _system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _VERSIONS_OF},
        "commit": _commit(),
    }


def heat_and_clocks() -> str | None:
    """The hottest zone, the busiest cooling device and the clock of the first core, of those that the system tells."""
    return "; ".join(heat()) or None


def _cpu_model() -> str | None:
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or None


def _usable_cores() -> int:
    """Cores this process may run on: a container or taskset can allow fewer than there are."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _system() -> str:
    for line in _lines(Path("/etc/os-release")):
        if line.startswith("PRETTY_NAME="):
            return f"{line.partition('=')[2].strip().strip(chr(34))}, {platform.system()} {platform.release()}"
    return f"{platform.system()} {platform.release()}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this source, with "-dirty" after local changes; None where it is not a checkout of edgefuse."""
    here = Path(__file__)
    if not _git(here.parent, "ls-files", here.name):  # installed into a checkout of something else
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _first_line(path: Path) -> str | None:
    lines = _lines(path)
    return lines[0].strip("\0 ") if lines else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
