"""What `edgefuse check` finds, and the TensorRT versions that it checks for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

# The versions that matter, and what counts as one of them: JetPack 6.1-6.2 has TensorRT 10.3, JetPack 7.2 has 10.16,
# JetPack >= 7.2.2 and the wheels have 11.4; TensorRT-RTX is 1.7, whose parser is about that of TensorRT 11.0.
VERSIONS: dict[str, tuple[int, int]] = {"10.3": (10, 3), "10.16": (10, 16), "11": (11, 4), "rtx": (11, 0)}
TARGETS = tuple(VERSIONS)

Severity = Literal["refused", "silent", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that TensorRT will not do as the model says."""

    node: str  # its name, or its first output where it has none; a graph input where that is at fault; "" for the model
    rule: str  # kebab-case, the same for the same kind of finding
    severity: Severity  # refused: no engine; silent: an engine, but not as meant; note: as meant, and good to know
    effect: str  # what happens
    mend: str  # what to do
    targets: tuple[str, ...] = TARGETS  # the versions it concerns


def before(major: int, minor: int) -> tuple[str, ...]:
    """The targets that are older than TensorRT `major`.`minor`."""
    return tuple(target for target, version in VERSIONS.items() if version < (major, minor))


def verdict(findings: Collection[Finding]) -> str:
    """refused, silent or ok: the worst of the findings; a note is ok."""
    found = {finding.severity for finding in findings}
    return next((severity for severity in ("refused", "silent") if severity in found), "ok")
