"""A bundle as a model repository: `python optimize/triton.py bundle --out models`, as `edgefuse export-triton`.

models/
  <name>.json         what was written, with the sha256 of every file; Triton passes over it
  <name>/             the ensemble: sensor tensors and presence -> logits and weights
  <name>_<part>/      each part, batched by the server: config.pbtxt, 1/model.onnx or 1/model.plan

Names, types and shapes are read from the parts themselves: what one part makes and another reads stays in the server.
Other bundles, and models that are not ours, may stand in the same repository.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from onnx import TensorProto, ValueInfoProto

from edgefuse.optimize.onnx_reader import parsed
from edgefuse.optimize.pbtxt import Message, Word, to_pbtxt
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.engines import COMPILED_SET, open_engine, read_sidecar
from edgefuse.runtime.errors import BundleError, OptionError
from edgefuse.runtime.files import commit, finish_commit

REFERENCE_SET = "fp32"
PLAN_TARGET = "tensorrt"  # Triton's own runtime; it loads no engines of TensorRT-RTX
LABELLED = "logits"  # the output whose values are scores of the labels
LABELS_FILE = "labels.txt"
VERSION = "1"
TYPES = {  # model_config.proto's names
    int(TensorProto.FLOAT): "TYPE_FP32",
    int(TensorProto.FLOAT16): "TYPE_FP16",
    int(TensorProto.INT32): "TYPE_INT32",
    int(TensorProto.INT64): "TYPE_INT64",
    int(TensorProto.UINT8): "TYPE_UINT8",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # a folder, and a part of Triton's URLs


class Served(NamedTuple):
    """One part as Triton serves it."""

    backend: str  # Triton's name of what runs it
    file: str  # name of the model's file
    model: bytes
    inputs: dict[str, Message]  # tensor -> its entry in the configuration
    outputs: dict[str, Message]


def export_triton(
    bundle_folder: str | Path,
    out: str | Path,
    *,
    part_set: str | None = None,
    plans: bool = False,
    max_batch: int = 8,
    name: str | None = None,
) -> dict[str, Any]:
    """Write the parts of a bundle and their ensemble into the model repository `out`, all or nothing.

    Args:
        bundle_folder: the bundle.
        out: folder of the repository; what else is in it stays.
        part_set: the parts that Triton's ONNX Runtime serves: "fp32" (None), "trt" or "cpu".
        plans: serve the bundle's TensorRT engines, which are made of the trt parts, in their place.
        max_batch: rows that one request, or several that wait at the same time, bring to a part at once.
        name: of the ensemble, and in front of the parts'; that of the bundle where None.

    Returns:
        {repository, ensemble, models: [{model, backend, bytes}]}.

    Raises:
        BundleError: a part is missing, altered or not made for batches, or the repository cannot be written.
        EngineError: an engine is missing, altered, or made of another part.
        OptionError: a name or a batch that does not fit.
    """
    bundle, out = Bundle.open(bundle_folder), Path(out)
    name = name or bundle.info.name
    if not _NAME.fullmatch(name):
        raise OptionError(f"found the name {name!r}; Triton's models have letters, digits, _, - and .; give --name")
    if plans and part_set not in (None, COMPILED_SET):
        raise OptionError(
            f"found --plans with --part-dir {part_set}; engines are of {COMPILED_SET} parts: leave it out"
        )
    models = {
        f"{name}_{part}": _plan(bundle, part, max_batch) if plans else _graph(bundle, part_set or REFERENCE_SET, part)
        for part in (*bundle.info.modalities, HEAD)
    }
    files = _files(name, models, bundle.info.labels, max_batch, on_cpu=part_set == "cpu")
    _write(out, f"{name}.json", files)
    told = [{"model": model, "backend": part.backend, "bytes": len(part.model)} for model, part in models.items()]
    return {"repository": str(out), "ensemble": name, "models": told}


def _graph(bundle: Bundle, part_set: str, part: str) -> Served:
    """A part for ONNX Runtime."""
    model = bundle.part(part_set, part)
    graph = parsed(model).graph
    where = f"{bundle.folder}: {part} of {part_set}"
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: _tensor(value, where) for value in graph.input if value.name not in constants}
    outputs = {value.name: _tensor(value, where) for value in graph.output}
    if LABELLED in outputs:
        outputs[LABELLED] = {**outputs[LABELLED], "label_filename": LABELS_FILE}
    return Served("onnxruntime", "model.onnx", model, inputs, outputs)


def _plan(bundle: Bundle, part: str, max_batch: int) -> Served:
    """A part for TensorRT: its engine, with the tensors of the graph that it was built from."""
    engine = open_engine(bundle, PLAN_TARGET, part)
    sidecar = read_sidecar(bundle.folder, PLAN_TARGET, part)
    if sidecar is not None and max_batch > sidecar.batch[-1]:
        raise OptionError(
            f"the {part} engine takes batches up to {sidecar.batch[-1]}, found --max-batch {max_batch}; lower it, or "
            f"run `edgefuse build {bundle.folder} --target {PLAN_TARGET} --max-batch {max_batch}`"
        )
    return _graph(bundle, COMPILED_SET, part)._replace(backend="tensorrt", file="model.plan", model=engine)


def _tensor(value: ValueInfoProto, where: str) -> Message:
    """A tensor's entry in a configuration: without the batch, which the server adds; a size that is free is -1."""
    batch, *sizes = value.type.tensor_type.shape.dim
    kind = value.type.tensor_type.elem_type
    if batch.dim_value:
        raise BundleError(f"{where}: {value.name} takes batches of {batch.dim_value} only; export the bundle again")
    if kind not in TYPES:
        found = TensorProto.DataType.Name(kind)
        raise BundleError(f"{where}: {value.name} is {found}, served are {', '.join(TYPES.values())}; export it again")
    return {"name": value.name, "data_type": Word(TYPES[kind]), "dims": [size.dim_value or -1 for size in sizes]}


