"""Spoils the distinct sensors of a step as the section `augment` of a recipe says; the graph knows nothing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from edgefuse.runtime.corruptions import CORRUPTIONS
from edgefuse.runtime.manifest import Example
from edgefuse.train.settings import AugmentSettings

Augment = Mapping[str, AugmentSettings]  # corruption: how often and how badly


def spoil(sensor: str, value: Any, augment: Augment, rng: Generator) -> Any:
    """One picture, sound or text after what the section draws for it; several corruptions can meet."""
    for name, corruption in CORRUPTIONS.items():
        if name in augment and corruption.sensor == sensor and rng.random() < augment[name].rate:
            value = corruption(value, rng.uniform(*augment[name].severity), rng)
    return value


def spoil_texts(examples: Sequence[Example], augment: Augment, rng: Generator) -> list[Example]:
    """The lines with their texts spoiled, equal texts alike: they are one input of the step."""
    spoiled = {text: spoil("text", text, augment, rng) for text in dict.fromkeys(e.text for e in examples) if text}
    return [replace(example, text=spoiled.get(example.text or "")) for example in examples]


def spoil_tensors(inputs: Mapping[str, Tensor], augment: Augment, rng: Generator) -> dict[str, Tensor]:
    """Sensor tensors with the pictures [U, H, W, 3] and sounds [U, T] spoiled, each by a draw of its own."""
    spoiled = {
        sensor: torch.from_numpy(np.stack([spoil(sensor, value, augment, rng) for value in inputs[sensor].numpy()]))
        for sensor in ("image", "audio")
        if sensor in inputs
    }
    return {**inputs, **spoiled}
