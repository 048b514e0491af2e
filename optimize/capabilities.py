"""From what was found of a machine to what it can build and run, why not, and which known traps it stands in."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from edgefuse.optimize.probe import GPU, Found
from edgefuse.runtime.trt_package import HOW_TO_GET, OLDEST, too_old

RTX_SM = (75, 80, 86, 89, 120, 121)  # all that TensorRT-RTX 1.7 has; no Jetson is among them
OLDEST_L4T = (36, 4)  # JetPack 6.1, the first with TensorRT 10.3
CUDA_PACKAGES = ("cuda.bindings.runtime", "pycuda.driver")  # one of them moves data to the GPU
LITTLE_MEMORY_MIB, LITTLE_DISK_MIB = 2048, 1024


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found of a machine."""

    found: dict[str, Found] = field(default_factory=dict)  # module or GPU -> what became of it
    python: tuple[int, ...] = sys.version_info[:2]
    jetson: bool = False
    l4t: tuple[int, ...] = ()  # release of a Jetson's system, (36, 4, 3); () where it is not known
    int8: str = ""  # the CPU's instructions for INT8
    memory_free_mib: int | None = None
    disk_free_mib: int | None = None
    packages: dict[str, str] = field(default_factory=dict)  # packages of the traps that are installed -> version

    def works(self, name: str) -> bool:
        """Whether a module imports, or the GPU is there."""
        return name in self.found and self.found[name].works

    def version(self, name: str) -> str:
        """Version of a module, "" where it has none."""
        return (self.found[name].version or "") if name in self.found else ""

    @property
    def sm(self) -> int | None:
        """Compute capability of the GPU."""
        gpu = self.found[GPU].gpu if self.works(GPU) else None
        return None if gpu is None else int(gpu["sm"])

    def lacks(self, *names: str) -> str:
        """What is wrong with the first of `names` that does not work, "" where all do."""
        broken = next((name for name in names if not self.works(name)), None)
        if broken is None:
            return ""
        why = self.found[broken].why if broken in self.found else "not tried"
        return why if broken == GPU else f"{broken}: {why}"


def targets(facts: Facts) -> dict[str, dict[str, Any]]:
    """{target: {build, run, why, do}}: `why` it cannot do both, and the one command that changes it."""
    return {"cpu": _cpu(facts), "tensorrt-rtx": _rtx(facts), "tensorrt": _tensorrt(facts)}


def _cpu(facts: Facts) -> dict[str, Any]:
    run, build = facts.lacks("onnxruntime"), facts.lacks("onnxruntime", "onnx")
    return _row(build, run, "pip install 'edgefuse[optimize]'" if not run else "pip install 'edgefuse[cpu]'")


def _rtx(facts: Facts) -> dict[str, Any]:
    build = facts.lacks("tensorrt_rtx", "onnx")
    if facts.sm is not None and facts.sm not in RTX_SM:
        return _row(build, f"TensorRT-RTX has nothing for SM {facts.sm}", "build with --target tensorrt")
    run = facts.lacks("tensorrt_rtx", GPU) or _lacks_cuda(facts)
    if not facts.works("tensorrt_rtx"):
        do = HOW_TO_GET["tensorrt-rtx"]
    elif build:
        do = "pip install 'edgefuse[optimize]'"
    elif not facts.works(GPU):
        do = "build here, and copy the bundle to a machine with a GPU"
    else:
        do = "pip install cuda-python"
    return _row(build, run, do)


def _tensorrt(facts: Facts) -> dict[str, Any]:
    broken = facts.lacks("tensorrt")
    if not broken and too_old("tensorrt", facts.version("tensorrt")):
        oldest = ".".join(map(str, OLDEST["tensorrt"]))
        broken = f"tensorrt {facts.version('tensorrt')} is older than {oldest}"
    run = facts.lacks(GPU) or broken or _lacks_cuda(facts)
    build = facts.lacks(GPU) or broken or facts.lacks("onnx")
    if not facts.works(GPU):
        do = "build where the GPU is, or with --target tensorrt-rtx for a desktop's"
    elif broken:
        do = _get_tensorrt(facts)
    elif build:
        do = "pip install 'edgefuse[optimize]'"
    else:
        do = "pip install cuda-python"
    return _row(build, run, do)


