"""Asks TensorRT-RTX's own ONNX parser, in a process of its own, since some models crash it.

Started as `python -m edgefuse.optimize.ask_parser`. For each model, stdin holds {"bytes": n, "path": p} as a line of
JSON and then the n bytes; stdout gets {"started": index} and then {"taken": bool, "says": "..."}.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefuse.optimize.compiler import parser_errors
from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.trt_package import load_package

TARGET = "tensorrt-rtx"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the parser made of one model."""

    taken: bool | None  # None: it crashed
    says: str  # its errors or how it died; "" where it took the model


def ask(models: Sequence[bytes], paths: Sequence[Path | None] = ()) -> tuple[str, list[Answer]]:
    """The parser's version and its answer to each model.

    Args:
        models: serialized ONNX models.
        paths: where each model's file is, for weights beside it; () where all weights are inside.

    Raises:
        EngineError: tensorrt_rtx is not installed.
    """
    answers: list[Answer] = []
    version = ""
    while len(answers) < len(models) or not version:
        first = len(answers)
        with tempfile.TemporaryFile() as file:
            for model, path in zip(models[first:], paths[first:] or [None] * len(models), strict=False):
                file.write(json.dumps({"bytes": len(model), "path": path and str(path)}).encode() + b"\n" + model)
            file.seek(0)
            child = subprocess.run(
                [sys.executable, "-m", "edgefuse.optimize.ask_parser"], stdin=file, capture_output=True, check=False
            )
        told = [json.loads(line) for line in child.stdout.splitlines()]
        version = next((line["version"] for line in told if "version" in line), version)
        answers += [Answer(line["taken"], line["says"]) for line in told if "taken" in line]
        if told and "error" in told[-1]:
            raise EngineError(told[-1]["error"])
        if child.returncode:
            if not told or "started" not in told[-1]:  # it died before or behind all models: that is not their fault
                raise EngineError(f"TensorRT-RTX's parser {_death(child.returncode)} before it read a model")
            answers.append(Answer(None, f"the parser {_death(child.returncode)}"))
    return version, answers


def main() -> None:
    """Answer for every model on stdin."""
    report = os.fdopen(os.dup(1), "w", buffering=1)  # libraries that print must not get between the JSON lines
    os.dup2(2, 1)
    try:
        trt = load_package(TARGET)
    except EngineError as error:
        print(json.dumps({"error": str(error).replace(f"--target {TARGET}", "--verify")}), file=report)
        return
    print(json.dumps({"version": trt.__version__}), file=report)
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    index = 0
    while header := sys.stdin.buffer.readline():
        job = json.loads(header)
        model = sys.stdin.buffer.read(job["bytes"])
        print(json.dumps({"started": index}), file=report)
        print(json.dumps(_answer(trt, logger, model, job["path"])), file=report)
        index += 1


def _answer(trt: Any, logger: Any, model: bytes, path: str | None) -> dict[str, Any]:
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    taken = bool(parser.parse(model, path) if path else parser.parse(model))
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return {"taken": taken, "says": "" if taken else parser_errors(errors)}


def _death(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


if __name__ == "__main__":
    main()
