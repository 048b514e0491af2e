"""The report page: one file that loads nothing, escapes everything, says the verdicts first and reads anywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from copy import deepcopy
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edgefuse.benchmarks import report as report_module
from edgefuse.benchmarks.gpu_peaks import DEVICES
from edgefuse.benchmarks.latency import distribution, speedup, summarise
from edgefuse.benchmarks.limits import LABEL, total
from edgefuse.benchmarks.markup import NOT_KNOWN, byte_count, milliseconds
from edgefuse.benchmarks.report import JUDGE, render
from edgefuse.benchmarks.roofline import engine_bounds, published

HOSTILE = "<script>alert('x')</script>&\"<img src=x onerror=y>"
STAGES = ("decode", "preprocess", "image", "text", "head")
PARTS = ("image", "text", "head")
SUBSETS = ("image", "text", "image+text")
_ASKED = {"loadgen": "6", "queries": 64, "min_queries": 64, "min_seconds": 2.0}
SINGLE_STREAM = {
    **_ASKED, "result": "VALID", "unmet": [], "p50_ms": 1.0, "p90_ms": 2.34, "p99_ms": None, "mean_ms": 1.5,
    "guaranteed_ms": 4.56,
}  # fmt: skip
OFFLINE = {**_ASKED, "result": "INVALID", "unmet": ["duration"], "samples_per_s": 78.91}
VERDICT = {"verdict": "slower", "ratio": 1.1, "interval": [1.05, 1.15], "p": 0.001, "blocks": 20, "queries": 16}
VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADING = {"script", "link", "img", "iframe", "object", "embed", "video", "audio", "source", "base", "form"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _parity() -> dict:
    """As `edgefuse parity --json` prints it."""
    error = {"max_abs": 0.01, "mean_abs": 0.001, "relative": 0.001, "cosine": 0.99999, "sqnr_db": 43.21}
    answer = {"logits_db": None, "top1": 0.995, "accuracy": 0.9, "interval": [0.8, 0.95]}
    rows = [{"hop": "fp16->int8", "part": part} for part in ("text", "all")]
    return {
        "examples": 64,
        "hops": [{**row, **error} for row in rows],
        "answers": [{**rows[0], **answer}, {**rows[1], **answer, "kept": 0.9876, "kept_interval": [0.9, 1.0]}],
        "overflow": [
            {"part": "text", "node": HOSTILE, "op": "Mul", "largest": 70000.0, "effect": "overflows", "in": "fp16"},
            {"part": "audio", "node": "n", "op": "Log", "largest": 9.5, "effect": "fits", "in": "fp16"},
        ],
        "lost_most": f"fp16->int8 of {HOSTILE}",
        "engine": "not measured: that needs a GPU",
        "fp16_on_a_cpu": "computed in FP32",
    }


def make_report(*, cpu_factor: float = 0.5, retention: float = 0.995, queries: int = 120) -> dict:
    """A report as `bench` returns it, of times that are made up; every text that a user can choose is hostile."""
    sets = {"fp32": 1.0, "trt": 2.0, "cpu": cpu_factor}
    random = np.random.default_rng(0)
    times = {name: {stage: factor * random.uniform(1, 2, queries) for stage in STAGES} for name, factor in sets.items()}
    for stages in times.values():
        stages["total"] = np.sum([stages[stage] for stage in STAGES], axis=0)
    totals = {name: stages["total"] for name, stages in times.items()}
    scenario = {"fp32": summarise(totals["fp32"]), "cpu": summarise(totals["cpu"])}
    scenario["cpu"]["speedup"] = speedup(totals["fp32"], totals["cpu"])
    engine = {"target": "tensorrt-rtx", "part": "image", "bytes": 2_100_000, "latency": "not measured"}
    known = {"tensorrt_version": "1.7", "sm": [86], "kernels": 71, "bytes_touched": None, "seconds": 3.5}
    return {
        "schema": 1,
        "created": "2026-01-02 03:04 UTC",
        "quick": False,
        "gate": 0.99,
        "bundle": {
            "name": HOSTILE,
            "labels": 2,
            "lineage": {"recipe": {HOSTILE: HOSTILE}},
            "quality": {"trt": {"interval": [0.98765432, 1.0], "by_subset": {"image": {"n": 1}}}},
        },
        "part_sets": {
            name: {"role": JUDGE if name == "trt" else "speed", "precision": dict.fromkeys(PARTS, HOSTILE)}
            for name in sets
        },
        "settings": {"queries": queries, "warmup_queries": 10, "manifest": HOSTILE, "accuracy_limit": None},
        "sensors": "image+text",
        "stages": {name: {stage: summarise(each) for stage, each in stages.items()} for name, stages in times.items()},
        "distribution_ms": {name: distribution(totals[name]) for name in ("fp32", "cpu")},
        "scenarios": dict.fromkeys(SUBSETS, scenario),
        "latencies": {
            "least_queries": {"p50_ms": 2, "p90_ms": 10, "p99_ms": 100},
            "engine": {"cpu": summarise(times["cpu"]["image"])},
            "host_end_to_end": {"cpu": summarise(totals["cpu"])},
            "sensor_to_decision": {"not_measured": f"no loop.json; python benchmarks/loop.py {HOSTILE}"},
        },
        "mlperf": {
            "part_set": "cpu",
            "note": "A quick run",
            "accuracy": {"accuracy": 0.91, "interval": [0.9, 0.92], "n": 100},
            "scenarios": {"SingleStream": SINGLE_STREAM, "Offline": OFFLINE},
        },
        "energy": {"not_measured": "no energy counter"},
        "against": None,
        "broken": [],
        "memory": {
            name: {"imported_bytes": 9e7, "answered_bytes": 1.2e8, "model_bytes": 3e7, "runs": 1}
            for name in ("fp32", "cpu")
        },
        "cold_start": {"median_s": 0.75, "runs_s": [0.7, 0.75, 0.8]},
        "size": {
            name: {"bytes": round(3e6 * factor), "ratio": factor, "parts": dict.fromkeys(PARTS, round(1e6 * factor))}
            for name, factor in sets.items()
        },
        "accuracy": {name: _judged(None if name == "fp32" else retention) for name in sets},
        "pareto": _combinations(),
        "ceilings": _ceilings(),
        "parity": _parity(),
        "gpu": {"tensorrt": _on_gpu(), "tensorrt-rtx": {"not_measured": HOSTILE}},
        "engines": [{**engine, **known, "built_from_these_parts": True}, {**engine, "part": HOSTILE}],
        "environment": {
            "cpu": HOSTILE,
            "cores_usable": 2,
            "load_at_start": 0.1,
            "memory_bytes": 8e9,
            "governor": None,
            "power_mode": None,
            "heat_at_start": "cpu 61 °C",
            "heat_at_end": None,
            "versions": {"onnxruntime": HOSTILE},
        },
        "commands": [("everything", f"edgefuse bench {HOSTILE}")],
    }


def _on_gpu() -> dict:
    """One target on a GPU, and two more builds of it."""
    times = summarise([1.0, 2.0, 3.0])
    right = {"accuracy": 0.9, "interval": [0.85, 0.95], "n": 200}
    builds = {"p50_ms": [1.9, 2.1], "spread": 0.105}
    return {"engine": times, "host_end_to_end": times, "stages": {}, "accuracy": right, "builds": builds}


def _judged(retention: float | None) -> dict:
    interval = None if retention is None else [retention - 0.01, retention + 0.01]
    score = {
        "accuracy": 0.9,
        "interval": [0.85, 0.95],
        "n": 200,
        "retention": retention,
        "retention_interval": interval,
    }
    whole = {**score, "by_answer_type": {HOSTILE: score, "$money$": score}}
    return {**whole, "by_subset": dict.fromkeys(SUBSETS, whole)}


def _combinations() -> dict:
    """Four combinations, of which two are on the frontier."""
    points = []
    for number, (image, words) in enumerate([("cpu", "cpu"), ("cpu", "fp32"), ("fp32", "cpu"), ("fp32", "fp32")]):
        latency = summarise([1.0 + number] * 5)
        right = 0.9 + 0.01 * (number == 1)
        about = {"accuracy": right, "interval": [right - 0.05, right + 0.04], "n": 200, "bytes": 5_000_000}
        parts = {"image": image, "text": words, "head": "cpu"}
        told = {"model": HOSTILE, "parts": parts, "latency": latency, "p50_interval_ms": [0.9 + number, 1.1 + number]}
        points.append({**told, **about, "frontier": number < 2})
    return {"sensors": "image+text", "points": points, "notes": [HOSTILE]}


def _ceilings() -> dict:
    """Of an engine of one kernel, and of one part on the CPU."""
    kernel = {"kernel": "k", "node": HOSTILE, "precision": "Half", "flops": 4096, "bytes": 6144}
    engine = engine_bounds({"target": "tensorrt", "part": "image", "kernels": [kernel], "unplaced_flops": 9}, DEVICES)
    bound = {device.key: total([engine["total"][device.key]]) for device in DEVICES}
    row = {"part_set": "cpu", "part": "image", "precision": "int8", "threads": 1, "flops": 4096, "bytes": 6144}
    shares = {"intensity": 0.67, "flops_per_s": 1e9, "share_of_peak": 0.123, "share_of_roofline": 0.456}
    peaks = {"fp32_flops": 1.234e11, "int8_flops": 4e11, "stream_bytes": 1e10}
    return {
        "label": LABEL,
        "notes": [HOSTILE],
        "devices": [published(device) for device in DEVICES],
        "ranked_by": DEVICES[0].key,
        "engines": [{**engine, "kernels": 1}],
        "decision": {"tensorrt": bound},
        "no_bounds": [],
        "largest": {"tensorrt": [{"part": "image", **engine["kernels"][0]}]},
        "cpu": {
            "peaks": {"1": peaks},
            "parts": [{**row, **shares, "latency": summarise([2.0] * 4)}],
            "notes": [HOSTILE],
        },
    }


class Page(HTMLParser):
    """The elements of a page; fails on a tag that is not closed, or closed out of turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def html():
    return render(make_report())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_page_is_well_formed_and_no_id_stands_twice(page, html):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]

    assert html.startswith("<!doctype html>")
    assert ids
    assert len(ids) == len(set(ids))


