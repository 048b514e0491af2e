"""The figures of a report under one flat name each, for a history file and for thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgefuse.benchmarks.latency import PERCENTILES

Report = Mapping[str, Any]
Figures = dict[str, Any]  # name -> a number, None where it was not measured, or for SLOWER which part sets are

_TIMES = ("mean_ms", *PERCENTILES)
_BOTH_TIMES = (*_TIMES, *(f"engine_{time}" for time in _TIMES))  # host end to end, and the engine alone
OF_SPEED = (*_BOTH_TIMES, "memory_bytes")
OF_EVERY_SET = ("accuracy", "retention", "bytes")
OF_GPU = (*_BOTH_TIMES, "accuracy", "build_spread")
RETENTION, FIRST_ANSWER = "retention", "first_answer_s"  # the least retention of all part sets; of the whole bundle
RATIO, SLOWER = "against_ratio", "slower"


def names(part_sets: Sequence[str], fast: Sequence[str], targets: Sequence[str], compared: bool) -> list[str]:
    """The names that a report will have: known before anything is measured.

    Args:
        part_sets: those of the bundle.
        fast: of them, those that are a speed.
        targets: of its engines.
        compared: whether another report is given.
    """
    found = [f"{part_set}.{figure}" for part_set in fast for figure in (*OF_SPEED, *([RATIO] if compared else []))]
    found += [f"{part_set}.{figure}" for part_set in part_sets for figure in OF_EVERY_SET]
    found += [f"{target}.{figure}" for target in targets for figure in OF_GPU]
    return [*found, RETENTION, FIRST_ANSWER, *([SLOWER] if compared else [])]


def figures(report: Report) -> Figures:
    """Every figure of a report, under the names that `names` gives."""
    found: Figures = {}
    latencies = report["latencies"]
    for part_set, host in latencies["host_end_to_end"].items():
        times = _both_times(host, latencies["engine"][part_set])
        found |= {f"{part_set}.{name}": time for name, time in times.items()}
        found[f"{part_set}.memory_bytes"] = report["memory"][part_set]["answered_bytes"]
    for part_set, judged in report["accuracy"].items():
        found[f"{part_set}.accuracy"], found[f"{part_set}.retention"] = judged["accuracy"], judged["retention"]
        found[f"{part_set}.bytes"] = report["size"][part_set]["bytes"]
    for target, told in report["gpu"].items():
        found |= {f"{target}.{figure}": value for figure, value in _on_gpu(told).items()}
    kept = [judged["retention"] for judged in report["accuracy"].values() if judged["retention"] is not None]
    found[RETENTION] = min(kept, default=None)
    found[FIRST_ANSWER] = report["cold_start"]["median_s"]
    if report["against"] is not None:
        compared = report["against"]["part_sets"]
        found |= {f"{part_set}.{RATIO}": compared.get(part_set, {}).get("ratio") for part_set in report["memory"]}
        slower = (f"{name}, {each['ratio']:.3f} times" for name, each in compared.items() if each["verdict"] == SLOWER)
        found[SLOWER] = "; ".join(slower)
    return found


def _both_times(host: Mapping[str, Any], engine: Mapping[str, Any]) -> Figures:
    return dict(zip(_BOTH_TIMES, [each[time] for each in (host, engine) for time in _TIMES], strict=True))


def _on_gpu(told: Mapping[str, Any]) -> Figures:
    """OF_GPU of one target; None where its engines could not be asked."""
    if "not_measured" in told:
        return dict.fromkeys(OF_GPU)
    times = _both_times(told["host_end_to_end"], told["engine"])
    return {**times, "accuracy": told["accuracy"]["accuracy"], "build_spread": (told["builds"] or {}).get("spread")}
