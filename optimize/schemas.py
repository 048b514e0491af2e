"""What ONNX itself says of its operators: how many inputs, and which of them are of one type."""

from __future__ import annotations

from functools import cache

from onnx import NodeProto, defs

_Option = defs.OpSchema.FormalParameterOption


@cache
def _schema(op: str, opset: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op, opset)
    except defs.SchemaError:
        return None


def fault(node: NodeProto, opset: int) -> str | None:
    """What ONNX forbids about the inputs and outputs of a node; None where it does not know the operator."""
    schema = _schema(node.op_type, opset)
    if schema is None:
        return None
    if not schema.min_input <= len(node.input) <= schema.max_input:
        return f"it has {len(node.input)} inputs, {node.op_type} takes {schema.min_input} to {schema.max_input}"
    if not schema.min_output <= len(node.output) <= schema.max_output or not any(node.output):
        return f"it has {len(node.output)} outputs, {node.op_type} gives {schema.min_output} to {schema.max_output}"
    for formal, name in zip(schema.inputs, node.input, strict=False):
        if formal.option == _Option.Single and not name:
            return f"its input {formal.name!r} is left out"
    return None


@cache
def type_variables(op: str, opset: int) -> tuple[tuple[str, ...], bool]:
    """The name of each input's type in ONNX's definition, "" where it is fixed, and whether the last input repeats."""
    schema = _schema(op, opset)
    if schema is None:
        return (), False
    variables = {constraint.type_param_str for constraint in schema.type_constraints}
    repeats = any(formal.option == _Option.Variadic and formal.is_homogeneous for formal in schema.inputs)
    return tuple(formal.type_str if formal.type_str in variables else "" for formal in schema.inputs), repeats


@cache
def float_free(op: str, opset: int) -> tuple[int, ...]:
    """The inputs of an operator that may be no float of any kind."""
    schema = _schema(op, opset)
    return tuple(
        index
        for index, formal in enumerate(schema.inputs if schema is not None else ())
        if formal.types and not any("float" in kind or "double" in kind for kind in formal.types)
    )
