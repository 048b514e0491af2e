"""LoadGen: what is read from its logs, that it asks the bundle it is given, and what is said where it is missing."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest

from edgefuse.benchmarks import loadgen
from edgefuse.benchmarks.loadgen import Load, ask, label_number, read_log
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import MissingExtraError
from edgefuse.runtime.manifest import read_manifest

COMMON = {
    "loadgen_version": "6.0.17",
    "result_query_count": 100,
    "effective_min_query_count": 64,
    "effective_min_duration_ms": 200,
    "result_validity": "INVALID",
    "result_min_duration_met": False,
    "result_min_queries_met": True,
    "early_stopping_met": True,
}
STREAM = {
    f"result_{p}.00_percentile{per}_latency_ns": p * 1e6 * factor
    for p in (50, 90, 99)
    for per, factor in (("", 1), ("_per_query", 8))
}
MEANS = {"result_mean_latency_ns": 55e6, "result_mean_query_latency_ns": 440e6}
EARLY = {"early_stopping_latency_ss": 95e6, "early_stopping_latency_ms": 0}


def log(scenario, **said):
    """A detail log as LoadGen writes it, with a line that is not ours to read."""
    said = {**COMMON, **STREAM, **MEANS, **EARLY, "effective_scenario": scenario, **said}
    lines = [f":::MLLOG {json.dumps({'key': key, 'value': value, 'time_ms': 1.0})}" for key, value in said.items()]
    return "\n".join(["some other line", *lines, ""])


def test_a_single_stream_has_its_percentiles_and_what_loadgen_missed():
    found = read_log(log("SingleStream"))

    assert found["result"] == "INVALID"
    assert found["unmet"] == ["duration"]
    assert (found["p50_ms"], found["p90_ms"], found["p99_ms"]) == (50, 90, 99)
    assert (found["mean_ms"], found["guaranteed_ms"]) == (55, 95)
    assert (found["queries"], found["min_queries"], found["min_seconds"]) == (100, 64, 0.2)


def test_the_latency_of_a_multi_stream_is_that_of_a_query_and_not_of_a_sample():
    found = read_log(log("MultiStream"))

    assert (found["mean_ms"], found["p90_ms"]) == (440, 720)
    assert found["guaranteed_ms"] is None, "LoadGen writes 0 where the queries were too few"


def test_a_percentile_that_the_queries_do_not_support_is_none():
    assert read_log(log("SingleStream", result_query_count=99))["p99_ms"] is None


def test_offline_is_a_throughput_and_has_no_percentiles():
    found = read_log(log("Offline", result_samples_per_second=68.5))

    assert found["samples_per_s"] == 68.5
    assert not [key for key in found if key.endswith("_ms")]


@pytest.mark.parametrize("number", [0, 1, 255, 256, 70_000])
def test_an_answer_is_the_number_of_its_label(number):
    assert label_number(np.array([number], np.int32).tobytes().hex().upper()) == number


def test_a_missing_loadgen_names_the_extra(tiny, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(MissingExtraError, match=r"edgefuse\[bench\]"):
        ask(Bundle.open(tiny.bundle), "cpu", [], [], loadgen.QUICK, lambda: None)


@pytest.mark.skipif(importlib.util.find_spec("mlperf_loadgen") is None, reason="no mlcommons-loadgen here")
def test_loadgen_asks_the_bundle_every_scenario_and_judges_its_answers(tiny):
    bundle = Bundle.open(tiny.bundle)
    examples = read_manifest(tiny.manifest, split="test", labels=bundle.info.labels)
    wrong = [example if n else replace(example, label="red") for n, example in enumerate(examples)]  # the first is blue
    load = Load({"SingleStream": 5, "MultiStream": 3, "Offline": 1}, seconds=0.05, samples=None, note="a test")
    steps = []

    found = ask(bundle, "cpu", wrong, ["image", "text"], load, lambda: steps.append(1))

    assert (found["part_set"], found["note"]) == ("cpu", "a test")
    assert found["accuracy"]["accuracy"] == 11 / 12
    assert list(found["scenarios"]) == ["SingleStream", "MultiStream", "Offline"]
    assert found["scenarios"]["SingleStream"]["queries"] >= 5
    assert found["scenarios"]["MultiStream"]["mean_ms"] > 0
    assert found["scenarios"]["Offline"]["samples_per_s"] > 0
    assert steps == [1]
