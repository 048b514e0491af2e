"""Cross-validation: folds against scikit-learn, its test against SciPy, and that it goes on where it stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.train import crossval as module
from edgefuse.train import train as training
from edgefuse.train.crossval import compare, corrected_t_test, crossval, stratified_folds, student_p
from tests.train_fixtures import LINES, PICTURES, rows_of_corpus, write_manifest, write_recipe


def unevenness(labels: list[str], fold_of: np.ndarray, folds: int) -> float:
    """Mean over the labels of the deviation over the folds of the share of a label's lines."""
    shares = [[(fold_of[np.array(labels) == label] == k).mean() for k in range(folds)] for label in sorted(set(labels))]
    return float(np.std(shares, axis=1).mean())


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(12, 40), st.integers(1, 9), st.integers(0, 10**6))
def test_groups_stay_whole_and_labels_as_even_as_scikit_learn_makes_them(
    folds: int, groups: int, largest: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    group_of = np.repeat(np.arange(groups), random.integers(1, largest + 1, groups)).tolist()
    labels = [str(label) for label in random.choice(3, len(group_of), p=(0.6, 0.3, 0.1))]
    found = stratified_folds(labels, group_of, folds)
    assert all(len(set(found[np.array(group_of) == group])) == 1 for group in range(groups))
    assert set(found) == set(range(folds))
    theirs = np.zeros(len(labels), int)
    counts = min(labels.count(label) for label in set(labels))
    if counts < folds:
        return  # scikit-learn warns, and then does the same
    for number, (_, test) in enumerate(StratifiedGroupKFold(folds).split(labels, labels, group_of)):
        theirs[test] = number
    assert unevenness(labels, found, folds) <= unevenness(labels, theirs, folds) + 0.02 + 1 / min(
        map(labels.count, set(labels))
    )


def test_without_groups_every_fold_has_its_part_of_every_label() -> None:
    labels = ["yes"] * 50 + ["no"] * 30 + ["red"] * 5
    found = stratified_folds(labels, range(len(labels)), 5)
    for fold in range(5):
        held = [label for label, number in zip(labels, found, strict=True) if number == fold]
        assert {label: held.count(label) for label in set(held)} == {"yes": 10, "no": 6, "red": 1}


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 6), st.integers(0, 1), st.integers(0, 10**6))
def test_no_fold_is_empty_where_groups_are_few(folds: int, more: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    groups = folds + more
    group_of = np.repeat(np.arange(groups), random.integers(1, 6, groups)).tolist()
    labels = [str(label) for label in random.choice(3, len(group_of))]
    assert set(stratified_folds(labels, group_of, folds)) == set(range(folds))


@pytest.mark.parametrize("folds", [1, 4])
def test_more_folds_than_groups_are_refused(folds: int) -> None:
    with pytest.raises(RecipeError, match=rf"folds: found {folds}, allowed are 2 to 3, the groups of training lines"):
        stratified_folds(["a"] * 6, ["x", "x", "y", "y", "z", "z"], folds)


@given(st.floats(-40, 40), st.integers(1, 60))
def test_the_p_of_students_t_is_scipys(t: float, freedom: int) -> None:
    assert student_p(t, freedom) == pytest.approx(2 * scipy.stats.t.sf(abs(t), freedom), abs=1e-10)


@given(st.lists(st.floats(-0.2, 0.3), min_size=2, max_size=10, unique=True))
def test_the_correction_widens_scipys_paired_test_by_what_the_folds_share(differences: list[float]) -> None:
    k = len(differences)
    plain = scipy.stats.ttest_1samp(differences, 0.0)
    t = plain.statistic * math.sqrt((1 / k) / (1 / k + 1 / (k - 1)))  # Nadeau & Bengio 2003, equation 11
    assert corrected_t_test(differences) == pytest.approx(2 * scipy.stats.t.sf(abs(t), k - 1), abs=1e-9)
    assert corrected_t_test(differences) >= plain.pvalue - 1e-12


def test_equal_differences_are_certain() -> None:
    assert corrected_t_test([0.0, 0.0, 0.0]) == 1.0
    assert corrected_t_test([0.5, 0.5, 0.5]) == 0.0


def test_the_best_comes_first_and_the_others_are_tested_against_it() -> None:
    told = compare({"sum": [0.5, 0.6, 0.4], "gated": [0.8, 0.9, 0.85], "concat": [0.81, 0.86, 0.84]})
    assert (told["best"], list(told["kinds"])) == ("gated", ["gated", "concat", "sum"])
    best, second, last = told["kinds"].values()
    assert best["mean"] == pytest.approx(0.85)
    assert best["deviation"] == pytest.approx(np.std([0.8, 0.9, 0.85], ddof=1))
    assert (best["behind"], best["p"]) == (0, None)
    assert second["behind"] == pytest.approx(0.85 - 2.51 / 3)
    assert second["p"] > 0.3
    assert last["p"] < 0.05


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """The tiny recipe on pictures and texts."""
    subsets = {"image+text": 3, "text": 1}
    return str(write_recipe(tmp_path / "tiny.yaml", audio=None, data={"subsets": subsets}, train={"alignment": 0}))


def test_it_trains_every_kind_on_every_fold_and_goes_on_where_it_stopped(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, trained = module.train, []

    def stop_at_the_third(*given: Any) -> dict[str, Any]:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(given)
        return real(*given)

    call = (recipe, ["fusion.hidden=8"], tmp_path / "cv", ("gated", "bottleneck"), 2, 1)
    monkeypatch.setattr(module, "train", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        crossval(*call)
    monkeypatch.setattr(module, "train", real)
    calls: list[Path] = []
    fit = training.fit
    monkeypatch.setattr(training, "fit", lambda *given: calls.append(given[6]) or fit(*given))
    told = crossval(*call)
    assert [folder.name for folder in calls] == ["gated_fold1", "bottleneck_fold1"]
    assert json.loads((tmp_path / "cv" / "crossval.json").read_text()) == told
    assert (told["folds"], told["lines"]) == (2, LINES["train"])
    for kind in ("gated", "bottleneck"):
        for number, accuracy in enumerate(told["kinds"][kind]["accuracies"]):
            run = training.Run.open(tmp_path / "cv" / f"{kind}_fold{number}")
            assert (run.recipe.fusion.kind, run.recipe.fusion.hidden, run.recipe.train.epochs) == (kind, 8, 1)
            scores = run.document["accuracy"]
            assert accuracy == pytest.approx((3 * scores["image+text"] + scores["text"]) / 4)


def test_every_picture_is_tested_on_once_by_all_kinds_alike(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def no_training(recipe: str, overrides: list[str], out: Path) -> dict[str, Any]:
        asked.append((overrides[0], overrides[1]))
        return {"accuracy": {"image+text": 0.5}}

    monkeypatch.setattr(module, "train", no_training)
    crossval(recipe, [], tmp_path / "cv", ("sum", "concat"), folds=4)
    assert len(asked) == 8
    held = []
    for number in range(4):
        lines = read_manifest(tmp_path / "cv" / f"fold{number}.jsonl")
        assert len(lines) == LINES["train"]
        tested = {line.image for line in lines if line.split == "val"}
        assert not tested & {line.image for line in lines if line.split == "train"}
        held += sorted(str(image) for image in tested)
        assert sum(f"fold{number}.jsonl" in manifest for _, manifest in asked) == 2
    assert len(held) == len(set(held)) == PICTURES["train"]


def test_lines_that_share_a_sound_are_not_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sounds = sorted({row["audio"] for row in rows_of_corpus() if row["split"] == "train"})
    rows = [{"audio": sound, "label": label, "split": "train"} for sound in sounds for label in ("yes", "no")]
    manifest = write_manifest(tmp_path / "manifest.jsonl", rows)
    recipe = write_recipe(
        tmp_path / "tiny.yaml",
        manifest,
        image=None,
        text=None,
        data={"group_by": None, "subsets": {}},
        train={"alignment": 0},
    )
    monkeypatch.setattr(module, "train", lambda *_: {"accuracy": {"audio": 0.5}})
    crossval(str(recipe), [], tmp_path / "cv", ("sum", "concat"), folds=2)
    for number in range(2):
        lines = read_manifest(tmp_path / "cv" / f"fold{number}.jsonl")
        tested = {line.audio for line in lines if line.split == "val"}
        assert tested
        assert not tested & {line.audio for line in lines if line.split == "train"}


def test_files_behind_a_url_stay_there(tmp_path: Path) -> None:
    shard = f"https://bucket.example.com/shards/train-000000.tar#512+7-{'0' * 64}"
    line = Example("m:1", shard, None, "is it red", "yes", "train", None)
    fold = module._write_fold(tmp_path / "fold.jsonl", [line], np.array([True]))
    assert json.loads(fold.read_text())["image"] == shard


def test_a_label_of_one_group_is_refused_before_anything_is_trained(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in rows_of_corpus() if row["split"] == "train"]
    rows[0]["label"] = "purple"
    manifest = write_manifest(tmp_path / "manifest.jsonl", rows)
    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(RecipeError, match="lines with the label 'purple' hang together by one file"):
        crossval(recipe, [f"data.manifest={manifest}"], tmp_path / "cv", ("sum", "concat"), folds=2)


def test_random_weights_are_not_compared(tmp_path: Path, recipe: str) -> None:
    with pytest.raises(RecipeError, match=r"train\.epochs is 0.*give --epochs 1 or more"):
        crossval(recipe, ["train.epochs=0"], tmp_path / "cv", ("sum", "concat"), folds=2)


def test_a_wrong_kind_is_refused_before_anything_is_written(tmp_path: Path, recipe: str) -> None:
    with pytest.raises(RecipeError, match=r"fusion\.kind: Input should be 'concat', .*found 'mean'"):
        crossval(recipe, [], tmp_path / "cv", ("sum", "mean"))
    assert not (tmp_path / "cv").exists()
