"""The measurements: what bench returns and writes, its statistics against numpy and scipy, and how it takes turns."""

from __future__ import annotations

import json
import platform
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from scipy import stats

from edgefuse.benchmarks import against as against_module
from edgefuse.benchmarks import bench as bench_module
from edgefuse.benchmarks import cpu_share, environment
from edgefuse.benchmarks.bench import Effort, bench
from edgefuse.benchmarks.cpu_peaks import measure_peaks
from edgefuse.benchmarks.figures import figures, names
from edgefuse.benchmarks.latency import (
    distribution,
    least_queries,
    pools_by_sensors,
    speedup,
    spread,
    summarise,
    time_interleaved,
)
from edgefuse.benchmarks.loadgen import Load
from edgefuse.runtime.bundle import Bundle, PartInfo, part_file
from edgefuse.runtime.errors import BundleError, ManifestError
from edgefuse.runtime.evaluate import evaluate
from edgefuse.runtime.manifest import Example

LOAD = Load({"SingleStream": 5, "MultiStream": 2, "Offline": 1}, seconds=0.05, samples=None, note="a test")
EFFORT = Effort(
    120,
    12,
    3,
    memory_runs=1,
    cold_starts=1,
    accuracy_limit=None,
    energy_decisions=1,
    ceiling_runs=2,
    parity_lines=4,
    load=LOAD,
)
FAIL_ON = ("cpu.p50_ms>1e6", "retention<=1", "first_answer_s<0")
SUBSETS = ["image", "audio", "text", "image+audio", "image+text", "audio+text", "image+audio+text"]
TIMES_MS = st.lists(st.floats(0.001, 1e4), min_size=1, max_size=300)


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    """A bundle whose trt parts see wrong colours, measured: (bundle folder, report folder, what bench returned)."""
    folder = tmp_path_factory.mktemp("bench")
    shutil.copytree(tiny.bundle, folder / "bundle")
    bundle = Bundle.open(folder / "bundle")
    parts = {part: bundle.part("fp32", part) for part in bundle.info.parts["fp32"]}
    parts["image"] = _colours_swapped(parts["image"])
    named = {part: PartInfo(file=part_file("trt", part), precision="int8+fp16") for part in parts}
    bundle.updated(
        {named[part].file: model for part, model in parts.items()},
        parts={**bundle.info.parts, "trt": named},
        lineage={"manifest": str(tiny.manifest), "quantize": {"gate": 0.98}},
    )
    _add_engines(Bundle.open(folder / "bundle"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_module, "QUICK", EFFORT)
        patch.setattr(cpu_share, "measure_peaks", partial(measure_peaks, size=64, stream_bytes=1 << 20))
        patch.setattr(against_module, "PLAN", against_module.Plan(blocks=10, queries=2, warmup=1))
        about = {"bundle": {"folder": str(tiny.bundle), "fingerprint": Bundle.open(tiny.bundle).fingerprint}}
        (folder / "other.json").write_text(json.dumps(about))
        options = {"against": folder / "other.json", "history": folder / "history.jsonl", "fail_on": FAIL_ON}
        result = bench(folder / "bundle", folder / "report", quick=True, **options)
    return folder / "bundle", folder / "report", result


def _colours_swapped(model: bytes) -> bytes:
    graph = onnx.load_from_string(model)
    (weight,) = (each for each in graph.graph.initializer if each.name == "to_labels")
    weight.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(weight), 1, axis=1), "to_labels"))
    return graph.SerializeToString()


def _add_engines(bundle: Bundle) -> None:
    """An engine of the image part as it is, one of another text part, and one that nothing is known of."""
    folder = bundle.folder / "engines" / "tensorrt-rtx"
    folder.mkdir(parents=True)
    sidecar = {
        "target": "tensorrt-rtx",
        "tensorrt_version": "1.7.1.116",
        "sm": [86, 89],
        "batch": [1, 1, 8],
        "engine_sha256": "0" * 64,
        "kernels": 7,
        "bytes_touched": 1234,
        "seconds": 0.5,
    }
    for part in ("image", "text", "head"):
        (folder / f"{part}.engine").write_bytes(b"plan")
    for part, source in (("image", bundle.info.files[part_file("trt", "image")]), ("text", "f" * 64)):
        document = {**sidecar, "part": part, "source_sha256": source}
        (folder / f"{part}.json").write_text(json.dumps(document))


