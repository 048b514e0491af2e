"""Answers "why is INT8 not faster": what the compiler's plan made of a graph, each loss with its node and its mend.

The graph says what there is to multiply and what was asked to be INT8 (products.py), the plan which kernel does it and
in what (plan.py, roles.py); ONNX node names tie them together. What no kernel owns up to is told as not found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgefuse.optimize.plan import Kernel, summary
from edgefuse.optimize.products import ATTENTION, CONVOLUTION, LINEAR, Attention, Product, attentions, products
from edgefuse.optimize.roles import MENDS, computes_in, surplus
from edgefuse.optimize.view import View, label

LARGEST = 8  # kernels that are listed by their bytes
FLOAT_ANYWAY = "asked for INT8, runs in float"
NOT_FUSED = "attention not fused"
_MENDS = MENDS | {
    FLOAT_ANYWAY: "see what `edgefuse check` says of it; else take its Q/DQ away, which now only cost",
    NOT_FUSED: "run all of it in FP16, or in INT8 with Q/DQ on all four inputs of both products; FP32 is never fused",
}
_SHARES = {"int8": ("Int8",), "fp16": ("Half", "BFloat16"), "fp32": ("Float",)}
_MULTIPLYING = re.compile(r"conv|corr|gemm|matmul|matrixmult|fusion", re.IGNORECASE)  # kinds of kernels


def audit(kernels: Sequence[Kernel], model: bytes) -> dict[str, Any]:
    """What became of INT8.

    Args:
        kernels: the plan, for batch 1.
        model: the ONNX part that it was compiled from.

    Returns:
        headline: one sentence.
        kernels, bytes_touched: as `plan.summary` has them; bytes are None where the plan leaves a size open, here and
            everywhere below.
        macs: {kind of product: {macs, share (of all), int8, fp16, fp32, not_found, asked (shares of its own)}}.
        attention: {expected, fused, missing (the softmax nodes)}.
        causes: {cause: {kernels, bytes, mend}}, the one with most kernels first.
        findings: [{cause, node, kernel, kernels, bytes, mend}].
        streams: {stream: {kernels, bytes}}.
        largest: [{kernel, node, reads (its narrowest type), bytes}].

    Raises:
        BundleError: the model is not ONNX.
    """
    scope = View(model).at_batch_1
    every, heads = products(scope), attentions(scope)
    found_in = homes(every, kernels)
    missing = _not_fused(heads, kernels)
    ops = {label(node): node.op_type for node in scope.nodes}
    found = [
        *_float_anyway(every, found_in, kernels),
        *(_finding(NOT_FUSED, attention.softmax, _of(attention.nodes, kernels)) for attention in missing),
        *(_finding(s.cause, s.node, [s.kernel]) for s in surplus(kernels, set(found_in.values()), ops)),
    ]
    told: dict[str, Any] = {
        **{key: value for key, value in summary(kernels).items() if key != "fused_attention"},
        "macs": _macs(every, found_in, kernels),
        "attention": {
            "expected": len(heads),
            "fused": len(heads) - len(missing),
            "missing": [attention.softmax for attention in missing],
        },
        "causes": _causes(found),
        "findings": found,
        "streams": _streams(kernels),
        "largest": _largest(kernels),
    }
    return {"headline": headline(told), **told}


def headline(told: Mapping[str, Any]) -> str:
    """One sentence of an audit (what `audit` returns)."""
    if told["kernels"] is None:
        return "the compiler told nothing of its kernels, so nothing can be said of INT8"
    every = told["macs"].get("all")
    parts = [f"kernels: {told['kernels']}, touching {_bytes(told['bytes_touched'])}"]
    if every:
        kinds = [(kind, told["macs"][kind]) for kind in (LINEAR, CONVOLUTION) if kind in told["macs"]]
        split = ", ".join(f"{kind} {_percent(row['int8']) if row['asked'] else 'not asked for'}" for kind, row in kinds)
        parts.append(
            f"{_percent(every['int8'])} of the multiply-accumulates run in INT8" + (f" ({split})" if split else "")
        )
    if told["attention"]["expected"]:
        parts.append(f"{told['attention']['fused']} of {told['attention']['expected']} attentions are fused")
    costs = {cause: row for cause, row in told["causes"].items() if cause in MENDS}
    if costs:
        most, row = next(iter(costs.items()))
        total = sum(cost["kernels"] for cost in costs.values())
        parts.append(
            f"kernels that only convert, rescale or activate: {total}, most for {most!r} ({row['kernels']}, "
            f"{_bytes(row['bytes'])})"
        )
    return "; ".join(parts)


def brief(engines: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The audits of a build in a few lines for a person.

    Args:
        engines: part -> its engine, whose "audit" is what `audit` returned, None where it was not kept.

    Returns:
        {explained: [{part, headline}], causes: [{part, cause, node: the one that costs most, costs, mend}]}.
    """
    explained, causes = [], []
    for part, engine in engines.items():
        found = engine["audit"] or {"headline": "the compiler told no plan", "causes": {}}
        explained.append({"part": part, "headline": found["headline"]})
        for cause, row in found["causes"].items():
            same = (finding for finding in found["findings"] if finding["cause"] == cause)
            worst = max(same, key=lambda finding: finding["bytes"] or 0)
            costs = f"kernels: {row['kernels']}, {_bytes(row['bytes'])}"
            causes.append({"part": part, "cause": cause, "node": worst["node"], "costs": costs, "mend": row["mend"]})
    return {"explained": explained, "causes": causes}


