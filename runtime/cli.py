"""The command line: what each verb takes; what it does lives in the room whose name stands in its body.

Exit codes: 0 done, 1 the user's input or a gate failed (one line on stderr), 2 wrong usage, 130 ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from edgefuse.runtime.bench_verb import bench
from edgefuse.runtime.data_verbs import data
from edgefuse.runtime.robust_verbs import attack, robust
from edgefuse.runtime.run_command import run
from edgefuse.runtime.shared_options import (
    AudioFile,
    Backend,
    BundlePath,
    ImageFile,
    Json,
    Labelled,
    Limit,
    Manifest,
    PartDir,
    SignalFile,
    Split,
    Text,
    Threads,
)
from edgefuse.runtime.train_verbs import crossval, distill, gain, init, pretrain, qat, soup, train
from edgefuse.runtime.triton_verb import export_triton
from edgefuse.runtime.verbs import run_verb

app = typer.Typer(
    help="Train, shrink, compile and run fused image + audio + text models for edge devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data, name="data")


class Sensor(str, Enum):
    """As a Literal, but the parser takes no list of Literals."""

    image = "image"
    audio = "audio"
    text = "text"
    signal = "signal"


class TrtVersion(str, Enum):
    """TensorRT as the check knows it: JetPack 6, JetPack 7.2, the newest, and TensorRT-RTX."""

    jetpack6 = "10.3"
    jetpack7 = "10.16"
    newest = "11"
    rtx = "rtx"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("runs/demo"), as_json: Json = False
) -> None:
    """The whole way on public data: train, export, quantize, build, predict, bench."""
    run_verb("benchmarks.demo:demo", as_json, out)


_verb: Callable[..., None]
for _verb in (init, train, pretrain, distill, soup, gain, crossval, qat):
    app.command()(_verb)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    as_json: Json = False,
) -> None:
    """A run becomes a bundle with fp32 parts, each checked against the trained model."""
    run_verb("optimize.export:export", as_json, run, out)


@app.command()
def quantize(
    bundle: BundlePath,
    precision: Annotated[Literal["auto", "fp16", "int8"], typer.Option(help="What the trt parts may use.")] = "auto",
    gate: Annotated[float, typer.Option(min=0, max=1, help="Share of the fp32 accuracy that must be kept.")] = 0.99,
    manifest: Manifest = None,
    calibration: Annotated[int, typer.Option(min=1, help="Training lines to calibrate on.")] = 256,
    validation: Annotated[
        int | None, typer.Option(min=1, help="Validation lines to judge on, evenly spread.", show_default="all")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add trt and cpu parts to a bundle, if they pass the gate."""
    options = {"precision": precision, "gate": gate, "manifest": manifest}
    counts = {"calibration": calibration, "validation": validation}
    run_verb("optimize.quantize:quantize", as_json, bundle, **options, **counts)


@app.command()
def check(
    model: Annotated[Path, typer.Argument(help="An .onnx file or a bundle.", show_default=False)],
    target: Annotated[
        list[TrtVersion] | None,
        typer.Option(help="TensorRT version; may be repeated.", show_default="all"),
    ] = None,
    fix: Annotated[Path | None, typer.Option(help="Write a mended copy of the .onnx file here.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Ask TensorRT-RTX's own parser too.")] = False,
    as_json: Json = False,
) -> None:
    """What TensorRT would refuse, or take and silently do otherwise; no GPU needed. Exit 1 unless all is well."""
    options: dict[str, Any] = {"targets": [version.value for version in target]} if target else {}
    run_verb("optimize.preflight:check", as_json, model, fix=fix, verify=verify, **options)


