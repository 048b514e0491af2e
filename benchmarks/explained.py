"""The section of the report page that says what the compiler made of INT8, from the audits beside the engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgefuse.benchmarks import markup
from edgefuse.benchmarks.markup import NOT_KNOWN, byte_count, percent

TITLE = "Plan audit: what became of INT8"
LARGEST = 3  # kernels of each engine
NEEDED = {"headline", "macs", "attention", "causes", "findings", "largest"}  # an audit of another version may differ
Engines = Sequence[Mapping[str, Any]]


def plan_audit(report: Mapping[str, Any]) -> str:
    """The section for one report, as `bench` returns it."""
    engines = [engine for engine in report["engines"] if (engine.get("audit") or {}).keys() >= NEEDED]
    if not engines:
        nothing = "No engine of this bundle has an audit beside it: edgefuse build writes one with every engine."
        return markup.block(TITLE, markup.paragraph(nothing), wide=True)
    told = [markup.paragraph(f"{_name(engine)}: {engine['audit']['headline']}.") for engine in engines]
    note = (
        "Read from the compiler's plan at batch 1, nothing was run: the bytes are what each kernel reads and writes, "
        "weights included. Products are counted in multiply-accumulates; asked is what has Q/DQ on both sides."
    )
    return markup.block(
        TITLE,
        *told,
        _products(engines),
        _attention(engines),
        _causes(engines),
        _mends(engines),
        _largest(engines),
        markup.paragraph(note),
        wide=True,
    )


def _name(engine: Mapping[str, Any]) -> str:
    return f"{engine['target']} {engine['part']}"


def _products(engines: Engines) -> str:
    head = ["Engine", "Products", "Millions", "INT8, %", "FP16, %", "FP32, %", "Not found, %", "Asked, %"]
    rows = [
        [
            _name(engine),
            kind,
            f"{shares['macs'] / 1e6:.1f}",
            *(percent(shares[share]) for share in ("int8", "fp16", "fp32", "not_found", "asked")),
        ]
        for engine in engines
        for kind, shares in engine["audit"]["macs"].items()
    ]
    return markup.table("In what the products run", head, rows, text_columns=2)


def _attention(engines: Engines) -> str:
    found = [(engine, engine["audit"]["attention"]) for engine in engines if engine["audit"]["attention"]["expected"]]
    rows = [
        [_name(engine), f"{told['fused']} of {told['expected']}", ", ".join(told["missing"]) or NOT_KNOWN]
        for engine, told in found
    ]
    head = ["Engine", "Fused", "Softmax of those that are not"]
    return markup.table("Attentions", head, rows, text_columns=3) if rows else ""


def _causes(engines: Engines) -> str:
    rows = []
    for engine in engines:
        for cause, told in engine["audit"]["causes"].items():
            worst = max(
                (finding for finding in engine["audit"]["findings"] if finding["cause"] == cause),
                key=lambda finding: finding["bytes"] or 0,
            )
            rows.append([_name(engine), cause, worst["node"], str(told["kernels"]), byte_count(told["bytes"])])
    head = ["Engine", "Cause", "Node that costs most", "Kernels", "Bytes"]
    return markup.table("Kernels that a better graph would not have", head, rows, text_columns=3) if rows else ""


def _mends(engines: Engines) -> str:
    mends = {cause: told["mend"] for engine in engines for cause, told in engine["audit"]["causes"].items()}
    rows = [[cause, mend] for cause, mend in mends.items()]
    return markup.table("What helps", ["Cause", "Mend"], rows, text_columns=2) if rows else ""


def _largest(engines: Engines) -> str:
    rows = [
        [_name(engine), row["node"] or row["kernel"], row["reads"] or NOT_KNOWN, byte_count(row["bytes"])]
        for engine in engines
        for row in engine["audit"]["largest"][:LARGEST]
    ]
    head = ["Engine", "Node", "Reads", "Bytes"]
    return markup.table("Kernels that touch most", head, rows, text_columns=3) if rows else ""
