"""Choose the fusion by cross-validation: `python train/crossval.py easy_vqa --out runs/cv`, as `edgefuse crossval`.

Every fusion learns from the same folds of the training lines with the same seed. Each fold of each is a run of its own
in the folder, so a call that was cut off goes on where it stopped, and finished folds are kept.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from edgefuse.runtime.bundle import MODALITIES
from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.runtime.shards import is_url
from edgefuse.train.recipe import Recipe, load_recipe
from edgefuse.train.train import train

RESULT_FILE = "crossval.json"


def crossval(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    kinds: Sequence[str],
    folds: int = 5,
    epochs: int | None = None,
) -> dict[str, Any]:
    """Train every fusion on every fold, and compare them.

    Args:
        recipe: a recipe's name or file; its split "train" is what is folded, "val" and "test" stay unseen.
        overrides: settings that differ, as key=value.
        out: a folder with crossval.json, the folds as manifests, and a run for each kind and fold.
        kinds: rows of fusion.FUSIONS.
        folds: how many.
        epochs: in place of the recipe's.

    Returns:
        {best, folds, lines, kinds: {kind: {accuracies, mean, deviation, behind, p}}}: accuracies on the folds; how far
        the mean is behind the best one's, and the two-sided p of that difference.

    Raises:
        RecipeError: a setting does not fit, there are fewer groups than folds, or `out` holds other runs.
        ManifestError: a line of the data cannot be used.
    """
    changes = [*overrides, *([] if epochs is None else [f"train.epochs={epochs}"])]
    recipes = {kind: load_recipe(recipe, [*changes, f"fusion.kind={kind}"]) for kind in kinds}  # wrong ones stop here
    settings = recipes[kinds[0]]
    if not settings.train.epochs:
        raise RecipeError("train.epochs is 0, and random weights say nothing of a fusion; give --epochs 1 or more")
    lines = read_manifest(settings.data.manifest, split="train")
    fold_of = stratified_folds([str(e.label) for e in lines], [_group(settings, e) for e in lines], folds)
    _check_folds(lines, fold_of)
    manifests = [_write_fold(out / f"fold{number}.jsonl", lines, fold_of == number) for number in range(folds)]
    accuracies: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number, manifest in enumerate(manifests):
        for kind in kinds:
            fold = [*changes, f"fusion.kind={kind}", f"data.manifest={json.dumps(str(manifest))}"]
            scores = train(recipe, fold, out / f"{kind}_fold{number}")["accuracy"]
            accuracies[kind].append(_mean_score(recipes[kind], scores))
            told = f"fold {number + 1} of {folds}, {kind}: {accuracies[kind][-1]:.4f}"
            Console(stderr=True).print(told, highlight=False)
    result = {"folds": folds, "lines": len(lines), **compare(accuracies)}
    write_atomic(out / RESULT_FILE, json.dumps(result, indent=2).encode())
    return result


def compare(accuracies: dict[str, list[float]]) -> dict[str, Any]:
    """Mean and deviation of each kind's accuracies on the same folds, and its difference from the best."""
    best = max(accuracies, key=lambda kind: float(np.mean(accuracies[kind])))
    rows = {}
    for kind, values in sorted(accuracies.items(), key=lambda item: -float(np.mean(item[1]))):
        behind = np.subtract(accuracies[best], values)
        rows[kind] = {
            "accuracies": values,
            "mean": float(np.mean(values)),
            "deviation": float(np.std(values, ddof=1)),
            "behind": float(behind.mean()),
            "p": None if kind == best else corrected_t_test(behind.tolist()),
        }
    return {"best": best, "kinds": rows}


def corrected_t_test(differences: Sequence[float]) -> float:
    """Two-sided p of the mean of paired differences from k folds (Nadeau & Bengio 2003, "Inference for the
    generalization error").

    Folds share most of their training lines, so the plain variance of the mean is too small: 1/k becomes
    1/k + tested/trained, and tested/trained is 1/(k - 1).
    """
    k = len(differences)
    variance = float(np.var(differences, ddof=1)) * (1 / k + 1 / (k - 1))
    mean = float(np.mean(differences))
    if variance == 0:
        return 1.0 if mean == 0 else 0.0
    return student_p(mean / math.sqrt(variance), k - 1)


