"""Counts in Prometheus' format, read by Prometheus' own parser, and whether the loop is well."""

from __future__ import annotations

import time
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from edgefuse.runtime import metrics as module
from edgefuse.runtime.metrics import BUCKETS_S, METRICS, STUCK_MS, Metrics, resident_bytes
from edgefuse.runtime.sensors import State
from tests.web_fixtures import contract, decision, mailbox, trouble

SECOND_NS = 1_000_000_000


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(contract(), mailbox())


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, values of its labels) -> value, as Prometheus understands the text."""
    families = text_string_to_metric_families(metrics.text())
    found = [sample for family in families for sample in family.samples]
    named = {(sample.name.removeprefix("edgefuse_"), tuple(sample.labels.values())): sample.value for sample in found}
    assert len(named) == len(found), "a sample stands there twice"
    return named


def test_what_the_loop_did_is_counted(metrics):
    metrics.decision(decision(total_ms=4.0))
    metrics.decision(decision(total_ms=30.0, text=False))
    writer = metrics.mailbox.writer("image")
    for _ in range(3):
        writer.put(0)

    found = samples(metrics)

    assert found["decisions_total", ()] == 2
    assert found["decision_seconds_count", ()] == 2
    assert found["decision_seconds_sum", ()] == pytest.approx(0.034)
    assert found["stage_seconds_sum", ("image",)] == pytest.approx(0.005)
    assert found["stage_seconds_count", ("head",)] == 2
    assert ("stage_seconds_count", ("total",)) not in found
    assert (found["presence", ("image",)], found["presence", ("text",)]) == (1, 0)
    assert found["reading_age_seconds", ("audio",)] == pytest.approx(0.061)
    assert ("reading_age_seconds", ("text",)) not in found
    assert (found["readings_total", ("image",)], found["dropped_total", ("image",)]) == (3, 2)
    assert 0 <= found["last_decision_age_seconds", ()] < 10


@pytest.mark.parametrize(("took_ms", "end"), [(0.5, "0.001"), (1.0, "0.001"), (1.1, "0.002"), (9e9, "+Inf")])
def test_a_bucket_holds_what_took_at_most_its_end(metrics, took_ms, end):
    metrics.decision(decision(total_ms=took_ms))

    found = samples(metrics)

    ends = [*map(str, BUCKETS_S), "+Inf"]
    assert [found["decision_seconds_bucket", (at,)] for at in ends] == [
        ends.index(at) >= ends.index(end) for at in ends
    ]


def test_types_and_helps_are_those_of_the_table(metrics):
    metrics.decision(decision())
    metrics.alarm("red")
    families = {family.name: family for family in text_string_to_metric_families(metrics.text())}

    for name, (kind, _, text) in METRICS.items():
        family = families[f"edgefuse_{name.removesuffix('_total')}"]
        assert (family.type, family.documentation) == (kind, text)
    assert families["edgefuse_decision_seconds"].type == "histogram"
    assert families["edgefuse_stage_seconds"].type == "summary"


def test_before_the_first_decision_nothing_is_made_up(metrics):
    found = samples(metrics)

    assert found["decisions_total", ()] == 0
    assert found["up", ()] == 0
    assert not [name for name, _ in found if "age_seconds" in name]


@given(st.dictionaries(st.text(), st.integers(1, 3), max_size=4))
def test_any_name_of_an_alarm_survives(names):
    metrics = Metrics(contract(), mailbox())
    for name, times in names.items():
        for _ in range(times):
            metrics.alarm(name)

    found = samples(metrics)

    assert {labels[0]: value for (name, labels), value in found.items() if name == "alarms_total"} == names


def test_failures_and_restarts_are_counted(metrics):
    for notice in (trouble("image"), trouble("image", is_well=True), trouble("image"), trouble("backend")):
        metrics.notice(notice)
    metrics.sensors = SimpleNamespace(states={"image": State("camera 0", opened=3), "audio": State("mic")})

    found = samples(metrics)

    assert (found["sensor_failures_total", ("image",)], found["sensor_failures_total", ("audio",)]) == (2, 0)
    assert (found["sensor_restarts_total", ("image",)], found["sensor_restarts_total", ("audio",)]) == (2, 0)
    assert found["backend_failures_total", ()] == 1


def test_memory_is_what_the_system_says():
    assert resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, abs=5e6)


def test_a_system_that_does_not_tell_its_memory_is_left_out(metrics, monkeypatch):
    monkeypatch.setattr(module, "resident_bytes", lambda: None)

    assert ("resident_memory_bytes", ()) not in samples(metrics)


@pytest.mark.parametrize(
    ("notices", "status", "sensors"),
    [
        ([], "ok", {"image": "ok", "audio": "ok", "text": "missing"}),
        ([trouble("audio")], "degraded", {"image": "ok", "audio": "failed", "text": "missing"}),
        ([trouble("audio"), trouble("audio", True)], "ok", {"image": "ok", "audio": "ok", "text": "missing"}),
        ([trouble("pace")], "degraded", {"image": "ok", "audio": "ok", "text": "missing"}),
        ([trouble("loop")], "down", dict.fromkeys(("image", "audio", "text"), "missing")),
        ([trouble("loop"), trouble("loop", True)], "ok", {"image": "ok", "audio": "ok", "text": "missing"}),
        ([trouble("backend")], "down", {"image": "ok", "audio": "ok", "text": "missing"}),
    ],
)
def test_health_is_what_the_notices_leave(metrics, notices, status, sensors):
    metrics.decision(decision(text=False))
    for notice in notices:
        metrics.notice(notice)

    found, document = metrics.health()

    assert (found, document["status"], document["sensors"]) == (status, status, sensors)
    assert document["backend"] == ("failed" if notices and notices[0].about == "backend" else "ok")
    assert samples(metrics)["up", ()] == (status != "down")


def test_a_file_that_is_over_has_not_failed(metrics):
    metrics.decision(decision())
    metrics.sensors = SimpleNamespace(states={"audio": State("a.wav", status="ended")})
    metrics.notice(trouble("audio", message="a.wav has ended"))

    assert metrics.health()[1]["sensors"] == {"image": "ok", "audio": "ended", "text": "ok"}


def test_a_loop_that_has_not_decided_is_down(metrics):
    assert metrics.health()[0] == "down"
    assert metrics.health()[1]["last_decision_age_ms"] is None


def test_a_loop_that_no_longer_looks_is_down_and_one_with_nothing_new_is_not(metrics):
    metrics.decision(decision())
    now_ns = time.monotonic_ns()
    metrics.newest = metrics.newest._replace(at_ns=now_ns - 60 * SECOND_NS)  # one text, a minute ago
    assert metrics.health()[0] == "ok"

    metrics.mailbox.looked_ns = now_ns - int((STUCK_MS + 1000) * 1e6)
    status, document = metrics.health()
    assert status == "down"
    assert "has not looked for readings for 6 s" in document["troubles"]["loop"]

    metrics.mailbox.take("image")
    assert metrics.health()[0] == "ok"


def test_a_loop_that_is_told_to_be_slow_is_not_stuck():
    slow = Metrics(contract(), mailbox(), gap_s=60.0)
    slow.decision(decision())

    slow.mailbox.looked_ns -= 60 * SECOND_NS
    assert slow.health()[0] == "ok"
    slow.mailbox.looked_ns -= 6 * SECOND_NS
    assert slow.health()[0] == "down"
