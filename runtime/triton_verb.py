"""What `edgefuse export-triton` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgefuse.runtime.shared_options import BundlePath, Json, PartSet
from edgefuse.runtime.verbs import run_verb


def export_triton(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="Folder of the model repository; other models in it stay.")],
    part_dir: Annotated[
        PartSet | None, typer.Option("--part-dir", help="Parts for Triton's ONNX Runtime.", show_default="fp32")
    ] = None,
    plans: Annotated[bool, typer.Option("--plans", help="Serve the TensorRT engines of the bundle instead.")] = False,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch that the server makes of requests.")] = 8,
    name: Annotated[str | None, typer.Option(help="Name of the ensemble.", show_default="the bundle's")] = None,
    as_json: Json = False,
) -> None:
    """Write a model repository for Triton: each part batched by the server, and their ensemble."""
    options = {"part_set": part_dir, "plans": plans, "max_batch": max_batch, "name": name}
    run_verb("optimize.triton:export_triton", as_json, bundle, out, **options)
