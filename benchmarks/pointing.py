"""Whether the map over a picture points at the thing in it: `python benchmarks/pointing.py runs/demo/bundle [LINES]`.

For data whose pictures hold one thing on a plain ground, as easy-VQA's. The pointing game (Zhang et al. 2018, Top-down
neural attention by excitation backprop): a hit is a map whose largest cell touches the thing, and chance is the share
of all cells that do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.benchmarks.loop_readings import examples_of
from edgefuse.runtime.attribution import Moment, image_map, picture_stride
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import SENSOR_TENSORS, Bundle
from edgefuse.runtime.explanation import is_flat
from edgefuse.runtime.media import Pixels
from edgefuse.runtime.predictor import Predictor

GROUND = 40  # of 3 * 255: a pixel that differs less from the ground is ground


def measure_pointing(bundle: Bundle, manifest: Path, lines: int) -> dict[str, Any]:
    """Explain the answers to `lines` test lines by picture and text.

    Returns:
        {maps, flat, hits, chance, heat}: maps that are not flat and those left out because they are; the share of hits
        and of cells on the thing; the share of all that speaks for the answer which lies on the thing.
    """
    shares: dict[str, list[float]] = {"hits": [], "chance": [], "heat": []}
    flat = 0
    with OnnxBackend(bundle) as backend:
        predictor = Predictor(bundle, backend)
        prepare, decode = predictor.preprocessor.prepare, predictor.preprocessor.decode
        for example in examples_of(bundle, manifest, lines):
            sensors = {"image": example.image, "text": example.text}
            inputs = {m: prepare(m, decode(m, value)) for m, value in sensors.items()}
            falls = image_map(Moment(predictor, inputs))
            if is_flat(falls):
                flat += 1
                continue
            thing = thing_cells(inputs["image"][SENSOR_TENSORS["image"][0]][0])
            speaks_for = np.maximum(falls, 0)
            shares["hits"].append(float(thing.flat[np.abs(falls).argmax()]))
            shares["chance"].append(float(thing.mean()))
            shares["heat"].append(float(speaks_for[thing].sum() / max(speaks_for.sum(), 1e-9)))
    return {
        "maps": len(shares["hits"]),
        "flat": flat,
        **{name: round(float(np.mean(each)), 3) for name, each in shares.items()},
    }


def thing_cells(pixels: Pixels) -> NDArray[np.bool_]:
    """Which cells of a map over `pixels` [H, W, 3] touch the thing: what has not the commonest colour."""
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    apart = np.abs(pixels.astype(int) - colours[counts.argmax()]).sum(axis=2) > GROUND  # [H, W]
    stride = picture_stride(*apart.shape)
    rows, columns = (range(0, size, stride) for size in apart.shape)
    return np.array([[apart[y : y + stride, x : x + stride].any() for x in columns] for y in rows])


if __name__ == "__main__":
    opened = Bundle.open(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    print(json.dumps(measure_pointing(opened, Path(opened.info.lineage["manifest"]), count)))
