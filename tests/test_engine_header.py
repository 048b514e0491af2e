"""The first bytes of an engine tell who made it and for what; the headers of real engines are in test_build_engine."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.runtime.engine_header import SIZE, SM_BITS, Header, read_header, same_version

BYTES = st.tuples(*[st.integers(0, 255)] * 4)


def rtx(version: tuple[int, ...] = (1, 7, 1, 116), mask: int = 0x0C, size: int = SIZE) -> bytes:
    """A header as TensorRT-RTX 1.7 writes it."""
    return b"vtrt" + struct.pack("<12xQ4B4sQ24x", size, *version, b"vtrt", mask)


def tensorrt(version: tuple[int, ...], serialization: int = 0) -> bytes:
    """What trtexec reads of a plan of TensorRT."""
    return b"ftrt" + struct.pack("<I16x4B", serialization, *version)


@given(BYTES, st.sets(st.sampled_from(SM_BITS)), st.integers(0, 2**63))
def test_a_header_of_tensorrt_rtx_tells_version_gpus_and_size(
    version: tuple[int, int, int, int], sm: set[int], size: int
) -> None:
    mask = sum(1 << SM_BITS.index(number) for number in sm)
    found = read_header(rtx(version, mask, size) + b"payload")
    assert found == Header("tensorrt-rtx", version, tuple(sorted(sm)), size)


@given(BYTES)
def test_a_header_of_tensorrt_tells_the_version(version: tuple[int, int, int, int]) -> None:
    assert read_header(tensorrt(version)) == Header("tensorrt", version, (), None)


def test_gpus_of_a_later_version_are_left_out() -> None:
    assert read_header(rtx(mask=0x7E)) == Header("tensorrt-rtx", (1, 7, 1, 116), (80, 86, 89, 120, 121), SIZE)


@pytest.mark.parametrize(
    "data", [b"", b"vtrt", rtx()[:-1], b"ftrt" + bytes(20), tensorrt((10, 3, 0, 26), serialization=1), b"\x08\x09" * 99]
)
def test_what_is_no_known_header_is_none(data: bytes) -> None:
    assert read_header(data) is None


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    for magic in (b"", b"vtrt", b"ftrt"):
        read_header(magic + data)


@pytest.mark.parametrize(
    ("version", "same"),
    [
        ("10.3.0.26", True),
        ("10.3.0", True),  # as the wheels of 10.3 call themselves
        ("10.3.0.26.post1", True),
        ("10.3.0.27", False),
        ("10.3.1", False),
        ("1.7", False),
    ],
)
def test_versions_are_compared_as_far_as_they_are_told(version: str, same: bool) -> None:
    assert same_version(Header("tensorrt", (10, 3, 0, 26)), version) is same
