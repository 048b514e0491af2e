"""The headline of the report: the verdicts, and what a reader must know before trusting the figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from edgefuse.benchmarks import markup
from edgefuse.benchmarks.markup import DASH, PERCENT, TIMES, byte_count, milliseconds, percent, span

Report = Mapping[str, Any]

_LOADED = 0.5  # load per usable core above which other work is mentioned


@dataclass(frozen=True, slots=True)
class Verdict:
    """One headline figure."""

    title: str
    value: str
    detail: str  # of what, measured how
    verdict: str | None = None  # in words
    good: bool | None = None  # None where it is neither good nor bad


def cards(report: Report) -> list[str]:
    """The verdicts as HTML."""
    return [markup.card(v.title, v.value, v.detail, v.verdict, good=v.good) for v in verdicts(report)]


def verdicts(report: Report) -> list[Verdict]:
    """Accuracy kept, speed, size, first answer; what was not measured has no verdict."""
    found = []
    for part_set, result in report["accuracy"].items():
        if result["retention"] is not None:
            found.append(_retention(part_set, result, report["gate"]))
    ratio = report["scenarios"][report["sensors"]].get("cpu", {}).get("speedup")
    if ratio:
        found.append(_speed(ratio, report["stages"]))
    for part_set, size in report["size"].items():
        if part_set != "fp32":
            whole = byte_count(report["size"]["fp32"]["bytes"])
            detail = f"of the fp32 size: {byte_count(size['bytes'])} against {whole}"
            found.append(Verdict(f"Size: {part_set} parts", f"{size['ratio']:.2f}{TIMES}", detail))
    first = report["cold_start"]
    detail = f"from starting edgefuse predict in a fresh process to its end; median of {len(first['runs_s'])} starts"
    found.append(Verdict("First answer", f"{first['median_s']:.2f} s", detail))
    return found


def _retention(part_set: str, result: Mapping[str, Any], gate: float) -> Verdict:
    kept, interval = result["retention"], result["retention_interval"]
    detail = f"of the fp32 accuracy on {result['n']} test examples (95{PERCENT}: {span(interval)})"
    verdict = f"gate {100 * gate:g}{PERCENT} {'passed' if kept >= gate else 'missed'}"
    return Verdict(f"Accuracy kept: {part_set} parts", f"{percent(kept)}{PERCENT}", detail, verdict, kept >= gate)


def _speed(ratio: Mapping[str, Any], stages: Mapping[str, Any]) -> Verdict:
    low, high = ratio["interval"]
    good = True if low > 1 else False if high < 1 else None
    verdict = {True: "faster than fp32", False: "slower than fp32", None: "no difference shown"}[good]
    middle = {name: milliseconds(stages[name]["total"]["p50_ms"]) for name in ("cpu", "fp32")}
    detail = f"p50 {middle['cpu']} ms against {middle['fp32']} ms (95{PERCENT} of the ratio: {low:.2f}{DASH}{high:.2f})"
    return Verdict("Speed: cpu parts", f"{ratio['median']:.2f}{TIMES}", detail, verdict, good)


def notes(report: Report) -> str:
    """The remarks as HTML."""
    found = remarks(report)
    return f'<ul class="notes">{"".join(f"<li>{escape(remark)}</li>" for remark in found)}</ul>' if found else ""


def remarks(report: Report) -> list[str]:
    """What a reader must know before trusting the figures."""
    environment, found = report["environment"], list(report["broken"])
    if report["quick"]:
        found.append("A quick run: fewer queries and examples than a report to publish needs.")
    load, cores = environment["load_at_start"], environment["cores_usable"]
    if load > _LOADED * cores:
        found.append(
            f"Other work was running at the start (load {load} on {cores} cores): times are longer than on a quiet "
            "machine. Ratios are paired, query by query."
        )
    return found
