"""Pictures from files at their own speed: a video, or a folder; and what makes tensors of any picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from edgefuse.runtime.errors import MediaError, SensorError
from edgefuse.runtime.mailbox import Writer
from edgefuse.runtime.media import Pixels, decode_image, read_media
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.source import Pace, SpoiledError

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
PICTURES_HZ = 2.0  # of a folder
USUAL_FPS = 25.0  # where a video does not tell

OnFrame = Callable[[Pixels], None]  # uint8 BGR [H, W, 3]


class Canvas:
    """Makes tensors of pictures, and shows each to who wants to see it.

    Args:
        preprocessor: of the bundle.
        on_frame: is given each whole picture, BGR [H, W, 3]; it is valid during the call only.
    """

    def __init__(self, preprocessor: Preprocessor, on_frame: OnFrame | None = None) -> None:
        self._preprocessor = preprocessor
        self._on_frame = on_frame

    def put(self, frame: NDArray[Any], writer: Writer, t_ns: int) -> None:
        """Put a BGR picture; it is fitted first, since then fewer pixels have their channels exchanged."""
        self._preprocessor.fill("image", frame, writer.tensors)
        fitted = writer.tensors["image"][0]  # [H, W, 3]
        cv2.cvtColor(fitted, cv2.COLOR_BGR2RGB, dst=fitted)
        writer.put(t_ns)
        if self._on_frame is not None:
            self._on_frame(frame)


class Video:
    """A video file, once, at its own frame rate; pictures are skipped where the machine is too slow for it.

    Args:
        path: of the file.
        canvas: what makes tensors of pictures.

    Raises:
        SensorError: no such file, or not a video.
    """

    def __init__(self, path: Path, canvas: Canvas) -> None:
        self.name = str(path)
        self._path, self._canvas = path, canvas
        self._capture: cv2.VideoCapture | None = None
        self._frame: NDArray[Any] | None = None  # memory of the last picture, for the next one
        self.open()

    def open(self) -> None:
        """Begin where it is not open yet.

        Raises:
            SensorError: no such file, or not a video.
        """
        if self._capture is not None:
            return
        if not self._path.is_file():
            raise SensorError(
                f"{self.name}: no such file; give the number of a camera, a video, a folder of pictures, "
                "a URL, or a GStreamer pipeline"
            )
        capture = cv2.VideoCapture(self.name)
        if not capture.isOpened():
            raise SensorError(f"{self.name}: not a video that OpenCV can read; convert it, e.g. to H.264 in .mp4")
        fps = capture.get(cv2.CAP_PROP_FPS)
        self._pace = Pace(fps if 1 <= fps <= 240 else USUAL_FPS)
        self._capture = capture

    def read(self, writer: Writer) -> bool:
        """Put the picture that is due.

        Raises:
            SpoiledError: it is damaged.
            EOFError: that was the last one.
        """
        capture = self._capture
        assert capture is not None
        due = self._pace.wait()
        if not due:
            return False
        t_ns = time.monotonic_ns()
        if not all(capture.grab() for _ in range(due)):
            raise EOFError(f"{self.name} has ended")
        is_there, frame = capture.retrieve(self._frame)
        if not is_there:
            raise SpoiledError("a picture that cannot be decoded")
        self._frame = frame
        self._canvas.put(frame, writer, t_ns)
        return True

    def close(self) -> None:
        """End; twice is fine."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()


class Pictures:
    """The pictures of a folder, once, in the order of their names; or one picture.

    Args:
        path: of the folder or the picture.
        canvas: what makes tensors of pictures.

    Raises:
        SensorError: no such folder, or no picture in it.
    """

    def __init__(self, path: Path, canvas: Canvas) -> None:
        self.name = str(path)
        self._canvas = canvas
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        self._files = [file for file in files if file.is_file() and file.suffix.lower() in PICTURE_SUFFIXES]
        if not self._files:
            found = f"none of its {len(files)} files is a picture" if path.is_dir() else "no such file"
            raise SensorError(f"{path}: {found}; pictures end in {', '.join(PICTURE_SUFFIXES)}")
        self._next = 0
        self._pace = Pace(PICTURES_HZ)

    def open(self) -> None:
        """It goes on where it was."""

    def read(self, writer: Writer) -> bool:
        """Put the picture that is due.

        Raises:
            SpoiledError: it cannot be decoded.
            EOFError: that was the last one.
        """
        if self._next == len(self._files):
            raise EOFError(f"{self.name} has ended" if self._next > 1 else "")
        if not self._pace.wait():
            return False
        t_ns = time.monotonic_ns()
        file = self._files[self._next]
        self._next += 1
        try:
            pixels = decode_image(read_media(file), str(file))  # RGB [H, W, 3]
        except MediaError as error:
            raise SpoiledError(str(error)) from None
        self._canvas.put(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), writer, t_ns)
        return True

    def close(self) -> None:
        """Nothing is open between readings."""
