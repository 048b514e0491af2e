"""What TensorRT would refuse, or take and silently do otherwise: `python optimize/preflight.py model.onnx`.

Needs no GPU and no TensorRT: the rules stand in parser_rules.py, qdq_rules.py, placement_rules.py and numeric_rules.py.
`edgefuse check` is the same. With --verify the parser of TensorRT-RTX is asked too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgefuse.optimize.ask_parser import ask
from edgefuse.optimize.finding import TARGETS, Finding, verdict
from edgefuse.optimize.mend import mend
from edgefuse.optimize.numeric_rules import numeric_findings
from edgefuse.optimize.parser_rules import parser_findings
from edgefuse.optimize.placement_rules import placement_findings
from edgefuse.optimize.qdq_rules import qdq_findings
from edgefuse.optimize.view import View
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.engines import COMPILED_SET
from edgefuse.runtime.errors import BundleError
from edgefuse.runtime.files import write_atomic

LARGEST_FILE = 2**31 - 1  # bytes: what protobuf reads, in TensorRT too
_ORDER = {"refused": 0, "silent": 1, "note": 2}


@dataclass(frozen=True, slots=True)
class _Part:
    """One model to check."""

    name: str
    path: Path  # of its file; weights may be beside it
    read: Callable[[], bytes]  # read when it is needed: a bundle is larger than its largest part

    def view(self) -> View:
        try:
            return View(self.read(), self.path.parent)
        except BundleError as error:
            raise BundleError(f"{self.path}: {error}") from None


def check(
    model: Path, *, targets: Sequence[str] = TARGETS, fix: Path | None = None, verify: bool = False
) -> dict[str, Any]:
    """Check an .onnx file, or every part of a bundle: its trt parts, or fp32 where it has none.

    Args:
        model: an .onnx file or the folder of a bundle.
        targets: TensorRT versions, of finding.TARGETS.
        fix: write a mended copy here (.onnx files only); the findings are then those that are left.
        verify: ask the parser of TensorRT-RTX as well.

    Returns:
        {verdict: ok | silent | refused, findings: [{part, node, rule, severity, effect, mend, targets}]}; with `fix`
        also mended: [what was done]; with `verify` also parser: {version, agrees} and parser_parts: {part: {agrees,
        taken, says}}.

    Raises:
        BundleError: no model there, or one that cannot be read or written.
        EngineError: `verify` without TensorRT-RTX.
    """
    model = Path(model)
    parts = _bundle_parts(model) if model.is_dir() else [_Part(model.stem, model, lambda: _content(model))]
    extra: dict[str, Any] = {}
    if fix is not None:
        if model.is_dir():
            raise BundleError(f"--fix mends one .onnx file and {model} is a bundle; give it one of the files in parts/")
        mended, extra["mended"] = mend(parts[0].view())
        _write(fix, mended)
        parts = [_Part(model.stem, fix, lambda: mended)]
    found = {part.name: _findings(part.view(), targets) for part in parts}
    if verify:
        extra |= _verified(parts, found if "rtx" in targets else {part.name: _findings(part.view()) for part in parts})
    rows = [{"part": part, **asdict(one)} for part, findings in found.items() for one in findings]
    return {"verdict": verdict([one for findings in found.values() for one in findings]), "findings": rows, **extra}


def inspect(model: bytes, targets: Sequence[str] = TARGETS) -> list[Finding]:
    """What is wrong with a serialized model, the worst first.

    Raises:
        BundleError: it is no whole ONNX model.
    """
    return _findings(View(model), targets)


def _findings(view: View, targets: Sequence[str] = TARGETS) -> list[Finding]:
    """The findings that concern `targets`, the worst first; each node and rule once."""
    if unknown := sorted({*targets} - {*TARGETS}):
        raise BundleError(f"there is no target {unknown[0]!r}; the targets are {', '.join(TARGETS)}")
    found: dict[tuple[Any, ...], Finding] = {}
    for rules in (parser_findings, qdq_findings, placement_findings, numeric_findings):
        for finding in rules(view):
            concerned = tuple(target for target in finding.targets if target in targets)
            if concerned:
                key = finding.node, finding.rule, finding.severity, finding.effect
                found.setdefault(key, replace(finding, targets=concerned))
    return sorted(found.values(), key=lambda finding: _ORDER[finding.severity])


def _bundle_parts(folder: Path) -> list[_Part]:
    bundle = Bundle.open(folder)
    chosen = COMPILED_SET if COMPILED_SET in bundle.info.parts else "fp32"
    bundle.part_info(chosen, HEAD)  # refuses a bundle without parts
    return [
        _Part(name, folder / info.file, partial(bundle.part, chosen, name))
        for name, info in bundle.info.parts[chosen].items()
    ]


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file() or size > LARGEST_FILE:
            found = f"has {size / 2**30:.1f} GiB, an ONNX file at most 2" if path.is_file() else "is no file"
            raise BundleError(f"{path} {found}; save the model with its weights in a file of their own")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); give an .onnx file or a bundle") from None


def _write(path: Path, model: bytes) -> None:
    try:
        write_atomic(path, model)
    except OSError as error:
        raise BundleError(f"{path} cannot be written ({error.strerror}); choose another place for --fix") from None


def _verified(parts: Sequence[_Part], found: Mapping[str, Sequence[Finding]]) -> dict[str, Any]:
    """What TensorRT-RTX's parser says of each part, and whether that is what was found."""
    version, answers = ask([part.read() for part in parts], [part.path for part in parts])
    told = {}
    for part, answer in zip(parts, answers, strict=True):
        refused = any(one.severity == "refused" and "rtx" in one.targets for one in found[part.name])
        told[part.name] = {"agrees": answer.taken is not refused, "taken": answer.taken, "says": answer.says}
    return {"parser": {"version": version, "agrees": all(one["agrees"] for one in told.values())}, "parser_parts": told}


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["check", *sys.argv[1:]])
