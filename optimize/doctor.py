"""What this machine can build and run, and why not: `python optimize/doctor.py`, as `edgefuse doctor`.

Needs no GPU, no onnx and no torch, and never fails: what cannot be read is None.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgefuse.optimize.capabilities import Facts, targets, traps
from edgefuse.optimize.probe import GPU, Found, installed_version, probe
from edgefuse.runtime.machine import PLATFORM, free_memory_bytes

MIB = 2**20
# Module -> the packages that may bring it. Two groups, each tried in a process of its own, side by side.
PACKAGES: tuple[dict[str, tuple[str, ...]], ...] = (
    {
        "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
        "cv2": ("opencv-python", "opencv-python-headless", "opencv-contrib-python"),
        "soundfile": ("soundfile",),
        "tokenizers": ("tokenizers",),
    },
    {
        "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "tensorrt_rtx": ("tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "tensorrt-rtx"),
        "cuda.bindings.runtime": ("cuda-bindings", "cuda-python"),
        "pycuda.driver": ("pycuda",),
        "onnx": ("onnx",),
        GPU: (),
    },
)
NOT_TRIED = ("torch", "torchaudio", "torchvision", "transformers")  # importing them takes seconds
TRAPPED = ("onnxruntime", "onnxruntime-gpu", "pycuda")  # packages that a trap asks for
JETPACKS: dict[tuple[int, ...], str] = {  # L4T release -> JetPack: developer.nvidia.com/embedded/jetpack-archive
    (36, 3, 0): "6.0", (36, 4, 0): "6.1", (36, 4, 3): "6.2", (36, 4, 4): "6.2.1", (36, 4, 7): "6.2.1",
    (36, 5, 0): "6.2.2", (38, 2, 0): "7.0", (38, 4, 0): "7.1", (39, 2, 0): "7.2", (39, 2, 1): "7.2.1",
}  # fmt: skip
# Of the CPU's flags, those that multiply and add INT8 in one instruction: x86 and ARM.
INT8_FLAGS = {
    "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX", "asimddp": "dot product", "i8mm": "I8MM",
}  # fmt: skip


def doctor(root: Path = Path("/")) -> dict[str, Any]:
    """Look at this machine.

    Args:
        root: where etc, proc and sys are; for tests.

    Returns:
        {python, system, jetson, gpu, driver, cpu, int8, memory_mib, memory_free_mib, disk_free_mib,
        targets: {name: {build, run, why, do}}, traps: [{trap, do}], packages: {name: {version, works, why}}}.
    """
    with ThreadPoolExecutor(len(PACKAGES)) as pool:
        found = {name: one for group in pool.map(_probe, PACKAGES) for name, one in group.items()}
    cpu, board = _text(root, "proc/cpuinfo"), _text(root, "proc/device-tree/model").strip("\0\n ")
    l4t = _l4t(_text(root, "etc/nv_tegra_release"))
    installed = {name: installed_version((name,)) for name in (*TRAPPED, *NOT_TRIED)}
    free = free_memory_bytes(root)
    facts = Facts(
        found=found,
        jetson=bool(l4t) or "Jetson" in board,
        l4t=l4t,
        int8=_int8(cpu),
        memory_free_mib=None if free is None else free // MIB,
        disk_free_mib=_disk_free_mib(),
        packages={name: version for name, version in installed.items() if version is not None},
    )
    untried = {name: {"version": installed[name], "works": None, "why": "not tried"} for name in NOT_TRIED}
    return {
        "python": platform.python_version(),
        "system": f"{_field(_text(root, 'etc/os-release'), 'PRETTY_NAME', '=') or platform.system()}, {PLATFORM}",
        "jetson": _jetson(board, l4t) if facts.jetson else None,
        "gpu": _gpu(found[GPU]),
        "driver": _driver(_text(root, "proc/driver/nvidia/version")),
        "cpu": f"{_field(cpu, 'model name', ':') or platform.machine()}, {os.cpu_count()} cores",
        "int8": facts.int8 or "no instructions for it",
        "memory_mib": _kib(_text(root, "proc/meminfo"), "MemTotal"),
        "memory_free_mib": facts.memory_free_mib,
        "disk_free_mib": facts.disk_free_mib,
        "targets": targets(facts),
        "traps": [{"trap": trap, "do": do} for trap, do in traps(facts)],
        "packages": {**{name: _row(one) for name, one in found.items() if name != GPU}, **untried},
    }


def _probe(group: dict[str, tuple[str, ...]]) -> dict[str, Found]:
    return probe(tuple(group), group)


def _row(found: Found) -> dict[str, Any]:
    return {"version": found.version, "works": found.works, "why": found.why}


def _text(root: Path, name: str) -> str:
    try:
        return (root / name).read_text(errors="replace")
    except OSError:
        return ""


def _field(text: str, key: str, separator: str) -> str | None:
    """Value of the first line `key<separator>value`, without quotes; None where there is none."""
    for line in text.splitlines():
        name, _, value = line.partition(separator)
        if name.strip() == key and value.strip():
            return value.strip().strip('"')
    return None


def _kib(text: str, key: str) -> int | None:
    """MiB of a field of /proc/meminfo, which is in KiB."""
    found = re.search(rf"^{key}:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) // 1024 if found else None


def _l4t(text: str) -> tuple[int, ...]:
    """(36, 4, 3) of `# R36 (release), REVISION: 4.3, ...`; () where it is something else."""
    found = re.search(r"# R(\d+) \(release\), REVISION: (\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def _jetson(board: str, l4t: tuple[int, ...]) -> str:
    if not l4t:
        return f"{board}, JetPack not known (a container has no /etc/nv_tegra_release)"
    jetpack = JETPACKS.get(l4t, {34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}.get(l4t[0], "of unknown version"))
    return f"{board or 'a Jetson'}, JetPack {jetpack} (L4T {'.'.join(map(str, l4t))})"


def _gpu(found: Found) -> str:
    gpu = found.gpu
    return f"{gpu['name']}, SM {gpu['sm']}, CUDA {gpu['cuda']}" if gpu else f"none: {found.why}"


def _driver(text: str) -> str | None:
    """Version of `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  ...`."""
    found = re.search(r"NVRM version:.*?\s(\d{3}\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else None


def _int8(cpu: str) -> str:
    flags = set((_field(cpu, "flags", ":") or _field(cpu, "Features", ":") or "").split())
    return ", ".join(words for flag, words in INT8_FLAGS.items() if flag in flags)


def _disk_free_mib() -> int | None:
    with contextlib.suppress(OSError):  # a folder that is gone
        return shutil.disk_usage(Path.cwd()).free // MIB
    return None


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["doctor", *sys.argv[1:]])
