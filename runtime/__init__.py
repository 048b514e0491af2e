"""What runs on the device: bundle in, answers out (numpy and OpenCV; never torch)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgefuse.runtime.run import run as run


def __getattr__(name: str) -> Any:
    """`edgefuse.runtime.run`, whose imports take a while, when it is first used."""
    if name == "run":
        return importlib.import_module("edgefuse.runtime.run")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
