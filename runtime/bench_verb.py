"""What `edgefuse bench` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgefuse.runtime.shared_options import BundlePath, Json, Manifest
from edgefuse.runtime.verbs import run_verb


def bench(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="Folder of the report.")],
    manifest: Manifest = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer runs: a look, not a result.")] = False,
    against: Annotated[Path | None, typer.Option(help="report.json of another bundle, to be timed beside it.")] = None,
    history: Annotated[Path | None, typer.Option(help="File that a line of figures is added to (.jsonl).")] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help='Exit 1 if so: "cpu.p50_ms>20", "retention<0.99", "slower"; may be repeated.'),
    ] = None,
    builds: Annotated[
        int, typer.Option(min=0, help="More builds of the engines, to see how they differ; needs a GPU.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Measure speed, size, memory and accuracy, and write a report."""
    options: dict[str, Any] = {"against": against, "history": history, "fail_on": fail_on or [], "builds": builds}
    run_verb("benchmarks.bench:bench", as_json, bundle, out, manifest=manifest, quick=quick, **options)
