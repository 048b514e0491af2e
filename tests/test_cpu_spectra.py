"""Mel bands from a quarter of a DFT, against numpy's FFT and torchaudio, and what is left alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from torchaudio.transforms import MelSpectrogram

from edgefuse.optimize.cpu_rewrite import Rewrite
from edgefuse.optimize.cpu_spectra import quarter_spectra
from edgefuse.optimize.graph import Graph
from edgefuse.train.frontends import HOP, MELS, SAMPLE_RATE, WINDOW, LogMel, dft_basis
from tests.optimize_fixtures import Net, outputs


def rewritten(model: bytes) -> bytes:
    rewrite = Rewrite(Graph(model))
    quarter_spectra(rewrite)
    return rewrite.serialize()


def operators(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_model_from_string(model).graph.node)


def products(model: bytes) -> int:
    """Multiplications of a frame in its matrix products."""
    graph = onnx.load_model_from_string(model).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return sum(int(np.prod(shapes[node.input[1]])) for node in graph.node if node.op_type == "MatMul")


def mel_bands(
    basis: np.ndarray,
    bands: np.ndarray,
    length: int,
    hop: int,
    *,
    exponent: float = 2.0,
    bias: bool = False,
    pad: int = 0,
) -> bytes:
    """Sound [1, length] to bands, as the front ends of `edgefuse.train` export it."""
    net = Net()
    spectrum = net.add("Conv", "x", basis[:, None], strides=[hop], pads=[pad, pad])
    power = net.add("Pow", spectrum, np.float32(exponent))
    shift = [np.ones(bands.shape[1])] if bias else []
    mel = net.add("Conv", power, bands.T[:, :, None], *shift)
    return net.model({"x": (TensorProto.FLOAT, [1, length])}, {"y": mel})


def dft(size: int) -> np.ndarray:
    """Rows cos and -sin times a periodic Hann window: [2 * bins, size]."""
    return dft_basis(size)[:, 0].numpy()


def random_bands(size: int, count: int) -> np.ndarray:
    """The same matrix for real and imaginary parts: [2 * bins, count]."""
    return np.tile(np.random.default_rng(size).random((size // 2 + 1, count)), (2, 1))


@settings(max_examples=60, deadline=None)
@given(
    quarter=st.integers(2, 16),
    half_hop=st.integers(1, 20),
    frames=st.integers(1, 6),
    left_over=st.integers(0, 3),
    batch=st.integers(1, 3),
)
def test_bands_of_any_framing_are_those_of_numpys_fft(
    quarter: int, half_hop: int, frames: int, left_over: int, batch: int
) -> None:
    size, hop = 4 * quarter, 2 * half_hop
    length = size + hop * (frames - 1) + 2 * min(left_over, half_hop - 1)
    bands = random_bands(size, 5)
    model = rewritten(mel_bands(dft(size), bands, length, hop))
    x = np.random.default_rng(length).standard_normal((batch, 1, length)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x[:, 0].astype(np.float64), size, axis=1)[:, ::hop]
    power = np.abs(np.fft.rfft(windows * (np.hanning(size + 1)[:-1]))) ** 2  # [B, F, bins]
    assert "Conv" not in operators(model)
    expected = (power @ bands[: size // 2 + 1]).transpose(0, 2, 1)
    np.testing.assert_allclose(outputs(model, {"x": x})[0], expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_products_are_a_quarter_of_the_dfts_and_half_of_the_bands() -> None:
    bands = random_bands(WINDOW, MELS)
    bins = WINDOW // 2 + 1
    assert products(rewritten(mel_bands(dft(WINDOW), bands, 4000, HOP))) == pytest.approx(
        WINDOW * 2 * bins / 4 + bins * MELS, rel=0.01
    )


@pytest.mark.parametrize("level", [1.0, 1e-3])
def test_quiet_high_bands_beside_loud_low_ones_are_those_of_torchaudio(level: float) -> None:
    """Where bins are the difference of large sums, rounding would show first."""
    time = np.arange(8000) / SAMPLE_RATE
    low, high = np.sin(2 * np.pi * 200 * time), np.sin(2 * np.pi * 7000 * time)
    x = (0.9 * low + 1e-3 * high) * level
    front = LogMel()
    bands = front.bands[:, :, 0].T.numpy()  # [2 * bins, MELS]
    model = rewritten(mel_bands(dft(WINDOW), bands, len(x), HOP))
    reference = MelSpectrogram(
        SAMPLE_RATE, WINDOW, hop_length=HOP, n_mels=MELS, center=False, norm="slaney", mel_scale="slaney"
    ).double()(torch.from_numpy(x))  # [MELS, F]
    ours = outputs(model, {"x": x[None, None].astype(np.float32)})[0][0] / 100
    floor = 1e-6 / 100  # what the front end adds before its logarithm
    np.testing.assert_allclose(np.log(ours + floor), np.log(reference.numpy() + floor), atol=5e-3)


@pytest.mark.parametrize(
    "change", ["window", "order", "size", "hop", "length", "bands", "exponent", "bias", "padding", "second reader"]
)
def test_nothing_else_is_rewritten(change: str) -> None:
    size = 30 if change == "size" else 32
    basis, bands = dft(size), random_bands(size, 5)
    if change == "window":
        basis = basis * np.linspace(0, 1, size)
    if change == "order":
        basis = basis[::-1]
    if change == "bands":
        bands = bands * np.linspace(1, 2, len(bands))[:, None]
    model = mel_bands(
        basis,
        bands,
        321 if change == "length" else 320,
        15 if change == "hop" else 16,
        exponent=3.0 if change == "exponent" else 2.0,
        bias=change == "bias",
        pad=2 if change == "padding" else 0,
    )
    if change == "second reader":
        proto = onnx.load_model_from_string(model)
        spectrum = proto.graph.node[0].output[0]
        proto.graph.output.append(onnx.helper.make_tensor_value_info(spectrum, TensorProto.FLOAT, None))
        model = onnx.shape_inference.infer_shapes(proto).SerializeToString()
    assert operators(rewritten(model))["Conv"] == 2