def student_p(t: float, freedom: int) -> float:
    """Two-sided p of Student's t with a whole number of degrees of freedom (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan2(abs(t), math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(theta), 0.0) if odd else (1.0, 0.0)
    for n in range(1 + odd, freedom, 2):  # 1 + 1/2 cos^2 + (1 * 3)/(2 * 4) cos^4 ..., or cos + 2/3 cos^3 ...
        total += term
        term *= n / (n + 1) * math.cos(theta) ** 2
    inside = math.sin(theta) * total
    return max(0.0, 1 - (2 / math.pi * (theta + inside) if odd else inside))


def stratified_folds(labels: Sequence[str], groups: Sequence[Hashable], folds: int) -> NDArray[np.int64]:
    """The fold of every line, [lines]: a group is never torn, and every fold has about the labels of the whole.

    As scikit-learn's StratifiedGroupKFold: groups with the most uneven labels come first, and each goes to the fold
    that leaves the shares of every label the most even.

    Raises:
        RecipeError: there are fewer groups than folds.
    """
    label_number = {label: i for i, label in enumerate(sorted(set(labels)))}
    group_number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    if not 2 <= folds <= len(group_number):
        raise RecipeError(f"folds: found {folds}, allowed are 2 to {len(group_number)}, the groups of training lines")
    counts = np.zeros((len(group_number), len(label_number)))  # [G, C]
    member = np.array([group_number[group] for group in groups])  # [lines]
    np.add.at(counts, (member, np.array([label_number[label] for label in labels])), 1)
    share = counts / counts.sum(axis=0)  # [G, C], of each label's lines
    held = np.zeros((folds, len(label_number)))  # [K, C], share of each label in each fold
    fold_of_group = np.zeros(len(group_number), np.int64)
    for group in np.argsort(-counts.std(axis=1), kind="stable"):
        tried = held[None] + np.eye(folds)[:, :, None] * share[group]  # [choice, K, C]
        uneven = tried.std(axis=1).mean(axis=1)  # [choice]
        fold_of_group[group] = np.lexsort((held.sum(axis=1), uneven.round(12)))[0]  # the emptiest of those as even
        held[fold_of_group[group]] += share[group]
    return fold_of_group[member]


def _group(recipe: Recipe, example: Example) -> Hashable:
    """What must not be learned from and tested on: what the recipe groups by, or the line's file; else the line."""
    shared = getattr(example, recipe.data.group_by) if recipe.data.group_by else None
    return shared or example.image or example.audio or example.signal or example.where


def _check_folds(lines: Sequence[Example], fold_of: NDArray[np.int64]) -> None:
    """Every label is in two folds at least: what a fold tests is learned from the others."""
    folds: dict[str, set[int]] = {}
    for line, fold in zip(lines, fold_of.tolist(), strict=True):
        folds.setdefault(str(line.label), set()).add(fold)
    if alone := next((label for label, found in folds.items() if len(found) == 1), None):
        raise RecipeError(
            f"lines with the label {alone!r} hang together by one file, so no fold could learn it from the others; "
            "give more examples of it, or leave it out"
        )


def _write_fold(path: Path, lines: Sequence[Example], held_out: NDArray[np.bool_]) -> Path:
    """The manifest of one fold: its lines become the split "val", all others stay in "train"."""
    rows = []
    for line, out in zip(lines, held_out, strict=True):
        row = {key: value for key, value in asdict(line).items() if key != "where" and value is not None}
        files = {key: _anywhere(row[key]) for key in MODALITIES if key in row and key != "text"}
        rows.append(json.dumps({**row, **files, "split": "val" if out else "train"}))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, ("\n".join(rows) + "\n").encode())
    return path.resolve()


def _anywhere(path: str) -> str:
    """A path that holds from every folder."""
    return path if is_url(path) else str(Path(path).resolve())


def _mean_score(recipe: Recipe, scores: dict[str, float]) -> float:
    """Mean accuracy over the subsets of sensors, which count as often as training shows them."""
    weights = [recipe.data.subsets.get(subset, 1.0) for subset in scores]
    return float(np.average(list(scores.values()), weights=weights))


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["crossval", *sys.argv[1:]])
