"""The Python package of a target, and the one name under which our code imports it: `import tensorrt`.

TensorRT-RTX has the classes of TensorRT under another name; so there is one code for both.
"""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.trt_errors import one_line

PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}  # target -> its module
OLDEST = {"tensorrt-rtx": (1, 0), "tensorrt": (10, 3)}  # the first with strong typing that we build and check against
HOW_TO_GET = {
    "tensorrt-rtx": "pip install 'edgefuse[rtx]'",
    "tensorrt": "on a Jetson use JetPack's (python3 -m venv --system-site-packages), "
    "elsewhere pip install 'edgefuse[tensorrt]' where the GPU is",
}


def load_package(target: str, option: str = "--target") -> Any:
    """The TensorRT module of `target`.

    Args:
        target: key of PACKAGES.
        option: how the user asked for it, for messages.

    Raises:
        EngineError: it is not installed, cannot be loaded, or is too old.
    """
    package = PACKAGES[target]
    try:
        module = importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            found = f"needs the Python package {package}, which is not installed"
        else:
            found = f"needs the Python package {package}, which cannot be loaded ({one_line(str(error))})"
        raise EngineError(f"{option} {target} {found}: {HOW_TO_GET[target]}") from None
    if too_old(target, str(module.__version__)):
        oldest = ".".join(map(str, OLDEST[target]))
        raise EngineError(
            f"{option} {target} needs {package} {oldest} or newer, {module.__version__} is installed: "
            f"{HOW_TO_GET[target]}; TensorRT {oldest} comes with JetPack 6.1"
        )
    return module


def too_old(target: str, version: str) -> bool:
    """Whether this version of a package is older than what we build with."""
    return tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST[target]


def use_package(target: str, option: str = "--target") -> Any:
    """Let `import tensorrt` mean the package of `target` in this process, and return it.

    Raises:
        EngineError: as `load_package`, or this process has the other one, whose classes our modules may hold already.
    """
    other = next(name for key, name in PACKAGES.items() if key != target)
    if _is_loaded(other):
        raise EngineError(
            f"{option} {target} needs {PACKAGES[target]}, and this process has loaded {other}, which has the same "
            "classes: use each in a process of its own"
        )
    module = load_package(target, option)
    sys.modules["tensorrt"] = module
    return module


def _is_loaded(package: str) -> bool:
    """Whether a package was imported here, under its own name."""
    module = sys.modules.get(package)
    return module is not None and str(module.__name__) == package
