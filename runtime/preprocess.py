"""Decode, resize, resample, tokenise: the only host-side arithmetic there is.

Training, calibration, evaluation and the device loop all come through here; everything after (pixel normalisation,
log-mel) is a layer of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import soxr
from numpy.typing import NDArray
from tokenizers import Tokenizer as _WordPiece

from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.bundle import SENSOR_TENSORS, TOKENIZER_FILE, Bundle
from edgefuse.runtime.errors import BundleError, MediaError
from edgefuse.runtime.media import Pcm, Pixels, decode_audio, decode_image, read_media

PAD_TOKEN, MASK_TOKEN = "[PAD]", "[MASK]"

Decoded = Pixels | tuple[Pcm, int] | str  # a picture; a sound and its rate in Hz; a text


def load_image(path: str | Path, height: int, width: int) -> Pixels:
    """Decode a picture and fit it to the model: uint8 RGB [height, width, 3].

    Raises:
        MediaError: missing, empty, cut off, damaged, or not a picture.
    """
    return fit_image(decode_image(read_media(path), str(path)), height, width)


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


def load_audio(path: str | Path, sample_rate: int, samples: int) -> Pcm:
    """Decode a sound and fit it to the model: mono float32 [samples] in [-1, 1] at `sample_rate` Hz.

    Raises:
        MediaError: missing, empty, cut off, damaged, not finite, or not a sound.
    """
    pcm, rate = decode_audio(read_media(path), str(path))
    return fit_audio(to_rate(pcm, rate, sample_rate), samples)


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


class Tokenizer:
    """WordPiece ids of fixed length, from the bundle's tokenizer.json.

    Args:
        document: the content of a tokenizer.json.
        max_tokens: length that every text is cut or padded to.

    Raises:
        BundleError: the document is not a tokenizer, or has no [PAD] token.
    """

    def __init__(self, document: bytes, max_tokens: int) -> None:
        try:
            self._pieces = _WordPiece.from_str(document.decode())
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"tokenizer.json cannot be read ({error}); export the bundle again") from None
        pad_id = self._pieces.token_to_id(PAD_TOKEN)
        if pad_id is None:
            raise BundleError(f"tokenizer.json has no {PAD_TOKEN} token; use a WordPiece tokenizer")
        self.pad_id = int(pad_id)
        self.mask_id: int | None = self._pieces.token_to_id(MASK_TOKEN)
        self._pieces.enable_truncation(max_tokens)
        self._pieces.enable_padding(length=max_tokens, pad_id=pad_id, pad_token=PAD_TOKEN)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self._pieces.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids and attention mask of `texts`, int32 [B, max_tokens] each.

        Raises:
            MediaError: a text holds half a surrogate pair, as bytes that are not UTF-8 do on the command line.
        """
        try:
            encodings = self._pieces.encode_batch(list(texts))
        except TypeError:
            raise MediaError("a text is not valid Unicode; give it as UTF-8") from None
        ids = np.array([encoding.ids for encoding in encodings], np.int32)  # [B, L]
        mask = np.array([encoding.attention_mask for encoding in encodings], np.int32)  # [B, L]
        return ids, mask

    def words(self, text: str) -> list[tuple[str, list[int]]]:
        """Each word of `text` with the places of its pieces among the ids; none where the text is cut before it."""
        encoding = self._pieces.encode(text)
        spans: dict[int, list[int]] = {}  # word -> where it begins and ends in the text
        places: dict[int, list[int]] = {}
        for part in (encoding, *encoding.overflowing):
            for place, (word, (start, end)) in enumerate(zip(part.word_ids, part.offsets, strict=True)):
                if word is None:  # padding, [CLS], [SEP]
                    continue
                span = spans.setdefault(word, [start, end])
                span[:] = min(span[0], start), max(span[1], end)
                places.setdefault(word, []).extend([place] if part is encoding else [])
        return [(text[slice(*spans[word])], places[word]) for word in spans]


