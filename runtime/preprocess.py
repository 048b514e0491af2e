"""Decode, resize, resample, tokenise: the only host-side arithmetic there is.

Training, calibration, evaluation and the device loop all come through here; everything after (pixel normalisation,
log-mel) is a layer of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import soxr
from numpy.typing import NDArray

from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.bundle import SENSOR_TENSORS, TOKENIZER_FILE, AudioSpec, Bundle, ImageSpec, TextSpec
from edgefuse.runtime.errors import MediaError
from edgefuse.runtime.media import Pcm, Pixels, decode_audio, decode_image, read_media
from edgefuse.runtime.signals import Signals
from edgefuse.runtime.tokenizer import Tokenizer as Tokenizer  # with the preprocessor is where users look for it


def fit_image(pixels: Pixels, height: int, width: int) -> Pixels:
    """Stretch uint8 RGB [H, W, 3] to [height, width, 3]: area average when shrinking, bilinear when enlarging."""
    if pixels.shape[:2] == (height, width):
        return pixels
    fitted = np.empty((height, width, 3), np.uint8)
    fill_image(pixels, fitted)
    return fitted


def fill_image(pixels: Pixels, into: Pixels) -> None:
    """As `fit_image`, written into [height, width, 3]; the order of the channels does not matter."""
    height, width = into.shape[:2]
    shrinks = pixels.shape[0] >= height and pixels.shape[1] >= width
    cv2.resize(pixels, (width, height), dst=into, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def to_rate(pcm: Pcm, rate: int, sample_rate: int) -> Pcm:
    """Resample mono PCM [T] from `rate` to `sample_rate` Hz (soxr, high quality) and keep it in [-1, 1]."""
    return np.clip(_resampled(pcm, rate, sample_rate), -1.0, 1.0).astype(np.float32, copy=False)


def _resampled(pcm: Pcm, rate: int, sample_rate: int) -> Pcm:
    return pcm if rate == sample_rate else np.asarray(soxr.resample(pcm, rate, sample_rate), np.float32)


def fit_audio(pcm: Pcm, samples: int) -> Pcm:
    """Cut or zero-pad PCM [T] at its end to [samples]."""
    if len(pcm) >= samples:
        return np.ascontiguousarray(pcm[:samples])
    return np.pad(pcm, (0, samples - len(pcm)))


def fill_audio(pcm: Pcm, into: Pcm) -> None:
    """As `fit_audio`, written into [samples] and kept in [-1, 1]."""
    kept = min(len(pcm), len(into))
    np.clip(pcm[:kept], -1.0, 1.0, out=into[:kept])
    into[kept:] = 0.0


class Sensor(Protocol):
    """What stands between the raw values of a modality and the tensors of its encoder."""

    def decode(self, value: Any) -> Any:
        """A file as an array, or `value` itself if it is that.

        Raises:
            MediaError: it cannot be decoded, or has the wrong type or shape.
        """
        ...

    def empty(self) -> dict[str, NDArray[Any]]:
        """Zeros as the encoder takes them, batch of one."""
        ...

    def fill(self, decoded: Any, tensors: Tensors) -> None:
        """Fit what `decode` returned to the model."""
        ...


class Pictures:
    """What stands between a picture and the tensor of the image encoder."""

    def __init__(self, spec: ImageSpec) -> None:
        self._spec = spec

    def decode(self, value: Any) -> Pixels:
        """Pixels of a file, given by its path or its bytes, or `value` itself if it is that."""
        if isinstance(value, bytes):
            return decode_image(value, "image")
        if isinstance(value, (str, Path)):
            return decode_image(read_media(value), str(value))
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
            raise MediaError(f"image: found {_kind(value)}; give a path or uint8 RGB [H, W, 3]")
        if not value.size:
            raise MediaError(f"image: found no pixels ({_kind(value)}); give a path or uint8 RGB [H, W, 3]")
        return value

    def empty(self) -> dict[str, NDArray[Any]]:
        """Black."""
        return {"image": np.zeros((1, self._spec.height, self._spec.width, 3), np.uint8)}  # [1, H, W, 3]

    def fill(self, decoded: Pixels, tensors: Tensors) -> None:
        """Stretch it."""
        fill_image(decoded, tensors["image"][0])


class Sounds:
    """What stands between a sound and the tensor of the audio encoder."""

    def __init__(self, spec: AudioSpec) -> None:
        self._spec = spec

    def decode(self, value: Any) -> tuple[Pcm, int]:
        """PCM of a file, given by its path or its bytes, and its rate in Hz, or `value` itself at the model's rate."""
        if isinstance(value, bytes):
            return decode_audio(value, "audio")
        if isinstance(value, (str, Path)):
            return decode_audio(read_media(value), str(value))
        if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.ndim != 1 or not value.size:
            raise MediaError(f"audio: found {_kind(value)}; give a path or float32 mono PCM [T] in [-1, 1]")
        if not np.isfinite(value).all():
            raise MediaError("audio: the sound holds NaN or infinite samples; record it again")
        return value, self._spec.sample_rate

    def empty(self) -> dict[str, NDArray[Any]]:
        """Silence."""
        return {"audio": np.zeros((1, self._spec.samples), np.float32)}  # [1, T]

    def fill(self, decoded: tuple[Pcm, int], tensors: Tensors) -> None:
        """Resample it, and cut or pad it at its end."""
        pcm, rate = decoded
        fill_audio(_resampled(pcm, rate, self._spec.sample_rate), tensors["audio"][0])


