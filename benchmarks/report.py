"""The report page: what `bench` measured as one self-contained HTML file, verdicts first, commands last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from edgefuse.benchmarks import blocks, ceilings, markup, parity_ledger, plots
from edgefuse.benchmarks.explained import plan_audit
from edgefuse.benchmarks.headline import cards, notes
from edgefuse.benchmarks.markup import DASH, NOT_KNOWN, PERCENT, TIMES, byte_count, milliseconds, percent, span
from edgefuse.benchmarks.section import Section

Report = Mapping[str, Any]

JUDGE = "accuracy judge, not a speed"  # the role of parts that are timed on a machine they are not made for

_TEMPLATE = Path(__file__).with_name("report.html")
_PERCENTILES = ("p50", "p90", "p99")


def render(report: Report) -> str:
    """The page for one report, as `bench` returns it: no script, nothing loaded, every value escaped."""
    environment = report["environment"]
    runtime = f"ONNX Runtime {environment['versions']['onnxruntime']} on the CPU, batch 1"
    subtitle = [report["created"], f"{environment['cpu']}, {environment['cores_usable']} cores", runtime]
    subtitle += ["quick run"] if report["quick"] else []
    told = {name: markup.section(section) for name, section in sections(report).items()}
    drawn = [_latency(report), _stages(report)]
    judged = [_accuracy(report), _answer_types(report), _accuracy_table(report), blocks.pareto(report)]
    body = [told["against"], *drawn, told["latencies"], _stage_table(report), *judged, _scenarios(report)]
    body += [told["parity"], told["mlperf"], told["energy"], _footprint(report), _method(report)]
    body += [told["ceilings"], told["gpu"], _engines(report), told["audit"]]
    body += [_environment(report), _lineage(report), _reproduce(report)]
    verdicts = {"cards": "".join(cards(report)), "notes": notes(report)}
    title = f"edgefuse benchmark: {report['bundle']['name']}"
    return page(title, report["bundle"]["name"], " · ".join(subtitle), "".join(body), **verdicts)


def sections(report: Report) -> dict[str, Section | None]:
    """Those that are tables and sentences only, so that the page and the Markdown both show them."""
    return {
        "against": blocks.against(report),
        "latencies": blocks.latencies(report),
        "mlperf": blocks.mlperf(report),
        "energy": blocks.energy(report),
        "ceilings": ceilings.section(report),
        "gpu": blocks.gpu(report),
        "audit": plan_audit(report),
        "parity": parity_ledger.section(report["parity"]),
    }


def page(title: str, heading: str, subtitle: str, body: str, cards: str = "", notes: str = "") -> str:
    """A page of ready-made HTML below a heading, which is escaped here."""
    told = {"title": escape(title), "heading": escape(heading), "subtitle": escape(subtitle)}
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(**told, cards=cards, notes=notes, sections=body)


def _speed_sets(report: Report) -> list[str]:
    return [part_set for part_set, about in report["part_sets"].items() if about["role"] != JUDGE]


def _latency(report: Report) -> str:
    shown = {part_set: report["distribution_ms"][part_set] for part_set in _speed_sets(report)}
    settings = report["settings"]
    note = (
        f"Share of {settings['queries']} queries answered in a time ({settings['warmup_queries']} more to warm up), "
        f"one at a time, from {report['sensors']}. The slowest 1 %, and what took over three medians, is not drawn."
    )
    return markup.block("How long an answer takes", markup.figure(plots.latency_plot(shown), note))


def _stages(report: Report) -> str:
    shown = {part_set: report["stages"][part_set] for part_set in _speed_sets(report)}
    note = (
        "Means. The encoders run side by side, each is drawn from where the host is done; the head ends with the total."
    )
    return markup.block("Where the time goes", markup.figure(plots.stage_plot(shown), note))


def _stage_table(report: Report) -> str:
    sets = list(report["part_sets"])
    rows = []
    for stage in report["stages"][sets[0]]:
        row = [stage]
        for part_set in sets:
            summary = report["stages"][part_set][stage]
            row += [milliseconds(summary["mean_ms"]), *_percentiles(summary)]
        rows.append(row)
    groups = [("", 1), *((name if name in _speed_sets(report) else f"{name}, {JUDGE}", 4) for name in sets)]
    head = ["Stage", *["Mean", *_PERCENTILES] * len(sets)]
    note = (
        "The trt parts run here only to judge their accuracy: Q/DQ is computed as written, so their time on a CPU says "
        "nothing about TensorRT."
    )
    data = markup.table("In milliseconds", head, rows, groups=groups)
    return markup.block("Time of every stage", data, markup.paragraph(note) if "trt" in sets else "", wide=True)


def _percentiles(summary: Mapping[str, Any]) -> list[str]:
    return [milliseconds(summary[f"{name}_ms"]) for name in _PERCENTILES]


def _speed(ratio: Mapping[str, Any]) -> str:
    return f"{ratio['median']:.2f}{TIMES} ({ratio['interval'][0]:.2f}{DASH}{ratio['interval'][1]:.2f})"


def _accuracy(report: Report) -> str:
    note = "Every subset of sensors that the examples have; something learned stands in for an absent sensor."
    drawing = plots.accuracy_plot("sensors", _by_sensors(report["accuracy"]))
    return markup.block("How right it is, by sensors", markup.figure(drawing, note))


def _answer_types(report: Report) -> str:
    drawing = plots.accuracy_plot("types", _by_type(report["accuracy"]))
    note = "With every sensor that an example has."
    return markup.block("How right it is, by type of answer", markup.figure(drawing, note))


def _accuracy_table(report: Report) -> str:
    return markup.block(
        "Accuracy, and what is kept of fp32, in percent",
        _judged("By sensors", _by_sensors(report["accuracy"])),
        _judged("By type of answer", _by_type(report["accuracy"])),
        markup.paragraph(
            "Accuracy with its 95 % Wilson interval. Kept: the accuracy divided by that of fp32 on the same examples, "
            "with a 95 % interval of the paired table of right and wrong, under Jeffreys' prior."
        ),
        wide=True,
    )


def _by_sensors(accuracy: Mapping[str, Any]) -> dict[str, Any]:
    return {part_set: result["by_subset"] for part_set, result in accuracy.items()}


def _by_type(accuracy: Mapping[str, Any]) -> dict[str, Any]:
    return {part_set: {"all": result, **result["by_answer_type"]} for part_set, result in accuracy.items()}


def _judged(caption: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per subset or type, and for each part set its accuracy and what it keeps."""
    sets, rows = list(results), []
    for name, first in results[sets[0]].items():
        row = [name, str(first["n"])]
        for part_set in sets:
            found = results[part_set][name]
            kept = [percent(found["retention"]), span(found["retention_interval"])]
            row += [percent(found["accuracy"]), span(found["interval"]), *(kept if part_set != "fp32" else [])]
        rows.append(row)
    groups, head = [("", 2)], [caption.removeprefix("By ").capitalize(), "Examples"]
    for part_set in sets:
        groups.append((part_set, 2 if part_set == "fp32" else 4))
        head += ["Accuracy", f"95{PERCENT}", *(["Kept", f"95{PERCENT}"] if part_set != "fp32" else [])]
    return markup.table(caption, head, rows, groups=groups)


