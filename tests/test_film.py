"""Films: files are played once, in order, at their own speed, and fitted as predict does it."""

from __future__ import annotations

import time
import tracemalloc
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgefuse.runtime import film as module
from edgefuse.runtime.errors import SensorError
from edgefuse.runtime.film import Canvas, Pictures, Video
from edgefuse.runtime.mailbox import Mailbox
from edgefuse.runtime.source import SpoiledError


@pytest.fixture
def mailbox(preprocessor) -> Mailbox:
    return Mailbox(preprocessor.empty, ("image",))


@pytest.fixture
def canvas(preprocessor) -> Canvas:
    return Canvas(preprocessor)


def write_video(path: Path, levels: list[int], fps: float) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (64, 48))
    for level in levels:
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    return path


def play(source: Video | Pictures, mailbox: Mailbox) -> tuple[list[int], list[float]]:
    """The brightness of each picture and the seconds at which it came, until the end."""
    levels, seconds = [], []

    def step() -> bool:
        source.read(writer)
        if reading := mailbox.take("image"):
            levels.append(int(reading.tensors["image"][0, 4, 4, 0]))
            seconds.append(reading.t_ns / 1e9)
        return True

    writer = mailbox.writer("image")
    source.open()
    with pytest.raises(EOFError, match="has ended"):
        deque(iter(step, False), maxlen=0)
    source.close()
    return levels, seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> list[int]:
    """Time that passes only while somebody sleeps: [nanoseconds now, longest sleep]."""
    clock = [0, 0]

    def sleep(seconds: float) -> None:
        clock[0] += round(seconds * 1e9)
        clock[1] = max(clock[1], round(seconds * 1e9))

    monkeypatch.setattr(time, "monotonic_ns", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", sleep)
    return clock


def test_a_video_is_played_whole_at_its_own_rate(tmp_path, canvas, mailbox):
    video = Video(write_video(tmp_path / "a.avi", list(range(0, 240, 20)), fps=50), canvas)

    levels, seconds = play(video, mailbox)

    np.testing.assert_allclose(levels, range(0, 240, 20), atol=3)
    np.testing.assert_allclose(np.diff(seconds), 1 / 50, rtol=1e-6)


def test_pictures_of_a_video_are_skipped_where_the_machine_is_too_slow(tmp_path, canvas, mailbox, clock):
    video = Video(write_video(tmp_path / "a.avi", list(range(0, 240, 20)), fps=100), canvas)
    writer = mailbox.writer("image")
    video.read(writer)  # that of 0 ms, 0
    clock[0] += 57_000_000

    video.read(writer)

    assert abs(int(mailbox.take("image").tensors["image"][0, 4, 4, 0]) - 100) <= 3  # that of 50 ms


def test_a_slow_video_is_waited_for_without_holding_up_the_thread(tmp_path, canvas, mailbox, clock):
    video = Video(write_video(tmp_path / "a.avi", [10, 20, 30], fps=1), canvas)

    levels, _ = play(video, mailbox)

    np.testing.assert_allclose(levels, [10, 20, 30], atol=3)
    assert clock == [3_000_000_000, 500_000_000]


def test_what_is_no_video_is_an_error_at_once(tmp_path, canvas):
    (tmp_path / "a.mp4").write_bytes(b"not a video")

    with pytest.raises(SensorError, match=r"a.mp4: not a video that OpenCV can read"):
        Video(tmp_path / "a.mp4", canvas)


def test_a_picture_of_a_video_comes_out_as_predict_would_see_it(tmp_path, canvas, mailbox, preprocessor):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    writer.write(noise)
    writer.release()
    is_there, frame = cv2.VideoCapture(str(tmp_path / "a.avi")).read()
    assert is_there
    video = Video(tmp_path / "a.avi", canvas)

    video.read(mailbox.writer("image"))

    expected = preprocessor.prepare("image", np.ascontiguousarray(frame[:, :, ::-1]))["image"]
    np.testing.assert_array_equal(mailbox.take("image").tensors["image"], expected)


def test_the_pictures_of_a_folder_come_in_the_order_of_their_names(tmp_path, preprocessor, mailbox, monkeypatch):
    monkeypatch.setattr(module, "PICTURES_HZ", 50.0)
    for number, name in enumerate(("c.png", "a.png", "b.JPG")):
        cv2.imwrite(str(tmp_path / name), np.full((9, 9, 3), 50 * number, np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    shown = []
    pictures = Pictures(tmp_path, Canvas(preprocessor, lambda frame: shown.append(int(frame[0, 0, 0]))))

    levels, seconds = play(pictures, mailbox)

    assert levels == [50, 100, 0] == shown
    np.testing.assert_allclose(np.diff(seconds), 1 / 50, rtol=1e-6)


def test_a_picture_file_has_its_channels_in_the_right_order(tmp_path, canvas, mailbox):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((9, 9, 3), (1, 2, 3), np.uint8))  # BGR

    Pictures(tmp_path / "a.png", canvas).read(mailbox.writer("image"))

    assert mailbox.take("image").tensors["image"][0, 0, 0].tolist() == [3, 2, 1]


def test_a_damaged_picture_is_skipped_by_name(tmp_path, canvas, mailbox, monkeypatch):
    monkeypatch.setattr(module, "PICTURES_HZ", 50.0)
    (tmp_path / "a.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((9, 9, 3), np.uint8))
    pictures = Pictures(tmp_path, canvas)
    writer = mailbox.writer("image")

    with pytest.raises(SpoiledError, match=r"a.png: not a picture"):
        pictures.read(writer)

    assert pictures.read(writer)


def test_a_folder_without_pictures_and_a_picture_that_is_not_there_are_errors_at_once(tmp_path, canvas):
    (tmp_path / "notes.txt").write_text("no picture")

    with pytest.raises(SensorError, match=r"none of its 1 files is a picture; pictures end in .bmp"):
        Pictures(tmp_path, canvas)
    with pytest.raises(SensorError, match="no such file"):
        Pictures(tmp_path / "a.png", canvas)


def test_one_picture_ends_without_a_word(tmp_path, canvas, mailbox):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((9, 9, 3), np.uint8))
    picture = Pictures(tmp_path / "a.png", canvas)
    writer = mailbox.writer("image")
    picture.read(writer)

    with pytest.raises(EOFError) as end:
        picture.read(writer)

    assert str(end.value) == ""


def test_no_array_is_made_for_a_picture(canvas, mailbox):
    writer, frame = mailbox.writer("image"), np.zeros((480, 640, 3), np.uint8)
    canvas.put(frame, writer, 0)
    tracemalloc.start()
    try:
        for t_ns in range(20):
            canvas.put(frame, writer, t_ns)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < frame.nbytes / 100