def test_the_page_loads_nothing(page, html):
    assert not LOADING & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import|https?:", html)


def test_a_drawing_refers_only_to_its_own_ids(page, html):
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}

    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html))

    assert {name for pair in used for name in pair if name} <= ids


def test_what_a_bundle_says_is_text_and_never_markup(page, html):
    assert "<script" not in html
    assert "<img" not in html
    assert HOSTILE in page.text
    assert html.count(escape(HOSTILE)) > 5


def test_drawings_have_a_name_and_take_their_colours_from_the_page(page, html):
    drawings = [attributes for tag, attributes in page.elements if tag == "svg"]

    named = [drawing["aria-label"].split(" ", 1)[0] for drawing in drawings]
    assert named == ["Share", "Mean", "Accuracy", "Accuracy", "Accuracy"]
    assert all(drawing["role"] == "img" and "viewbox" in drawing for drawing in drawings)
    svg = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)
    assert {"var(--fp32)", "var(--cpu)", "currentColor"} <= set(re.findall(r"var\(--\w+\)|currentColor", svg))
    assert "decode</text>" in svg, "text stays text"
    assert "$money$</text>" in svg, "and is not set as a formula"


def test_the_figures_of_the_drawings_stand_in_tables(page, html):
    report = make_report()
    head, tables = html.split("Time of every stage", 1)

    for stages in report["stages"].values():
        assert milliseconds(stages["total"]["p99_ms"]) in tables
    assert "Time of every stage" not in head
    assert [tag for tag, _ in page.elements].count("caption") == [tag for tag, _ in page.elements].count("table") > 6


