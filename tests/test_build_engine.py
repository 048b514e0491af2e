"""Building: real engines from the real compiler, kept where they fit, and every failure in one line."""

from __future__ import annotations

import errno
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
from onnx import TensorProto, helper, numpy_helper

from edgefuse.optimize import build_engine
from edgefuse.optimize.build_engine import PORTABLE_SM, build
from edgefuse.optimize.compiler import Job
from edgefuse.optimize.finding import Finding
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.runtime.bundle import HEAD, Bundle, PartInfo, part_file
from edgefuse.runtime.engine_header import read_header, same_version
from edgefuse.runtime.engines import Machine, engine_file, open_engine, read_sidecar, staged_file
from edgefuse.runtime.errors import BundleError, EngineError
from edgefuse.runtime.machine import PLATFORM, Gpu
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
        data = open_engine(bundle, RTX, part, Machine(tensorrt_rtx.__version__, 86))
        header = read_header(data)
        assert header is not None
        assert (header.target, header.sm, header.size_bytes) == (RTX, (86, 89), len(data))
        assert same_version(header, tensorrt_rtx.__version__)
        sidecar = read_sidecar(folder, RTX, part)
        assert sidecar is not None
        assert (sidecar.sm, sidecar.batch) == ((86, 89), (1, 1, 8))
        assert (sidecar.platform, sidecar.gpu, sidecar.cuda) == (PLATFORM, None, None)
        assert (sidecar.precision, sidecar.opset) == ("fp16", Graph(bundle.part("trt", part)).opset)
        assert all(shapes[0][0] == 1 and shapes[2][0] == 8 for shapes in sidecar.profiles.values())
        assert sidecar.kernels == engine["kernels"] > 0
        assert sidecar.bytes_touched == engine["bytes_touched"] > 0  # at batch 1, so no size is free
        assert engine["reused"] is False
        assert engine["target"] == RTX
        assert "Engine generation completed" in engine_file(folder, RTX, part, ".log").read_text()


def test_engines_that_fit_are_kept(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_engine, "run_compiler", None)  # would be called
    assert all(engine["reused"] for engine in build(copy, sm=(89, 86))["engines"])


def test_explained_engines_have_their_audit_also_where_they_are_kept(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_engine, "run_compiler", None)  # would be called
    assert all("audit" not in engine for engine in build(copy, sm=(86, 89))["engines"])
    told = build(copy, sm=(86, 89), explain=True)
    for part, engine in zip(ALL_PARTS, told["engines"], strict=True):
        sidecar = read_sidecar(copy, RTX, part)
        assert sidecar is not None
        assert engine["audit"] == sidecar.audit
        assert engine["audit"]["kernels"] == engine["kernels"]
        assert engine["audit"]["macs"]["all"]["not_found"] == 0
    assert [row["part"] for row in told["explained"]] == list(ALL_PARTS)


def test_there_is_no_plan_to_explain_on_a_cpu(copy: Path) -> None:
    refused(copy, "--explain reads TensorRT's plan; ONNX Runtime has none", target="cpu", explain=True)


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


def test_levels_are_for_tensorrt_only(copy: Path) -> None:
    """TensorRT-RTX makes the same plan at every level."""
    refused(copy, "--optimization-level is for tensorrt", optimization_level=5)


