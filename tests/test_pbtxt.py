"""The text form of protobuf messages, read back by protobuf's own parser."""

from __future__ import annotations

import string

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.optimize.pbtxt import Word, to_pbtxt

NAMES = list(FieldDescriptorProto.DESCRIPTOR.enum_types_by_name["Type"].values_by_name)
# Protobuf's description of itself has all that a writer can get wrong: strings, numbers, enums, lists and nesting.
fields = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(),
        "number": st.integers(-(2**31), 2**31 - 1),
        "type": st.sampled_from([Word(name) for name in NAMES]),
    },
)
messages = st.recursive(
    st.fixed_dictionaries({}, optional={"name": st.text(), "field": st.lists(fields)}),
    lambda inner: st.fixed_dictionaries(
        {}, optional={"name": st.text(), "nested_type": st.lists(inner), "reserved_name": st.lists(st.text())}
    ),
    max_leaves=6,
)


def as_proto(message: dict) -> DescriptorProto:
    """The same message by protobuf's own constructors."""
    return DescriptorProto(
        **{
            **message,
            **({"field": [FieldDescriptorProto(**field) for field in message["field"]]} if "field" in message else {}),
            **({"nested_type": [as_proto(m) for m in message["nested_type"]]} if "nested_type" in message else {}),
        }
    )


@given(messages)
def test_what_is_written_is_what_protobuf_reads(message):
    assert text_format.Parse(to_pbtxt(message), DescriptorProto()) == as_proto(message)


@given(st.text(), st.text(string.digits))
def test_any_text_survives_also_where_a_digit_follows_an_escape(text, digits):
    written = to_pbtxt({"name": text + "\x01" + digits})

    assert written.isascii()
    assert text_format.Parse(written, DescriptorProto()).name == text + "\x01" + digits


def test_an_empty_message_is_written():
    parsed = text_format.Parse(to_pbtxt({"options": {}}), DescriptorProto())

    assert parsed.HasField("options")


def test_lone_surrogates_are_no_text():
    with pytest.raises(UnicodeEncodeError):
        to_pbtxt({"name": "\ud800"})