def test_what_was_measured_before_is_told_in_short(page):
    assert "trt.interval0.98765, 1" in page.text
    assert "trt.by_subset" not in page.text


def test_the_same_report_gives_the_same_page():
    assert render(make_report()) == render(make_report())


def test_the_verdicts_come_first(html):
    assert (
        html.index("gate 99\u00a0% passed") < html.index("faster than fp32") < html.index("0.75 s") < html.index("<svg")
    )


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"retention": 0.98}, "✗ gate 99\u00a0% missed"),
        ({"cpu_factor": 2.0}, "✗ slower than fp32"),
        ({"cpu_factor": 1.0}, "no difference shown"),
    ],
)
def test_bad_news_is_told(change, verdict):
    assert verdict in render(make_report(**change))


def test_a_loaded_machine_and_a_quick_run_are_mentioned():
    quiet, loaded = make_report(), make_report()
    loaded["environment"]["load_at_start"] = 1.9
    loaded["quick"] = True

    assert 'class="notes"' not in render(quiet)
    assert f"<li>{escape(HOSTILE)}</li>" in render({**quiet, "broken": [HOSTILE]})
    assert "Other work was running" in render(loaded)
    assert "A quick run" in render(loaded)


def test_a_percentile_that_the_queries_do_not_support_is_a_dash():
    report = make_report(queries=50)

    assert report["stages"]["fp32"]["total"]["p99_ms"] is None
    assert f'<td class="number">{NOT_KNOWN}</td>' in render(report)


