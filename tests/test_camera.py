"""Cameras: the newest whole picture counts, with the moment it came; what stalls or is damaged is an error, no hang."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np
import pytest

from edgefuse.runtime import camera as module
from edgefuse.runtime.camera import Camera, open_camera
from edgefuse.runtime.decision import Notice
from edgefuse.runtime.errors import SensorError
from edgefuse.runtime.film import Pictures
from edgefuse.runtime.mailbox import Mailbox
from edgefuse.runtime.sensors import Sensors
from edgefuse.runtime.source import SpoiledError
from tests.waiting import until

HEIGHT, WIDTH = 48, 64


@pytest.fixture
def mailbox(preprocessor) -> Mailbox:
    return Mailbox(preprocessor.empty, ("image",))


def plain(level: int) -> np.ndarray:
    """A picture of one colour, BGR (level, 0, 255 - level)."""
    return np.full((HEIGHT, WIDTH, 3), (level, 0, 255 - level), np.uint8)


class FakeCapture:
    """cv2.VideoCapture of a camera whose pictures come as `script` says: (milliseconds of waiting, what is retrieved).

    Time is its own: `now_ns` goes on only while it waits.
    """

    def __init__(self, script: list[tuple[float, Any]], is_there: bool = True) -> None:
        self.script, self.is_there = deque(script), is_there
        self.arguments: tuple[Any, ...] = ()
        self.properties: dict[int, float] = {cv2.CAP_PROP_FPS: 30.0}
        self.now_ns = 0
        self.is_released = False
        self._picture: Any = None

    def __call__(self, *arguments: Any) -> FakeCapture:
        self.arguments = arguments
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return self.is_there

    def get(self, prop: int) -> float:
        return self.properties.get(prop, 0.0)

    def set(self, prop: int, value: float) -> bool:
        self.properties[prop] = value
        return True

    def grab(self) -> bool:
        if not self.script:
            return False
        waited_ms, self._picture = self.script.popleft()
        self.now_ns += int(waited_ms * 1e6)
        return True

    def retrieve(self, image: Any = None) -> tuple[bool, Any]:
        self.now_ns += 5_000_000  # what decoding takes must not make the picture look newer
        return self._picture is not None, self._picture

    def release(self) -> None:
        self.is_released = True


@pytest.fixture
def fake(monkeypatch, preprocessor):
    def make(script: list[tuple[float, Any]], is_there: bool = True) -> tuple[FakeCapture, Camera]:
        capture = FakeCapture(script, is_there)
        monkeypatch.setattr(cv2, "VideoCapture", capture)
        monkeypatch.setattr(module.time, "monotonic_ns", lambda: capture.now_ns)
        source = open_camera("0", preprocessor)
        assert isinstance(source, Camera)
        return capture, source

    return make


def test_a_picture_is_fitted_as_predict_does_it_and_stamped_when_it_came(fake, mailbox, preprocessor):
    picture = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    _, camera = fake([(20, picture)])
    camera.open()

    assert camera.read(mailbox.writer("image"))

    reading = mailbox.take("image")
    expected = preprocessor.prepare("image", np.ascontiguousarray(picture[:, :, ::-1]))["image"]
    np.testing.assert_array_equal(reading.tensors["image"], expected)
    assert reading.t_ns == 20_000_000


def test_pictures_that_waited_in_a_buffer_are_skipped(fake, mailbox):
    _, camera = fake([(0.1, plain(1)), (0.2, plain(2)), (0.1, plain(3)), (25, plain(40)), (25, plain(50))])
    camera.open()

    camera.read(mailbox.writer("image"))

    assert mailbox.take("image").tensors["image"][0, 0, 0].tolist() == [215, 0, 40]


def test_a_camera_that_is_always_ahead_still_gives_pictures(fake, mailbox):
    _, camera = fake([(0, plain(level % 250)) for level in range(10 * module.MOST_STALE)])
    camera.open()

    assert camera.read(mailbox.writer("image"))


@pytest.mark.parametrize("fps", [0.0, float("nan"), 90_000.0, -1.0])
def test_a_frame_rate_that_cannot_be_is_not_believed(fake, mailbox, fps):
    capture, camera = fake([(0, plain(1)), (20, plain(2)), (0, plain(3))])
    capture.properties[cv2.CAP_PROP_FPS] = fps
    camera.open()

    camera.read(mailbox.writer("image"))

    assert len(capture.script) == 1


def test_a_camera_is_opened_by_its_number_with_the_smallest_buffer(fake):
    capture, camera = fake([])
    camera.open()

    assert capture.arguments == (0, cv2.CAP_V4L2)
    assert capture.properties[cv2.CAP_PROP_BUFFERSIZE] == 1
    assert camera.name == "camera 0"
    camera.close()
    camera.close()
    assert capture.is_released


def test_a_camera_that_is_not_there_says_what_to_look_at(fake):
    _, camera = fake([], is_there=False)

    with pytest.raises(SensorError, match="is it plugged in"):
        camera.open()
    camera.close()


def test_a_camera_that_stops_is_an_error(fake, mailbox):
    _, camera = fake([])
    camera.open()

    with pytest.raises(SensorError, match="gives no picture"):
        camera.read(mailbox.writer("image"))


def cut_off_jpeg() -> np.ndarray:
    """What OpenCV's own decoder makes of a JPEG that lost its second half, as on a bad cable."""
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    data = cv2.imencode(".jpg", cv2.GaussianBlur(noise, (0, 0), 3))[1].tobytes()
    return cv2.imdecode(np.frombuffer(data[: len(data) // 2] + b"\xff\xd9", np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize(
    ("rubbish", "message"),
    [
        (None, "cannot be decoded"),
        (cut_off_jpeg(), "cut off"),
        (np.zeros((HEIGHT, WIDTH), np.uint8), r"uint8 \[48, 64\]"),
        (np.zeros((HEIGHT, WIDTH, 2), np.uint8), r"uint8 \[48, 64, 2\]"),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint16), "uint16"),
    ],
)
def test_rubbish_is_named_and_the_next_picture_is_good(fake, mailbox, rubbish, message):
    _, camera = fake([(20, rubbish), (20, plain(7))])
    camera.open()
    writer = mailbox.writer("image")

    with pytest.raises(SpoiledError, match=message):
        camera.read(writer)

    assert mailbox.received["image"] == 0
    assert camera.read(writer)


