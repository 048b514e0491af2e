"""A soup's weights are the mean of its runs', it is a run like any other, and runs that have no mean are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.train.objective import validate
from edgefuse.train.pretrain import pretrain
from edgefuse.train.runs import Run
from edgefuse.train.soup import soup
from edgefuse.train.train import train
from tests.train_fixtures import corpus, loader_of, trained_run, write_recipe


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs on from the trained one, with seeds of their own."""
    folder = tmp_path_factory.mktemp("soup")
    recipe = str(write_recipe(folder / "tiny.yaml"))
    runs = [folder / str(seed) for seed in (0, 1)]
    for seed, run in enumerate(runs):
        train(recipe, [f"train.start={trained_run()}", f"train.seed={seed}"], run)
    return runs


def changed(run: Path, out: Path, **changes: Any) -> Path:
    """A copy of the run whose run.json says something else."""
    shutil.copytree(run, out)
    document = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**document, **changes}))
    return out


def test_the_weights_of_a_soup_are_the_mean_and_its_counters_those_of_the_first(
    pair: list[Path], tmp_path: Path
) -> None:
    soup(pair, tmp_path / "soup")
    first, second, mean = (load_file(run / "model.safetensors") for run in (*pair, tmp_path / "soup"))
    assert list(mean) == list(first)
    apart = [name for name in mean if not np.array_equal(first[name], second[name])]
    assert len(apart) > 40
    for name, value in mean.items():
        floats = np.issubdtype(value.dtype, np.floating)
        expected = (first[name].astype(np.float64) + second[name]) / 2 if floats else first[name]
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7, err_msg=name)


def test_a_soup_is_a_run_that_says_where_it_is_from(pair: list[Path], tmp_path: Path) -> None:
    told = soup(pair, tmp_path / "soup")
    run, lines = Run.open(tmp_path / "soup"), read_manifest(corpus(), split="val")
    measured = validate(run.trained_model(), loader_of(run.recipe), lines, run.recipe.trained_subsets)
    assert told["accuracy"] == run.document["accuracy"] == measured
    assert told["each"] == {str(run): Run.open(run).document["accuracy"] for run in pair}
    assert run.document["soup"] == [{"run": str(run), "sha256": Run.open(run).weights_sha256()} for run in pair]
    assert run.tokenizer == Run.open(pair[0]).tokenizer


def test_the_same_call_keeps_the_soup_and_another_one_is_refused(pair: list[Path], tmp_path: Path) -> None:
    told = soup(pair, tmp_path / "soup")
    written = (tmp_path / "soup" / "model.safetensors").stat().st_mtime_ns
    assert soup(pair, tmp_path / "soup") == told
    assert (tmp_path / "soup" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(RecipeError, match="holds a run; choose another --out"):
        soup(pair[::-1], tmp_path / "soup")
    with pytest.raises(RecipeError, match="holds a run; choose another --out"):
        soup(pair, pair[0])


@pytest.mark.parametrize("count", [0, 1])
def test_less_than_two_runs_are_nothing_to_average(count: int, pair: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"^{count} run is nothing to average; give two or more"):
        soup(pair[:count], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_runs_that_started_apart_are_refused(pair: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"started apart \(train\.start: None and None\).*train\.start=RUN"):
        soup([trained_run(), trained_run()], tmp_path / "soup")
    with pytest.raises(RecipeError, match="started apart"):
        soup([pair[0], trained_run()], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"data_fingerprint": "0" * 16}, "data"), ({"labels": ["no", "blue", "green", "red", "yes"]}, "labels")],
)
def test_runs_that_differ_in_more_than_their_training_are_refused(
    changes: dict[str, Any], named: str, pair: list[Path], tmp_path: Path
) -> None:
    other = changed(pair[1], tmp_path / "other", **changes)
    assert sorted(Run.open(other).labels) == sorted(Run.open(pair[1]).labels)
    with pytest.raises(RecipeError, match=f"differ in {named}; only how they were trained may differ"):
        soup([pair[0], other], tmp_path / "soup")


def test_another_length_of_sound_is_another_model(pair: list[Path], tmp_path: Path) -> None:
    recipe = json.loads((pair[1] / "run.json").read_text())["recipe"]
    recipe["audio"]["seconds"] *= 2
    other = changed(pair[1], tmp_path / "other", recipe=recipe)
    with pytest.raises(RecipeError, match=r"differ in .*preprocessing"):
        soup([pair[0], other], tmp_path / "soup")


def test_a_run_that_answers_nothing_yet_is_refused(pair: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "pretrained"
    pretrain(str(write_recipe(tmp_path / "tiny.yaml")), [f"train.start={trained_run()}", "train.epochs=1"], run)
    with pytest.raises(RecipeError, match="was pretrained and answers nothing yet"):
        soup([run, pair[1]], tmp_path / "soup")