def test_what_the_gpu_does_is_told_and_why_not(page):
    told = page.text.split("On this machine's GPU")[1].split("TensorRT engines")[0]

    assert told.count("Engine (the parts alone)") == told.count("Host, end to end") == 1
    assert "2 more builds from nothing" in told
    assert told.count("not measured") == 1


def test_an_engine_has_no_latency_and_a_missing_sidecar_is_said(page):
    assert page.text.split("TensorRT engines")[1].count("not measured") == 2
    assert "(no sidecar)" in page.text


def test_three_latencies_are_named_and_one_that_was_not_measured_says_how_to_get_it(page):
    block = page.text.split("Three latencies")[1].split("Time of every stage")[0]

    assert block.index("Engine (") < block.index("Host, end to end") < block.index("Sensor to decision (")
    assert "p50 2, p90 10, p99 100" in block
    assert "not measured" in block
    assert f"python benchmarks/loop.py {HOSTILE}" in block


def test_what_loadgen_says_is_told_with_what_it_missed(page):
    block = page.text.split("MLPerf scenarios")[1]

    for told in ("VALID", "INVALID (short of: duration)", "2.34", "4.56", "78.9", "A quick run", "91.00 % of 100"):
        assert told in block


def test_what_was_not_measured_says_why():
    report = make_report()
    report["mlperf"] = {"not_measured": "mlcommons-loadgen is not installed"}

    text = Page(render(report)).text

    assert "Not measured: mlcommons-loadgen is not installed." in text
    assert "Not measured: no energy counter." in text


def test_every_combination_is_named_in_the_drawing_and_told_in_the_table(html, page):
    block = page.text.split("Every combination, the fastest first")[1].split("Time to an answer, by sensors")[0]

    (drawing,) = re.findall(r"<svg[^>]*frontier joined.*?</svg>", html, flags=re.DOTALL)
    for image in ("fp32", "cpu"):
        for words in ("fp32", "cpu"):
            assert f"{image}/{words}</text>" in drawing
            assert block.count(f"image {image}, text {words}") == 1
    assert block.count("yes") == 2
    assert HOSTILE in block


