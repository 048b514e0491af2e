"""Decisions and alarms as lines of text: JSON, or "topic JSON" for MQTT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TextIO

from edgefuse.runtime.alarms import AlarmEvent
from edgefuse.runtime.decision import Decision
from edgefuse.runtime.errors import OptionError

LONGEST_TOPIC = 65_535  # bytes of UTF-8, MQTT 3.1.1, 1.5.3


class Lines:
    """Writes a line for each decision and each event of an alarm, whole and at once.

    Args:
        stream: where they go.
        topic: None for plain JSON; else each line begins with it, that of an alarm with `topic`/alarm.
        with_stages: whether a decision tells its stages_ms; a replay's lines do not, so that two are the same.

    Raises:
        OptionError: no topic that MQTT can publish to.
    """

    def __init__(self, stream: TextIO, topic: str | None = None, *, with_stages: bool = True) -> None:
        self._stream = stream
        self._topic = None if topic is None else _checked(topic)
        self._with_stages = with_stages

    def decision(self, decision: Decision) -> None:
        """Write a decision."""
        document = decision.document()
        if not self._with_stages:
            del document["stages_ms"]
        self._write("", document)

    def alarm(self, event: AlarmEvent) -> None:
        """Write an event of an alarm."""
        self._write("/alarm", event.document())

    def _write(self, below: str, document: Mapping[str, Any]) -> None:
        start = "" if self._topic is None else f"{self._topic}{below} "
        self._stream.write(f"{start}{json.dumps(document)}\n")
        self._stream.flush()


def _checked(topic: str) -> str:
    is_short = len(topic.encode(errors="replace")) < LONGEST_TOPIC - len("/alarm")
    if not (topic and topic.isprintable() and is_short) or any(sign in topic for sign in " +#") or topic[0] == "$":
        raise OptionError(f"{topic[:80]!r} is no MQTT topic to publish to; give one without spaces, + and #: home/door")
    return topic
