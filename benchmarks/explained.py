"""The section of the report that says what the compiler made of INT8, from the audits beside the engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgefuse.benchmarks.markup import NOT_KNOWN, byte_count, percent
from edgefuse.benchmarks.section import Section, Table

TITLE = "Plan audit: what became of INT8"
LARGEST = 3  # kernels of each engine
NEEDED = {"headline", "macs", "attention", "causes", "findings", "largest"}  # an audit of another version may differ
Engines = Sequence[Mapping[str, Any]]


def plan_audit(report: Mapping[str, Any]) -> Section:
    """The section for one report, as `bench` returns it."""
    engines = [engine for engine in report["engines"] if (engine.get("audit") or {}).keys() >= NEEDED]
    if not engines:
        nothing = "No engine of this bundle has an audit beside it: edgefuse build writes one with every engine."
        return Section(TITLE, [], [nothing])
    tables = [_products(engines), _attention(engines), _causes(engines), _mends(engines), _largest(engines)]
    note = (
        "Read from the compiler's plan at batch 1, nothing was run: the bytes are what each kernel reads and writes, "
        "weights included. Products are counted in multiply-accumulates; asked is what has Q/DQ on both sides."
    )
    headlines = [f"{_name(engine)}: {engine['audit']['headline']}." for engine in engines]
    return Section(TITLE, [table for table in tables if table.rows], [note], headlines)


def _name(engine: Mapping[str, Any]) -> str:
    return f"{engine['target']} {engine['part']}"


def _products(engines: Engines) -> Table:
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
    return Table("In what the products run", head, rows, 2)


def _attention(engines: Engines) -> Table:
    found = [(engine, engine["audit"]["attention"]) for engine in engines if engine["audit"]["attention"]["expected"]]
    rows = [
        [_name(engine), f"{told['fused']} of {told['expected']}", ", ".join(told["missing"]) or NOT_KNOWN]
        for engine, told in found
    ]
    head = ["Engine", "Fused", "Softmax of those that are not"]
    return Table("Attentions", head, rows, 3)


def _causes(engines: Engines) -> Table:
    rows = []
    for engine in engines:
        for cause, told in engine["audit"]["causes"].items():
            worst = max(
                (finding for finding in engine["audit"]["findings"] if finding["cause"] == cause),
                key=lambda finding: finding["bytes"] or 0,
            )
            rows.append([_name(engine), cause, worst["node"], str(told["kernels"]), byte_count(told["bytes"])])
    head = ["Engine", "Cause", "Node that costs most", "Kernels", "Bytes"]
    return Table("Kernels that a better graph would not have", head, rows, 3)


def _mends(engines: Engines) -> Table:
    mends = {cause: told["mend"] for engine in engines for cause, told in engine["audit"]["causes"].items()}
    rows = [[cause, mend] for cause, mend in mends.items()]
    return Table("What helps", ["Cause", "Mend"], rows, 2)


def _largest(engines: Engines) -> Table:
    rows = [
        [_name(engine), row["node"] or row["kernel"], row["reads"] or NOT_KNOWN, byte_count(row["bytes"])]
        for engine in engines
        for row in engine["audit"]["largest"][:LARGEST]
    ]
    head = ["Engine", "Node", "Reads", "Bytes"]
    return Table("Kernels that touch most", head, rows, 3)
