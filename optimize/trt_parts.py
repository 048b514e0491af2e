"""The forms of one part for TensorRT, as candidates for the judge: FP16, then what the planner finds cheapest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from edgefuse.optimize.cost import Cost
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.histogram import DEFAULT
from edgefuse.optimize.judge import Candidate
from edgefuse.optimize.planner import Forms
from edgefuse.optimize.ptq import BATCH, calibrate_part
from edgefuse.optimize.tune import Tuned, tune
from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.samples import Samples

FP16, INT8 = "fp16", "int8+fp16"
_HEAD = "FP16: one row at a time goes through the head, where INT8 only adds kernels"


class TrtPart:
    """One part, from the form that is best by cost to those that give blocks back to FP16.

    Args:
        forms: of an encoder; None for the head, which has its FP16 form only.
        fp16: that form.
    """

    def __init__(self, forms: Forms | None, fp16: bytes) -> None:
        self.forms = forms
        self.candidates = [Candidate(FP16, fp16, exact_qdq=True)]
        self._int8: dict[str, frozenset[str]] = {FP16: frozenset()}  # candidate -> its INT8 blocks
        self._back: Iterator[str] = iter(())  # blocks that are next to go back to FP16

    def blocks(self, name: str) -> frozenset[str]:
        """The INT8 blocks of a candidate."""
        return self._int8[name]

    def note(self, name: str) -> str:
        """What of a candidate is INT8, in one line for the contract."""
        if self.forms is None:
            return _HEAD
        told = [f"{row['block']} in {row['precision'].upper()}: {row['why']}" for row in self.reasons(name)]
        return "; ".join([*told, self.forms.tuned.note] if self._int8[name] else told)

    def reasons(self, name: str) -> list[dict[str, str]]:
        """Why each block is what it is in a candidate."""
        return self.forms.reasons(self._int8[name]) if self.forms else []

    def offer(self, int8: frozenset[str], back: list[str]) -> None:
        """Add a form with these INT8 blocks; `retreat` will give them back in the order of `back`."""
        assert self.forms is not None
        name = INT8 if len(self.candidates) == 1 else f"{INT8}/{len(self.candidates) - 1}"
        self._int8[name] = int8
        self._back = iter(back)
        self.candidates.append(Candidate(name, self.forms.model(int8), exact_qdq=True))

    def retreat(self) -> Candidate | None:
        """The last candidate with one more block in FP16, None where no INT8 is left."""
        int8 = self._int8[self.candidates[-1].precision] - {next(self._back, "")}
        if not int8 or self.forms is None:
            return None
        self.forms.form(int8)  # compiled: what it costs is told beside what it keeps
        self.offer(int8, list(self._back))
        return self.candidates[-1]


def head_part(model: bytes) -> TrtPart:
    """The head, in FP16."""
    return TrtPart(None, to_fp16(Graph(model)).serialize())


def encoder_part(model: bytes, samples: Samples, precision: str, cost_of: Callable[[bytes], Cost]) -> TrtPart:
    """An encoder in FP16, and in INT8 as `precision` says.

    Args:
        model: the FP32 part.
        samples: what to calibrate on.
        precision: "fp16"; "int8" for every product, table and convolution that may be; "auto" for the cheapest form.
        cost_of: ONNX bytes -> cost, for "auto".

    Raises:
        ManifestError: there is no sample.
        BundleError: the part makes NaN of one.
        EngineError: the compiler that tells the cost refuses the part.
    """
    if not len(samples):
        raise ManifestError(f"no training line has {samples.modality}, which the model reads; calibration needs some")
    batches = partial(samples.batches, BATCH)
    if precision == FP16:
        tuned = Tuned(calibrate_part(model, batches, convolutions=True, smoothing=False), DEFAULT)
    else:
        tuned = tune(model, batches, convolutions=True)
    forms = Forms(tuned, cost_of)
    part = TrtPart(forms, forms.model(()))
    weighted = frozenset(block.name for block in forms.blocks if block.sites)
    if precision == "int8" and weighted:
        part.offer(weighted, [])
    elif precision == "auto" and forms.blocks:
        best = forms.cheapest()
        if best.int8:
            part.offer(best.int8, forms.noisiest(best, next(samples.batches(BATCH))))
    return part
