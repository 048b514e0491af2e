"""What a person sees of a result: lines, tables, and nothing taken for markup."""

from __future__ import annotations

import io
import re

from rich.console import Console

from edgefuse.runtime.show import show


def shown(result) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False, markup=False, emoji=False)
    show(result, console)
    return console.file.getvalue()


def test_plain_values_are_lines():
    text = shown({"label": "[bold]:cat:", "confidence": 0.51239, "weights": {"image": 1.0}, "interval": [0.1, None]})

    assert re.search(r"^label +\[bold\]:cat:", text, flags=re.MULTILINE)
    assert re.search(r"^confidence +0.5124", text, flags=re.MULTILINE)
    assert re.search(r"^weights +image 1", text, flags=re.MULTILINE)
    assert re.search(r"^interval +0.1, -", text, flags=re.MULTILINE)


def test_rows_are_a_table_whether_named_or_listed():
    text = shown({"parts": {"head": {"n": 3}, "text": {"bytes": 5}}, "engines": [{"path": "a.engine"}]})

    assert re.search(r"^ head +3 +- *$", text, flags=re.MULTILINE)
    assert re.search(r"^ text +- +5 *$", text, flags=re.MULTILINE)
    assert re.search(r"^ 1 +a.engine", text, flags=re.MULTILINE)


def test_a_table_in_a_table_becomes_its_own_with_the_long_side_down():
    score = {"accuracy": 0.25, "n": 4}

    text = shown({"by_set": {"cpu": {**score, "by_type": dict.fromkeys(("color", "shape"), score)}}})

    assert re.search(r"^ cpu +0.25 +4 *$", text, flags=re.MULTILINE)
    assert re.search(r"^by_set, by_type", text, flags=re.MULTILINE)
    assert re.search(r"^ color +0.25 *$", text, flags=re.MULTILINE)


def test_an_empty_result_prints_no_table():
    assert shown({"rows": {}, "list": []}).split() == ["rows", "list"]


def test_rows_of_words_are_sentences_and_rows_of_numbers_a_table():
    why = "a matrix-vector product, to which INT8 only adds kernels"

    blocks, rows = [{"part": "image", "block": "18 Conv", "why": why}], [{"form": why, "n": 1, "m": 2}]
    text = shown({"blocks": blocks, "rows": rows})

    assert re.search(r"^image  18 Conv: a matrix-vector product, .* adds kernels$", text, flags=re.MULTILINE)
    assert re.search(r"form +n +m *$", text, flags=re.MULTILINE)