def test_every_bound_stands_beside_the_word_bound_and_what_was_measured_does_not(page):
    block = page.text.split("Ceilings")[1].split("How it was measured")[0]
    bounds, measured = block.split("Peaks of this CPU, measured in this run")

    assert bounds.count(LABEL) == len(DEVICES) + 1 + 2, "a row for each device, one kernel, two captions"
    assert "123.4400.010.0" in measured
    assert "12.345.6" in measured
    assert "Bound, not measured: " + HOSTILE in measured


def test_ceilings_that_were_not_measured_say_why():
    report = make_report()
    report["ceilings"] = {"not_measured": f"no onnx {HOSTILE}"}

    assert f"CeilingsNot measured: no onnx {HOSTILE}." in Page(render(report)).text


def test_energy_is_told_of_every_meter():
    report = make_report()
    told = {"joules_per_decision": 0.12346, "at_rest_watts": 6.5, "decisions": 200, "seconds": 3.0}
    report["energy"] = {"cpu": {HOSTILE: told}}

    text = Page(render(report)).text

    assert f"{HOSTILE}0.12356.5200" in text


def test_a_comparison_gives_its_verdict_with_what_it_stands_on():
    report = make_report()
    about = {"report": HOSTILE, "sensors": "image+text", "confidence": 0.99, "margin": 0.03}
    report["against"] = {**about, "part_sets": {"cpu": VERDICT}}

    text = Page(render(report)).text

    assert "Against another report" not in Page(render(make_report())).text
    assert "slower1.1001.050\u20131.1500.00120 x 16" in text


def test_a_bundle_that_has_only_fp32_parts_makes_a_page():
    report = deepcopy(make_report())
    for key in ("part_sets", "stages", "distribution_ms", "memory", "size", "accuracy"):
        report[key] = {"fp32": report[key]["fp32"]}
    report["scenarios"] = {name: {"fp32": sets["fp32"]} for name, sets in report["scenarios"].items()}
    report["engines"] = []

    text = Page(render(report)).text

    assert "First answer" in text
    assert "Accuracy kept" not in text
    assert "None in this bundle" in text


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_series_stand_out_from_the_sheet(theme):
    """WCAG 2.1: text 4.5 to 1, graphical objects 3 to 1."""
    style = Path(report_module.__file__).with_name("report.html").read_text(encoding="utf-8")
    themes = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", themes[0 if theme == "light" else 1]))

    pairs = [("ink", "sheet"), ("soft", "sheet"), ("ink", "page"), ("soft", "page"), ("note-ink", "note")]
    for text, ground in [*pairs, ("good", "good-sheet"), ("bad", "bad-sheet")]:
        assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    for series in ("fp32", "trt", "cpu"):
        assert contrast(colour[series], colour["sheet"]) >= 3, series


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, by the definition of WCAG 2.1."""

    def luminance(colour):
        channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    ("value", "text"), [(None, NOT_KNOWN), (0.01234, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_times_have_three_digits(value, text):
    assert milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999 B"), (6_800_000, "6.80 MB"), (2.5e10, "25.0 GB"), (None, NOT_KNOWN)]
)
def test_bytes_have_a_unit(value, text):
    assert byte_count(value) == text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_never_scrolls_sideways(html, width, tmp_path):
    """A real browser lays the page out; only the tables may be wider than the screen, each in its own scroller."""
    measure = "with (this.contentDocument.documentElement) document.title = scrollWidth - clientWidth"
    frame = (
        f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{escape(html)}" onload="{measure}"></iframe>'
    )
    (tmp_path / "frame.html").write_text(f"<!doctype html><title></title>{frame}", encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]

    shown = subprocess.run(
        [*command, "--window-size=1400,1000", "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert re.search(r"<title>(\d+)</title>", shown.stdout)[1] == "0"
