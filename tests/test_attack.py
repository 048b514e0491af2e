"""edgefuse attack: what FGSM takes from a run, per subset with the attacked sensor, each line with its own copies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgefuse.runtime.errors import ManifestError, OptionError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.train.attack import _unshared, attack
from edgefuse.train.objective import batch_logits, validate
from edgefuse.train.train import Run, train
from tests.train_fixtures import (
    LINES,
    QUESTIONS,
    corpus,
    loader_of,
    new_model,
    tiny_recipe,
    trained_run,
    write_manifest,
    write_recipe,
)


def test_no_reach_takes_nothing_and_the_clean_figure_is_that_of_the_validation() -> None:
    found = attack(trained_run(), corpus(), 0.0)
    run = Run.open(trained_run())
    lines = read_manifest(corpus(), split="test")
    expected = validate(run.trained_model(), loader_of(run.recipe), lines, list(found["by_subset"]))
    assert list(found["by_subset"]) == ["image", "image+audio", "image+text", "image+audio+text"]
    for name, cell in found["by_subset"].items():
        assert cell["clean"] == cell["attacked"]
        assert cell["clean"]["accuracy"] == pytest.approx(expected[name])
        assert cell["clean"]["n"] == LINES["test"]
    assert found["clean"] == found["by_subset"]["image+audio+text"]["clean"]
    json.dumps(found)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that tells three sentences apart, and its manifest."""
    folder = tmp_path_factory.mktemp("sentences")
    rows = [{"text": text, "label": text, "split": split} for split in ("train", "val", "test") for text in QUESTIONS]
    manifest = write_manifest(folder / "sentences.jsonl", rows)
    alone = {"subsets": {}, "group_by": None, "groups_per_step": 3, "flip": False}
    settings = {"epochs": 40, "validate_every": 40, "alignment": 0}
    recipe = write_recipe(folder / "s.yaml", manifest, data=alone, image=None, audio=None, train=settings)
    train(str(recipe), [], folder / "run")
    return folder / "run", manifest


def test_the_further_the_reach_the_more_it_takes(sentences: tuple[Path, Path]) -> None:
    near, far = (attack(*sentences, eps, sensor="text", steps=10) for eps in (0.001, 1.0))
    assert near["clean"]["accuracy"] == near["attacked"]["accuracy"] == far["clean"]["accuracy"] == 1.0
    assert far["attacked"]["accuracy"] == 0.0
    assert far == attack(*sentences, 1.0, sensor="text", steps=10)


def test_every_line_gets_copies_of_its_own_and_the_same_answer() -> None:
    recipe = tiny_recipe()
    model, lines = new_model(recipe), read_manifest(corpus(), split="train")
    batch = loader_of(recipe).batch(lines, [e.audio for e in lines], [set(e.sensors) for e in lines])
    own = _unshared(batch)
    assert all(len(value) == len(lines) for value in own.inputs.values())
    with torch.no_grad():
        torch.testing.assert_close(batch_logits(model, own)[0], batch_logits(model, batch)[0], atol=1e-5, rtol=1e-4)


def test_what_cannot_be_attacked_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--sensor smell: this run has none; it reads image, audio, text"):
        attack(trained_run(), corpus(), 4, sensor="smell")
    with pytest.raises(OptionError, match=r"--eps 300 --steps 1 for image: Input should be less than or equal to 255"):
        attack(trained_run(), corpus(), 300)
    typed = write_manifest(tmp_path / "m.jsonl", [{"text": "is it red", "label": "yes", "split": "test"}])
    with pytest.raises(ManifestError, match="no line of split 'test' has image; give other lines"):
        attack(trained_run(), typed, 4)