class Texts:
    """What stands between a text and the tensors of the text encoder."""

    def __init__(self, spec: TextSpec, tokenizer: Tokenizer) -> None:
        self._spec = spec
        self._tokenizer = tokenizer

    def decode(self, value: Any) -> str:
        """The text itself."""
        if not isinstance(value, str) or not value.strip():
            raise MediaError(f"text: found {value!r}; give words, or leave the text out")
        return value

    def empty(self) -> dict[str, NDArray[Any]]:
        """No token."""
        return {name: np.zeros((1, self._spec.max_tokens), np.int32) for name in SENSOR_TENSORS["text"]}  # [1, L] each

    def fill(self, decoded: str, tensors: Tensors) -> None:
        """Write its ids and mask."""
        for name, values in zip(SENSOR_TENSORS["text"], self._tokenizer.encode([decoded]), strict=True):
            tensors[name][:] = values  # [1, L]


class Preprocessor:
    """What stands between the raw value of a sensor and the tensors of its part, for one bundle.

    Two steps, so that each can be timed: `decode` makes an array of a file, `prepare` fits it to the model.
    """

    def __init__(self, bundle: Bundle) -> None:
        info = bundle.info
        self.tokenizer = Tokenizer(bundle.read(TOKENIZER_FILE), info.text.max_tokens) if info.text else None
        self._sensors = sensors_of(info.specs, self.tokenizer)

    def decode(self, modality: str, value: Any) -> Any:
        """Decode a file, or check what is decoded already.

        Args:
            modality: one of MODALITIES.
            value: a path, or the bytes of a file; or uint8 RGB [H, W, 3] in 0..255; or float32 PCM [T] in [-1, 1] at
                the model's rate; or str; or float32 rows [n, F].

        Raises:
            MediaError: the value cannot be decoded, has the wrong type or shape, or the model lacks the modality.
        """
        return self._sensor(modality).decode(value)

    def prepare(self, modality: str, decoded: Any) -> dict[str, NDArray[Any]]:
        """Fit what `decode` returned to the model: the tensors of the modality's part, with a batch of one."""
        return prepared(self._sensor(modality), decoded)

    def empty(self, modality: str) -> dict[str, NDArray[Any]]:
        """Zeros in the shapes and types that the modality's part takes, with a batch of one, for `fill`.

        Raises:
            MediaError: the model lacks the modality.
        """
        return self._sensor(modality).empty()

    def fill(self, modality: str, decoded: Any, tensors: Tensors) -> None:
        """As `prepare`, written into tensors of `empty`: pictures and sound at the model's rate need no new array."""
        self._sensor(modality).fill(decoded, tensors)

    def _sensor(self, modality: str) -> Sensor:
        if modality not in self._sensors:
            raise MediaError(f"this model has no {modality} encoder; it takes: {', '.join(self._sensors)}")
        return self._sensors[modality]


def sensors_of(specs: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Sensor]:
    """Modality -> what makes its tensors, for what a model takes (see `BundleInfo.specs`)."""
    kinds: dict[str, Callable[[Any], Sensor]] = {"image": Pictures, "audio": Sounds, "signal": Signals}
    if tokenizer is not None:
        kinds["text"] = partial(Texts, tokenizer=tokenizer)
    return {modality: kinds[modality](spec) for modality, spec in specs.items()}


def prepared(sensor: Sensor, decoded: Any) -> dict[str, NDArray[Any]]:
    """New tensors that hold what `decode` returned."""
    tensors = sensor.empty()
    sensor.fill(decoded, tensors)
    return tensors


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
