"""One experiment: frozen settings from a YAML file, changed by key=value."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgefuse.runtime.bundle import MODALITIES
from edgefuse.runtime.errors import RecipeError

RECIPES = Path(__file__).parent / "recipes"

Tokens = Literal["pooled", "all"]
Rate = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(gt=0)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSettings(_Settings):
    """Which examples, and how a step is made of them."""

    manifest: str  # JSON lines; relative to the working directory
    group_by: Literal["image", "audio", "text"] | None = None  # a step takes all lines of its groups, each encoded once
    groups_per_step: int = Field(64, gt=0)  # groups (lines where group_by is none) in one step
    # For sounds that speak the line's text: a step hears this many sounds, of as many distinct texts, and lines with
    # the same text share one; 0 leaves every line its own sound.
    sounds_per_step: int = Field(0, ge=0)
    subsets: dict[str, Weight] = Field(default_factory=dict)  # "image+text": weight; how often sensors appear together
    flip: bool = False  # mirror half of the pictures; only where no label tells left from right
    workers: int = Field(0, ge=0)  # processes that decode ahead; 0 decodes in the training process


class ImageSettings(_Settings):
    """The picture's encoder."""

    encoder: str = "mobilenet_v3_small"  # a row of encoders.IMAGE_ENCODERS
    height: int = Field(224, ge=32)  # pixels
    width: int = Field(224, ge=32)  # pixels
    tokens: Tokens = "pooled"  # one token, or one per cell of the last feature map
    weights: str | None = None  # "imagenet" (torchvision's), or a local .safetensors
    rate: float = Field(1.0, ge=0)  # factor on the learning rate of this encoder


class AudioSettings(_Settings):
    """The sound's encoder."""

    encoder: str = "conformer_small"  # a row of encoders.AUDIO_ENCODERS
    seconds: float = Field(2.0, gt=0.1)  # length that sounds are cut or padded to
    tokens: Tokens = "pooled"  # one token, or one per frame of 40 ms
    weights: str | None = None  # a local .safetensors
    rate: float = Field(1.0, ge=0)  # factor on the learning rate of this encoder


class TextSettings(_Settings):
    """The text's encoder."""

    encoder: str = "distilbert_small"  # a row of encoders.TEXT_ENCODERS, a hub name or a local folder
    tokenizer: str = "corpus"  # "corpus" learns WordPiece from the training texts; else a hub name, folder or .json
    max_tokens: int = Field(32, ge=4)
    vocabulary: int = Field(8000, ge=100)  # most pieces that "corpus" learns
    table_rows: int = Field(0, ge=0)  # least rows of the embedding table; more than pieces leave room for others
    tokens: Tokens = "pooled"  # one token, or one per WordPiece
    rate: float = Field(1.0, ge=0)  # factor on the learning rate of this encoder


class FusionSettings(_Settings):
    """How the tokens become one answer."""

    kind: Literal["concat", "sum", "low_rank", "weighted", "gated", "attention"] = "gated"
    dim: int = Field(128, ge=8, multiple_of=4)  # four heads of attention share it
    hidden: int = Field(256, ge=8)  # width of the classifier behind it
    dropout: Rate = 0.0


class TrainSettings(_Settings):
    """The loop."""

    epochs: int = Field(30, ge=0)  # 0 leaves the weights random: size and speed of a model can be had before training
    learning_rate: float = Field(3e-3, gt=0)  # the peak of the schedule
    warmup: Rate = 0.15  # share of all steps before the peak
    weight_decay: float = Field(0.01, ge=0)
    label_smoothing: Rate = 0.02
    alignment: float = Field(0.0, ge=0)  # weight of the contrastive loss between a sound and the text it speaks
    clip_norm: float = Field(1.0, gt=0)
    seed: int = 0
    validate_every: int = Field(1, gt=0)  # epochs
    checkpoint_every_s: float = Field(60.0, ge=0)  # seconds between checkpoints; one is also written on ctrl-C


class Recipe(_Settings):
    """Everything that decides what a run learns."""

    name: str
    data: DataSettings
    image: ImageSettings | None = None
    audio: AudioSettings | None = None
    text: TextSettings | None = None
    fusion: FusionSettings = FusionSettings()
    train: TrainSettings = TrainSettings()

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of this model, in the order of the `presence` columns."""
        return tuple(m for m in MODALITIES if getattr(self, m) is not None)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if not self.modalities:
            raise ValueError("no modality; give at least one of image, audio, text")
        if self.data.group_by not in (None, *self.modalities):
            raise ValueError(f"data.group_by is {self.data.group_by}, the model reads {', '.join(self.modalities)}")
        for subset in self.data.subsets:
            for sensor in subset.split("+"):
                if sensor not in self.modalities:
                    raise ValueError(f"data.subsets names {sensor!r}, the model reads {', '.join(self.modalities)}")
        return self


def load_recipe(name: str, overrides: list[str]) -> Recipe:
    """The recipe of a shipped name or a YAML file, with `section.key=value` changes applied.

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
        section = next((t for t in _types_in(field.annotation) if issubclass(t, _Settings)), None)
        keys += [prefix + name, *(_all_keys(section, f"{prefix}{name}.") if section else ())]
    return keys


def _types_in(annotation: Any) -> list[type]:
    """The classes of an annotation such as `ImageSettings | None`."""
    return [t for t in (annotation, *getattr(annotation, "__args__", ())) if isinstance(t, type)]
