"""The verbs that begin, train and compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from edgefuse.runtime.shared_options import Json
from edgefuse.runtime.verbs import run_verb

RecipeName = Annotated[str, typer.Argument(help="Name of a recipe, or path of a YAML file.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings that differ, as key=value.")]
RunFolder = Annotated[Path, typer.Option(help="Folder of the run; the same call goes on where it stopped.")]
RunsFolder = Annotated[Path, typer.Option(help="Folder of all runs; the same call goes on where it stopped.")]
Size = Annotated[
    Literal["nano", "small", "base"] | None,
    typer.Option(help="Rows of the encoders and widths of the fusion.", show_default="those of the recipe"),
]


def init(
    folder: Annotated[Path, typer.Argument(help="New folder of the experiment.", show_default=False)],
    sensors: Annotated[
        str | None, typer.Option(help="What the model reads, as in image+text.", show_default="those of the manifest")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option("--from", help="Data to fit sizes and lengths to.", show_default="none")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a commented recipe for one's own data, and the commands that come next."""
    run_verb("train.init:init", as_json, folder, sensors, manifest)


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    *,
    out: RunFolder,
    size: Size = None,
    as_json: Json = False,
) -> None:
    """Train a recipe into a run."""
    run_verb("train.train:train", as_json, recipe, overrides or [], out, size=size)


def pretrain(
    recipe: RecipeName,
    overrides: Overrides = None,
    *,
    out: RunFolder,
    as_json: Json = False,
) -> None:
    """Pretrain a recipe's encoders on lines without labels; a training starts from them by image.weights=RUN."""
    run_verb("train.pretrain:pretrain", as_json, recipe, overrides or [], out)


def distill(
    recipe: RecipeName,
    overrides: Overrides = None,
    *,
    teacher: Annotated[list[Path], typer.Option(help="Folder of a trained run; may be repeated.")],
    out: RunFolder,
    size: Size = None,
    as_json: Json = False,
) -> None:
    """Train a recipe into a run that also learns from the answers of larger runs, or of several."""
    run_verb("train.distill:distill", as_json, recipe, overrides or [], teacher, out, size=size)


def soup(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs on from one train.start.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    as_json: Json = False,
) -> None:
    """Average the weights of runs that went on from one: right more often than each, at the cost of one."""
    run_verb("train.soup:soup", as_json, runs, out)


def gain(
    recipe: RecipeName,
    overrides: Overrides = None,
    *,
    teacher: Annotated[list[Path] | None, typer.Option(help="Folder of a trained run; may be repeated.")] = None,
    ensemble: Annotated[int, typer.Option(min=0, help="Train so many teachers like the students first.")] = 0,
    out: RunsFolder,
    size: Size = None,
    seeds: Annotated[int, typer.Option(min=2, help="Pairs of students, each pair with a seed of its own.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="2 pairs, 2 epochs: a look, not a result.")] = False,
    as_json: Json = False,
) -> None:
    """Measure what distillation gives: students with and without teachers, over several seeds, on the test lines."""
    counts: dict[str, Any] = {"seeds": seeds, "ensemble": ensemble, "quick": quick}
    run_verb("train.gain:gain", as_json, recipe, overrides or [], teacher or [], out, size=size, **counts)


def crossval(
    recipe: RecipeName,
    overrides: Overrides = None,
    *,
    out: RunsFolder,
    kinds: Annotated[
        str, typer.Option(help="Fusions to compare, with commas.")
    ] = "concat,sum,weighted,gated,precise,low_rank,film,attention,bottleneck",
    folds: Annotated[int, typer.Option(min=2, help="Parts of the training lines; each is tested on once.")] = 5,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs.", show_default="those of the recipe")] = None,
    as_json: Json = False,
) -> None:
    """Choose the fusion by stratified cross-validation: mean, deviation and a paired test against the best."""
    options = {"kinds": kinds.split(","), "folds": folds, "epochs": epochs}
    run_verb("train.crossval:crossval", as_json, recipe, overrides or [], out, **options)


def qat(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training lines.")] = 1,
    as_json: Json = False,
) -> None:
    """Fine-tune a run with INT8 rounding in the loop (quantization-aware training)."""
    run_verb("train.qat:qat", as_json, run, out, epochs)
