"""The table of what training gives: what was asked, what was found, and by which command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgefuse.benchmarks.markdown import table

Document = Mapping[str, Any]  # one of results/*.json

# What is asked, the file of results/ without its ending, the command, and what the file says: found, and whether it is
# enough. A file that is not there was not measured.
Row = tuple[str, str, str, Callable[[Document], tuple[str, bool]]]


def learned(documents: Mapping[str, Document | None]) -> str:
    """The table; `documents` by the names of ROWS, None where nothing was measured."""
    rows = []
    for asked, name, command, read in ROWS:
        document = documents[name]
        if document is None:
            rows.append([asked, "not measured", "", command])
        else:
            found, reached = read(document)
            rows.append([asked, found, "reached" if reached else "missed", command])
    return table(("asked", "found", "verdict", "printed by"), rows, text_columns=4)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _relational(document: Document) -> tuple[str, bool]:
    told = [
        f"{how}: plain {_percent(document[how]['plain']['accuracy'])}, "
        f"relational {_percent(document[how]['relational']['accuracy'])}"
        for how in ("typed", "spoken")
    ]
    return "; ".join(told), document["reached"]


def _noise(document: Document) -> tuple[str, bool]:
    margin = document["over_best_single"]
    return f"{margin['points']:+.1f} points ({margin['interval'][0]:.1f} to {margin['interval'][1]:.1f})", document[
        "reached"
    ]


def _missing(document: Document) -> tuple[str, bool]:
    return ", ".join(f"{subset} {points:+.1f}" for subset, points in document["points"].items()), document["reached"]


def _fgsm(document: Document) -> tuple[str, bool]:
    told = [
        f"{subset}: {100 * found['won_back']:.0f} % back, clean {found['clean_points']:+.1f} points"
        for subset, found in document["verdicts"].items()
    ]
    return "; ".join(told), document["reached"]


def _spoken(document: Document) -> tuple[str, bool]:
    return f"{document['points']:+.1f} points ({_percent(document['flite'])})", document["reached"]


def _speakers(document: Document) -> tuple[str, bool]:
    each = ", ".join(_percent(found) for found in document["by_speaker"].values())
    return f"{_percent(document['accuracy'])} ({each})", document["reached"]


def _recipes(document: Document) -> tuple[str, bool]:
    best = {recipe: max(by_subset.values()) for recipe, by_subset in document["accuracy"].items()}
    return ", ".join(f"{recipe} {_percent(found)}" for recipe, found in best.items()), document["reached"]


def gain(document: Document) -> tuple[str, bool]:
    """What distilled students have over undistilled ones, shown all sensors, and whether it is surely more than 0."""
    found = document["subsets"][max(document["subsets"], key=lambda name: name.count("+"))]
    low, high = 100 * found["low"], 100 * found["high"]
    told = f"{100 * found['difference']:+.1f} points ({low:.1f} to {high:.1f}); {_percent(document['kept'])} kept"
    return told, low > 0


def kept(document: Document) -> tuple[str, bool]:
    """What distilled students keep of their teachers' accuracy, and whether it is 99 % at a fifth of the cost."""
    macs, parameters = (document["cost"]["share"][what] for what in ("macs", "parameters"))
    told = f"{_percent(document['kept'])} kept at {macs:.2f} of their MACs and {parameters:.2f} of their parameters"
    return told, document["kept"] >= 0.99 and max(macs, parameters) <= 0.2


def lora(document: Document) -> tuple[str, bool]:
    """LoRA against full tuning, and whether 2 % are enough for what is at most a point below it."""
    seeds = len(document["accuracy"]["lora"])
    trained = f"{_percent(document['share'])} trained, {seeds} seed{'s' if seeds > 1 else ''}"
    told = f"{document['difference']:+.1f} points, {trained}"
    return told, document["difference"] >= -1 and document["share"] <= 0.02


def _throughput(document: Document) -> tuple[str, bool]:
    low, high = document["ratio_range"]
    waits = _percent(document["data_share"])
    return f"{document['ratio']:.1f} times ({low:.1f} to {high:.1f}), {waits} of the time for data", document["reached"]


_ROBUSTNESS = "python benchmarks/robustness.py"
ROWS: tuple[Row, ...] = (
    ("relational_vqa: plain >= 98 %, relational >= 94 %", "relational", "python benchmarks/relational.py", _relational),
    (
        "distilled student >= 99 % of its teachers at <= 1/5 of their cost",
        "robustness_kept",
        f"{_ROBUSTNESS} kept",
        kept,
    ),
    (
        "few lines: distilled student above the undistilled one over 5 seeds",
        "robustness_gain",
        f"{_ROBUSTNESS} gain",
        gain,
    ),
    (
        "av_digits, pixel noise 0.5: both sensors >= the better one - 0.3 points",
        "robustness_noise",
        f"{_ROBUSTNESS} noise",
        _noise,
    ),
    (
        "av_digits: each subset of sensors within 1 point of a model for it alone",
        "robustness_missing",
        f"{_ROBUSTNESS} missing",
        _missing,
    ),
    (
        "av_digits, pixels moved by 4 of 255: half of what is lost comes back, clean - 0.5 points at most",
        "robustness_fgsm",
        f"{_ROBUSTNESS} fgsm",
        _fgsm,
    ),
    ("easy_vqa asked by flite: within 3 points of typed", "robustness_flite", f"{_ROBUSTNESS} flite", _spoken),
    ("fsdd, a speaker never heard: >= 97 %", "robustness_speakers", f"{_ROBUSTNESS} speakers", _speakers),
    ("LoRA: <= 2 % trained, within 1 point of full tuning", "lora", "python benchmarks/lora.py --seeds 1", lora),
    ("generated recipes: >= 90 % with all sensors", "robustness_recipes", f"{_ROBUSTNESS} recipes", _recipes),
    (
        "easy_vqa: every distinct sensor encoded once, >= 5 times the samples/s at the same loss",
        "robustness_throughput",
        f"{_ROBUSTNESS} throughput",
        _throughput,
    ),
)
