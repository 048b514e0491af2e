"""Engines are opened where they fit, and refused with what was found, what was wanted and what to run."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from pathlib import Path

import pytest

from edgefuse.runtime import engines
from edgefuse.runtime.bundle import Bundle, PartInfo, part_file
from edgefuse.runtime.engine_header import SIZE
from edgefuse.runtime.engines import (
    Machine,
    Sidecar,
    engine_file,
    misfit,
    open_engine,
    read_sidecar,
    staged_file,
    write_sidecar,
)
from edgefuse.runtime.errors import EngineError
from tests.test_engine_header import rtx, tensorrt

PLAN = rtx() + b"kernels"
PLAN = rtx(size=len(PLAN)) + b"kernels"  # for SM 86 and 89
TARGET = "tensorrt-rtx"
VERSION = "1.7.1.116"


@pytest.fixture
def bundle(tiny_copy: Bundle) -> Bundle:
    """The tiny bundle with trt parts and one engine, of the image part."""
    file = part_file("trt", "image")
    trt = {**tiny_copy.info.parts, "trt": {"image": PartInfo(file=file, precision="fp16")}}
    bundle = tiny_copy.updated({file: b"an onnx graph"}, parts=trt)
    put(bundle, PLAN)
    return bundle


def sidecar(bundle: Bundle, plan: bytes, **changes: object) -> Sidecar:
    return Sidecar.model_validate(
        {
            "part": "image",
            "target": TARGET,
            "tensorrt_version": VERSION,
            "sm": (86, 89),
            "batch": (1, 1, 8),
            "source_sha256": bundle.info.files[part_file("trt", "image")],
            "engine_sha256": hashlib.sha256(plan).hexdigest(),
            "kernels": 12,
            "bytes_touched": None,
            "seconds": 0.5,
            **changes,
        }
    )


def put(bundle: Bundle, plan: bytes, **changes: object) -> Path:
    """Write an engine with its sidecar, and return its path."""
    described = sidecar(bundle, plan, **changes)
    staged = staged_file(bundle.folder, described.target, "image")
    staged.parent.mkdir(parents=True, exist_ok=True)
    staged.write_bytes(plan)
    write_sidecar(bundle.folder, described)
    return engine_file(bundle.folder, described.target, "image")


def test_an_engine_that_fits_is_read(bundle: Bundle) -> None:
    assert open_engine(bundle, TARGET, "image") == PLAN
    assert open_engine(bundle, TARGET, "image", Machine(VERSION, 89, "any", "any", "any")) == PLAN


def refused(bundle: Bundle, message: str, target: str = TARGET, **machine: object) -> None:
    """Opening fails in one line with `message`, and the line ends with the command that mends it."""
    with pytest.raises(EngineError, match=message) as error:
        open_engine(bundle, target, "image", Machine(**machine))  # type: ignore[arg-type]
    assert re.search(rf"; run `edgefuse build \S+ --target {target}( --sm \d+)?`$", str(error.value))
    assert "\n" not in str(error.value)


def test_a_missing_engine_names_what_is_there(bundle: Bundle) -> None:
    refused(bundle, "no tensorrt engine of image; found: engines/tensorrt-rtx/image.engine", target="tensorrt")


def test_an_engine_without_sidecar_is_refused_and_told_by_its_header(bundle: Bundle) -> None:
    engine_file(bundle.folder, TARGET, "image", ".json").unlink()
    refused(bundle, "has no .json .* it is an engine of tensorrt-rtx 1.7.1.116 for SM 86, 89;")
    engine_file(bundle.folder, TARGET, "image").write_bytes(PLAN[:-2])
    refused(bundle, f"for SM 86, 89, {len(PLAN) - 2} bytes of {len(PLAN)};")
    engine_file(bundle.folder, TARGET, "image").write_bytes(tensorrt((10, 3, 0, 26)))
    refused(bundle, "it is an engine of tensorrt 10.3.0.26;")
    engine_file(bundle.folder, TARGET, "image").write_bytes(b"\x08\x09an onnx graph")
    refused(bundle, r"it is nothing that TensorRT wrote \(it begins with b'\\x08\\tan'\);")


def test_a_sidecar_that_cannot_be_read_counts_as_none(bundle: Bundle) -> None:
    engine_file(bundle.folder, TARGET, "image", ".json").write_text("{")
    assert read_sidecar(bundle.folder, TARGET, "image") is None
    refused(bundle, "has no .json")


def test_an_engine_of_an_older_part_is_refused(bundle: Bundle) -> None:
    refused(bundle.updated({part_file("trt", "image"): b"quantized anew"}), "was built from another image part")


def test_an_engine_of_another_version_is_refused_with_both(bundle: Bundle) -> None:
    refused(bundle, "built by tensorrt-rtx 1.7.1.116, this machine has 1.8.0.1", tensorrt_version="1.8.0.1")


def test_an_engine_for_other_gpus_is_refused_with_the_command_for_this_one(bundle: Bundle) -> None:
    refused(bundle, "built for SM 86, 89, this GPU is SM 120; .* --sm 120", sm=120)


def test_a_sidecar_of_another_engine_is_refused(bundle: Bundle) -> None:
    put(bundle, PLAN, tensorrt_version="1.6.0.1")
    refused(bundle, "says that tensorrt-rtx 1.7.1.116 built it, its .json says 1.6.0.1")
    put(bundle, PLAN, sm=(86,))
    refused(bundle, "says that it is for SM 86, 89, its .json says SM 86")
    put(bundle, tensorrt((10, 3, 0, 26)))
    refused(bundle, "is an engine of tensorrt, not of tensorrt-rtx")


def test_an_engine_that_is_cut_off_is_refused_with_its_size(bundle: Bundle) -> None:
    engine_file(bundle.folder, TARGET, "image").write_bytes(PLAN[:-1])
    refused(bundle, f"is cut off or mixed up: it has {len(PLAN) - 1} bytes of {len(PLAN)}")


def test_an_altered_engine_is_refused(bundle: Bundle) -> None:
    engine_file(bundle.folder, TARGET, "image").write_bytes(PLAN[:-1] + b"x")
    refused(bundle, "is not what its .json describes")


def test_gpus_that_a_header_has_no_bit_for_are_left_to_the_sidecar(bundle: Bundle) -> None:
    put(bundle, PLAN, sm=(86, 89, 130))
    assert open_engine(bundle, TARGET, "image", Machine(sm=130)) == PLAN


@pytest.mark.parametrize(
    ("here", "why"),
    [
        (Machine(), None),
        (Machine("10.3.0", 87, "Orin", "12.6", "linux-aarch64"), None),
        (Machine("10.16.2.10"), "was built by tensorrt 10.3.0, this machine has 10.16.2.10"),
        (Machine(sm=110), "was built for SM 87, this GPU is SM 110"),
        (Machine(gpu="NVIDIA Thor"), "was built on the GPU Orin, this machine has NVIDIA Thor"),
        (Machine(cuda="13.2"), "was built on a driver for CUDA 12.6, this machine has 13.2"),
        (Machine(platform="linux-x86_64"), "was built on the platform linux-aarch64, this machine has linux-x86_64"),
    ],
)
def test_an_engine_of_tensorrt_fits_the_machine_that_built_it(bundle: Bundle, here: Machine, why: str | None) -> None:
    known = {"gpu": "Orin", "cuda": "12.6", "platform": "linux-aarch64", "sm": (87,), "tensorrt_version": "10.3.0"}
    assert misfit(sidecar(bundle, b"", target="tensorrt", **known), here) == why
    unknown = {"gpu": None, "cuda": None, "platform": None, "sm": (), "tensorrt_version": "10.3.0"}
    told = misfit(sidecar(bundle, b"", target="tensorrt", **unknown), here)
    assert told == (why if here.tensorrt_version == "10.16.2.10" else None)


def test_an_engine_of_tensorrt_is_opened_by_its_hash(bundle: Bundle) -> None:
    plan = tensorrt((10, 3, 0, 26)) + b"kernels"
    path = put(bundle, plan, target="tensorrt", tensorrt_version="10.3.0", sm=(87,))
    assert open_engine(bundle, "tensorrt", "image") == plan
    path.write_bytes(plan[:-1])  # whose header does not tell the size
    refused(bundle, "is not what its .json describes", target="tensorrt")


def test_a_new_engine_takes_its_place_with_its_sidecar_or_not_at_all(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = rtx(size=SIZE + 3) + b"new"
    before = sorted(engine_file(bundle.folder, TARGET, "image").parent.iterdir())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            put(bundle, new)
    assert open_engine(bundle, TARGET, "image") == PLAN
    assert sorted(engine_file(bundle.folder, TARGET, "image").parent.iterdir()) == before
    put(bundle, new)
    assert open_engine(bundle, TARGET, "image") == new


def test_a_crash_between_engine_and_sidecar_is_mended_by_the_next_reader(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = rtx(size=SIZE + 3) + b"new"
    with monkeypatch.context() as patch:
        patch.setattr(engines, "finish_commit", lambda *arguments: None)  # the power fails here
        put(bundle, new)
    assert engine_file(bundle.folder, TARGET, "image").read_bytes() == PLAN
    assert open_engine(bundle, TARGET, "image") == new


def test_a_sidecar_of_a_newer_edgefuse_is_read(bundle: Bundle) -> None:
    path = engine_file(bundle.folder, TARGET, "image", ".json")
    path.write_text(path.read_text().replace("{", '{"something_new": 1, ', 1))
    assert open_engine(bundle, TARGET, "image") == PLAN


def test_engines_stand_beside_their_sidecar_and_log() -> None:
    folder = Path("bundle")
    assert engine_file(folder, TARGET, "head") == folder / "engines" / TARGET / "head.engine"
    assert engine_file(folder, TARGET, "head", ".log") == folder / "engines" / TARGET / "head.log"
