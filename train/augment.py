"""What training does to features so that the model survives another voice, room or camera; absent from the graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCAL_TRACT = 0.2  # bands are stretched by up to this share (VTLP, Jaitly & Hinton 2013)
TEMPO = 0.2  # frames are stretched by up to this share
BAND_MASKS, BAND_SHARE = 2, 0.2  # SpecAugment (Park 2019): masks, and most of the bands that one hides
FRAME_MASKS, FRAME_WIDTH = 2, 16  # most frames of one mask
TILT = 1.0  # log units that a random spectral tilt and bow add at the outer bands
NOISE = 1.0  # most standard deviations of noise on the log-mel values


class SpeechAugment(nn.Module):
    """Warps, tilts, masks and adds noise to log-mel frames [B, F, MELS] while training; does nothing else."""

    def forward(self, frames: Tensor) -> Tensor:
        """Every sound of the batch gets its own draw from torch's generator."""
        if not self.training:
            return frames
        frames = _warp(frames)
        frames = _mask(frames, axis=2, count=BAND_MASKS, width=BAND_SHARE * frames.shape[2])
        frames = _mask(frames, axis=1, count=FRAME_MASKS, width=FRAME_WIDTH)
        return _tilt_and_noise(frames)


def _uniform(low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape)


def _warp(frames: Tensor) -> Tensor:
    """Stretch bands and frames by a factor each, and shift the sound within its silence."""
    batch, count, bands = frames.shape
    tempo, tract = _uniform(1 - TEMPO, 1 + TEMPO, batch, 1), _uniform(1 - VOCAL_TRACT, 1 + VOCAL_TRACT, batch, 1)
    delay = _uniform(0, 0.1, batch, 1)
    time = (torch.linspace(0, 1, count) * tempo - delay) * 2 - 1  # [B, F], -1..1 over the sound
    band = (torch.linspace(0, 1, bands) * tract) * 2 - 1  # [B, MELS]
    grid = torch.stack(torch.broadcast_tensors(band[:, None, :], time[:, :, None]), dim=-1)  # [B, F, MELS, 2]
    return F.grid_sample(frames[:, None], grid, align_corners=True, padding_mode="zeros")[:, 0]


def _mask(frames: Tensor, axis: int, count: int, width: float) -> Tensor:
    batch, size = frames.shape[0], frames.shape[axis]
    place = torch.arange(size)
    for _ in range(count):
        length, start = _uniform(0, width, batch, 1), _uniform(0, 1, batch, 1)
        begin = start * (size - length)
        hidden = (place >= begin) & (place < begin + length)  # [B, size]
        frames = frames.masked_fill(hidden[:, :, None] if axis == 1 else hidden[:, None, :], 0.0)
    return frames


def _tilt_and_noise(frames: Tensor) -> Tensor:
    batch, _, bands = frames.shape
    across = torch.linspace(-1, 1, bands)
    tilt = _uniform(-TILT, TILT, batch, 1) * across + _uniform(-TILT, TILT, batch, 1) * (across**2 - 1 / 3)  # [B, MELS]
    sounds = (frames.abs().amax(dim=2, keepdim=True) > 0).to(frames.dtype)  # silence stays silent
    noise = torch.randn_like(frames) * _uniform(0, NOISE, batch, 1, 1)
    return frames + (tilt[:, None] + noise) * sounds
