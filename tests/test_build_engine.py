"""Building: real engines from the real compiler, kept where they fit, and every failure in one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tensorrt_rtx
from onnx import TensorProto, helper, numpy_helper

from edgefuse.optimize import build_engine, compiler
from edgefuse.optimize.build_engine import PORTABLE_SM, build
from edgefuse.optimize.compiler import Job, gpu_sm, load_package, parser_errors, workspace_bytes
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.runtime.bundle import HEAD, Bundle, PartInfo, part_file
from edgefuse.runtime.engines import engine_file, open_engine, read_sidecar
from edgefuse.runtime.errors import BundleError, EngineError
from tests.optimize_fixtures import MODALITIES, PARTS, write_parts_bundle

RTX = "tensorrt-rtx"
ALL_PARTS = (*MODALITIES, HEAD)


def with_parts(bundle: Bundle, part_set: str, parts: dict[str, bytes]) -> Bundle:
    files = {part_file(part_set, part): model for part, model in parts.items()}
    listed = {part: PartInfo(file=part_file(part_set, part), precision="fp16") for part in parts}
    return bundle.updated(files, parts={**bundle.info.parts, part_set: listed})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A bundle with engines, and what `build` said; read only."""
    folder = tmp_path_factory.mktemp("built") / "bundle"
    bundle = write_parts_bundle(folder)
    with_parts(bundle, "trt", {part: to_fp16(Graph(model)).serialize() for part, model in PARTS.items()})
    return folder, build(folder, sm=(86, 89))


@pytest.fixture
def copy(built: tuple[Path, dict], tmp_path: Path) -> Path:
    """A copy of that bundle that a test may change."""
    return Path(shutil.copytree(built[0], tmp_path / "bundle"))


def test_each_part_becomes_an_engine_with_its_sidecar(built: tuple[Path, dict]) -> None:
    folder, told = built
    bundle = Bundle.open(folder)
    assert [Path(engine["path"]).stem for engine in told["engines"]] == list(ALL_PARTS)
    for part, engine in zip(ALL_PARTS, told["engines"], strict=True):
        data = open_engine(bundle, RTX, part, sm=86, version=tensorrt_rtx.__version__)
        assert data[:4] == b"vtrt"
        assert data[32] == 0x04 | 0x08  # SM 86 and 89 in TensorRT-RTX's own header
        sidecar = read_sidecar(folder, RTX, part)
        assert sidecar is not None
        assert (sidecar.sm, sidecar.batch) == ((86, 89), (1, 1, 8))
        assert sidecar.kernels == engine["kernels"] > 0
        assert sidecar.bytes_touched == engine["bytes_touched"] > 0  # at batch 1, so no size is free
        assert engine["reused"] is False
        assert engine["target"] == RTX
        assert "Engine generation completed" in engine_file(folder, RTX, part, ".log").read_text()


def test_engines_that_fit_are_kept(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_engine, "_compile", None)  # would be called
    assert all(engine["reused"] for engine in build(copy, sm=(89, 86))["engines"])


@pytest.mark.parametrize("change", ["source", "batch", "sm", "engine", "sidecar", "version"])
def test_an_engine_that_does_not_fit_is_built_again(copy: Path, change: str) -> None:
    options: dict = {"sm": (86, 89)}
    sidecar = engine_file(copy, RTX, "image", ".json")
    if change == "source":
        bundle = Bundle.open(copy)
        graph = Graph(bundle.part("trt", "image"))
        graph.nodes[0].name = "renamed"
        bundle.updated({part_file("trt", "image"): graph.serialize()})
    elif change in ("batch", "sm"):
        options = {"sm": (86,)} if change == "sm" else {"sm": (86, 89), "max_batch": 2}
    elif change == "engine":
        path = engine_file(copy, RTX, "image")
        path.write_bytes(path.read_bytes()[:-1])
    elif change == "sidecar":
        sidecar.write_text("not json")
    else:
        sidecar.write_text(sidecar.read_text().replace(tensorrt_rtx.__version__, "1.0.0.1"))
    reused = {Path(engine["path"]).stem: engine["reused"] for engine in build(copy, **options)["engines"]}
    assert not reused["image"]
    assert all(reused[part] for part in ("audio", "text", HEAD)) == (change not in ("batch", "sm"))
    assert all(engine["reused"] for engine in build(copy, **options)["engines"])


def test_without_sm_the_engine_is_portable(copy: Path) -> None:
    build(copy, max_batch=1)
    sidecar = read_sidecar(copy, RTX, HEAD)
    assert sidecar is not None
    assert (sidecar.sm, sidecar.batch) == (PORTABLE_SM, (1, 1, 1))


def refused(folder: Path, message: str, **options: object) -> str:
    with pytest.raises(EngineError, match=message) as error:
        build(folder, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_gpu_is_refused_with_those_that_exist(copy: Path) -> None:
    refused(copy, r"has no SM 87, only 75, 80, 86, .* for a Jetson use --target tensorrt on the board", sm=(87,))


def test_sm_is_for_rtx_only(copy: Path) -> None:
    refused(copy, "--sm is for tensorrt-rtx", target="tensorrt", sm=(86,))


def test_a_package_that_is_missing_is_said_in_one_line(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    refused(copy, r"needs the Python package tensorrt, which is not installed: .*JetPack.*pip", target="tensorrt")


def test_a_package_without_its_libraries_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EngineError, match=r"which cannot be loaded \(libnvinfer.so.10: .*\): .*JetPack"):
        load_package("tensorrt")


def test_a_bundle_without_trt_parts_is_refused(tmp_path: Path) -> None:
    write_parts_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="has no trt parts, only: fp32; run `edgefuse quantize`"):
        build(tmp_path / "bundle")
    with pytest.raises(BundleError, match="has no cpu parts"):
        build(tmp_path / "bundle", target="cpu")


