"""The options of the command line that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

PartSet = Literal["fp32", "trt", "cpu"]

BundlePath = Annotated[Path, typer.Argument(help="Folder of the bundle.", show_default=False)]
Labelled = Annotated[Path, typer.Argument(help="Labelled data (.jsonl).", show_default=False)]
Manifest = Annotated[
    Path | None, typer.Option(help="Data to calibrate and measure on.", show_default="the one of the training")
]
Split = Annotated[Literal["train", "val", "test"], typer.Option(help="Lines to use.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use this many lines, evenly spread.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line of stdout.")]
PartDir = Annotated[
    PartSet | None, typer.Option("--part-dir", help="Part set to run.", show_default="what suits the backend")
]
ImageFile = Annotated[Path | None, typer.Option(help="A picture file.")]
AudioFile = Annotated[Path | None, typer.Option(help="A sound file.")]
SignalFile = Annotated[Path | None, typer.Option(help="A table of numbers, as .csv or .npy.")]
Text = Annotated[str | None, typer.Option(help="A text.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes every core.")]
Backend = Annotated[
    str | None,
    typer.Option(
        help="What runs the parts: cpu, openvino, ort-tensorrt, ort-cuda, tensorrt-rtx or tensorrt.", show_default="cpu"
    ),
]
