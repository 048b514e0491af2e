"""Graphs: what is known of them, what is refused, what an edit keeps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgefuse.optimize.graph import FLOAT, FLOAT16, Graph
from edgefuse.runtime.errors import BundleError
from tests.optimize_fixtures import PARTS, inputs_of, outputs


def model_of(nodes: list[onnx.NodeProto], kind: int = FLOAT, **constants: np.ndarray) -> ModelProto:
    """x [batch, 4] -> y, both of one type, not checked."""
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info("x", kind, ["batch", 4])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_every_value_has_a_type() -> None:
    for part in PARTS.values():
        graph = Graph(part)
        assert {name for node in graph.nodes for name in (*node.input, *node.output) if name} <= graph.types.keys()


def test_nodes_get_names_of_their_own() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"], name="n"), helper.make_node("Relu", ["a"], ["b"], name="n")]
    graph = Graph(model_of([*nodes, helper.make_node("Relu", ["b"], ["y"])]))
    assert [node.name for node in graph.nodes] == ["n", "n_1", "Relu"]


def test_readers_count_graph_outputs_and_repeated_inputs() -> None:
    graph = Graph(model_of([helper.make_node("Mul", ["x", "x"], ["a"]), helper.make_node("Add", ["a", "x"], ["y"])]))
    assert graph.readers == {"x": 3, "a": 1, "y": 1}


def test_constant_nodes_become_initializers() -> None:
    nodes = [
        helper.make_node("Constant", [], ["floats"], value_floats=[1.0, 2.0, 3.0, 4.0]),
        helper.make_node("Constant", [], ["axis"], value_int=0),
        helper.make_node("Constant", [], ["tensor"], value=numpy_helper.from_array(np.float32(2))),
        helper.make_node("Unsqueeze", ["floats", "axes"], ["row"]),
        helper.make_node("Mul", ["x", "row"], ["a"]),
        helper.make_node("Mul", ["a", "tensor"], ["b"]),
        helper.make_node("Gather", ["b", "axis"], ["y"], axis=0),
    ]
    graph = Graph(model_of(nodes, axes=np.array([0])))
    assert "Constant" not in {node.op_type for node in graph.nodes}
    assert graph.array("axis").dtype == np.int64
    result = outputs(graph.serialize(), {"x": np.ones((1, 4), np.float32)})[0]
    np.testing.assert_array_equal(result, np.array([2, 4, 6, 8], np.float32))


def test_garbage_is_refused_in_one_line() -> None:
    with pytest.raises(BundleError, match="not a valid ONNX graph") as refused:
        Graph(b"\x00garbage")
    assert "\n" not in str(refused.value)


def test_operands_of_two_float_types_are_refused() -> None:
    nodes = [helper.make_node("Mul", ["x", "c"], ["y"])]
    with pytest.raises(BundleError, match="inconsistent type"):
        Graph(model_of(nodes, FLOAT16, c=np.ones(4, np.float32)))


def test_control_flow_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])], "b", [], [helper.make_tensor_value_info("z", FLOAT, None)]
    )
    node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    with pytest.raises(BundleError, match="'choice' is a If"):
        Graph(model_of([node], c=np.array(True)))


def test_a_rebuilt_graph_computes_the_same_and_drops_unused_constants() -> None:
    graph = Graph(PARTS["text"])
    graph.add_initializer("unused", np.ones(1000, np.float32))
    rebuilt = graph.rebuilt(graph.nodes)
    assert "unused" not in rebuilt.initializers
    assert (rebuilt.inputs, rebuilt.outputs, rebuilt.opset) == (graph.inputs, graph.outputs, 18)
    inputs = inputs_of("text")
    for ours, theirs in zip(outputs(rebuilt.serialize(), inputs), outputs(PARTS["text"], inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_added_names_never_collide() -> None:
    graph = Graph(PARTS["text"])
    names = [graph.add_initializer("embedding", np.zeros(1, np.float32)) for _ in range(3)]
    assert len({*names, "embedding"}) == 4


def test_serialized_bytes_carry_no_notes() -> None:
    model = onnx.load_model_from_string(PARTS["image"])
    model.graph.node[0].doc_string = "File /home/someone/model.py"
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File /home/someone/model.py")
    written = Graph(model).serialize()
    assert b"/home/someone" not in written
    assert not onnx.load_model_from_string(written).graph.value_info


def test_types_are_those_of_onnx() -> None:
    assert (FLOAT, FLOAT16) == (TensorProto.FLOAT, TensorProto.FLOAT16)


def test_shapes_are_those_at_batch_1_and_unknown_ones_empty() -> None:
    inputs = inputs_of("text", batch=1)
    graph = Graph(PARTS["text"])
    names = ["embedding", "scores", "mixed", *graph.outputs]
    proto = onnx.load_model_from_string(PARTS["text"])
    proto.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in names[:-1])
    found = dict(zip([*graph.outputs, *names[:-1]], outputs(proto.SerializeToString(), inputs), strict=True))
    assert {name: graph.shape(name) for name in names} == {name: found[name].shape for name in names}
    assert {name: graph.size_bytes(name) for name in names} == {name: found[name].nbytes for name in names}
    assert all(graph.shape(name) == graph.array(name).shape for name in graph.initializers)
    assert graph.shape("nothing of this name") == ()


def test_bytes_are_those_of_the_type() -> None:
    graph = Graph(PARTS["image"])
    sizes = {kind: graph.size_bytes(graph.add_initializer("few", np.zeros(3, kind))) for kind in (np.int8, np.float16)}
    assert graph.size_bytes("image") == inputs_of("image", batch=1)["image"].nbytes  # uint8
    assert graph.size_bytes("pixels") == 4 * graph.size_bytes("image")
    assert sizes == {np.int8: 3, np.float16: 6}


def test_what_a_draft_gets_the_graph_does_not() -> None:
    graph = Graph(PARTS["text"])
    before, draft = set(graph.initializers), graph.draft()
    name = draft.add_initializer("more", np.ones(3, np.float32))
    assert set(graph.initializers) == before == set(draft.initializers) - {name}
    assert draft.rebuilt(draft.nodes).serialize() == graph.rebuilt(graph.nodes).serialize()
    assert graph.add_initializer("more", np.zeros(1)) == name  # the name is still free
