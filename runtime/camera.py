"""Pictures from a camera, a network stream or a GStreamer pipeline; film.py has those from files."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.errors import SensorError
from edgefuse.runtime.film import PICTURE_SUFFIXES, Canvas, OnFrame, Pictures, Video
from edgefuse.runtime.mailbox import Writer
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.source import Source, SpoiledError

# OpenCV reads these when it first uses a camera. By itself it waits ten seconds for one that stalls, and lets FFmpeg
# write a line for every attempt to reach one.
os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "1")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

STREAM_OPTIONS = (
    *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 5000),
    *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, 2000),
    *(cv2.CAP_PROP_N_THREADS, 1),  # a decoder with n threads is n - 1 pictures late
)
USUAL_FPS = 30.0  # where a camera does not tell
MOST_STALE = 60  # pictures that are skipped at once
GREY = 128  # what a decoder leaves where the rest of a JPEG is missing
NO_GSTREAMER = (
    "this OpenCV has no GStreamer, which a pipeline needs (pip's opencv-python never has): "
    "use JetPack's or apt's python3-opencv, or give the number of a camera"
)


def open_camera(where: str, preprocessor: Preprocessor, on_frame: OnFrame | None = None) -> Source:
    """What gives pictures.

    Args:
        where: the number of a camera or its device file, a video, a picture, a folder of pictures, a URL ("rtsp://..."),
            or a GStreamer pipeline, known by its " ! ".
        preprocessor: of the bundle that the pictures are for.
        on_frame: is given each whole picture, BGR [H, W, 3], which is valid during the call only.

    Raises:
        SensorError: nothing that could ever give a picture. A camera that is not there now may come, and is no error.
    """
    canvas = Canvas(preprocessor, on_frame)
    if " ! " in where:
        if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
            raise SensorError(NO_GSTREAMER)
        advice = "the pipeline does not start: try it with gst-launch-1.0, and end it with appsink"
        return Camera(f"camera {where.split()[0]}", (where, cv2.CAP_GSTREAMER), advice, canvas)
    if "://" in where:
        advice = "it cannot be reached: is the address right, is it switched on?"
        return Camera(f"camera {_without_password(where)}", (where, cv2.CAP_FFMPEG, STREAM_OPTIONS), advice, canvas)
    path = Path(where)
    if where.isdecimal() or path.is_char_device():
        api = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
        advice = "it cannot be opened: is it plugged in, used by another program, and may this user read it?"
        return Camera(f"camera {where}", (int(where) if where.isdecimal() else where, api), advice, canvas)
    if path.is_dir() or path.suffix.lower() in PICTURE_SUFFIXES:
        return Pictures(path, canvas)
    return Video(path, canvas)


@dataclass
class _Session:
    """What belongs to one opening of a camera."""

    capture: cv2.VideoCapture
    waiting_ns: float  # a picture that came sooner had waited in a buffer
    frame: NDArray[Any] | None = None  # memory of the last picture, for the next one


class Camera:
    """A live source of pictures; the newest one counts, those that waited in a buffer are skipped.

    Args:
        name: for messages.
        capture: arguments of cv2.VideoCapture.
        advice: what is said when it cannot be opened.
        canvas: what makes tensors of pictures.
    """

    def __init__(self, name: str, capture: tuple[Any, ...], advice: str, canvas: Canvas) -> None:
        self.name = name
        self._arguments = capture
        self._advice = advice
        self._canvas = canvas
        self._session: _Session | None = None

    def open(self) -> None:
        """Begin.

        Raises:
            SensorError: it is not there.
        """
        capture = cv2.VideoCapture(*self._arguments)
        if not capture.isOpened():
            raise SensorError(self._advice)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # where it can: the others are emptied by `read`
        fps = capture.get(cv2.CAP_PROP_FPS)
        self._session = _Session(capture, 1e9 / (fps if 1 <= fps <= 240 else USUAL_FPS) / 4)

    def read(self, writer: Writer) -> bool:
        """Put the newest picture.

        Raises:
            SpoiledError: it is damaged.
            SensorError: no more come.
        """
        session = self._session
        assert session is not None
        t_ns = _grab_newest(session)
        is_there, frame = session.capture.retrieve(session.frame)
        if not is_there:
            raise SpoiledError("a picture that cannot be decoded")
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise SpoiledError(f"a picture of {frame.dtype} {list(frame.shape)} where BGR [H, W, 3] is needed")
        session.frame = frame
        if frame[-1].min() == GREY == frame[-1].max():
            raise SpoiledError("a picture that is cut off")
        self._canvas.put(frame, writer, t_ns)
        return True

    def close(self) -> None:
        """End; twice is fine."""
        session, self._session = self._session, None
        if session is not None:
            session.capture.release()


def _grab_newest(session: _Session) -> int:
    """Wait for a picture that did not wait for us, and return the moment it came."""
    for _ in range(MOST_STALE):
        before_ns = time.monotonic_ns()
        if not session.capture.grab():
            raise SensorError("it gives no picture")
        now_ns = time.monotonic_ns()
        if now_ns - before_ns >= session.waiting_ns:
            break
    return now_ns


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
