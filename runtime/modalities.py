"""The modalities: one table that every stage follows, and what the encoder of each takes.

A new one is a row here (with its section in BundleInfo, Recipe and Example), what makes its tensors (`sensors_of` of
preprocess.py), and its encoder (model.py).
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """A section of the contract: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageSpec(Frozen):
    """What the image encoder takes: uint8 RGB [B, height, width, 3]."""

    height: int = Field(gt=0)
    width: int = Field(gt=0)


class AudioSpec(Frozen):
    """What the audio encoder takes: float32 PCM in [-1, 1], [B, samples]."""

    sample_rate: int = Field(gt=0)  # Hz
    samples: int = Field(gt=0)


class TextSpec(Frozen):
    """What the text encoder takes: int32 ids and mask, [B, max_tokens] each."""

    max_tokens: int = Field(gt=0)


class SignalSpec(Frozen):
    """What the signal encoder takes: float32 rows in the sensors' own units, [B, steps, len(features)]."""

    steps: int = Field(gt=0)  # the newest rows
    features: tuple[str, ...] = Field(min_length=1)  # names of the columns
    rate_hz: float = Field(gt=0, allow_inf_nan=False)  # rows a second

    @model_validator(mode="after")
    def _names_are_distinct(self) -> SignalSpec:
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"features has a name twice: {', '.join(self.features)}")
        return self


class Modality(NamedTuple):
    """All that stages other than the encoder itself know of a modality."""

    title: str  # how people call it
    spec: type[Frozen]  # its section of the contract, under the modality's name
    tensors: tuple[str, ...]  # what its encoder takes
    suffix: str | None  # of a recording's files; None: recordings and manifests say it in words
    option: str  # of `edgefuse run` that gives it
    limit_ms: float | None  # age from which the loop holds a reading for missing; None: until it is replaced
    has_front_end: bool  # arithmetic on the sensor's units before the first weight, which stays FP32


# A row's name is its key in manifests, recipes and contracts; the order is that of the columns of `presence`.
MODALITY_TABLE = {
    "image": Modality("Picture", ImageSpec, ("image",), ".png", "camera", 1000.0, True),
    "audio": Modality("Sound", AudioSpec, ("audio",), ".wav", "mic", 1000.0, True),
    "text": Modality("Text", TextSpec, ("input_ids", "attention_mask"), None, "text", None, False),
    "signal": Modality("Signal", SignalSpec, ("signal",), ".npy", "signal", 1000.0, True),
}
MODALITIES = tuple(MODALITY_TABLE)
SENSOR_TENSORS = {name: row.tensors for name, row in MODALITY_TABLE.items()}