def _files(
    name: str, models: Mapping[str, Served], labels: Iterable[str], max_batch: int, on_cpu: bool
) -> dict[str, bytes]:
    """Path inside the repository -> content."""
    # One label a line is the format, so a label that has lines loses them.
    labels_file = "".join(" ".join(label.split()) + "\n" for label in labels).encode()
    # Object stores and git keep no empty folder, and an ensemble without a version is not loaded.
    files = {f"{name}/{VERSION}/.keep": b""}
    configs: dict[str, dict[str, Any]] = {name: _ensemble(models)}
    for model, part in models.items():
        files[f"{model}/{VERSION}/{part.file}"] = part.model
        tensors = {"input": list(part.inputs.values()), "output": list(part.outputs.values())}
        processors = {"instance_group": [{"kind": Word("KIND_CPU")}]} if on_cpu else {}
        configs[model] = {"backend": part.backend, **tensors, "dynamic_batching": {}, **processors}
    for model, config in configs.items():
        if any("label_filename" in tensor for tensor in config["output"]):
            files[f"{model}/{LABELS_FILE}"] = labels_file
        files[f"{model}/config.pbtxt"] = to_pbtxt({"name": model, "max_batch_size": max_batch, **config}).encode()
    return files


def _ensemble(models: Mapping[str, Served]) -> dict[str, Any]:
    """The parts joined by the names of their tensors: what no part makes comes in, what no part reads goes out."""
    read = {name: tensor for part in models.values() for name, tensor in part.inputs.items()}
    made = {name: tensor for part in models.values() for name, tensor in part.outputs.items()}
    steps = [
        {
            "model_name": model,
            "model_version": -1,  # the newest
            "input_map": [{"key": tensor, "value": tensor} for tensor in part.inputs],
            "output_map": [{"key": tensor, "value": tensor} for tensor in part.outputs],
        }
        for model, part in models.items()
    ]
    return {
        "platform": "ensemble",
        "input": [tensor for name, tensor in read.items() if name not in made],
        "output": [tensor for name, tensor in made.items() if name not in read],
        "ensemble_scheduling": {"step": steps},
    }


def _write(folder: Path, index: str, files: Mapping[str, bytes]) -> None:
    """Put `files` in the place of those that `index` lists, and list them there; a crash leaves the old or the new."""
    listed_in = partial(_listed, folder / index)
    hashes = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        finish_commit(folder, index, listed_in)
        before = listed_in((folder / index).read_bytes()) if (folder / index).exists() else {}
        for path in files:
            if path.endswith("config.pbtxt") and path not in before and (folder / path).exists():
                raise BundleError(
                    f"{folder / path} was not written for {index}, so it stays; give another --name or another --out"
                )
        commit(folder, files, index, json.dumps({"files": hashes}, indent=2).encode())
        finish_commit(folder, index, listed_in)
        for path in before.keys() - files.keys():
            _remove(folder, path)
    except OSError as error:
        raise BundleError(
            f"{folder} could not be written ({error.strerror}); free some space or choose another folder; "
            "what was there before is untouched"
        ) from None


def _listed(index: Path, content: bytes) -> dict[str, str]:
    """The files that an index lists, with their sha256."""
    try:
        listed = {str(path): str(digest) for path, digest in json.loads(content)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError(f"{index} is not what export-triton wrote; give another --name or another --out") from None
    if any(Path(path).is_absolute() or ".." in Path(path).parts for path in listed):
        raise BundleError(f"{index} names files outside of {index.parent}; give another --name or another --out")
    return listed


def _remove(folder: Path, path: str) -> None:
    """Remove a file, and the folders that are empty without it."""
    (folder / path).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: something else stands there
        for parent in list(Path(path).parents)[:-1]:
            (folder / parent).rmdir()


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["export-triton", *sys.argv[1:]])
