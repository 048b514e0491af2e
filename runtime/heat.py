"""A map of an explanation as colour: laid over a picture in grey, warm for the label and cool against it."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.attribution import picture_stride
from edgefuse.runtime.explanation import Map, is_flat, strength
from edgefuse.runtime.media import Pcm, Pixels

FOR, AGAINST = (214, 92, 0), (0, 112, 180)  # RGB; apart in every common colour blindness, and in grey by the outline
SIDE_PX = 480  # of a picture as shown: the longer one
MOST = 0.85  # opacity of full colour
OUTLINED = 0.5  # of the largest value: what lies above it has a line around it


def shown(pixels: Pixels) -> Pixels:
    """A picture [H, W, 3] at the size it is shown in: area average when shrinking, whole pixels when enlarging."""
    scale = SIDE_PX / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=way), np.uint8)


def heat_over(pixels: Pixels, falls: Map, height: int, width: int) -> Pixels:
    """`falls` [rows, columns] as colour over `pixels` in grey, [H, W, 3]; no colour where the map is flat.

    Args:
        pixels: a picture as shown.
        falls: a map over the picture as the model takes it.
        height, width: the size that the model takes.
    """
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if is_flat(falls):
        return np.asarray(grey, np.uint8)
    heat = _stretched(strength(falls), height, width, pixels.shape[1::-1])  # [H, W] in -1..1
    opacity = MOST * np.abs(heat)[:, :, None]
    colour = np.where(heat[:, :, None] > 0, np.array(FOR), np.array(AGAINST))
    heated = np.ascontiguousarray(np.rint(opacity * colour + (1 - opacity) * grey), np.uint8)
    for sign, line in ((1, FOR), (-1, AGAINST)):
        inside = np.uint8(sign * heat > OUTLINED * np.abs(heat).max())
        around, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(heated, around, -1, (255, 255, 255), 5, cv2.LINE_AA)
        cv2.drawContours(heated, around, -1, line, 2, cv2.LINE_AA)
    return heated


def envelope(pcm: Pcm, columns: int) -> NDArray[np.float64]:
    """The least and the largest sample of each column of a drawn sound, [columns, 2] in -1..1."""
    edges = np.linspace(0, len(pcm), columns + 1).astype(int)
    pieces = [pcm[start : max(stop, start + 1)] for start, stop in pairwise(edges)]
    return np.array([[piece.min(), piece.max()] for piece in pieces], np.float64)


def _stretched(cells: Map, height: int, width: int, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Cells, the last of which may reach over the edge of the picture, at the `size` (width, height) of a picture."""
    stride = picture_stride(height, width)
    rows, columns = cells.shape
    whole = cv2.resize(cells.astype(np.float32), (columns * stride, rows * stride), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(whole[:height, :width], size, interpolation=cv2.INTER_LINEAR), np.float32)
