"""A teacher's cache: that it holds the model's own answers, is made once, and mends itself."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.decomposition import PCA

from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.manifest import Example, fingerprint, read_manifest
from edgefuse.train import teacher as module
from edgefuse.train.pretrained import MODEL_FILE
from edgefuse.train.runs import Run
from edgefuse.train.teacher import ANSWERS, AXES_FILE, answers
from tests.train_fixtures import LINES, corpus, loader_of, trained_run

SHARD = 5


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that 24 lines make five shards, the last one shorter."""
    monkeypatch.setattr(module, "SHARD", SHARD)
    monkeypatch.setattr(module, "BATCH", 2)


@pytest.fixture
def teacher(tmp_path: Path) -> Run:
    """A finished run without answers."""
    shutil.copytree(trained_run(), tmp_path / "teacher", ignore=shutil.ignore_patterns(ANSWERS, "tensorboard"))
    return Run.open(tmp_path / "teacher")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose model was loaded to answer."""
    loaded: list[Path] = []
    load: Callable[[Run], torch.nn.Module] = Run.trained_model
    monkeypatch.setattr(Run, "trained_model", lambda run: (loaded.append(run.folder), load(run))[1])
    return loaded


@functools.cache
def lines() -> list[Example]:
    return read_manifest(corpus(), split="train")


def test_every_line_has_the_models_answer_to_all_its_sensors(teacher: Run) -> None:
    found = answers(teacher, lines())
    model, loader = teacher.trained_model(), loader_of(teacher.recipe)
    wanted = [7, 0, 23, 7]
    with torch.no_grad():
        for row, number in enumerate(wanted):
            line = lines()[number]
            batch = loader.batch([line], [line.audio], [{"image", "audio", "text"}])
            logits, _ = model(batch.inputs, torch.ones(1, 3))
            torch.testing.assert_close(found.rows("logits", wanted)[row], logits[0], atol=1e-5, rtol=1e-4)
            fused = found.rows("fused", wanted)[row]
            torch.testing.assert_close(model.head.classify(fused[None])[0], logits[0], atol=1e-5, rtol=1e-4)
    assert [len(shard["logits"]) for shard in found.shards] == [5, 5, 5, 5, 4]


def test_files_of_the_same_names_and_other_contents_are_asked_about_again(teacher: Run, tmp_path: Path) -> None:
    copies = []
    for line in lines():
        image = tmp_path / "copy" / Path(str(line.image)).name
        image.parent.mkdir(exist_ok=True)
        shutil.copy2(str(line.image), image)
        copies.append(replace(line, image=str(image)))
    first = answers(teacher, lines())
    assert answers(teacher, copies).folder == first.folder, "the same files elsewhere are the same"
    shutil.copy(str(next(e.image for e in lines() if e.label == "red")), image)  # the last picture is another now
    again = answers(teacher, copies)
    assert again.folder != first.folder
    changed = (again.rows("logits", range(len(copies))) != first.rows("logits", range(len(copies)))).any(dim=1)
    assert changed.tolist() == [e.image == str(image) for e in copies]


def test_answers_are_made_once_for_these_weights_and_these_lines(teacher: Run, loads: list[Path]) -> None:
    first = answers(teacher, lines())
    again = answers(teacher, lines())
    assert len(loads) == 1
    assert torch.equal(first.rows("logits", range(LINES["train"])), again.rows("logits", range(LINES["train"])))
    assert first.folder.name.startswith(f"{teacher.weights_sha256()[:16]}-{fingerprint(lines())}-")

    assert answers(teacher, lines()[1:]).folder != first.folder
    (teacher.folder / MODEL_FILE).write_bytes(_other_weights(teacher))
    assert answers(teacher, lines()).folder not in (first.folder, again.folder.parent)
    assert len(loads) == 3


def _other_weights(run: Run) -> bytes:
    from safetensors.torch import save

    weights = load_file(run.folder / MODEL_FILE)
    return save({name: value + 0.01 if name.endswith("bias") else value for name, value in weights.items()})


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "other"])
def test_a_shard_that_is_not_whole_is_made_again_and_no_other(teacher: Run, loads: list[Path], damage: str) -> None:
    before = answers(teacher, lines())
    logits = before.rows("logits", range(LINES["train"])).clone()
    path = before.folder / "00002.safetensors"
    content = path.read_bytes()
    others = {p.name: p.stat().st_mtime_ns for p in before.folder.iterdir() if p != path}
    path.unlink()
    if damage == "other":
        shutil.copy(before.folder / "00004.safetensors", path)  # one line less
    elif damage != "gone":
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    after = answers(teacher, lines())
    assert len(loads) == 2
    assert torch.equal(after.rows("logits", range(LINES["train"])), logits)
    assert path.read_bytes() == content
    assert {p.name: p.stat().st_mtime_ns for p in after.folder.iterdir() if p != path} == others


def test_the_shards_are_mapped_and_not_read(teacher: Run) -> None:
    found = answers(teacher, lines())
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert all(str(found.folder / f"{number:05d}.safetensors") in maps for number in range(5))


def test_the_axes_are_the_principal_components_with_a_mean_square_of_one(teacher: Run) -> None:
    found = answers(teacher, lines())
    fused = found.rows("fused", range(LINES["train"]))
    mean, axes = found.axes()
    placed = ((fused - mean) @ axes).numpy()
    expected = PCA().fit_transform(fused.double().numpy())
    scale = np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(np.abs(placed[:, :4]), np.abs(expected[:, :4] / scale), atol=1e-3)  # signs are free
    assert float(np.square(placed).mean()) == pytest.approx(1, rel=1e-4)


def test_the_axes_are_kept_so_that_a_resumed_run_has_the_same(teacher: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = answers(teacher, lines())
    first = found.axes()
    monkeypatch.setattr(torch.linalg, "eigh", lambda *_: pytest.fail("computed again"))
    again = answers(teacher, lines()).axes()
    assert (found.folder / AXES_FILE).exists()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_run_that_is_not_finished_teaches_nobody(teacher: Run) -> None:
    (teacher.folder / MODEL_FILE).unlink()
    with pytest.raises(RecipeError, match="is not trained to its end"):
        answers(teacher, lines())


def test_a_line_that_the_teacher_cannot_perceive_is_named(teacher: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads((teacher.folder / "run.json").read_bytes())
    document["recipe"].update(audio=None, text=None)
    document["recipe"]["data"]["subsets"] = {}
    (teacher.folder / "run.json").write_text(json.dumps(document))
    unseen = replace(lines()[0], where="m.jsonl:9", image=None)
    with pytest.raises(RecipeError, match=r"^m\.jsonl:9 has none of what the teacher .*teacher reads \(image\)"):
        answers(Run.open(teacher.folder), [*lines(), unseen])
