"""The fused model: one encoder per modality and a head; both are what export.py writes as parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgefuse.runtime.bundle import SENSOR_TENSORS, AudioSpec, ImageSpec, SignalSpec, TextSpec
from edgefuse.train.encoders import AudioEncoder, ImageEncoder, TextEncoder
from edgefuse.train.frontends import SAMPLE_RATE
from edgefuse.train.fusion import FUSIONS
from edgefuse.train.recipe import FusionSettings, Recipe
from edgefuse.train.signal_encoder import SignalEncoder


def audio_samples(recipe: Recipe) -> int:
    """Length of the `audio` tensor in samples."""
    assert recipe.audio is not None
    return round(recipe.audio.seconds * SAMPLE_RATE)


def new_encoders(recipe: Recipe, vocabulary: int, text_config: dict[str, Any] | None = None) -> nn.ModuleDict:
    """The encoder of each modality, in the order of the `presence` columns.

    Args:
        recipe: sizes and pretrained weights.
        vocabulary: the number of WordPiece ids (0 without text).
        text_config: builds `text.encoder` without its pretrained weights, see TextEncoder.
    """
    encoders: dict[str, nn.Module] = {}
    if recipe.image:
        encoders["image"] = ImageEncoder(recipe.image)
    if recipe.audio:
        encoders["audio"] = AudioEncoder(recipe.audio, audio_samples(recipe))
    if recipe.text:
        encoders["text"] = TextEncoder(recipe.text, vocabulary, text_config)
    if recipe.signal:
        encoders["signal"] = SignalEncoder(recipe.signal)
    return nn.ModuleDict(encoders)


def specs_of(recipe: Recipe) -> dict[str, Any]:
    """Modality -> what its encoder takes, as a bundle's contract says it."""
    image, audio, text, signal = recipe.image, recipe.audio, recipe.text, recipe.signal
    specs = {
        "image": image and ImageSpec(height=image.height, width=image.width),
        "audio": audio and AudioSpec(sample_rate=SAMPLE_RATE, samples=audio_samples(recipe)),
        "text": text and TextSpec(max_tokens=text.max_tokens),
        "signal": signal and SignalSpec(steps=signal.steps, features=signal.features, rate_hz=signal.rate_hz),
    }
    return {modality: specs[modality] for modality in recipe.modalities}


def new_projections(dims: Mapping[str, int], shared: int) -> nn.ModuleDict:
    """For each modality, tokens [..., D_m] to the space [..., D] where modalities meet."""
    return nn.ModuleDict({m: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, shared)) for m, dim in dims.items()})


class Head(nn.Module):
    """Tokens of each modality and presence [B, M] to logits [B, C] and weights [B, M].

    A missing modality (presence 0) is replaced by a learned placeholder, whatever its tokens hold.
    """

    def __init__(self, dims: Mapping[str, int], labels: int, settings: FusionSettings) -> None:
        super().__init__()
        self.project = new_projections(dims, settings.dim)
        self.placeholder = nn.ParameterDict({m: nn.Parameter(torch.zeros(settings.dim)) for m in dims})
        self.fusion = FUSIONS[settings.kind](len(dims), settings.dim)
        self.classify = nn.Sequential(
            nn.LayerNorm(settings.dim),
            nn.Linear(settings.dim, settings.hidden),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, settings.hidden),
            nn.GELU(),
            nn.Linear(settings.hidden, labels),
        )

    def project_tokens(self, modality: str, tokens: Tensor) -> Tensor:
        """Tokens [B, N, D_m] in the space where modalities meet, [B, N, D]."""
        return self.project[modality](tokens)

    def forward(self, tokens: Mapping[str, Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse tokens {modality: [B, N, D_m]}; `tokens` has every modality, in the order of `presence`."""
        projected = {m: self.project_tokens(m, x) for m, x in tokens.items()}
        return self.fuse(projected, presence)

    def fuse(self, projected: Mapping[str, Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse projected tokens {modality: [B, N, D]}."""
        fused, weights = self.embed(projected, presence)
        return self.classify(fused), weights

    def embed(self, projected: Mapping[str, Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse projected tokens {modality: [B, N, D]} to what the classifier reads [B, D], and weights [B, M]."""
        there = presence > 0.5  # [B, M]
        filled = [
            torch.where(there[:, i, None, None], x, self.placeholder[m]) for i, (m, x) in enumerate(projected.items())
        ]
        return self.fusion(filled, presence)


class FusedModel(nn.Module):
    """Encoders and head of a recipe."""

    def __init__(self, recipe: Recipe, labels: int, vocabulary: int, text_config: dict[str, Any] | None = None) -> None:
        """`labels` is the number of classes; the others are those of `new_encoders`."""
        super().__init__()
        self.encoders = new_encoders(recipe, vocabulary, text_config)
        encoders: dict[str, Any] = dict(self.encoders.items())
        self.counts: dict[str, int] = {m: encoder.count for m, encoder in encoders.items()}  # tokens N
        self.dims: dict[str, int] = {m: encoder.dim for m, encoder in encoders.items()}  # their width D_m
        self.head = Head(self.dims, labels, recipe.fusion)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities in the order of the `presence` columns."""
        return tuple(self.encoders)

    def encode(self, modality: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Tokens [U, N, D_m] of one modality's sensor tensors."""
        return self.encoders[modality](*(inputs[name] for name in SENSOR_TENSORS[modality]))

    def forward(self, inputs: Mapping[str, Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """All sensor tensors, batch first, and presence [B, M] to logits [B, C] and weights [B, M]."""
        return self.head({m: self.encode(m, inputs) for m in self.modalities}, presence)
