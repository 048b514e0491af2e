"""QAT gives back what INT8 rounding took, and leaves a run like any other."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from torch import nn

from edgefuse.runtime.errors import RecipeError
from edgefuse.train import qat as qat_module
from edgefuse.train.qat import qat
from edgefuse.train.runs import Run
from edgefuse.train.train import train
from tests.train_fixtures import RATE, SECONDS, corpus, trained_run, write_manifest, write_recipe

TONES = 5
OUTLIER = 300.0


@pytest.fixture(scope="module")
def tone_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a sound model that tells short tones apart without a mistake."""
    folder = tmp_path_factory.mktemp("tones")
    random = np.random.default_rng(0)
    time = np.arange(round(RATE * SECONDS)) / RATE
    rows = []
    for split, count in {"train": 16, "val": 20}.items():
        for tone in range(TONES):
            for number in range(count):
                frequency = 250 * 1.8**tone * random.uniform(0.97, 1.03)
                pcm = 0.5 * np.sin(2 * np.pi * frequency * time) * ((time > 0.1) & (time < 0.3))
                name = f"{split}_{tone}_{number}.wav"
                soundfile.write(folder / name, pcm + random.normal(0, 0.02, time.size), RATE, subtype="PCM_16")
                rows.append({"audio": name, "label": str(tone), "split": split})
    manifest = write_manifest(folder / "manifest.jsonl", rows)
    recipe = write_recipe(
        folder / "tones.yaml",
        manifest,
        data={"group_by": None, "groups_per_step": 16, "subsets": {}},
        image=None,
        text=None,
        train={"epochs": 45, "validate_every": 45, "alignment": 0, "checkpoint_every_s": 1000},
    )
    assert train(str(recipe), [], folder / "run")["accuracy"]["audio"] >= 0.97
    return folder / "run"


def plant_outlier(run: Path, out: Path) -> Path:
    """The same function of the sound, but one channel behind each norm is OUTLIER times as large.

    The activation of the Linear layer behind it has one scale, in which its other channels then are next to nothing.
    """
    model = Run.open(run).trained_model()
    with torch.no_grad():
        for module in model.encoders["audio"].layers.modules():
            for norm, linear in pairwise(module.children()):
                if isinstance(norm, nn.LayerNorm) and isinstance(linear, nn.Linear):
                    norm.weight[3] *= OUTLIER
                    norm.bias[3] *= OUTLIER
                    linear.weight[:, 3] /= OUTLIER
    shutil.copytree(run, out)
    save_file(model.state_dict(), out / "model.safetensors")
    return out


def test_a_planted_outlier_channel_costs_accuracy_and_qat_gets_it_back(tone_run: Path, tmp_path: Path) -> None:
    planted = plant_outlier(tone_run, tmp_path / "planted")
    result = qat(planted, tmp_path / "qat", epochs=40)
    assert result["int8"]["before"]["audio"] <= 0.85
    assert result["int8"]["after"]["audio"] >= 0.97
    assert result["accuracy"]["audio"] >= 0.97


def test_the_new_folder_is_a_run_like_any_other(tmp_path: Path) -> None:
    result = qat(trained_run(), tmp_path / "qat", epochs=1, convolutions=True)
    old, new = Run.open(trained_run()), Run.open(tmp_path / "qat")
    assert (new.recipe, new.labels, new.tokenizer) == (old.recipe, old.labels, old.tokenizer)
    assert result["run"] == str(tmp_path / "qat")
    assert result["layers"] == new.document["qat"]["layers"] > 40
    assert new.document["accuracy"] == result["accuracy"]
    assert new.document["accuracy"].keys() == old.document["accuracy"].keys()
    lineage = new.document["qat"]
    assert (lineage["from"], lineage["epochs"], lineage["convolutions"]) == (str(trained_run()), 1, True)
    assert lineage["int8"] == result["int8"]
    before, after = old.trained_model().state_dict(), new.trained_model().state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert "encoders.text.bert.transformer.layer.0.ffn.lin1.weight" in moved
    assert "encoders.image.features.1.block.0.0.weight" in moved
    assert not [name for name in moved if "running_" in name], "batch norms keep their statistics"
    assert all(float((before[name] - after[name]).abs().max()) < 0.01 for name in moved)


def test_a_call_that_was_cut_off_leaves_no_run_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(qat_module, "distillation_loss", stop)
        with pytest.raises(KeyboardInterrupt):
            qat(trained_run(), tmp_path / "qat")
    assert not (tmp_path / "qat" / "run.json").exists()
    qat(trained_run(), tmp_path / "qat")
    with pytest.raises(RecipeError, match="holds a run; choose another --out"):
        qat(trained_run(), tmp_path / "qat")


def test_a_run_whose_data_changed_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run(), run)
    document = json.loads((run / "run.json").read_text())
    document["data_fingerprint"] = "0" * 16
    (run / "run.json").write_text(json.dumps(document))
    with pytest.raises(RecipeError, match=f"was trained on other data than {corpus()} has now"):
        qat(run, tmp_path / "qat")


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run(), run)
    (run / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="is not trained to its end"):
        qat(run, tmp_path / "qat")
