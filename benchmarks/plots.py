"""The drawings of the report: matplotlib to inline SVG that takes its colours and its type from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgefuse.benchmarks.latency import HOST_STAGES
from edgefuse.runtime.bundle import HEAD

# Colours that matplotlib draws with, and what the page replaces them by: one drawing serves light, dark and print.
INK, FAINT, SOFT = "#010101", "#020202", "#060606"  # what is read, the grid, what joins
SERIES = {"fp32": "#030303", "trt": "#040404", "cpu": "#050505"}
_PAGE_COLOURS = {INK: "currentColor", FAINT: "var(--faint)", SOFT: "var(--soft)"} | {
    hue: f"var(--{name})" for name, hue in SERIES.items()
}
_DASHES: dict[str, Any] = {"fp32": (0, (5, 2)), "trt": ":", "cpu": "-"}  # told apart without colour
_MARKERS = {"fp32": "o", "trt": "^", "cpu": "s"}
_SHAPES = "osD^v"  # of models

_WIDTH = 5.4  # inches of 72 units: 389 units wide, so that 12-unit type is still read on a screen 400 pixels wide
_LABEL = 24  # characters of a name that leave room for the drawing
_MODEL = 10  # the same of a model, which stands before the names of its parts
_ROW = 0.24  # inches for each name beside a drawing
_TAIL = 3  # times the median: where the drawing of latencies ends at the latest
_STYLE: Any = {  # matplotlib's type is a dict of every key that it knows
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's own typeface
    "svg.hashsalt": "edgefuse",  # the same report gives the same page, byte by byte
    "text.parse_math": False,  # a name may hold dollar signs
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def latency_plot(distribution_ms: Mapping[str, Sequence[float]]) -> str:
    """Share of the queries answered within a time, one line per part set; takes percentiles 0..100 of each."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(3.6)
        for part_set, percentiles in distribution_ms.items():
            look: dict[str, Any] = {"linestyle": _DASHES[part_set], "linewidth": 2.2}
            axes.plot(percentiles[:100], range(100), color=SERIES[part_set], label=part_set, **look)
        # A tail a hundred times the median would leave nothing of the rest to see.
        axes.set_xlim(0, 1.08 * max(min(each[99], _TAIL * each[50]) for each in distribution_ms.values()))
        axes.set_ylim(0, 100)
        axes.set_yticks([0, 25, 50, 75, 90, 99], ["0 %", "25 %", "50 %", "75 %", "90 %", "99 %"])
        axes.set_xlabel("milliseconds to the answer")
        _legend(figure)
        return _svg(figure, "latency", "Share of queries answered within a time, per part set")


