"""Recording: what the sensors gave is on disk exactly, as other readers see it too; a bad disk stops nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import soundfile

from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.record import INDEX, MOST_WAITING, RecordedMailbox, Recorder
from edgefuse.runtime.replay import read_recording

RATE = 16_000
MODALITIES = ("image", "audio", "text")


@pytest.fixture
def empty(tiny):
    return Preprocessor(Bundle.open(tiny.bundle)).empty


def random_like(tensors, rng):
    return {
        name: (
            rng.integers(0, 5, array.shape).astype(array.dtype)
            if array.dtype != np.float32
            else rng.uniform(-1, 1, array.shape).astype(np.float32)
        )
        for name, array in tensors.items()
    }


def lines_of(folder):
    return [json.loads(line) for line in (folder / INDEX).read_text().splitlines()]


def test_readings_come_back_exactly_by_other_readers(tmp_path, empty):
    rng = np.random.default_rng(0)
    given = {modality: random_like(empty(modality), rng) for modality in MODALITIES}

    with Recorder(tmp_path / "new" / "recording", RATE) as recorder:
        for number, modality in enumerate(MODALITIES):
            recorder.keep(modality, given[modality], 1_000_000_123 + number)
        recorder.keep("text", None, 2_000_000_000)

    folder = tmp_path / "new" / "recording"
    image, audio, text, withdrawn = lines_of(folder)
    assert [line["t_ms"] for line in (image, audio, text, withdrawn)] == [
        pytest.approx(1000.000123, abs=1e-9),
        pytest.approx(1000.000124, abs=1e-9),
        pytest.approx(1000.000125, abs=1e-9),
        2000.0,
    ]
    pixels = cv2.cvtColor(cv2.imread(str(folder / image["image"])), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(pixels, given["image"]["image"][0])
    pcm, rate = soundfile.read(folder / audio["audio"], dtype="float32")
    np.testing.assert_array_equal(pcm, given["audio"]["audio"][0])
    assert rate == RATE
    assert {name: [text[name]] for name in ("input_ids", "attention_mask")} == {
        name: ids.tolist() for name, ids in given["text"].items()
    }
    assert withdrawn == {"t_ms": 2000.0, "text": None}


def test_the_mailbox_records_what_the_loop_never_takes_and_what_is_withdrawn(empty):
    kept = []
    mailbox = RecordedMailbox(
        empty,
        MODALITIES,
        lambda modality, tensors, t_ns: kept.append((modality, tensors and tensors["image"].copy(), t_ns)),
    )
    writer = mailbox.writer("image")

    for number in range(5):
        writer.tensors["image"][:] = number
        writer.put(number)
    writer.clear()
    mailbox.writer("image")
    writer.put(99)  # another has its place: not accepted

    assert [(modality, tensor[0, 0, 0, 0], t_ns) for modality, tensor, t_ns in kept[:5]] == [
        ("image", number, number) for number in range(5)
    ]
    assert [entry[:2] for entry in kept[5:]] == [("image", None)]
    assert mailbox.dropped["image"] == 4


def test_a_reading_is_copied_before_the_sensor_writes_the_next(tmp_path, empty):
    tensors = empty("image")
    with Recorder(tmp_path, RATE) as recorder:
        for number in range(20):
            tensors["image"][:] = number
            recorder.keep("image", tensors, number)

    values = [cv2.imread(str(tmp_path / line["image"])).max() for line in lines_of(tmp_path)]
    assert values == list(range(20))


def test_recording_stops_at_its_limit_says_so_once_and_nothing_else_stops(tmp_path, empty):
    notices = []
    size = 0
    with Recorder(tmp_path, RATE, notices.append, limit_bytes=10_000) as recorder:
        for number in range(MOST_WAITING):  # of 700 bytes each
            recorder.keep("audio", empty("audio"), number)

    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert 10_000 <= size < 11_000
    assert len(lines_of(tmp_path)) == recorder.kept < MOST_WAITING
    assert [(notice.about, notice.is_well) for notice in notices] == [("recording", False)]
    assert "it has reached its limit; the run goes on" in notices[0].message


def test_a_disk_that_fails_ends_the_recording_in_one_line(tmp_path, empty):
    notices = []
    with Recorder(tmp_path, RATE, notices.append) as recorder:
        recorder.keep("image", empty("image"), 0)
        while recorder.kept < 1:
            time.sleep(0.001)
        (tmp_path / "image" / "0000002.png").mkdir()  # what cannot be written
        recorder.keep("image", empty("image"), 1)
        recorder.keep("image", empty("image"), 2)

    assert recorder.kept == 1
    assert len(notices) == 1
    assert "stops after 1 readings: Is a directory" in notices[0].message


def test_a_disk_that_is_slow_holds_nobody_up(tmp_path, empty, monkeypatch):
    may_write = threading.Event()
    write = Recorder._try_write
    monkeypatch.setattr(Recorder, "_try_write", lambda self, *reading: may_write.wait(30) and write(self, *reading))

    with Recorder(tmp_path, RATE) as recorder:
        for number in range(MOST_WAITING + 10):
            recorder.keep("text", empty("text"), number)
        dropped = recorder.dropped
        may_write.set()

    assert 9 <= dropped <= 10  # one may be in the writer's hands
    assert recorder.kept + recorder.dropped == MOST_WAITING + 10


def test_a_folder_with_a_recording_is_not_overwritten(tmp_path):
    (tmp_path / INDEX).write_text("precious\n")

    with pytest.raises(OptionError, match="holds a recording"):
        Recorder(tmp_path, RATE)

    assert (tmp_path / INDEX).read_text() == "precious\n"


@pytest.mark.parametrize("blocked", ["a file", "below a file"])
def test_a_folder_that_cannot_be_is_refused(tmp_path, blocked):
    file = tmp_path / "file"
    file.write_text("")

    with pytest.raises(OptionError, match="give another folder"):
        Recorder(file if blocked == "a file" else file / "below", RATE)


def test_a_recording_that_was_killed_is_whole_up_to_its_end(tmp_path, tiny):
    script = f"""
import sys, time
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.record import Recorder
empty = Preprocessor(Bundle.open({str(tiny.bundle)!r})).empty
recorder = Recorder({str(tmp_path)!r}, {RATE})
number = 0
while True:
    recorder.keep("image", empty("image"), number)
    number += 1
    time.sleep(0.0005)
    if recorder.kept >= 50: print("ready", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)

    readings = read_recording(tmp_path, Bundle.open(tiny.bundle).info)

    assert len(readings) >= 49
    for reading in readings:
        assert cv2.imread(reading.value).shape == (8, 8, 3)
