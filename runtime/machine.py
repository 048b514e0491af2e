"""What this machine is, as far as engines depend on it; asks the driver itself, so that no CUDA package is needed."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgefuse.runtime.errors import EngineError

PLATFORM = f"{sys.platform}-{platform.machine()}"  # linux-x86_64, linux-aarch64
DRIVER = "libcuda.so.1"
# CUdevice_attribute of cuda.h
_COMPUTE_CAPABILITY = (75, 76)  # major, minor


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU that CUDA shows."""

    name: str  # as the driver calls it: "Orin", "NVIDIA GeForce RTX 4090"
    sm: int  # compute capability, 87 for 8.7
    cuda: str  # newest CUDA that the driver runs, as "12.6"


def find_gpu() -> Gpu:
    """The GPU that TensorRT would use.

    Raises:
        EngineError: there is none that can be used; says why.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        raise EngineError(f"no NVIDIA driver ({DRIVER} is not there)") from None
    _call(driver, "cuInit", 0)
    count, version = ctypes.c_int(), ctypes.c_int()
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise EngineError("the NVIDIA driver shows no GPU; CUDA_VISIBLE_DEVICES may hide it")
    _call(driver, "cuDriverGetVersion", ctypes.byref(version))  # 12060 for 12.6
    name = ctypes.create_string_buffer(256)
    _call(driver, "cuDeviceGetName", name, len(name), 0)
    major, minor = (_attribute(driver, number) for number in _COMPUTE_CAPABILITY)
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(errors="replace"), major * 10 + minor, cuda)


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory that programs can still take, None where the system does not tell. `root` is for tests."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", (root / "proc/meminfo").read_text(errors="replace"), re.M)
    except OSError:  # not Linux
        return None
    if found is None:
        return None
    return max(0, min(int(found[1]) * 1024, *_left_in_container(root / "sys/fs/cgroup"), sys.maxsize))


def _left_in_container(groups: Path) -> Iterator[int]:
    """What the limit of a container, as far as there is one, leaves: version 2 and version 1 of control groups."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such file, or the limit is the word "max"
            yield int((groups / limit).read_text()) - int((groups / used).read_text())


def _attribute(driver: ctypes.CDLL, number: int) -> int:
    value = ctypes.c_int()
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), number, 0)
    return value.value


def _call(driver: ctypes.CDLL, function: str, *arguments: object) -> None:
    code = getattr(driver, function)(*arguments)
    if code != 0:
        raise EngineError(f"the NVIDIA driver fails: {function} says {code}{_ERRORS.get(code, '')}")


# CUresult of cuda.h, those that a machine and not a program causes
_ERRORS = {
    3: " (not initialized)",
    34: " (a stub library stands in for the driver)",
    100: " (no GPU found)",
    802: " (the GPU is not ready yet)",
    803: " (the driver's library and its kernel module have different versions: reboot)",
    804: " (this CUDA needs a newer driver)",
    999: " (unknown: the kernel module may not be loaded)",
}
