"""What TensorRT's ONNX parser refuses: operators and types; form_rules.py has the forms of each operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from onnx import NodeProto, TensorProto

from edgefuse.optimize.finding import TARGETS, Finding, before
from edgefuse.optimize.form_rules import FORM_RULES, RTX, refused
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
from edgefuse.optimize.schemas import float_free, type_variables
from edgefuse.optimize.view import ONNX, Scope, View, label

_QDQ = ("QuantizeLinear", "DequantizeLinear")  # they have rules of their own


def parser_findings(view: View) -> Iterator[Finding]:
    """Everything in `view` that the parser of some target refuses, but for what concerns Q/DQ."""
    for scope in view.scopes():
        yield from _inputs(scope)
        for name in scope.outputs:
            if not scope.knows(name):
                yield Finding(name, "dangling-output", "refused", "nothing makes this output", "export the model again")
        for node, fault in scope.malformed:
            yield refused(node, "invalid-node", f"{fault}: this is no valid ONNX", "export the model again")
        for node in scope.nodes:
            if node.op_type not in TAKEN:
                yield from _unknown(node)
                continue
            if missing := [name for name in node.input if name and not scope.knows(name)]:
                yield refused(
                    node, "dangling-input", f"nothing makes its input {missing[0]!r}", "export the model again"
                )
                continue
            for rule in (_age, _types, _mixed, _indices, _uint8, *FORM_RULES):
                yield from rule(scope, node, view.opset)


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


def _unknown(node: NodeProto) -> Iterator[Finding]:
    domain = "" if node.domain in ONNX else f" (domain {node.domain})"
    targets = TARGETS
    if "TRT" in node.op_type or node.domain.startswith("trt"):  # NVIDIA's own plugins and quantizers
        effect = f"{node.op_type}{domain} must be in the TensorRT that builds it, or in a plugin library"
        mend = "load the library before building: trtexec --dynamicPlugins, or trt.init_libnvinfer_plugins"
        targets = RTX
        yield Finding(label(node), "plugin", "note", effect, mend, tuple(one for one in TARGETS if one not in RTX))
    effect = f"TensorRT has no {node.op_type}{domain} and finds no plugin of this name"
    mend = INSTEAD.get(node.op_type, "express it with other operators, or run this part of the model outside")
    yield refused(node, "unsupported-operator", effect, mend, targets)


def _age(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    if node.op_type in SINCE and (old := before(*SINCE[node.op_type])):
        since = ".".join(map(str, SINCE[node.op_type]))
        mend = INSTEAD.get(node.op_type, "express it with older operators, or use a newer TensorRT")
        yield refused(node, "unsupported-operator", f"TensorRT has {node.op_type} from {since} on only", mend, old)
    if node.op_type in PLUGINS:
        effect = f"TensorRT-RTX has no plugins, and {node.op_type} is one"
        yield refused(node, "unsupported-operator", effect, "express it with other operators", RTX)


def _types(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    if not node.input or node.op_type in _QDQ:
        return
    kind = imported_type(scope, node.input[0])
    if kind and kind not in TAKEN[node.op_type]:
        effect = f"{node.op_type} of {name_of(kind)} is not supported"
        yield refused(node, "operator-type", effect, "cast to float (or int32 where the values are whole) before it")
    elif kind in RTX_REFUSES.get(node.op_type, ()):
        effect = f"TensorRT-RTX does not parse {node.op_type} of {name_of(kind)}"
        yield refused(node, "operator-type", effect, "cast to FLOAT before it and back behind it", RTX)


_MIXES = ("Pow", "Pad", "Slice", "BatchNormalization")  # the parser casts for them


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
            yield refused(node, "mixed-types", f"{node.op_type} gets {told}, which must be of one type", mend)


def _indices(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    """Floats where ONNX wants integers: indices and shapes."""
    if node.op_type in ("If", "Loop"):  # any number will do for a condition
        return
    for index in float_free(node.op_type, opset):
        if index < len(node.input) and (kind := imported_type(scope, node.input[index])) in FLOATS:
            effect = f"its input {node.input[index]!r} is {name_of(kind)}, {node.op_type} wants no float there"
            yield refused(node, "operator-type", effect, "cast it to int64")


def _uint8(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    for name in node.output:
        if imported_type(scope, name) == TensorProto.UINT8 and name not in scope.outputs:
            effect = "its output is uint8, which TensorRT allows for inputs and outputs of the graph only"
            mend = "make Cast to float the first node after a uint8 input, before any Transpose, Slice or Reshape"
            yield refused(node, "uint8-intermediate", effect, mend)
