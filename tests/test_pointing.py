"""The pointing game: where the thing is, and a model that looks at it wins."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from edgefuse.benchmarks.pointing import measure_pointing, thing_cells
from edgefuse.runtime.bundle import Bundle


def test_the_thing_is_what_has_not_the_colour_of_the_ground():
    pixels = np.full((32, 40, 3), (230, 230, 250), np.uint8)
    pixels[4:7, 9:12] = (0, 0, 255)  # rows 1 to 2 and columns 3 of cells of 3

    rows, columns = np.nonzero(thing_cells(pixels))

    assert thing_cells(pixels).shape == (11, 14)
    assert (set(rows), set(columns)) == ({1, 2}, {3})


def test_a_model_of_colour_points_at_the_coloured_square_and_a_flat_map_is_left_out(tiny, tmp_path: Path):
    lines = []
    for number, (row, column) in enumerate(((0, 0), (2, 5), (6, 6))):
        pixels = np.zeros((8, 8, 3), np.uint8)
        if number < 2:
            pixels[row : row + 2, column : column + 2, 2] = 255
        cv2.imwrite(str(tmp_path / f"{number}.png"), pixels)
        line = {"image": f"{number}.png", "audio": str(tiny.media / "red.wav"), "text": "red", "label": "red"}
        lines.append({**line, "split": "test"})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    found = measure_pointing(Bundle.open(tiny.bundle), tmp_path / "manifest.jsonl", 3)

    assert (found["maps"], found["flat"], found["hits"], found["chance"]) == (2, 1, 1.0, round(4 / 64, 3))
    assert found["heat"] > 0.4