def test_a_package_that_is_missing_is_said_in_one_line(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    refused(copy, r"needs the Python package tensorrt, which is not installed: .*JetPack.*pip", target="tensorrt")


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


def mixed_types(folder: Path) -> None:
    """Put parts into a bundle that multiply FP16 by FP32, which strong typing refuses."""
    nodes = [helper.make_node("Mul", ["x", "c"], ["y"], name="mixed")]
    model = onnx_part(nodes, {"x": ["b", 4]}, c=np.ones(4, np.float32))
    with_parts(Bundle.open(folder), "trt", dict.fromkeys(ALL_PARTS, model))


def test_what_the_check_finds_is_refused_before_the_compiler_runs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed_types(copy)
    monkeypatch.setattr(build_engine, "run_compiler", None)  # would be called
    told = refused(copy, rf"^image: tensorrt-rtx {tensorrt_rtx.__version__} would refuse it: mixed: ", sm=(86, 89))
    assert told.count("; ") >= 1  # what to do


def unchecked(monkeypatch: pytest.MonkeyPatch, *found: Finding) -> None:
    """Let the check find `found` and nothing else."""
    monkeypatch.setattr(build_engine, "inspect", lambda model, targets: list(found))


def test_what_would_silently_be_otherwise_is_a_warning(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [
        Finding("conv_1", "a-rule", severity, f"{severity} effect", "do this") for severity in ("silent", "note")
    ]
    unchecked(monkeypatch, *findings)
    engine_file(copy, RTX, HEAD).unlink()
    build(copy, sm=(86, 89))
    told = " ".join(capsys.readouterr().err.split())
    assert "head: conv_1: silent effect; do this" in told
    assert "note effect" not in told


def test_the_parser_refusing_is_one_line_that_names_the_node(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unchecked(monkeypatch)
    before = engine_file(copy, RTX, "image", ".log").read_text(errors="replace")
    mixed_types(copy)
    told = refused(copy, r"image: tensorrt-rtx \S+ refuses the graph: Mul 'mixed': .*Half and Float", sm=(86, 89))
    assert "checkMacros" not in told
    assert "cudaError" not in told
    log = engine_file(copy, RTX, "image", ".failed.log")
    assert told.endswith(f"(log: {log})")
    assert "mixed" in log.read_text(errors="replace")
    assert engine_file(copy, RTX, "image", ".log").read_text(errors="replace") == before  # of the engine that is there


def test_a_compiler_that_crashes_is_an_error_and_leaves_the_old_engines(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX 1.7 dies of a segmentation fault on attention whose three inputs are one tensor."""
    unchecked(monkeypatch)
    before = files_of(copy)
    nodes = [helper.make_node("Attention", ["x", "x", "x"], ["y"], name="self", q_num_heads=2, kv_num_heads=2)]
    with_parts(Bundle.open(copy), "trt", {part: onnx_part(nodes, {"x": [1, 8, 32]}, opset=23) for part in ALL_PARTS})
    refused(copy, r"image: the tensorrt-rtx compiler crashed \(SIG\w+\) at .* MiB .* \(log: ", sm=(86, 89))
    assert files_of(copy) == before


def files_of(folder: Path) -> dict[str, bytes]:
    """The engines of a bundle and what stands beside them, logs of failures left out."""
    files = (folder / "engines" / RTX).iterdir()
    return {path.name: path.read_bytes() for path in files if not path.name.endswith(".failed.log")}


def test_a_full_disk_leaves_the_old_engines(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, sidecar: object) -> None:
        staged_file(folder, RTX, "image").unlink()
        raise OSError(errno.ENOSPC, "No space left on device")

    before = files_of(copy)
    monkeypatch.setattr(build_engine, "write_sidecar", full)
    with pytest.raises(OSError, match="No space left"):
        build(copy, sm=(86,))
    assert files_of(copy) == before
    assert open_engine(Bundle.open(copy), RTX, "image", Machine(sm=89))


def test_what_tensorrt_tunes_for_one_gpu_is_built_again_on_another(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for TensorRT and for the GPU: what is asked of the compiler, and what stands in the sidecar."""
    jobs: list[Job] = []

    def compile_(job: Job, model: bytes, log: Path, **shown: Any) -> dict[str, Any]:
        jobs.append(job)
        plan = b"ftrt" + bytes(20) + bytes((10, 3, 0, 26)) + model[:9]
        Path(job.engine).write_bytes(plan)
        log.write_text("a log")
        kernels = '{"Layers": [{"Name": "k", "LayerType": "gemm", "Inputs": [], "Outputs": []}], "Bindings": []}'
        digest = hashlib.sha256(plan).hexdigest()
        return {"engine_sha256": digest, "seconds": 1.0, "plan": kernels, "hardware_compatibility": "NONE"}

    def on(gpu: Gpu, **options: Any) -> list[bool]:
        monkeypatch.setattr(build_engine, "find_gpu", lambda: gpu)
        return [engine["reused"] for engine in build(copy, target="tensorrt", **options)["engines"]]

    monkeypatch.setattr(build_engine, "run_compiler", compile_)
    monkeypatch.setattr(build_engine, "load_package", lambda target: SimpleNamespace(__version__="10.3.0"))
    orin = Gpu("Orin", 87, "12.6")
    assert on(orin) == [False] * 4
    assert on(orin) == [True] * 4
    assert on(Gpu("Orin", 87, "13.2")) == [False] * 4  # another driver
    assert on(Gpu("NVIDIA A2", 86, "13.2"), optimization_level=5) == [False] * 4
    caches = [Path(str(job.timing_cache)).name for job in jobs]
    assert caches[::4] == ["timing-10.3.0-Orin-sm87.cache"] * 2 + ["timing-10.3.0-NVIDIA-A2-sm86.cache"]
    assert (jobs[-1].optimization_level, jobs[-1].sm) == (5, (86,))
    sidecar = read_sidecar(copy, "tensorrt", HEAD)
    assert sidecar is not None
    assert (sidecar.gpu, sidecar.cuda, sidecar.optimization_level) == ("NVIDIA A2", "13.2", 5)
    assert sidecar.kernels == 1  # by the inspector's account, which is kept too
    assert "Layers" in engine_file(copy, "tensorrt", HEAD, ".plan.json").read_text()
    here = Machine("10.3.0", 86, "NVIDIA A2", "13.2", PLATFORM)
    assert open_engine(Bundle.open(copy), "tensorrt", HEAD, here)
    with pytest.raises(EngineError, match="was built for SM 86, this GPU is SM 87; run `edgefuse build"):
        open_engine(Bundle.open(copy), "tensorrt", HEAD, Machine(sm=87))


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
    _end(children)


def test_a_kill_in_the_middle_leaves_engines_that_fit_and_no_process(copy: Path) -> None:
    script = f"from edgefuse.optimize.build_engine import build; build({str(copy)!r}, sm=(86,))"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = engine_file(copy, RTX, "audio", ".failed.log")
    while parent.poll() is None and not (log.exists() and log.stat().st_size):  # the second part is being built
        time.sleep(0.005)
    children = _children(parent.pid)
    parent.kill()
    parent.wait()
    bundle = Bundle.open(copy)
    for part in ALL_PARTS:
        assert open_engine(bundle, RTX, part, Machine(tensorrt_rtx.__version__, 86))
    assert children
    _end(children)
    assert all(engine["reused"] for engine in build(copy, sm=(86,))["engines"][:1])
    leftover = [path.name for path in (copy / "engines" / RTX).iterdir()]
    assert not [name for name in leftover if name.endswith((".new", ".tmp", ".commit", ".failed.log"))]


def _end(children: set[int]) -> None:
    """Wait until all these processes are gone."""
    deadline = time.monotonic() + 30
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(child) for child in children)


def _children(pid: int) -> set[int]:
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:
        return set()


def _alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has asked for its end yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