@pytest.mark.parametrize("level", [0, 16, 128, 255])
def test_a_dark_or_white_picture_is_no_rubbish(fake, mailbox, level):
    _, camera = fake([(20, plain(level))])
    camera.open()

    assert camera.read(mailbox.writer("image"))


def test_who_wants_to_see_the_pictures_gets_each_one_whole(fake, mailbox, preprocessor):
    capture, _ = fake([(20, plain(7))])
    seen = []
    camera = open_camera("0", preprocessor, on_frame=lambda frame: seen.append(frame.copy()))
    camera.open()

    camera.read(mailbox.writer("image"))

    np.testing.assert_array_equal(seen, [plain(7)])
    assert capture.script == deque()


def test_what_gives_the_pictures_is_known_by_its_looks(tmp_path, preprocessor):
    cv2.imwrite(str(tmp_path / "a.png"), plain(1))

    assert isinstance(open_camera(str(tmp_path), preprocessor), Pictures)
    assert isinstance(open_camera(str(tmp_path / "a.png"), preprocessor), Pictures)
    assert isinstance(open_camera("2", preprocessor), Camera)
    assert isinstance(open_camera("/dev/null", preprocessor), Camera)  # as /dev/video0, a device file
    assert open_camera("rtsp://me:secret@10.0.0.7:554/live?key=1", preprocessor).name == (
        "camera rtsp://10.0.0.7:554/live"
    )


