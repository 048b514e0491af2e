"""The forms of each operator that TensorRT's ONNX parser refuses: outputs, attributes, inputs that are not constant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from onnx import NodeProto, TensorProto

from edgefuse.optimize.finding import TARGETS, Finding
from edgefuse.optimize.operators import FLOATS, TENSORS, imported_type, name_of
from edgefuse.optimize.view import Scope, attribute, label

RTX = ("rtx",)


def refused(node: NodeProto, rule: str, effect: str, mend: str, targets: tuple[str, ...] = TARGETS) -> Finding:
    """A finding of severity refused about a node."""
    return Finding(label(node), rule, "refused", effect, mend, targets)


# Operator -> how many outputs TensorRT gives.
OUTPUTS = {"LayerNormalization": 1, "BatchNormalization": 1, "MaxPool": 1, "Attention": 1}


def _outputs(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    wanted = [name for name in node.output if name]
    if len(wanted) > OUTPUTS.get(node.op_type, len(wanted)):
        effect = f"{node.op_type} with {len(wanted)} outputs; TensorRT gives the first only"
        yield refused(node, "extra-output", effect, "remove the outputs that only training needs")


_Test = Callable[[Any], bool]


def _all_ones(value: Any) -> bool:
    return all(item == 1 for item in value)


def _one_of(*allowed: Any) -> _Test:
    return lambda value: value in allowed


# (operators, attribute, its default, what TensorRT takes)
_ATTRIBUTES: tuple[tuple[str, str, Any, _Test], ...] = (
    ("AveragePool MaxPool LpPool", "dilations", [], _all_ones),
    ("BatchNormalization", "training_mode", 0, _one_of(0)),
    ("LSTM", "input_forget", 0, _one_of(0)),
    ("LpNormalization LpPool", "p", 2, _one_of(1, 2)),
    ("Resize", "mode", "nearest", _one_of("nearest", "linear", "cubic")),
    ("Upsample", "mode", "nearest", _one_of("nearest", "linear", "bilinear")),
    ("Resize", "antialias", 0, _one_of(0)),
    ("Resize", "keep_aspect_ratio_policy", "stretch", _one_of("stretch")),
    (
        "Resize",
        "coordinate_transformation_mode",
        "half_pixel",
        _one_of("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"),
    ),
    ("ScatterND", "reduction", "none", _one_of("none")),
    ("TensorScatter", "mode", "linear", _one_of("linear")),
    ("Attention", "softcap", 0.0, _one_of(0.0)),
    ("Attention", "softmax_precision", None, _one_of(None)),
    ("Cast", "to", TensorProto.FLOAT, lambda value: value in TENSORS),
    ("RandomNormal RandomNormalLike RandomUniform RandomUniformLike", "dtype", 1, _one_of(1, 10)),
    ("TopK", "sorted", 1, _one_of(1)),
)


def _attributes(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    for operators, name, default, takes in _ATTRIBUTES:
        if node.op_type in operators.split() and not takes(value := attribute(node, name, default)):
            told = name_of(value) if name in ("to", "dtype") else value
            effect = f"{node.op_type} with {name}={told} is not supported"
            yield refused(node, "unsupported-attribute", effect, f"change {name}, or express the node otherwise")
    if node.op_type == "ScatterElements" and attribute(node, "reduction", "none") != "none":
        effect = "TensorRT-RTX has no plugins, and ScatterElements with a reduction is one"
        yield refused(node, "unsupported-attribute", effect, "scatter without a reduction", RTX)


_REDUCE = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)
# Inputs that must be constants, as (operators, input, may they be folded out of other constants by any operator?).
_CONSTANTS: tuple[tuple[str, int, bool], ...] = (
    (_REDUCE, 1, False),  # here the parser looks through Identity and Cast only
    ("Squeeze Unsqueeze", 1, True),
    ("STFT", 1, False),
    ("STFT", 2, False),
    ("Dropout", 2, False),
)
# Inputs that decide sizes. They may be computed, but not out of a float input of the graph.
_SIZES: dict[str, tuple[int, ...]] = {
    "OneHot": (1,),
    "Resize": (2, 3),
    "Upsample": (1,),
    "Range": (0, 1, 2),
    "Loop": (0,),
}


def _constants(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    for operators, index, folded in _CONSTANTS:
        if node.op_type in operators.split() and index < len(node.input) and (name := node.input[index]):
            if name in scope.static if folded else scope.array(name) is not None:
                continue
            effect = f"its input {name!r} is computed; TensorRT needs a constant there"
            yield refused(node, "needs-constant", effect, "make it an initializer, or fold the constants before it")
    for index in _SIZES.get(node.op_type, ()):
        if index < len(node.input) and (source := _float_source(scope, node.input[index])):
            effect = f"its input {node.input[index]!r} decides a size and comes from the float input {source!r}"
            yield refused(node, "size-from-float", effect, "make it a constant, or the graph's input an integer")


def _float_source(scope: Scope, name: str) -> str | None:
    """The float input of the graph that `name` is computed from; sizes of tensors do not count."""
    waiting, seen = [name], set[str]()
    while waiting:
        name = waiting.pop()
        node = scope.producers.get(name)
        is_input = node is None and scope.parent is None and name in scope.inputs and scope.tensor(name) is None
        if is_input and imported_type(scope, name) in FLOATS:
            return name
        if node is not None and node.op_type not in ("Shape", "Size") and name not in seen:
            seen.add(name)
            waiting += node.input
    return None


def _special(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    """What fits no table."""
    check = _SPECIAL.get(node.op_type)
    if check is not None and (effect := check(scope, node)):
        yield refused(node, "unsupported-form", effect, "express the node otherwise")


def _attention(scope: Scope, node: NodeProto) -> str:
    shapes = [scope.shape(name) for name in node.input[:3]]
    has_mask = len(node.input) > 3 and node.input[3]
    if len(node.input) > 4 and any(node.input[4:6]):
        return "Attention with past_key and past_value is not supported"
    if has_mask and attribute(node, "is_causal", 0):
        return "Attention takes a mask or is_causal, not both"
    key, value = shapes[1:] if len(shapes) == 3 else (None, None)
    if key is not None and value is not None and key != value:
        return f"Attention wants K and V of one shape, they are {key} and {value}"
    return ""


def _mod(scope: Scope, node: NodeProto) -> str:
    kind = imported_type(scope, node.input[0])
    whole = kind in (0, TensorProto.INT32, TensorProto.INT64)
    return "" if whole or attribute(node, "fmod", 0) else f"Mod of {name_of(kind)} needs fmod=1"


def _range(scope: Scope, node: NodeProto) -> str:
    kind = imported_type(scope, node.input[0])
    if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return f"Range of {name_of(kind)} is not supported"
    return ""


def _matmul(scope: Scope, node: NodeProto) -> str:
    first, second = (scope.shape(name) for name in node.input[:2])
    if first is not None and second is not None and len(first) == 1 and len(second) > 2 and (second[0] or 1) > 1:
        return "MatMul of a vector and a stack of matrices is not parsed: unsqueeze the vector"
    return ""


def _split(scope: Scope, node: NodeProto) -> str:
    parts, shape = attribute(node, "num_outputs", 0), scope.shape(node.input[0])
    if not parts or not shape:
        return ""
    size = shape[attribute(node, "axis", 0) % len(shape)]
    over = size is not None and -(-size // parts) * (parts - 1) > size
    return f"{size} cannot be split into {parts} equal parts and a smaller last one" if over else ""


def _resize(scope: Scope, node: NodeProto) -> str:
    axes, shape = attribute(node, "axes", None), scope.shape(node.input[0])
    whole = axes is None or (shape is not None and list(axes) == list(range(len(shape))))
    scales = len(node.input) > 2 and node.input[2]
    return "" if whole or not scales else "Resize by scales along some axes only is not supported: give sizes instead"


def _tensor_scatter(scope: Scope, node: NodeProto) -> str:
    shape = scope.shape(node.input[0])
    return "TensorScatter wants a cache of 4 dimensions" if shape is not None and len(shape) != 4 else ""


def _grid_sample(scope: Scope, node: NodeProto) -> str:
    kinds = {imported_type(scope, name) for name in node.input[:2]} - {0}
    return "GridSample wants its input and its grid of one type" if len(kinds) > 1 else ""


def _if(scope: Scope, node: NodeProto) -> str:
    counts = {len(attribute.g.output) for attribute in node.attribute if attribute.HasField("g")}
    return "the branches of If have different numbers of outputs" if len(counts) > 1 else ""


def _constant(scope: Scope, node: NodeProto) -> str:
    odd = {found.name for found in node.attribute} & {"sparse_value", "value_string", "value_strings"}
    return f"a Constant of {odd.pop()} is not supported" if odd else ""


_SPECIAL: dict[str, Callable[[Scope, NodeProto], str]] = {
    "Attention": _attention,
    "MatMul": _matmul,
    "Mod": _mod,
    "Range": _range,
    "Resize": _resize,
    "Split": _split,
    "TensorScatter": _tensor_scatter,
    "GridSample": _grid_sample,
    "If": _if,
    "Constant": _constant,
}


FORM_RULES: tuple[Callable[[Scope, NodeProto, int], Iterator[Finding]], ...] = (
    _outputs,
    _attributes,
    _constants,
    _special,
)
