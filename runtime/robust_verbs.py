"""The verbs that say what a model survives: spoiled sensors, and an attack on one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgefuse.runtime.shared_options import Backend, BundlePath, Json, Labelled, Limit, PartDir, Split
from edgefuse.runtime.verbs import run_verb


def robust(
    bundle: BundlePath,
    manifest: Labelled,
    part_dir: PartDir = None,
    backend: Backend = None,
    corruption: Annotated[
        list[str] | None, typer.Option(help="Corruption; may be repeated.", show_default="all of the sensors")
    ] = None,
    severity: Annotated[
        list[int] | None, typer.Option(min=1, max=5, help="1 to 5; may be repeated.", show_default="all")
    ] = None,
    split: Split = "test",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy under noise, blur, babble, typos and the like, per subset of sensors and severity."""
    options = {"part_set": part_dir, "backend": backend, "split": split, "limit": limit}
    chosen = {"corruptions": corruption or [], "severities": severity or []}
    run_verb("benchmarks.robust:robust", as_json, bundle, manifest, **options, **chosen)


def attack(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run.", show_default=False)],
    manifest: Labelled,
    eps: Annotated[
        float,
        typer.Option(help="Reach: of 255 for pixels, of full scale for sound, of the norm of a text's embeddings."),
    ],
    sensor: Annotated[str, typer.Option(help="What is attacked.")] = "image",
    steps: Annotated[int, typer.Option(min=1, help="1 is FGSM, more are PGD.")] = 1,
    split: Split = "test",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy when a sensor is moved within a small reach so that the model errs (FGSM, PGD)."""
    options = {"sensor": sensor, "steps": steps, "split": split, "limit": limit}
    run_verb("train.attack:attack", as_json, run, manifest, eps, **options)
