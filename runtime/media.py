"""Decode pictures and sounds, and refuse what is cut off or damaged: a model must not learn or judge filler."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import soundfile
from numpy.typing import NDArray

from edgefuse.runtime.errors import MediaError
from edgefuse.runtime.shards import member, read_member

Pixels = NDArray[np.uint8]  # [H, W, 3] RGB, 0..255
Pcm = NDArray[np.float32]  # [T] mono in [-1, 1]

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b"\xff\xd9"
_PNG_ALPHA = 4  # this bit of a PNG's colour type says that there is an alpha channel
_STREAMED_SIZE = (0, 0xFFFFFFFF)  # what a RIFF header says when its writer did not know the length
# RIFF, size, WAVE, fmt, its size, format, channels, rate, bytes a second, block, bits, data, its size (RIFF, 1991).
_WAV = struct.Struct("<4s4x4s4sIHHIIHH4sI")
_MOST_CHANNELS = 1024  # that libsndfile reads
_SIXTEEN_BITS = (b"RIFF", b"WAVE", b"fmt ", 16, 1, 16, b"data")  # what of it is fixed
_LEAST_DECODED = 0.98  # of the announced samples; the count of an MP3 can be an estimate

# OpenCV's own lines on stderr say no more than MediaError does. The function has another place in OpenCV 5 than in 4.
_SILENT = 0
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(_SILENT)


def read_media(path: str | Path) -> bytes:
    """The bytes of a sensor's file, or of one inside a shard.

    Raises:
        MediaError: missing, not readable, empty or altered.
    """
    inside = member(str(path))
    try:
        data = read_member(inside) if inside else Path(path).read_bytes()
    except OSError as error:
        raise MediaError(f"{path}: {error.strerror}; check the path") from None
    if not data:
        raise MediaError(f"{path}: the file is empty; replace it")
    return data


def decode_image(data: bytes, name: str) -> Pixels:
    """Decode picture bytes to uint8 RGB [H, W, 3]; `name` is used in messages.

    EXIF rotation is applied (OpenCV does not where there is an alpha channel), greyscale and palettes become RGB,
    16 bits become 8, and a picture with an alpha channel is laid over black.

    Raises:
        MediaError: empty, cut off, damaged, or not a picture.
    """
    is_whole = next((check for start, check in _WHOLE.items() if data.startswith(start)), None)
    if is_whole and not is_whole(data):
        raise MediaError(f"{name}: the picture is cut off or damaged ({len(data)} bytes); replace the file")
    encoded = np.frombuffer(data, np.uint8)
    pixels: NDArray[Any] | None = None
    try:
        if _may_have_alpha(data):
            pixels = _over_black(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED))
        if pixels is None and data:
            pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise MediaError(f"{name}: damaged picture ({error.err or error}); replace the file") from None
    if pixels is None:
        raise MediaError(f"{name}: not a picture that OpenCV can decode; use JPEG, PNG, WebP, BMP or TIFF")
    return np.ascontiguousarray(pixels[:, :, ::-1])  # OpenCV decodes to BGR


def decode_audio(data: bytes, name: str) -> tuple[Pcm, int]:
    """Decode sound bytes to mono float32 PCM [T] in [-1, 1] and its sample rate in Hz; `name` is used in messages.

    Raises:
        MediaError: empty, cut off, damaged, not finite, or not a sound.
    """
    if _container_is_cut_off(data):
        raise MediaError(f"{name}: the sound is cut off ({len(data)} bytes); replace the file")
    if plain := _sixteen_bit_wav(data):
        return plain
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            announced, rate = sound.frames, int(sound.samplerate)
            pcm = sound.read(announced, dtype="float32", always_2d=True)  # [T, channels]; GSM needs the number
    except (soundfile.LibsndfileError, MemoryError, ValueError) as error:  # the latter: no array is so long
        reason = getattr(error, "error_string", error)
        raise MediaError(f"{name}: not a sound that can be decoded ({reason}); use WAV, FLAC, OGG or MP3") from None
    if len(pcm) < announced * _LEAST_DECODED:
        raise MediaError(f"{name}: the sound is cut off ({len(pcm)} of {announced} samples); replace the file")
    if not len(pcm):
        raise MediaError(f"{name}: the sound has no samples; replace the file")
    if not np.isfinite(pcm).all():
        raise MediaError(f"{name}: the sound holds NaN or infinite samples; replace the file")
    return np.clip(_mono(pcm), -1.0, 1.0), rate


def _sixteen_bit_wav(data: bytes) -> tuple[Pcm, int] | None:
    """The commonest of sounds, 16 bits behind the shortest header that a WAV has; None for everything else.

    libsndfile reads bytes by calls back into Python, which takes longer than to decode the picture of a query.
    """
    if len(data) <= _WAV.size:
        return None
    *names_and_kind, channels, rate, bytes_per_second, block, bits, chunk, length = _WAV.unpack_from(data)
    is_known = (*names_and_kind, bits, chunk) == _SIXTEEN_BITS and 0 < channels <= _MOST_CHANNELS and rate > 0
    sizes = (length + _WAV.size, block, bytes_per_second)
    if not is_known or sizes != (len(data), 2 * channels, rate * block) or length % block:
        return None
    pcm = np.frombuffer(data, "<i2", offset=_WAV.size).reshape(-1, channels) * np.float32(1 / 32768)  # [T, channels]
    return _mono(pcm), rate


def _mono(pcm: NDArray[np.float32]) -> Pcm:
    """Channels [T, channels] as one [T], their mean."""
    return pcm[:, 0] if pcm.shape[1] == 1 else pcm.mean(axis=1)


def _over_black(pixels: NDArray[Any] | None) -> Pixels | None:
    """Multiply BGRA [H, W, 4] of 8 or 16 bits by its opacity: uint8 BGR [H, W, 3]; None where there is no alpha."""
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 4 or pixels.dtype.kind != "u":
        return None
    unit = pixels / np.iinfo(pixels.dtype).max  # [H, W, 4] in 0..1
    return np.asarray(np.rint(255 * unit[:, :, :3] * unit[:, :, 3:]), np.uint8)


def _may_have_alpha(data: bytes) -> bool:
    if data.startswith(_PNG):
        return bool(data[25] & _PNG_ALPHA) or b"tRNS" in data
    return data[8:12] == b"WEBP"  # OpenCV's TIFF decoder lays it over black by itself


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether an end marker follows the first scan (one before it belongs to an embedded preview)."""
    at = len(_JPEG)
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == _START_OF_SCAN:
            return data.find(_END_OF_IMAGE, at) >= 0
        filler = data[at + 1] == 0xFF
        at += 1 if filler else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _png_is_whole(data: bytes) -> bool:
    """Whether every chunk up to the end marker is there and has the checksum it says (PNG specification, 5.3)."""
    at = len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return False
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at = end
    return False


def _container_is_cut_off(data: bytes) -> bool:
    """Whether a WAV or AIFF says that it is longer than it is; its decoder would not complain."""
    byte_order: dict[bytes, Literal["little", "big"]] = {b"RIFF": "little", b"FORM": "big"}
    if data[:4] not in byte_order:
        return False
    declared = int.from_bytes(data[4:8], byte_order[data[:4]])
    return declared not in _STREAMED_SIZE and len(data) - 8 < declared


_WHOLE = {_JPEG: _jpeg_is_whole, _PNG: _png_is_whole}
