"""The doctor on this machine, and on machines that are made of files."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from edgefuse.optimize import doctor as module
from edgefuse.optimize.doctor import PACKAGES, doctor
from edgefuse.optimize.probe import GPU, Found
from edgefuse.runtime.engines import ENGINE_TARGETS

RELEASE = "# R36 (release), REVISION: {}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Fri Jan 10 2025\n"
JETSON = {
    "etc/nv_tegra_release": RELEASE.format("4.3"),
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd crc32 atomics asimddp\nCPU implementer\t: 0x41\n",
    "proc/meminfo": "MemTotal:        7802000 kB\nMemAvailable:    1024000 kB\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n",
}


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package is imported: only files are looked at."""
    monkeypatch.setattr(
        module, "probe", lambda names, distributions: {name: Found(False, why="not installed") for name in names}
    )


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_this_machine_is_told_without_onnx_and_torch_within_two_seconds() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import sys, json; sys.modules.update(dict.fromkeys(['onnx', 'torch', 'tensorrt_rtx']))\n"
        "from edgefuse.optimize.doctor import doctor; print(json.dumps(doctor()))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
    )  # of work: others may be working too
    found = json.loads(told)
    assert set(found["targets"]) == {"cpu", *ENGINE_TARGETS}
    assert found["packages"]["tensorrt_rtx"]["works"]  # it is part of the development install
    assert found["targets"]["cpu"] == {"build": True, "run": True, "why": "", "do": ""}
    assert found["targets"]["tensorrt-rtx"]["build"]
    assert found["memory_mib"] > found["memory_free_mib"] > 0
    assert found["packages"]["torch"]["works"] is None


@pytest.mark.usefixtures("untried")
def test_a_jetson_is_told_by_its_files(tmp_path: Path) -> None:
    told = doctor(machine(tmp_path, JETSON))
    assert told["jetson"] == "NVIDIA Jetson Orin Nano Developer Kit, JetPack 6.2 (L4T 36.4.3)"
    assert told["system"].startswith("Ubuntu 22.04.5 LTS, ")
    assert told["driver"] == "540.4.0"
    assert told["int8"] == "dot product"
    assert (told["memory_mib"], told["memory_free_mib"]) == (7619, 1000)
    assert [row["trap"] for row in told["traps"]] == ["only 1000 MiB of memory are free: builds may be killed"]
    assert "--system-site-packages" not in told["targets"]["tensorrt"]["do"]  # there is no GPU yet to build for


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize(
    ("major", "revision", "jetpack"),
    [
        (35, "4.1", "5"),
        (36, "3.0", "6.0"),
        (36, "4.0", "6.1"),
        (36, "9.9", "6"),
        (38, "2.0", "7.0"),
        (39, "2.1", "7.2.1"),
        (41, "0.0", "of unknown version"),
    ],
)
def test_the_jetpack_follows_from_the_release(tmp_path: Path, major: int, revision: str, jetpack: str) -> None:
    release = RELEASE.format(revision).replace("R36", f"R{major}")
    told = doctor(machine(tmp_path, {"etc/nv_tegra_release": release}))
    assert told["jetson"] == f"a Jetson, JetPack {jetpack} (L4T {major}.{revision})"


@pytest.mark.usefixtures("untried")
def test_a_container_on_a_jetson_is_one_too(tmp_path: Path) -> None:
    told = doctor(machine(tmp_path, {"proc/device-tree/model": "NVIDIA Jetson AGX Orin\0"}))
    assert told["jetson"].startswith("NVIDIA Jetson AGX Orin, JetPack not known")


@pytest.mark.usefixtures("untried")
def test_a_desktop_driver_and_cpu_are_told(tmp_path: Path) -> None:
    told = doctor(
        machine(
            tmp_path,
            {
                "proc/cpuinfo": "model name\t: Intel(R) Core(TM) i9\nflags\t\t: fpu avx2 avx_vnni\n",
                "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22\n",
            },
        )
    )
    assert told["jetson"] is None
    assert told["cpu"].startswith("Intel(R) Core(TM) i9, ")
    assert told["int8"] == "AVX-VNNI"
    assert told["driver"] == "550.54.14"


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\0\1", b"# R (release)\nflags\nMemTotal: x\nMemAvailable:"])
def test_files_that_are_missing_or_nonsense_never_stop_it(tmp_path: Path, content: bytes | None) -> None:
    for name in JETSON if content is not None else ():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content or b"")
    told = doctor(tmp_path)
    assert told["jetson"] is None
    assert told["driver"] is None
    assert told["memory_mib"] is None
    assert all(not row["build"] and not row["run"] for row in told["targets"].values())


def test_a_gpu_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"name": "NVIDIA GeForce RTX 4090", "sm": 89, "cuda": "12.8"}
    monkeypatch.setattr(
        module,
        "probe",
        lambda names, distributions: {name: Found(True, "10.16.1", gpu=gpu if name == GPU else None) for name in names},
    )
    told = doctor(tmp_path)
    assert told["gpu"] == "NVIDIA GeForce RTX 4090, SM 89, CUDA 12.8"
    assert all(row["build"] and row["run"] for row in told["targets"].values())
    assert set(told["packages"]) >= {name for group in PACKAGES for name in group} - {GPU}
