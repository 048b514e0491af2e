"""Export a run as a bundle with FP32 parts: `python optimize/export.py runs/a --out bundle`, as `edgefuse export`.

The only file of this room that knows torch. The parts are run in a row in ONNX Runtime against torch on real samples
before anything is written.
"""

from __future__ import annotations

import logging
import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from edgefuse.optimize.graph import Graph
from edgefuse.optimize.merge import merge_attention
from edgefuse.runtime.backend import Runner, Tensors
from edgefuse.runtime.backend_onnx import open_session, run_session
from edgefuse.runtime.bundle import (
    HEAD,
    SENSOR_TENSORS,
    TOKENIZER_FILE,
    BundleInfo,
    PartInfo,
    TokenSpec,
    part_file,
    token_tensor,
    write_bundle,
)
from edgefuse.runtime.errors import BundleError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.train.data import Loader
from edgefuse.train.model import FusedModel, specs_of
from edgefuse.train.runs import Run

OPSET = 18
SAMPLES = 64  # validation lines that every part is compared on
MAX_ABS_ERROR = 1e-4  # allowed between torch and ONNX Runtime, any tensor


class HeadPart(nn.Module):
    """The head with the tokens as separate inputs, in the order of `presence`, as a graph takes them."""

    def __init__(self, model: FusedModel) -> None:
        super().__init__()
        self.head = model.head
        self.modalities = model.modalities

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of each modality, then presence -> logits [B, C], weights [B, M]."""
        *tokens, presence = tensors
        logits, weights = self.head(dict(zip(self.modalities, tokens, strict=True)), presence)
        return logits, weights


def export(run: Path, out: Path) -> dict[str, Any]:
    """Write the run's model as a bundle with FP32 parts.

    Returns:
        The bundle's path, bytes per part, and the largest error against torch.

    Raises:
        RecipeError: `run` is no finished run.
        BundleError: a part does not compute what torch computes; nothing is written.
    """
    source = Run.open(run)
    model = source.trained_model()
    tensors = _sample_tensors(source, model)
    parts: dict[str, bytes] = {}
    errors: dict[str, float] = {}
    values: dict[str, NDArray[Any]] = {name: value.numpy() for name, value in tensors.items()}
    for part, (module, inputs, outputs) in _parts(model).items():
        parts[part] = _to_onnx(module, {name: tensors[name] for name in inputs}, outputs)
        found = run_session(open_session(parts[part]), {name: values[name] for name in inputs})
        errors[part] = _largest_error(part, found, tensors)
        values.update(found)  # so the head gets what ONNX Runtime made of the sensors
        size = f"{len(parts[part]) / 1e6:.1f} MB"
        Console(stderr=True).print(f"exported {part}: {size}, max error {errors[part]:.1e}", highlight=False)
    same = values["logits"].argmax(axis=1) == tensors["logits"].numpy().argmax(axis=1)
    if not same.all():
        raise BundleError(f"the exported parts answer {int((~same).sum())} of {len(same)} samples unlike torch")
    files = {part_file("fp32", part): data for part, data in parts.items()}
    if source.tokenizer is not None:
        files[TOKENIZER_FILE] = source.tokenizer
    bundle = write_bundle(out, _contract(source, model), files)
    sizes = {part: len(data) for part, data in parts.items()}
    return {"bundle": str(bundle.folder), "bytes": sizes, "max_abs_error": max(errors.values()), "samples": len(same)}


def torch_parts(run: Path, info: BundleInfo) -> dict[str, Runner]:
    """What torch computes of each part of the run that a bundle was exported from, as sessions of the parts would.

    Raises:
        RecipeError, BundleError: `run` is no finished run, or its model is not the bundle's.
    """
    source = Run.open(run)
    model = source.trained_model()
    made = _contract(source, model)
    if any(getattr(made, key) != getattr(info, key) for key in ("labels", "specs", "tokens")):
        raise BundleError(f"{run} makes another model than this bundle; give the run that it was exported from")
    return {part: partial(_run_torch, *about) for part, about in _parts(model).items()}


@torch.no_grad()
def _run_torch(module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], tensors: Tensors) -> dict[str, Any]:
    found = module(*(torch.from_numpy(tensors[name]) for name in inputs))
    return {n: v.numpy() for n, v in zip(outputs, found if isinstance(found, tuple) else (found,), strict=True)}


def _parts(model: FusedModel) -> dict[str, tuple[nn.Module, tuple[str, ...], tuple[str, ...]]]:
    """Each part's module, its input tensors and its output tensors."""
    parts: dict[str, tuple[nn.Module, tuple[str, ...], tuple[str, ...]]] = {
        m: (model.encoders[m], SENSOR_TENSORS[m], (token_tensor(m),)) for m in model.modalities
    }
    head_inputs = (*(token_tensor(m) for m in model.modalities), "presence")
    return {**parts, HEAD: (HeadPart(model).eval(), head_inputs, ("logits", "weights"))}


