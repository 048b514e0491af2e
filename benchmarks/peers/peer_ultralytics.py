"""Ultralytics on the picture alone, the one modality that it knows: YOLO11n-cls, trained on the same manifest.

python -m edgefuse.benchmarks.peers.peer_ultralytics JOB trains and exports it; the worker then opens the ONNX file as
Ultralytics' own command line does.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgefuse.benchmarks.peers.contract import Job, Opened, Query

FOLDER, MODEL = "ultralytics", "ultralytics.onnx"  # in Job.made
MODEL_TABLE = "yolo11n-cls.yaml"  # random weights, as our own model begins; the pretrained ones lie on a hub


def train(job: Job) -> None:
    """Train on the pictures of the splits train and val, each with the label of its line, and export to ONNX."""
    from ultralytics import YOLO

    from edgefuse.runtime.bundle import Bundle

    info = Bundle.open(job.bundle).info
    assert info.image is not None  # a peer is only asked for what the bundle takes
    folder = job.file(FOLDER)
    if folder.exists():
        shutil.rmtree(folder)
    _write_dataset(job, folder / "data", info.labels)
    settings = {"imgsz": max(info.image.height, info.image.width), "device": "cpu"}
    model = YOLO(MODEL_TABLE)
    model.train(
        data=str(folder / "data"),
        project=str(folder),
        time=job.training_s / 3600,
        pretrained=False,
        amp=False,  # its check of AMP downloads a model
        plots=False,
        workers=0,
        **settings,
    )
    shutil.move(model.export(format="onnx", dynamic=True, **settings), job.file(MODEL))


def _write_dataset(job: Job, data: Path, labels: Sequence[str]) -> None:
    """<split>/<label>/<line>.<suffix>, linked: the layout that it takes; a label without pictures has a folder too."""
    from edgefuse.runtime.manifest import read_manifest

    for split in ("train", "val"):
        for label in labels:
            (data / split / _name(label)).mkdir(parents=True, exist_ok=True)
        for number, line in enumerate(read_manifest(job.manifest, split=split)):
            if line.image is not None:
                source = Path(line.image)
                link = data / split / _name(str(line.label)) / f"{number}{source.suffix}"
                link.symlink_to(source.resolve())


def _name(label: str) -> str:
    """Of a label, as a folder and so as a class of Ultralytics."""
    return label.replace("/", "_")


def open_peer(option: str, job: Job) -> Opened:
    """What `train` left; its scores are probabilities in the order of the bundle's labels."""
    from ultralytics import YOLO

    from edgefuse.runtime.bundle import Bundle

    model = YOLO(str(job.file(MODEL)), task="classify")
    info = Bundle.open(job.bundle).info
    assert info.image is not None
    size = max(info.image.height, info.image.width)
    columns: list[int] = []

    def prepare(queries: Sequence[Query]) -> Any:
        return [cv2.imread(query["image"]) for query in queries]  # BGR [H, W, 3], as it expects of arrays

    def infer(pictures: Any) -> np.ndarray:
        results = model.predict(pictures, imgsz=size, device="cpu", verbose=False)
        if not columns:
            number = {name: index for index, name in results[0].names.items()}
            columns.extend(number[_name(label)] for label in info.labels)
        return np.stack([result.probs.data.numpy()[columns] for result in results])  # [B, C]

    return Opened(prepare, infer)


if __name__ == "__main__":
    train(Job(**json.loads(sys.argv[1])))
