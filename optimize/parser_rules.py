"""What TensorRT's ONNX parser refuses: operators, types, attributes, and inputs that must be constants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from onnx import NodeProto, TensorProto

from edgefuse.optimize.finding import TARGETS, Finding, before
from edgefuse.optimize.operators import (
    FLOATS,
    INSTEAD,
    PLUGINS,
    RTX_REFUSES,
    SINCE,
    TAKEN,
    TENSORS,
    imported_type,
    name_of,
)
from edgefuse.optimize.schemas import type_variables
from edgefuse.optimize.view import ONNX, Scope, View, attribute, label

_RTX = ("rtx",)
_QDQ = ("QuantizeLinear", "DequantizeLinear")  # they have rules of their own


def parser_findings(view: View) -> Iterator[Finding]:
    """Everything in `view` that the parser of some target refuses, but for what concerns Q/DQ."""
    for scope in view.scopes():
        yield from _inputs(scope)
        for node, fault in scope.malformed:
            yield _refused(node, "invalid-node", f"{fault}: this is no valid ONNX", "export the model again")
        for node in scope.nodes:
            if node.op_type not in TAKEN:
                yield _unknown(node)
                continue
            if missing := [name for name in node.input if name and not scope.knows(name)]:
                yield _refused(
                    node, "dangling-input", f"nothing makes its input {missing[0]!r}", "export the model again"
                )
                continue
            for rule in (_age, _types, _mixed, _uint8, _outputs, _attributes, _constants, _special):
                yield from rule(scope, node, view.opset)


def _refused(node: NodeProto, rule: str, effect: str, mend: str, targets: tuple[str, ...] = TARGETS) -> Finding:
    return Finding(label(node), rule, "refused", effect, mend, targets)


def _inputs(scope: Scope) -> Iterator[Finding]:
    """Graph inputs of types that TensorRT has not; and INT64, which it has, to the host's surprise."""
    for value in scope.graph.input:
        kind = value.type.tensor_type.elem_type
        if value.name in scope.tensors or scope.parent is not None:
            continue
        if kind not in TENSORS:
            told = f"a {name_of(kind)} tensor" if kind else "no tensor"
            mend = "give the graph a tensor of float, int32, int8, uint8 or bool"
            yield Finding(value.name, "input-type", "refused", f"it is {told}; TensorRT takes none as an input", mend)
        elif kind == TensorProto.INT64:
            effect = "TensorRT keeps it INT64: the host must bind 8 bytes per element (TensorRT 8 bound 4)"
            yield Finding(value.name, "int64-input", "note", effect, "export it as int32 to have one host code for all")
    for name, tensor in scope.tensors.items():
        if tensor.data_type not in TENSORS:
            effect = f"it is a {name_of(tensor.data_type)} constant, a type that TensorRT has not"
            yield Finding(name, "constant-type", "refused", effect, "convert it to a type that TensorRT has")


def _unknown(node: NodeProto) -> Finding:
    domain = "" if node.domain in ONNX else f" (domain {node.domain})"
    effect = f"TensorRT has no {node.op_type}{domain} and finds no plugin of this name"
    mend = INSTEAD.get(node.op_type, "express it with other operators, or run this part of the model outside")
    return _refused(node, "unsupported-operator", effect, mend)


def _age(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    if node.op_type in SINCE and (old := before(*SINCE[node.op_type])):
        since = ".".join(map(str, SINCE[node.op_type]))
        mend = INSTEAD.get(node.op_type, "express it with older operators, or use a newer TensorRT")
        yield _refused(node, "unsupported-operator", f"TensorRT has {node.op_type} from {since} on only", mend, old)
    if node.op_type in PLUGINS:
        effect = f"TensorRT-RTX has no plugins, and {node.op_type} is one"
        yield _refused(node, "unsupported-operator", effect, "express it with other operators", _RTX)


def _types(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    if not node.input or node.op_type in _QDQ:
        return
    kind = imported_type(scope, node.input[0])
    if kind and kind not in TAKEN[node.op_type]:
        effect = f"{node.op_type} of {name_of(kind)} is not supported"
        yield _refused(node, "operator-type", effect, "cast to float (or int32 where the values are whole) before it")
    elif kind in RTX_REFUSES.get(node.op_type, ()):
        effect = f"TensorRT-RTX does not parse {node.op_type} of {name_of(kind)}"
        yield _refused(node, "operator-type", effect, "cast to FLOAT before it and back behind it", _RTX)


_MIXES = ("Pow", "Pad")  # the parser casts for them


def _mixed(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    """Operands that ONNX wants to be of one type and that are not."""
    variables, repeats = type_variables(node.op_type, opset)
    if node.op_type in _QDQ or node.op_type in _MIXES or not variables:
        return
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for index, name in enumerate(node.input):
        variable = variables[min(index, len(variables) - 1)] if repeats or index < len(variables) else ""
        kind = imported_type(scope, name) if name else 0
        if variable and kind:
            found[variable].setdefault(kind, name)
    for kinds in found.values():
        if len(kinds) > 1:
            told = " and ".join(f"{name_of(kind)} ({name!r})" for kind, name in kinds.items())
            mend = "cast one of them; TensorRT is strongly typed and never does it itself"
            yield _refused(node, "mixed-types", f"{node.op_type} gets {told}, which must be of one type", mend)


def _uint8(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    for name in node.output:
        if imported_type(scope, name) == TensorProto.UINT8 and name not in scope.outputs:
            effect = "its output is uint8, which TensorRT allows for inputs and outputs of the graph only"
            mend = "make Cast to float the first node after a uint8 input, before any Transpose, Slice or Reshape"
            yield _refused(node, "uint8-intermediate", effect, mend)


# Operator -> how many outputs TensorRT gives.
OUTPUTS = {"LayerNormalization": 1, "BatchNormalization": 1, "MaxPool": 1, "Attention": 1}


def _outputs(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    wanted = [name for name in node.output if name]
    if len(wanted) > OUTPUTS.get(node.op_type, len(wanted)):
        effect = f"{node.op_type} with {len(wanted)} outputs; TensorRT gives the first only"
        yield _refused(node, "extra-output", effect, "remove the outputs that only training needs")


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
            yield _refused(node, "unsupported-attribute", effect, f"change {name}, or express the node otherwise")
    if node.op_type == "ScatterElements" and attribute(node, "reduction", "none") != "none":
        effect = "TensorRT-RTX has no plugins, and ScatterElements with a reduction is one"
        yield _refused(node, "unsupported-attribute", effect, "scatter without a reduction", _RTX)


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
            yield _refused(node, "needs-constant", effect, "make it an initializer, or fold the constants before it")
    for index in _SIZES.get(node.op_type, ()):
        if index < len(node.input) and (source := _float_source(scope, node.input[index])):
            effect = f"its input {node.input[index]!r} decides a size and comes from the float input {source!r}"
            yield _refused(node, "size-from-float", effect, "make it a constant, or the graph's input an integer")


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
        yield _refused(node, "unsupported-form", effect, "express the node otherwise")


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
