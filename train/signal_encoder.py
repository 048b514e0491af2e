"""The signal's encoder: rows of numbers in the sensors' own units to tokens [B, N, D], by a temporal convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgefuse.runtime.bundle import SignalSpec
from edgefuse.runtime.errors import ManifestError, MediaError, RecipeError
from edgefuse.runtime.manifest import Example
from edgefuse.runtime.preprocess import prepared
from edgefuse.runtime.signals import Signals
from edgefuse.train.encoders import AttentionPool, apply_normed
from edgefuse.train.pretrained import load_encoder
from edgefuse.train.settings import SignalSettings

SIGNAL_ENCODERS = {  # layer n sees rows 2^n apart, so few layers see far back
    "tcn_nano": {"layers": 3, "dim": 48, "kernel": 3},
    "tcn_small": {"layers": 4, "dim": 96, "kernel": 3},
    "tcn_base": {"layers": 6, "dim": 192, "kernel": 3},
}


class SignalNorm(nn.Module):
    """Rows [B, S, F] in any units to mean 0 and deviation 1 over the training data, whose constants the graph keeps."""

    mean: Tensor  # [F]
    scale: Tensor  # [F]

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def forward(self, signal: Tensor) -> Tensor:
        """Subtract first: what is far from zero, as a position is, has its digits in the difference."""
        return (signal - self.mean) * self.scale


class TemporalLayer(nn.Module):
    """Features [B, D, S] to features: a dilated convolution over time, added to what it reads (TCN, Bai 2018).

    Not causal as theirs, since the whole window is there when it is read.
    """

    def __init__(self, dim: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.near = nn.Conv1d(dim, dim, kernel, padding=dilation * (kernel // 2), dilation=dilation)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, features: Tensor) -> Tensor:
        """One layer."""
        return features + F.relu(self.norm(self.near(features)))


class SignalEncoder(nn.Module):
    """float32 [B, S, F] to tokens [B, N, D]: one pooled by attention, or one per step."""

    def __init__(self, settings: SignalSettings) -> None:
        super().__init__()
        if settings.encoder not in SIGNAL_ENCODERS:
            names = ", ".join(SIGNAL_ENCODERS)
            raise RecipeError(f"signal.encoder {settings.encoder!r} is unknown; choose one of {names}")
        size = SIGNAL_ENCODERS[settings.encoder]
        self.dim = size["dim"]
        self.frontend = SignalNorm(len(settings.features))
        self.stem = nn.Conv1d(len(settings.features), self.dim, size["kernel"], padding=size["kernel"] // 2)
        self.layers = nn.Sequential(*(TemporalLayer(self.dim, size["kernel"], 2**n) for n in range(size["layers"])))
        self.norm = nn.LayerNorm(self.dim)
        self.pool = AttentionPool(self.dim) if settings.tokens == "pooled" else nn.Identity()
        self.count = 1 if settings.tokens == "pooled" else settings.steps
        if settings.weights:
            load_encoder(self, "signal", settings.weights)

    def forward(self, signal: Tensor) -> Tensor:
        """Tokens of a batch of signals."""
        planes = self.frontend(signal).transpose(1, 2)  # [B, F, S]
        features = apply_normed(self.layers, self.stem(planes), planes.shape[0] * planes.shape[2])  # [B, D, S]
        return self.pool(self.norm(features.transpose(1, 2)))  # [B, N, D]


def settle(encoder: nn.Module, statistics: Mapping[str, Sequence[float]]) -> None:
    """Give a SignalEncoder the constants of `signal_statistics`; a feature that never changes keeps its scale."""
    assert isinstance(encoder, SignalEncoder)
    encoder.frontend.mean.copy_(torch.tensor(statistics["mean"]))
    encoder.frontend.scale.copy_(torch.tensor([1 / d if d > 0 else 1.0 for d in statistics["deviation"]]))


def signal_statistics(spec: SignalSpec, examples: Sequence[Example]) -> dict[str, list[float]]:
    """Mean and standard deviation of each feature over the distinct signals of `examples`, as the encoder gets them.

    Raises:
        ManifestError: a signal cannot be used; the message starts with the line.
    """
    sensor = Signals(spec)
    total = square = torch.zeros(len(spec.features), dtype=torch.float64)
    origin, count = None, 0
    for path, where in {e.signal: e.where for e in reversed(examples) if e.signal is not None}.items():
        try:
            rows = torch.from_numpy(prepared(sensor, sensor.decode(path))["signal"][0]).double()  # [S, F]
        except MediaError as error:
            raise ManifestError(f"{where}: {error}") from None
        origin = rows[0] if origin is None else origin  # squares of what is far from zero would lose the differences
        total, square = total + (rows - origin).sum(dim=0), square + (rows - origin).square().sum(dim=0)
        count += len(rows)
    assert origin is not None
    mean = total / count
    deviation = (square / count - mean.square()).clamp_min(0).sqrt()
    return {"mean": (origin + mean).tolist(), "deviation": deviation.tolist()}
