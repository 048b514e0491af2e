"""Driving, generated: a street seen by a camera, and the radar's and the car's own numbers of the last two seconds.

Everything is drawn by this file: no street, car or radar is real, and no car may be driven by what is learnt from it.
The picture shows where the thing ahead is: beside the lane, or on its left, middle or right. The radar tells how soon
it is reached, but not where it is: it stands at any size, in fog, at night. What is to be done follows from both:

                    far or not closing    2.2 to 4 s away    1.5 s and less
    beside the lane        clear             clear              clear
    left of the lane       clear          steer_right           stop
    middle                 clear             brake              stop
    right of the lane      clear          steer_left            stop

so that either sensor alone is right 6 times in 10 at best (see `best_alone`).
"""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from edgefuse.runtime.files import write_atomic

MANIFEST = "manifest.jsonl"
LINES = {"train": 4000, "val": 500, "test": 1000}

PLACES = {"beside": 0.16, "left": 0.28, "middle": 0.28, "right": 0.28}  # how often
URGENCIES = {"far": 0.2, "soon": 0.5, "now": 0.3}
DODGE = {"left": "steer_right", "middle": "brake", "right": "steer_left"}
REACHED_S = {"soon": (2.2, 4.0), "now": (0.7, 1.5)}  # distance / closing speed; what is far takes 7 s or more

FEATURES = ("distance_m", "closing_mps", "speed_mps", "yaw_rad_s")
STEPS, RATE_HZ = 20, 10.0
NOISE = (0.5, 0.4, 0.1, 0.002)  # standard deviation of each feature

HEIGHT, WIDTH = 64, 96  # pixels
FOCAL, HORIZON, CAMERA_M = 120.0, 26, 1.3  # pixels, row, height above the road
LANE_M = 1.8  # from its middle to its edge
OFFSET_M = {"left": (-1.3, -0.8), "middle": (-0.2, 0.2), "right": (0.8, 1.3), "beside": (2.8, 4.5)}
THINGS_M = ((0.6, 1.7), (1.0, 1.2), (1.7, 1.5), (2.2, 2.6))  # width and height: a walker, a barrier, a car, a van
SKY, GRASS, ASPHALT, MARKS = (150, 180, 215), (80, 120, 60), (95, 95, 95), 235  # RGB
NEAREST_M, FURTHEST_M = 4.0, 25.0


@dataclass(frozen=True)
class Scene:
    """One moment on the road."""

    place: str
    urgency: str
    offset_m: float  # of the thing from the middle of the lane, right is positive
    distance_m: float
    closing_mps: float  # negative where it drives away
    speed_mps: float  # of the own car
    yaw_rad_s: float  # right is positive; over the speed it is the curvature of the lane

    @property
    def label(self) -> str:
        """What is to be done."""
        if self.place == "beside" or self.urgency == "far":
            return "clear"
        return "stop" if self.urgency == "now" else DODGE[self.place]


