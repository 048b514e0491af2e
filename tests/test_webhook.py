"""The webhook: what is posted arrives, in order and in time; a dead other side costs the loop nothing."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.webhook import MOST_WAITING, Webhook


class Site:
    """A server that remembers what it got and answers as it is told."""

    def __init__(self):
        self.got = []
        self.answers = []  # status codes of the next requests; then 204
        self.arrived = threading.Semaphore(0)
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = site.answers.pop(0) if site.answers else 204
                site.got.append((self.path, self.headers["Content-Type"], json.loads(body), status))
                self.send_response(status)
                self.end_headers()
                site.arrived.release()

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?key=secret"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def wait(self, requests):
        for _ in range(requests):
            assert self.arrived.acquire(timeout=10)


@pytest.fixture
def site():
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def dead_url():
    """The URL of a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/"


def test_documents_arrive_in_order_as_json(site):
    with Webhook(site.url) as webhook:
        for number in range(5):
            webhook.post({"event": "start", "number": number})

    assert [(path, kind, document["number"]) for path, kind, document, _ in site.got] == [
        ("/hook?key=secret", "application/json", number) for number in range(5)
    ]
    assert (webhook.sent, webhook.dropped) == (5, 0)


def test_a_document_that_is_refused_is_sent_again(site):
    site.answers = [503, 500]

    with Webhook(site.url, waits_s=(0.01, 0.01)) as webhook:
        webhook.post({"number": 1})
        site.wait(3)

    assert [(document, status) for _, _, document, status in site.got] == [
        ({"number": 1}, 503),
        ({"number": 1}, 500),
        ({"number": 1}, 204),
    ]
    assert (webhook.sent, webhook.dropped) == (1, 0)


def test_what_is_never_taken_is_dropped_counted_and_said_once_and_so_is_the_recovery(site):
    notices = []
    site.answers = [500] * 4

    with Webhook(site.url, notices.append, waits_s=(0.0,)) as webhook:
        for number in range(4):
            webhook.post({"number": number})
        site.wait(6)

    assert (webhook.sent, webhook.dropped) == (2, 2)
    assert [(notice.about, notice.is_well) for notice in notices] == [("webhook", False), ("webhook", True)]
    assert "127.0.0.1 does not take alarms (HTTP 500)" in notices[0].message
    assert "secret" not in notices[0].message


def test_the_loop_never_waits_for_a_dead_side_and_the_newest_are_kept(dead_url):
    notices = []
    webhook = Webhook(dead_url, notices.append, waits_s=(3600.0,))

    started = time.monotonic()
    for number in range(1000):
        webhook.post({"number": number})
    took_s = time.monotonic() - started
    webhook.close()

    assert took_s < 1.0  # 1000 attempts would take an hour each
    assert webhook.sent == 0
    assert webhook.dropped >= 1000 - MOST_WAITING - 1
    assert len(notices) == 1
    assert "refused" in notices[0].message


def test_closing_does_not_wait_for_a_side_that_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        webhook = Webhook(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        webhook.post({"number": 1})
        started = time.monotonic()
        webhook.close(timeout_s=0.2)

        assert time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://example.com/x",
        "file:///etc/passwd",
        "http://",
        "http:///x",
        "http://a:b/",
        "http://a b/",
    ],
)
def test_a_url_that_cannot_be_posted_to_is_refused(url):
    with pytest.raises(OptionError, match="not a URL to POST to; give http://HOST/PATH"):
        Webhook(url)