def _sample_tensors(run: Run, model: FusedModel) -> dict[str, Tensor]:
    """Every tensor between sensors and answer on real validation lines, computed by torch; some lack a sensor."""
    examples = read_manifest(run.recipe.data.manifest, split="val", labels=run.labels, limit=SAMPLES)
    loader = Loader(run.recipe, run.labels, run.text_tokenizer())
    present = [set(example.sensors) & set(model.modalities) for example in examples]
    batch = loader.batch(examples, [example.audio for example in examples], present)
    tensors: dict[str, Tensor] = {"presence": _with_gaps(batch.presence)}
    with torch.no_grad():
        for m in model.modalities:
            if m not in batch.index:
                raise BundleError(f"no validation line has {m}, which the model reads; add some to check the export")
            for name in SENSOR_TENSORS[m]:
                tensors[name] = batch.inputs[name][batch.index[m]]
            tensors[token_tensor(m)] = model.encode(m, tensors)
        tokens = {m: tensors[token_tensor(m)] for m in model.modalities}
        tensors["logits"], tensors["weights"] = model.head(tokens, tensors["presence"])
    return tensors


def _with_gaps(presence: Tensor) -> Tensor:
    """Take one sensor from most lines of `presence` [B, M], each in turn, so that placeholders are compared too."""
    gaps = presence.clone()
    lines, modalities = gaps.shape
    for line in range(lines):
        column = line % (modalities + 1)
        if column < modalities and gaps[line].sum() > 1:
            gaps[line, column] = 0.0
    return gaps


def _to_onnx(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> bytes:
    """Serialized ONNX of `module`, every first dimension named "batch"."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = tuple({0: batch} for _ in inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            tuple(value[[0, -1]] for value in inputs.values()),  # two rows: a size of 1 would be taken as fixed
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes if not isinstance(module, HeadPart) else (shapes,),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip_notes(proto)
    _cast_pixels_first(proto.graph)
    onnx.checker.check_model(proto, full_check=True)
    return merge_attention(Graph(proto)).serialize()


def _strip_notes(proto: onnx.ModelProto) -> None:
    """Drop the exporter's stack traces: they name this machine's paths and differ from run to run."""
    for item in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    for item in (*proto.graph.input, *proto.graph.output):
        item.ClearField("metadata_props")


def _cast_pixels_first(graph: onnx.GraphProto) -> None:
    """Nothing but the Cast may read uint8 in TensorRT; the exporter takes sizes from the input itself."""
    pixels = {value.name for value in graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in pixels]
    for cast in casts:
        for node in graph.node:
            if node.op_type == "Shape" and node.input[0] == cast.input[0]:
                node.input[0] = cast.output[0]
        graph.node.remove(cast)
        graph.node.insert(0, cast)


def _largest_error(part: str, found: Tensors, expected: Mapping[str, Tensor]) -> float:
    """The largest difference between the outputs of a part and torch."""
    errors = [np.abs(array - expected[name].numpy()).max() for name, array in found.items()]
    error = float(np.max(errors))  # NaN if any is: the built-in max would pass over it
    if not error <= MAX_ABS_ERROR:
        raise BundleError(
            f"part {part}: ONNX Runtime differs from torch by {error:.2e} on validation lines, allowed is "
            f"{MAX_ABS_ERROR:.0e}; nothing was written; report this with the recipe"
        )
    return error


def _contract(run: Run, model: FusedModel) -> BundleInfo:
    recipe = run.recipe
    return BundleInfo(
        name=recipe.name,
        labels=run.labels,
        **specs_of(recipe),
        tokens={m: TokenSpec(count=e.count, dim=e.dim) for m, e in model.encoders.items()},
        parts={"fp32": {part: PartInfo(file=part_file("fp32", part), precision="fp32") for part in _parts(model)}},
        lineage={
            "recipe": recipe.model_dump(),
            "manifest": recipe.data.manifest,
            "data_fingerprint": run.document["data_fingerprint"],
            "teachers": run.document.get("teachers", []),
            "versions": {
                "edgefuse": version("edgefuse"),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "onnx": onnx.__version__,
            },
        },
        quality={"torch_validation_accuracy": run.document["accuracy"]},
    )


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["export", *sys.argv[1:]])
