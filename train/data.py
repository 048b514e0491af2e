"""Manifest to batches: a step takes whole groups of lines, and each distinct picture, sound and text of it only once.

A step's content depends on the seed and the step's number alone, so a run that was killed goes on exactly.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from edgefuse.runtime.bundle import SENSOR_TENSORS
from edgefuse.runtime.errors import ManifestError, MediaError
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.runtime.preprocess import Tokenizer, prepared, sensors_of
from edgefuse.runtime.shards import prefetch
from edgefuse.train.corrupt import spoil_tensors, spoil_texts
from edgefuse.train.distributed import ALONE, Place
from edgefuse.train.model import specs_of
from edgefuse.train.recipe import Recipe

KNOWN_TEXTS = 100_000  # whose ids are kept


def training_lines(recipe: Recipe) -> list[Example]:
    """The lines of split "train" that a recipe learns from: all, or `data.limit` of them by one draw for all seeds.

    An even spread would take one label only where a manifest lists the labels in turn.

    Raises:
        ManifestError: the manifest or a line of it cannot be used.
    """
    lines = read_manifest(recipe.data.manifest, split="train")
    limit = min(recipe.data.limit or len(lines), len(lines))
    return [lines[number] for number in sorted(random.Random(0).sample(range(len(lines)), limit))]


@dataclass(frozen=True)
class Batch:
    """Some lines of a manifest as tensors; a modality that no line has is absent from `inputs` and `index`."""

    inputs: dict[str, Tensor]  # sensor tensors of the distinct sensors: image [U, H, W, 3], audio [U, T], ...
    index: dict[str, Tensor]  # modality -> for each line, its row in `inputs` (0 where missing) [B]
    presence: Tensor  # [B, M] float
    labels: Tensor  # [B] class numbers
    same_text: Tensor  # for each distinct sound, the row of the text it goes with, -1 where there is none [U_audio]
    where: tuple[str, ...] = ()  # "manifest.jsonl:17" of each line, by which a teacher's answers are found [B]
    place: Place = ALONE  # whose share of the distinct sensors `inputs` holds; everything else is of all lines

    def distinct(self, modality: str) -> int:
        """How many distinct sensors U the lines have of a modality."""
        return int(self.index[modality].max()) + 1

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        if device.type == "cpu":
            return self
        moved = {name: getattr(self, name).to(device) for name in ("presence", "labels", "same_text")}
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, index={m: x.to(device) for m, x in self.index.items()}, **moved)


class Loader:
    """Decodes the sensors of manifest lines to the tensors a recipe's model takes."""

    def __init__(
        self, recipe: Recipe, labels: Sequence[str], tokenizer: Tokenizer | None, place: Place = ALONE
    ) -> None:
        """Of each batch, `place` decodes its share of the distinct sensors."""
        self._recipe = recipe
        self._number = {label: i for i, label in enumerate(labels)}
        self._tokenizer = tokenizer
        self.place = place
        self._sensors = sensors_of(specs_of(recipe), tokenizer)
        self._known_texts: dict[str, tuple[NDArray[np.int32], NDArray[np.int32]]] = {}

    def batch(self, examples: Sequence[Example], sounds: Sequence[str | None], present: Sequence[set[str]]) -> Batch:
        """One batch.

        Args:
            examples: the lines.
            sounds: the sound that each line hears (its own, or one that speaks the same text).
            present: the sensors that each line shows.

        Raises:
            ManifestError: a file cannot be decoded; the message starts with the line.
        """
        inputs: dict[str, Tensor] = {}
        index: dict[str, Tensor] = {}
        row_of: dict[str, dict[Hashable, int]] = {}
        for modality in self._recipe.modalities:
            values = sounds if modality == "audio" else [getattr(example, modality) for example in examples]
            shown = [v if modality in p else None for v, p in zip(values, present, strict=True)]
            rows: dict[Hashable, int] = {}
            owner: list[Example] = []
            for value, example in zip(shown, examples, strict=True):
                if value is not None and value not in rows:
                    rows[value] = len(rows)
                    owner.append(example)
            if rows:
                row_of[modality] = rows
                own = self.place.share(len(rows))
                inputs.update(self._load(modality, [str(value) for value in rows][own], owner[own]))
                index[modality] = torch.tensor([rows.get(value, 0) for value in shown])
        presence = [[float(m in p) for m in self._recipe.modalities] for p in present]
        return Batch(
            inputs=inputs,
            index=index,
            presence=torch.tensor(presence),
            labels=self.numbers(examples),
            same_text=_same_text(examples, sounds, row_of),
            where=tuple(example.where for example in examples),
            place=self.place,
        )

    def whole(self, examples: Sequence[Example]) -> Batch:
        """The lines as one batch, each with all of its own sensors; errors as of `batch`."""
        return self.batch(examples, [e.audio for e in examples], [self._recipe.seen(e) for e in examples])

    def numbers(self, examples: Sequence[Example]) -> Tensor:
        """The class number of each line, -1 where it has no label [B]."""
        return torch.tensor([-1 if e.label is None else self._number[e.label] for e in examples])

    def _load(self, modality: str, values: Sequence[str], owner: Sequence[Example]) -> dict[str, Tensor]:
        if modality == "text":
            ids, mask = zip(*(self._encode(text) for text in values), strict=True)
            return {
                "input_ids": torch.from_numpy(np.concatenate(ids)),  # [U, L]
                "attention_mask": torch.from_numpy(np.concatenate(mask)),  # [U, L]
            }
        prefetch(values)
        rows = [self._decode(modality, value, example) for value, example in zip(values, owner, strict=True)]
        names = SENSOR_TENSORS[modality]
        return {name: torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in names}

    def _decode(self, modality: str, value: str, example: Example) -> dict[str, NDArray[Any]]:
        """The tensors of one file, batch of one; names the manifest line where it fails."""
        sensor = self._sensors[modality]
        try:
            return prepared(sensor, sensor.decode(value))
        except MediaError as error:
            raise ManifestError(f"{example.where}: {error}") from None

    def _encode(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        if text not in self._known_texts:
            assert self._tokenizer is not None
            if len(self._known_texts) == KNOWN_TEXTS:  # typos never end
                self._known_texts.clear()
            self._known_texts[text] = self._tokenizer.encode([text])
        return self._known_texts[text]


class TrainingSteps(Dataset[Batch]):
    """Step number -> batch; made for a DataLoader with batch_size=None and a range of steps as its sampler."""

    def __init__(self, recipe: Recipe, examples: Sequence[Example], loader: Loader) -> None:
        self.examples = examples
        self._recipe = recipe
        self._loader = loader
        groups: dict[Hashable, list[Example]] = defaultdict(list)
        for number, example in enumerate(examples):
            key = getattr(example, recipe.data.group_by) if recipe.data.group_by else None
            groups[number if key is None else key].append(example)
        self._groups = list(groups.values())
        self._sounds_of: dict[str, list[str]] = defaultdict(list)  # text -> every sound that speaks it
        for example in examples:
            if example.text and example.audio:
                self._sounds_of[example.text].append(example.audio)
        self.steps_per_epoch = max(1, len(self._groups) // recipe.data.groups_per_step)

    def __len__(self) -> int:
        return self.steps_per_epoch * self._recipe.train.epochs

    def __getitem__(self, step: int) -> Batch:
        data, seed = self._recipe.data, self._recipe.train.seed
        epoch, within = divmod(step, self.steps_per_epoch)
        order = random.Random(f"{seed} epoch {epoch}").sample(range(len(self._groups)), len(self._groups))
        chosen = order[within * data.groups_per_step : (within + 1) * data.groups_per_step]
        examples = [example for group in chosen for example in self._groups[group]]
        draw = random.Random(f"{seed} step {step}")
        sounds = self._draw_sounds(draw, examples)
        lines = [
            (example, sound, present)
            for example, sound in zip(examples, sounds, strict=True)
            for present in self._draw_subsets(draw, example, sound)
            if present  # a line whose only sensor is not heard waits
        ]
        batch = self._batch(step, *zip(*lines, strict=True))
        if data.flip and "image" in batch.inputs:
            own, count = batch.place.share(batch.distinct("image")), batch.distinct("image")
            mirrored = torch.tensor([draw.random() < 0.5 for _ in range(count)])[own, None, None, None]
            image = batch.inputs["image"]
            batch.inputs["image"] = torch.where(mirrored, image.flip(2), image)
        return batch

    def _batch(
        self, step: int, examples: Sequence[Example], sounds: Sequence[str | None], present: Sequence[set[str]]
    ) -> Batch:
        """The lines as the loader reads them, then spoiled as the recipe says by draws of the step's own."""
        augment = self._recipe.augment
        if not augment:
            return self._loader.batch(examples, sounds, present)
        rng = np.random.default_rng(random.Random(f"{self._recipe.train.seed} spoil {step}").getrandbits(64))
        batch = self._loader.batch(spoil_texts(examples, augment, rng), sounds, present)
        if batch.place.rank:  # the rows of each process are other ones
            rng = np.random.default_rng([int(rng.integers(2**32)), batch.place.rank])
        return replace(batch, inputs=spoil_tensors(batch.inputs, augment, rng))

    def _draw_sounds(self, draw: random.Random, examples: Sequence[Example]) -> list[str | None]:
        """The sound each line can hear: the one that this step draws for its text, if any; without a text, its own."""
        count = self._recipe.data.sounds_per_step
        if not count:
            return [example.audio for example in examples]
        texts = sorted({example.text for example in examples if example.text in self._sounds_of})
        drawn = {text: draw.choice(self._sounds_of[text]) for text in draw.sample(texts, min(count, len(texts)))}
        return [drawn.get(e.text) if e.audio and e.text else e.audio for e in examples]

    def _draw_subsets(self, draw: random.Random, example: Example, sound: str | None) -> list[set[str]]:
        """Which sensors the line shows: modality dropout as weighted draws of subsets, none of them twice."""
        have = {s for s in example.sensors if s in self._recipe.modalities and not (s == "audio" and sound is None)}
        choices = [(set(name.split("+")), weight) for name, weight in self._recipe.data.subsets.items()]
        possible = [(subset, weight) for subset, weight in choices if subset <= have]
        drawn: list[set[str]] = []
        while possible and len(drawn) < self._recipe.data.subsets_per_line:
            number = draw.choices(range(len(possible)), [weight for _, weight in possible])[0]
            drawn.append(possible.pop(number)[0])
        return drawn or [have]


def _same_text(
    examples: Sequence[Example], sounds: Sequence[str | None], row_of: dict[str, dict[Hashable, int]]
) -> Tensor:
    sound_rows, text_rows = row_of.get("audio", {}), row_of.get("text", {})
    same = torch.full((len(sound_rows),), -1)
    for example, sound in zip(examples, sounds, strict=True):
        if sound in sound_rows and example.text in text_rows:
            same[sound_rows[sound]] = text_rows[example.text]
    return same
