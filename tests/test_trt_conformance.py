"""Our TensorRT code uses only what TensorRT 10.3 (JetPack 6), 10.16 (JetPack 7.2), 11.4 and TensorRT-RTX really have.

Skipped where NVIDIA's bindings cannot be had; with EDGEFUSE_CONFORMANCE=require in the environment it fails instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.trt_conformance import (
    ROOT,
    Bindings,
    NotAvailableError,
    available,
    complaints,
    download,
    files_to_check,
    write_installed_stub,
    write_stub,
)

JETPACK_6 = Bindings("tensorrt-cu12-bindings", "10.3.0")
JETPACK_7 = Bindings("tensorrt-cu12-bindings", "10.16.1.11")
NEWEST = Bindings("tensorrt-cu13-bindings", "11.4.0.106")
RTX = None  # the installed tensorrt_rtx
ALL = (JETPACK_6, JETPACK_7, NEWEST, RTX)

# Code that must not pass: what it says, and the versions that do not have it.
PLANTED = {
    "flag = trt.BuilderFlag.FP16": (NEWEST, RTX),
    "flag = trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH": (NEWEST, RTX),
    "flag = trt.BuilderFlag.TF32": (),
    "def f(engine: trt.ICudaEngine) -> int: return engine.num_bindings": ALL,
    "def f(engine: trt.ICudaEngine) -> int: return engine.num_io_tensors": (),
    "def f(config: trt.IBuilderConfig) -> None: config.max_workspace_size = 1": ALL,
    "def f(config: trt.IBuilderConfig) -> None: config.num_compute_capabilities = 1": (JETPACK_6, JETPACK_7, NEWEST),
    "def f(builder: trt.Builder) -> bool: return builder.platform_has_fast_int8": (NEWEST, RTX),
    "def f(builder: trt.Builder) -> None: builder.create_builder_config().int8_calibrator = None": (NEWEST, RTX),
    "def f(builder: trt.Builder) -> None: builder.create_network(flag=1)": ALL,
    "def f(network: trt.INetworkDefinition) -> None: network.get_input(0).dynamic_range": (NEWEST, RTX),
}
# The same in our own file: a line of it, and what it would be in old code.
REMOVED = ("trt.BuilderFlag.TF32", "trt.BuilderFlag.INT8")


@dataclass(frozen=True)
class Checked:
    """What mypy said with one version's stub."""

    version: Bindings | None
    ours: list[str]  # of our files
    planted: list[bool]  # whether each of PLANTED was found
    removed: list[str]  # of our file with the line of REMOVED


@pytest.fixture(scope="module", params=ALL, ids=lambda version: version.version if version else "rtx")
def checked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """One run of mypy over our files and over those that must fail."""
    folder = tmp_path_factory.mktemp("conformance")
    version = request.param
    stubs = available(
        lambda: write_stub(version, folder / "stubs") if version else write_installed_stub("tensorrt_rtx", folder / "s")
    )
    planted = [write(folder / f"planted_{number}.py", code) for number, code in enumerate(PLANTED)]
    ours = (ROOT / "optimize/trt_build.py").read_text()
    assert REMOVED[0] in ours
    removed = folder / "removed.py"
    removed.write_text(ours.replace(*REMOVED))
    # One cache for all versions: only the stub differs.
    work = tmp_path_factory.getbasetemp() / "mypy"
    told = complaints([*files_to_check(), *planted, removed], stubs, work)
    errors = [line for line in told if ": error: " in line]

    def of(path: Path) -> list[str]:
        return [line for line in errors if Path(line.split(":")[0]).name == path.name]

    known = {path.name for path in (*planted, removed)}
    return Checked(
        version,
        [line for line in errors if Path(line.split(":")[0]).name not in known],
        [bool(of(path)) for path in planted],
        of(removed),
    )


def write(path: Path, code: str) -> Path:
    path.write_text(f"import tensorrt as trt\n{code}\n")
    return path


def test_our_code_uses_only_what_this_version_has(checked: Checked) -> None:
    assert checked.ours == []


def test_what_a_version_lacks_is_found_and_nothing_else(checked: Checked) -> None:
    expected = [checked.version in lacking for lacking in PLANTED.values()]
    assert dict(zip(PLANTED, checked.planted, strict=True)) == dict(zip(PLANTED, expected, strict=True))


def test_a_removed_attribute_in_our_own_file_is_found(checked: Checked) -> None:
    lacking = checked.version in (NEWEST, RTX)
    assert len(checked.removed) == lacking
    assert all(re.search(r'BuilderFlag.* has no attribute "INT8"', line) for line in checked.removed)


def test_every_file_that_imports_tensorrt_is_checked() -> None:
    assert {path.name for path in files_to_check()} == {"trt_build.py", "trt_callbacks.py", "trt_engine.py"}


def test_a_version_that_cannot_be_downloaded_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NotAvailableError, match=r"tensorrt-cu12-bindings==10\.3\.0 cannot be downloaded for cp3\d+: ."):
        download(JETPACK_6, tmp_path / "cache")
    monkeypatch.setenv("EDGEFUSE_CONFORMANCE", "require")
    with pytest.raises(pytest.fail.Exception):
        available(lambda: write_stub(JETPACK_6, tmp_path / "stubs", tmp_path / "cache"))
    monkeypatch.delenv("EDGEFUSE_CONFORMANCE")
    with pytest.raises(pytest.skip.Exception):
        available(lambda: write_stub(JETPACK_6, tmp_path / "stubs", tmp_path / "cache"))
