"""What generated pictures share: exposure and noise within what is said, and files that are written once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgefuse.runtime.media import decode_image
from edgefuse.train.pictures import EXPOSURE, NOISE, as_camera, save_once, tone


def test_exposure_and_noise_are_drawn_from_what_is_said() -> None:
    grey = np.full((64, 64, 3), 100, np.uint8)
    shots = [as_camera(grey, np.random.default_rng(seed)) for seed in range(200)]
    means, spreads = [shot.mean() for shot in shots], [shot.std() for shot in shots]
    assert 100 * EXPOSURE[0] - 1 < min(means) < 65
    assert 110 < max(means) < 100 * EXPOSURE[1] + 1
    assert min(spreads) < 1
    assert NOISE[1] - 1 < max(spreads) < NOISE[1] + 0.5


def test_a_tone_stays_in_its_range() -> None:
    drawn = np.array([tone(np.random.default_rng(seed), 10, 14) for seed in range(100)])
    assert (drawn.min(), drawn.max()) == (10, 14)


def test_a_picture_is_written_once_in_its_colours(tmp_path: Path) -> None:
    path, red = tmp_path / "new" / "a.png", np.full((2, 2, 3), (200, 10, 20), np.uint8)
    save_once(path, red)
    save_once(path, 255 - red)
    np.testing.assert_array_equal(decode_image(path.read_bytes(), "a.png"), red)
