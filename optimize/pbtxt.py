"""Writes the text form of a protobuf message, as Triton reads its `config.pbtxt`.

The form is that of protobuf.dev/reference/protobuf/textformat-spec. Written by hand, since the message's own class
would come with a client for Triton, which nothing else here needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, Union

Value: TypeAlias = Union[str, int, "Message", Sequence[Union[str, int, "Message"]]]
Message: TypeAlias = Mapping[str, "Value"]  # field -> its value; a list for a repeated field

_PLAIN = frozenset(range(0x20, 0x7F)) - frozenset(b'"\\')  # bytes that stand for themselves between quotes


class Word(str):
    """The name of an enum's value, which stands without quotes."""

    __slots__ = ()


def to_pbtxt(message: Message, indent: str = "") -> str:
    """The fields of `message`, one a line, each line behind `indent`."""
    return "".join(_field(name, value, indent) for name, value in message.items())


def _field(name: str, value: Value, indent: str) -> str:
    if isinstance(value, Word):
        return f"{indent}{name}: {value}\n"
    if isinstance(value, str):
        return f"{indent}{name}: {_quoted(value)}\n"
    if isinstance(value, int):
        return f"{indent}{name}: {value}\n"
    if isinstance(value, Mapping):
        return f"{indent}{name} {{\n{to_pbtxt(value, indent + '  ')}{indent}}}\n"
    return "".join(_field(name, item, indent) for item in value)


def _quoted(text: str) -> str:
    """UTF-8 between quotes, with octal escapes: three digits always, so that a digit may follow."""
    return '"' + "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in text.encode()) + '"'
