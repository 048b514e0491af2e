"""Alarms: what a specification says, how probabilities are smoothed, and that starts and stops take turns."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter

from edgefuse.runtime.alarms import HOLD_MS, STOP_SHARE, WINDOW_MS, Alarm, Alarms, AlarmSpec, parse_alarm
from edgefuse.runtime.decision import Decision
from edgefuse.runtime.errors import OptionError

LABELS = ("fire", "no", "yes", "2>1", "a/b@3ms")


def decision(t_ms, *probabilities):
    return Decision(
        t_ms=t_ms,
        label="",
        confidence=0.0,
        weights={},
        presence={},
        age_ms={},
        skew_ms=0.0,
        stages_ms={},
        dropped={},
        probabilities=np.array(probabilities),
    )


def events(alarm, *moments):
    """What `alarm` says of (t_ms, probability) after another."""
    return [event for moment in moments if (event := alarm.update(*moment)) is not None]


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("yes>0.8", AlarmSpec("yes", 0.8, 0.8 * STOP_SHARE, WINDOW_MS, HOLD_MS)),
        ("fire>0.8/0.5", AlarmSpec("fire", 0.8, 0.5)),
        ("fire>0.8/0.5@2000ms", AlarmSpec("fire", 0.8, 0.5, 2000)),
        ("fire>.8@0ms+0ms", AlarmSpec("fire", 0.8, 0.8 * STOP_SHARE, 0, 0)),
        ("fire>0.8/0.8+250.5ms", AlarmSpec("fire", 0.8, 0.8, WINDOW_MS, 250.5)),
        (" fire > 0.8 ", AlarmSpec("fire", 0.8, 0.8 * STOP_SHARE)),
        ("2>1>0.9", AlarmSpec("2>1", 0.9, 0.9 * STOP_SHARE)),
        ("a/b@3ms>0.5", AlarmSpec("a/b@3ms", 0.5, 0.5 * STOP_SHARE)),
    ],
)
def test_a_specification_says_when_an_alarm_is_on(spec, wanted):
    assert parse_alarm(spec, LABELS) == wanted


@given(
    label=st.sampled_from(LABELS),
    start=st.floats(0.01, 0.99),
    stop=st.none() | st.floats(0, 1),
    window_ms=st.none() | st.integers(0, 10**6),
    hold_ms=st.none() | st.integers(0, 10**6),
)
def test_what_was_written_is_what_is_read(label, start, stop, window_ms, hold_ms):
    stop = stop if stop is None else stop * start
    written = f"{label}>{start:.6f}"
    written += "" if stop is None else f"/{stop:.6f}"
    written += "" if window_ms is None else f"@{window_ms}ms"
    written += "" if hold_ms is None else f"+{hold_ms}ms"

    spec = parse_alarm(written, LABELS)

    assert spec.label == label
    assert spec.start == pytest.approx(start, abs=1e-6)
    assert spec.stop == pytest.approx(STOP_SHARE * start if stop is None else stop, abs=1e-6)
    assert spec.window_ms == (WINDOW_MS if window_ms is None else window_ms)
    assert spec.hold_ms == (HOLD_MS if hold_ms is None else hold_ms)


@given(st.text() | st.from_regex(re.compile(r"(fire|yes|maybe)?[>/@+ms.0-9 ]*"), fullmatch=True))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        spec = parse_alarm(text, LABELS)
    except OptionError as error:
        spec, message = None, str(error)

    if spec is None:
        assert repr(text) in message
        assert "\n" not in message
    else:
        assert spec.label in LABELS
        assert 0 <= spec.stop <= spec.start < 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fier>0.8", "no label 'fier'; did you mean 'fire'?"),
        ("smoke>0.8", "no label 'smoke'; it has: fire, no, yes"),
        ("fire", "cannot be read; write LABEL>START"),
        ("fire>high", "cannot be read"),
        ("fire>0.8@2s", "cannot be read"),
        ("fire>0.8/0.9", "starts above 0.8 and stops below 0.9"),
        ("fire>1", "START must be between 0 and 1"),
        ("fire>0", "START must be between 0 and 1"),
        ("fire>\u0660.\u0665", "cannot be read"),
    ],
)
def test_a_specification_that_cannot_be_is_refused(spec, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        parse_alarm(spec, LABELS)


def test_two_alarms_for_one_label_are_refused():
    with pytest.raises(OptionError, match="same label"):
        Alarms(["fire>0.8", "fire>0.5"], LABELS)


def test_evenly_spaced_probabilities_are_smoothed_as_a_filter_of_first_order_does():
    step_ms, window_ms = 40.0, 300.0
    probabilities = np.random.default_rng(0).random(200)
    share = 1 - math.exp(-step_ms / window_ms)
    wanted, _ = lfilter([share], [1, share - 1], probabilities, zi=[(1 - share) * probabilities[0]])
    alarm = Alarm(AlarmSpec("fire", 1e-9, 0.0, window_ms, 0))

    (first,) = events(alarm, (0.0, probabilities[0]))
    for index, probability in enumerate(probabilities[1:], start=1):
        alarm.update(index * step_ms, probability)
    last = alarm.end()

    assert first.confidence == probabilities[0]
    assert last.confidence == pytest.approx(wanted[-1], rel=1e-12)
    assert last.peak == pytest.approx(wanted.max(), rel=1e-12)


def test_a_time_that_is_split_by_more_decisions_changes_nothing():
    coarse, fine = (Alarm(AlarmSpec("fire", 0.5, 0.1, 500, 0)) for _ in range(2))
    for alarm in (coarse, fine):
        alarm.update(0.0, 0.0)

    (once,) = events(coarse, (1000.0, 0.9))
    split = events(fine, *((t_ms, 0.9) for t_ms in (100.0, 300.0, 301.0, 1000.0)))
    at_the_end = fine.end()

    assert once.confidence == pytest.approx(at_the_end.confidence, rel=1e-12)
    assert [event.event for event in split] == ["start"]


def test_a_short_peak_does_not_start_an_alarm_and_a_long_one_does():
    alarm = Alarm(AlarmSpec("fire", 0.8, 0.5, 1000, 0))

    calm_then_peak = events(alarm, (0.0, 0.0), (1000.0, 0.0), (1100.0, 1.0), (1200.0, 0.0))
    lasting = events(alarm, *((1200.0 + 100 * n, 1.0) for n in range(1, 31)))

    assert calm_then_peak == []
    assert [event.event for event in lasting] == ["start"]
    assert lasting[0].confidence > 0.8
    assert 1200 + 1000 < lasting[0].t_ms < 1200 + 2000  # 0.8 is reached after ln(5) windows


def test_between_the_thresholds_an_alarm_stays_what_it_is():
    alarm = Alarm(AlarmSpec("fire", 0.8, 0.5, 0, 0))

    found = events(alarm, (0.0, 0.7), (1.0, 0.9), (2.0, 0.6), (3.0, 0.79), (4.0, 0.4), (5.0, 0.7), (6.0, 0.81))

    assert [(event.event, event.t_ms) for event in found] == [("start", 1.0), ("stop", 4.0), ("start", 6.0)]


def test_an_alarm_stays_on_for_the_least_time():
    alarm = Alarm(AlarmSpec("fire", 0.8, 0.5, 0, 1000))

    found = events(alarm, (0.0, 0.9), (10.0, 0.1), (999.0, 0.1), (1000.0, 0.1))

    assert [(event.event, event.t_ms, event.duration_ms) for event in found] == [
        ("start", 0.0, 0.0),
        ("stop", 1000.0, 1000.0),
    ]


@given(
    st.lists(st.tuples(st.floats(0, 3000), st.floats(0, 1)), max_size=60),
    st.floats(0.05, 0.95),
    st.floats(0, 1),
    st.sampled_from([0.0, 50.0, 2000.0]),
    st.sampled_from([0.0, 100.0, 5000.0]),
)
def test_starts_and_stops_take_turns_whatever_comes(moments, start, share, window_ms, hold_ms):
    alarm = Alarm(AlarmSpec("fire", start, share * start, window_ms, hold_ms))
    t_ms, found = 0.0, []
    for gap_ms, probability in moments:
        t_ms += gap_ms
        found += events(alarm, (t_ms, probability))
    found += [event for event in [alarm.end()] if event is not None]

    assert [event.event for event in found] == ["start", "stop"] * (len(found) // 2)
    assert alarm.end() is None
    for begin, end in zip(found[::2], found[1::2], strict=True):
        assert begin.confidence > start
        assert begin.peak == begin.confidence
        assert begin.duration_ms == 0
        assert end.duration_ms == end.t_ms - begin.t_ms
        assert 1 >= end.peak >= max(begin.confidence, end.confidence)
        if end is not found[-1]:  # the last one may have been ended from outside
            assert end.confidence < share * start
            assert end.duration_ms >= hold_ms


def test_each_alarm_watches_its_own_label():
    alarms = Alarms(["yes>0.6@0ms+0ms", "fire>0.6@0ms+0ms"], LABELS[:3])

    found = [
        [(event.event, event.alarm) for event in alarms.decided(decision(float(t_ms), *probabilities))]
        for t_ms, probabilities in enumerate([(0.1, 0.1, 0.8), (0.8, 0.1, 0.1), (0.8, 0.1, 0.1)])
    ]

    assert found == [[("start", "yes")], [("stop", "yes"), ("start", "fire")], []]
    assert [(event.event, event.alarm) for event in alarms.ended()] == [("stop", "fire")]
    assert list(alarms.ended()) == []
