"""Augmentation: absent outside of training, its warp is an interpolation, its masks hide what they may."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from edgefuse.train import augment
from edgefuse.train.augment import BAND_MASKS, BAND_SHARE, FRAME_MASKS, FRAME_WIDTH, TILT, SpeechAugment


def frames_like_speech(sounds: int = 4, count: int = 100, bands: int = 80) -> Tensor:
    """Smooth values of about one, never zero, [B, F, MELS]."""
    time, band = torch.linspace(0, 6, count)[:, None], torch.linspace(0, 4, bands)
    return (torch.sin(time + band) + 2).expand(sounds, -1, -1).clone()


def always(*values: float) -> Callable[..., Tensor]:
    """A stand-in for the random draws: these values in turn."""
    waiting = list(values)
    return lambda low, high, *shape: torch.full(shape, waiting.pop(0))


def test_nothing_happens_outside_of_training() -> None:
    frames = frames_like_speech()
    assert SpeechAugment().eval()(frames) is frames


def test_every_sound_gets_its_own_draw_and_a_seed_repeats_it() -> None:
    frames = frames_like_speech(2)
    torch.manual_seed(5)
    first = SpeechAugment()(frames)
    torch.manual_seed(5)
    assert torch.equal(SpeechAugment()(frames), first)
    assert first.shape == frames.shape
    assert not torch.allclose(first[0], first[1])
    assert first.isfinite().all()


def test_silence_stays_silent() -> None:
    frames = frames_like_speech()
    frames[:, 60:] = 0.0
    torch.manual_seed(0)
    changed = SpeechAugment()(frames)
    latest = 60 / (1 - augment.TEMPO) + 0.1 * 100 / (1 - augment.TEMPO)  # slowest tempo, longest delay
    assert not SpeechAugment()(torch.zeros(2, 50, 80)).any()
    assert not changed[:, int(latest) + 1 :].any()


@pytest.mark.parametrize(("tempo", "tract", "delay"), [(1.0, 1.0, 0.0), (0.8, 1.2, 0.0), (1.2, 0.9, 0.1)])
def test_the_warp_is_a_linear_interpolation(
    monkeypatch: pytest.MonkeyPatch, tempo: float, tract: float, delay: float
) -> None:
    frames = frames_like_speech(1)
    monkeypatch.setattr(augment, "_uniform", always(tempo, tract, delay))
    warped = augment._warp(frames)[0].numpy()
    time = (np.linspace(0, 1, 100) * tempo - delay) * 99  # where each frame is read
    band = np.linspace(0, 1, 80) * tract * 79
    stretched = np.stack([np.interp(band, np.arange(80), row, right=np.nan) for row in frames[0].numpy()])
    expected = np.stack([np.interp(time, np.arange(100), row, np.nan, np.nan) for row in stretched.T], axis=1)
    inside = np.isfinite(expected)
    assert inside.mean() > 0.7
    np.testing.assert_allclose(warped[inside], expected[inside], atol=2e-4)
    beyond = (time < -1) | (time > 100)
    assert not warped[beyond].any()


@pytest.mark.parametrize(
    ("axis", "count", "width"), [(2, BAND_MASKS, int(80 * BAND_SHARE)), (1, FRAME_MASKS, FRAME_WIDTH)]
)
def test_a_mask_hides_whole_bands_or_frames_and_no_more_than_its_width(axis: int, count: int, width: int) -> None:
    frames = frames_like_speech(200)
    torch.manual_seed(0)
    hidden = augment._mask(frames, axis, count, width) == 0  # [B, F, MELS]
    lines = hidden.all(dim=3 - axis)  # [B, size]
    assert torch.equal(lines, hidden.any(dim=3 - axis))
    sizes = lines.sum(dim=1)
    assert sizes.max() <= count * (width + 1)
    assert count * width / 4 < sizes.float().mean() < count * width / 2  # half of the width each, less the overlaps
    assert lines[:, 1:].any(dim=0).all()


def test_the_tilt_is_a_line_and_a_bow_over_the_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "_uniform", always(TILT, -TILT, 0.0))  # slope, bow, no noise
    frames = frames_like_speech(1)
    added = (augment._tilt_and_noise(frames) - frames)[0]
    across = np.linspace(-1, 1, 80)
    np.testing.assert_allclose(added[0].numpy(), TILT * (across - across**2 + 1 / 3), atol=1e-5)
    torch.testing.assert_close(added, added[:1].expand_as(added), atol=1e-5, rtol=0)
