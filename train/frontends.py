"""Sensor units to features, as layers of the graph: pixels to normalised planes, PCM to log-mel and its cepstrum."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.functional import create_dct, melscale_fbanks

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0..1, as torchvision's weights expect
IMAGENET_STD = (0.229, 0.224, 0.225)

SAMPLE_RATE = 16_000  # Hz
WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
MELS = 80  # bands from 0 to 8 kHz
CEPSTRUM = 40  # coefficients of the cepstrum
POWER_FLOOR = 1e-6  # added before the log; the power of a full-scale sine is about 1e4 here
SILENCE = -10.0  # mean log power over the bands; a frame below it carries no speech (digital zero is -13.8)


class PixelNorm(nn.Module):
    """uint8 RGB [B, H, W, 3] in 0..255 to float32 [B, 3, H, W], normalised as ImageNet weights expect."""

    scale: Tensor  # [1, 3, 1, 1]
    shift: Tensor  # [1, 3, 1, 1]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", 1 / (255 * torch.tensor(IMAGENET_STD)).view(1, 3, 1, 1), persistent=False)
        shift = -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Cast first: TensorRT takes uint8 only as a graph input, and refuses to transpose it."""
        planes = image.float().permute(0, 3, 1, 2)  # [B, 3, H, W]
        return planes * self.scale + self.shift


class LogMel(nn.Module):
    """PCM [B, T] in [-1, 1] at 16 kHz to log-mel frames [B, F, MELS], each band's mean over the speech removed.

    A strided Conv1d with a Hann-windowed DFT basis, since neither STFT nor DFT nodes parse in TensorRT. The squares of
    real and imaginary parts go through a pointwise convolution, where every band stands twice: so the square joins the
    first convolution's kernel, and no frame is transposed. The mel bands are torchaudio's (Slaney scale and norm).
    Subtracting each band's mean over the sounding frames (cepstral mean normalisation, Atal 1974) cancels the loudness
    and the frequency response of a microphone or a room.
    """

    basis: Tensor  # [2 * bins, 1, WINDOW]
    bands: Tensor  # [MELS, 2 * bins, 1]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", dft_basis(WINDOW), persistent=False)
        bins = WINDOW // 2 + 1
        bands = melscale_fbanks(bins, 0.0, SAMPLE_RATE / 2, MELS, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
        bands = torch.cat([bands, bands]).T[:, :, None] * 100  # Slaney's norm is about 1/100 Hz
        self.register_buffer("bands", bands.contiguous(), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """Log power per band and frame, minus the band's mean over the frames that sound."""
        spectrum = F.conv1d(audio[:, None], self.basis, stride=HOP)  # [B, 2 * bins, F]
        mel = torch.log(F.conv1d(spectrum.square(), self.bands) + POWER_FLOOR)  # [B, MELS, F]
        sounds = (mel.mean(dim=1, keepdim=True) > SILENCE).to(mel.dtype)  # [B, 1, F]
        mean = (mel * sounds).sum(dim=2, keepdim=True) / (sounds.sum(dim=2, keepdim=True) + 1e-3)  # [B, MELS, 1]
        return ((mel - mean) * sounds).transpose(1, 2)


class Cepstrum(nn.Module):
    """Log-mel frames [B, F, MELS] to cepstral coefficients [B, F, CEPSTRUM] (MFCC, Davis & Mermelstein 1980).

    The first coefficients of an orthonormal DCT-II over the bands: the shape of the spectrum without the voice's pitch.
    """

    matrix: Tensor  # [MELS, CEPSTRUM]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", create_dct(CEPSTRUM, MELS, norm="ortho"), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """One product."""
        return frames @ self.matrix


def dft_basis(window: int, points: int | None = None) -> Tensor:
    """Rows cos and -sin of the DFT of `points` times a periodic Hann window in their middle: [points + 2, 1, points].

    `points` None is as many as the window has.
    """
    points = points or window
    time = torch.arange(points, dtype=torch.float64)
    angle = 2 * torch.pi * torch.outer(torch.arange(points // 2 + 1, dtype=torch.float64), time) / points
    hann = torch.hann_window(window, periodic=True, dtype=torch.float64)
    hann = F.pad(hann, ((points - window) // 2,) * 2)
    return (torch.cat([angle.cos(), -angle.sin()]) * hann)[:, None].float()