@app.command()
def parity(
    bundle: BundlePath,
    manifest: Manifest = None,
    run: Annotated[Path | None, typer.Option(help="The run it was exported from, to begin at torch.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Examples to compare on, evenly spread.")] = 256,
    as_json: Json = False,
) -> None:
    """Hop by hop from torch to INT8: where numbers drift apart, and which node lost most."""
    run_verb("optimize.parity:parity", as_json, bundle, manifest=manifest, run=run, limit=limit)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine can build and run, and why not."""
    run_verb("optimize.doctor:doctor", as_json)


@app.command()
def build(
    bundle: BundlePath,
    target: Annotated[
        Literal["tensorrt-rtx", "tensorrt", "cpu"], typer.Option(help="What to compile for.")
    ] = "tensorrt-rtx",
    sm: Annotated[list[int] | None, typer.Option(help="GPUs by compute capability, as in --sm 86 89.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch of the engines.")] = 8,
    explain: Annotated[bool, typer.Option("--explain", help="Say what the compiler made of INT8, and why.")] = False,
    optimization_level: Annotated[
        int | None,
        typer.Option(min=0, max=5, help="How long TensorRT searches for fast kernels.", show_default="TensorRT's"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile the parts of a bundle to engines."""
    gpus: dict[str, Any] = {"target": target, "sm": tuple(sm or ()), "max_batch": max_batch}
    run_verb(
        "optimize.build_engine:build", as_json, bundle, **gpus, explain=explain, optimization_level=optimization_level
    )


app.command("export-triton")(export_triton)


@app.command()
def predict(
    bundle: BundlePath,
    image: ImageFile = None,
    audio: AudioFile = None,
    text: Text = None,
    signal: SignalFile = None,
    part_dir: PartDir = None,
    backend: Backend = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Answer once, from any subset of the sensors."""
    sensors = {"image": image, "audio": audio, "text": text, "signal": signal}
    options = {"part_set": part_dir, "backend": backend, "threads": threads}
    run_verb("runtime.predictor:predict_once", as_json, bundle, **sensors, **options)


@app.command()
def explain(
    bundle: BundlePath,
    image: ImageFile = None,
    audio: AudioFile = None,
    text: Text = None,
    signal: SignalFile = None,
    label: Annotated[str | None, typer.Option(help="Label to explain.", show_default="the best one")] = None,
    out: Annotated[Path | None, typer.Option(help="Page or picture to write, as .html or .png.")] = None,
    part_dir: PartDir = None,
    backend: Backend = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """What one answer hangs on, in log-odds: each sensor, patch of the picture, moment of the sound and word."""
    sensors = {"image": image, "audio": audio, "text": text, "signal": signal}
    options = {"label": label, "out": out, "part_set": part_dir, "backend": backend, "threads": threads}
    run_verb("runtime.explain:explain", as_json, bundle, **sensors, **options)


@app.command("eval")
def evaluate(
    bundle: BundlePath,
    manifest: Labelled,
    part_dir: PartDir = None,
    backend: Backend = None,
    drop: Annotated[list[Sensor] | None, typer.Option(help="Sensor to leave out; may be repeated.")] = None,
    split: Split = "test",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy, per answer type and per subset of sensors."""
    options = {"part_set": part_dir, "backend": backend, "drop": drop or [], "split": split, "limit": limit}
    run_verb("runtime.evaluate:evaluate", as_json, bundle, manifest, **options)


for _verb in (robust, attack, run, bench):
    app.command()(_verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; `arguments` without the program's name, those of the process where None."""
    app(args=_repeat_flag("--sm", sys.argv[1:] if arguments is None else arguments), prog_name="edgefuse")


def _repeat_flag(flag: str, arguments: Sequence[str]) -> list[str]:
    """`--sm 86 89` becomes `--sm 86 --sm 89`: options of the parser below take one value each."""
    spread: list[str] = []
    in_values = False  # behind the flag and its first value
    for argument in arguments:
        if in_values and argument.isdecimal() and spread[-1] != flag:
            spread.append(flag)
        elif argument == flag or not argument.isdecimal():
            in_values = argument == flag
        spread.append(argument)
    return spread


if __name__ == "__main__":
    main()