def _scenarios(report: Report) -> str:
    sets, rows = _speed_sets(report), []
    for sensors, results in report["scenarios"].items():
        row = [sensors, str(results[sets[0]]["n"])]
        for part_set in sets:
            row += _percentiles(results[part_set])
        rows.append(row + [_speed(results[part_set]["speedup"]) for part_set in sets if part_set != "fp32"])
    ratios = [f"{part_set} vs fp32" for part_set in sets if part_set != "fp32"]
    head = ["Sensors", "Queries", *_PERCENTILES * len(sets), *ratios]
    groups = [("", 2), *((part_set, len(_PERCENTILES)) for part_set in sets), *(("Speed", 1) for _ in ratios)]
    data = markup.table("Single stream, batch 1, in milliseconds", head, rows, groups=groups)
    return markup.block("Time to an answer, by sensors", data, wide=True)


def _footprint(report: Report) -> str:
    names = list(report["size"]["fp32"]["parts"])
    size_rows = []
    for part_set, size in report["size"].items():
        parts = [byte_count(size["parts"][part]) for part in names]
        size_rows.append([part_set, *parts, byte_count(size["bytes"]), f"{size['ratio']:.2f}"])
    memory_rows = [
        [part_set, *(byte_count(memory[f"{key}_bytes"]) for key in ("imported", "answered", "model"))]
        for part_set, memory in report["memory"].items()
    ]
    memory_head = ["Part set", "After imports", "After one answer", "Difference"]
    return markup.block(
        "Size and memory",
        markup.table("On disk", ["Part set", *names, "All", "Ratio"], size_rows),
        markup.table("Resident memory of a fresh process", memory_head, memory_rows),
    )


