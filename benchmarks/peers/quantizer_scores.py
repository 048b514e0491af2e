"""What a quantized part is worth: nearness to FP32, accuracy kept, and what the compiler makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend_onnx import OnnxBackend, open_session
from edgefuse.runtime.bundle import HEAD, Bundle, PartInfo, part_file, token_tensor, write_bundle
from edgefuse.runtime.evaluate import Bools, Encoded, retention
from edgefuse.runtime.manifest import Example
from edgefuse.runtime.predictor import Predictor
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.samples import Samples

BATCH = 16
WAYS = {"typed": ("image", "text"), "spoken": ("image", "audio")}  # how a question reaches the model

Tokens = NDArray[np.float32]  # [U, N, D]


def tokens_of(model: bytes, part: str, inputs: Mapping[str, NDArray[Any]]) -> Tokens:
    """The tokens of every row of `inputs`, Q/DQ computed as written, which is what TensorRT does."""
    session = open_session(model, exact_qdq=True)
    count = len(next(iter(inputs.values())))
    chunks = []
    for start in range(0, count, BATCH):
        batch = {name: array[start : start + BATCH] for name, array in inputs.items()}
        chunks.append(session.run([token_tensor(part)], batch)[0])
    return np.concatenate(chunks)


def nearness(tokens: Tokens, reference: Tokens) -> dict[str, float]:
    """{sqnr_db, cosine}: signal over error in dB over everything, and the mean cosine of a row with its FP32 form."""
    signal, error = reference.astype(np.float64), tokens.astype(np.float64) - reference
    rows, exact = tokens.reshape(len(tokens), -1), reference.reshape(len(reference), -1)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(exact, axis=1)
    with np.errstate(divide="ignore"):
        sqnr = 10 * np.log10((signal**2).sum() / (error**2).sum())
    return {"sqnr_db": float(sqnr), "cosine": float(((rows * exact).sum(axis=1) / lengths).mean())}


class Exam:
    """Labelled lines, and the FP32 tokens of every distinct value in them."""

    def __init__(self, bundle: Bundle, examples: Sequence[Example]) -> None:
        self._predictor = Predictor(bundle, OnnxBackend(bundle, "fp32"))
        self._truth = np.array([bundle.info.labels.index(example.label or "") for example in examples])  # [n]
        samples = {m: Samples(Preprocessor(bundle), examples, m) for m in bundle.info.modalities}
        self._rows = {m: found.rows for m, found in samples.items()}
        self.inputs = {m: gathered(found) for m, found in samples.items()}
        self.reference = {m: tokens_of(bundle.part("fp32", m), m, self.inputs[m]) for m in samples}
        self._right = {way: self._answers({}, sensors) for way, sensors in WAYS.items()}

    def kept(self, tokens: Mapping[str, Tokens]) -> dict[str, Any]:
        """What is left of the FP32 accuracy with these parts' tokens, per way that any of them takes part in."""
        told = {}
        for way, sensors in WAYS.items():
            if set(sensors) & set(tokens):
                share, interval = retention(self._right[way], self._answers(tokens, sensors))
                told[way] = {"retention": share, "interval": interval}
        return told

    def accuracy(self) -> dict[str, float]:
        """Of FP32, per way."""
        return {way: float(right.mean()) for way, right in self._right.items()}

    def _answers(self, tokens: Mapping[str, Tokens], sensors: Sequence[str]) -> Bools:
        encoded = Encoded(self._predictor, {**self.reference, **tokens}, self._rows)
        right: Bools = encoded.logits(sensors).argmax(axis=1) == self._truth
        return right


def gathered(samples: Samples, limit: int | None = None) -> dict[str, NDArray[Any]]:
    """The tensors of the first `limit` distinct values, of all where None."""
    batches: list[dict[str, NDArray[Any]]] = []
    for batch in samples.batches(BATCH):
        batches.append(batch)
        if limit is not None and len(batches) * BATCH >= limit:
            break
    return {name: np.concatenate([batch[name] for batch in batches])[:limit] for name in batches[0]}


def compiled(bundle: Bundle, part: str, model: bytes) -> dict[str, Any]:
    """{kernels, mb_touched, fused_attention} of one part in TensorRT-RTX for SM 86 at batch 1, or {refused: why}."""
    others = {m: None for m in bundle.info.modalities if m != part}
    files = {part_file("trt", part): model, part_file("trt", HEAD): bundle.part("fp32", HEAD)}
    parts = {"trt": {name: PartInfo(file=part_file("trt", name), precision="any") for name in (part, HEAD)}}
    info = bundle.info.model_copy(
        update={**others, "tokens": {part: bundle.info.tokens[part]}, "parts": parts, "files": {}}
    )
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(folder, info, files)
        asked = ["build", folder, "--json", "--target", "tensorrt-rtx", "--sm", "86", "--max-batch", "1"]
        done = subprocess.run(
            [sys.executable, "-m", "edgefuse.runtime.cli", *asked], capture_output=True, text=True, check=False
        )
    if done.returncode:
        return {"refused": done.stderr.strip().splitlines()[-1][:300]}
    engines = json.loads(done.stdout.splitlines()[-1])["engines"]
    engine = next(engine for engine in engines if Path(engine["path"]).stem == part)
    return {"kernels": engine["kernels"], "mb_touched": round(engine["bytes_touched"] / 1e6, 2)}