def homes(every: Iterable[Product], kernels: Sequence[Kernel]) -> dict[str, int]:
    """Node of each product -> index of the kernel that multiplies it; without those that no kernel names.

    A kernel behind it that applies its scale and bias names it too, so kernels that multiply come first.
    """
    naming: dict[str, list[int]] = {}
    for index, kernel in enumerate(kernels):
        if kernel.is_launched:
            for node in dict.fromkeys((*kernel.onnx_nodes, *_joined(kernel.name))):
                naming.setdefault(node, []).append(index)
    found = {}
    for product in every:
        named = naming.get(product.node)
        if named:
            found[product.node] = min(named, key=lambda index: _rank(kernels[index]))
    return found


def _joined(name: str) -> list[str]:
    """The nodes in the name of a kernel that joins products: `a+b_myl0_3`, `a + b`."""
    return re.sub(r"(_U\d+)?_myl\d+_\d+$", "", name).replace(" + ", "+").split("+")


def _rank(kernel: Kernel) -> int:
    """0 for kernels that surely multiply, 1 where a sum of products may be one, 2 for the rest."""
    if kernel.is_fused_attention or _MULTIPLYING.search(kernel.kind):
        return 0
    return 1 if re.search(r"MulSum|Fc|Corr|Gemm", kernel.name) else 2


def _macs(every: Sequence[Product], homes: Mapping[str, int], kernels: Sequence[Kernel]) -> dict[str, dict[str, float]]:
    """Shares of the multiply-accumulates, for each kind of product and for all; what has an open size is left out."""
    counts: Counter[tuple[str, str]] = Counter()
    for product in every:
        home = homes.get(product.node)
        kind = "not_found" if home is None else computes_in(kernels[home])
        share = next((name for name, types in _SHARES.items() if kind in types), "not_found")
        for name in (product.kind, "all"):
            counts[name, share] += product.macs or 0
            counts[name, "asked"] += (product.macs or 0) * product.wants_int8
            counts[name, "macs"] += product.macs or 0
    kinds = [kind for kind in (LINEAR, CONVOLUTION, ATTENTION, "all") if counts[kind, "macs"]]
    return {
        kind: {
            "macs": counts[kind, "macs"],
            "share": counts[kind, "macs"] / counts["all", "macs"],
            **{name: counts[kind, name] / counts[kind, "macs"] for name in (*_SHARES, "not_found", "asked")},
        }
        for kind in kinds
    }


def _float_anyway(
    every: Iterable[Product], homes: Mapping[str, int], kernels: Sequence[Kernel]
) -> Iterable[dict[str, Any]]:
    for product in every:
        home = homes.get(product.node)
        if product.wants_int8 and home is not None and computes_in(kernels[home]) != "Int8":
            yield _finding(FLOAT_ANYWAY, product.node, [kernels[home]])


def _not_fused(heads: Iterable[Attention], kernels: Sequence[Kernel]) -> list[Attention]:
    """The attentions of which no fused kernel names softmax or a product."""
    fused = {node for kernel in kernels if kernel.is_fused_attention for node in kernel.onnx_nodes}
    return [attention for attention in heads if not attention.nodes & fused]


def _of(nodes: Iterable[str], kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels that name one of `nodes`."""
    wanted = set(nodes)
    return [kernel for kernel in kernels if kernel.is_launched and wanted.intersection(kernel.onnx_nodes)]


def _finding(cause: str, node: str, at_fault: Sequence[Kernel]) -> dict[str, Any]:
    return {
        "cause": cause,
        "node": node,
        "kernel": ", ".join(kernel.name for kernel in at_fault),
        "kernels": len(at_fault),
        "bytes": _total(at_fault),
        "mend": _MENDS[cause],
    }


def _causes(found: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The findings of each cause together, the one with most kernels first."""
    causes: dict[str, dict[str, Any]] = {}
    for finding in found:
        row = causes.setdefault(finding["cause"], {"kernels": 0, "bytes": 0, "mend": finding["mend"]})
        row["kernels"] += finding["kernels"]
        known = None not in (row["bytes"], finding["bytes"])
        row["bytes"] = row["bytes"] + finding["bytes"] if known else None
    return dict(sorted(causes.items(), key=lambda item: -item[1]["kernels"]))


def _streams(kernels: Sequence[Kernel]) -> dict[str, dict[str, Any]]:
    streams: dict[int, list[Kernel]] = {}
    for kernel in kernels:
        if kernel.is_launched:
            streams.setdefault(kernel.stream, []).append(kernel)
    return {str(key): {"kernels": len(group), "bytes": _total(group)} for key, group in sorted(streams.items())}


def _largest(kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    sizes = [(kernel.bytes_touched, kernel) for kernel in kernels if kernel.is_launched]
    known = sorted(((size, kernel) for size, kernel in sizes if size is not None), key=lambda entry: -entry[0])
    return [
        {"kernel": kernel.name, "node": next(iter(kernel.onnx_nodes), ""), "reads": kernel.precision, "bytes": size}
        for size, kernel in known[:LARGEST]
    ]


def _total(group: Iterable[Kernel]) -> int | None:
    sizes = [kernel.bytes_touched for kernel in group]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _bytes(count: int | None) -> str:
    if count is None:
        return "an unknown number of bytes"
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
