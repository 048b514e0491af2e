"""CUDA is opened by either package, and what is missing is said in one line."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import numpy as np
import pytest

from edgefuse.runtime.cuda import Cuda, CudaKind, as_array, open_cuda
from edgefuse.runtime.cuda_pycuda import PyCuda
from edgefuse.runtime.cuda_runtime import CudaRuntime
from edgefuse.runtime.errors import BackendError, MissingExtraError
from tests.cuda_double import Driver


@pytest.mark.parametrize(
    ("kind", "module", "advice"),
    [
        ("cuda-python", "cuda.bindings", "pip install cuda-python"),
        ("pycuda", "pycuda", r"pip install 'edgefuse\[pycuda\]'"),
    ],
)
def test_a_package_that_is_missing_is_named(
    kind: CudaKind, module: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=advice):
        open_cuda(kind)


def test_without_a_driver_the_default_says_so() -> None:
    with pytest.raises(BackendError, match=r"^no NVIDIA driver"):
        open_cuda("cuda-python")


def test_neither_package_is_imported_before_it_is_opened() -> None:
    code = (
        "import sys, edgefuse.runtime.cuda, edgefuse.runtime.cuda_pycuda, edgefuse.runtime.cuda_runtime\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('cuda', 'pycuda', 'torch')])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_both_implementations_have_all_of_the_protocol() -> None:
    wanted = {name for name in (*vars(Cuda), *Cuda.__annotations__) if not name.startswith("_")}
    for implementation in (CudaRuntime(Driver().runtime), PyCuda):
        assert {name for name in wanted if not hasattr(implementation, name)} <= {"is_integrated"}
    assert {CudaRuntime.name, PyCuda.name} == set(get_args(CudaKind))


def test_an_array_at_an_address_is_that_memory() -> None:
    memory = np.arange(16, dtype=np.uint8)
    array = as_array(memory.ctypes.data + 4, 8)  # [8]
    array[0] = 99
    assert memory[4] == 99
    assert array.tolist() == [99, *range(5, 12)]
