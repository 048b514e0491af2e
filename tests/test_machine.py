"""What the machine is: the GPU by a driver made for the test, free memory by files made for the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgefuse.runtime import machine
from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.machine import PLATFORM, find_gpu, free_memory_bytes

DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Orin", size); return 0; }
int cuDeviceGetAttribute(int *value, int which, int device)
{ *value = which == 75 ? 8 : which == 76 ? 7 : -1; return 0; }
"""
ASK = """
from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.machine import find_gpu
try: print(find_gpu())
except EngineError as error: print(error)
"""


def asked(folder: Path, init: int = 0, count: int = 1) -> str:
    """What `find_gpu` finds with a driver that answers so."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a driver with")
    (folder / "driver.c").write_text(DRIVER)
    command = [compiler, "-shared", "-fPIC", f"-DINIT={init}", f"-DCOUNT={count}"]
    subprocess.run([*command, "-o", str(folder / machine.DRIVER), str(folder / "driver.c")], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_driver_tells_the_gpu(tmp_path: Path) -> None:
    assert asked(tmp_path) == "Gpu(name='Orin', sm=87, cuda='12.6')"


@pytest.mark.parametrize(
    ("init", "count", "why"),
    [
        (0, 0, "shows no GPU; CUDA_VISIBLE_DEVICES may hide it"),
        (803, 1, "cuInit says 803 (the driver's library and its kernel module have different versions: reboot)"),
        (12345, 1, "cuInit says 12345"),
    ],
)
def test_a_driver_that_does_not_work_is_told_with_the_reason(tmp_path: Path, init: int, count: int, why: str) -> None:
    assert asked(tmp_path, init, count).endswith(why)


def test_no_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DRIVER", "libcuda.so.that.is.nowhere")
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        find_gpu()


def test_the_platform_is_system_and_processor() -> None:
    assert PLATFORM.split("-")[0] == sys.platform


def write(root: Path, **files: str) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 900 kB\nMemAvailable:  400 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_free_memory_is_what_the_system_says(tmp_path: Path) -> None:
    assert free_memory_bytes(write(tmp_path)) == 400 * 1024
    assert free_memory_bytes(tmp_path / "no linux") is None
    assert 2**20 < (free_memory_bytes() or 0) < 2**50


@pytest.mark.parametrize(
    ("limit", "used"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
@pytest.mark.parametrize(
    ("values", "free"),
    [(("5000\n", "1000\n"), 4000), (("5000\n", "6000\n"), 0), (("max\n", "1\n"), 409600), ((str(2**63), "1"), 409600)],
)
def test_the_limit_of_a_container_counts(
    tmp_path: Path, limit: str, used: str, values: tuple[str, str], free: int
) -> None:
    files = {f"sys/fs/cgroup/{name}": value for name, value in zip((limit, used), values, strict=True)}
    assert free_memory_bytes(write(tmp_path, **files)) == free
