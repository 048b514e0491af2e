"""Which package a target means, in plain words where it is of no use; one of the two in a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tensorrt_rtx

from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.trt_package import load_package, too_old


def stand_in(folder: Path, code: str) -> Path:
    """A folder with a module `tensorrt`."""
    (folder / "tensorrt.py").write_text(code)
    return folder


def test_a_package_that_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"needs the Python package tensorrt, which is not installed: .*JetPack.*pip"):
        load_package("tensorrt")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "raise ImportError('libnvinfer.so.10: cannot open shared object file')",
            r"cannot be loaded \(libnvinfer.so.10",
        ),
        ("import a_package_that_it_needs", r"cannot be loaded \(No module named 'a_package_that_it_needs'\)"),
        ("__version__ = '8.6.1'", r"needs tensorrt 10.3 or newer, 8.6.1 is installed: .* comes with JetPack 6.1"),
        ("__version__ = '10.2.0.post1'", "needs tensorrt 10.3 or newer, 10.2.0.post1 is installed"),
    ],
)
def test_a_package_that_is_of_no_use_is_said_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, why: str
) -> None:
    monkeypatch.syspath_prepend(stand_in(tmp_path, code))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EngineError, match=why) as error:
        load_package("tensorrt")
    assert "\n" not in str(error.value)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)


def test_the_versions_of_today_are_not_too_old() -> None:
    assert not too_old("tensorrt-rtx", tensorrt_rtx.__version__)
    assert not any(too_old("tensorrt", version) for version in ("10.3.0", "10.16.2.10", "11.4.0.106"))


def said(code: str) -> str:
    """What a process of its own prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


USE = """
from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.trt_package import use_package
def use(target, option="--target"):
    try: return use_package(target, option).__name__
    except EngineError as error: return str(error)
"""


def test_tensorrt_means_the_package_that_was_chosen() -> None:
    code = USE + "print(use('tensorrt-rtx'), use('tensorrt-rtx'))\nimport tensorrt\nprint(tensorrt.__name__)"
    assert said(code) == "tensorrt_rtx tensorrt_rtx\ntensorrt_rtx"


def test_the_other_package_in_the_same_process_is_refused(tmp_path: Path) -> None:
    stand_in(tmp_path, "__version__ = '10.3.0'")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{USE}"
    assert said(path + "print(use('tensorrt'), use('tensorrt'), use('tensorrt-rtx', '--backend'))") == (
        "tensorrt tensorrt --backend tensorrt-rtx needs tensorrt_rtx, and this process has loaded tensorrt, which has "
        "the same classes: use each in a process of its own"
    )
    told = said(path + "use('tensorrt-rtx'); print(use('tensorrt'))")
    assert told.startswith("--target tensorrt needs tensorrt, and this process has loaded tensorrt_rtx")
