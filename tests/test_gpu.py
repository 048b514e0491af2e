"""Engines in a report: queries and lines on the GPU's doubles, builds from nothing, and why nothing is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefuse.benchmarks import blocks, footprint
from edgefuse.benchmarks import gpu as module
from edgefuse.benchmarks.figures import figures, names
from edgefuse.benchmarks.gpu import Asked, measure_engines
from edgefuse.benchmarks.thresholds import broken, parse
from edgefuse.runtime import backend_trt
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import EdgefuseError, EngineError
from edgefuse.runtime.evaluate import encode_examples, right_from_all
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.predictor import Predictor
from tests.conftest import Tiny
from tests.test_report import make_report
from tests.trt_plan import MAX_BATCH, SM, with_engines
from tests.trt_rig import Guarded, Rig, rig_of

TARGETS = ("tensorrt", "tensorrt-rtx")
WARMUP = 2


@pytest.fixture(params=TARGETS)
def rig(request: pytest.FixtureRequest, tiny_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Engines of the tiny bundle, on a double that whoever opens a backend gets."""
    rig = rig_of(tiny_copy, request.param, monkeypatch)

    def cuda() -> Guarded:
        rig.cuda = Guarded(rig.driver)
        return rig.cuda

    monkeypatch.setattr(backend_trt, "any_cuda", cuda)
    yield rig
    rig.driver.finish()


@pytest.fixture
def asked(tiny: Tiny) -> Asked:
    lines = read_manifest(tiny.manifest)
    return Asked(lines[:8], ("image", "text"), WARMUP, lines, builds=0)


def silent(name: str, steps: int) -> Callable[[], None]:
    return lambda: None


def test_engines_answer_the_queries_and_the_lines(rig: Rig, asked: Asked) -> None:
    (found,) = measure_engines(rig.bundle, asked, silent).values()
    with OnnxBackend(rig.bundle, "trt", 1) as onnx:
        expected = right_from_all(encode_examples(Predictor(rig.bundle, onnx), asked.lines), asked.lines).right
    assert found["accuracy"]["accuracy"] == expected.mean()
    assert found["accuracy"]["n"] == len(asked.lines)
    counted = len(asked.queries) - WARMUP
    assert {summary["n"] for summary in found["stages"].values()} == {counted}
    assert set(found["stages"]) >= {"decode", "preprocess", "image", "text", "head", "total"}
    assert found["engine"]["mean_ms"] < found["host_end_to_end"]["mean_ms"]
    assert found["builds"] is None


def test_each_engine_of_the_list_has_its_median(rig: Rig, asked: Asked) -> None:
    found = measure_engines(rig.bundle, asked, silent)
    rows = {row["part"]: row["latency"] for row in footprint.engines(rig.bundle, found)}
    for part in ("image", "text", "head"):
        assert rows[part] == found[rig.target]["stages"][part]["p50_ms"]
    assert rows["audio"] == "not measured", "no query has a sound"


