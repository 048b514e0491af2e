"""The three latencies: each holds the one before it, and the loop's stands there only where it was measured."""

from __future__ import annotations

import json

import pytest

from edgefuse.benchmarks.latency import summarise
from edgefuse.benchmarks.named_latencies import LOOP_FILE, engine_ms, name_latencies
from edgefuse.runtime.bundle import Bundle

STAGES = {
    "decode": [4.0, 5.0],
    "preprocess": [1.0, 1.0],
    "image": [10.0, 20.0],
    "audio": [9.0, 20.0],  # beside the picture
    "head": [2.0, 3.0],
    "total": [17.0, 29.0],
}


@pytest.fixture
def bundle(tiny):
    return Bundle.open(tiny.bundle)


def test_the_engine_is_what_the_host_leaves_of_each_query():
    assert engine_ms(STAGES) == [12, 23]


def test_the_host_is_the_whole_of_each_query(bundle, tmp_path):
    found = name_latencies(bundle, {"fp32": STAGES, "cpu": STAGES, "trt": {}}, ["fp32", "cpu"], tmp_path)

    assert found["host_end_to_end"] == dict.fromkeys(("fp32", "cpu"), summarise([17, 29]))
    assert found["engine"] == dict.fromkeys(("fp32", "cpu"), summarise([12, 23]))
    assert found["least_queries"] == {"p50_ms": 2, "p90_ms": 10, "p99_ms": 100}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no "),
        ("{", "holds no loads"),
        ('{"details": {"faults": {}}, "fingerprint": "x"}', "holds no loads"),
        ('{"details": {"load": {}}, "fingerprint": "another"}', "of another bundle"),
    ],
)
def test_without_a_result_of_the_loop_the_command_that_makes_one_is_told(bundle, tmp_path, content, why):
    if content is not None:
        (tmp_path / LOOP_FILE).write_text(content)

    told = name_latencies(bundle, {"cpu": STAGES}, ["cpu"], tmp_path)["sensor_to_decision"]["not_measured"]

    assert why in told
    assert f"python benchmarks/loop.py {bundle.folder} --only load --out {tmp_path / LOOP_FILE}" in told


def test_a_result_of_the_loop_on_this_bundle_is_taken(bundle, tmp_path):
    summary = summarise([20.0, 30.0])
    loop = {"details": {"load": {"image": {"age_at_80": summary}}}, "fingerprint": bundle.fingerprint}
    (tmp_path / LOOP_FILE).write_text(json.dumps(loop))

    found = name_latencies(bundle, {"cpu": STAGES}, ["cpu"], tmp_path)

    assert found["sensor_to_decision"] == {"image": summary}