def test_a_file_that_is_not_there_is_an_error_at_once(preprocessor):
    with pytest.raises(SensorError, match=r"^holiday.mp4: no such file; give the number of a camera, a video"):
        open_camera("holiday.mp4", preprocessor)


def test_a_pipeline_without_gstreamer_says_what_to_do(preprocessor, monkeypatch):
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda api: False)

    with pytest.raises(SensorError, match=r"no GStreamer.*python3-opencv"):
        open_camera("nvarguscamerasrc ! nvvidconv ! appsink", preprocessor)


def test_a_pipeline_is_handed_to_gstreamer_where_there_is_one(fake, monkeypatch, preprocessor):
    capture, _ = fake([(20, plain(1))])
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda api: api == cv2.CAP_GSTREAMER)
    pipeline = "nvarguscamerasrc sensor-id=0 ! nvvidconv ! video/x-raw,format=BGR ! appsink drop=1"

    camera = open_camera(pipeline, preprocessor)
    camera.open()

    assert capture.arguments == (pipeline, cv2.CAP_GSTREAMER)
    assert camera.name == "camera nvarguscamerasrc"


class Station:
    """A real MJPEG stream over HTTP, 50 pictures a second, which can stall, hang up and go off the air."""

    def __init__(self) -> None:
        self.stalls, self.hangs_up = threading.Event(), threading.Event()
        self.level = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/live"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _handler(station) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                try:
                    while not station.hangs_up.is_set():
                        if not station.stalls.is_set():
                            self.wfile.write(station.frame())
                        time.sleep(0.02)
                except OSError:
                    pass

        return Handler

    def frame(self) -> bytes:
        self.level = (self.level + 8) % 240
        jpeg = cv2.imencode(".jpg", plain(self.level))[1].tobytes()
        return b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(jpeg), jpeg)


@pytest.fixture
def station() -> Iterator[Station]:
    station = Station()
    yield station
    station.hangs_up.set()
    station.server.shutdown()
    station.server.server_close()


@pytest.fixture
def impatient(monkeypatch) -> None:
    options = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 2000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 300)
    monkeypatch.setattr(module, "STREAM_OPTIONS", options)


def test_a_stream_gives_pictures_and_a_stall_ends_in_an_error(station, mailbox, preprocessor, impatient):
    camera = open_camera(station.url, preprocessor)
    camera.open()
    writer = mailbox.writer("image")
    for _ in range(5):
        assert camera.read(writer)
    red, green, blue = mailbox.take("image").tensors["image"][0, 4, 4].astype(int).tolist()
    assert abs(red + blue - 255) < 12
    assert green < 12

    station.stalls.set()
    started = time.monotonic()
    with pytest.raises(SensorError, match="gives no picture"):
        deque(iter(lambda: camera.read(writer), False))  # what is in the buffers still comes

    assert time.monotonic() - started < 5
    camera.close()


def test_a_stream_that_stalls_hangs_up_and_comes_back_is_followed(station, mailbox, preprocessor, impatient):
    notices: list[Notice] = []
    camera = open_camera(station.url, preprocessor)
    with Sensors({"image": camera}, mailbox, notices.append):
        until(lambda: mailbox.received["image"] > 3)
        for fault in (station.stalls, station.hangs_up):
            fault.set()
            until(lambda: notices and not notices[-1].is_well)
            fault.clear()
            back, received = time.monotonic(), mailbox.received["image"]
            until(lambda received=received: mailbox.received["image"] > received)
            assert time.monotonic() - back < 2
            until(lambda: notices[-1].is_well)
    assert [notice.is_well for notice in notices] == [False, True, False, True]


def test_a_stream_that_nobody_sends_says_so(preprocessor):
    camera = open_camera("http://127.0.0.1:9/live", preprocessor)

    with pytest.raises(SensorError, match="cannot be reached"):
        camera.open()
