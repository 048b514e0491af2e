"""The board takes and tells, the server serves it to this machine's own page and to no other site; nobody waits."""

from __future__ import annotations

import http.client
import json
import logging
import re
import runpy
import socket
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.runtime import board as board_module
from edgefuse.runtime import web as web_module
from edgefuse.runtime.board import LEAST_S, WIDEST, Board
from edgefuse.runtime.errors import MissingExtraError, WebError
from edgefuse.runtime.web import MOST_BYTES, MOST_CHARACTERS, MOST_VIEWERS, Web
from edgefuse.runtime.web_guard import headers, is_own, is_same_site, own_names
from tests.web_fixtures import alarm, broken, contract, decision, mailbox, trouble

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def board(asked: list[str]) -> Board:
    return Board(contract(), mailbox(), ask=asked.append)


@pytest.fixture
def web(board: Board) -> Iterator[Web]:
    with Web(board, 0) as web:
        yield web


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the pictures that were made into JPEGs."""
    made: list[tuple[int, ...]] = []
    encode = cv2.imencode

    def counted(kind: str, picture: np.ndarray, options: list[int]) -> tuple[bool, np.ndarray]:
        made.append(picture.shape)
        return encode(kind, picture, options)

    monkeypatch.setattr(board_module.cv2, "imencode", counted)
    return made


@contextmanager
def answered(web: Web, path: str, method: str = "GET", body: bytes | None = None, **sent: str):
    """The response to one request, read or not."""
    connection = http.client.HTTPConnection(web_module.LOOPBACK, int(web.url.rsplit(":", 1)[1][:-1]), timeout=10)
    try:
        connection.request(method, path, body, {key.replace("_", "-"): value for key, value in sent.items()})
        yield connection.getresponse()
    finally:
        connection.close()


def get(web: Web, path: str, **sent: str) -> tuple[int, bytes]:
    with answered(web, path, **sent) as answer:
        return answer.status, answer.read()


def ask(web: Web, body: bytes, **sent: str) -> tuple[int, bytes]:
    with answered(web, "/text", "POST", body, **({"Content_Type": "application/json"} | sent)) as answer:
        return answer.status, answer.read()


def next_state(stream: http.client.HTTPResponse) -> dict:
    line = stream.readline()
    assert stream.readline() == b"\n"
    return json.loads(line.removeprefix(b"data: "))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


# What the loop pays.


def calls(work: Callable[[], object]) -> int:
    """How many functions, of Python and of C, `work` calls."""
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_the_loop_pays_a_few_calls_whoever_watches(board, web):
    picture, said = noise(1080, 1920), decision()
    with answered(web, "/events") as stream:
        next_state(stream)

        assert calls(lambda: board.frame(picture)) <= 6
        assert calls(lambda: board.level(0.5)) <= 4
        assert calls(lambda: board.decision(said)) <= 16


def test_nothing_is_encoded_copied_or_kept_while_nobody_looks(board, web, encodings):
    picture, said = noise(1080, 1920), decision()
    board.frame(picture)
    board.decision(said)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(1000):
            board.frame(picture)
            board.level(0.5)
            board.decision(said)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert encodings == []
    assert after - before < 50_000
    assert peak - before < 200_000  # no copy of the picture, which has 6 MB


def test_what_was_said_before_a_viewer_came_is_kept_within_bounds(board):
    for number in range(1000):
        board.notice(trouble("image", is_well=bool(number % 2)))

    assert len(board.state()["events"]) == board_module.MOST_EVENTS


# The state.


def test_the_state_is_the_newest_of_everything(board):
    writer = board.metrics.mailbox.writer("image")
    writer.put(0)
    writer.put(0)
    board.level(0.25)
    board.frame(noise(4, 4))
    board.decision(decision("blue", 0.4))
    board.decision(decision("red", 0.9))

    state = board.state()

    assert (state["decision"]["label"], state["decision"]["confidence"], state["decisions"]) == ("red", 0.9, 2)
    assert state["best"][0] == ["red", 0.9]
    assert [share for _, share in state["best"]] == sorted((share for _, share in state["best"]), reverse=True)
    assert (state["readings"]["image"], state["dropped"]["image"]) == (2, 1)
    assert (state["level"], state["picture"], state["question"]) == (0.25, 1, "")


def test_a_trouble_and_an_alarm_stay_until_they_are_over(board):
    board.decision(decision())
    board.notice(trouble("image", message="camera 0 gives nothing"))
    board.alarm(alarm("red"))
    state = board.state()
    assert state["health"]["troubles"] == {"image": "camera 0 gives nothing"}
    assert list(state["alarms"]) == ["red"]

    board.notice(trouble("image", is_well=True, message="camera 0 gives again"))
    board.alarm(alarm("red", begins=False))
    state = board.state()
    assert (state["health"]["troubles"], state["alarms"]) == ({}, {})
    assert [event["message"] for event in state["events"]] == [
        "camera 0 gives nothing",
        "alarm red begins",
        "camera 0 gives again",
        "alarm red is over",
    ]


def test_a_level_from_long_ago_is_not_shown(board, monkeypatch):
    board.level(0.5)
    now_ns = board_module.time.monotonic_ns()
    monkeypatch.setattr(board_module.time, "monotonic_ns", lambda: now_ns + 2_000_000_000)

    assert board.state()["level"] is None


def test_numbers_that_json_does_not_know_are_null(board):
    board.decision(broken())

    state = json.loads(json.dumps(board.state(), allow_nan=False))

    assert state["decision"]["confidence"] is None
    assert state["decision"]["label"] == "red"


# The picture.


def test_the_picture_is_the_newest_and_as_it_was(board, web):
    board.frame(noise(48, 64))
    smooth = cv2.resize(noise(3, 4), (64, 48), interpolation=cv2.INTER_LINEAR)
    board.frame(smooth)

    status, jpeg = get(web, "/frame.jpg")

    seen = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert status == 200
    assert np.abs(seen.astype(int) - smooth).mean() < 4


@pytest.mark.parametrize("shape", [(1080, 1920), (1920, 1080), (100, 5000)])
def test_a_large_picture_is_made_small(board, shape):
    board.frame(noise(*shape))

    seen = cv2.imdecode(np.frombuffer(board.jpeg(), np.uint8), cv2.IMREAD_COLOR)

    assert max(seen.shape) == WIDEST
    assert seen.shape[1] / seen.shape[0] == pytest.approx(shape[1] / shape[0], rel=0.05)


def test_a_picture_is_encoded_once_and_at_most_ten_times_a_second(board, encodings, monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr(board_module.time, "monotonic", lambda: now_s[0])
    board.frame(noise(8, 8))
    first = board.jpeg()
    assert board.jpeg() is first

    board.frame(np.zeros((8, 8, 3), np.uint8))
    now_s[0] += 0.9 * LEAST_S
    assert board.jpeg() is first  # too soon
    assert board.state()["picture"] == 1  # as it is said, or a page would take the first for the second
    now_s[0] += 0.2 * LEAST_S
    assert board.jpeg() != first
    now_s[0] += 10
    board.jpeg()  # the same picture
    assert len(encodings) == 2


@pytest.mark.parametrize("picture", [np.zeros((0, 0, 3), np.uint8), np.zeros((4, 4, 7), np.uint8)])
def test_rubbish_is_no_picture_and_the_next_one_is(board, web, picture, monkeypatch):
    monkeypatch.setattr(board_module, "LEAST_S", 0.0)
    assert get(web, "/frame.jpg")[0] == 404
    board.frame(picture)
    assert get(web, "/frame.jpg")[0] == 404

    board.frame(noise(8, 8))
    assert get(web, "/frame.jpg")[0] == 200


# The stream.


def test_a_viewer_gets_the_newest_and_not_what_it_missed(board, web):
    with answered(web, "/events") as stream:
        assert stream.getheader("content-type").startswith("text/event-stream")
        assert next_state(stream)["decision"] is None
        for _ in range(999):
            board.decision(decision("blue"))
        board.decision(decision("red"))

        states = [next_state(stream) for _ in range(3)]

    assert [(state["decision"]["label"], state["decisions"]) for state in states[1:]] == [("red", 1000)] * 2


def test_viewers_are_counted_and_those_who_left_make_room(web):
    with ExitStack() as viewers:
        for _ in range(MOST_VIEWERS):
            next_state(viewers.enter_context(answered(web, "/events")))
        assert get(web, "/events")[0] == 503
        assert get(web, "/frame.jpg")[0] == 404  # the rest is served

    for _ in range(200):
        with answered(web, "/events") as stream:
            if stream.status == 200:
                return
        time.sleep(0.05)
    pytest.fail("no room for a new viewer ten seconds after the others left")


# The question.


def test_a_question_reaches_the_loop_and_an_empty_one_withdraws_it(board, web, asked):
    assert ask(web, b'{"text": "  what  colour\\n is it? "}')[0] == 204
    assert board.state()["question"] == "what colour is it?"
    assert ask(web, b'{"text": "  "}', Sec_Fetch_Site="same-origin")[0] == 204

    assert asked == ["what colour is it?", ""]
    assert board.state()["question"] == ""


@pytest.mark.parametrize(
    ("body", "sent", "status"),
    [
        (b'{"text": "hi"}', {"Content_Type": "text/plain"}, 415),  # what a form of another site may send
        (b"text=hi", {"Content_Type": "application/x-www-form-urlencoded"}, 415),
        (b'{"text": "hi"}', {"Origin": "http://evil.example"}, 403),
        (b'{"text": "hi"}', {"Origin": "null"}, 403),
        (b'{"text": "hi"}', {"Sec_Fetch_Site": "cross-site"}, 403),
        (b'{"text": "hi"}', {"Host": "evil.example"}, 421),
        (b'{"text": 5}', {}, 400),
        (b'{"text": "hi", "more": 1}', {}, 400),
        (b'["hi"]', {}, 400),
        (b"{", {}, 400),
        (b'{"text": "\\ud800"}', {}, 400),  # half a character, which no tokenizer takes
        (b"\xff\xfe", {}, 400),
        (b"[" * 5000, {}, 400),
        (json.dumps({"text": "x" * (MOST_CHARACTERS + 1)}).encode(), {}, 400),
        (b" " * (MOST_BYTES + 1), {}, 413),
    ],
)
def test_what_is_no_question_of_this_page_is_refused(web, asked, body, sent, status):
    found, text = ask(web, body, **sent)

    assert (found, asked) == (status, [])
    assert text
    assert b"\n" not in text


def test_the_longest_question_passes(web, asked):
    assert ask(web, json.dumps({"text": "ä" * MOST_CHARACTERS}).encode())[0] == 204

    assert asked == ["ä" * MOST_CHARACTERS]


def test_a_model_that_reads_no_text_takes_no_question():
    with Web(Board(contract(), mailbox()), 0) as web:
        assert ask(web, b'{"text": "hi"}') == (404, b"this model reads no text")


# Who may see it.


def test_every_answer_forbids_other_sites(web):
    for path in ("/", "/events", "/frame.jpg", "/metrics", "/health", "/nothing"):
        with answered(web, path) as answer:
            assert answer.getheader("cross-origin-resource-policy") == "same-origin"
            assert answer.getheader("access-control-allow-origin") is None
            assert "frame-ancestors 'none'" in answer.getheader("content-security-policy")
            assert answer.getheader("x-content-type-options") == "nosniff"
            assert answer.getheader("cache-control") == "no-store"
            assert answer.getheader("server") is None


def test_the_page_needs_no_network_and_has_no_style_or_script_that_its_policy_blocks(web):
    page = get(web, "/")[1].decode()

    addresses = set(re.findall(r"[a-z]+://[^\"'\s)]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a namespace
    assert not re.findall(r"<[^>]+\s(?:style|on\w+)=", page)
    assert headers(page)["Content-Security-Policy"].count("'sha256-") == 2


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("192.168.1.20:8080", 200),
        (f"{socket.gethostname()}:8080", 200),
        ("evil.example", 421),
        ("localhost.evil.example:8080", 421),
        ("127.0.0.1.evil.example", 421),
        ("[", 421),
        ("", 421),
    ],
)
def test_a_name_that_is_not_this_machine_s_is_refused(web, host, status):
    assert get(web, "/", Host=host)[0] == status


@given(st.from_regex(r"([a-z0-9-]{1,9}\.){1,4}[a-z]{2,6}\.?", fullmatch=True), st.integers(1, 65535))
def test_no_domain_is_taken_for_this_machine(domain, port):
    assert not is_own(f"{domain}:{port}", own_names("127.0.0.1"))


@given(st.ip_addresses())
def test_every_address_is(address):
    shown = f"[{address}]" if address.version == 6 else str(address)

    assert is_own(shown, frozenset())
    assert is_own(f"{shown}:8080", frozenset())


@given(st.text())
def test_no_host_breaks_the_check(host):
    assert is_own(host, frozenset()) in (True, False)
    assert is_same_site({"origin": host, "host": "localhost"}) in (True, False)


@pytest.mark.parametrize(("host", "is_warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_who_opens_it_to_the_network_is_told(board, caplog, host, is_warned):
    with caplog.at_level(logging.WARNING), Web(board, 0, host):
        pass

    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == is_warned
    assert all("open to the network" in line and "\n" not in line for line in lines)


# Beginning and end.


@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("127.0.0.1", None, "Address already in use"),
        ("127.0.0.1", 99_999, "a port is 0 to 65535"),
        ("no such host", 0, ""),
        ("203.0.113.1", 0, "Cannot assign requested address"),  # an address of a documentation, RFC 5737
    ],
)
def test_an_address_that_cannot_be_used_is_one_line_before_anything_runs(board, web, host, port, why):
    taken = int(web.url.rsplit(":", 1)[1][:-1])

    with pytest.raises(WebError) as caught:
        Web(board, taken if port is None else port, host).open()

    message = str(caught.value)
    assert why in message
    assert message.endswith("give another --web or --web-host")
    assert "\n" not in message


def test_closing_ends_the_thread_the_streams_and_the_port_and_may_be_repeated(board):
    web = Web(board, 0)
    web.open()
    threads = [thread for thread in threading.enumerate() if thread.name == "web"]
    with answered(web, "/events") as stream:
        next_state(stream)
        web.close()
        web.close()

        assert not any(thread.is_alive() for thread in threads)
        assert stream.read().count(b"data: ") <= 2  # and the end
    with socket.create_server((web_module.LOOPBACK, int(web.url.rsplit(":", 1)[1][:-1]))):
        pass


def test_one_that_was_never_opened_closes(board):
    Web(board, 0).close()


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'edgefuse\[web\]'"):
        runpy.run_path(web_module.__file__)


def test_a_monitor_gets_counts_and_health(board, web):
    assert get(web, "/health")[0] == 503
    board.decision(decision())

    status, body = get(web, "/health")

    assert status == 200
    assert json.loads(body)["status"] == "ok"
    with answered(web, "/metrics") as answer:
        assert answer.getheader("content-type") == "text/plain; version=0.0.4; charset=utf-8"
        assert b"\nedgefuse_decisions_total 1.0\n" in answer.read()
