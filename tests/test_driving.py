"""Driving: what the generator draws is what it says, and the recipe goes the whole way to a device and back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgefuse.optimize.build_engine import build
from edgefuse.optimize.preflight import check
from edgefuse.optimize.quantize import quantize
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.evaluate import evaluate
from edgefuse.runtime.explain import explain
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.predictor import predict_once
from edgefuse.train.driving import (
    FEATURES,
    FOCAL,
    HEIGHT,
    NOISE,
    PLACES,
    REACHED_S,
    STEPS,
    WIDTH,
    Scene,
    as_csv,
    best_alone,
    draw_scene,
    driving,
    measure,
    paint,
)
from edgefuse.train.recipe import load_recipe
from edgefuse.train.runs import Run
from tests import driving_fixtures
from tests.driving_fixtures import lines_of_test

SCENES = [draw_scene(np.random.default_rng(seed)) for seed in range(2000)]


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with trt and cpu parts as well."""
    folder = tmp_path_factory.mktemp("shrunk") / "bundle"
    opened = Bundle.open(driving_fixtures.bundle())
    for name in (*opened.info.files, "bundle.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((opened.folder / name).read_bytes())
    quantize(folder, precision="int8", gate=0.0, calibration=16)
    return folder


def test_the_label_follows_from_the_place_and_from_how_soon_it_is_reached() -> None:
    found = {(scene.place, scene.urgency, scene.label) for scene in SCENES}
    assert found == {
        *(("beside", urgency, "clear") for urgency in ("far", "soon", "now")),
        *((place, "far", "clear") for place in ("left", "middle", "right")),
        *((place, "now", "stop") for place in ("left", "middle", "right")),
        ("left", "soon", "steer_right"),
        ("middle", "soon", "brake"),
        ("right", "soon", "steer_left"),
    }


def test_neither_sensor_alone_is_enough() -> None:
    counts = Counter(scene.label for scene in SCENES)
    best = best_alone(SCENES)
    assert all(max(counts.values()) / len(SCENES) < share < 0.65 for share in best.values())
    known = {(place, urgency) for place in PLACES for urgency in REACHED_S}
    for place, urgency in known:  # independent: how often both is the product of how often each
        both = np.mean([(s.place, s.urgency) == (place, urgency) for s in SCENES])
        each = np.mean([s.place == place for s in SCENES]) * np.mean([s.urgency == urgency for s in SCENES])
        assert both == pytest.approx(each, abs=0.03)


def test_the_signal_is_that_of_the_scene_and_ends_at_the_picture() -> None:
    scene = Scene("middle", "soon", 0.0, 20.0, 8.0, 15.0, 0.03)
    rows = np.mean([measure(scene, np.random.default_rng(seed)) for seed in range(400)], axis=0)  # [S, F]
    expected = np.array([(20.0 + 0.8 * back, 8.0, 15.0, 0.03) for back in reversed(range(STEPS))])
    assert (np.abs(rows - expected) < 4 * np.array(NOISE) / 20).all()
    for scene in SCENES:
        reached_s = scene.distance_m / scene.closing_mps
        if scene.urgency == "far":
            assert reached_s < 0 or reached_s > 6.9
        else:
            low, high = REACHED_S[scene.urgency]
            assert low <= reached_s <= high


@pytest.mark.parametrize(("place", "offset_m"), [("left", -1.0), ("middle", 0.0), ("right", 1.0), ("beside", 4.0)])
def test_the_thing_stands_where_a_pinhole_camera_sees_it(place: str, offset_m: float) -> None:
    scene = Scene(place, "soon", offset_m, 12.0, 4.0, 10.0, 0.0)
    empty = Scene(place, "soon", 100.0, 12.0, 4.0, 10.0, 0.0)  # far outside of the picture
    found = []
    for seed in range(60):
        with_it, without = (paint(s, np.random.default_rng(seed)).astype(float) for s in (scene, empty))
        changed = np.abs(with_it - without).sum(axis=2) > 60  # [H, W]
        if changed.any():
            found.append(np.flatnonzero(changed.any(axis=0)).mean())
    assert len(found) > 20  # at night and in fog it can hardly be seen
    assert np.median(found) == pytest.approx(WIDTH / 2 + FOCAL * offset_m / 12.0, abs=1.5)


def test_a_table_names_its_columns_and_holds_its_numbers() -> None:
    rows = np.random.default_rng(0).normal(size=(3, len(FEATURES)))
    table = np.genfromtxt(as_csv(rows).decode().splitlines(), delimiter=",", names=True)
    assert table.dtype.names == FEATURES
    np.testing.assert_allclose([list(row) for row in table], rows, atol=5e-5)


def test_the_corpus_is_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count in driving_fixtures.LINES.items():
        monkeypatch.setitem(driving.__globals__["LINES"], split, count)
    said = driving(tmp_path)
    assert said["lines"] == sum(driving_fixtures.LINES.values())
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert len(files) == 1 + 2 * said["lines"]
    assert all((tmp_path / name).read_bytes() == (driving_fixtures.corpus() / name).read_bytes() for name in files)


def test_the_recipe_fits_the_corpus() -> None:
    recipe = load_recipe("driving", [])
    assert recipe.signal is not None
    assert recipe.image is not None
    assert (recipe.signal.features, recipe.signal.steps) == (FEATURES, STEPS)
    assert (recipe.image.height, recipe.image.width) == (HEIGHT, WIDTH)
    lines = read_manifest(driving_fixtures.corpus() / "manifest.jsonl")
    assert {example.sensors for example in lines} == {("image", "signal")}
    picture = cv2.imread(str(lines[0].image))
    assert picture.shape == (HEIGHT, WIDTH, 3)


def test_the_constants_of_the_data_are_in_the_graph_and_stay_fp32(shrunk: Path) -> None:
    said = json.loads((driving_fixtures.trained_run() / "run.json").read_text())["signal"]
    root = driving_fixtures.corpus()
    rows = np.concatenate(
        [np.genfromtxt(path, delimiter=",", skip_header=1) for path in sorted((root / "signals/train").iterdir())]
    )
    np.testing.assert_allclose(said["mean"], rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(said["deviation"], rows.std(axis=0), rtol=1e-5)
    import onnx

    for part_set in ("fp32", "trt", "cpu"):
        graph = onnx.load_from_string(Bundle.open(shrunk).part(part_set, "signal")).graph
        constants = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
        assert any(
            c.dtype == np.float32 and c.size == len(FEATURES) and np.allclose(c.ravel(), said["mean"], rtol=1e-4)
            for c in constants
        ), part_set


def test_pretrained_weights_keep_the_constants_that_they_learned_with() -> None:
    learned = Run.open(driving_fixtures.trained_run())
    other = {"signal": {"mean": [9.0] * len(FEATURES), "deviation": [1.0] * len(FEATURES)}}
    for weights, mean in ((None, other["signal"]["mean"]), (str(learned.folder), learned.document["signal"]["mean"])):
        recipe = load_recipe("driving", [f"signal.weights={weights or 'null'}"])
        model = Run(learned.folder, recipe, learned.labels, other, None).new_model()
        found = model.get_buffer("encoders.signal.frontend.mean").numpy()
        np.testing.assert_allclose(found, mean, rtol=1e-5)


def test_every_part_passes_the_check_and_tensorrt_rtx_builds_it(shrunk: Path) -> None:
    assert check(shrunk)["verdict"] == "ok"
    built = build(shrunk, target="tensorrt-rtx", max_batch=2)
    assert {Path(engine["path"]).stem.split("-")[0] for engine in built["engines"]} == {"image", "signal", "head"}


def test_parts_of_each_set_answer_alike(shrunk: Path) -> None:
    row = lines_of_test()[0]
    root = driving_fixtures.corpus()
    sensors = {"image": root / row["image"], "signal": root / row["signal"]}
    answers = [predict_once(shrunk, **sensors, part_set=part_set) for part_set in ("fp32", "trt", "cpu")]
    for answer in answers[1:]:
        assert answer["confidence"] == pytest.approx(answers[0]["confidence"], abs=0.1)
        assert answer["weights"] == pytest.approx(answers[0]["weights"], abs=0.1)


def test_eval_measures_each_subset_and_explain_shares_the_answer_out(shrunk: Path) -> None:
    root = driving_fixtures.corpus()
    said = evaluate(shrunk, root / "manifest.jsonl", part_set="fp32")
    assert set(said["by_subset"]) == {"image", "signal", "image+signal"}
    assert said["n"] == driving_fixtures.LINES["test"]
    row = lines_of_test()[0]
    told = explain(shrunk, image=root / row["image"], signal=root / row["signal"], out=shrunk.parent / "why.html")
    assert sum(told["shapley"].values()) == pytest.approx(told["logit"] - told["baseline_logit"], abs=1e-3)
    assert ">Signal<" in (shrunk.parent / "why.html").read_text()
