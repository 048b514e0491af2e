"""What an engine file says of itself in its first 64 bytes, readable without TensorRT and without a GPU.

TensorRT-RTX, measured on builds of 1.7.1.116 for each GPU; numbers are little-endian:
    0   vtrt
    16  8 bytes: size of the whole file
    24  4 bytes: version of the compiler, as 1 7 1 116
    32  8 bytes: the GPUs, one bit each, see SM_BITS
TensorRT, as its own trtexec --getPlanVersionOnly reads it:
    0   ftrt
    4   4 bytes: serialization version, 0
    24  4 bytes: version of the compiler
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

SIZE = 64  # bytes of TensorRT-RTX's header
_RTX, _TENSORRT = b"vtrt", b"ftrt"
SM_BITS = (75, 80, 86, 89, 120, 121)  # compute capability of bit 0, 1, ...; a bit above is of a later version


@dataclass(frozen=True, slots=True)
class Header:
    """Who made an engine and for what."""

    target: str  # tensorrt-rtx or tensorrt
    version: tuple[int, int, int, int]  # of the compiler
    sm: tuple[int, ...] = ()  # compute capabilities that it was built for; () where the header does not tell
    size_bytes: int | None = None  # of the whole file; None where the header does not tell


def read_header(data: bytes) -> Header | None:
    """The header of an engine file, None where it is not one that is known."""
    if len(data) >= SIZE and data[:4] == _RTX:
        size, mask = struct.unpack_from("<Q8xQ", data, 16)
        sm = tuple(number for bit, number in enumerate(SM_BITS) if mask >> bit & 1)
        return Header("tensorrt-rtx", _version(data), sm, size)
    if len(data) >= 28 and data[:4] == _TENSORRT and data[4:8] == bytes(4):
        return Header("tensorrt", _version(data))
    return None


def same_version(header: Header, version: str) -> bool:
    """Whether `version` is the header's, as far as it goes: some packages call 10.3.0.26 just 10.3.0."""
    numbers = []
    for word in version.split("."):
        if not word.isdecimal():
            break
        numbers.append(int(word))
    return list(header.version[: len(numbers)]) == numbers[:4]


def _version(data: bytes) -> tuple[int, int, int, int]:
    major, minor, patch, build = data[24:28]
    return major, minor, patch, build
