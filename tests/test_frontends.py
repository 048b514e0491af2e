"""The front ends against torchvision, torchaudio and SciPy: pixels to normalised planes, PCM to log-mel."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
from torchaudio.transforms import MFCC, MelSpectrogram
from torchvision.transforms import v2

from edgefuse.train.frontends import (
    CEPSTRUM,
    HOP,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MELS,
    POWER_FLOOR,
    SAMPLE_RATE,
    SILENCE,
    WINDOW,
    Cepstrum,
    LogMel,
    PixelNorm,
    dft_basis,
)


def speech_like(sounds: int = 3, seconds: float = 0.4, seed: int = 0) -> torch.Tensor:
    """Noise whose loudness comes and goes as in speech, [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(sounds, round(seconds * SAMPLE_RATE), generator=generator)
    time = torch.arange(noise.shape[1]) / SAMPLE_RATE
    return 0.1 * noise * (1.2 + torch.sin(2 * torch.pi * 4 * time))


def test_pixels_are_normalised_as_torchvision_does() -> None:
    image = torch.randint(0, 256, (2, 20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    planes = v2.functional.to_dtype(image.permute(0, 3, 1, 2), torch.float32, scale=True)
    expected = v2.functional.normalize(planes, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(PixelNorm()(image), expected, atol=2e-6, rtol=1e-6)


def test_the_dft_basis_is_the_fft_of_a_hann_window() -> None:
    frame = np.random.default_rng(0).standard_normal(WINDOW)
    expected = np.fft.rfft(frame * scipy.signal.get_window("hann", WINDOW, fftbins=True))
    real, imaginary = (dft_basis(WINDOW)[:, 0].double().numpy() @ frame).reshape(2, -1)
    np.testing.assert_allclose(real + 1j * imaginary, expected, atol=1e-5)


def test_the_strided_convolution_is_scipys_stft() -> None:
    audio = speech_like(1)
    window = scipy.signal.get_window("hann", WINDOW)
    _, _, spectrum = scipy.signal.stft(
        audio[0].numpy(), SAMPLE_RATE, window, WINDOW, WINDOW - HOP, boundary=None, padded=False, scaling="spectrum"
    )
    ours = torch.nn.functional.conv1d(audio[:, None], dft_basis(WINDOW), stride=HOP)[0]  # [2 * bins, F]
    real, imaginary = ours.numpy().reshape(2, WINDOW // 2 + 1, -1)
    np.testing.assert_allclose(real + 1j * imaginary, spectrum * window.sum(), atol=2e-4)  # SciPy divides by the sum


def test_log_mel_is_torchaudios_minus_the_mean_of_the_sounding_frames() -> None:
    audio = speech_like()
    audio[1, 3000:] = 0.0  # half of this sound is silence
    oracle = MelSpectrogram(
        SAMPLE_RATE, WINDOW, WINDOW, HOP, n_mels=MELS, power=2.0, center=False, norm="slaney", mel_scale="slaney"
    )
    mel = (100 * oracle(audio) + POWER_FLOOR).log().transpose(1, 2).double().numpy()  # [B, F, MELS]
    sounds = mel.mean(axis=2) > SILENCE  # [B, F]
    assert 0 < sounds[1].sum() < sounds[0].sum() == mel.shape[1]
    means = np.stack([frames[there].mean(axis=0) for frames, there in zip(mel, sounds, strict=True)])
    expected = (mel - means[:, None]) * sounds[:, :, None]
    np.testing.assert_allclose(LogMel()(audio).numpy(), expected, atol=2e-3)


def test_the_cepstrum_is_scipys_orthonormal_dct() -> None:
    frames = torch.randn(2, 5, MELS, generator=torch.Generator().manual_seed(0))
    expected = scipy.fft.dct(frames.double().numpy(), type=2, norm="ortho")[..., :CEPSTRUM]
    np.testing.assert_allclose(Cepstrum()(frames).numpy(), expected, atol=1e-5)


def test_the_cepstrum_of_log_mel_is_torchaudios_mfcc_minus_its_mean() -> None:
    audio = speech_like()  # no frame of it is silent
    bands = {"n_fft": WINDOW, "hop_length": HOP, "n_mels": MELS, "center": False, "norm": "slaney"}
    oracle = MFCC(SAMPLE_RATE, CEPSTRUM, log_mels=True, melkwargs={**bands, "mel_scale": "slaney"})
    expected = oracle(10 * audio).transpose(1, 2)  # our powers are 100 times theirs; both add 1e-6 before the log
    expected = expected - expected.mean(dim=1, keepdim=True)
    torch.testing.assert_close(Cepstrum()(LogMel()(audio)), expected, atol=1e-2, rtol=1e-3)


def test_loudness_does_not_matter_above_the_floor() -> None:
    audio = speech_like()
    torch.testing.assert_close(LogMel()(audio), LogMel()(audio * 0.25), atol=0.1, rtol=0)


@pytest.mark.parametrize("level", [0.0, 1e-7])
def test_silence_is_zero(level: float) -> None:
    assert not LogMel()(torch.full((2, SAMPLE_RATE // 2), level)).any()


def test_padding_with_silence_changes_nothing_but_its_own_frames() -> None:
    audio = speech_like(1)
    frames = LogMel()(audio)
    padded = LogMel()(torch.nn.functional.pad(audio, (0, SAMPLE_RATE // 2)))
    whole = frames.shape[1]
    edge = WINDOW // HOP + 1  # frames that reach from the sound into the silence shift the mean a little
    torch.testing.assert_close(padded[:, :whole], frames, atol=0.3, rtol=0)
    assert not padded[:, whole + edge :].any()


def test_the_loudest_sound_stays_finite() -> None:
    square = torch.sign(torch.sin(torch.arange(SAMPLE_RATE) * 0.3))[None]
    assert LogMel()(square).isfinite().all()


def test_the_front_ends_have_nothing_to_learn_or_to_save() -> None:
    for layer in (PixelNorm(), LogMel(), Cepstrum()):
        assert not list(layer.parameters())
        assert not layer.state_dict()
