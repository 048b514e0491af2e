"""Sections of the report: the comparison with another report, latencies, the GPU, LoadGen, energy, Pareto."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgefuse.benchmarks import markup, plots
from edgefuse.benchmarks.latency import PERCENTILES
from edgefuse.benchmarks.markup import DASH, NOT_KNOWN, byte_count, milliseconds, percent, span
from edgefuse.benchmarks.section import Section, Table, not_measured
from edgefuse.runtime.bundle import HEAD

Report = Mapping[str, Any]

_NAMED = {  # key of the report -> its name, and where it begins and ends
    "engine": "Engine (the parts alone)",
    "host_end_to_end": "Host, end to end (decode, preprocess, parts, decision)",
    "sensor_to_decision": "Sensor to decision (a reading's age when it is decided on, 80 % load)",
}
_SUMMARY = ("mean_ms", *PERCENTILES)


def against(report: Report) -> Section | None:
    """The verdict of each part set; None where no other report was given."""
    found = report["against"]
    if found is None:
        return None
    rows = []
    for part_set, result in found["part_sets"].items():
        low, high = result["interval"]
        figures = [f"{result['ratio']:.3f}", f"{low:.3f}{DASH}{high:.3f}", f"{result['p']:.2g}"]
        rows.append([part_set, result["verdict"], *figures, f"{result['blocks']} x {result['queries']}"])
    head = ["Part set", "Verdict", "Time, ratio", f"{100 * found['confidence']:g} %", "p", "Blocks x queries"]
    note = (
        f"Against {found['report']}. Ratio: our time / the other's, the same queries in turn, in random order; both "
        f"bundles are opened anew for every block. Faster or slower is said only where the interval excludes 1 and the "
        f"ratio is further than {100 * found['margin']:g} % from it; p is that of Wilcoxon's signed-rank test."
    )
    return Section("Against another report", [Table(f"From {found['sensors']}", head, rows, 2)], [note])


def latencies(report: Report) -> Section:
    """Engine, host end to end, sensor to decision: each with the queries that it stands on."""
    found, rows = report["latencies"], []
    for key, name in _NAMED.items():
        if "not_measured" in found[key]:
            rows.append([name, "not measured", *[NOT_KNOWN] * (1 + len(_SUMMARY))])
            continue
        for of, summary in found[key].items():
            rows.append([name, of, str(summary["n"]), *(milliseconds(summary[each]) for each in _SUMMARY)])
    head = ["Latency", "Of", "Queries", "Mean", *(each.removesuffix("_ms") for each in PERCENTILES)]
    least = ", ".join(f"{name.removesuffix('_ms')} {count}" for name, count in found["least_queries"].items())
    why = found["sensor_to_decision"].get("not_measured")
    notes = [f"Queries that a percentile needs: {least}.", *([f"Sensor to decision: {why}."] if why else [])]
    return Section("Three latencies", [Table("In milliseconds", head, rows, 2)], notes)


def mlperf(report: Report) -> Section:
    """What LoadGen says."""
    title, found = "MLPerf scenarios, by LoadGen", report["mlperf"]
    if "not_measured" in found:
        return not_measured(title, found["not_measured"])
    rows = []
    for scenario, run in found["scenarios"].items():
        asked = f"{run['min_queries']} queries, {run['min_seconds']:g} s"
        times = [milliseconds(run.get(key)) for key in (*PERCENTILES, "guaranteed_ms")]
        throughput = f"{run['samples_per_s']:.1f}" if "samples_per_s" in run else NOT_KNOWN
        verdict = f"{run['result']} (short of: {', '.join(run['unmet'])})" if run["unmet"] else run["result"]
        rows.append([scenario, verdict, asked, str(run["queries"]), *times, throughput])
    percentiles = [f"{name.removesuffix('_ms')}, ms" for name in PERCENTILES]
    head = ["Scenario", "LoadGen says", "Asked at least", "Queries", *percentiles, "Early stopping, ms", "Samples/s"]
    right = found["accuracy"]
    notes = [
        f"{found['note']}.",
        "Files are in memory; decoding and preprocessing are timed. A query of MultiStream is 8 samples, answered one "
        "after the other. Early stopping: the scenario's percentile (p90 of SingleStream, p99 of MultiStream) at 99 % "
        "confidence.",
        f"Accuracy of the same calls: {100 * right['accuracy']:.2f} % of {right['n']}.",
    ]
    return Section(title, [Table(f"{found['part_set']} parts", head, rows, 3)], notes)


def energy(report: Report) -> Section:
    """Joules of a decision, by every meter there is."""
    title, found = "Energy of a decision", report["energy"]
    if "not_measured" in found:
        return not_measured(title, found["not_measured"])
    rows = [
        [part_set, meter, f"{told['joules_per_decision']:.4g}", f"{told['at_rest_watts']:.3g}", str(told["decisions"])]
        for part_set, meters in found.items()
        for meter, told in meters.items()
    ]
    head = ["Part set", "Meter", "J per decision", "At rest, W", "Decisions"]
    return Section(title, [Table("What is taken at rest is subtracted", head, rows, 2)])


def gpu(report: Report) -> Section | None:
    """Latencies of each target on this machine's GPU, its accuracy and builds; None where the bundle has no engine."""
    found = report["gpu"]
    if not found:
        return None
    rows, notes = [], []
    for target, told in found.items():
        if "not_measured" in told:
            rows += [[target, "not measured", *[NOT_KNOWN] * (2 + len(_SUMMARY))]]
            notes.append(f"{target}: {told['not_measured']}.")
            continue
        right, builds = told["accuracy"], told["builds"]
        for key in ("engine", "host_end_to_end"):
            times = [milliseconds(told[key][each]) for each in _SUMMARY]
            rows.append([target, _NAMED[key], *times, percent(right["accuracy"]), span(right["interval"])])
        if builds and "not_measured" in builds:
            notes.append(f"{target}, more builds: {builds['not_measured']}.")
        elif builds:
            medians = ", ".join(milliseconds(each) for each in builds["p50_ms"])
            notes.append(
                f"{target}, {len(builds['p50_ms'])} more builds from nothing: engine p50 {medians} ms; the slowest is "
                f"{percent(builds['spread'])} % above the fastest."
            )
    head = ["Target", "Latency", "Mean", *(each.removesuffix("_ms") for each in PERCENTILES), "Accuracy, %", "95 %"]
    data = Table(f"From {report['sensors']}, batch 1, in milliseconds", head, rows, 2)
    return Section("On this machine's GPU", [data], notes)


