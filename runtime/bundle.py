"""The bundle: the one folder that passes from stage to stage, its contract, and how it is written and read safely.

bundle/
  bundle.json         the contract: tensors, labels, parts, lineage, quality, sha256 of every file
  tokenizer.json      when the model reads text
  parts/<set>/*.onnx  one graph per modality and one head, for each of the sets in PART_SETS
  engines/<target>/   compiled parts, each with its own sidecar (see engines.py)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from edgefuse.runtime.errors import BundleError
from edgefuse.runtime.files import commit, finish_commit
from edgefuse.runtime.modalities import MODALITIES as MODALITIES  # the contract is where its names are looked for
from edgefuse.runtime.modalities import MODALITY_TABLE as MODALITY_TABLE
from edgefuse.runtime.modalities import SENSOR_TENSORS as SENSOR_TENSORS
from edgefuse.runtime.modalities import AudioSpec as AudioSpec
from edgefuse.runtime.modalities import Frozen
from edgefuse.runtime.modalities import ImageSpec as ImageSpec
from edgefuse.runtime.modalities import SignalSpec as SignalSpec
from edgefuse.runtime.modalities import TextSpec as TextSpec

SCHEMA_VERSION = 1
CONTRACT_FILE = "bundle.json"
TOKENIZER_FILE = "tokenizer.json"

HEAD = "head"
PART_SETS = ("fp32", "trt", "cpu")  # the reference; strongly typed for TensorRT; fastest on ONNX Runtime's CPU


def token_tensor(modality: str) -> str:
    """Name of the tensor [B, N, D] that leaves a modality's encoder and enters the head."""
    return f"{modality}_tokens"


def part_file(part_set: str, part: str) -> str:
    """Path of a part inside the bundle."""
    return f"parts/{part_set}/{part}.onnx"


class TokenSpec(Frozen):
    """Shape of the tokens a modality hands to the head: [B, count, dim]."""

    count: int = Field(gt=0)
    dim: int = Field(gt=0)


class PartInfo(Frozen):
    """One ONNX graph of a part set."""

    file: str
    precision: str  # fp32, fp16, int8+fp16, fp32-fused, dynamic-int8
    note: str = ""  # why this precision was chosen


class BundleInfo(Frozen):
    """The contract, exactly what bundle.json holds."""

    schema_version: Literal[1] = 1  # SCHEMA_VERSION
    name: str
    labels: tuple[str, ...] = Field(min_length=1)
    image: ImageSpec | None = None
    audio: AudioSpec | None = None
    text: TextSpec | None = None
    signal: SignalSpec | None = None
    tokens: dict[str, TokenSpec]
    parts: dict[str, dict[str, PartInfo]]  # part set -> part -> graph
    lineage: dict[str, Any] = Field(default_factory=dict)  # recipe, data fingerprint, versions
    quality: dict[str, Any] = Field(default_factory=dict)  # measured on validation data
    files: dict[str, str] = Field(default_factory=dict)  # path inside the bundle -> sha256

    @model_validator(mode="after")
    def _has_tokens_of_each_modality(self) -> BundleInfo:
        if not self.modalities or set(self.tokens) != set(self.modalities):
            found = ", ".join(self.modalities) or "no modality"
            raise ValueError(f"tokens are given for {', '.join(self.tokens) or 'none'}, the model takes {found}")
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of this model, in the order of the `presence` columns."""
        return tuple(self.specs)

    @property
    def specs(self) -> dict[str, Any]:
        """Modality -> what its encoder takes, an instance of the table's `spec`."""
        return {m: spec for m in MODALITIES if (spec := getattr(self, m)) is not None}


