"""Runs every form of every part of a bundle on the same examples and keeps what parity.py tells of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from edgefuse.optimize.blame import THREADS, Blame, blame
from edgefuse.optimize.compare import Difference
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.fp16_range import scan
from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.runtime.backend import OpenParts, Runner, Tensors
from edgefuse.runtime.backend_onnx import open_session, run_session
from edgefuse.runtime.bundle import HEAD, Bundle, token_tensor
from edgefuse.runtime.evaluate import Encoded
from edgefuse.runtime.manifest import Example
from edgefuse.runtime.predictor import Floats, Predictor
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.samples import Samples

Hop = tuple[str, str]

TORCH, FP32, FP16, INT8, ORT, CPU = "torch", "fp32", "fp16", "int8", "ort", "cpu"  # ort: the int8 form, fused
HOPS: tuple[Hop, ...] = ((TORCH, FP32), (FP32, FP16), (FP16, INT8), (INT8, ORT), (FP32, CPU))
BATCH = 8  # inputs of an encoder at once
NODE_BATCH, NODE_BATCHES = 4, 2  # of the search for nodes, which holds every value of a batch


class Ledger:
    """Takes part after part, the head last; one part is open at a time.

    Args:
        bundle: with trt and cpu parts.
        examples: each has a sensor of the model.
        torch: part -> what torch computes of it; empty where the ledger begins at the fp32 parts.
    """

    def __init__(self, bundle: Bundle, examples: Sequence[Example], torch: Mapping[str, Runner]) -> None:
        self.hops = [hop for hop in HOPS if torch or TORCH not in hop]
        self.parts: list[str] = []  # those that have inputs
        self.errors: dict[tuple[Hop, str], Difference] = {}  # at the output of each part
        self.blames: dict[str, Blame] = {}  # of the nodes of the trt parts
        self.ranges: dict[str, list[dict[str, Any]]] = {}  # what FP16 cannot hold
        self._bundle, self._torch = bundle, dict(torch)
        self._modalities = bundle.info.modalities
        preprocessor = Preprocessor(bundle)
        self._samples = {m: Samples(preprocessor, examples, m) for m in self._modalities}
        self._tokens: dict[str, dict[str, Floats]] = {}  # modality -> stage -> [U, N, D]
        self._heads: dict[str, Runner] = {}  # stage -> head

    def add(self, part: str) -> None:
        """Run every form of a part on the same inputs, then search its nodes."""
        if part != HEAD and not len(self._samples[part]):
            return
        self.parts.append(part)
        output = "logits" if part == HEAD else token_tensor(part)
        self._run_all(part, output)
        reference, other = Graph(self._bundle.part("fp32", part)), Graph(self._bundle.part("trt", part))
        self.ranges[part] = scan(reference, _fp32_nodes(reference, other), self._batches(part))
        self.blames[part] = blame(reference, other, list(_small(self._batches(part))), output)

    def _run_all(self, part: str, output: str) -> None:
        """Run all forms of a part; an encoder is closed again at the end, so that its weights make room."""
        runners = self._runners(part)
        if part == HEAD:
            self._heads = runners
        chunks: dict[str, list[Floats]] = {stage: [] for stage in runners}
        self.errors |= {(hop, part): Difference() for hop in self.hops}
        for batch in self._batches(part):
            found = {stage: runner(batch)[output] for stage, runner in runners.items()}
            for before, after in self.hops:
                self.errors[(before, after), part].update(found[before], found[after])
            for stage, array in found.items():
                chunks[stage].append(array)
        if part != HEAD:
            self._tokens[part] = {stage: np.concatenate(arrays) for stage, arrays in chunks.items()}

    def _runners(self, part: str) -> dict[str, Runner]:
        """Every form of a part, opened; what takes most memory to make comes first."""
        sessions = {
            FP16: open_session(self._in_fp16(part), threads=THREADS),
            FP32: open_session(self._bundle.part("fp32", part), threads=THREADS),
            INT8: open_session(self._bundle.part("trt", part), threads=THREADS, exact_qdq=True),
            ORT: open_session(self._bundle.part("trt", part), threads=THREADS),
            CPU: open_session(self._bundle.part("cpu", part), threads=THREADS),
        }
        runners: dict[str, Runner] = {stage: partial(run_session, session) for stage, session in sessions.items()}
        return {TORCH: self._torch.pop(part), **runners} if part in self._torch else runners

    def _in_fp16(self, part: str) -> bytes:
        """The fp32 part in FP16, with the same nodes left in FP32 as in the trt part."""
        graph = Graph(self._bundle.part("fp32", part))
        return to_fp16(graph, _fp32_nodes(graph, Graph(self._bundle.part("trt", part)))).serialize()

    def _batches(self, part: str) -> Iterator[Tensors]:
        """The inputs of a part: what the sensors gave, or what the FP32 encoders made of it."""
        if part != HEAD:
            yield from self._samples[part].batches(BATCH)
            return
        seen: list[Tensors] = []

        def head(inputs: Tensors) -> dict[str, Floats]:
            seen.append(inputs)
            return self._heads[FP32](inputs)

        self._logits(dict.fromkeys(self._tokens, FP32), head)
        yield from seen

    def _logits(self, stages: Mapping[str, str], head: Runner) -> Floats:
        """What the whole model says to every example [n, C], with the encoders in these stages."""
        tokens = {modality: self._tokens[modality][stage] for modality, stage in stages.items()}
        rows = {modality: samples.rows for modality, samples in self._samples.items()}
        encoded = Encoded(Predictor(self._bundle, OpenParts({HEAD: head})), tokens, rows)
        return encoded.logits(self._modalities)

    def answers(self, stages: Mapping[str, str]) -> Floats:
        """What the whole model says to every example [n, C] when its parts are in these stages."""
        encoders = {part: stage for part, stage in stages.items() if part != HEAD}
        return self._logits(encoders, self._heads[stages[HEAD]])


def _fp32_nodes(reference: Graph, other: Graph) -> set[str]:
    """The nodes that the other form computes in FP32 too."""
    names = set()
    for node in reference.nodes:
        for value in node.output:
            theirs = other.producers.get(value)
            if theirs is not None and theirs.op_type == node.op_type and other.types.get(value) == FLOAT:
                names.add(node.name)
    return names


def _small(batches: Iterator[Tensors]) -> Iterator[Tensors]:
    """The first lines of the batches, a few at a time."""
    left = NODE_BATCHES
    for batch in batches:
        size = len(next(iter(batch.values())))
        for start in range(0, size, NODE_BATCH):
            if left:
                yield {name: array[start : start + NODE_BATCH] for name, array in batch.items()}
                left -= 1
