"""The real TensorRT backend over the doubles of CUDA and TensorRT, on engines of the tiny bundle."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from edgefuse.runtime import backend_trt
from edgefuse.runtime.backend_trt import TrtBackend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.cuda_runtime import CudaRuntime
from edgefuse.runtime.machine import Gpu
from edgefuse.runtime.preprocess import Preprocessor
from tests.cuda_double import Driver
from tests.trt_double import TrtDouble
from tests.trt_plan import GPU_NAME, SM, with_engines

OURS = ("edgefuse.runtime.trt_engine",)  # what imports tensorrt


class Guarded:
    """A Cuda that counts, and refuses what is not inside of `current()`, as pycuda does."""

    def __init__(self, driver: Driver) -> None:
        self._cuda = CudaRuntime(driver.runtime)
        self._driver = driver
        self.depth = 0
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._cuda, name)
        if callable(value):
            self.calls[name] += 1
            if not self.depth and name != "close":
                self._driver.misuses.append(f"{name} outside of current()")
        return value

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1


@dataclass
class Rig:
    """One backend after the other on one GPU."""

    bundle: Bundle
    target: str
    driver: Driver
    trt: TrtDouble = field(init=False)
    cuda: Guarded = field(init=False)

    def __post_init__(self) -> None:
        self.cuda = Guarded(self.driver)
        self.trt = TrtDouble(self.driver, self.target, lambda: self.cuda.depth > 0)

    def open(self) -> TrtBackend:
        """A new backend, on memory of its own."""
        if self.cuda.calls["close"]:
            self.cuda = Guarded(self.driver)
        return TrtBackend(self.bundle, self.target, self.cuda)  # type: ignore[arg-type]


def install(rig: Rig, patch: pytest.MonkeyPatch) -> Rig:
    """Let this process have the doubles and a GPU until the test ends."""
    for name in ("tensorrt", "tensorrt_rtx", *OURS):
        patch.setitem(sys.modules, name, rig.trt.module)
        del sys.modules[name]
    sys.modules[rig.trt.module.__name__] = rig.trt.module
    patch.setattr(backend_trt, "find_gpu", lambda: Gpu(GPU_NAME, SM, "13.0"))
    return rig


def rig_of(bundle: Bundle, target: str, patch: pytest.MonkeyPatch, *, is_integrated: bool = False) -> Rig:
    """A rig on a bundle that gets its engines now."""
    return install(Rig(with_engines(bundle, target), target, Driver(is_integrated)), patch)


def readings(bundle: Bundle, seed: int, batch: int = 1) -> dict[str, dict[str, np.ndarray]]:
    """Random tensors of every modality, as its part takes them."""
    random = np.random.default_rng(seed)
    preprocessor = Preprocessor(bundle)
    found: dict[str, dict[str, np.ndarray]] = {}
    for modality in bundle.info.modalities:
        for name, empty in preprocessor.empty(modality).items():
            shape = (batch, *empty.shape[1:])
            drawn = random.random(shape) if empty.dtype == np.float32 else random.integers(0, 2, shape)
            found.setdefault(modality, {})[name] = drawn.astype(empty.dtype)
    return found
