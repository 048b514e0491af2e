"""Chooses how a part is quantized by what is left of its output: the calibration method, SmoothQuant, bias correction.

No one choice is best for all parts (benchmarks/results/quantizers.json): convolutions one after the other lose most by
clipping, whose errors all pull the same way, other parts by outliers. All methods read the same histograms, so trying
them costs a few runs of the part and no further calibration.

`python -m edgefuse.optimize.tune part.onnx samples.npz folder` writes what it chooses, and with --method every choice
that is asked for, for benchmarks/peers/quantizers.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.optimize.bias_correction import corrected, mean_shifts
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.histogram import METHODS
from edgefuse.optimize.ptq import BATCH, Batches, Calibrated, calibrate_part
from edgefuse.optimize.qdq import Product, Site, insert
from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.backend_onnx import open_session

TRIED = ("max", "mse", "percentile-99.99", "percentile-99.999")  # those of METHODS that were best for some part
JUDGED = 8  # calibration batches that choices are compared on
SMOOTHING_PAYS_DB = 0.5  # what SmoothQuant has to win: it may cost a multiplication
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tuned:
    """A calibrated part and how it is quantized best."""

    part: Calibrated
    method: str  # a key of histogram.METHODS
    shifts: Mapping[str, Floats] = field(default_factory=dict)  # node -> what its bias takes on in INT8
    sqnr_db: float = float("nan")  # of the part's output with its products in INT8, signal over error

    @property
    def thresholds(self) -> dict[str, float]:
        """Activation -> magnitude that becomes 127."""
        return self.part.thresholds(self.method)

    @property
    def note(self) -> str:
        """The choices in a few words, for the contract."""
        smoothed = f", SmoothQuant on {len(self.part.smoothed)} layers" if self.part.smoothed else ""
        return f"{self.method} calibration{smoothed}{', biases corrected' if self.shifts else ''}"

    def model(self, sites: Collection[Site], products: Collection[Product] = ()) -> bytes:
        """The part as ONNX: INT8 at `sites` and `products`, FP16 around them."""
        graph = self.part.graph.draft()
        if sites or products:
            graph = insert(corrected(graph, sites, self.shifts), sites, self.thresholds, products)
        return to_fp16(graph, self.part.fp32_nodes).serialize()


def tune(model: bytes, batches: Batches, *, convolutions: bool) -> Tuned:
    """Calibrate a part and choose, one after the other, the method, SmoothQuant and bias correction.

    Judged with every product and table in INT8, or with the convolutions in a part that has nothing else.

    Args:
        model: the FP32 part.
        batches: the calibration inputs, at least one batch.
        convolutions: let convolutions be INT8 too, not only matrix products and embedding tables.

    Raises:
        BundleError: the part makes NaN of a sample.
    """
    plain = calibrate_part(model, batches, convolutions=convolutions, smoothing=False)
    if not plain.placed:
        return Tuned(plain, TRIED[0])
    judge = _Judge(model, list(islice(batches(), JUDGED)))
    best = max((judge.judged(Tuned(plain, method)) for method in TRIED), key=lambda tuned: tuned.sqnr_db)
    smooth = calibrate_part(model, batches, convolutions=convolutions, smoothing=True)
    if smooth.smoothed:
        other = judge.judged(Tuned(smooth, best.method))
        best = other if other.sqnr_db > best.sqnr_db + SMOOTHING_PAYS_DB else best
    shifts = mean_shifts(best.part.graph, best.part.placed, best.thresholds, batches())
    return max(best, judge.judged(replace(best, shifts=shifts)), key=lambda tuned: tuned.sqnr_db)


class _Judge:
    """Knows what the FP32 part puts out for some inputs."""

    def __init__(self, model: bytes, batches: Sequence[Tensors]) -> None:
        self._batches = batches
        self._exact = self._outputs(model)

    def judged(self, tuned: Tuned) -> Tuned:
        """The same with its signal over error."""
        sites = [site for site in tuned.part.placed if site.op != "Conv"] or tuned.part.placed
        error = self._outputs(tuned.model(sites)) - self._exact
        return replace(tuned, sqnr_db=float(10 * np.log10((self._exact**2).sum() / max((error**2).sum(), 1e-30))))

    def _outputs(self, model: bytes) -> NDArray[np.float64]:
        session = open_session(model, exact_qdq=True)
        return np.concatenate([session.run(None, dict(batch))[0].ravel() for batch in self._batches]).astype(np.float64)


def _from_file(path: Path) -> Batches:
    """Batches of the arrays in an .npz file, one array per input, samples first."""
    arrays: dict[str, NDArray[Any]] = dict(np.load(path))

    def batches() -> Iterator[Tensors]:
        for start in range(0, len(next(iter(arrays.values()))), BATCH):
            yield {name: array[start : start + BATCH] for name, array in arrays.items()}

    return batches


def _peak_mb() -> int:
    """Most memory that this process held; getrusage would count its parent's too, which it was forked from."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Write folder/<choice>.onnx for each choice; prints what it took as one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", type=Path, help="the FP32 part, ONNX")
    parser.add_argument("samples", type=Path, help="an .npz of calibration inputs, samples first")
    parser.add_argument("folder", type=Path, help="where the INT8 parts go")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=[], help="these instead of the best choice")
    parser.add_argument("--convolutions", action="store_true", help="INT8 convolutions too")
    parser.add_argument("--smooth", action="store_true", help="SmoothQuant wherever a layer gains by it")
    parser.add_argument("--correct-biases", action="store_true")
    options = parser.parse_args(argv)
    started = time.perf_counter()
    batches, model = _from_file(options.samples), options.part.read_bytes()
    if options.method:
        part = calibrate_part(model, batches, convolutions=options.convolutions, smoothing=options.smooth)
        choices = {method: Tuned(part, method) for method in options.method}
        if options.correct_biases:
            for method, tuned in choices.items():
                shifts = mean_shifts(part.graph, part.placed, tuned.thresholds, batches())
                choices[method] = replace(tuned, shifts=shifts)
    else:
        choices = {"tuned": tune(model, batches, convolutions=options.convolutions)}
    for name, tuned in choices.items():
        (options.folder / f"{name}.onnx").write_bytes(tuned.model(tuned.part.placed))
        (options.folder / "fp16.onnx").write_bytes(replace(tuned, shifts={}).model(()))
    told = {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": _peak_mb(),
        "notes": {name: tuned.note for name, tuned in choices.items()},
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
