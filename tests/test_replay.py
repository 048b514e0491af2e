"""Replay: recorded moments give the same answers every time, whatever the real clock does; bad lines are named."""

from __future__ import annotations

import json
import math
import re
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.backends import open_backend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import BackendError, ManifestError
from edgefuse.runtime.loop import Loop
from edgefuse.runtime.mailbox import Mailbox
from edgefuse.runtime.predictor import Predictor
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.record import RecordedMailbox, Recorder
from edgefuse.runtime.replay import Replay, read_recording
from edgefuse.runtime.run import run


def write(tiny, folder, *lines):
    """A recording of `lines`, whose files are those of the tiny data."""
    for line in lines:
        for modality in ("image", "audio"):
            if line.get(modality):
                line[modality] = str(tiny.media / line[modality])
    (folder / "readings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def replayed(tiny, folder, **options):
    return list(run(tiny.bundle, replay=folder, **options))


def told(decisions):
    """What a line of a replay says."""
    documents = [decision.document() for decision in decisions]
    for document in documents:
        del document["stages_ms"]
    return documents


def test_each_moment_gives_one_decision_on_what_was_there(tiny, tmp_path):
    write(
        tiny,
        tmp_path,
        {"t_ms": 0, "image": "red.png"},
        {"t_ms": 40, "audio": "green.wav", "text": "blue"},
        {"t_ms": 40, "image": "green.png"},
        {"t_ms": 90, "text": None},
    )

    first, second, third = replayed(tiny, tmp_path)

    assert [decision.t_ms for decision in (first, second, third)] == [0.0, 40.0, 90.0]
    assert [decision.label for decision in (first, second, third)] == ["red", "green", "green"]
    assert first.presence == {"image": True, "audio": False, "text": False}
    assert second.presence == dict.fromkeys(("image", "audio", "text"), True)
    assert third.presence == {"image": True, "audio": True, "text": False}
    assert third.age_ms == {"image": 50.0, "audio": 50.0}
    assert (second.skew_ms, third.skew_ms) == (0.0, 0.0)


def test_answers_are_those_of_predict(tiny, tmp_path):
    write(tiny, tmp_path, {"t_ms": 5, "image": "red.png", "audio": "green.wav", "text": "green"})
    bundle = Bundle.open(tiny.bundle)
    with OnnxBackend(bundle) as backend:
        wanted = Predictor(bundle, backend).predict(
            image=tiny.media / "red.png", audio=tiny.media / "green.wav", text="green"
        )

    (found,) = replayed(tiny, tmp_path)

    assert (found.label, found.confidence) == (wanted.label, pytest.approx(wanted.confidence, abs=1e-6))
    assert found.weights == pytest.approx(wanted.weights)


def test_what_gets_too_old_between_two_readings_is_missing_from_that_moment_on(tiny, tmp_path):
    write(tiny, tmp_path, {"t_ms": 0, "image": "red.png", "text": "blue"}, {"t_ms": 5000, "text": "green"})

    found = replayed(tiny, tmp_path, limits_ms={"image": 300.0})

    assert [(decision.t_ms, decision.presence["image"]) for decision in found] == [
        (0.0, True),
        (pytest.approx(300.0, abs=1e-5), False),
        (5000.0, False),
    ]
    assert [decision.label for decision in found[1:]] == ["blue", "green"]


def test_two_replays_say_the_same_at_any_speed(tiny, tmp_path):
    rng = np.random.default_rng(1)
    colours = ("red", "green", "blue")
    lines = [
        {"t_ms": float(t_ms), modality: f"{rng.choice(colours)}{suffix}"}
        for t_ms in np.round(np.cumsum(rng.exponential(3, 60)), 3)
        for modality, suffix in [[("image", ".png"), ("audio", ".wav"), ("text", "")][rng.integers(3)]]
    ]
    write(tiny, tmp_path, *lines)

    fast, again, as_recorded = (told(replayed(tiny, tmp_path, speed=speed)) for speed in (0, 0, 2.0))

    assert len(fast) == len({line["t_ms"] for line in lines})
    assert json.dumps(fast) == json.dumps(again) == json.dumps(as_recorded)


def test_at_speed_one_it_takes_as_long_as_it_took(tiny, tmp_path):
    write(tiny, tmp_path, {"t_ms": 10_000, "text": "red"}, {"t_ms": 10_300, "text": "blue"})

    at = [time.monotonic() for _ in run(tiny.bundle, replay=tmp_path, speed=1.0)]

    assert 0.25 < at[1] - at[0] < 2.0


def test_a_rate_is_kept_on_the_recorded_clock_and_the_newest_wins(tiny, tmp_path):
    lines = [{"t_ms": t_ms, "text": ("red", "green", "blue")[t_ms // 10 % 3]} for t_ms in range(0, 100, 10)]
    write(tiny, tmp_path, *lines)

    found = replayed(tiny, tmp_path, max_rate=40.0)

    assert [decision.t_ms for decision in found] == [0.0, 25.0, 50.0, 75.0, 100.0]
    assert [decision.label for decision in found] == ["red", "blue", "blue", "green", "red"]
    assert found[-1].dropped["text"] == 5
    assert [decision.age_ms["text"] for decision in found] == [0.0, 5.0, 0.0, 5.0, 10.0]


def test_a_recording_replays_with_the_answers_it_was_recorded_with(tiny, tmp_path):
    bundle = Bundle.open(tiny.bundle)
    preprocessor, now_ns = Preprocessor(bundle), 7_000_000_000_123
    live = []
    with Recorder(tmp_path, 16_000) as recorder:
        mailbox = RecordedMailbox(preprocessor.empty, bundle.info.modalities, recorder.keep)
        writers = {modality: mailbox.writer(modality) for modality in bundle.info.modalities}
        with Loop(bundle.info, lambda: open_backend(bundle, None), mailbox, clock=lambda: now_ns) as loop:
            rng = np.random.default_rng(2)
            for _ in range(30):
                modality, colour = rng.choice(bundle.info.modalities), rng.choice(["red", "green", "blue"])
                value = {
                    "image": rng.integers(0, 256, (11, 13, 3)).astype(np.uint8),
                    "audio": rng.uniform(-1, 1, 160).astype(np.float32),
                    "text": str(colour),
                }[modality]
                tensors = writers[modality].tensors
                preprocessor.fill(modality, preprocessor.decode(modality, value), tensors)
                writers[modality].put(now_ns)
                live.append(loop.step())
                now_ns += int(rng.integers(1, 10**9))

    again = [decision for decision in replayed(tiny, tmp_path) if decision.age_ms and 0 in decision.age_ms.values()]

    assert len(again) == len(live) == 30
    for recorded, found in zip(live, again, strict=True):
        assert (found.label, found.confidence, found.presence) == (
            recorded.label, recorded.confidence, recorded.presence
        )  # fmt: skip
        assert found.t_ms == recorded.t_ms
        np.testing.assert_array_equal(found.probabilities, recorded.probabilities)


def test_a_stop_ends_a_slow_replay_at_once(tiny, tmp_path):
    write(tiny, tmp_path, {"t_ms": 0, "text": "red"}, {"t_ms": 3_600_000, "text": "blue"})
    stop = threading.Event()
    decisions = run(tiny.bundle, replay=tmp_path, speed=1.0, stop=stop)
    next(decisions)

    threading.Timer(0.05, stop.set).start()
    started = time.monotonic()

    assert list(decisions) == []
    assert time.monotonic() - started < 10


class Broken:
    """A backend that opens and never runs."""

    name = "broken"

    def pipeline(self):
        return self

    def run(self, fresh, presence):
        raise BackendError("no device")

    def close(self):
        pass


def test_a_backend_that_stays_broken_is_tried_again_on_the_recorded_clock_only(tiny, tmp_path):
    write(tiny, tmp_path, *({"t_ms": 2000 * n, "image": "red.png"} for n in range(5)))
    bundle = Bundle.open(tiny.bundle)
    replay = Replay(tmp_path, bundle.info, preprocessor := Preprocessor(bundle))
    mailbox = Mailbox(preprocessor.empty, bundle.info.modalities)
    tried_ms = []

    def open_broken():
        tried_ms.append(replay.clock() / 1e6)
        return Broken()

    loop = Loop(bundle.info, open_broken, mailbox, clock=replay.clock)

    assert list(replay.decisions(loop, mailbox, threading.Event())) == []
    assert tried_ms[:4] == [0.0, 100.0, 300.0, 700.0]  # then the picture is too old
    assert len(tried_ms) < 20


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a JSON object"),
        ("[1]", "found list, a line must be a JSON object"),
        ('{"image": "red.png"}', "t_ms is null, it must be the milliseconds"),
        ('{"t_ms": "0", "text": "red"}', 't_ms is "0", it must be'),
        ('{"t_ms": NaN, "text": "red"}', "t_ms is NaN, it must be"),
        ('{"t_ms": true, "text": "red"}', "t_ms is true, it must be"),
        ('{"t_ms": 1e300, "text": "red"}', "it must be the milliseconds"),
        ('{"t_ms": 0}', "no sensor; give at least one of image, audio, text"),
        ('{"t_ms": 0, "picture": "red.png"}', "unknown key 'picture'"),
        ('{"t_ms": 0, "image": "gone.png"}', "image 'gone.png' does not exist"),
        ('{"t_ms": 0, "image": 7}', "image is 7, it must be the name of a file, or null"),
        ('{"t_ms": 0, "text": " "}', 'text is " ", it must be words, or null'),
        ('{"t_ms": 0, "text": "\\ud800"}', "it must be words"),
        ('{"t_ms": 0, "text": "red", "input_ids": [1]}', "found text and input_ids; give one of them"),
        ('{"t_ms": 0, "input_ids": [1, 0, 0, 0]}', "attention_mask must be 4 whole numbers"),
        (
            '{"t_ms": 0, "input_ids": [1.5, 0, 0, 0], "attention_mask": [1, 0, 0, 0]}',
            "input_ids must be 4 whole numbers",
        ),
        (
            '{"t_ms": 0, "input_ids": [-1, 0, 0, 0], "attention_mask": [1, 0, 0, 0]}',
            "input_ids must be 4 whole numbers",
        ),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tiny, tmp_path, line, message):
    path = tmp_path / "hand-written.jsonl"
    path.write_text('{"t_ms": 0, "text": "red"}\n\n' + line + "\n")

    with pytest.raises(ManifestError, match=re.escape(message)) as refused:
        read_recording(path, Bundle.open(tiny.bundle).info)

    assert str(refused.value).startswith(f"{path}:3: ")
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_decoded_is_named_with_its_line(tiny, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "readings.jsonl").write_text('{"t_ms": 0, "text": "red"}\n{"t_ms": 1, "image": "bad.png"}\n')
    decisions = run(tiny.bundle, replay=tmp_path)

    assert next(decisions).label == "red"
    with pytest.raises(
        ManifestError, match=re.escape(f"{tmp_path}/readings.jsonl:2: {tmp_path}/bad.png: not a picture")
    ):
        next(decisions)


def test_a_sensor_that_the_model_lacks_is_refused(tiny, tmp_path):
    write(tiny, tmp_path, {"t_ms": 0, "image": "red.png"})
    info = Bundle.open(tiny.bundle).info.model_copy(update={"image": None})

    with pytest.raises(ManifestError, match=r":1: the model has no image encoder; it takes: audio, text"):
        read_recording(tmp_path, info)


@pytest.mark.parametrize("content", ["", "\n\n", '{"t_ms": 1, "te'])
def test_a_recording_without_readings_is_refused(tiny, tmp_path, content):
    (tmp_path / "readings.jsonl").write_text(content)

    with pytest.raises(ManifestError, match="no readings in it"):
        read_recording(tmp_path, Bundle.open(tiny.bundle).info)


def test_a_last_line_that_was_cut_off_is_left_out_wherever_it_was_cut(tiny, tmp_path):
    info = Bundle.open(tiny.bundle).info
    whole = '{"t_ms": 0, "text": "red"}\n{"t_ms": 1, "text": "blue"}'
    start = whole.index("\n") + 1
    for end in range(start, len(whole) + 1):
        (tmp_path / "readings.jsonl").write_text(whole[:end])
        assert len(read_recording(tmp_path, info)) == (2 if end == len(whole) else 1)


@given(st.lists(st.floats(-1e11, 1e11).filter(lambda t_ms: not math.isnan(t_ms)), min_size=1, max_size=20))
def test_readings_are_sorted_by_their_moment_and_keep_their_order_where_it_is_the_same(tiny, tmp_path_factory, moments):
    path = tmp_path_factory.mktemp("recording") / "readings.jsonl"
    path.write_text("".join(json.dumps({"t_ms": t_ms, "text": str(n)}) + "\n" for n, t_ms in enumerate(moments)))

    found = read_recording(path, Bundle.open(tiny.bundle).info)

    wanted = sorted(range(len(moments)), key=lambda n: round(moments[n] * 1e6))
    assert [int(reading.value) for reading in found] == wanted
