"""Lines: one JSON document each, with a topic where MQTT is to take them, whole at the moment that they are written."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from edgefuse.runtime.alarms import AlarmEvent
from edgefuse.runtime.decision import Decision
from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.outputs import Lines

DECISION = Decision(
    t_ms=1234.56789,
    label="le feu\nbrûle",
    confidence=0.98765432,
    weights={"image": 0.75, "text": 0.25},
    presence={"image": True, "text": True},
    age_ms={"image": 12.34567, "text": 5.0},
    skew_ms=7.34567,
    stages_ms={"image": 1.5, "head": 0.25, "total": 2.0},
    dropped={"image": 3, "text": 0},
    probabilities=np.array([0.9, 0.1]),
)
EVENT = AlarmEvent("start", "fire", 1234.5, 0.87654, 0.9, 0.0)


class Pipe(io.StringIO):
    """Remembers what a reader at the other end has after each flush."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def flush(self):
        self.flushed.append(self.getvalue())


def test_a_decision_is_one_line_of_json():
    pipe = Pipe()

    Lines(pipe).decision(DECISION)

    assert pipe.getvalue().count("\n") == 1
    assert json.loads(pipe.getvalue()) == {
        "t_ms": 1234.568,
        "label": "le feu\nbrûle",
        "confidence": 0.9877,
        "weights": {"image": 0.75, "text": 0.25},
        "presence": {"image": True, "text": True},
        "age_ms": {"image": 12.346, "text": 5.0},
        "skew_ms": 7.346,
        "stages_ms": {"image": 1.5, "head": 0.25, "total": 2.0},
        "dropped": {"image": 3, "text": 0},
    }


def test_an_alarm_is_told_from_a_decision_by_a_key():
    pipe = Pipe()
    lines = Lines(pipe)

    lines.decision(DECISION)
    lines.alarm(EVENT)

    decision, alarm = map(json.loads, pipe.getvalue().splitlines())
    assert "event" not in decision
    assert alarm == {
        "event": "start",
        "alarm": "fire",
        "t_ms": 1234.5,
        "confidence": 0.8765,
        "peak": 0.9,
        "duration_ms": 0.0,
    }


def test_each_line_is_flushed_whole():
    pipe = Pipe()
    lines = Lines(pipe, "home/door")

    lines.decision(DECISION)
    lines.alarm(EVENT)

    assert len(pipe.flushed) == 2
    assert all(flushed.endswith("}\n") for flushed in pipe.flushed)


def test_a_replay_leaves_the_times_of_its_stages_out():
    pipe = Pipe()

    Lines(pipe, with_stages=False).decision(DECISION)

    wanted = DECISION.document()
    del wanted["stages_ms"]
    assert json.loads(pipe.getvalue()) == wanted


def test_a_topic_stands_before_the_document_and_alarms_have_their_own():
    pipe = Pipe()
    lines = Lines(pipe, "home/door")

    lines.decision(DECISION)
    lines.alarm(EVENT)

    split = [line.split(" ", 1) for line in pipe.getvalue().splitlines()]
    assert [topic for topic, _ in split] == ["home/door", "home/door/alarm"]
    assert [json.loads(payload) for _, payload in split] == [DECISION.document(), EVENT.document()]


@pytest.mark.parametrize(
    "topic",
    ["", "a b", "home/+/door", "home/#", "a\nb", "a\0b", "$SYS/x", "x" * 65_536, "half\ud800"],
)
def test_a_topic_that_cannot_be_published_to_is_refused(topic):
    with pytest.raises(OptionError, match="no MQTT topic") as refused:
        Lines(io.StringIO(), topic)

    assert len(str(refused.value)) < 600
