"""Runs a verb of the command line: finds its function, prints what it returns, and ends in one line where it fails."""

from __future__ import annotations

import errno
import importlib
import json
import os
from typing import Any, NoReturn

import typer

from edgefuse.runtime.errors import EdgefuseError, MissingExtraError, UsageError

# Where a package comes from that is not in the base install; [demo] has all that this table does not name.
EXTRAS = {"onnx": "optimize", "onnxscript": "optimize", "matplotlib": "bench", "psutil": "bench"} | dict.fromkeys(
    ("torch", "torchaudio", "torchvision", "transformers", "yaml", "safetensors", "tensorboard"), "train"
)
# What is wrong with the user's disk or permissions and not with this program.
ENVIRONMENT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
# Of a long document, what a person sees; --json prints all of it.
SHOWN = {
    "benchmarks.bench:bench": ("accuracy", "size", "cold_start", "against", "page"),
    "benchmarks.robust:robust": ("clean", "summary", "fused", "n", "part_set", "backend"),
    "optimize.quantize:quantize": (
        "retention", "interval", "pooled", "bytes", "cost", "by_subset", "parts", "blocks", "pareto",
    ),
    "train.data_check:check": (
        "verdict", "lines", "sensors", "pictures", "sounds", "texts", "found", "splits", "labels", "unreadable", "page",
    ),
    "runtime.explain:explain": (
        "label", "answer", "logit", "baseline_logit", "shapley", "words", "seconds", "out",
    ),
}  # fmt: skip


def run_verb(does: str, as_json: bool, *arguments: Any, **options: Any) -> None:
    """Call `room.module:function` and print the dict it returns; what the user caused ends in one line on stderr."""
    try:
        result = _call(does, *arguments, **options)
    except EdgefuseError as error:
        _stop(2 if isinstance(error, UsageError) else 1, str(error))
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        _stop(1, f"{error.filename or 'a file'}: {error.strerror}; what was written before is untouched")
    except KeyboardInterrupt:
        _stop(130, "stopped; what was written so far is intact")
    if os.environ.get("RANK", "0") != "0":  # one of many processes of a training; the first one speaks
        return
    if as_json:
        typer.echo(json.dumps(result, default=_plain))
    else:
        from edgefuse.runtime.show import show

        show({key: result[key] for key in SHOWN.get(does, result) if key in result})
    if result.get("verdict", "ok") != "ok":
        raise typer.Exit(1)


def _call(does: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    module, function = does.split(":")
    try:
        found = getattr(importlib.import_module(f"edgefuse.{module}"), function)
        return dict(found(*arguments, **options))
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "edgefuse"):
            raise
        extra = EXTRAS.get(package, "demo")
        raise MissingExtraError(f"{package} is not installed; pip install 'edgefuse[{extra}]'") from None


def _plain(value: Any) -> Any:
    """What JSON has no word for: a path is its text, a numpy number a number."""
    return value.item() if hasattr(value, "item") else str(value)


def _stop(code: int, message: str) -> NoReturn:
    typer.echo(f"edgefuse: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)