def test_the_report_has_the_keys_that_others_rely_on(measured):
    _, folder, result = measured

    report = json.loads((folder / "report.json").read_text())

    assert report["schema"] == 1
    assert set(report) >= {"stages", "scenarios", "memory", "size", "accuracy", "environment", "engines", "cold_start"}
    assert result["page"] == str(folder / "index.html")
    printed = {key: value for key, value in result.items() if key != "page"}
    assert json.loads(json.dumps(printed)) == {key: value for key, value in report.items() if key in printed}
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "report.json", "report.md"]


@pytest.fixture(scope="module")
def validator():
    document = json.loads(Path(bench_module.__file__).with_name("report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


def test_the_report_is_what_its_published_schema_says(measured, validator):
    report = json.loads((measured[1] / "report.json").read_text())

    validator.validate(report)
    validator.validate({**report, "added_later": 1})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema"], 2),
        (["accuracy", "fp32", "accuracy"], 1.5),
        (["accuracy", "cpu", "by_subset", "image", "interval"], [0.1]),
        (["stages", "cpu", "total", "n"], 0),
        (["scenarios", "image", "cpu", "speedup", "median"], "fast"),
        (["cold_start", "runs_s"], []),
        (["pareto", "points", 0, "accuracy"], 1.5),
        (["ceilings", "label"], "measured"),
        (["ceilings", "cpu", "peaks", "1", "fp32_flops"], 0),
        (["environment", "versions"], None),
    ],
)
def test_a_report_of_another_form_does_not_fit_the_schema(measured, validator, path, value):
    report = json.loads((measured[1] / "report.json").read_text())
    inner = report
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value

    with pytest.raises(jsonschema.ValidationError) as refused:
        validator.validate(report)

    assert list(refused.value.absolute_path) == path


def test_every_stage_of_every_part_set_has_its_percentiles_and_the_total_holds_them(measured):
    for stages in measured[2]["stages"].values():
        assert list(stages) == ["decode", "preprocess", "image", "audio", "text", "head", "total"]
        assert all(summary["n"] == EFFORT.queries for summary in stages.values())
        assert all(0 < summary["p50_ms"] <= summary["p90_ms"] <= summary["p99_ms"] for summary in stages.values())
        means = {stage: summary["mean_ms"] for stage, summary in stages.items()}
        longest = max(means[encoder] for encoder in ("image", "audio", "text"))
        assert means["total"] > means["decode"] + means["preprocess"] + longest + means["head"] - 0.001  # rounded


def test_trt_parts_are_no_speed_and_are_timed_in_no_scenario(measured):
    result = measured[2]

    assert {name: about["role"] for name, about in result["part_sets"].items()} == {
        "fp32": "speed",
        "trt": "accuracy judge, not a speed",
        "cpu": "speed",
    }
    assert list(result["scenarios"]) == SUBSETS
    assert all(list(sets) == ["fp32", "cpu"] for sets in result["scenarios"].values())
    assert all(sets["cpu"]["speedup"]["median"] > 0 for sets in result["scenarios"].values())
    assert result["scenarios"]["image"]["cpu"]["p99_ms"] is None, "12 queries say nothing of a p99"


@pytest.mark.parametrize("part_set", ["fp32", "trt", "cpu"])
def test_accuracy_is_what_eval_says(measured, tiny, part_set):
    bundle, _, result = measured

    expected = evaluate(bundle, tiny.manifest, part_set=part_set)

    found = result["accuracy"][part_set]
    assert {key: found[key] for key in ("accuracy", "interval", "n")} == {
        key: expected[key] for key in ("accuracy", "interval", "n")
    }
    for name, subset in expected["by_subset"].items():
        assert found["by_subset"][name]["accuracy"] == subset["accuracy"]
        assert found["by_subset"][name]["by_answer_type"].keys() == subset["by_answer_type"].keys()


def test_what_a_part_set_keeps_of_fp32_is_told_for_each_subset_of_sensors(measured):
    accuracy = measured[2]["accuracy"]

    assert accuracy["fp32"]["retention"] is None
    assert accuracy["cpu"]["retention"] == 1
    assert accuracy["trt"]["by_subset"]["image"]["retention"] == 0
    assert accuracy["trt"]["by_subset"]["text"]["retention"] == 1
    assert measured[2]["gate"] == 0.98


def test_a_combination_of_parts_of_one_set_is_as_right_and_as_large_as_the_set(measured):
    result = measured[2]
    (point,) = result["pareto"]["points"]  # both sets have the same files

    assert point["parts"] == dict.fromkeys(("image", "audio", "text", "head"), "cpu")
    assert {key: point[key] for key in ("accuracy", "interval", "n")} == {
        key: result["accuracy"]["cpu"][key] for key in ("accuracy", "interval", "n")
    }
    assert point["bytes"] == result["size"]["cpu"]["bytes"]
    assert point["latency"]["n"] == result["stages"]["cpu"]["total"]["n"]
    assert 0 < point["latency"]["p50_ms"] <= point["latency"]["p99_ms"]
    assert point["frontier"]


