"""The report as Markdown that GitHub shows: the same verdicts and figures as the page, without its drawings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgefuse.benchmarks.blocks import latency_of, pareto_table
from edgefuse.benchmarks.headline import remarks, verdicts
from edgefuse.benchmarks.markdown import code, table, text
from edgefuse.benchmarks.markup import NOT_KNOWN, byte_count, milliseconds, percent, span
from edgefuse.benchmarks.report import sections
from edgefuse.benchmarks.section import Section

Report = Mapping[str, Any]

_PERCENTILES = ("p50_ms", "p90_ms", "p99_ms")


def render_markdown(report: Report) -> str:
    """One report, as `bench` returns it: verdicts first, commands last."""
    environment = report["environment"]
    runtime = f"ONNX Runtime {environment['versions']['onnxruntime']}, batch 1"
    about = f"{report['created']}, {environment['cpu']}, {environment['cores_usable']} cores, {runtime}"
    told = sections(report)
    return "\n".join(
        [
            f"# edgefuse benchmark: {text(report['bundle']['name'])}\n",
            f"{text(about)}\n",
            _verdicts(report),
            *(f"- {text(remark)}" for remark in remarks(report)),
            _told(told["against"]),
            _section("Time to an answer, by sensors, in ms", _scenarios(report)),
            _told(told["latencies"]),
            _section(f"Time of every stage, {report['sensors']}, in ms", _stages(report)),
            _section("Accuracy, and what is kept of fp32, in percent", _accuracy(report)),
            _section("Accuracy with latency", _pareto(report["pareto"])),
            _told(told["parity"]),
            _told(told["mlperf"]),
            _told(told["energy"]),
            _section("Size and memory", _footprint(report)),
            _told(told["ceilings"]),
            _told(told["gpu"]),
            _section("TensorRT engines", _engines(report)),
            _told(told["audit"]),
            _section("Environment", _environment(environment)),
            _section("How to reproduce each figure", _commands(report)),
        ]
    )


def _section(title: str, body: str) -> str:
    return f"\n## {text(title)}\n\n{body}"


def _told(found: Section | None) -> str:
    if found is None:
        return ""
    tables = [
        f"{text(each.caption)}:\n\n{table(each.head, each.rows, text_columns=each.text_columns)}"
        for each in found.tables
    ]
    return _section(found.title, "\n".join(filter(None, [_list(found.lead), *tables, _list(found.notes)])))


def _verdicts(report: Report) -> str:
    signs = {True: "yes", False: "no", None: ""}
    rows = [[card.title, card.value, signs[card.good], card.verdict or "", card.detail] for card in verdicts(report)]
    return table(("what", "measured", "good", "verdict", "how"), rows, text_columns=5)


def _times(summary: Mapping[str, Any]) -> list[str]:
    return [milliseconds(summary[name]) for name in _PERCENTILES]


def _scenarios(report: Report) -> str:
    rows = []
    for sensors, results in report["scenarios"].items():
        for part_set, found in results.items():
            ratio = found.get("speedup")
            told = f"{ratio['median']:.2f} ({ratio['interval'][0]:.2f}-{ratio['interval'][1]:.2f})" if ratio else ""
            rows.append([sensors, part_set, str(found["n"]), *_times(found), told])
    head = ("sensors", "parts", "queries", "p50", "p90", "p99", "times as fast as fp32 (95 %)")
    return table(head, rows, text_columns=2)


def _stages(report: Report) -> str:
    rows = [
        [part_set, stage, milliseconds(found["mean_ms"]), *_times(found)]
        for part_set, stages in report["stages"].items()
        for stage, found in stages.items()
    ]
    judges = [name for name, about in report["part_sets"].items() if about["role"] != "speed"]
    note = f"\n{', '.join(judges)}: run here to judge the accuracy; the times say nothing of the target.\n"
    return table(("parts", "stage", "mean", "p50", "p90", "p99"), rows, text_columns=2) + (note if judges else "")


def _accuracy(report: Report) -> str:
    rows = []
    for part_set, result in report["accuracy"].items():
        every = {"all": result, **result["by_answer_type"], **result["by_subset"]}
        for name, found in every.items():
            kept = [percent(found["retention"]), span(found["retention_interval"])]
            rows.append([part_set, name, str(found["n"]), percent(found["accuracy"]), span(found["interval"]), *kept])
    head = ("parts", "examples with", "n", "accuracy", "95 %", "kept", "95 %")
    return table(head, rows, text_columns=2)


def _pareto(found: Mapping[str, Any]) -> str:
    head, rows = pareto_table(found)
    return f"{table(head, rows, text_columns=2)}\n{_list(found['notes'])}"


def _list(lines: Sequence[str]) -> str:
    return "".join(f"- {text(line)}\n" for line in lines)


def _footprint(report: Report) -> str:
    rows = []
    for part_set, size in report["size"].items():
        memory = report["memory"].get(part_set)
        answered = byte_count(memory["answered_bytes"]) if memory else NOT_KNOWN
        rows.append([part_set, byte_count(size["bytes"]), f"{size['ratio']:.2f}", answered])
    return table(("parts", "on disk", "of fp32", "resident after one answer"), rows)


def _engines(report: Report) -> str:
    if not report["engines"]:
        return "None in this bundle: edgefuse build makes them.\n"
    head = ("target", "part", "TensorRT", "kernels", "bytes touched", "latency")
    rows = [
        [
            engine["target"],
            engine["part"],
            str(engine.get("tensorrt_version", NOT_KNOWN)),
            str(engine.get("kernels", NOT_KNOWN)),
            byte_count(engine.get("bytes_touched")),
            latency_of(engine),
        ]
        for engine in report["engines"]
    ]
    return table(head, rows, text_columns=3)


def _environment(environment: Mapping[str, Any]) -> str:
    told = {key: value for key, value in environment.items() if key != "versions"} | dict(environment["versions"])
    rows = [[key.replace("_", " "), NOT_KNOWN if value is None else str(value)] for key, value in told.items()]
    return table(("what", "value"), rows, text_columns=2)


def _commands(report: Report) -> str:
    return "\n".join(f"{text(what)}:\n\n{code(command)}" for what, command in report["commands"])
