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
        batches: inputs, one or more small batches: all values of one are held at once, in both forms. Own errors are
            measured on all of them, effects on the output, which take a run per node, on the first.
        output: the output of the part that counts.

    Raises:
        BundleError: the two forms do not fit together.
    """
    first = _Measurement(Swappable(reference, other), batches, output)
    if apart := _written_otherwise(first.culprits):
        first = _Measurement(Swappable(reference, other, apart), batches, output)
    chosen = {culprit.swap.value: culprit for culprit in _worth_a_run(first.culprits)}
    swappable = Swappable(reference, other, apart, only=chosen)  # without the others a run takes a fraction of the time
    runs = _Runs(swappable, [output])
    exact = runs(batches[0], [output], on=())[output]
    for index, swap in enumerate(swappable.swaps):
        chosen[swap.value].alone.update(exact, runs(batches[0], [output], on=[index])[output])
    return Blame(_ranked(list(chosen.values())), first.codes)


class _Runs:
    """A session of a swappable graph."""

    def __init__(self, swappable: Swappable, outputs: Iterable[str]) -> None:
        self._session = open_session(swappable.serialize(sorted(outputs)), threads=THREADS, exact_qdq=True)
        self._off = np.zeros(len(swappable.swaps), bool)

    def __call__(self, batch: Tensors, outputs: Iterable[str], on: Iterable[int]) -> dict[str, NDArray[Any]]:
        """These outputs with these switches on."""
        names, switches = sorted(outputs), self._off.copy()
        switches[list(on)] = True
        return dict(zip(names, self._session.run(names, {**batch, SWITCHES: switches}), strict=True))


class _Measurement:
    """What is seen of every node with all switches off and with all of them on."""

    def __init__(self, swappable: Swappable, batches: Sequence[Tensors], output: str) -> None:
        self.culprits = [Culprit(swap) for swap in swappable.swaps]
        quantizers = {quantizer.codes: quantizer for swap in swappable.swaps for quantizer in swap.quantizers}
        self.codes = {name: CodeDistance() for name in quantizers}
        watched = {output, *(name for swap in swappable.swaps for name in (swap.value, swap.other))}
        watched |= {name for quantizer in quantizers.values() for name in (quantizer.codes, quantizer.values)}
        runs = _Runs(swappable, watched)
        for batch in batches:
            off = runs(batch, watched, on=())
            on = runs(batch, watched, on=range(len(self.culprits)))
            for culprit in self.culprits:
                culprit.own.update(off[culprit.swap.value], off[culprit.swap.other])
                culprit.piled.update(off[culprit.swap.value], on[culprit.swap.value])
            for name, quantizer in quantizers.items():
                clipped = beyond_codes(on[quantizer.values], quantizer.scale, quantizer.zero)
                self.codes[name].update(off[name], on[name], clipped)


def _written_otherwise(culprits: Sequence[Culprit]) -> set[str]:
    """Values that are wrong while all that is computed from them is right again.

    So they only say the same otherwise: a masked score of -1e4 in FP16 where FP32 has -3.4e38, or what a pass divided
    by factors that the next weights are multiplied by. What is wrong by accident stays wrong.
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


def _worth_a_run(culprits: Sequence[Culprit]) -> list[Culprit]:
    """Those whose effect on the output is measured, the largest own error first."""
    by_error = sorted(culprits, key=lambda culprit: -culprit.own.noise)
    int8 = [culprit for culprit in by_error if culprit.swap.precision == "int8"]
    return int8 + [culprit for culprit in by_error if culprit.swap.precision != "int8"][:OTHERS]


def _ranked(culprits: list[Culprit]) -> list[Culprit]:
    """Those that make NaN or infinity first, as the graph has them, since they spread; then by what each does."""
    total = sum(culprit.alone.noise for culprit in culprits)
    for culprit in culprits:
        noise = culprit.alone.noise
        culprit.share = float(math.isinf(noise)) if math.isinf(total) else noise / total if total else 0.0
    return sorted(culprits, key=lambda culprit: -math.inf if culprit.own.not_finite else -culprit.alone.noise)
