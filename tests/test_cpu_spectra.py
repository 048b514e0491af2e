"""Mel bands from a quarter of a DFT, against numpy's FFT and torchaudio, and what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from torch import nn
from torchaudio.transforms import MelSpectrogram

from edgefuse.optimize.cpu_spectra import quarter_spectra
from edgefuse.train.frontends import HOP, MELS, SAMPLE_RATE, WINDOW, LogMel, dft_basis
from edgefuse.train.speech_embedding import LevelMel
from tests.optimize_fixtures import Net, operators, outputs, rewritten


def products(model: bytes) -> int:
    """Multiplications of a frame in its matrix products."""
    graph = onnx.load_model_from_string(model).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return sum(int(np.prod(shapes[node.input[1]])) for node in graph.node if node.op_type == "MatMul")


def mel_bands(basis: np.ndarray, bands: np.ndarray, length: int | str, hop: int, **changes: Any) -> bytes:
    """Sound [1, length] to bands, as the front ends of `edgefuse.train` export it but for `changes`."""
    net = Net()
    first, second = changes.get("first", {}), changes.get("second", {})
    spectrum = net.add("Conv", "x", basis[:, None], *changes.get("first_bias", ()), **{"strides": [hop], **first})
    power = net.add("Pow", spectrum, np.float32(changes.get("exponent", 2)))
    mel = net.add("Conv", power, bands.T[:, :, None], *changes.get("second_bias", ()), **second)
    given = {"y": mel, "spectrum": spectrum} if changes.get("is_read_twice") else {"y": mel}
    return net.model({"x": (TensorProto.FLOAT, [1, length])}, given)


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
    model = rewritten(quarter_spectra, mel_bands(dft(size), bands, length, hop))
    x = np.random.default_rng(length).standard_normal((batch, 1, length)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x[:, 0].astype(np.float64), size, axis=1)[:, ::hop]
    power = np.abs(np.fft.rfft(windows * (np.hanning(size + 1)[:-1]))) ** 2  # [B, F, bins]
    assert "Conv" not in operators(model)
    expected = (power @ bands[: size // 2 + 1]).transpose(0, 2, 1)
    np.testing.assert_allclose(outputs(model, {"x": x})[0], expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_products_are_a_quarter_of_the_dfts_and_half_of_the_bands() -> None:
    bands = random_bands(WINDOW, MELS)
    bins = WINDOW // 2 + 1
    assert products(rewritten(quarter_spectra, mel_bands(dft(WINDOW), bands, 4000, HOP))) == pytest.approx(
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
    model = rewritten(quarter_spectra, mel_bands(dft(WINDOW), bands, len(x), HOP))
    reference = MelSpectrogram(
        SAMPLE_RATE, WINDOW, hop_length=HOP, n_mels=MELS, center=False, norm="slaney", mel_scale="slaney"
    ).double()(torch.from_numpy(x))  # [MELS, F]
    ours = outputs(model, {"x": x[None, None].astype(np.float32)})[0][0] / 100
    floor = 1e-6 / 100  # what the front end adds before its logarithm
    np.testing.assert_allclose(np.log(ours + floor), np.log(reference.numpy() + floor), atol=5e-3)


SIZE, LENGTH, STEP = 32, 320, 16
DFT, BANDS = dft(SIZE), random_bands(SIZE, 5)
RAMP = np.linspace(0, 1, SIZE)
MIRROR_BROKEN = DFT[np.r_[1, 0, 2:17, 18, 17, 19:34]]  # each bin still even or odd about the middle of the window


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(mel_bands(DFT * RAMP, BANDS, LENGTH, STEP), id="a window that is not even"),
        pytest.param(mel_bands(DFT * RAMP * 1e-6, BANDS, LENGTH, STEP), id="and small numbers"),
        pytest.param(mel_bands(np.where(np.arange(SIZE) == 0, 1, DFT), BANDS, LENGTH, STEP), id="a first sample"),
        pytest.param(mel_bands(MIRROR_BROKEN, BANDS, LENGTH, STEP), id="bins in another order"),
        pytest.param(mel_bands(DFT[::-1], BANDS, LENGTH, STEP), id="sines first"),
        pytest.param(mel_bands(dft(30), random_bands(30, 5), LENGTH, STEP), id="a size that 4 does not divide"),
        pytest.param(mel_bands(DFT[:-2], BANDS[:-2], LENGTH, STEP), id="bins that are missing"),
        pytest.param(mel_bands(DFT, BANDS * np.arange(1, 35)[:, None], LENGTH, STEP), id="bands that differ"),
        pytest.param(mel_bands(DFT, BANDS, LENGTH, STEP - 1), id="an odd hop"),
        pytest.param(mel_bands(DFT, BANDS, LENGTH + 1, STEP), id="an odd length"),
        pytest.param(mel_bands(DFT, BANDS, "length", STEP), id="an open length"),
        pytest.param(mel_bands(DFT, BANDS, LENGTH, STEP, exponent=3), id="another power"),
        pytest.param(mel_bands(DFT, BANDS, LENGTH, STEP, first_bias=[np.ones(34)]), id="a bias"),
        pytest.param(mel_bands(DFT, BANDS, LENGTH, STEP, second_bias=[np.ones(5)]), id="a bias of the bands"),
        pytest.param(mel_bands(DFT, BANDS, LENGTH, STEP, first={"pads": [2, 2]}), id="padding"),
        pytest.param(mel_bands(DFT, BANDS, LENGTH, STEP, first={"auto_pad": "SAME_UPPER"}), id="automatic padding"),
        pytest.param(mel_bands(DFT, BANDS, LENGTH, STEP, first={"dilations": [2]}), id="dilation"),
        pytest.param(mel_bands(DFT, BANDS, LENGTH, STEP, second={"pads": [1, 1]}), id="padding of the bands"),
        pytest.param(mel_bands(DFT, BANDS, LENGTH, STEP, second={"strides": [2]}), id="a stride of the bands"),
        pytest.param(mel_bands(DFT, BANDS[::2], LENGTH, STEP, second={"group": 2}), id="bands in groups"),
        pytest.param(mel_bands(DFT, BANDS, LENGTH, STEP, is_read_twice=True), id="a spectrum that others read"),
    ],
)
def test_nothing_else_is_rewritten(model: bytes) -> None:
    assert operators(rewritten(quarter_spectra, model))["Conv"] == 2


@pytest.mark.parametrize("front", [LogMel, LevelMel])
def test_the_front_ends_as_torch_exports_them_are_recognised(front: type[nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "front.onnx"
    audio = torch.zeros(1, 8000)
    torch.onnx.export(front().eval(), (audio,), path, input_names=["audio"], output_names=["frames"], dynamo=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(path)).SerializeToString()
    x = {"audio": np.random.default_rng(0).uniform(-0.5, 0.5, (1, 8000)).astype(np.float32)}
    assert operators(model)["Conv"] == 2
    assert "Conv" not in operators(rewritten(quarter_spectra, model))
    np.testing.assert_allclose(outputs(rewritten(quarter_spectra, model), x)[0], outputs(model, x)[0], atol=1e-4)