def latency_of(engine: Mapping[str, Any]) -> str:
    """The median of an engine in ms, or that there is none."""
    found = engine["latency"]
    return found if isinstance(found, str) else milliseconds(found)


def pareto(report: Report) -> str:
    """Accuracy with latency of every combination of parts: drawn, and as a table."""
    found = report["pareto"]
    head, rows = pareto_table(found)
    note = (
        f"Median milliseconds from {found['sensors']} and accuracy with its 95 % interval. A name is the part set of "
        f"each encoder in that order; filled and joined is the frontier."
    )
    drawing = markup.figure(plots.pareto_plot(found["points"], found["sensors"].split("+")), note)
    data = markup.table("Every combination, the fastest first", head, rows, text_columns=2)
    return markup.block("Accuracy with latency", drawing, data, *map(markup.paragraph, found["notes"]), wide=True)


def pareto_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the combinations, two columns of text first; models are named where there are several."""
    several = len({point["model"] for point in found["points"]}) > 1
    rows = []
    for point in found["points"]:
        low, high = point["p50_interval_ms"]
        encoders = ", ".join(f"{part} {point['parts'][part]}" for part in found["sensors"].split("+"))
        name = f"{point['model']}: {encoders}" if several else encoders
        times = [milliseconds(point["latency"]["p50_ms"]), f"{milliseconds(low)}{DASH}{milliseconds(high)}"]
        judged = [percent(point["accuracy"]), span(point["interval"])]
        on_it = "yes" if point["frontier"] else "no"
        rows.append([name, on_it, *judged, *times, byte_count(point["bytes"]), point["parts"][HEAD]])
    return ["Encoders", "Frontier", "Accuracy, %", "95 %", "p50, ms", "95 %", "On disk", "Head"], rows
