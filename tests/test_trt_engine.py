"""The real TensorRT-RTX on a machine without a GPU: as far as it goes, and then one clear line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgefuse.optimize.build_engine import build
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.engines import engine_file
from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.machine import find_gpu
from edgefuse.runtime.trt_errors import NO_GPU
from tests.conftest import Tiny
from tests.trt_plan import with_engines


def has_gpu() -> bool:
    try:
        find_gpu()
    except EngineError:
        return False
    return True


pytestmark = pytest.mark.skipif(has_gpu(), reason="there is a GPU")
TARGET = "tensorrt-rtx"
OPEN = """
import json, sys
from edgefuse.runtime.backend_trt import TrtBackend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import EdgefuseError

def said(work):
    try: return repr(work())
    except EdgefuseError as error: return f"{type(error).__name__}: {error}"

bundle = Bundle.open(sys.argv[1])
"""
# Behind the check for a GPU: the real runtime and real engines.
LOAD = """
from pathlib import Path
from edgefuse.runtime.engines import open_engine
from edgefuse.runtime.trt_package import use_package
use_package("tensorrt-rtx")
from edgefuse.runtime.trt_engine import Engine, open_runtime

runtime = open_runtime("tensorrt-rtx")
def load(data): return said(lambda: Engine(runtime, "the engine", data, Path("cache")))
data = open_engine(bundle, "tensorrt-rtx", "head")
print(json.dumps([load(data), load(data[:-9]), load(b"ftrt" + data[4:]), load(b"?" * 99)]))
"""


@pytest.fixture(scope="module")
def built(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with engines that TensorRT-RTX built."""
    folder = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(tiny.bundle, folder)
    with_engines(Bundle.open(folder), TARGET)  # engines of the double, which the build replaces
    build(folder, target=TARGET, max_batch=4)
    assert engine_file(folder, TARGET, "head").read_bytes()[:4] == b"vtrt"
    return folder


def run(code: str, bundle: Path) -> str:
    """What a process of its own prints; nothing may be on its stderr."""
    told = subprocess.run([sys.executable, "-c", OPEN + code, str(bundle)], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")
    return told.stdout.strip()


def test_without_a_driver_the_backend_says_so_in_one_line(built: Path) -> None:
    assert run("print(said(lambda: TrtBackend(bundle, 'tensorrt-rtx')))", built) == (
        "EngineError: --backend tensorrt-rtx needs an NVIDIA GPU: no NVIDIA driver (libcuda.so.1 is not there); "
        "--backend cpu needs none"
    )


def test_the_real_runtime_says_in_one_line_why_it_takes_no_engine(built: Path) -> None:
    whole, cut, foreign, rubbish = json.loads(run(LOAD, built))
    assert whole == f"EngineError: the engine cannot be loaded: {NO_GPU}"
    assert cut == "EngineError: the engine cannot be loaded: the engine file is cut off; copy or build it again"
    assert foreign == rubbish
    assert foreign.startswith("EngineError: the engine cannot be loaded: the file is no engine of this program")