class Preprocessor:
    """What stands between the raw value of a sensor and the tensors of its part, for one bundle.

    Two steps, so that each can be timed: `decode` makes an array of a file, `prepare` fits it to the model.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._info = info = bundle.info
        self.tokenizer = Tokenizer(bundle.read(TOKENIZER_FILE), info.text.max_tokens) if info.text else None

    def decode(self, modality: str, value: Any) -> Decoded:
        """Decode a file, or check what is decoded already.

        Args:
            modality: "image", "audio" or "text".
            value: a path; or uint8 RGB [H, W, 3] in 0..255; or float32 PCM [T] in [-1, 1] at the model's rate; or str.

        Raises:
            MediaError: the value cannot be decoded, has the wrong type or shape, or the model lacks the modality.
        """
        from_file = isinstance(value, (str, Path))
        if modality == "image" and self._info.image is not None:
            return decode_image(read_media(value), str(value)) if from_file else _checked_pixels(value)
        if modality == "audio" and self._info.audio is not None:
            if from_file:
                return decode_audio(read_media(value), str(value))
            return _checked_pcm(value), self._info.audio.sample_rate
        if modality == "text" and self._info.text is not None:
            return _checked_text(value)
        raise self._unknown(modality)

    def prepare(self, modality: str, decoded: Any) -> dict[str, NDArray[Any]]:
        """Fit what `decode` returned to the model: the tensors of the modality's part, with a batch of one."""
        tensors = self.empty(modality)
        self.fill(modality, decoded, tensors)
        return tensors

    def empty(self, modality: str) -> dict[str, NDArray[Any]]:
        """Zeros in the shapes and types that the modality's part takes, with a batch of one, for `fill`.

        Raises:
            MediaError: the model lacks the modality.
        """
        if modality == "image" and (image := self._info.image):
            return {"image": np.zeros((1, image.height, image.width, 3), np.uint8)}  # [1, H, W, 3]
        if modality == "audio" and (audio := self._info.audio):
            return {"audio": np.zeros((1, audio.samples), np.float32)}  # [1, T]
        if modality == "text" and (text := self._info.text):
            return {name: np.zeros((1, text.max_tokens), np.int32) for name in SENSOR_TENSORS["text"]}  # [1, L] each
        raise self._unknown(modality)

    def fill(self, modality: str, decoded: Any, tensors: Tensors) -> None:
        """As `prepare`, written into tensors of `empty`: pictures and sound at the model's rate need no new array."""
        if modality == "image":
            fill_image(decoded, tensors["image"][0])
        elif modality == "audio" and (audio := self._info.audio):
            pcm, rate = decoded
            fill_audio(_resampled(pcm, rate, audio.sample_rate), tensors["audio"][0])
        elif self.tokenizer:
            for name, values in zip(SENSOR_TENSORS[modality], self.tokenizer.encode([decoded]), strict=True):
                tensors[name][:] = values  # [1, L]

    def _unknown(self, modality: str) -> MediaError:
        return MediaError(f"this model has no {modality} encoder; it takes: {', '.join(self._info.modalities)}")


def _checked_pixels(value: Any) -> Pixels:
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
        raise MediaError(f"image: found {_kind(value)}; give a path or uint8 RGB [H, W, 3]")
    if not value.size:
        raise MediaError(f"image: found no pixels ({_kind(value)}); give a path or uint8 RGB [H, W, 3]")
    return value


def _checked_pcm(value: Any) -> Pcm:
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.ndim != 1 or not value.size:
        raise MediaError(f"audio: found {_kind(value)}; give a path or float32 mono PCM [T] in [-1, 1]")
    if not np.isfinite(value).all():
        raise MediaError("audio: the sound holds NaN or infinite samples; record it again")
    return value


def _checked_text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise MediaError(f"text: found {value!r}; give words, or leave the text out")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
