"""How far values are from what they should be: pure measures, summed up batch by batch in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 15  # pairs at a time: their float64 stays in a core's cache
TINY = 1e-100  # stands for a signal of zero: its ratio to an error stays a number that JSON holds


class Difference:
    """What `update` saw of changed values beside their reference.

    Values that are NaN or infinite on either side are counted and take no part in the other measures.
    """

    def __init__(self) -> None:
        self.count = 0  # finite pairs
        self.not_finite = 0
        self.max_abs = 0.0
        self._error = 0.0  # sum of |changed - reference|
        self._magnitude = 0.0  # sum of |reference|
        self._noise = 0.0  # sum of (changed - reference)^2
        self._signal = 0.0  # sum of reference^2
        self._changed = 0.0  # sum of changed^2
        self._product = 0.0  # sum of changed * reference

    def update(self, reference: NDArray[Any], changed: NDArray[Any]) -> None:
        """Add pairs of values; two arrays of one shape, any float type."""
        first, second = reference.ravel(), changed.ravel()
        for start in range(0, first.size, _CHUNK):
            self._add(*(array[start : start + _CHUNK].astype(np.float64) for array in (first, second)))

    def _add(self, reference: NDArray[np.float64], changed: NDArray[np.float64]) -> None:
        finite = np.isfinite(reference) & np.isfinite(changed)
        if not finite.all():
            self.not_finite += int((~finite).sum())
            reference, changed = reference[finite], changed[finite]
        error = np.abs(changed - reference)
        self.count += error.size
        self.max_abs = max(self.max_abs, float(error.max(initial=0.0)))
        self._error += float(error.sum())
        self._magnitude += float(np.abs(reference).sum())
        self._noise += _dot(error, error)
        self._signal += _dot(reference, reference)
        self._changed += _dot(changed, changed)
        self._product += _dot(reference, changed)

    @property
    def mean_abs(self) -> float:
        """Mean of |changed - reference|."""
        return self._error / max(self.count, 1)

    @property
    def relative(self) -> float:
        """Mean error over the mean magnitude of the reference."""
        return self._error / max(self._magnitude, TINY) if self._error else 0.0

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both; 1 where both are zero, 0 where one of them is."""
        norms = math.sqrt(self._signal) * math.sqrt(self._changed)
        return self._product / norms if norms else float(self._signal == self._changed)

    @property
    def noise(self) -> float:
        """Energy of the error over that of the reference; infinite where a value is not finite."""
        return math.inf if self.not_finite else self._noise / max(self._signal, TINY)

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise ratio, 10 log10(signal energy / error energy); None without any error."""
        return 10 * math.log10(max(self._signal, TINY) / self._noise) if self._noise else None

    def row(self) -> dict[str, Any]:
        """All measures, for a table; the count of what is not finite only where there is any."""
        return {
            "max_abs": self.max_abs,
            "mean_abs": self.mean_abs,
            "relative": self.relative,
            "cosine": self.cosine,
            "sqnr_db": self.sqnr_db,
            **({"not_finite": self.not_finite} if self.not_finite else {}),
        }


def _dot(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The inner product, without the threads of a BLAS, which cost more than they help here."""
    return float(np.einsum("i,i->", first, second))


class CodeDistance:
    """How many steps apart the INT8 codes of a quantized tensor are, and how many values lie beyond the last code."""

    def __init__(self) -> None:
        self.count = 0
        self.farthest = 0  # steps
        self._by_1 = self._by_more = self._clipped = 0

    def update(self, reference: NDArray[Any], changed: NDArray[Any], clipped: NDArray[np.bool_]) -> None:
        """Add codes; three arrays of one shape, `clipped` says which values had no code of their own."""
        steps = np.abs(changed.astype(np.int32) - reference.astype(np.int32))
        self.count += steps.size
        self.farthest = max(self.farthest, int(steps.max(initial=0)))
        self._by_1 += int((steps == 1).sum())
        self._by_more += int((steps > 1).sum())
        self._clipped += int(clipped.sum())

    def include(self, other: CodeDistance) -> None:
        """Add what another one saw."""
        self.count += other.count
        self.farthest = max(self.farthest, other.farthest)
        self._by_1 += other._by_1
        self._by_more += other._by_more
        self._clipped += other._clipped

    def row(self) -> dict[str, Any]:
        """Shares of the codes in 0..1, for a table."""
        count = max(self.count, 1)
        return {
            "off_by_1": self._by_1 / count,
            "off_by_more": self._by_more / count,
            "farthest": self.farthest,
            "clipped": self._clipped / count,
        }


def beyond_codes(values: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any]) -> NDArray[np.bool_]:
    """Which `values` a QuantizeLinear with this scale and zero point has to clip (ONNX: round half to even)."""
    limits = np.iinfo(zero.dtype)
    codes = np.rint(values.astype(np.float32) / scale.astype(np.float32)) + zero.astype(np.float32)
    return (codes < limits.min) | (codes > limits.max)


def agreement(reference: NDArray[Any], changed: NDArray[Any]) -> float:
    """Share of rows [n, C] whose largest value stands in the same column."""
    return float((reference.argmax(axis=1) == changed.argmax(axis=1)).mean())
