"""A running histogram of magnitudes, and the ways to read from it which of them INT8 should still tell apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import frexp
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 4096  # the largest value seen lies in the upper half of them, so 2048 or more are in use
STEPS = 127  # INT8 steps on each side of zero
DEFAULT = "mse"  # for one layer alone; tune.py asks the whole part, where another may be better
_CHUNK = 1 << 16  # values counted at a time: 256 KiB stay in a core's cache
_SMALLEST_EXPONENT = -100  # a range never ends below 2^-100: smaller values count as zeros
_LEVELS = 128  # magnitudes that INT8 knows, zero included
_COARSE = 2048  # bins of `_entropy`, as in Migacz's talk: in finer ones long tails have gaps
_TRIED = 97  # thresholds that it tries, each 3 % above the one before
_CLIPS = 2.0 ** -np.linspace(0, 3, 49)  # shares of the largest value that `_mse` tries, 1 down to 1/8


class Histogram:
    """Counts of |x| in BINS equal bins from zero to a power of two, which doubles when a larger value comes.

    With powers of two neither scaling a value nor merging bins rounds, so the counts are those of one histogram over
    all values at the final range, in whatever order and pieces the values came.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.largest = 0.0
        self._exponent = _SMALLEST_EXPONENT

    @property
    def limit(self) -> float:
        """Upper edge of the last bin."""
        return float(2.0**self._exponent)

    def update(self, values: NDArray[Any]) -> None:
        """Count `values`, any shape, all finite in float32."""
        values = np.asarray(values, np.float32).ravel()
        if not values.size:
            return
        largest = float(max(values.max(), -values.min()))
        self.largest = max(self.largest, largest)
        if largest:
            self._widen(frexp(largest)[1])  # largest < 2^that
        per_bin = np.float32(BINS / self.limit)
        buffer = np.empty(min(values.size, _CHUNK), np.float32)
        for start in range(0, values.size, _CHUNK):
            chunk = values[start : start + _CHUNK]
            scaled = np.multiply(chunk, per_bin, out=buffer[: chunk.size])
            self.counts += np.bincount(np.abs(scaled, out=scaled).astype(np.int32), minlength=BINS)

    def _widen(self, exponent: int) -> None:
        """Let the range end at 2^exponent, unless it reaches farther already."""
        if exponent > self._exponent:
            merged = min(BINS, 1 << (exponent - self._exponent))  # bins that become one
            self.counts = np.append(self.counts.reshape(-1, merged).sum(axis=1), np.zeros(BINS - BINS // merged, int))
            self._exponent = exponent

    def threshold(self, method: str = DEFAULT) -> float:
        """The magnitude that should become the INT8 code 127: in (0, largest], or 0 where only zeros were seen.

        Args:
            method: a key of METHODS.
        """
        return min(METHODS[method](self), self.largest) if self.largest else 0.0

    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin. [BINS]"""
        middles: NDArray[np.float64] = np.arange(0.5, BINS) * (self.limit / BINS)
        return middles


def _max(histogram: Histogram) -> float:
    """Nothing is clipped."""
    return histogram.largest


def _percentile(histogram: Histogram, percent: float) -> float:
    """The end of the bin below which `percent` of the values lie, zeros included as in ONNX Runtime's calibrator."""
    running = histogram.counts.cumsum()  # [BINS]
    index = int(np.searchsorted(running, running[-1] * (percent / 100)))
    return (index + 1) * histogram.limit / BINS


def _mse(histogram: Histogram) -> float:
    """Where rounding plus clipping loses least in mean square.

    Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 3.1. The largest value itself is one
    of those tried, so a range without outliers is not clipped.
    """
    centres = histogram.centres()  # [BINS]
    tried = histogram.largest * _CLIPS  # [49]
    steps = tried[:, None] / STEPS  # [49, 1]
    rounded = np.minimum(np.rint(centres / steps), STEPS) * steps  # [49, BINS]
    losses = ((rounded - centres) ** 2 * histogram.counts).sum(axis=1)  # [49]
    return float(tried[losses.argmin()])


def _entropy(histogram: Histogram) -> float:
    """Where the distribution that INT8 can express diverges least from the real one.

    Migacz 2017, "8-bit Inference with TensorRT": of the bins below a threshold, the last with all that is clipped
    added, the Kullback-Leibler divergence from the same bins merged into 128 levels and spread again over those that
    are not empty. As in NVIDIA's quantization toolkit bin 0 counts like bin 1: the zeros of a ReLU are exact in INT8.
    """
    seen = histogram.counts.reshape(_COARSE, -1).sum(axis=1)  # [_COARSE]
    counts = np.append(seen[1], seen[1:]).astype(np.float64)
    ends = np.flatnonzero(seen) + 1  # an empty last bin could not express what is clipped into it
    wanted = np.minimum(np.geomspace(_LEVELS, _COARSE, _TRIED), ends[-1])
    tried = np.unique(ends[np.searchsorted(ends, wanted)])
    losses = [_divergence(counts, int(stop)) for stop in tried]
    return float(tried[int(np.argmin(losses))] * histogram.limit / _COARSE)


def _divergence(counts: NDArray[np.float64], stop: int) -> float:
    """Kullback-Leibler divergence of the first `stop` bins, the last not empty, from what 128 levels make of them."""
    inside = counts[:stop]  # [K]
    level = np.arange(stop) * _LEVELS // stop  # [K]
    filled = inside > 0
    of_level = np.bincount(level, inside, _LEVELS) / np.maximum(np.bincount(level, filled, _LEVELS), 1)  # [128]
    real = inside.copy()
    real[-1] += counts[stop:].sum()
    expressed = np.where(filled, of_level[level], 0)  # [K]
    real, expressed = real[filled] / real.sum(), expressed[filled] / expressed.sum()
    return float((real * np.log(real / expressed)).sum())


METHODS: Mapping[str, Callable[[Histogram], float]] = {
    "max": _max,
    "mse": _mse,
    "entropy": _entropy,
    "percentile-99.9": lambda histogram: _percentile(histogram, 99.9),
    "percentile-99.99": lambda histogram: _percentile(histogram, 99.99),
    "percentile-99.999": lambda histogram: _percentile(histogram, 99.999),
}
