"""Compiled engines of a bundle: what stands beside each one, and reading one only where it fits.

engines/<target>/<part>.engine   the raw plan, as trtexec, DeepStream and Triton load it
engines/<target>/<part>.json     the sidecar: what it was built from, by which version, for which GPUs
engines/<target>/<part>.log      everything the compiler said
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from edgefuse.runtime.bundle import Bundle, part_file
from edgefuse.runtime.errors import EngineError

ENGINE_TARGETS = ("tensorrt-rtx", "tensorrt")
COMPILED_SET = "trt"  # the part set that engines are built from


class Sidecar(BaseModel):
    """What is known of one engine."""

    model_config = ConfigDict(frozen=True)

    part: str
    target: str  # one of ENGINE_TARGETS
    tensorrt_version: str
    sm: tuple[int, ...]  # compute capabilities of the GPUs it runs on, 86 for 8.6
    batch: tuple[int, int, int]  # smallest, best and largest batch
    source_sha256: str  # of the ONNX part
    engine_sha256: str
    kernels: int | None  # launches for one example; None where the compiler does not tell
    bytes_touched: int | None  # what those kernels read and write, weights included
    seconds: float  # build time


def engine_file(folder: Path, target: str, part: str, suffix: str = ".engine") -> Path:
    """Path of an engine, or of what stands beside it (".json", ".log")."""
    return folder / "engines" / target / f"{part}{suffix}"


def read_sidecar(folder: Path, target: str, part: str) -> Sidecar | None:
    """The sidecar, or None where there is none that can be read."""
    try:
        return Sidecar.model_validate_json(engine_file(folder, target, part, ".json").read_bytes())
    except (OSError, ValidationError):
        return None


def open_engine(bundle: Bundle, target: str, part: str, *, sm: int | None = None, version: str | None = None) -> bytes:
    """The bytes of an engine, after everything that can be checked without a GPU was checked.

    Args:
        bundle: an open bundle.
        target: one of ENGINE_TARGETS.
        part: "image", "audio", "text" or "head".
        sm: compute capability of the GPU that will run it (86 for 8.6); not checked where None.
        version: TensorRT version that will run it, the full one; not checked where None.

    Raises:
        EngineError: no such engine, built from another part, by another version, for another GPU, or altered.
    """
    path = engine_file(bundle.folder, target, part)
    rebuild = f"run `edgefuse build {bundle.folder} --target {target}`"
    sidecar = read_sidecar(bundle.folder, target, part)
    if sidecar is None or not path.is_file():
        have = sorted(str(file.relative_to(bundle.folder)) for file in bundle.folder.glob("engines/*/*.engine"))
        raise EngineError(f"no {target} engine of {part} with its .json; found: {', '.join(have) or 'none'}; {rebuild}")
    wanted = bundle.info.files.get(part_file(COMPILED_SET, part), "no such part")
    if sidecar.source_sha256 != wanted:
        raise EngineError(
            f"{path} was built from another {part} part (sha256 {sidecar.source_sha256[:12]}, the bundle has "
            f"{wanted[:12]}); {rebuild}"
        )
    if version is not None and sidecar.tensorrt_version != version:
        raise EngineError(
            f"{path} was built by {target} {sidecar.tensorrt_version}, this machine has {version}; {rebuild}"
        )
    if sm is not None and sidecar.sm and sm not in sidecar.sm:
        for_gpu = f" --sm {sm}" if target == "tensorrt-rtx" else " on this machine"
        raise EngineError(f"{path} was built for SM {_listed(sidecar.sm)}, this GPU is SM {sm}; {rebuild}{for_gpu}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sidecar.engine_sha256:
        raise EngineError(f"{path} is not what its .json describes: cut off, altered or half replaced; {rebuild}")
    return data


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
