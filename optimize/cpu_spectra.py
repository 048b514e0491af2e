"""Mel bands of a waveform, for ONNX Runtime's CPU: the same numbers from a quarter of the arithmetic of their DFT.

The front ends are written as TensorRT takes them: a strided convolution with a windowed DFT basis, a square, and a
pointwise convolution in which every band stands twice, for real and imaginary parts (`edgefuse.train.frontends`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from edgefuse.optimize.cpu_convolutions import CHANNELS_LAST, frames, is_plain
from edgefuse.optimize.cpu_rewrite import Rewrite, attribute

EVEN, ODD = 0, 1  # planes of the samples
ROUNDING = 1e-5  # of a basis in FP32, beside its largest number


class _Spectrum(NamedTuple):
    """What was recognised: a convolution, its square and the bands of it."""

    audio: str  # [B, 1, T]
    length: int  # T
    cosines: NDArray[Any]  # [N, N / 2 + 1], windowed
    sines: NDArray[Any]  # the same
    bands: NDArray[Any]  # [N / 2 + 1, M]
    framing: tuple[int, int, int]  # N, hop, frames
    output: str  # [B, M, F]


def quarter_spectra(rewrite: Rewrite) -> None:
    """Replace Conv, square and Conv by products of a quarter of the size, wherever they are the mel bands of a DFT.

    Cosines are even about the middle of the window and sines odd, so x[n] and x[N - n] meet the same number but for
    the sign: half of the products. The bins k and N/2 - k meet the same numbers but for the sign of every second
    sample: half again, with even and odd samples apart (one step of an FFT, Cooley & Tukey 1965).

    So N is divisible by 4, and even samples stay even from frame to frame only if the hop is; any other front end,
    and one whose sounds have no fixed even length, stays as it is.
    """
    for node in [node for node in rewrite.nodes if node.op_type == "Conv"]:
        spectrum = _recognised(rewrite, node)
        if spectrum is not None:
            _replace(rewrite, spectrum)
    rewrite.sweep()


def _recognised(rewrite: Rewrite, node: NodeProto) -> _Spectrum | None:
    square = _square(rewrite, node.output[0])
    reader = rewrite.sole_reader(square, "Conv") if square else None
    basis, bands = (_matrix(rewrite, conv) if conv is not None else None for conv in (node, reader))
    shape, hop = rewrite.shape(node.input[0]), _stride(node)
    if reader is None or basis is None or bands is None or _stride(reader) != 1 or len(shape) != 3 or shape[1] != 1:
        return None
    length, size, bins = shape[2], len(basis), len(basis) // 2 + 1
    if not isinstance(length, int) or length < size or length % 2 or hop % 2 or size % 4:
        return None
    if basis.shape[1] != 2 * bins or len(bands) != 2 * bins or not np.array_equal(bands[:bins], bands[bins:]):
        return None
    cosines, sines = basis[:, :bins], basis[:, bins:]
    if not (_is_folded(cosines, 1) and _is_folded(sines, -1)):
        return None
    framing = (size, hop, (length - size) // hop + 1)
    return _Spectrum(node.input[0], length, cosines, sines, bands[:bins], framing, reader.output[0])


def _matrix(rewrite: Rewrite, node: NodeProto) -> NDArray[Any] | None:
    """What a convolution over time multiplies a window of one channel or one step of all by, if it does nothing else.

    Returns:
        [kernel, outputs] or [channels, outputs]; None with a bias, padding, dilation or groups.
    """
    weight = rewrite.constant(node.input[1])
    if weight is None or weight.ndim != 3 or 1 not in weight.shape[1:] or len(node.input) > 2:
        return None
    if not is_plain(node) or any(attribute(node, "pads", [])) or attribute(node, "group", 1) != 1:
        return None
    matrix: NDArray[Any] = weight.reshape(len(weight), -1).T
    return matrix


def _square(rewrite: Rewrite, value: str) -> str | None:
    """The square of `value`, if that is all that reads it."""
    power = rewrite.sole_reader(value, "Pow")
    exponent = rewrite.constant(power.input[1]) if power is not None else None
    return power.output[0] if power is not None and exponent is not None and np.all(exponent == 2) else None


def _stride(node: NodeProto) -> int:
    return int(attribute(node, "strides", [1])[0])


def _is_folded(basis: NDArray[Any], sign: int) -> bool:
    """Whether row 0 is zero, row N - n is row n times `sign`, and bin N/2 - k is bin k times `sign * (-1) ** n`."""
    alternating = sign * np.where(np.arange(len(basis)) % 2, -1, 1)[:, None]
    differences = (basis[0], basis[1:] - sign * basis[:0:-1], basis[:, ::-1] - alternating * basis)
    largest = ROUNDING * np.abs(basis).max()
    return all(bool(np.abs(difference).max() <= largest) for difference in differences)


def _replace(rewrite: Rewrite, spectrum: _Spectrum) -> None:
    length, (size, hop, count) = spectrum.length, spectrum.framing
    quarter = size // 4
    pairs = rewrite.add("Reshape", [spectrum.audio, np.array([0, length // 2, 2])])  # [B, T / 2, 2]
    x = rewrite.add("Transpose", [pairs], perm=[0, 2, 1])  # [B, 2, T / 2]
    x = rewrite.add("Reshape", [x, np.array([-1, length // 2, 1])])  # [B * 2, T / 2, 1]
    x = frames(rewrite, x, 1, (size // 2, hop // 2, count), (0, length // 2))  # [B * 2, F, N / 2]
    x = rewrite.add("Reshape", [x, np.array([-1, 2, count, size // 2])])  # [B, 2, F, N / 2]
    # Sample 0 meets zero, so the even ones are folded about their middle: 1 .. N/4 of the plane with N/2 - 1 .. N/4.
    even_sum, even_difference = _folded(rewrite, x, EVEN, 1, quarter)
    odd_sum, odd_difference = _folded(rewrite, x, ODD, 0, quarter)
    even, odd = np.arange(1, quarter + 1) * 2, np.arange(quarter) * 2 + 1  # the sample of each column
    once = np.where(even == size // 2, 0.5, 1)[:, None]  # the middle one meets itself
    bins = slice(quarter + 1)  # 0 .. N/4; the others mirror them
    real_even = rewrite.add("MatMul", [even_sum, _float(spectrum.cosines[even, bins] * once)])  # [B, 1, F, N/4 + 1]
    real_odd = rewrite.add("MatMul", [odd_sum, _float(spectrum.cosines[odd, bins])])
    imaginary_even = rewrite.add("MatMul", [even_difference, _float(spectrum.sines[even, bins])])
    imaginary_odd = rewrite.add("MatMul", [odd_difference, _float(spectrum.sines[odd, bins])])
    mirrored = spectrum.bands[::-1][bins].copy()
    mirrored[-1] = 0  # bin N/4 mirrors itself
    halves = []
    for op, bands in (("Add", spectrum.bands[bins]), ("Sub", mirrored)):
        real = rewrite.add(op, [real_even, real_odd])
        imaginary = rewrite.add(op, [imaginary_even, imaginary_odd])
        squares = [rewrite.add("Mul", [part, part]) for part in (real, imaginary)]
        halves.append(rewrite.add("MatMul", [rewrite.add("Add", squares), _float(bands)]))  # [B, 1, F, M]
    y = rewrite.add("Squeeze", [rewrite.add("Add", halves), np.array([1])])  # [B, F, M]
    rewrite.add("Transpose", [y], instead_of=spectrum.output, perm=CHANNELS_LAST)


def _folded(rewrite: Rewrite, x: str, plane: int, first: int, count: int) -> tuple[str, str]:
    """Sum and difference of columns first, first + 1, .. and last, last - 1, .. of a plane of x: [B, 1, F, count]."""
    last = 2 * count - 1
    axes, steps = np.array([1, 3]), np.array([1, -1])
    onwards = rewrite.add("Slice", [x, np.array([plane, first]), np.array([plane + 1, first + count]), axes])
    ends = np.array([plane + 1, last - count])
    backwards = rewrite.add("Slice", [x, np.array([plane, last]), ends, axes, steps])
    return rewrite.add("Add", [onwards, backwards]), rewrite.add("Sub", [onwards, backwards])


def _float(array: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, np.float32)
