"""The page in a real Chromium: it draws, it updates, it asks, and it can be used by everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from edgefuse.runtime.board import Board
from edgefuse.runtime.web import Web
from tests.chromium import CONTRAST, DESK, PHONE, SCHEMES, keep, show
from tests.web_fixtures import alarm, broken, contract, decision, mailbox, trouble

PATIENCE_S = 30.0  # the machine may be busy
DASH = "\u2013"


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def board(asked: list[str]) -> Board:
    return Board(contract(), mailbox(), ask=asked.append, backend="ONNX Runtime")


@pytest.fixture
def page(browser: webdriver.Chrome, board: Board) -> Iterator[webdriver.Chrome]:
    """The page of `board`, opened at the size of a desk; it must have complained of nothing in the end."""
    show(browser, DESK, "light")
    with Web(board, 0) as web:
        browser.get_log("browser")
        browser.get(web.url)
        wait(browser, lambda: text(browser, "bundle") == "tiny")
        yield browser
        complaints = [entry["message"] for entry in browser.get_log("browser")]
        browser.get("about:blank")
    assert complaints == []


def wait(browser: webdriver.Chrome, until: Callable[[], Any]) -> Any:
    return WebDriverWait(browser, PATIENCE_S, poll_frequency=0.05).until(lambda _: until())


def text(browser: webdriver.Chrome, name: str) -> str:
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", name)


def rows(browser: webdriver.Chrome, name: str) -> dict[str, tuple[str, str, float]]:
    """Name of each row -> its value, its fine line and how far its bar is filled."""
    script = """return [...document.getElementById(arguments[0]).children].map(row => [
        row.querySelector(".line").children[0].textContent, row.querySelector(".line").children[1].textContent,
        row.querySelector(".fine").textContent,
        row.querySelector("i").getBoundingClientRect().width / row.querySelector(".bar").clientWidth])"""
    return {key: (value, fine, share) for key, value, fine, share in browser.execute_script(script, name)}


def disc(colour: tuple[int, int, int]) -> np.ndarray:
    picture = np.full((180, 320, 3), 60, np.uint8)
    cv2.circle(picture, (160, 90), 60, colour, -1)
    return picture


def fill(board: Board) -> None:
    """Something of everything, good and bad."""
    board.metrics.mailbox.writer("image").put(0)
    board.frame(disc((40, 40, 220)))
    board.level(0.1)
    board.notice(trouble("audio", message="microphone default gives nothing (unplugged); it is tried again"))
    board.notice(trouble("image", is_well=True, message="camera 0 gives again"))
    board.alarm(alarm("red"))
    board.decision(decision())


def test_before_the_first_decision_it_waits(page):
    assert wait(page, lambda: text(page, "status") == "Waiting")
    assert text(page, "label") == DASH
    assert text(page, "unseen") == "No picture yet"


def test_answer_weights_ages_and_times_follow_the_loop(page, board):
    board.decision(decision("green", 0.62))
    wait(page, lambda: text(page, "label") == "green")
    assert text(page, "confidence") == "62 %"

    board.metrics.mailbox.writer("image").put(0)
    board.decision(decision("red", 0.91, text=False))
    wait(page, lambda: text(page, "label") == "red")

    assert text(page, "confidence") == "91 %"
    assert list(rows(page, "others")) == ["blue", "green"]
    weights = rows(page, "modalities")
    assert list(weights) == ["Picture", "Sound", "Text"]
    assert weights["Picture"][:2] == ("50 %", weights["Picture"][1])
    assert weights["Picture"][1].startswith("12 ms old · ")
    assert [share for _, _, share in weights.values()] == pytest.approx([0.5, 0.2, 0.0], abs=0.02)
    assert weights["Text"][0] == "missing"
    assert rows(page, "stages")["Total"][0] == "4.00 ms"
    assert "skew 49 ms" in text(page, "pace")
    assert text(page, "status") == "Running"
    assert page.title == f"red {DASH} tiny"


def test_rates_are_those_of_the_last_seconds(page, board):
    writer = board.metrics.mailbox.writer("image")
    board.decision(decision())

    def is_counted() -> bool:
        writer.put(0)
        board.decision(decision())
        return " 0 readings/s" not in rows(page, "modalities")["Picture"][1] and " 0 decisions" not in text(
            page, "pace"
        )

    wait(page, is_counted)
    wait(page, lambda: " 0 readings/s" in rows(page, "modalities")["Picture"][1])  # and it stops


def test_the_picture_is_really_drawn_and_follows_the_camera(page, board):
    def drawn() -> list[int] | None:
        """RGB in the middle of what the picture shows."""
        return page.execute_script("""
            const picture = document.getElementById("picture");
            if (!picture.naturalWidth || !picture.checkVisibility()) return null;
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
            const context = canvas.getContext("2d");
            context.drawImage(picture, 0, 0);
            return [...context.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data].slice(0, 3);""")

    for bgr in ((40, 40, 220), (220, 90, 30)):
        board.frame(disc(bgr))
        wait(page, lambda bgr=bgr: drawn() == pytest.approx(bgr[::-1], abs=6))
    assert page.execute_script("return document.getElementById('picture').naturalWidth") == 320


def test_a_picture_that_stops_is_said_to_be_old(page, board):
    board.frame(disc((40, 40, 220)))

    wait(page, lambda: text(page, "unseen").startswith("No new picture for "))


def test_the_level_meter_moves_and_falls_silent(page, board):
    board.level(0.1)
    wait(page, lambda: text(page, "decibels") == "\u221220 dB")
    level = page.find_element(By.ID, "level")
    assert (level.aria_role, level.accessible_name) == ("meter", "Sound")
    assert level.get_attribute("aria-valuenow") == "-20"

    wait(page, lambda: text(page, "decibels") == "silent")


def test_what_is_wrong_stands_there_until_it_is_over(page, board):
    fill(board)
    wait(page, lambda: "microphone default gives nothing" in text(page, "now"))
    assert "Alarm: red" in text(page, "now")
    assert text(page, "status") == "Degraded"
    assert rows(page, "modalities")["Sound"][0] == "20 %"  # its last reading still counts

    board.notice(trouble("audio", is_well=True, message="microphone default gives again"))
    board.alarm(alarm("red", begins=False))
    wait(page, lambda: not page.find_element(By.ID, "now").is_displayed())
    assert text(page, "status") == "Running"
    assert text(page, "events").index("gives again") < text(page, "events").index("gives nothing")  # newest first


def test_a_question_typed_by_keyboard_alone_reaches_the_loop(page, board, asked):
    wait(page, lambda: page.find_element(By.ID, "question").is_displayed())
    page.switch_to.active_element.send_keys(Keys.TAB)
    box = page.switch_to.active_element
    assert (box.get_attribute("id"), box.accessible_name) == ("question", "Question")

    box.send_keys("what colour is it?" + Keys.ENTER)
    wait(page, lambda: asked == ["what colour is it?"])
    wait(page, lambda: text(page, "asked") == "Asked: what colour is it?")

    box.send_keys(Keys.TAB)
    assert page.switch_to.active_element.accessible_name == "Ask"
    page.switch_to.active_element.send_keys(Keys.TAB)
    assert page.switch_to.active_element.accessible_name == "Withdraw"
    page.switch_to.active_element.send_keys(Keys.ENTER)
    wait(page, lambda: asked == ["what colour is it?", ""])
    wait(page, lambda: text(page, "asked") == "Nothing asked")


def test_text_from_outside_is_never_markup(browser, asked):
    evil = "<img src=x onerror=alert(1)>"
    board = Board(contract(labels=(evil, "b", "c")), mailbox(), ask=asked.append, backend=evil)
    fill(board)
    board.notice(trouble("image", message=evil))
    board.alarm(alarm(evil))
    board.ask(evil)
    board.decision(decision(evil))
    with Web(board, 0) as web:
        browser.get(web.url)
        wait(browser, lambda: text(browser, "label") == evil)

        assert len(browser.find_elements(By.TAG_NAME, "img")) == 1
        for name in ("backend", "others", "asked", "now", "events"):
            assert evil in text(browser, name)


def test_a_number_that_is_none_does_not_stop_the_page(page, board):
    board.decision(broken())
    wait(page, lambda: text(page, "label") == "red")
    assert text(page, "confidence") == DASH

    board.decision(decision("green", 0.5))
    wait(page, lambda: text(page, "confidence") == "50 %")


def test_a_screen_reader_is_told_of_the_answer(page, board):
    board.decision(decision("green", 0.62))

    wait(page, lambda: text(page, "heard") == "Answer: green, 62 %")
    heard = page.find_element(By.ID, "heard")
    assert heard.get_attribute("aria-live") == "polite"
    assert heard.aria_role == "status"


def test_it_asks_this_machine_for_everything(page, board):
    fill(board)
    wait(page, lambda: text(page, "label") == "red")
    names = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")

    assert names
    assert all(name.startswith((page.current_url, "data:")) for name in names)


def test_a_page_that_nobody_sees_costs_nothing(page, board):
    wait(page, lambda: text(page, "status") == "Waiting")
    page.execute_script("""Object.defineProperty(document, "hidden", {value: true, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));""")
    assert page.execute_script("return source.readyState") == 2

    page.execute_script("""Object.defineProperty(document, "hidden", {value: false, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));""")
    board.decision(decision())
    wait(page, lambda: text(page, "label") == "red")


def test_it_says_when_the_loop_is_gone_and_comes_back_with_it(browser, board):
    with Web(board, 0) as web:
        port = int(web.url.rsplit(":", 1)[1][:-1])
        browser.get(web.url)
        wait(browser, lambda: text(browser, "status") == "Waiting")
    wait(browser, lambda: text(browser, "status") == "Not connected")
    browser.get_log("browser")  # it may complain of this

    board.decision(decision())
    with Web(board, port):
        wait(browser, lambda: text(browser, "status") == "Running")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_it_fits_and_can_be_read(page, board, size, scheme, tmp_path):
    fill(board)
    board.ask("what colour is the thing above the " + "very" * 30 + " large circle?")
    show(page, size, scheme)
    wait(page, lambda: text(page, "label") == "red" and page.find_element(By.ID, "withdraw").is_displayed())
    page.find_element(By.ID, "question").send_keys("why?")

    looked, refused = page.execute_script(CONTRAST)
    width = page.execute_script("return document.documentElement.scrollWidth")
    keep(page, f"{scheme}_{size[0]}.png", tmp_path)

    assert looked > 30
    assert refused == []
    assert width <= size[0], "it scrolls sideways"
    tall = page.execute_script("return [...document.querySelectorAll('button, input')].map(e => e.offsetHeight)")
    assert min(tall) >= 44  # as a finger needs


def test_both_schemes_are_there(page):
    colours = []
    for scheme in SCHEMES:
        show(page, DESK, scheme)
        colours.append(page.execute_script("return getComputedStyle(document.body).backgroundColor"))

    assert colours == ["rgb(246, 247, 249)", "rgb(16, 19, 23)"]
