"""One experiment: frozen settings from a YAML file, changed by key=value."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from edgefuse.runtime.bundle import MODALITIES
from edgefuse.runtime.corruptions import CORRUPTIONS
from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.manifest import Example
from edgefuse.train.settings import (
    AdversarialSettings,
    AudioSettings,
    AugmentSettings,
    DataSettings,
    DistillSettings,
    FusionSettings,
    ImageSettings,
    Settings,
    SignalSettings,
    TextSettings,
    TrainSettings,
)
from edgefuse.train.sizes import resize

RECIPES = Path(__file__).parent / "recipes"


class Recipe(Settings):
    """Everything that decides what a run learns."""

    name: str
    data: DataSettings
    image: ImageSettings | None = None
    audio: AudioSettings | None = None
    text: TextSettings | None = None
    signal: SignalSettings | None = None
    fusion: FusionSettings = FusionSettings()
    train: TrainSettings = TrainSettings()
    augment: dict[str, AugmentSettings] = Field(default_factory=dict)  # corruption: how often and how badly
    adversarial: AdversarialSettings = AdversarialSettings()
    distill: DistillSettings = DistillSettings()

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of this model, in the order of the `presence` columns."""
        return tuple(m for m in MODALITIES if getattr(self, m) is not None)

    def seen(self, example: Example) -> set[str]:
        """The sensors of a line that the model reads."""
        return set(example.sensors) & set(self.modalities)

    @property
    def trained_subsets(self) -> list[str]:
        """The subsets of sensors that training shows, which validation asks for each."""
        return list(self.data.subsets) or ["+".join(self.modalities)]

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if not self.modalities:
            raise ValueError(f"no modality; give at least one of {', '.join(MODALITIES)}")
        if self.data.group_by not in (None, *self.modalities):
            raise ValueError(f"data.group_by is {self.data.group_by}, the model reads {', '.join(self.modalities)}")
        for subset in self.data.subsets:
            for sensor in subset.split("+"):
                if sensor not in self.modalities:
                    raise ValueError(f"data.subsets names {sensor!r}, the model reads {', '.join(self.modalities)}")
        fitting = [name for name, corruption in CORRUPTIONS.items() if corruption.sensor in self.modalities]
        for name in self.augment:
            if name not in fitting:
                raise ValueError(f"augment names {name!r}; for this model there are {', '.join(fitting)}")
        return self


def load_recipe(name: str, overrides: list[str], size: str | None = None) -> Recipe:
    """The recipe of a shipped name or a YAML file, in another size if given, with `section.key=value` changes applied.

    Raises:
        RecipeError: no such recipe, an unknown key (the nearest one is named), a value that does not fit.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        shipped = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise RecipeError(f"no recipe {name!r}; shipped: {shipped}; or give the path of a .yaml file") from None
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or no such date
        raise RecipeError(f"{path}: not a readable YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}")
    if size is not None:
        resize(document, size)
    for override in overrides:
        _apply(document, override)
    return parse_recipe(document)


def parse_recipe(document: dict[str, Any]) -> Recipe:
    """Check a recipe's document.

    Raises:
        RecipeError: an unknown key (the nearest one is named), or a value that does not fit.
    """
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise RecipeError(_unknown_key(key)) from None
        found = "" if first["type"] in ("missing", "value_error") else f" (found {first['input']!r})"
        raise RecipeError(f"recipe {key or 'keys'}: {first['msg']}{found}") from None


def _apply(document: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise RecipeError(f"{override!r} is not a change; write section.key=value, such as train.epochs=3")
    *sections, leaf = key.split(".")
    target: Any = document
    for section in sections:
        if target.get(section) is None:
            target[section] = {}
        target = target[section]
        if not isinstance(target, dict):
            raise RecipeError(_unknown_key(key))
    try:
        target[leaf] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"{override!r}: the value cannot be read; quote it as in YAML") from None


def _unknown_key(key: str) -> str:
    known = [k for k in _all_keys(Recipe) if "." in k or "." not in key]  # a section is no answer to section.key
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown recipe key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        section = next((t for t in _types_in(field.annotation) if issubclass(t, Settings)), None)
        within = f"{prefix}{name}.<each>." if get_origin(field.annotation) is dict else f"{prefix}{name}."
        keys += [prefix + name, *(_all_keys(section, within) if section else ())]
    return keys


def _types_in(annotation: Any) -> list[type]:
    """The classes of an annotation such as `ImageSettings | None`."""
    return [t for t in (annotation, *getattr(annotation, "__args__", ())) if isinstance(t, type)]
