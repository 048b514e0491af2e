"""Tests of preflight.py: every rule finds its fault and no other, RTX's parser agrees, and nothing ends in a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefuse.optimize.ask_parser import ask
from edgefuse.optimize.finding import TARGETS, before, verdict
from edgefuse.optimize.preflight import check, inspect
from edgefuse.runtime.errors import BundleError, EngineError
from tests.check_models import CASES, Case, pair, single

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
    with pytest.raises(BundleError, match="no target '9'; the targets are 10.3, 10.16, 11, rtx"):
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
    try:
        inspect(bytes(content))
    except BundleError as error:
        assert "\n" not in str(error)


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
    try:
        inspect(model.SerializeToString())
    except BundleError as error:
        assert "\n" not in str(error)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_no_random_bytes_end_in_a_traceback(content: bytes) -> None:
    with pytest.raises(BundleError):
        inspect(content)