def test_an_altered_part_is_never_compiled(copy: Path) -> None:
    path = copy / part_file("trt", "text")
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="was altered"):
        build(copy, sm=(86, 89))


def onnx_part(nodes: list, inputs: dict, opset: int = 18, **constants: np.ndarray) -> bytes:
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9).SerializeToString()


def test_the_parser_refusing_is_one_line_that_names_the_node(copy: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "c"], ["y"], name="mixed")]
    with_parts(
        Bundle.open(copy),
        "trt",
        {part: onnx_part(nodes, {"x": ["b", 4]}, c=np.ones(4, np.float32)) for part in ALL_PARTS},
    )
    told = refused(copy, r"image: tensorrt-rtx \S+ refuses the graph: Mul 'mixed': .*Half and Float", sm=(86, 89))
    assert "checkMacros" not in told
    assert "cudaError" not in told
    assert told.endswith(f"(log: {engine_file(copy, RTX, 'image', '.log')})")


def test_a_compiler_that_crashes_is_an_error_and_leaves_the_old_engines(copy: Path) -> None:
    """TensorRT-RTX 1.7 dies of a segmentation fault on attention whose three inputs are one tensor."""
    before = engine_file(copy, RTX, "image").read_bytes()
    nodes = [helper.make_node("Attention", ["x", "x", "x"], ["y"], name="self", q_num_heads=2, kv_num_heads=2)]
    with_parts(Bundle.open(copy), "trt", {part: onnx_part(nodes, {"x": [1, 8, 32]}, opset=23) for part in ALL_PARTS})
    refused(copy, r"image: the tensorrt-rtx compiler was killed by SIG\w+ .* MiB .* \(log: ", sm=(86, 89))
    assert engine_file(copy, RTX, "image").read_bytes() == before
    assert engine_file(copy, RTX, "image", ".json").exists()


def test_all_errors_of_a_parser_are_told() -> None:
    class Error:
        def __init__(self, name: str, description: str) -> None:
            self.node_name, self.node_operator, self.desc = (lambda: name), (lambda: "Op"), (lambda: description)

    noise = (
        "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In x at y:250 (cudaError 35: no driver))"
    )
    assert parser_errors([Error("a", f"bad\n{noise}"), Error("", "no model")]) == "Op 'a': bad; no model"
    assert "see the log" in parser_errors([])


def test_tensorrt_itself_runs_the_same_code(tmp_path: Path) -> None:
    """The module of TensorRT-RTX stands in for tensorrt: same names, no SM list, no second plan."""
    script = (
        "import sys, tensorrt_rtx; sys.modules['tensorrt'] = tensorrt_rtx\n"
        "from edgefuse.optimize.compiler import main; main()"
    )
    job = Job("tensorrt", (), 4, str(tmp_path / "head.engine"))
    child = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(asdict(job)).encode() + b"\n" + to_fp16(Graph(PARTS[HEAD])).serialize(),
        capture_output=True,
        check=True,
    )
    *events, answer = (json.loads(line) for line in child.stdout.splitlines())
    engine = (tmp_path / "head.engine").read_bytes()
    assert answer["built"]["engine_sha256"] == hashlib.sha256(engine).hexdigest()
    assert child.stderr.count(b"Layers:") == 1
    assert {"phase", "total", "completed"} == {key for event in events for key in event}
    (total,) = (event["total"] for event in events if "total" in event)
    completed = [event["completed"] for event in events if "completed" in event]
    assert 0 < completed[0] < completed[-1] <= total
    assert completed == sorted(completed)


def test_the_gpu_is_unknown_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert gpu_sm() == ()


def test_the_workspace_is_half_of_the_free_memory_at_most() -> None:
    assert 0 < workspace_bytes() <= compiler.MAX_WORKSPACE_BYTES


def test_cpu_parts_are_opened_and_run(tmp_path: Path) -> None:
    bundle = with_parts(write_parts_bundle(tmp_path / "bundle"), "cpu", PARTS)
    engines = build(bundle.folder, target="cpu")["engines"]
    assert [Path(engine["path"]) for engine in engines] == [
        bundle.folder / part_file("cpu", part) for part in ALL_PARTS
    ]
    assert all(engine["seconds"] > 0 and engine["kernels"] is None for engine in engines)
    broken = with_parts(bundle, "cpu", {**PARTS, "text": b"not onnx"})
    with pytest.raises(BundleError, match="refuses the graph"):
        build(broken.folder, target="cpu")


def test_ctrl_c_stops_the_compiler_too(copy: Path) -> None:
    for path in (copy / "engines" / RTX).iterdir():
        path.unlink()
    script = f"from edgefuse.optimize.build_engine import build; build({str(copy)!r})"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    children: set[int] = set()
    while not children and parent.poll() is None:
        children = _children(parent.pid)
    parent.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in parent.communicate(timeout=30)[1]
    assert children
    deadline = time.monotonic() + 10
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(child) for child in children)


def _children(pid: int) -> set[int]:
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:
        return set()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
