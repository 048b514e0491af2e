"""Tests of preflight.py: every rule finds its fault, RTX's parser agrees, and nothing ends in a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefuse.optimize.ask_parser import ask
from edgefuse.optimize.finding import before, verdict
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.mend import mend
from edgefuse.optimize.preflight import check, inspect
from edgefuse.optimize.trt_parts import encoder_part, head_part
from edgefuse.optimize.view import View
from edgefuse.runtime.bundle import HEAD, PartInfo, part_file
from edgefuse.runtime.errors import BundleError, EngineError
from tests.check_models import CASES, Case, Draft, pair, single
from tests.optimize_fixtures import PARTS, inputs_of, rtx_kernels, write_parts_bundle

NAMES = [case.name for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_fault_is_found(case: Case) -> None:
    found = inspect(case.model)
    if case.rule is None:
        assert found == []
    else:
        assert case.severity in [finding.severity for finding in found if finding.rule == case.rule], found


@pytest.fixture(scope="module")
def parser_says() -> dict[str, tuple[bool | None, str]]:
    pytest.importorskip("tensorrt_rtx")
    _, answers = ask([case.model for case in CASES])
    return {case.name: (answer.taken, answer.says) for case, answer in zip(CASES, answers, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_parser_refuses_what_is_called_refused_and_takes_the_rest(case: Case, parser_says: Any) -> None:
    taken, says = parser_says[case.name]
    assert taken is (case.severity != "refused" if case.parsed is None else case.parsed), says
    refused = [finding for finding in inspect(case.model, ["rtx"]) if finding.severity == "refused"]
    if case.parsed is None:
        assert bool(refused) is not taken


INT8_PRODUCTS = {"INT8 Conv": True, "INT8 MatMul": True}
FLOAT_PRODUCTS = {
    "Conv weight along axis 1": False,
    "MatMul weight along axis 0": False,
    "Conv, weight only": False,
    "Conv, activation only": False,
    "MatMul, activation only": False,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "int8"), [*INT8_PRODUCTS.items(), *FLOAT_PRODUCTS.items()])
def test_what_is_called_silent_runs_in_float(name: str, int8: bool, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    kernels = rtx_kernels(next(case.model for case in CASES if case.name == name), tmp_path)
    products = [kernel for kernel in kernels if kernel.kind in ("gemm", "correlation")]
    assert any(kernel.precision == "Int8" for kernel in products) is int8


def test_a_computed_zero_point_is_refused_by_the_builder(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(AssertionError, match="zero_point"):
        rtx_kernels(next(case.model for case in CASES if case.name == "computed_zero_point"), tmp_path)


def saved(folder: Path, model: bytes, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model)
    return path


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgefuse.runtime.cli", "check", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_exits_1_unless_all_is_well(tmp_path: Path) -> None:
    bad, good = saved(tmp_path, pair(zero=np.int8(3))), saved(tmp_path, pair(), "good.onnx")

    refused, ok = command(bad, "--json"), command(good, "--json")

    assert (refused.returncode, ok.returncode) == (1, 0), refused.stderr + ok.stderr
    document = json.loads(refused.stdout.splitlines()[-1])
    assert document["verdict"] == "refused"
    assert set(document["findings"][0]) == {"part", "node", "rule", "severity", "effect", "mend", "targets"}
    assert document["findings"][0]["node"] == "QuantizeLinear_0"
    assert json.loads(ok.stdout.splitlines()[-1]) == {"verdict": "ok", "findings": []}


def test_a_finding_names_only_the_versions_it_concerns() -> None:
    swish = single("Swish", (onnx.TensorProto.FLOAT, 2), opset=24)
    assert {one.rule: one.targets for one in inspect(swish) if one.severity == "refused"} == {
        "unsupported-operator": ("10.3", "10.16")
    }
    assert verdict(inspect(swish, ["rtx"])) == "ok"
    assert {target for one in inspect(swish, ["10.3"]) for target in one.targets} == {"10.3"}


def test_uint8_is_refused_by_10_3_and_silently_int8_later() -> None:
    found = {one.severity: one.targets for one in inspect(pair(zero=np.uint8(0))) if one.rule == "uint8-quantization"}
    assert found == {"silent": ("10.16", "11", "rtx"), "refused": ("10.3",)}


def test_the_worst_finding_is_the_verdict_and_stands_first() -> None:
    draft_of_both = pair(onnx.TensorProto.FLOAT16, np.float32(-1))
    severities = [one.severity for one in inspect(draft_of_both)]
    assert severities == sorted(severities, key=("refused", "silent", "note").index)
    assert {"refused", "silent"} <= set(severities)
    assert verdict(inspect(draft_of_both)) == "refused"
    assert before(10, 10) == ("10.3",)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(BundleError, match=r"no target '9'; the targets are 10\.3, 10\.16, 11, rtx"):
        inspect(pair(), ["9"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no ONNX model"),
        (b"not onnx at all", "no ONNX model"),
        (pair()[:-40], "no ONNX model"),
        (b"\x08\x0a", "no graph"),
    ],
)
def test_a_file_that_is_no_model_is_refused_in_one_line(content: bytes, says: str, tmp_path: Path) -> None:
    path = saved(tmp_path, content)
    with pytest.raises(BundleError, match=says) as caught:
        check(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        check(tmp_path / "nothing.onnx")
    with pytest.raises(BundleError, match="is no file"):
        check(Path("/dev/null"))
    with pytest.raises(BundleError, match="is not a bundle"):
        check(tmp_path)


def test_a_file_larger_than_onnx_can_be_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(3 << 30)  # sparse
    with pytest.raises(BundleError, match=r"has 3\.0 GiB, an ONNX file at most 2"):
        check(path)


def told(model: bytes) -> str:
    """Checks and mends a model; returns what it is refused with, "" where it is not. Other exceptions pass."""
    try:
        inspect(model)
        mend(View(model))
    except BundleError as error:
        return str(error)
    return ""


MUTATED = [case.model for case in CASES]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_damage_ends_in_a_traceback(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(MUTATED)))
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["change", "cut", "insert", "copy"]))
        if kind == "change":
            content[start] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[start : start + data.draw(st.integers(1, 40))]
        elif kind == "insert":
            content[start:start] = data.draw(st.binary(max_size=20))
        else:
            content[start:start] = content[start : start + data.draw(st.integers(1, 80))]
        if not content:
            break
    assert "\n" not in told(bytes(content))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_odd_model_ends_in_a_traceback(data: st.DataObject) -> None:
    """Whole models whose nodes are changed: inputs swapped, lost or of another type, attributes gone or of others."""
    model = onnx.load_model_from_string(data.draw(st.sampled_from(MUTATED)))
    graph = model.graph
    node = data.draw(st.sampled_from(list(graph.node)))
    other = onnx.load_model_from_string(data.draw(st.sampled_from(MUTATED))).graph
    names = ["", *node.input, *node.output, *(value.name for value in graph.input)]
    match data.draw(st.integers(0, 8)):
        case 0:
            node.op_type = data.draw(st.sampled_from([one.op_type for one in other.node]))
        case 1:
            del node.input[data.draw(st.integers(0, len(node.input))) :]
        case 2:
            node.input.append(data.draw(st.sampled_from(names)))
        case 3:
            node.input[:] = [data.draw(st.sampled_from(names)) for _ in node.input]
        case 4:
            del node.output[:]
        case 5:
            node.attribute.extend(attribute for one in other.node for attribute in one.attribute)
        case 6:
            for value in graph.input:
                value.type.tensor_type.elem_type = data.draw(st.integers(0, 30))
        case 7:
            graph.initializer.extend(other.initializer)
        case 8:
            for tensor in graph.initializer:
                tensor.dims[:] = data.draw(st.lists(st.integers(-2, 1 << 40), max_size=4))
    assert "\n" not in told(model.SerializeToString())


def test_functions_are_looked_into(tmp_path: Path) -> None:
    assert {one.rule for one in inspect(with_function("Relu"))} == set()
    assert {one.rule for one in inspect(with_function("Det"))} == {"unsupported-operator"}
    assert {one.rule for one in inspect(with_function("Relu", name="Gelu"))} == {"foreign-operator"}
    with pytest.raises(BundleError, match="calls itself"):
        inspect(with_function("Mine", domain="mine"))


def with_function(op: str, name: str = "Mine", domain: str = "") -> bytes:
    """A model whose one node calls a function of one node `op`."""
    model = onnx.load_model_from_string(single(name, (onnx.TensorProto.FLOAT, 2, 2), domain="mine"))
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    body = [onnx.helper.make_node(op, ["a"], ["b"], domain=domain)]
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("mine", 1)]
    model.functions.append(onnx.helper.make_function("mine", name, ["a"], ["b"], body, opsets))
    return bytes(model.SerializeToString())


def test_weights_in_another_file_are_read_from_there(tmp_path: Path) -> None:
    weight = np.full((64, 64), 2.0, np.float16)
    weight[3, 3] = np.inf
    model = onnx.load_model_from_string(
        single("MatMul", (onnx.TensorProto.FLOAT16, 2, 64), weight, kind=onnx.TensorProto.FLOAT16)
    )
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    assert [one["rule"] for one in check(path)["findings"]] == ["infinite-constant"]
    assert check(path, fix=tmp_path / "one.onnx")["verdict"] == "silent"
    (tmp_path / "model.data").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"needs 8192 bytes from byte 0 of model\.data, which has 5"):
        check(path)
    (tmp_path / "model.data").unlink()
    with pytest.raises(BundleError, match=r"its weights are in model\.data, which cannot be read"):
        check(path)
    with pytest.raises(BundleError, match="cannot be reached"):
        inspect(path.read_bytes())


def test_weights_outside_of_the_folder_are_not_read(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(single("Add", (onnx.TensorProto.FLOAT, 2), np.ones(2, np.float32)))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(BundleError, match="cannot be reached"):
        check(saved(tmp_path, model.SerializeToString()))


def test_a_constant_that_does_not_fill_its_shape_is_refused() -> None:
    model = onnx.load_model_from_string(single("Add", (onnx.TensorProto.FLOAT, 2), np.ones(2, np.float32)))
    model.graph.initializer[0].raw_data = b"1234"
    with pytest.raises(BundleError, match="has 4 bytes where its shape needs 8"):
        inspect(model.SerializeToString())


def test_every_part_of_a_bundle_is_checked(tmp_path: Path) -> None:
    bundle = write_parts_bundle(tmp_path / "bundle")
    result = check(bundle.folder)
    assert result["verdict"] == "ok"
    assert {(one["part"], one["rule"]) for one in result["findings"]} == {("text", "huge-mask")}

    trt = {part_file("trt", part): to_fp16(Graph(model)).serialize() for part, model in PARTS.items()}
    trt[part_file("trt", "image")] = pair(zero=np.uint8(128))
    infos = {part: PartInfo(file=part_file("trt", part), precision="fp16") for part in PARTS}
    bundle.updated(trt, parts={**bundle.info.parts, "trt": infos})
    result = check(bundle.folder)
    assert result["verdict"] == "refused"
    assert {(one["part"], one["rule"]) for one in result["findings"]} == {("image", "nonzero-zero-point")}
    with pytest.raises(BundleError, match="--fix mends one"):
        check(bundle.folder, fix=tmp_path / "x.onnx")
    (bundle.folder / part_file("trt", "image")).write_bytes(b"something else")
    with pytest.raises(BundleError, match="was altered"):
        check(bundle.folder)


def random_batches(part: str) -> Any:
    """What stands for `Samples`: a few random inputs of a part."""

    class Drawn:
        modality = part

        def __len__(self) -> int:
            return 8

        def batches(self, size: int) -> Any:
            yield inputs_of(part, size)

    return Drawn()


def no_cost(model: bytes) -> Any:
    raise AssertionError("only auto asks for costs")


@pytest.mark.parametrize("part", PARTS)
def test_our_own_trt_parts_are_well(part: str) -> None:
    made = head_part(PARTS[part]) if part == HEAD else encoder_part(PARTS[part], random_batches(part), "int8", no_cost)
    for candidate in made.candidates:
        assert [one for one in inspect(candidate.model) if one.severity != "note"] == []


@pytest.mark.parametrize("run", ["reference", "easy_vqa"])
def test_the_bundles_of_this_checkout_are_well(run: str) -> None:
    folder = Path(__file__).parent.parent / "runs" / run / "bundle"
    if not (folder / "bundle.json").exists():
        pytest.skip("not made here")
    assert check(folder)["verdict"] == "ok"


def test_the_parser_confirms_the_verdict(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    refused = check(saved(tmp_path, pair(zero=np.int8(3))), verify=True)
    assert refused["parser"]["agrees"]
    assert "Non-zero zero point" in refused["parser_parts"]["model"]["says"]
    odd = check(saved(tmp_path, next(case.model for case in CASES if case.name == "computed_zero_point")), verify=True)
    assert not odd["parser"]["agrees"]
    assert odd["parser_parts"]["model"] == {"agrees": False, "taken": True, "says": ""}


def test_without_the_compiler_verify_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("raise ModuleNotFoundError(name='tensorrt_rtx')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        EngineError, match=r"--verify needs the Python package tensorrt_rtx.*pip install 'edgefuse\[rtx\]'"
    ):
        check(saved(tmp_path, pair()), verify=True)


def test_large_weights_are_not_copied_about(tmp_path: Path) -> None:
    """64 MB of weights; the processor's time counts, which a busy machine does not stretch."""
    weights = [np.ones((2048, 2048), np.float32) for _ in range(4)]
    draft = Draft()
    x = draft.input("x", onnx.TensorProto.FLOAT, 1, 4, 2048)
    for weight in weights:
        x = draft.add("MatMul", x, weight)
    path = saved(tmp_path, draft.bytes(x))
    started = time.process_time()
    assert check(path)["verdict"] == "ok"
    assert time.process_time() - started < 0.6


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_no_random_bytes_end_in_a_traceback(content: bytes) -> None:
    with pytest.raises(BundleError):
        inspect(content)