def test_an_engine_without_a_plan_gives_no_bound_and_the_cpu_is_held_against_its_peaks(measured):
    found = measured[2]["ceilings"]

    (why,) = found["no_bounds"]
    assert "image.engine has no plan beside it that can be read" in why
    assert found["decision"] == {}
    assert {(row["part_set"], row["part"]) for row in found["cpu"]["parts"]} == {
        (part_set, part) for part_set in ("fp32", "cpu") for part in ("image", "audio", "text", "head")
    }


def test_size_memory_and_first_answer_come_with_what_they_are_compared_to(measured):
    bundle, _, result = measured

    assert result["size"]["fp32"]["ratio"] == 1
    on_disk = sum(path.stat().st_size for path in (bundle / "parts" / "cpu").iterdir())
    assert result["size"]["cpu"]["bytes"] == sum(result["size"]["cpu"]["parts"].values()) == on_disk
    for memory in result["memory"].values():
        assert 10e6 < memory["imported_bytes"] < memory["answered_bytes"]
        assert memory["model_bytes"] == memory["answered_bytes"] - memory["imported_bytes"]
    assert 0 < result["cold_start"]["median_s"] < 60


def test_engines_that_cannot_run_here_say_why(measured):
    assert list(measured[2]["gpu"]) == ["tensorrt-rtx"]
    assert list(measured[2]["gpu"]["tensorrt-rtx"]) == ["not_measured"]


def test_engines_are_listed_with_what_their_sidecars_say_and_no_latency(measured):
    image, head, text = sorted(measured[2]["engines"], key=lambda row: ("image", "head", "text").index(row["part"]))

    assert image["kernels"] == 7
    assert image["bytes_touched"] == 1234
    assert image["built_from_these_parts"]
    assert not text["built_from_these_parts"]
    assert "kernels" not in head
    assert {row["latency"] for row in (image, head, text)} == {"not measured"}


def test_the_environment_names_the_machine_kind_and_never_the_machine(measured):
    found = measured[2]["environment"]

    assert found["cores_usable"] >= 1
    assert found["memory_bytes"] > 1e8
    assert found["versions"]["onnxruntime"]
    assert platform.node() not in json.dumps(found)


def test_what_cannot_be_read_of_the_environment_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "_GOVERNOR", tmp_path / "none")
    monkeypatch.setattr(environment, "_VERSIONS_OF", ("no-such-package",))

    found = environment.describe_environment()

    assert found["governor"] is None
    assert found["versions"] == {"no-such-package": None}


def test_the_report_can_be_compared_with_later(measured):
    bundle, _, result = measured

    assert result["bundle"]["folder"] == str(bundle)
    assert result["bundle"]["fingerprint"] == Bundle.open(bundle).fingerprint


def test_both_bundles_are_compared_in_each_part_set_that_is_a_speed(measured):
    found = measured[2]["against"]

    assert found["sensors"] == "image+audio+text"
    assert list(found["part_sets"]) == ["fp32", "cpu"]
    assert all(each["verdict"] in ("faster", "slower", "no difference") for each in found["part_sets"].values())


def test_every_figure_has_the_name_that_was_known_before(measured):
    found = figures(measured[2])

    assert sorted(found) == sorted(names(["fp32", "trt", "cpu"], ["fp32", "cpu"], ["tensorrt-rtx"], compared=True))
    assert found["cpu.p50_ms"] == measured[2]["stages"]["cpu"]["total"]["p50_ms"]
    assert found["retention"] == min(measured[2]["accuracy"][part_set]["retention"] for part_set in ("trt", "cpu"))
    assert found["cpu.engine_p50_ms"] < found["cpu.p50_ms"]


def test_what_must_not_come_out_fails_the_run_with_a_line_each(measured):
    result = measured[2]

    assert result["verdict"] == "failed"
    assert [line.split("'")[1] for line in result["broken"]] == ["retention<=1"]


def test_the_history_has_a_line_of_figures(measured):
    (line,) = (measured[1].parent / "history.jsonl").read_text().splitlines()

    told = json.loads(line)
    assert told["fingerprint"] == measured[2]["bundle"]["fingerprint"]
    assert told["cpu.p50_ms"] == figures(measured[2])["cpu.p50_ms"]


