"""What generated pictures share: a camera's exposure and noise, and a file that is written once."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.files import write_atomic

Pixels = NDArray[np.uint8]  # [H, W, 3] RGB
Color = tuple[int, int, int]  # RGB

EXPOSURE = (0.6, 1.15)  # factor on brightness, least and most
NOISE = (0.0, 12.0)  # standard deviation in steps of 255


def as_camera(picture: Pixels, random: np.random.Generator) -> Pixels:
    """`picture` under a drawn exposure and with a drawn amount of noise, so that no brightness gives an answer away."""
    exposed = picture * random.uniform(*EXPOSURE)
    noise = random.normal(0.0, random.uniform(*NOISE), picture.shape)
    return np.rint((exposed + noise).clip(0, 255)).astype(np.uint8)  # [H, W, 3]


def tone(random: np.random.Generator, low: int, high: int) -> Color:
    """A colour with each channel drawn from low..high."""
    red, green, blue = (int(value) for value in random.integers(low, high, 3, endpoint=True))
    return red, green, blue


def save_once(path: Path, picture: Pixels) -> None:
    """Write a PNG, whole or not at all, unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes())
