"""Lets mypy read our TensorRT code against the real API of a TensorRT version, on a machine that cannot run it.

NVIDIA's binding wheels are about 1 MB each and need only nine C functions of the TensorRT libraries to be imported. So:
get the wheel, put empty libraries beside it, import it in a process of its own, write down what it has as a type stub,
and run mypy with that stub under the name `tensorrt`. Wheels are kept in the user's cache; nothing of them is in this
repository.

`python tests/trt_conformance.py MODULE` prints the stub of an installed module.
"""

from __future__ import annotations

import importlib
import inspect
import keyword
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("train", "optimize", "runtime", "benchmarks")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgefuse" / "trt-bindings"

LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
SYMBOLS = (  # what the bindings want of the libraries, by `nm --dynamic --undefined-only`
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


T = TypeVar("T")


class NotAvailableError(Exception):
    """The bindings cannot be had here; says why in one line."""


@dataclass(frozen=True)
class Bindings:
    """One version of TensorRT's Python binding."""

    package: str  # as pip calls it
    version: str  # the full one

    @property
    def major(self) -> str:
        """What its libraries end in."""
        return self.version.split(".")[0]


def available(make: Callable[[], T]) -> T:
    """What `make` makes; where that cannot be had, the test is skipped, or fails where it must not be."""
    try:
        return make()
    except NotAvailableError as error:
        if os.environ.get("EDGEFUSE_CONFORMANCE") == "require":
            pytest.fail(str(error))
        pytest.skip(str(error))


def download(bindings: Bindings, cache: Path = CACHE) -> Path:
    """The wheel for this Python, from the cache or by pip.

    Raises:
        NotAvailableError: pip cannot get it, as without a network.
    """
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    pattern = f"{bindings.package.replace('-', '_')}-{bindings.version}-{tag}-*.whl"
    if not list(cache.glob(pattern)):
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(cache)]
        wanted = f"{bindings.package}=={bindings.version}"
        told = subprocess.run([*command, "--quiet", wanted], capture_output=True, text=True, check=False)
        if not list(cache.glob(pattern)):
            why = (told.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            raise NotAvailableError(f"{wanted} cannot be downloaded for {tag}: {why}")
    return next(iter(cache.glob(pattern)))


def write_stub(bindings: Bindings, folder: Path, cache: Path = CACHE) -> Path:
    """Write tensorrt/__init__.pyi of one version into `folder` and return `folder`.

    Raises:
        NotAvailableError: no wheel, no C compiler, or it does not import.
    """
    with zipfile.ZipFile(download(bindings, cache)) as wheel:
        wheel.extractall(folder / "wheel")
    libraries = _empty_libraries(bindings.major, folder / "libraries")
    environment = {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(folder / "wheel")}
    return _save(_stub_of("tensorrt_bindings", environment), folder)


def write_installed_stub(module: str, folder: Path) -> Path:
    """The same for a module that is installed here."""
    return _save(_stub_of(module, {}), folder)


def files_to_check() -> list[Path]:
    """Every file of ours that imports `tensorrt`."""
    files = (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))
    return [path for path in files if re.search(r"^\s*import tensorrt\b", path.read_text("utf-8"), re.MULTILINE)]


def complaints(sources: Sequence[Path], stubs: Path, folder: Path) -> list[str]:
    """What mypy says of `sources` with the stubs of `stubs`; `folder` is for its files."""
    package = folder / "edgefuse"
    package.mkdir(parents=True, exist_ok=True)
    for room in ROOMS:  # mypy finds a package by its folder
        if not (package / room).exists():
            (package / room).symlink_to(ROOT / room)
    config = folder / "mypy.ini"
    config.write_text(
        f"[mypy]\nmypy_path = {stubs}:{folder}\nfollow_imports = silent\ncheck_untyped_defs = True\n"
        "explicit_package_bases = True\nnamespace_packages = True\n"
    )
    # A file of ours by its module's name, so that it is the one that the others import.
    named = [
        package / path.relative_to(ROOT) if path.is_relative_to(ROOT) and path.exists() else path for path in sources
    ]
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(folder / "cache")]
    told = subprocess.run(
        [*command, "--no-error-summary", *map(str, named)], capture_output=True, text=True, cwd=folder, check=False
    )
    if told.returncode not in (0, 1):
        raise RuntimeError(f"mypy failed: {told.stdout}{told.stderr}")
    return told.stdout.splitlines()


