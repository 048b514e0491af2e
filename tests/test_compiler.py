"""The compiler's process: which TensorRT it takes, and one code for TensorRT and TensorRT-RTX.

Where no GPU is, the real module of TensorRT-RTX stands in for `tensorrt`: the same names, and no list of GPUs.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from edgefuse.optimize import compiler
from edgefuse.optimize.compiler import Job, parser_errors, workspace_bytes
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.plan import parse_layers, summary
from edgefuse.runtime.bundle import HEAD
from tests.optimize_fixtures import PARTS

MODEL = to_fp16(Graph(PARTS[HEAD])).serialize()
# What a machine with a GPU would have: an engine that can be loaded and asked.
WITH_GPU = """
import json
from tensorrt_rtx import *
__version__ = "10.3.0"
class Runtime:
    def __init__(self, logger): pass
    def deserialize_cuda_engine(self, plan): return self
    def create_engine_inspector(self): return Inspector()
    def create_execution_context(self): return Context()
class Context:
    def __init__(self): self.batches, self.is_inferred = [], False
    def set_input_shape(self, name, shape):
        self.batches.append(shape[0])
        return True
    def infer_shapes(self):
        self.is_inferred = True
        return []
class Inspector:
    execution_context = None
    def get_engine_information(self, form):
        its = self.execution_context
        assert its is None or its.is_inferred and len(its.batches) == 4, "as many inputs as the head has"
        sizes = [its.batches[0] if its else -1, 8]
        read, written = ({"Name": name, "Dimensions": sizes, "Datatype": "Half"} for name in "xy")
        layer = {"Name": "raw \\x1e control", "LayerType": "gemm", "Inputs": [read], "Outputs": [written]}
        return json.dumps({"Layers": [layer]}).replace("\\\\u001e", "\\x1e")
"""


def stand_in(folder: Path, code: str = "from tensorrt_rtx import *\n__version__ = '10.3.0'") -> Path:
    """A folder with a module `tensorrt`."""
    folder.mkdir(exist_ok=True)
    (folder / "tensorrt.py").write_text(code)
    return folder


def compiled(job: Job, path: Path, model: bytes = MODEL) -> tuple[list[dict], str]:
    """The lines that the compiler's process says, and its log."""
    child = subprocess.run(
        [sys.executable, "-m", "edgefuse.optimize.compiler"],
        input=json.dumps(asdict(job)).encode() + b"\n" + model,
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(path)},
    )
    return [json.loads(line) for line in child.stdout.splitlines()], child.stderr.decode(errors="replace")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Build for `tensorrt`, with a timing cache."""
    return Job("tensorrt", (), 4, str(tmp_path / "head.engine"), str(tmp_path / "timing.cache"), 2)


def test_tensorrt_runs_the_same_code(job: Job, tmp_path: Path) -> None:
    (*events, answer), log = compiled(job, stand_in(tmp_path / "modules"))
    built = answer["built"]
    assert built["engine_sha256"] == hashlib.sha256(Path(job.engine).read_bytes()).hexdigest()
    assert built["hardware_compatibility"] == "NONE"
    assert set(built["profiles"]) == {"image_tokens", "audio_tokens", "text_tokens", "presence"}
    assert built["profiles"]["presence"] == [[1, 3], [1, 3], [4, 3]]
    assert log.count("Layers:") == 1  # no second plan
    assert any(event.get("phase") == "Building engine" for event in events)


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_the_timing_cache_is_kept_and_a_damaged_one_is_made_anew_with_a_word(
    job: Job, tmp_path: Path, content: bytes | None
) -> None:
    cache = Path(str(job.timing_cache))
    if content is not None:
        cache.write_bytes(content)
    events, _ = compiled(job, stand_in(tmp_path / "modules"))
    notes = [event["note"] for event in events if str(cache) in event.get("note", "")]
    assert notes == ([] if content is None else [f"{cache} cannot be used and is made anew"])
    assert "built" in events[-1]
    assert cache.read_bytes()[:4] == b"ptrt"  # as TensorRT writes it


@pytest.mark.parametrize("runtime", ["pass", "raise TypeError('pybind11::init(): factory function returned nullptr')"])
def test_an_engine_that_cannot_be_asked_has_no_plan_and_that_is_said(job: Job, tmp_path: Path, runtime: str) -> None:
    code = WITH_GPU.replace("__init__(self, logger): pass", f"__init__(self, logger): {runtime}")
    code = code.replace("return self\n    def create", "return None\n    def create")
    events, _ = compiled(replace(job, timing_cache=None), stand_in(tmp_path / "modules", code))
    (note,) = (event["note"] for event in events if "note" in event)
    assert note.startswith("TensorRT tells nothing of the kernels it chose: ")
    assert "\n" not in note
    assert events[-1]["built"]["plan"] is None
    assert not Path(str(job.timing_cache)).exists()


def test_with_a_gpu_the_plan_is_told_as_the_inspector_has_it(job: Job, tmp_path: Path) -> None:
    events, _ = compiled(job, stand_in(tmp_path / "modules", WITH_GPU))
    plan = events[-1]["built"]["plan"]
    assert "raw \x1e control" in plan
    assert summary(parse_layers(plan))["bytes_touched"] == 2 * 8 * 2  # of the smallest batch, though up to 4 may run
    assert not [event for event in events if "note" in event]


@pytest.mark.parametrize(
    ("works", "fails"),
    [
        ("return Context()", "return None"),
        ("return True", "return False"),
        ("return []", "return ['presence']"),
        ("return []", "raise RuntimeError('Shape inference failed.')"),
    ],
)
def test_sizes_that_tensorrt_does_not_tell_are_said_and_the_kernels_told(
    job: Job, tmp_path: Path, works: str, fails: str
) -> None:
    assert WITH_GPU.count(works) == 1
    events, _ = compiled(job, stand_in(tmp_path / "modules", WITH_GPU.replace(works, fails)))
    (note,) = (event["note"] for event in events if "note" in event)
    assert note.startswith("TensorRT tells no sizes of what its kernels read and write: ")
    told = summary(parse_layers(events[-1]["built"]["plan"]))
    assert (told["kernels"], told["bytes_touched"]) == (1, None)


def test_all_errors_of_a_parser_are_told() -> None:
    class Error:
        def __init__(self, name: str, description: str) -> None:
            self.node_name, self.node_operator, self.desc = (lambda: name), (lambda: "Op"), (lambda: description)

    noise = (
        "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In x at y:250 (cudaError 35: no driver))"
    )
    assert parser_errors([Error("a", f"bad\n{noise}"), Error("", "no model")]) == "Op 'a': bad; no model"
    assert "see the log" in parser_errors([])


def test_the_workspace_is_half_of_the_free_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, expected in ((None, 2 << 30), (64 << 30, 2 << 30), (1 << 30, 1 << 29)):
        monkeypatch.setattr(compiler, "free_memory_bytes", lambda free=free: free)
        assert workspace_bytes() == expected
