"""What the race says: a row per peer, the bars that edgefuse set itself, and both as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgefuse.benchmarks.latency import speedup
from edgefuse.benchmarks.markdown import table
from edgefuse.benchmarks.markup import byte_count, milliseconds
from edgefuse.benchmarks.peers.catalogue import EAGER, HUGGING_FACE, OPENVINO_INT8, OPTIMUM, OURS

NOT_MEASURED = "not measured"
LATENCY_BARS = {EAGER: 0.25, HUGGING_FACE: 0.25, **dict.fromkeys(OPTIMUM, 0.9), OPENVINO_INT8: 0.9}  # ours / theirs
TORCH_BARS = {  # ours / theirs, of every peer that imports torch: what -> where its row has it, at most
    "cold start": (("cold_start", "median_s"), 0.2),
    "installed size, as pip installs it": (("disk", "installed_bytes"), 0.1),
    "installed size, GPU libraries not counted": (("disk", "cpu_bytes"), 0.1),
}
Rows = Mapping[str, Mapping[str, Any]]  # peer -> what was measured, or {not_measured: why}


def ours_over_theirs(ours_ms: Sequence[float], theirs_ms: Sequence[float]) -> dict[str, Any]:
    """{median, interval, n} of the ratios of the same queries; below 1 ours is faster."""
    return speedup(ours_ms, theirs_ms)  # its reference over its candidate


def bars(rows: Rows) -> list[dict[str, Any]]:
    """Each bar as {what, peer, asked, ratio, interval, reached}; ratio and reached are None where a side is missing.

    A latency bar is judged by the median of the paired ratios, the others by the ratio of the medians or of the sizes.
    """
    found = []
    for peer, asked in LATENCY_BARS.items():
        ratio = rows.get(peer, {}).get("ours_over_theirs") or {}
        found.append(_bar("end-to-end latency", peer, asked, ratio.get("median"), ratio.get("interval")))
    ours = rows.get(OURS, {})
    for peer, row in rows.items():
        if row.get("torch"):
            for what, (keys, asked) in TORCH_BARS.items():
                found.append(_bar(what, peer, asked, _ratio(ours, row, *keys)))
    return found


def _ratio(ours: Mapping[str, Any], theirs: Mapping[str, Any], group: str, key: str) -> float | None:
    return round(ours[group][key] / theirs[group][key], 4) if group in ours and group in theirs else None


def _bar(
    what: str, peer: str, asked: float, ratio: float | None, interval: Sequence[float] | None = None
) -> dict[str, Any]:
    reached = None if ratio is None else ratio <= asked
    return {"what": what, "peer": peer, "asked": asked, "ratio": ratio, "interval": interval, "reached": reached}


def markdown(document: Mapping[str, Any]) -> str:
    """The table of peers and that of the bars."""
    return f"{peers_table(document['rows'])}\n{bars_table(document['bars'])}"


def peers_table(rows: Rows) -> str:
    """A line per peer."""
    head = (
        "peer",
        "p50 / p90, ms",
        "host + model, ms",
        "ours / theirs",
        "rows a second",
        "first answer, s",
        "PSS",
        "installed (without GPU libraries)",
        "accuracy, %",
        "takes; does without",
    )
    return table(head, [_cells(name, row) for name, row in rows.items()])


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    if "not_measured" in row:
        return [name, f"{NOT_MEASURED}: {row['not_measured']}", *[""] * 8]
    latency, ratio, accuracy, disk = (row[key] for key in ("latency", "ours_over_theirs", "accuracy", "disk"))
    return [
        name,
        f"{milliseconds(latency['p50_ms'])} / {milliseconds(latency['p90_ms'])}",
        f"{milliseconds(row['host_ms'])} + {milliseconds(row['model_ms'])}",
        f"{ratio['median']:.2f} ({ratio['interval'][0]:.2f}-{ratio['interval'][1]:.2f})" if ratio else "",
        f"{row['rows_per_s']:.0f}" if row["rows_per_s"] else f"{NOT_MEASURED}: {row['no_rows_per_s']}",
        f"{row['cold_start']['median_s']:.2f}",
        byte_count(row["pss_bytes"]),
        f"{byte_count(disk['installed_bytes'])} ({byte_count(disk['cpu_bytes'])})",
        f"{100 * accuracy['accuracy']:.2f} "
        f"({100 * accuracy['interval'][0]:.2f}-{100 * accuracy['interval'][1]:.2f}), n {accuracy['n']}",
        f"{' + '.join(row['takes'])}; {', '.join(row['answers_without']) or 'none'}",
    ]


def bars_table(bars: Sequence[Mapping[str, Any]]) -> str:
    """A line per bar."""
    rows = []
    for bar in bars:
        span = f" ({bar['interval'][0]:.3f}-{bar['interval'][1]:.3f})" if bar["interval"] else ""
        ratio = NOT_MEASURED if bar["ratio"] is None else f"{bar['ratio']:.3f}{span}"
        verdict = {True: "reached", False: "missed", None: NOT_MEASURED}[bar["reached"]]
        rows.append([bar["what"], bar["peer"], ratio, f"{bar['asked']:g}", verdict])
    return table(("what, ours / theirs", "peer", "measured", "at most", "verdict"), rows, text_columns=2)
