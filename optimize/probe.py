"""Tries packages and the GPU in processes of their own, since a broken one can end the process that imports it.

Started as `python -m edgefuse.optimize.probe NAME ...`; for each name stdout has a line of JSON, {"trying": name}, and
then one with what was found, {"name": name, "found": {...}}.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from edgefuse.runtime.machine import find_gpu
from edgefuse.runtime.trt_errors import one_line

GPU = "gpu"  # not a package: what `find_gpu` says
TIMEOUT_S = 15.0  # for all names of one process


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one name."""

    works: bool
    version: str | None = None  # of a package that is installed, whether it works or not
    why: str = ""  # it does not work
    gpu: dict[str, Any] | None = None  # the fields of machine.Gpu


def probe(names: Sequence[str], distributions: Mapping[str, Sequence[str]]) -> dict[str, Found]:
    """Import each name, in order, and say what happened.

    Args:
        names: modules, or GPU.
        distributions: module -> the packages that may bring it, for the version where it does not tell its own.
    """
    found: dict[str, Found] = {}
    while left := [name for name in names if name not in found]:
        lines, how = _run(left)
        found |= {line["name"]: Found(**line["found"]) for line in lines if "found" in line}
        trying = next((line["trying"] for line in reversed(lines) if "trying" in line), left[0])
        found.setdefault(trying, Found(works=False, why=how))  # where it ended the process
    return {name: _with_version(one, distributions.get(name, ())) for name, one in found.items()}


def installed_version(distributions: Sequence[str]) -> str | None:
    """Version of the first of these packages that is installed."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def main() -> None:
    """Try every name of the command line."""
    # Libraries that print must not get between the JSON lines.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        print(json.dumps({"trying": name}), file=out)
        print(json.dumps({"name": name, "found": asdict(_try(name))}), file=out)


def _try(name: str) -> Found:
    try:
        if name == GPU:
            return Found(works=True, gpu=asdict(find_gpu()))
        module = importlib.import_module(name)
        version = getattr(module, "__version__", None)
        return Found(works=True, version=None if version is None else str(version))
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            return Found(works=False, why="not installed")
        return Found(works=False, why=one_line(str(error)))
    except BaseException as error:  # also SystemExit: a package may do anything when it is imported
        return Found(works=False, why=one_line(str(error)) or type(error).__name__)


def _run(names: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """The lines of one process, and how it ended."""
    command = [sys.executable, "-m", "edgefuse.optimize.probe", *names]
    try:
        child = subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)
        output, code = child.stdout, child.returncode
        how = f"crashes when it is imported ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
    except subprocess.TimeoutExpired as error:
        output, how = error.stdout or b"", f"hangs when it is imported (more than {TIMEOUT_S:.0f} s)"
    lines = []
    for line in output.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # cut off
            continue
    return lines, how


def _with_version(found: Found, distributions: Sequence[str]) -> Found:
    if found.version is not None or found.gpu is not None:
        return found
    return Found(found.works, installed_version(distributions), found.why)


if __name__ == "__main__":
    main()
