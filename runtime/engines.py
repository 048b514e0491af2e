"""Compiled engines of a bundle: what stands beside each one, and reading one only where it fits.

engines/<target>/<part>.engine      the raw plan, as trtexec, DeepStream and Triton load it
engines/<target>/<part>.json        the sidecar: what it was built from, by which version, for which machine
engines/<target>/<part>.log         everything the compiler said
engines/<target>/<part>.plan.json   TensorRT's own account of its kernels, where a GPU is
engines/<target>/<part>.failed.log  what the compiler said when it last failed
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from edgefuse.runtime.bundle import Bundle, part_file
from edgefuse.runtime.engine_header import SM_BITS, Header, read_header, same_version
from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.files import commit, finish_commit

ENGINE_TARGETS = ("tensorrt-rtx", "tensorrt")
COMPILED_SET = "trt"  # the part set that engines are built from
Shape = tuple[int, ...]


class Sidecar(BaseModel):
    """What is known of one engine; a field that is None or empty was not told when it was built."""

    model_config = ConfigDict(frozen=True)

    part: str
    target: str  # one of ENGINE_TARGETS
    tensorrt_version: str
    sm: tuple[int, ...]  # compute capabilities of the GPUs it runs on, 86 for 8.6
    gpu: str | None = None  # name of the GPU it was tuned on; None for tensorrt-rtx, which builds for many
    cuda: str | None = None  # newest CUDA of that GPU's driver
    platform: str | None = None  # operating system and processor, as linux-aarch64
    batch: tuple[int, int, int]  # smallest, best and largest batch
    profiles: dict[str, tuple[Shape, Shape, Shape]] = {}  # input -> its smallest, best and largest shape
    precision: str = ""  # of the part, as the contract calls it
    opset: int | None = None  # of the ONNX part
    hardware_compatibility: str = ""  # TensorRT's word: NONE is this GPU model only
    optimization_level: int | None = None  # 0 to 5; None for TensorRT's default
    source_sha256: str  # of the ONNX part
    engine_sha256: str
    kernels: int | None  # launches for one example; None where the compiler does not tell
    bytes_touched: int | None  # what those kernels read and write, weights included
    seconds: float  # build time
    audit: dict[str, Any] | None = None  # what became of INT8 in it (optimize/audit.py)


@dataclass(frozen=True, slots=True)
class Machine:
    """What an engine must fit; None is not known and not checked."""

    tensorrt_version: str | None = None  # the full one
    sm: int | None = None  # compute capability of the GPU, 86 for 8.6
    gpu: str | None = None  # its name
    cuda: str | None = None  # newest CUDA of its driver
    platform: str | None = None  # as PLATFORM of machine.py


def engine_file(folder: Path, target: str, part: str, suffix: str = ".engine") -> Path:
    """Path of an engine, or of what stands beside it (".json", ".log")."""
    return folder / "engines" / target / f"{part}{suffix}"


def read_sidecar(folder: Path, target: str, part: str) -> Sidecar | None:
    """The sidecar, or None where there is none that can be read."""
    path = engine_file(folder, target, part, ".json")
    try:
        _finish(path)
        return Sidecar.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def staged_file(folder: Path, target: str, part: str) -> Path:
    """Where a new engine is written before `write_sidecar` makes it the engine."""
    return engine_file(folder, target, part, ".engine.new")


def write_sidecar(folder: Path, sidecar: Sidecar) -> None:
    """Make the staged engine, which `sidecar` describes, the engine: both change, or neither.

    Raises:
        OSError: nothing was changed, and what was staged is gone.
    """
    path = engine_file(folder, sidecar.target, sidecar.part, ".json")
    try:
        commit(path.parent, {}, path.name, sidecar.model_dump_json(indent=2).encode())
    except OSError:
        staged_file(folder, sidecar.target, sidecar.part).unlink(missing_ok=True)
        raise
    _finish(path)


def misfit(sidecar: Sidecar, machine: Machine) -> str | None:
    """Why an engine does not run on `machine`, None where nothing speaks against it."""
    if machine.tensorrt_version not in (None, sidecar.tensorrt_version):
        return f"was built by {sidecar.target} {sidecar.tensorrt_version}, this machine has {machine.tensorrt_version}"
    if machine.sm is not None and sidecar.sm and machine.sm not in sidecar.sm:
        return f"was built for SM {_listed(sidecar.sm)}, this GPU is SM {machine.sm}"
    if sidecar.target == "tensorrt-rtx":
        return None  # its engines are portable among GPUs of these SMs, drivers and systems
    for what, built, here in (
        ("the GPU", sidecar.gpu, machine.gpu),
        ("a driver for CUDA", sidecar.cuda, machine.cuda),
        ("the platform", sidecar.platform, machine.platform),
    ):
        if built is not None and here is not None and built != here:
            return f"was built on {what} {built}, this machine has {here}"
    return None


def open_engine(bundle: Bundle, target: str, part: str, machine: Machine = Machine()) -> bytes:
    """The bytes of an engine, after everything that can be checked without a GPU was checked.

    Args:
        bundle: an open bundle.
        target: one of ENGINE_TARGETS.
        part: "image", "audio", "text" or "head".
        machine: what will run it.

    Raises:
        EngineError: no such engine, built from another part, by another version, for another GPU, cut off or altered.
    """
    path = engine_file(bundle.folder, target, part)
    on = f" --sm {machine.sm}" if target == "tensorrt-rtx" and machine.sm else ""
    rebuild = f"run `edgefuse build {bundle.folder} --target {target}{on}`"
    sidecar = read_sidecar(bundle.folder, target, part)
    try:
        data = path.read_bytes()
    except OSError:
        have = sorted(str(file.relative_to(bundle.folder)) for file in bundle.folder.glob("engines/*/*.engine"))
        raise EngineError(f"no {target} engine of {part}; found: {', '.join(have) or 'none'}; {rebuild}") from None
    header = read_header(data)
    if sidecar is None:
        raise EngineError(
            f"{path} has no .json that says which part it was built from; it is {_described(header, data)}; {rebuild}"
        )
    wanted = bundle.info.files.get(part_file(COMPILED_SET, part), "no such part")
    if sidecar.source_sha256 != wanted:
        raise EngineError(
            f"{path} was built from another {part} part (sha256 {sidecar.source_sha256[:12]}, the bundle has "
            f"{wanted[:12]}); {rebuild}"
        )
    if why := misfit(sidecar, machine) or _contradiction(sidecar, header, len(data)):
        raise EngineError(f"{path} {why}; {rebuild}")
    if hashlib.sha256(data).hexdigest() != sidecar.engine_sha256:
        raise EngineError(f"{path} is not what its .json describes: altered or half replaced; {rebuild}")
    return data


def _contradiction(sidecar: Sidecar, header: Header | None, size: int) -> str | None:
    """Where the engine's own header says something else than the sidecar."""
    if header is None:
        return None  # of a format that came after this code: its hash tells whether it is whole
    if header.target != sidecar.target:
        return f"is an engine of {header.target}, not of {sidecar.target}"
    if not same_version(header, sidecar.tensorrt_version):
        version = ".".join(map(str, header.version))
        return f"says that {header.target} {version} built it, its .json says {sidecar.tensorrt_version}"
    if header.sm and set(header.sm) != set(sidecar.sm).intersection(SM_BITS):
        return f"says that it is for SM {_listed(header.sm)}, its .json says SM {_listed(sidecar.sm)}"
    if header.size_bytes not in (None, size):
        return f"is cut off or mixed up: it has {size} bytes of {header.size_bytes}"
    return None


def _described(header: Header | None, data: bytes) -> str:
    """What an engine is by its header alone."""
    if header is None:
        return f"nothing that TensorRT wrote (it begins with {data[:4]!r})"
    for_gpus = f" for SM {_listed(header.sm)}" if header.sm else ""
    whole = "" if header.size_bytes in (None, len(data)) else f", {len(data)} bytes of {header.size_bytes}"
    return f"an engine of {header.target} {'.'.join(map(str, header.version))}{for_gpus}{whole}"


def _finish(sidecar: Path) -> None:
    """Finish a `write_sidecar` that was interrupted after its moment of commit."""
    engine = sidecar.with_suffix(".engine").name
    finish_commit(
        sidecar.parent,
        sidecar.name,
        lambda content: {engine: Sidecar.model_validate_json(content).engine_sha256},
    )


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