def stage_plot(stages: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Where the mean time goes: host, encoders, head, total.

    Encoders may run side by side: each is drawn from where the host is done, and the head from the end.
    """
    names = list(next(iter(stages.values())))
    height = 0.8 / len(stages)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(1.2 + 0.42 * len(names))
        longest = max(summary["total"]["mean_ms"] for summary in stages.values())
        for place, (part_set, summary) in enumerate(stages.items()):
            begin = 0.0
            for row, stage in enumerate(names):
                length = summary[stage]["mean_ms"]
                begin = {"total": 0.0, HEAD: summary["total"]["mean_ms"] - length}.get(stage, begin)
                y = row + (place - (len(stages) - 1) / 2) * height
                label = part_set if row == 0 else None
                axes.barh(y, length, height * 0.86, left=begin, color=SERIES[part_set], label=label)
                axes.text(begin + length + 0.012 * longest, y, f"{length:.2f}", va="center", fontsize=10)
                begin += length if stage in HOST_STAGES else 0.0
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 1.14 * longest)
        axes.set_xlabel("mean milliseconds")
        _legend(figure)
        return _svg(figure, "stages", "Mean time of each stage and the total, per part set, encoders side by side")


def accuracy_plot(by: str, groups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Accuracy and its 95 % interval for each group of examples; takes {part set: {group: {accuracy, interval}}}."""
    names = list(next(iter(groups.values())))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(1.2 + 0.45 * len(names))
        for place, (part_set, results) in enumerate(groups.items()):
            rows = [row + 0.22 * (place - (len(groups) - 1) / 2) for row in range(len(names))]
            low, high = ([100 * results[name]["interval"][end] for name in names] for end in (0, 1))
            axes.hlines(rows, low, high, color=SERIES[part_set], linewidth=2)
            middle = [100 * results[name]["accuracy"] for name in names]
            look: dict[str, Any] = {"marker": _MARKERS[part_set], "markersize": 6, "linestyle": "none"}
            axes.plot(middle, rows, color=SERIES[part_set], label=part_set, **look)
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("accuracy in percent, with 95 % interval")
        _legend(figure)
        return _svg(figure, f"accuracy-{by}", f"Accuracy with its 95 % interval by {by}, per part set")


def pareto_plot(points: Sequence[Mapping[str, Any]], sensors: Sequence[str]) -> str:
    """Accuracy over median time of every combination, each named beside the drawing, the frontier filled and joined.

    Args:
        points: of pareto.pareto.
        sensors: whose part sets make a name, in order.
    """
    models = list(dict.fromkeys(point["model"] for point in points))
    colours = {True: SERIES["cpu"], False: SERIES["fp32"]}
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(max(3.6, 1.2 + _ROW * len(points)))
        best = sorted((point["latency"]["p50_ms"], 100 * point["accuracy"]) for point in points if point["frontier"])
        axes.plot(*zip(*best, strict=True), color=colours[True], linewidth=1.6, drawstyle="steps-post")
        ordered = sorted(points, key=lambda point: (-point["accuracy"], -point["latency"]["p50_ms"]))
        for row, point in enumerate(ordered):
            x, y, on_it = point["latency"]["p50_ms"], 100 * point["accuracy"], point["frontier"]
            axes.vlines(x, *(100 * end for end in point["interval"]), color=colours[on_it], linewidth=1)
            look: dict[str, Any] = {"marker": _SHAPES[models.index(point["model"]) % len(_SHAPES)], "markersize": 8}
            axes.plot(x, y, color=colours[on_it], fillstyle="full" if on_it else "none", **look)
            name = "/".join(point["parts"][sensor] for sensor in sensors)
            name = f"{_short(point['model'], _MODEL)} {name}" if len(models) > 1 else name
            place = (1.05, 1 - (row + 0.5) / len(ordered))  # in a column of their own, names never lie on each other
            leader = {"arrowstyle": "-", "color": SOFT, "linewidth": 0.6, "shrinkB": 4, "relpos": (0, 0.5)}
            face: dict[str, Any] = {"fontsize": 10, "fontweight": "bold" if on_it else "normal", "va": "center"}
            axes.annotate(name, (x, y), place, textcoords="axes fraction", arrowprops=leader, **face)
        axes.margins(x=0.12)
        axes.set_xlabel("median milliseconds to the answer")
        axes.set_ylabel("accuracy in percent")
        axes.set_title(f"names: {'/'.join(sensors)}", fontsize=10, loc="right")
        return _svg(figure, "pareto", "Accuracy over median time of every combination of parts, the frontier joined")


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")  # not pyplot: nothing global is kept
    return figure, figure.subplots()


def _short(name: str, most: int = _LABEL) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside upper left", ncols=len(SERIES))  # never over a line, whatever was measured


def _svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an <svg> element whose ids are unique in the page and whose colours are the page's."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue().decode()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#)', rf"\g<1>{name}-", svg.replace("xlink:href", "href"))
    svg = svg.replace('href="#', f'href="#{name}-')
    svg = re.sub(r"font-family: [^;\"]+", "font-family: inherit", svg)
    for drawn, shown in _PAGE_COLOURS.items():
        svg = svg.replace(drawn, shown)
    opening, drawing = svg.split(">", 1)
    size = opening[opening.index("viewBox=") :].split('"')[1]
    return f'<svg class="plot" role="img" aria-label="{escape(label)}" viewBox="{size}">{drawing}'