def driving(out: Path) -> dict[str, Any]:
    """Write the generated corpus to `out`: images/, signals/ and manifest.jsonl; all of it follows from the seeds.

    Returns:
        The manifest's path, the number of lines, and how often each sensor alone could be right on the test lines.
    """
    scenes: dict[str, list[Scene]] = {}
    rows: list[dict[str, str]] = []
    for number, (split, count) in enumerate(LINES.items()):
        scenes[split] = []
        for line in track(range(count), f"{split} scenes", console=Console(stderr=True)):
            random = np.random.default_rng((number, line))
            scene = draw_scene(random)
            scenes[split].append(scene)
            image, signal = f"images/{split}/{line:05d}.png", f"signals/{split}/{line:05d}.csv"
            _write(out / image, cv2.imencode(".png", paint(scene, random)[:, :, ::-1])[1].tobytes())
            _write(out / signal, as_csv(measure(scene, random)))
            row = {"image": image, "signal": signal, "label": scene.label, "split": split}
            rows.append({**row, "answer_type": scene.urgency})
    _write(out / MANIFEST, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return {"manifests": [str(out / MANIFEST)], "lines": len(rows), "best_alone": best_alone(scenes["test"])}


def draw_scene(random: Generator) -> Scene:
    """Place and urgency are drawn independently, so that neither tells of the other."""
    place = str(random.choice(list(PLACES), p=list(PLACES.values())))
    urgency = str(random.choice(list(URGENCIES), p=list(URGENCIES.values())))
    offset_m = float(random.uniform(*OFFSET_M[place])) * (random.choice((-1, 1)) if place == "beside" else 1)
    distance_m = float(random.uniform(NEAREST_M, FURTHEST_M))
    if urgency == "far":
        closing = float(random.uniform(-6.0, distance_m / 7))
    else:
        closing = distance_m / float(random.uniform(*REACHED_S[urgency]))
    speed = max(closing, 0.0) + float(random.uniform(2.0, 12.0))
    yaw = float(random.uniform(-0.004, 0.004)) * speed  # bends of 250 m and more
    return Scene(place, urgency, offset_m, distance_m, closing, speed, yaw)


def measure(scene: Scene, random: Generator) -> NDArray[np.float64]:
    """The last STEPS rows of FEATURES up to the moment of the picture [S, F], with the sensors' noise."""
    ago_s = np.arange(STEPS - 1, -1, -1) / RATE_HZ
    rows = np.empty((STEPS, len(FEATURES)))
    rows[:, 0] = scene.distance_m + scene.closing_mps * ago_s
    rows[:, 1:] = scene.closing_mps, scene.speed_mps, scene.yaw_rad_s
    return rows + random.normal(0.0, NOISE, rows.shape)


def paint(scene: Scene, random: Generator) -> NDArray[np.uint8]:
    """The street, uint8 RGB [HEIGHT, WIDTH, 3], by a pinhole camera: what is as far away is as small and as foggy."""
    far_m = np.full(HEIGHT, 1e3)
    far_m[HORIZON + 1 :] = FOCAL * CAMERA_M / np.arange(1, HEIGHT - HORIZON)  # [H], of the road in each row
    sky, grass, asphalt = (np.array(tone) + random.normal(0, 12) for tone in (SKY, GRASS, ASPHALT))
    canvas = np.empty((HEIGHT, WIDTH, 3))
    canvas[: HORIZON + 1] = sky
    across_m = (np.arange(WIDTH) - WIDTH / 2) * far_m[:, None] / FOCAL - _bend_m(scene, far_m)[:, None]  # [H, W]
    road = np.where((np.abs(across_m) < 3 * LANE_M)[:, :, None], asphalt, grass)
    canvas[HORIZON + 1 :] = road[HORIZON + 1 :]
    dashes = (far_m[:, None] + random.uniform(0, 6)) % 6 < 4
    marked = (np.abs(np.abs(across_m) - LANE_M) < np.maximum(0.08, far_m / FOCAL / 2)[:, None]) & dashes
    canvas[marked & (np.arange(HEIGHT) > HORIZON)[:, None]] = MARKS
    haze = np.exp(-far_m * random.choice((0.0, 0.01, 0.03)))[:, None, None]  # Koschmieder 1924: contrast over distance
    canvas = canvas * haze + sky * (1 - haze)
    _paint_thing(canvas, scene, float(np.interp(scene.distance_m, far_m[::-1], haze[::-1, 0, 0])), sky, random)
    light = random.uniform(0.25, 1.1)
    noisy = canvas * light + random.normal(0.0, random.uniform(2, 10), canvas.shape)
    return np.rint(noisy.clip(0, 255)).astype(np.uint8)


def as_csv(rows: NDArray[np.float64]) -> bytes:
    """Rows [S, F] as a table that names its columns."""
    file = io.StringIO()
    np.savetxt(file, rows, "%.4f", delimiter=",", header=",".join(FEATURES), comments="")
    return file.getvalue().encode()


def best_alone(scenes: list[Scene]) -> dict[str, float]:
    """Share of `scenes` that who knows only the place (the picture) or only the urgency (the signal) can get right."""
    shares = {}
    for sensor, known in (("image", "place"), ("signal", "urgency")):
        pairs = Counter((getattr(scene, known), scene.label) for scene in scenes)
        best = {value: max(n for (v, _), n in pairs.items() if v == value) for value, _ in pairs}
        shares[sensor] = sum(best.values()) / len(scenes)
    return shares


def _bend_m(scene: Scene, far_m: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """How far right the middle of the lane is at a distance: curvature times its square over two."""
    return np.asarray(scene.yaw_rad_s / scene.speed_mps * np.minimum(far_m, 60.0) ** 2 / 2)


def _paint_thing(
    canvas: NDArray[np.float64], scene: Scene, haze: float, sky: NDArray[np.float64], random: Generator
) -> None:
    width_m, height_m = THINGS_M[random.integers(len(THINGS_M))]
    scale = FOCAL / scene.distance_m  # pixels per metre
    middle = WIDTH / 2 + (scene.offset_m + float(_bend_m(scene, scene.distance_m))) * scale
    bottom = HORIZON + CAMERA_M * scale
    left, right = (round(middle + sign * width_m * scale / 2) for sign in (-1, 1))
    top = round(bottom - height_m * scale)
    tone = random.uniform(20, 230, 3) * haze + sky * (1 - haze)
    cv2.rectangle(canvas, (left, top), (max(right, left + 1), round(bottom)), tuple(tone.tolist()), cv2.FILLED)
    shadow = max(1, round(0.15 * scale))
    dark = tuple((np.full(3, 30.0) * haze + sky * (1 - haze)).tolist())
    cv2.rectangle(canvas, (left, round(bottom) - shadow), (max(right, left + 1), round(bottom)), dark, cv2.FILLED)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
