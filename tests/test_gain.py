"""What distillation gives, measured: the interval is SciPy's, and the table says what the runs hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.train import gain as module
from edgefuse.train.gain import RESULT_FILE, gain, mean_interval
from edgefuse.train.macs import parameters
from edgefuse.train.objective import validate
from edgefuse.train.runs import Run
from tests.train_fixtures import corpus, loader_of, trained_run, write_recipe

SUBSETS = ["image+audio+text", "image+audio", "image+text"]  # all sensors, then as YAML sorts them


@pytest.mark.parametrize("values", [[0.1, 0.3], [1.0, 1.5, 0.2], list(np.random.default_rng(0).normal(0.01, 0.02, 5))])
def test_the_interval_is_students(values: Sequence[float]) -> None:
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    np.testing.assert_allclose(mean_interval(values), expected, rtol=1e-6)


def test_differences_without_spread_are_an_interval_of_no_width() -> None:
    assert mean_interval([0.25, 0.25]) == (0.25, 0.25)


def test_pairs_of_students_are_tested_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = str(write_recipe(tmp_path / "tiny.yaml"))
    result = gain(recipe, ["data.limit=12"], [trained_run()] * 2, tmp_path / "out", quick=True)

    kinds = {
        f"{kind}{seed}": Run.open(tmp_path / "out" / f"{kind}{seed}")
        for kind in ("plain", "distilled")
        for seed in (0, 1)
    }
    assert [run.recipe.train.seed for run in kinds.values()] == [0, 1, 0, 1]
    assert ["teachers" in run.document for run in kinds.values()] == [False, False, True, True]
    lines = read_manifest(corpus(), split="test")
    scores = {name: validate(run.trained_model(), loader_of(run.recipe), lines, SUBSETS) for name, run in kinds.items()}
    assert list(result["subsets"]) == SUBSETS
    for subset, row in result["subsets"].items():
        pairs = [(scores[f"plain{seed}"][subset], scores[f"distilled{seed}"][subset]) for seed in (0, 1)]
        assert (row["plain"], row["distilled"]) == pytest.approx(tuple(np.mean(pairs, axis=0)))
        assert row["difference"] == pytest.approx(row["distilled"] - row["plain"])
        assert row["low"] <= row["difference"] <= row["high"]
    teacher = Run.open(trained_run())
    right = validate(teacher.trained_model(), loader_of(teacher.recipe), lines, SUBSETS[:1])
    assert result["teacher_accuracy"] == pytest.approx(right[SUBSETS[0]])  # two equal ones answer as one
    taught, teaching = result["subsets"][SUBSETS[0]]["distilled"], result["teacher_accuracy"]
    assert result["kept"] == (pytest.approx(taught / teaching) if teaching else None)
    size = parameters(teacher.trained_model())
    assert result["cost"]["teacher"]["parameters"] == 2 * size
    assert result["cost"]["share"] == {"macs": 0.5, "parameters": 0.5}
    document = json.loads((tmp_path / "out" / RESULT_FILE).read_bytes())
    assert document == {key: value for key, value in result.items() if key != "file"}

    monkeypatch.setattr("edgefuse.train.train.fit", lambda *_: pytest.fail("trained again"))
    assert gain(recipe, ["data.limit=12"], [trained_run()] * 2, tmp_path / "out", quick=True) == result


def test_without_a_teacher_nothing_is_trained(tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path / "tiny.yaml"))
    with pytest.raises(OptionError, match=r"^no teacher; give finished runs as --teacher, or train some by --ensemble"):
        gain(recipe, [], [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_ensemble_is_trained_like_the_students_from_other_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, Any]] = []
    monkeypatch.setattr(module, "train", lambda recipe, changes, out, size: trained.append((out.name, changes)))
    monkeypatch.setattr(
        module, "distill", lambda recipe, changes, teachers, out, size: trained.append((out.name, teachers))
    )
    monkeypatch.setattr(module, "_test", lambda run: {"image": 1.0})
    monkeypatch.setattr(module, "_result", lambda scores, student, teachers: {"teachers": len(teachers)})
    monkeypatch.setattr(module.Run, "open", lambda folder: folder)
    tmp_path.joinpath("out").mkdir()
    result = gain("tiny", ["data.limit=12"], [trained_run()], tmp_path / "out", seeds=2, ensemble=2)
    assert result["teachers"] == 3
    teachers = [trained_run(), tmp_path / "out" / "teacher0", tmp_path / "out" / "teacher1"]
    assert trained == [
        ("teacher0", ["data.limit=12", "train.seed=1000"]),
        ("teacher1", ["data.limit=12", "train.seed=1001"]),
        ("plain0", ["data.limit=12", "train.seed=0"]),
        ("distilled0", teachers),
        ("plain1", ["data.limit=12", "train.seed=1"]),
        ("distilled1", teachers),
    ]
