"""A webhook: POSTs JSON documents from a thread of its own, so that the loop never waits for the network."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from edgefuse.runtime.decision import Notice
from edgefuse.runtime.errors import OptionError

MOST_WAITING = 64  # documents; then the oldest is dropped
WAITS_S = (0.5, 1.0, 2.0, 4.0)  # between the attempts for one document
ANSWER_S = 5.0  # longest wait for the other side


class Webhook:
    """Sends each document to `url`, in order, with retries; use it in a `with`.

    Args:
        url: http or https.
        on_notice: told once when the other side does not take a document, and once when it does again.
        waits_s: seconds between the attempts.

    Raises:
        OptionError: not such a URL.
    """

    def __init__(
        self,
        url: str,
        on_notice: Callable[[Notice], None] = lambda notice: None,
        *,
        waits_s: Sequence[float] = WAITS_S,
    ) -> None:
        self._url = _checked(url)
        self._host = urllib.parse.urlsplit(url).hostname  # messages show no path and no password
        self._on_notice = on_notice
        self._waits_s = waits_s
        self._waiting: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        self._closing = threading.Event()
        self._is_well = True
        self.sent = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def post(self, document: Mapping[str, Any]) -> None:
        """Send `document` as soon as those before it are sent; returns at once."""
        self._put(json.dumps(document).encode())

    def close(self, timeout_s: float = 2.0) -> None:
        """Give what waits one more attempt, for `timeout_s` at most; the rest is dropped."""
        self._closing.set()
        self._put(None)
        self._thread.join(timeout_s)

    def __enter__(self) -> Webhook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, body: bytes | None) -> None:
        while True:
            try:
                return self._waiting.put_nowait(body)
            except queue.Full:
                try:
                    self._waiting.get_nowait()
                    self.dropped += 1
                except queue.Empty:  # the thread was quicker
                    pass

    def _work(self) -> None:
        while (body := self._waiting.get()) is not None:
            error = self._send(body)
            self.sent += not error
            self.dropped += bool(error)
            if bool(error) == self._is_well:
                self._is_well = not error
                self._say(f"does not take alarms ({error}); they are dropped" if error else "takes alarms again")

    def _send(self, body: bytes) -> str:
        """Why `body` could not be sent, after all attempts; empty where it was."""
        error = self._attempt(body)
        for wait_s in self._waits_s:
            if not error or self._closing.wait(wait_s):
                break
            error = self._attempt(body)
        return error

    def _attempt(self, body: bytes) -> str:
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"}, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S):
                return ""
        except urllib.error.HTTPError as error:
            with error:
                return f"HTTP {error.code}"
        except (OSError, http.client.HTTPException) as error:
            return str(getattr(error, "reason", error)) or type(error).__name__

    def _say(self, what: str) -> None:
        self._on_notice(Notice(time.monotonic_ns() / 1e6, "webhook", self._is_well, f"{self._host} {what}"))


def _checked(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        is_fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        is_fine = False
    if not is_fine or not url.isascii() or any(character <= " " for character in url):
        raise OptionError(f"webhook {url!r} is not a URL to POST to; give http://HOST/PATH or https://HOST/PATH")
    return url