def _get_tensorrt(facts: Facts) -> str:
    if not facts.jetson:
        return "pip install 'edgefuse[tensorrt]'"
    if facts.l4t and facts.l4t < OLDEST_L4T:
        return "install JetPack 6.1 or newer"
    return "python3 -m venv --system-site-packages .venv, which sees JetPack's TensorRT"


def _lacks_cuda(facts: Facts) -> str:
    return "" if any(map(facts.works, CUDA_PACKAGES)) else facts.lacks(CUDA_PACKAGES[0])


def _row(build: str, run: str, do: str) -> dict[str, Any]:
    why = build if build == run else "; ".join(dict.fromkeys(why for why in (build, run) if why))
    return {"build": not build, "run": not run, "why": why, "do": do if why else ""}


def traps(facts: Facts) -> Iterator[tuple[str, str]]:
    """Known traps that this machine stands in, each with the way out; sources beside them."""
    yield from _jetson_traps(facts)
    if not (3, 10) <= facts.python <= (3, 13):
        yield f"Python {'.'.join(map(str, facts.python))} is untried", "use Python 3.10 to 3.13"
    if facts.sm is not None and facts.sm not in RTX_SM and facts.works("tensorrt_rtx"):
        here = ", ".join(map(str, RTX_SM))
        yield f"TensorRT-RTX builds for SM {here}, this GPU is SM {facts.sm}", "use --target tensorrt"
    if {"onnxruntime", "onnxruntime-gpu"} <= facts.packages.keys():
        both = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files"
        yield both, "pip uninstall both, then pip install onnxruntime"
    # inducer/pycuda#485, #487
    if "pycuda" in facts.packages and _numbers(facts.packages["pycuda"]) < (2025, 1, 2) and _cuda(facts) >= 13:
        yield f"pycuda {facts.packages['pycuda']} does not know CUDA 13", "pip install 'edgefuse[pycuda]'"
    if not facts.int8:
        trap = "this CPU has no instructions for INT8 dot products: cpu parts in INT8 may be slower than FP32"
        yield trap, "measure with `edgefuse bench`"
    if facts.memory_free_mib is not None and facts.memory_free_mib < LITTLE_MEMORY_MIB:
        yield (
            f"only {facts.memory_free_mib} MiB of memory are free: builds may be killed",
            "close other programs, add swap, or build with --max-batch 1",
        )
    if facts.disk_free_mib is not None and facts.disk_free_mib < LITTLE_DISK_MIB:
        yield f"only {facts.disk_free_mib} MiB are free on this disk", "free some space"


def _jetson_traps(facts: Facts) -> Iterator[tuple[str, str]]:
    tensorrt = _numbers(facts.version("tensorrt"))
    if facts.l4t and facts.l4t < OLDEST_L4T:
        yield "this JetPack has TensorRT 8, which has no strong typing", "install JetPack 6.1 or newer"
    # docs.nvidia.com, TensorRT 11.4.1, "Migrating from 10.x to 11.x on Jetson": 11 before 11.4.1 has no JetPack at all
    elif facts.l4t[:1] == (36,) and tensorrt >= (11,):
        yield f"JetPack 6 must stay on TensorRT 10, {facts.version('tensorrt')} is installed", "pip uninstall tensorrt"
    elif facts.jetson and (11,) <= tensorrt < (11, 4, 1):
        yield (
            f"TensorRT {facts.version('tensorrt')} does not support JetPack; 11.4.1 does, from JetPack 7.2.2 on",
            "pip uninstall tensorrt",
        )
    # blakeblackshear/frigate#23582
    if "libnvdla_compiler" in (facts.found["tensorrt"].why if "tensorrt" in facts.found else ""):
        yield (
            "this container is for another JetPack: its TensorRT wants libnvdla_compiler.so, which L4T R39 has no more",
            "use an image for this JetPack",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def _cuda(facts: Facts) -> int:
    """Major version of the driver's CUDA, 0 without a GPU."""
    gpu = facts.found[GPU].gpu if facts.works(GPU) else None
    return 0 if gpu is None else _numbers(str(gpu["cuda"]))[0]
