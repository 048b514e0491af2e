"""Which nodes of a part lost most of what it lost, measured one by one on the swappable graph of swap.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.optimize.compare import CodeDistance, Difference, beyond_codes
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.swap import SWITCHES, Swap, Swappable
from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.backend_onnx import open_session

OTHERS = 8  # nodes besides the INT8 ones whose effect on the output is measured: those with the largest own errors
WRONG = 1e-2  # noise over signal (20 dB) that no healthy INT8 or FP16 value inside of a part has
RIGHT_AGAIN = 4.0  # times (6 dB) less noise behind a value that was only written otherwise
THREADS = 1  # many short runs, maybe beside other work: waiting for a second core costs more than it computes


@dataclass(slots=True)
class Culprit:
    """What one node of the other form does to a part."""

    swap: Swap
    own: Difference = field(default_factory=Difference)  # at its own output, given exact inputs
    piled: Difference = field(default_factory=Difference)  # there, given what the other form computes before it
    alone: Difference = field(default_factory=Difference)  # at the output of the part while every other node is exact
    share: float = 0.0  # of the noise that the measured nodes make there, one by one


@dataclass(frozen=True, slots=True)
class Blame:
    """What was measured of a part."""

    culprits: list[Culprit]  # the worst first
    codes: dict[str, CodeDistance]  # QuantizeLinear's output -> codes in the other form against codes of exact values


def blame(reference: Graph, other: Graph, batches: Sequence[Tensors], output: str) -> Blame:
    """Measure the nodes in which `other` differs from the FP32 part.

    Args:
        reference: the FP32 part.
        other: another form of the same part, its values named alike.
        batches: inputs in small batches: all values of a batch are held at once, in both forms.
        output: the output of the part that counts.

    Raises:
        BundleError: the two forms do not fit together.
    """
    measurement = _Measurement(Swappable(reference, other), batches, output)
    if apart := _written_otherwise(measurement.culprits):
        measurement = _Measurement(Swappable(reference, other, apart), batches, output)
    culprits = measurement.culprits
    chosen = _worth_a_run(culprits)
    for index in chosen:
        measurement.run_alone(index)
    return Blame(_ranked([culprits[index] for index in chosen]), measurement.codes)


class _Measurement:
    """Runs of a swappable graph: all its switches off and on when it is made, later one by one."""

    def __init__(self, swappable: Swappable, batches: Sequence[Tensors], output: str) -> None:
        self.culprits = [Culprit(swap) for swap in swappable.swaps]
        quantizers = {quantizer.codes: quantizer for swap in swappable.swaps for quantizer in swap.quantizers}
        self.codes = {name: CodeDistance() for name in quantizers}
        self._batches, self._output = batches, output
        self._exact: list[NDArray[Any]] = []  # the output of each batch
        watched = {name for swap in swappable.swaps for name in (swap.value, swap.other)}
        watched |= {name for quantizer in quantizers.values() for name in (quantizer.codes, quantizer.values)}
        watched.add(output)
        self._session = open_session(swappable.serialize(sorted(watched)), threads=THREADS, exact_qdq=True)
        for batch in batches:
            off = self._run(batch, watched, on=())
            on = self._run(batch, watched, on=range(len(self.culprits)))
            self._exact.append(off[output])
            for culprit in self.culprits:
                culprit.own.update(off[culprit.swap.value], off[culprit.swap.other])
                culprit.piled.update(off[culprit.swap.value], on[culprit.swap.value])
            for name, quantizer in quantizers.items():
                clipped = beyond_codes(on[quantizer.values], quantizer.scale, quantizer.zero)
                self.codes[name].update(off[name], on[name], clipped)

    def run_alone(self, index: int) -> None:
        """Measure what one culprit does to the output."""
        for batch, exact in zip(self._batches, self._exact, strict=True):
            self.culprits[index].alone.update(exact, self._run(batch, [self._output], on=[index])[self._output])

    def _run(self, batch: Tensors, outputs: Iterable[str], on: Iterable[int]) -> dict[str, NDArray[Any]]:
        names, switches = sorted(outputs), np.zeros(len(self.culprits), bool)
        switches[list(on)] = True
        return dict(zip(names, self._session.run(names, {**batch, SWITCHES: switches}), strict=True))


def _written_otherwise(culprits: Sequence[Culprit]) -> set[str]:
    """Values that are wrong while all that is computed from them is right again.

    So a pass like SmoothQuant wrote them otherwise, divided by factors that the next weights are multiplied by, and the
    name alone stayed. What is wrong by accident stays wrong.
    """
    readers: dict[str, list[Culprit]] = {}
    for culprit in culprits:
        for name in culprit.swap.reads:
            readers.setdefault(name, []).append(culprit)
    found = set()
    for culprit in culprits:
        noise, behind = culprit.piled.noise, readers.get(culprit.swap.value, [])
        if noise > WRONG and behind and all(reader.piled.noise < noise / RIGHT_AGAIN for reader in behind):
            found.add(culprit.swap.value)
    return found


def _worth_a_run(culprits: Sequence[Culprit]) -> list[int]:
    """The numbers of those whose effect on the output is measured."""
    by_error = sorted(range(len(culprits)), key=lambda index: -culprits[index].own.noise)
    int8 = [index for index in by_error if culprits[index].swap.precision == "int8"]
    return int8 + [index for index in by_error if index not in int8][:OTHERS]


def _ranked(culprits: list[Culprit]) -> list[Culprit]:
    total = sum(culprit.alone.noise for culprit in culprits)
    for culprit in culprits:
        noise = culprit.alone.noise
        culprit.share = float(math.isinf(noise)) if math.isinf(total) else noise / total if total else 0.0
    return sorted(culprits, key=lambda culprit: -culprit.alone.noise)
