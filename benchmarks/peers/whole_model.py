"""What the peers are made of: a bundle's fp32 parts as one ONNX graph, and training lines as its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.manifest import Example
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.samples import Samples


def one_graph(bundle: Bundle) -> onnx.ModelProto:
    """All fp32 parts as one model: sensor tensors and presence to logits."""
    modalities = bundle.info.modalities
    parts = {part: onnx.load_model_from_string(bundle.part("fp32", part)) for part in (*modalities, HEAD)}
    whole = onnx.GraphProto(name="whole")
    for part, model in parts.items():
        part_graph = onnx.compose.add_prefix_graph(model.graph, f"{part}.", rename_inputs=False, rename_outputs=False)
        whole.node.extend(part_graph.node)
        whole.initializer.extend(part_graph.initializer)
        whole.input.extend(value for value in part_graph.input if not value.name.endswith("_tokens"))
    head = parts[HEAD]
    whole.output.extend(value for value in head.graph.output if value.name == "logits")
    return onnx.helper.make_model(whole, opset_imports=head.opset_import, ir_version=head.ir_version)


def calibration_tensors(bundle: Bundle, examples: Sequence[Example]) -> dict[str, Any]:
    """Every tensor that `one_graph` takes, a row per example; each example has all sensors of the model.

    Raises:
        ManifestError: a file cannot be decoded.
    """
    preprocessor = Preprocessor(bundle)
    tensors: dict[str, Any] = {}
    for modality in bundle.info.modalities:
        samples = Samples(preprocessor, examples, modality)
        batches = list(samples.batches(64))
        for name in batches[0]:
            tensors[name] = np.concatenate([batch[name] for batch in batches])[samples.rows]
    tensors["presence"] = np.ones((len(examples), len(bundle.info.modalities)), np.float32)
    return tensors