class Bundle:
    """A bundle on disk: the contract, and its files, each checked against its hash when it is read."""

    def __init__(self, folder: Path, info: BundleInfo) -> None:
        self.folder = folder
        self.info = info

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Read the contract of `folder`.

        Raises:
            BundleError: no bundle there, contract unreadable, or written by a newer edgefuse.
        """
        folder = Path(folder)
        _finish_commit(folder)
        path = folder / CONTRACT_FILE
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise BundleError(
                f"{folder} is not a bundle: no {CONTRACT_FILE} in it; make one with `edgefuse export`"
            ) from None
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from None
        return cls(folder, _parse_contract(path, content))

    @property
    def fingerprint(self) -> str:
        """The sha256 of the contract, which holds that of every file: equal for the same bundle and no other."""
        return hashlib.sha256((self.folder / CONTRACT_FILE).read_bytes()).hexdigest()

    def read(self, name: str) -> bytes:
        """The bytes of one file of the bundle, after its sha256 was compared with the contract.

        Raises:
            BundleError: the file is missing, not in the contract, or not what was written.
        """
        expected = self.info.files.get(name)
        if expected is None:
            known = ", ".join(sorted(self.info.files)) or "none"
            raise BundleError(f"{self.folder}: {name} is not part of this bundle; its files are: {known}")
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.folder / name} cannot be read ({error.strerror}); copy it again") from None
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise BundleError(
                f"{self.folder / name} was altered: sha256 is {found[:12]}, {CONTRACT_FILE} says {expected[:12]}; "
                "copy or export the bundle again"
            )
        return data

    def part(self, part_set: str, part: str) -> bytes:
        """The verified ONNX bytes of one part.

        Raises:
            BundleError: the bundle has no such part set, or the file fails its check.
        """
        return self.read(self.part_info(part_set, part).file)

    def part_info(self, part_set: str, part: str) -> PartInfo:
        """What the contract says of one part.

        Raises:
            BundleError: the bundle has no such part set, or no such part in it.
        """
        parts = self.info.parts.get(part_set)
        if parts is None:
            have = ", ".join(self.info.parts) or "none"
            raise BundleError(f"{self.folder} has no {part_set} parts, only: {have}; run `edgefuse quantize`")
        if part not in parts:
            raise BundleError(f"{self.folder} has no {part} part in {part_set}, only: {', '.join(parts)}")
        return parts[part]

    def size(self, part_set: str) -> int:
        """Bytes on disk of one part set."""
        return sum((self.folder / part.file).stat().st_size for part in self.info.parts[part_set].values())

    def updated(self, files: Mapping[str, bytes], **changes: Any) -> Bundle:
        """Write `files` and the contract with `changes`, all or nothing, and return the new bundle."""
        info = self.info.model_copy(update=changes)
        return write_bundle(self.folder, info, files)


def write_bundle(folder: str | Path, info: BundleInfo, files: Mapping[str, bytes]) -> Bundle:
    """Write `files` (path inside the bundle -> bytes) and the contract so that a crash at any moment loses nothing.

    Files that the contract still names and that are not written anew stay as they are.

    Raises:
        BundleError: the disk is full or not writable; the previous bundle is untouched.
    """
    folder = Path(folder)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    kept = {part.file for parts in info.parts.values() for part in parts.values()} | {TOKENIZER_FILE}
    previous = {name: digest for name, digest in info.files.items() if name in kept}
    info = info.model_copy(update={"files": dict(sorted({**previous, **hashes}.items()))})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _finish_commit(folder)
        commit(folder, files, CONTRACT_FILE, _contract_bytes(info))
    except OSError as error:
        raise BundleError(
            f"{folder} could not be written ({error.strerror}); free some space or choose another folder; "
            "what was there before is untouched"
        ) from None
    _finish_commit(folder)
    return Bundle(folder, info)


def _contract_bytes(info: BundleInfo) -> bytes:
    """Without the modalities that the model lacks, so that an edgefuse that does not know them reads it too."""
    lacking = set(MODALITIES) - set(info.modalities)
    return info.model_dump_json(indent=2, exclude=lacking).encode()


def _finish_commit(folder: Path) -> None:
    """Finish a commit that was interrupted after its moment of commit."""
    try:
        finish_commit(folder, CONTRACT_FILE, lambda content: _parse_contract(folder / CONTRACT_FILE, content).files)
    except OSError as error:
        raise BundleError(
            f"{folder} holds an unfinished write that cannot be finished ({error.strerror}); make it writable"
        ) from None


def _parse_contract(path: Path, content: bytes) -> BundleInfo:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}); export the bundle again") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema {version}, this edgefuse reads up to {SCHEMA_VERSION}; "
            "install a newer edgefuse or export again with this one"
        )
    try:
        info = BundleInfo.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"]) or "document"
        raise BundleError(f"{path} is no bundle contract: {where}: {first['msg']}; export the bundle again") from None
    for name in [*info.files, *(part.file for parts in info.parts.values() for part in parts.values())]:
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise BundleError(f"{path} names the file {name!r} outside of the bundle; do not use this bundle")
    return info
