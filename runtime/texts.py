"""Texts: words from the command line, lines from stdin, or what is typed into the web page; the newest one counts."""

from __future__ import annotations

import threading
import time

from edgefuse.runtime.errors import MediaError
from edgefuse.runtime.lines import STDIN, LineReader
from edgefuse.runtime.mailbox import Writer
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.source import LONGEST_WAIT_S, Source, SpoiledError


def open_text(words: str, preprocessor: Preprocessor) -> Source:
    """What gives texts: `words`, or for "-" the lines of stdin.

    Raises:
        MediaError: the words are empty or not Unicode.
    """
    return Lines(preprocessor) if words == "-" else Words(words, preprocessor)


def put_text(text: str, preprocessor: Preprocessor, writer: Writer) -> None:
    """Put `text`, or withdraw the last one where it is empty.

    Raises:
        SpoiledError: it is not Unicode.
    """
    if not text.strip():
        writer.clear()
        return
    t_ns = time.monotonic_ns()
    try:
        preprocessor.fill("text", text.strip(), writer.tensors)
    except MediaError as error:
        raise SpoiledError(str(error)) from None
    writer.put(t_ns)


class Words:
    """One text, which stays.

    Raises:
        MediaError: it is empty or not Unicode.
    """

    name = "text"

    def __init__(self, words: str, preprocessor: Preprocessor) -> None:
        preprocessor.prepare("text", preprocessor.decode("text", words))
        self._words: str | None = words
        self._preprocessor = preprocessor

    def open(self) -> None:
        """Nothing to open."""

    def read(self, writer: Writer) -> bool:
        """Put the text once.

        Raises:
            EOFError: it was put.
        """
        if self._words is None:
            raise EOFError
        put_text(self._words, self._preprocessor, writer)
        self._words = None
        return True

    def close(self) -> None:
        """Nothing is open."""


class Lines:
    """The lines of stdin as they come; an empty one withdraws the text.

    Args:
        preprocessor: of the bundle.
        descriptor: of the file to read.
    """

    name = "text from stdin"

    def __init__(self, preprocessor: Preprocessor, descriptor: int = STDIN) -> None:
        self._preprocessor = preprocessor
        self._lines = LineReader(descriptor)

    def open(self) -> None:
        """It is open."""

    def read(self, writer: Writer) -> bool:
        """Put the newest whole line.

        Raises:
            SpoiledError: it is not UTF-8.
            EOFError: no more lines come; the last one stays.
        """
        lines = self._lines.read()
        if not lines:
            return False
        try:
            text = lines[-1].decode()
        except UnicodeDecodeError:
            raise SpoiledError("a line is not UTF-8") from None
        put_text(text, self._preprocessor, writer)
        return True

    def close(self) -> None:
        """Stdin is not ours to close."""


class Typed:
    """What someone types while the loop runs, as in the web page.

    Args:
        preprocessor: of the bundle.
        first: the text to begin with, if any.
    """

    name = "typed text"

    def __init__(self, preprocessor: Preprocessor, first: str = "") -> None:
        self._preprocessor = preprocessor
        self._changed = threading.Condition()
        self._text: str | None = first or None  # None: nothing new

    def say(self, text: str) -> None:
        """From any thread: `text` counts from now on, an empty one withdraws the last."""
        with self._changed:
            self._text = text
            self._changed.notify()

    def open(self) -> None:
        """Nothing to open."""

    def read(self, writer: Writer) -> bool:
        """Put what was said last.

        Raises:
            SpoiledError: it is not Unicode.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._text is not None, LONGEST_WAIT_S)
            text, self._text = self._text, None
        if text is None:
            return False
        put_text(text, self._preprocessor, writer)
        return True

    def close(self) -> None:
        """Nothing is open."""
