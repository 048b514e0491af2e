"""Engines are opened where they fit, and refused with what was found, what was wanted and what to run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from edgefuse.runtime.bundle import Bundle, PartInfo, part_file
from edgefuse.runtime.engines import Sidecar, engine_file, open_engine, read_sidecar
from edgefuse.runtime.errors import EngineError

PLAN = b"a compiled plan"
TARGET = "tensorrt-rtx"


@pytest.fixture
def bundle(tiny_copy: Bundle) -> Bundle:
    """The tiny bundle with trt parts and one engine, of the image part."""
    file = part_file("trt", "image")
    trt = {**tiny_copy.info.parts, "trt": {"image": PartInfo(file=file, precision="fp16")}}
    bundle = tiny_copy.updated({file: b"an onnx graph"}, parts=trt)
    path = engine_file(bundle.folder, TARGET, "image")
    path.parent.mkdir(parents=True)
    path.write_bytes(PLAN)
    write_sidecar(bundle)
    return bundle


def write_sidecar(bundle: Bundle, **changes: object) -> None:
    sidecar = {
        "part": "image",
        "target": TARGET,
        "tensorrt_version": "1.7.1.116",
        "sm": (86, 89),
        "batch": (1, 1, 8),
        "source_sha256": bundle.info.files[part_file("trt", "image")],
        "engine_sha256": hashlib.sha256(PLAN).hexdigest(),
        "kernels": 12,
        "bytes_touched": None,
        "seconds": 0.5,
        **changes,
    }
    document = Sidecar.model_validate(sidecar).model_dump_json()
    engine_file(bundle.folder, TARGET, "image", ".json").write_text(document)


def test_an_engine_that_fits_is_read(bundle: Bundle) -> None:
    assert open_engine(bundle, TARGET, "image") == PLAN
    assert open_engine(bundle, TARGET, "image", sm=89, version="1.7.1.116") == PLAN


def refused(bundle: Bundle, message: str, target: str = TARGET, **asked: object) -> None:
    """Opening fails in one line with `message`, and the line ends with the command that mends it."""
    with pytest.raises(EngineError, match=message) as error:
        open_engine(bundle, target, "image", **asked)  # type: ignore[arg-type]
    assert re.search(rf"run `edgefuse build \S+ --target {target}`", str(error.value))
    assert "\n" not in str(error.value)


def test_a_missing_engine_names_what_is_there(bundle: Bundle) -> None:
    refused(bundle, "no tensorrt engine of image .* found: engines/tensorrt-rtx/image.engine", target="tensorrt")


def test_an_engine_without_sidecar_is_refused(bundle: Bundle) -> None:
    engine_file(bundle.folder, TARGET, "image", ".json").unlink()
    refused(bundle, "no tensorrt-rtx engine of image with its .json")


def test_a_sidecar_that_cannot_be_read_counts_as_none(bundle: Bundle) -> None:
    engine_file(bundle.folder, TARGET, "image", ".json").write_text("{")
    assert read_sidecar(bundle.folder, TARGET, "image") is None
    refused(bundle, "with its .json")


def test_an_engine_of_an_older_part_is_refused(bundle: Bundle) -> None:
    refused(bundle.updated({part_file("trt", "image"): b"quantized anew"}), "was built from another image part")


def test_an_engine_of_another_version_is_refused(bundle: Bundle) -> None:
    refused(bundle, "built by tensorrt-rtx 1.7.1.116, this machine has 1.8.0.1", version="1.8.0.1")


def test_an_engine_for_other_gpus_is_refused(bundle: Bundle) -> None:
    refused(bundle, "built for SM 86, 89, this GPU is SM 120; .* --sm 120", sm=120)


def test_an_altered_engine_is_refused(bundle: Bundle) -> None:
    engine_file(bundle.folder, TARGET, "image").write_bytes(PLAN[:-1])
    refused(bundle, "is not what its .json describes")


def test_a_sidecar_of_a_newer_edgefuse_is_read(bundle: Bundle) -> None:
    path = engine_file(bundle.folder, TARGET, "image", ".json")
    path.write_text(path.read_text().replace("{", '{"something_new": 1, ', 1))
    assert open_engine(bundle, TARGET, "image") == PLAN


def test_engines_stand_beside_their_sidecar_and_log() -> None:
    folder = Path("bundle")
    assert engine_file(folder, TARGET, "head") == folder / "engines" / TARGET / "head.engine"
    assert engine_file(folder, TARGET, "head", ".log") == folder / "engines" / TARGET / "head.log"
