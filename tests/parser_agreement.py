"""How often `edgefuse check` and TensorRT-RTX's own parser agree, on two sets of models that are not ours.

"node tests": the models that ONNX generates to test backends with. "retyped": each operator of those that the parser
takes, in 14 types: where the rows of operators.py come from. `python -m tests.parser_agreement` prints both tables and
writes them to parser_agreement.json; tests/test_operators.py compares with that file.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, defs

from edgefuse.optimize.ask_parser import ask
from edgefuse.optimize.preflight import inspect
from edgefuse.runtime.errors import BundleError

TABLE = Path(__file__).with_suffix(".json")
TYPES = (
    "FLOAT FLOAT16 BFLOAT16 DOUBLE INT8 UINT8 INT16 UINT16 INT32 UINT32 INT64 BOOL FLOAT8E4M3FN INT4".split()  # noqa: SIM905
)

# Why we differ on purpose, by rule. What is not here is something that we do not know of the parser.
KNOWN = {
    "computed-zero-point": "the parser takes it and the builder refuses: zero_point which is not an initializer",
}


def node_tests() -> dict[str, bytes]:
    """ONNX's own node tests: name -> model. They are computed, which takes some seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they divide by zero on purpose
        from onnx.backend.test.case import node

        return {case.name: case.model.SerializeToString() for case in node.collect_testcases(None)}


def retyped(models: dict[str, bytes], taken: dict[str, bool | None]) -> dict[str, bytes]:
    """One model per operator and type: a node test that was taken, with the type of its first input changed."""
    made: dict[str, bytes] = {}
    for name, content in models.items():
        model = onnx.load_model_from_string(content)
        node = model.graph.node[0] if len(model.graph.node) == 1 else None
        if node is None or not taken[name] or "_expanded" in name or node.domain or f"{node.op_type} FLOAT" in made:
            continue
        opset = next((entry.version for entry in model.opset_import if entry.domain == ""), 1)
        schema = defs.get_schema(node.op_type, opset)
        if not schema.inputs:
            continue
        variable = schema.inputs[0].type_str
        changed = {
            value
            for values, formals in ((node.input, schema.inputs), (node.output, schema.outputs))
            for value, index in zip(values, range(len(values)), strict=True)
            if formals[min(index, len(formals) - 1)].type_str == variable
        }
        for kind in TYPES:
            for value in (*model.graph.input, *model.graph.output):
                if value.name in changed:
                    value.type.tensor_type.elem_type = getattr(TensorProto, kind)
            made[f"{node.op_type} {kind}"] = model.SerializeToString()
    return made


def refused_by_us(model: bytes) -> list[str]:
    """The rules by which we say that TensorRT-RTX refuses a model."""
    try:
        return sorted({finding.rule for finding in inspect(model, ["rtx"]) if finding.severity == "refused"})
    except BundleError as error:
        return [str(error)]


def measure() -> dict[str, Any]:
    """{parser, onnx, sets: {name: {models, agree, differ: {model: {parser, rules, why}}}}}."""
    models = node_tests()
    version, answers = ask(list(models.values()))
    taken = {name: answer.taken for name, answer in zip(models, answers, strict=True)}
    others = retyped(models, taken)
    _, other_answers = ask(list(others.values()))
    sets = {}
    for name, group, told in (("node tests", models, answers), ("retyped", others, other_answers)):
        differ = {}
        for (model_name, model), answer in zip(group.items(), told, strict=True):
            rules = refused_by_us(model)
            if bool(rules) is not (answer.taken is False):
                says = {True: "takes it", False: "refuses it", None: "crashes"}[answer.taken]
                why = KNOWN.get(rules[0]) if rules else answer.says[:160]
                differ[model_name] = {"parser": says, "rules": rules, "why": why or "the parser knows more than we do"}
        sets[name] = {"models": len(group), "agree": len(group) - len(differ), "differ": differ}
    return {"parser": version, "onnx": onnx.__version__, "sets": sets}


def main() -> None:
    """Measure, print and write the tables."""
    told = measure()
    TABLE.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for name, numbers in told["sets"].items():
        share = numbers["agree"] / numbers["models"]
        print(f"{name}: {numbers['agree']} of {numbers['models']} agree ({share:.2%}), parser {told['parser']}")
        for model, row in numbers["differ"].items():
            print(f"  {model}: the parser {row['parser']}; ours: {', '.join(row['rules']) or 'ok'}; {row['why']}")


if __name__ == "__main__":
    main()
