"""Accuracy with latency: the frontier against brute force, combinations against bundles made of the same parts."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from edgefuse.benchmarks import pareto as module
from edgefuse.benchmarks.effort import QUICK
from edgefuse.benchmarks.latency import fast_sets, median_interval
from edgefuse.benchmarks.pareto import (
    Measured,
    combinations,
    frontier,
    measure,
    name_of,
    pareto,
    short_names,
    time_combinations,
)
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import HEAD, Bundle, PartInfo, part_file
from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.evaluate import encode_examples, evaluate
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.predictor import Predictor

MODALITIES = ("image", "audio", "text")
EFFORT = replace(QUICK, queries=4, warmup_queries=1)
POINTS = st.lists(st.tuples(st.integers(0, 5).map(float), st.integers(0, 5).map(float)), max_size=12) | st.lists(
    st.tuples(st.floats(0, 100), st.floats(0, 1)), max_size=12
)


@given(POINTS)
def test_a_point_is_on_the_frontier_unless_another_one_is_as_good_in_both_and_differs(points):
    on_it = [
        not any(cost <= my_cost and gain >= my_gain and (cost, gain) != (my_cost, my_gain) for cost, gain in points)
        for my_cost, my_gain in points
    ]

    assert frontier(points) == on_it


@given(POINTS, st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_matter(points, random):
    shuffled = list(points)
    random.shuffle(shuffled)

    assert sorted(zip(points, frontier(points), strict=True)) == sorted(zip(shuffled, frontier(shuffled), strict=True))


@given(POINTS)
def test_along_the_frontier_more_cost_always_buys_more(points):
    best = sorted({point for point, on_it in zip(points, frontier(points), strict=True) if on_it})

    assert bool(best) == bool(points)
    assert all(one[0] < two[0] and one[1] < two[1] for one, two in itertools.pairwise(best))


def turned(model: bytes, weight: str) -> bytes:
    """A part that takes each label for the next one."""
    graph = onnx.load_from_string(model)
    (found,) = (each for each in graph.graph.initializer if each.name == weight)
    found.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(found), 1, axis=1), weight))
    return graph.SerializeToString()


def with_parts(bundle: Bundle, part_set: str, parts: dict[str, bytes]) -> Bundle:
    listed = {part: PartInfo(file=part_file(part_set, part), precision="fp32") for part in parts}
    files = {listed[part].file: model for part, model in parts.items()}
    return bundle.updated(files, parts={**bundle.info.parts, part_set: {**bundle.info.parts["fp32"], **listed}})


@pytest.fixture
def mixed(tiny_copy: Bundle) -> Bundle:
    """Its cpu parts are wrong of pictures and of words, sounds are those of fp32; there are trt parts too."""
    wrong = {
        "image": turned(tiny_copy.part("fp32", "image"), "to_labels"),
        "text": turned(tiny_copy.part("fp32", "text"), "one_hot"),
    }
    bundle = with_parts(tiny_copy, "trt", {HEAD: tiny_copy.part("fp32", HEAD)})
    same = {part: bundle.part("fp32", part) for part in ("audio", HEAD)}
    return with_parts(bundle, "cpu", wrong | same)


def measured(bundle: Bundle, examples) -> Measured:
    """Real tokens, and times that are given."""
    encoded = {}
    for part_set in fast_sets(bundle):
        encoded[part_set] = encode_examples(Predictor(bundle, OnnxBackend(bundle, part_set)), examples)
    flat_ms = {name_of(parts): [1.0, 1.0] for parts in combinations(bundle, MODALITIES)}
    return Measured(bundle, flat_ms, encoded)


def test_a_combination_is_as_right_and_as_large_as_a_bundle_made_of_its_parts(mixed, tiny, tmp_path):
    examples = read_manifest(tiny.manifest, split="test", labels=mixed.info.labels)

    points = pareto({"tiny": measured(mixed, examples)}, examples, MODALITIES)["points"]

    found = {}
    for number, point in enumerate(points):
        shutil.copytree(mixed.folder, tmp_path / str(number))
        parts = {part: mixed.part(part_set, part) for part, part_set in point["parts"].items()}
        made = with_parts(Bundle.open(tmp_path / str(number)), "cpu", parts)
        expected = evaluate(made.folder, tiny.manifest, part_set="cpu")
        assert {key: point[key] for key in ("accuracy", "interval", "n")} == {
            key: expected[key] for key in ("accuracy", "interval", "n")
        }
        assert point["bytes"] == made.size("cpu")
        found[point["parts"]["image"], point["parts"]["text"]] = point["accuracy"]
    assert found == {("fp32", "fp32"): 1, ("fp32", "cpu"): 1, ("cpu", "fp32"): 1, ("cpu", "cpu"): 0}


def test_each_combination_has_its_own_times_and_the_fastest_is_first(mixed, tiny):
    examples = read_manifest(tiny.manifest, split="test", labels=mixed.info.labels)
    model = measured(mixed, examples)
    random = np.random.default_rng(0)
    times = {name: random.uniform(1, 9, 5).tolist() for name in model.times_ms}

    told = pareto({"tiny": replace(model, times_ms=times)}, examples, MODALITIES)

    assert told["sensors"] == "image+audio+text"
    for point in told["points"]:
        assert point["parts"][HEAD] == "cpu"
        its_own = times[name_of(point["parts"])]
        assert point["latency"]["p50_ms"] == pytest.approx(np.median(its_own), abs=1e-4)
        assert point["latency"]["n"] == 5
        assert point["p50_interval_ms"] == median_interval(its_own)
    order = [point["latency"]["p50_ms"] for point in told["points"]]
    assert order == sorted(order)
    assert told["points"][0]["frontier"], "nothing is faster than the fastest"


def test_no_encoder_runs_again_and_the_head_runs_once_for_each_combination(mixed, tiny, monkeypatch):
    examples = read_manifest(tiny.manifest, split="test", labels=mixed.info.labels)
    model = measured(mixed, examples)
    ran: list[str] = []
    run = OnnxBackend.run
    monkeypatch.setattr(OnnxBackend, "run", lambda self, part, inputs: ran.append(part) or run(self, part, inputs))

    pareto({"tiny": model}, examples, MODALITIES)

    assert ran == [HEAD] * 4


def test_a_combination_runs_each_part_of_its_own_part_set_on_every_query(mixed, tiny, monkeypatch):
    queries = read_manifest(tiny.manifest, split="test", labels=mixed.info.labels)[:3]
    ran: list[tuple[str, str]] = []
    run = OnnxBackend.run

    def recorded(self, part, inputs):
        ran.append((part, self.part_set))
        return run(self, part, inputs)

    monkeypatch.setattr(OnnxBackend, "run", recorded)
    backends = {part_set: OnnxBackend(mixed, part_set) for part_set in fast_sets(mixed)}

    times = time_combinations({"tiny": (mixed, backends)}, queries, MODALITIES, 1, lambda: None)

    expected = combinations(mixed, MODALITIES)
    assert {name: len(each) for name, each in times["tiny"].items()} == {name_of(parts): 2 for parts in expected}
    assert Counter(ran) == Counter(3 * [pair for parts in expected for pair in parts.items()])


def test_parts_for_another_machine_are_no_point_and_one_file_is_one_choice(mixed):
    found = combinations(mixed, MODALITIES)

    assert "trt" in mixed.info.parts
    assert {name for parts in found for name in parts.values()} == {"fp32", "cpu"}
    assert {parts["audio"] for parts in found} == {"cpu"}
    assert len({tuple(parts.items()) for parts in found}) == len(found) == 4
    assert {parts["image"] for parts in combinations(mixed, ["text"])} == {"cpu"}, "was not timed"


def test_a_bundle_of_fp32_parts_alone_is_one_point(mixed):
    alone = mixed.updated({}, parts={"fp32": mixed.info.parts["fp32"]})

    assert combinations(alone, MODALITIES) == [dict.fromkeys((*MODALITIES, HEAD), "fp32")]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/nano/bundle", "runs/base/bundle"], ["nano", "base"]),
        (["a", "b/bundle"], ["a", "b/bundle"]),
        (["x/y", "x/y/z"], ["x/y", "z"]),
        (["runs/demo/bundle"], ["bundle"]),
    ],
)
def test_models_are_named_by_what_their_paths_differ_in(folders, names):
    assert short_names([Path(folder) for folder in folders]) == names


def test_the_same_bundle_twice_is_refused():
    with pytest.raises(OptionError, match="given twice"):
        short_names([Path("a"), Path("b"), Path("a")])


def test_several_bundles_are_measured_side_by_side(mixed, tiny):
    told = measure([mixed.folder, tiny.bundle], tiny.manifest, EFFORT)

    models = [point["model"] for point in told["points"]]
    assert len(set(models)) == 2
    assert len(models) == 4 + 1
    assert all(point["latency"]["n"] == 4 and point["n"] == 12 for point in told["points"])
    assert any(point["frontier"] for point in told["points"])


def test_bundles_that_answer_otherwise_are_refused(mixed, tiny):
    other = mixed.updated({}, labels=("blue", "green", "yellow"))

    with pytest.raises(OptionError, match=r"has labels blue, green, yellow, .* has blue, green, red; give bundles"):
        measure([tiny.bundle, other.folder], tiny.manifest, EFFORT)


def test_the_command_prints_every_combination_and_writes_a_page(mixed, tiny, tmp_path, monkeypatch, capsys):
    page = tmp_path / "made" / "pareto.html"
    monkeypatch.setattr(module, "QUICK", EFFORT)
    arguments = [str(mixed.folder), "--manifest", str(tiny.manifest), "--quick", "--json", "--out", str(page)]
    monkeypatch.setattr(sys, "argv", ["pareto.py", *arguments])

    module.main()

    *lines, last = capsys.readouterr().out.splitlines()
    assert len(json.loads(last)["points"]) == 4
    assert sum(line.startswith("image ") for line in lines) == 4
    assert "- bundle, audio: the same file in several of fp32, cpu, so it counts once" in lines
    html = page.read_text()
    assert html.count("image cpu, audio cpu, text fp32") == 1
    assert "<svg" in html


def test_bad_input_ends_in_one_line_and_exit_1(tmp_path):
    command = [sys.executable, module.__file__, "nowhere", "--manifest", "none.jsonl"]

    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert "nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1
