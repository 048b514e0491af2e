"""A tiny corpus that a model can learn (coloured squares, a tone for each question), its recipe, and a trained run."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import soundfile
import torch
import yaml

from edgefuse.runtime.manifest import label_names, read_manifest
from edgefuse.runtime.preprocess import Tokenizer
from edgefuse.train.data import Loader, TrainingSteps
from edgefuse.train.model import FusedModel
from edgefuse.train.recipe import Recipe, parse_recipe
from edgefuse.train.train import train
from edgefuse.train.wordpiece import learn_wordpiece

torch.set_num_threads(1)  # sums in one order, and a core is left for what runs beside the tests

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}  # RGB
QUESTIONS = {"which color is it": 400, "is it red": 800, "is it blue": 1600}  # text: Hz of the tone that "speaks" it
PICTURES = {"train": 8, "val": 3, "test": 3}
VOICES = {"train": 2, "val": 1, "test": 1}
RATE, SECONDS = 16_000, 0.5
LINES = {split: count * len(QUESTIONS) for split, count in PICTURES.items()}
STEPS = 8  # of the tiny recipe: 2 epochs of 4


@functools.cache
def corpus() -> Path:
    """The manifest of 42 lines: every picture is asked every question; read only."""
    folder = _new_folder("corpus")
    random = np.random.default_rng(0)
    rows = []
    for split, count in PICTURES.items():
        for voice in range(VOICES[split]):
            for number, frequency in enumerate(QUESTIONS.values()):
                _write_tone(folder / f"{split}_{voice}_{number}.wav", frequency, random)
        for picture in range(count):
            colour = list(COLOURS)[picture % len(COLOURS)]
            _write_square(folder / f"{split}_{picture}.png", COLOURS[colour], random)
            for number, text in enumerate(QUESTIONS):
                rows.append(
                    {
                        "image": f"{split}_{picture}.png",
                        "audio": f"{split}_{random.integers(VOICES[split])}_{number}.wav",
                        "text": text,
                        "label": _answer(text, colour),
                        "split": split,
                        "answer_type": "color" if number == 0 else "yes/no",
                    }
                )
    return write_manifest(folder / "manifest.jsonl", rows)


@functools.cache
def trained_run() -> Path:
    """The folder of a run of the tiny recipe that nothing interrupted, tiny.yaml beside it; read only."""
    folder = _new_folder("trained")
    train(str(write_recipe(folder / "tiny.yaml")), [], folder / "run")
    return folder / "run"


def tiny_document(manifest: Path | None = None, **changes: Any) -> dict[str, Any]:
    """The tiny recipe as YAML says it; `changes` are merged in, section by section, and None takes a section out."""
    document: dict[str, Any] = {
        "name": "tiny",
        "data": {"manifest": str(manifest or corpus()), "group_by": "image", "groups_per_step": 2, "flip": True},
        "image": {"encoder": "mobilenet_v3_small", "height": 32, "width": 32},
        "audio": {"encoder": "conformer_nano", "seconds": SECONDS},
        "text": {"encoder": "distilbert_nano", "max_tokens": 8},
        "fusion": {"kind": "gated", "dim": 16, "hidden": 16},
        "train": {"epochs": 2, "alignment": 0.1, "checkpoint_every_s": 0},
    }
    document["data"]["subsets"] = {"image+text": 2, "image+audio": 2, "image+audio+text": 1}
    for section, values in changes.items():
        document[section] = values if values is None else {**document[section], **values}
    return {section: values for section, values in document.items() if values is not None}


def tiny_recipe(manifest: Path | None = None, **changes: Any) -> Recipe:
    """The tiny recipe, with `changes` merged in as in `tiny_document`."""
    return parse_recipe(tiny_document(manifest, **changes))


def write_recipe(path: Path, manifest: Path | None = None, **changes: Any) -> Path:
    """The tiny recipe as a YAML file."""
    path.write_text(yaml.safe_dump(tiny_document(manifest, **changes)), encoding="utf-8")
    return path


def write_manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    """A manifest of `rows`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of_corpus(**changes: Any) -> list[dict[str, Any]]:
    """The corpus with absolute paths; a change of None takes the key out of every line."""
    rows = [json.loads(line) for line in corpus().read_text().splitlines()]
    for row in rows:
        row.update({key: str(corpus().parent / row[key]) for key in ("image", "audio")} | changes)
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def tiny_tokenizer() -> Tokenizer:
    """The tokenizer that the tiny recipe learns."""
    return Tokenizer(learn_wordpiece(QUESTIONS, 8000).to_str().encode(), 8)


def new_model(recipe: Recipe, labels: int = 5, seed: int = 0) -> FusedModel:
    """A model of `recipe` with weights drawn from `seed`, in evaluation mode."""
    torch.manual_seed(seed)
    return FusedModel(recipe, labels, tiny_tokenizer().vocabulary_size).eval()


def loader_of(recipe: Recipe) -> Loader:
    """A loader for the lines of the recipe's manifest."""
    labels = label_names(read_manifest(recipe.data.manifest))
    return Loader(recipe, labels, tiny_tokenizer() if recipe.text else None)


def steps_of(recipe: Recipe) -> TrainingSteps:
    """The training steps of `recipe`."""
    return TrainingSteps(recipe, read_manifest(recipe.data.manifest, split="train"), loader_of(recipe))


@contextmanager
def edgefuse_process(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The command line in a process of its own, with one thread as here; it ends with the block at the latest."""
    with subprocess.Popen(
        [sys.executable, "-m", "edgefuse.runtime.cli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _new_folder(name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"edgefuse-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _answer(question: str, colour: str) -> str:
    if question.startswith("which"):
        return colour
    return "yes" if question.endswith(colour) else "no"


def _write_square(path: Path, colour: tuple[int, int, int], random: np.random.Generator) -> None:
    pixels = random.integers(0, 30, (48, 48, 3), dtype=np.uint8)
    top, left = random.integers(0, 24, 2)
    pixels[top : top + 24, left : left + 24] = colour[::-1]  # OpenCV writes BGR
    cv2.imwrite(str(path), pixels)


def _write_tone(path: Path, frequency: float, random: np.random.Generator) -> None:
    time = np.arange(round(RATE * SECONDS)) / RATE
    tone = 0.5 * np.sin(2 * np.pi * frequency * random.uniform(0.95, 1.05) * time)
    soundfile.write(path, tone + random.normal(0, 0.01, time.size), RATE, subtype="PCM_16")
