"""From facts to verdicts: machines as they stand on desks and in robots."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgefuse.optimize.capabilities import Facts, targets, traps
from edgefuse.optimize.probe import GPU, Found

MISSING = Found(False, why="not installed")


def gpu(name: str, sm: int, cuda: str) -> Found:
    return Found(True, gpu={"name": name, "sm": sm, "cuda": cuda})


NO_GPU = Found(False, why="no NVIDIA driver (libcuda.so.1 is not there)")
EVERYTHING = {
    "onnx": Found(True, "1.20"),
    "onnxruntime": Found(True, "1.20"),
    "tensorrt": Found(True, "10.16.1.11"),
    "tensorrt_rtx": Found(True, "1.7.1.116"),
    "cuda.bindings.runtime": Found(True, "12.9"),
    "pycuda.driver": MISSING,
    GPU: gpu("NVIDIA GeForce RTX 4090", 89, "12.8"),
}
DESKTOP = Facts(EVERYTHING, python=(3, 11), int8="AVX512-VNNI", memory_free_mib=20_000, disk_free_mib=50_000)
ORIN = replace(
    DESKTOP,
    found={**EVERYTHING, "tensorrt": Found(True, "10.3.0"), "tensorrt_rtx": MISSING, GPU: gpu("Orin", 87, "12.6")},
    jetson=True,
    l4t=(36, 4, 3),
    int8="dot product",
)


def with_(facts: Facts, **found: Found) -> Facts:
    """`facts` in which other things were found; `cuda` is cuda.bindings.runtime."""
    renamed = {{"cuda": "cuda.bindings.runtime"}.get(name, name): one for name, one in found.items()}
    return replace(facts, found={**facts.found, **renamed})


def verdict(facts: Facts, target: str) -> tuple[bool, bool, str, str]:
    told = targets(facts)[target]
    assert bool(told["why"]) == (not (told["build"] and told["run"])) == bool(told["do"])
    return told["build"], told["run"], told["why"], told["do"]


def test_a_desktop_with_everything_does_everything() -> None:
    assert all(verdict(DESKTOP, target) == (True, True, "", "") for target in targets(DESKTOP))
    assert list(traps(DESKTOP)) == []


def test_a_jetson_builds_and_runs_tensorrt_and_not_rtx() -> None:
    assert verdict(ORIN, "tensorrt") == (True, True, "", "")
    assert verdict(ORIN, "cpu") == (True, True, "", "")
    build, run, why, do = verdict(ORIN, "tensorrt-rtx")
    assert (build, run, do) == (False, False, "build with --target tensorrt")
    assert "TensorRT-RTX has nothing for SM 87" in why
    assert list(traps(ORIN)) == []


@pytest.mark.parametrize(
    ("facts", "target", "build", "run", "why", "do"),
    [
        (with_(DESKTOP, onnxruntime=MISSING), "cpu", False, False, "onnxruntime: not installed", "'edgefuse[cpu]'"),
        (with_(DESKTOP, onnx=MISSING), "cpu", False, True, "onnx: not installed", "'edgefuse[optimize]'"),
        (with_(DESKTOP, gpu=NO_GPU), "tensorrt-rtx", True, False, "no NVIDIA driver", "copy the bundle to a machine"),
        (with_(DESKTOP, gpu=NO_GPU), "tensorrt", False, False, "no NVIDIA driver", "build where the GPU is"),
        (with_(DESKTOP, tensorrt_rtx=MISSING), "tensorrt-rtx", False, False, "not installed", "'edgefuse[rtx]'"),
        (with_(DESKTOP, tensorrt=MISSING), "tensorrt", False, False, "not installed", "'edgefuse[tensorrt]'"),
        (with_(DESKTOP, onnx=MISSING), "tensorrt", False, True, "onnx: not installed", "'edgefuse[optimize]'"),
        (with_(DESKTOP, onnx=MISSING), "tensorrt-rtx", False, True, "onnx: not installed", "'edgefuse[optimize]'"),
        (with_(DESKTOP, cuda=MISSING), "tensorrt", True, False, "cuda.bindings.runtime: not inst", "cuda-python"),
        (with_(DESKTOP, cuda=MISSING), "tensorrt-rtx", True, False, "cuda.bindings.runtime: not inst", "cuda-python"),
        (with_(ORIN, tensorrt=MISSING), "tensorrt", False, False, "not installed", "--system-site-packages"),
        (
            with_(replace(ORIN, l4t=(36, 3, 0)), tensorrt=Found(True, "8.6.2")),
            "tensorrt",
            False,
            False,
            "tensorrt 8.6.2 is older than 10.3",
            "install JetPack 6.1 or newer",
        ),
    ],
)
def test_what_is_missing_is_told_with_the_command_that_brings_it(
    facts: Facts, target: str, build: bool, run: bool, why: str, do: str
) -> None:
    told = verdict(facts, target)
    assert told[:2] == (build, run)
    assert why in told[2]
    assert do in told[3]


def test_pycuda_does_instead_of_cuda_python() -> None:
    facts = with_(DESKTOP, cuda=MISSING, **{"pycuda.driver": Found(True, "2026.1")})
    assert verdict(facts, "tensorrt") == (True, True, "", "")


def test_nothing_known_is_no_error() -> None:
    for told in targets(Facts()).values():
        assert (told["build"], told["run"]) == (False, False)
        assert "not tried" in told["why"]


@pytest.mark.parametrize(
    ("facts", "trap", "do"),
    [
        (with_(ORIN, tensorrt=Found(True, "11.4.1.3")), "JetPack 6 must stay on TensorRT 10", "uninstall"),
        (with_(replace(ORIN, l4t=(39, 2, 0)), tensorrt=Found(True, "11.2.1")), "does not support JetPack", "uninstall"),
        (replace(ORIN, l4t=(35, 4, 1)), "this JetPack has TensorRT 8", "JetPack 6.1"),
        (
            with_(replace(ORIN, l4t=(39, 2, 0)), tensorrt=Found(False, why="libnvdla_compiler.so: cannot open")),
            "this container is for another JetPack",
            "image for this JetPack",
        ),
        (with_(ORIN, tensorrt_rtx=Found(True, "1.7.1.116")), "this GPU is SM 87", "--target tensorrt"),
        (with_(DESKTOP, gpu=gpu("NVIDIA Thor", 110, "13.0")), "this GPU is SM 110", "--target tensorrt"),
        (replace(DESKTOP, python=(3, 14)), "Python 3.14 is untried", "3.10 to 3.13"),
        (replace(DESKTOP, packages={"onnxruntime": "1", "onnxruntime-gpu": "1"}), "overwrite each other", "uninstall"),
        (
            replace(with_(DESKTOP, gpu=gpu("x", 89, "13.0")), packages={"pycuda": "2024.1.2"}),
            "pycuda 2024.1.2 does not know CUDA 13",
            "'edgefuse[pycuda]'",
        ),
        (replace(DESKTOP, int8=""), "may be slower than FP32", "edgefuse bench"),
        (replace(DESKTOP, memory_free_mib=900), "only 900 MiB of memory are free", "--max-batch 1"),
        (replace(DESKTOP, disk_free_mib=10), "only 10 MiB are free on this disk", "free some space"),
    ],
)
def test_a_known_trap_is_told_with_the_way_out(facts: Facts, trap: str, do: str) -> None:
    ((found, way_out),) = traps(facts)
    assert trap in found
    assert do in way_out


@pytest.mark.parametrize(
    "facts",
    [
        with_(replace(ORIN, l4t=(39, 2, 2)), tensorrt=Found(True, "11.4.1.3")),  # supported from JetPack 7.2.2 on
        with_(DESKTOP, tensorrt=Found(True, "11.2.1.2")),  # no Jetson
        replace(with_(DESKTOP, gpu=gpu("x", 89, "13.0")), packages={"pycuda": "2025.1.2"}),
        replace(DESKTOP, packages={"onnxruntime-gpu": "1"}),
    ],
)
def test_what_only_looks_like_a_trap_is_none(facts: Facts) -> None:
    assert list(traps(facts)) == []
