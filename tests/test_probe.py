"""Packages that work, that are missing and that break the process which imports them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefuse.optimize import probe as module
from edgefuse.optimize.probe import GPU, Found, installed_version, probe

BROKEN = {
    "a_good_one": "__version__ = '1.2'",
    "a_loud_one": "print('hello on stdout')",
    "one_without_its_library": "raise ImportError('libx.so.1:\\n  no such file')",
    "one_that_needs_another": "import a_package_that_is_nowhere",
    "one_that_leaves": "raise SystemExit",
    "one_that_crashes": "import ctypes; ctypes.string_at(0)",
    "one_that_exits": "import os; os._exit(7)",
    "a_last_one": "__version__ = 3",
}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the modules of BROKEN, on the path of every process that is started."""
    for name, code in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("packages")
def test_each_package_is_told_whatever_the_others_do() -> None:
    names = [*BROKEN, "a_package_that_is_nowhere", "nowhere.inside"]
    assert probe(names, {}) == {
        "a_good_one": Found(True, "1.2"),
        "a_loud_one": Found(True),
        "one_without_its_library": Found(False, why="libx.so.1: no such file"),
        "one_that_needs_another": Found(False, why="No module named 'a_package_that_is_nowhere'"),
        "one_that_leaves": Found(False, why="SystemExit"),
        "one_that_crashes": Found(False, why="crashes when it is imported (SIGSEGV)"),
        "one_that_exits": Found(False, why="crashes when it is imported (exit code 7)"),
        "a_last_one": Found(True, "3"),
        "a_package_that_is_nowhere": Found(False, why="not installed"),
        "nowhere.inside": Found(False, why="not installed"),
    }


def test_a_package_that_hangs_is_given_up(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (packages / "one_that_hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(module, "TIMEOUT_S", 2.0)
    assert probe(["one_that_hangs"], {}) == {
        "one_that_hangs": Found(False, why="hangs when it is imported (more than 2 s)")
    }


def test_the_version_of_a_broken_package_is_that_of_its_distribution(packages: Path) -> None:
    (packages / "pytest_broken.py").write_text("raise ImportError('x')")
    found = probe(["pytest_broken"], {"pytest_broken": ("not-this-one", "pytest")})
    assert found == {"pytest_broken": Found(False, pytest.__version__, "x")}
    assert installed_version(("not-this-one",)) is None


def test_the_gpu_is_asked_too() -> None:
    found = probe([GPU], {})[GPU]
    assert found.works == (found.gpu is not None)
    assert found.works or found.why