def test_more_builds_know_nothing_of_another_and_are_built_as_the_first(
    rig: Rig, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_rtx = rig.target == "tensorrt-rtx"
    with_engines(rig.bundle, rig.target, optimization_level=None if is_rtx else 4)
    calls: list[tuple[str, ...]] = []

    def build(verb: str, copy: str, *options: str) -> dict[str, Any]:
        assert not (Path(copy) / "engines").exists()
        calls.append((verb, *options))
        with_engines(Bundle.open(copy), rig.target)
        return {}

    monkeypatch.setattr(module, "edgefuse", build)
    more = Asked(asked.queries, asked.sensors, asked.warmup, asked.lines, builds=3)
    builds = measure_engines(rig.bundle, more, silent)[rig.target]["builds"]
    assert len(builds["p50_ms"]) == 3
    assert builds["spread"] == max(builds["p50_ms"]) / min(builds["p50_ms"]) - 1
    last = f"--sm={SM}" if is_rtx else "--optimization-level=4"
    assert calls == [("build", "--target", rig.target, f"--max-batch={MAX_BATCH}", last)] * 3


def test_a_build_that_fails_takes_nothing_else_away(rig: Rig, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str) -> dict[str, Any]:
        raise EdgefuseError("the compiler died")

    monkeypatch.setattr(module, "edgefuse", fail)
    more = Asked(asked.queries, asked.sensors, asked.warmup, asked.lines, builds=1)
    found = measure_engines(rig.bundle, more, silent)[rig.target]
    assert found["builds"] == {"not_measured": "the compiler died"}
    assert found["engine"]["n"] == len(asked.queries) - WARMUP
    section = blocks.gpu({"gpu": {rig.target: found}, "sensors": "image"})
    assert section is not None
    assert section.notes == [f"{rig.target}, more builds: the compiler died."]


def test_an_engine_that_does_not_fit_says_so_before_anything_is_timed(rig: Rig, asked: Asked) -> None:
    with_engines(rig.bundle, rig.target, sm=(75,))
    begun: list[str] = []
    (found,) = measure_engines(rig.bundle, asked, lambda name, _: begun.append(name) or (lambda: None)).values()
    assert list(found) == ["not_measured"]
    assert "was built for SM 75" in found["not_measured"]
    assert not begun


@pytest.mark.parametrize("target", TARGETS)
def test_without_a_gpu_nothing_is_measured_and_the_reason_told(
    target: str, tiny_copy: Bundle, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu() -> None:
        raise EngineError("no NVIDIA driver")

    monkeypatch.setattr(backend_trt, "use_package", lambda *_: None)
    monkeypatch.setattr(backend_trt, "find_gpu", no_gpu)
    bundle = with_engines(tiny_copy, target)
    found = measure_engines(bundle, asked, silent)
    why = f"--backend {target} needs an NVIDIA GPU: no NVIDIA driver; --backend cpu needs none"
    assert found == {target: {"not_measured": why}}
    assert {row["latency"] for row in footprint.engines(bundle, found)} == {"not measured"}


def test_a_bundle_without_engines_asks_no_gpu(tiny_copy: Bundle, asked: Asked) -> None:
    assert measure_engines(tiny_copy, asked, silent) == {}


def test_what_the_gpu_does_can_be_held_to_a_threshold() -> None:
    report = make_report()
    found = figures(report)
    known = names([], [], TARGETS, compared=False)
    assert {name for name in found if name.startswith("tensorrt")} == {n for n in known if n.startswith("tensorrt")}
    assert found["tensorrt.engine_p50_ms"] == report["gpu"]["tensorrt"]["engine"]["p50_ms"]
    assert (found["tensorrt.accuracy"], found["tensorrt.build_spread"]) == (0.9, 0.105)
    asked = [parse(text, found) for text in ("tensorrt.p50_ms>1.5", "tensorrt-rtx.p50_ms>1.5")]
    assert broken(asked, found) == [
        "--fail-on 'tensorrt.p50_ms>1.5': tensorrt.p50_ms is 2",
        "--fail-on 'tensorrt-rtx.p50_ms>1.5': tensorrt-rtx.p50_ms was not measured",
    ]


def test_a_table_has_both_latencies_of_a_target_and_the_builds_below() -> None:
    summary = {"n": 10, "mean_ms": 1.5, "p50_ms": 1.25, "p90_ms": 2.0, "p99_ms": None}
    told = {
        "engine": summary,
        "host_end_to_end": {**summary, "p50_ms": 3.5},
        "accuracy": {"accuracy": 0.9, "interval": [0.8, 0.95], "n": 20},
        "builds": {"p50_ms": [1.2, 1.26], "spread": 0.05},
    }
    section = blocks.gpu({"gpu": {"tensorrt": told, "tensorrt-rtx": {"not_measured": "no GPU"}}, "sensors": "image"})
    assert section is not None
    (table,), notes = section.tables, section.notes
    head, rows = list(table.head), table.rows
    assert [len(row) for row in rows] == [len(head)] * 3
    assert [row[head.index("p50")] for row in rows[:2]] == ["1.25", "3.50"]
    assert rows[2][1] == "not measured"
    assert notes == [
        "tensorrt, 2 more builds from nothing: engine p50 1.20, 1.26 ms; the slowest is 5.00 % above the fastest.",
        "tensorrt-rtx: no GPU.",
    ]