def test_a_threshold_that_cannot_be_read_stops_the_run_before_anything_is_measured(run, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_module, "_measure", lambda *_: pytest.fail("measured"))
    arguments = ("bench", tiny.bundle, "--manifest", tiny.manifest, "--out", tmp_path / "report")

    code, _, err = run(*arguments, "--fail-on", "cpu.p50_ms=20")

    assert code == 2
    assert err.startswith("edgefuse: --fail-on 'cpu.p50_ms=20' cannot be read; write NAME<NUMBER")
    assert err.count("\n") == 1


def test_a_bundle_whose_training_data_is_gone_asks_for_a_manifest(tiny_copy, tmp_path):
    with pytest.raises(ManifestError, match="--manifest"):
        bench(tiny_copy.folder, tmp_path / "report")


def test_a_bundle_without_the_reference_is_refused(tiny_copy, tiny, tmp_path):
    tiny_copy.updated({}, parts={"cpu": tiny_copy.info.parts["cpu"]})

    with pytest.raises(BundleError, match="no fp32 parts"):
        bench(tiny_copy.folder, tmp_path / "report", manifest=tiny.manifest)


def test_a_report_that_could_not_be_written_is_refused_before_anything_is_measured(tiny, tmp_path, monkeypatch):
    (tmp_path / "report").write_text("a file is in the way")
    monkeypatch.setattr(bench_module, "_measure", lambda *_: pytest.fail("measured"))

    with pytest.raises(FileExistsError):
        bench(tiny.bundle, tmp_path / "report", manifest=tiny.manifest)


@given(TIMES_MS)
def test_percentiles_are_those_of_numpy_where_there_are_enough_queries(times_ms):
    summary = summarise(times_ms)

    assert summary["n"] == len(times_ms)
    for percentile in (50, 90, 99):
        found = summary[f"p{percentile}_ms"]
        if len(times_ms) < least_queries(percentile):
            assert found is None
        else:
            assert found == pytest.approx(np.percentile(times_ms, percentile), abs=1e-4)
    assert distribution(times_ms)[50] == pytest.approx(np.median(times_ms), abs=1e-4)


def test_a_percentile_needs_a_query_beyond_it():
    assert [least_queries(percentile) for percentile in (50, 90, 99)] == [2, 10, 100]


def test_a_speedup_is_the_median_of_the_paired_ratios():
    fast = np.linspace(1, 2, 51)

    found = speedup(2 * fast, fast)

    assert found == {"median": 2, "interval": [2, 2], "n": 51}


@pytest.mark.parametrize("n", [10, 33, 100, 200, 1024])
def test_the_interval_of_a_speedup_covers_the_median_with_95_percent(n):
    ranks = np.arange(1, n + 1)  # ratio = rank, so that the interval tells which order statistics it took

    low, high = speedup(ranks, np.ones(n))["interval"]

    # The median lies between order statistics l and h with the probability that l..h-1 of n values lie below it.
    covered = stats.binom.cdf(high - 1, n, 0.5) - stats.binom.cdf(low - 1, n, 0.5)
    assert 0.95 <= covered < 0.999


def test_part_sets_take_turns_and_warm_up_queries_are_not_counted():
    asked = []

    def predictor(name):
        def predict(**inputs):
            asked.append((name, inputs["text"]))
            return SimpleNamespace(stages_ms={"total": float(inputs["text"])})

        return SimpleNamespace(predict=predict)

    examples = [Example("m:1", "a.png", None, str(number), None, "test", None) for number in range(8)]

    timings = time_interleaved(
        {"fp32": predictor("fp32"), "cpu": predictor("cpu")}, examples, ["text"], 2, lambda: None
    )

    assert [text for _, text in asked] == [str(number) for number in range(8) for _ in range(2)]
    assert [name for name, _ in asked[::2]] == ["fp32", "cpu"] * 4
    assert timings == {name: {"total": [2, 3, 4, 5, 6, 7]} for name in ("fp32", "cpu")}


@given(st.integers(1, 50), st.integers(1, 200))
def test_examples_are_spread_evenly_or_repeated(have, count):
    chosen = spread(list(range(have)), count)

    assert len(chosen) == count
    uses = np.bincount(chosen, minlength=have)
    assert uses.max() - uses.min() <= 1
    if count <= have:
        gaps = np.diff(chosen)
        assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_a_subset_of_sensors_is_asked_only_of_lines_that_have_all_of_it():
    both = Example("m:1", "a.png", None, "a", None, "test", None)
    picture = Example("m:2", "b.png", None, None, None, "test", None)

    pools = pools_by_sensors([both, picture], ("image", "audio", "text"))

    assert pools == {"image": [both, picture], "text": [both], "image+text": [both]}
    with pytest.raises(ManifestError, match="takes: audio"):
        pools_by_sensors([both], ("audio",))
