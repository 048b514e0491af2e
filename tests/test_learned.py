"""The table of what training gives: every row says what was found, and whether it is enough."""

from __future__ import annotations

from typing import Any

import pytest

from edgefuse.benchmarks.learned import ROWS, learned

NAMES = [name for _, name, _, _ in ROWS]


def score(plain: float, relational: float) -> dict[str, Any]:
    return {"plain": {"accuracy": plain}, "relational": {"accuracy": relational}}


def gain(kept: float = 0.995, low: float = 0.01, macs: float = 0.2) -> dict[str, Any]:
    every = {"difference": 0.02, "low": low, "high": 0.03}
    cost = {"share": {"macs": macs, "parameters": 0.2}}
    return {"kept": kept, "subsets": {"image": {}, "image+audio": every}, "cost": cost}


FOUND: dict[str, dict[str, Any]] = {
    "relational": {"typed": score(0.99, 0.95), "spoken": score(0.9, 0.85), "reached": True},
    "robustness_kept": gain(),
    "robustness_gain": gain(),
    "robustness_noise": {"over_best_single": {"points": 9.84, "interval": [8.9, 10.8]}, "reached": True},
    "robustness_missing": {"points": {"image": -2.2, "image+audio": 0.7}, "reached": False},
    "robustness_fgsm": {"verdicts": {"image": {"won_back": 0.62, "clean_points": 1.26}}, "reached": True},
    "robustness_flite": {"points": -2.0, "flite": 0.97, "reached": True},
    "robustness_speakers": {"accuracy": 0.96, "by_speaker": {"a": 0.9, "b": 1.0}, "reached": False},
    "lora": {"accuracy": {"lora": [0.9, 0.9]}, "difference": -0.4, "share": 0.0101},
    "robustness_recipes": {"accuracy": {"a": {"image": 0.5, "image+text": 0.95}, "b": {"all": 0.9}}, "reached": True},
    "robustness_throughput": {"ratio": 8.91, "ratio_range": [8.1, 9.74], "data_share": 0.031, "reached": True},
}
SHOWN = {
    "relational": "typed: plain 99.0 %, relational 95.0 %; spoken: plain 90.0 %, relational 85.0 %",
    "robustness_kept": "99.5 % kept at 0.20 of their MACs and 0.20 of their parameters",
    "robustness_gain": "+2.0 points (1.0 to 3.0); 99.5 % kept",
    "robustness_noise": "+9.8 points (8.9 to 10.8)",
    "robustness_missing": "image -2.2, image+audio +0.7",
    "robustness_fgsm": "image: 62 % back, clean +1.3 points",
    "robustness_flite": "-2.0 points (97.0 %)",
    "robustness_speakers": "96.0 % (90.0 %, 100.0 %)",
    "lora": "-0.4 points, 1.0 % trained, 2 seeds",
    "robustness_recipes": "a 95.0 %, b 90.0 %",
    "robustness_throughput": "8.9 times (8.1 to 9.7), 3.1 % of the time for data",
}


def row_of(name: str, document: dict[str, Any] | None) -> list[str]:
    """The cells of one row."""
    lines = learned({**dict.fromkeys(NAMES), name: document}).splitlines()[2:]
    return [cell.strip() for cell in lines[NAMES.index(name)].strip("|").split(" | ")]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_says_what_was_found_and_the_verdict(name: str) -> None:
    _, found, verdict, _ = row_of(name, FOUND[name])
    assert found == SHOWN[name]
    assert verdict == ("missed" if name in ("robustness_missing", "robustness_speakers") else "reached")


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_measured_has_neither_number_nor_verdict(name: str) -> None:
    assert row_of(name, None)[1:3] == ["not measured", ""]


@pytest.mark.parametrize("short", [gain(kept=0.98), gain(macs=0.3)])
def test_what_is_kept_is_enough_only_at_both_of_its_bars(short: dict[str, Any]) -> None:
    assert row_of("robustness_kept", short)[2] == "missed"


def test_a_gain_is_enough_only_if_its_interval_is_above_nothing() -> None:
    assert row_of("robustness_gain", gain(low=-0.01))[2] == "missed"


@pytest.mark.parametrize("change", [{"difference": -1.1}, {"share": 0.021}])
def test_lora_has_two_bars(change: dict[str, Any]) -> None:
    assert row_of("lora", FOUND["lora"] | change)[2] == "missed"
