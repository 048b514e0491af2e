"""Virtual environments of the peers: made by pip, kept from run to run, weighed."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from edgefuse.runtime.errors import BackendError
from edgefuse.runtime.files import write_atomic

SOURCE = Path(__file__).resolve().parents[2]
STAMP = "stamp.json"  # in an environment: what was installed into it, written last
_GPU_FOLDERS = ("nvidia", "triton", "cuda")  # of packages that PyPI's torch brings and a CPU never loads


class NotMeasuredError(BackendError):
    """A peer that this machine cannot install, make or run; the message says why in one line."""


@dataclass(frozen=True, slots=True)
class Weight:
    """What an environment takes on disk; no pip is in it, ours installs into it."""

    installed_bytes: int
    cpu_bytes: int  # the same without GPU libraries: what a build for CPUs would take at least


def build_wheel(folder: Path) -> Path:
    """A wheel of this source as it is now, uncommitted changes of tracked files too, in a folder named by its content.

    Raises:
        NotMeasuredError: pip cannot build it, or this is no checkout.
    """
    commit = _run("git", "-C", str(SOURCE), "stash", "create") or "HEAD"  # prints nothing where nothing is changed
    content = _run("git", "-C", str(SOURCE), "rev-parse", f"{commit}^{{tree}}")
    wheels = folder / f"wheel-{content[:12]}"
    if not (found := list(wheels.glob("*.whl"))):
        source = wheels / "source"
        archive = subprocess.run(["git", "-C", str(SOURCE), "archive", commit], stdout=subprocess.PIPE, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(source, filter="data")
        _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(source))
        shutil.rmtree(source)
        found = list(wheels.glob("*.whl"))
    return found[0]


def environment(folder: Path, wheel: Path, extras: str, packages: Sequence[str]) -> Path:
    """The Python of an environment that has edgefuse[extras] and `packages`; made where it is not there as asked.

    Raises:
        NotMeasuredError: a package does not install.
    """
    python, stamp = folder / "bin" / "python", folder / STAMP
    asked = {"extras": extras, "packages": list(packages), "wheel": str(wheel)}
    found = json.loads(stamp.read_bytes()) if stamp.exists() else {}
    if found == asked:
        return python
    stamp.unlink(missing_ok=True)
    ours = f"edgefuse[{extras}] @ {wheel.resolve().as_uri()}" if extras else str(wheel)
    if found and {**found, "wheel": asked["wheel"]} == asked:  # only our source has changed
        _pip("--python", str(python), "install", "--no-compile", "--no-deps", "--force-reinstall", str(wheel))
    else:
        if folder.exists():
            shutil.rmtree(folder)
        _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
        _pip("--python", str(python), "install", "--no-compile", ours, *packages)  # the uncounted start compiles
    write_atomic(stamp, json.dumps(asked).encode())
    return python


def described(folder: Path, packages: Sequence[str]) -> dict[str, Any]:
    """{disk, versions} of an environment: its weight, and what it holds of `packages` and of what computes."""
    found = distributions(path=[str(path) for path in _packages(folder)])
    held = {_plain(each.name): each.version for each in found}
    names = [_plain(re.split(r"[^\w.-]", package)[0]) for package in (*packages, "onnxruntime", "torch")]
    return {"disk": asdict(weigh(folder)), "versions": {name: held[name] for name in names if name in held}}


def weigh(folder: Path) -> Weight:
    """What is below site-packages of the environment in `folder`."""
    whole = on_cpu = 0
    for packages in _packages(folder):
        for path in packages.rglob("*"):
            parts = path.relative_to(packages).parts
            if "__pycache__" in parts or not path.is_file():
                continue
            size = path.stat().st_size
            whole += size
            if not parts[0].startswith(_GPU_FOLDERS) and not (".so" in path.name and "cuda" in path.name):
                on_cpu += size
    return Weight(whole, on_cpu)


def _packages(folder: Path) -> list[Path]:
    return list(folder.glob("lib/python*/site-packages"))


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()  # as PEP 503 compares names


def _pip(*arguments: str) -> None:
    _run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--quiet")


def _run(*command: str) -> str:
    """Standard output of a command.

    Raises:
        NotMeasuredError: it ended with an error; its last line that says so.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMeasuredError(last_line(done.stderr) or f"{command[0]} ended with exit code {done.returncode}")
    return done.stdout.strip()


def last_line(log: str) -> str:
    """The line of a log that says most: the last one with an error, or the last one."""
    lines = [" ".join(line.split()) for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1][:240]