def _empty_libraries(major: str, folder: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        raise NotAvailableError("no C compiler (cc) to make empty libraries with")
    folder.mkdir(parents=True)
    source = folder / "empty.c"
    source.write_text("".join(f"void {symbol}(void) {{}}\n" for symbol in SYMBOLS))
    for library in LIBRARIES:
        output = folder / f"lib{library}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(output), str(source)], check=True)
    return folder


def _stub_of(module: str, environment: dict[str, str]) -> str:
    told = subprocess.run(
        [sys.executable, __file__, module],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode != 0:
        raise NotAvailableError(f"{module} does not import: {told.stderr.strip().splitlines()[-1]}")
    return told.stdout


def _save(stub: str, folder: Path) -> Path:
    (folder / "tensorrt").mkdir(parents=True)
    (folder / "tensorrt" / "__init__.pyi").write_text(stub)
    return folder


class StubWriter:
    """Writes the names of a pybind11 module as a type stub; types other than its own classes become Any."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.package = module.__name__.split(".")[0]

    def lines(self) -> Iterator[str]:
        """The stub."""
        yield "# mypy: ignore-errors"  # some classes narrow what their base has
        yield "import builtins"  # the module has a `bool` of its own
        yield "from collections.abc import Iterator"
        yield "from typing import Any, ClassVar"
        yield "__version__: str"
        for name, value in sorted(vars(self.module).items()):
            if name.startswith("_") or inspect.ismodule(value):
                continue
            if inspect.isclass(value):
                yield from self._class(name, value, "") if self._is_ours(value) else [f"{name}: Any"]
            elif callable(value):
                yield f"def {name}(*args: Any, **options: Any) -> Any: ..."
            else:
                yield f"{name}: {self._type(type(value).__name__)}"

    def _class(self, name: str, cls: type, indent: str) -> Iterator[str]:
        bases = ", ".join(base.__name__ for base in cls.__bases__ if self._is_ours(base))
        yield f"{indent}class {name}({bases}):"
        inner = indent + "    "
        yield f"{inner}def __init__(self, *args: Any, **options: Any) -> None: ..."
        if name == "IHostMemory":  # pybind11 has no name for the buffer protocol
            yield f"{inner}def __buffer__(self, flags: int, /) -> memoryview: ..."
        members = vars(cls)
        if "__getitem__" in members and "__len__" in members:
            yield f"{inner}def __iter__(self) -> Iterator[Any]: ..."
        for member, value in sorted(members.items()):
            if member in ("__int__", "__len__"):
                yield f"{inner}def {member}(self) -> int: ..."
            elif member == "__getitem__":
                yield f"{inner}def __getitem__(self, index: Any) -> Any: ..."
            elif not member.startswith("_"):
                yield from self._member(member, value, cls, inner)

    def _member(self, name: str, value: Any, cls: type, indent: str) -> Iterator[str]:
        if inspect.isclass(value):
            yield from self._class(name, value, indent)
        elif isinstance(value, property):
            returned = self._type(_signature(value.fget.__doc__)[1])
            yield f"{indent}@property"
            yield f"{indent}def {name}(self) -> {returned}: ..."
            if value.fset is not None:
                yield f"{indent}@{name}.setter"
                yield f"{indent}def {name}(self, value: Any) -> None: ..."
        elif isinstance(value, staticmethod):
            yield f"{indent}@staticmethod"
            yield f"{indent}def {name}(*args: Any, **options: Any) -> Any: ..."
        elif callable(value):
            arguments, returned = _signature(value.__doc__)
            given = "*args: Any, **options: Any" if arguments is None else ", ".join(map(_argument, arguments[1:]))
            yield f"{indent}def {name}(self, {given}) -> {self._type(returned)}: ..."
        else:
            yield f"{indent}{name}: ClassVar[{self._type(type(value).__qualname__)}]"

    def _type(self, told: str) -> str:
        """A class of the module by its name there, a plain type as it is, Any for the rest."""
        if told in ("int", "bool", "str", "float"):
            return f"builtins.{told}"
        if told == "None":
            return told
        path = [word for word in told.split(".") if not word.startswith("tensorrt")]
        found: Any = self.module
        for word in path:
            found = getattr(found, word, None)
        return ".".join(path) if inspect.isclass(found) and self._is_ours(found) else "Any"

    def _is_ours(self, cls: type) -> bool:
        return cls.__module__.split(".")[0].startswith("tensorrt")


def _signature(doc: str | None) -> tuple[list[str] | None, str]:
    """Arguments and returned type by the first line of pybind11's docstring; None for arguments that are not told."""
    lines = (doc or "").strip().splitlines()
    overloads = [line for line in lines if re.match(r"\d+\. \w+\(", line)]
    found = re.match(r"(?:\d+\. )?\w*\((?P<arguments>.*)\) -> (?P<returned>.+)$", (overloads or lines or [""])[0])
    if found is None:
        return None, "Any"
    words = _split(found["arguments"])
    names = [word.partition(":")[0].strip() for word in words]
    has_default = ["=" in word for word in words]
    plain = all(name.isidentifier() and not keyword.iskeyword(name) for name in names)
    usable = plain and has_default == sorted(has_default) and not overloads
    return (words if usable else None), found["returned"]


def _split(arguments: str) -> list[str]:
    """Split at the commas that are not inside of brackets."""
    words, depth = [""], 0
    for character in arguments:
        depth += (character in "[(<{") - (character in "])>}")
        if character == "," and depth == 0:
            words.append("")
        else:
            words[-1] += character
    return [word.strip() for word in words if word.strip()]


def _argument(told: str) -> str:
    """`flags: int = 0` becomes `flags: Any = ...`."""
    name, _, rest = told.partition(":")
    return f"{name.strip()}: Any" + (" = ..." if "=" in rest else "")


if __name__ == "__main__":
    print("\n".join(StubWriter(importlib.import_module(sys.argv[1])).lines()))
