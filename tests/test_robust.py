"""edgefuse robust: who is right under what, by which sensors; the clean figures are those of edgefuse eval."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from edgefuse.benchmarks.robust import paired_difference, robust
from edgefuse.runtime.corruptions import CORRUPTIONS, SEVERITIES
from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.evaluate import evaluate


@pytest.fixture(scope="module")
def found(tiny):
    return robust(tiny.bundle, tiny.manifest)


def test_the_clean_figures_are_those_of_the_evaluation(tiny, found):
    expected = evaluate(tiny.bundle, tiny.manifest)["by_subset"]

    assert {name: cell["accuracy"] for name, cell in found["clean"].items()} == {
        name: cell["accuracy"] for name, cell in expected.items()
    }
    assert (found["n"], found["part_set"], found["split"]) == (12, "cpu", "test")
    json.dumps(found)


def test_the_matrix_has_every_corruption_severity_and_subset_with_the_spoiled_sensor(found):
    assert list(found["matrix"]) == list(CORRUPTIONS)
    for name, cells in found["matrix"].items():
        assert list(cells) == [str(severity) for severity in SEVERITIES]
        for cell in cells.values():
            assert set(cell) == {subset for subset in found["clean"] if CORRUPTIONS[name].sensor in subset.split("+")}
            assert all(score["interval"][0] <= score["accuracy"] <= score["interval"][1] for score in cell.values())


def test_a_spoiled_sensor_is_heard_of_in_the_answers(found):
    """Half of a word is no word of the tiny bundle, and its sound is read by place, which an echo fills."""
    assert found["matrix"]["truncation"]["5"]["text"]["accuracy"] < 0.5
    assert found["matrix"]["truncation"]["5"]["image+text"]["accuracy"] == 1.0
    assert found["matrix"]["dark"]["1"]["image"]["accuracy"] == 1.0  # a dark red is red
    assert found["summary"]["text"]["most_points_lost"] > 50
    assert found["summary"]["text"]["by"] in ("typos", "truncation")
    margin = found["fused"]["truncation"]["5"]
    assert (margin["points"], margin["best_single"]) == (0.0, "image")


def test_what_is_chosen_is_measured_alone_and_twice_alike(tiny, found):
    chosen = robust(tiny.bundle, tiny.manifest, corruptions=["hiss", "noise"], severities=[5, 2], part_set="fp32")

    assert {name: list(cells) for name, cells in chosen["matrix"].items()} == {"noise": ["2", "5"], "hiss": ["2", "5"]}
    assert chosen["matrix"]["noise"]["5"] == found["matrix"]["noise"]["5"]
    assert chosen["levels"]["noise"][5] == 0.5


def test_an_unknown_corruption_is_refused(tiny):
    with pytest.raises(OptionError, match="--corruption fog: for this bundle there are dark, occlusion, "):
        robust(tiny.bundle, tiny.manifest, corruptions=["fog"])


def test_a_row_of_the_matrix_is_told_as_soon_as_it_is_there(tiny, capsys):
    robust(tiny.bundle, tiny.manifest, corruptions=["typos"], severities=[1])

    clean, row = capsys.readouterr().err.splitlines()
    assert clean.startswith("clean            image 100.0 (75.8-100.0)  audio ")
    assert row.startswith("typos 1 ")
    assert " image 100" not in row


BOTH = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(BOTH)
def test_the_paired_difference_is_that_of_the_means_and_lies_near_its_interval(pairs):
    reference, candidate = (np.array(column) for column in zip(*pairs, strict=True))
    difference, (low, high) = paired_difference(reference, candidate)

    assert difference == pytest.approx(candidate.mean() - reference.mean())
    assert low < high
    assert low - 0.05 < difference < high + 0.05


def test_the_paired_difference_agrees_with_the_sign_test():
    random = np.random.default_rng(0)
    agreed = 0
    for _ in range(200):
        reference = random.random(300) < 0.8
        candidate = np.where(random.random(300) < 0.2, random.random(300) < 0.75, reference)
        won, lost = int((candidate & ~reference).sum()), int((reference & ~candidate).sum())
        _, (low, high) = paired_difference(reference, candidate)
        agreed += (low > 0 or high < 0) == (binomtest(won, won + lost).pvalue < 0.05)
    assert agreed > 185  # McNemar's exact test is a little more cautious