def _engines(report: Report) -> str:
    title = "TensorRT engines"
    if not report["engines"]:
        return markup.block(title, markup.paragraph("None in this bundle: edgefuse build makes them."), wide=True)
    head = ["Target", "Part", "TensorRT", "SM", "File", "Kernels", "Bytes touched", "Build, s", "Latency"]
    note = "Kernels and the bytes they read and write are the compiler's plan; latency is the median on the GPU, in ms."
    data = markup.table(
        "As the compiler planned them", head, [_engine(row) for row in report["engines"]], text_columns=4
    )
    return markup.block(title, data, markup.paragraph(note), wide=True)


def _engine(row: Mapping[str, Any]) -> list[str]:
    """One engine; what its sidecar does not tell, or a missing sidecar, is a dash."""
    doubt = {True: "", False: " (of other parts)", None: " (no sidecar)"}[row.get("built_from_these_parts")]
    sms = ", ".join(str(sm) for sm in row.get("sm", ()))
    version, kernels, seconds = (_text(row.get(key)) for key in ("tensorrt_version", "kernels", "seconds"))
    figures = [byte_count(row["bytes"]), kernels, byte_count(row.get("bytes_touched")), seconds]
    return [row["target"], row["part"] + doubt, version, sms or NOT_KNOWN, *figures, blocks.latency_of(row)]


def _environment(report: Report) -> str:
    values = {key: value for key, value in report["environment"].items() if key != "versions"}
    values["memory_bytes"] = byte_count(values["memory_bytes"])
    return markup.block("Environment", _facts("Machine", values), _facts("Versions", report["environment"]["versions"]))


def _lineage(report: Report) -> str:
    bundle = report["bundle"]
    precision = {part_set: about["precision"] for part_set, about in report["part_sets"].items()}
    return markup.block(
        "Where the model comes from",
        _facts("Lineage", bundle["lineage"]),
        _facts("Precision", precision),
        _facts("Measured on validation data", _flat(bundle["quality"], leave_out="by_subset")),
    )


def _method(report: Report) -> str:
    return markup.block("How it was measured", _facts("Settings", report["settings"]))


def _reproduce(report: Report) -> str:
    return markup.block("How to reproduce each figure", markup.commands(report["commands"]), wide=True)


def _facts(caption: str, values: Mapping[str, Any]) -> str:
    rows = [[key.replace("_", " "), value] for key, value in _flat(values).items()]
    return markup.table(caption, ["What", "Value"], rows, text_columns=2)


def _flat(values: Mapping[str, Any], prefix: str = "", leave_out: str = "") -> dict[str, str]:
    """Nested values under dotted names, as text; a mapping of the name `leave_out` is not shown."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.", leave_out) if key != leave_out else {}
        else:
            flat[prefix + key] = _text(value)
    return flat


def _text(value: Any) -> str:
    if value is None:
        return NOT_KNOWN
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
