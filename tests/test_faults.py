"""The loop under faults: a few of each kind beside each other, and a judge that is shown to notice what is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from edgefuse.benchmarks import fault_injection as inject
from edgefuse.benchmarks.fault_check import Evidence, judge
from edgefuse.benchmarks.fault_injection import Fault, LoggedMailbox, Replayed, Script, faulty, spoil
from edgefuse.benchmarks.loop_faults import Setting, kinds, run_faults, schedule
from edgefuse.runtime import sensors
from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.decision import Decision
from edgefuse.runtime.errors import BackendError, SensorError
from edgefuse.runtime.preprocess import Preprocessor
from tests.conftest import LABELS, Tiny

LIMITS_MS = {"image": 200.0, "audio": 200.0, "text": None}
SHORT = Setting(kinds(0.2, 0.3, 0.3, 1.0), LIMITS_MS, stuck_s=0.3, hold_ms=300.0, lead_s=0.8, stage_ms=1.0)
FOREVER = 2**62


def _readings(tiny: Tiny) -> dict[str, list[Tensors]]:
    preprocessor = Preprocessor(Bundle.open(tiny.bundle))
    values = {
        "image": [str(tiny.media / f"{label}.png") for label in LABELS],
        "audio": [str(tiny.media / f"{label}.wav") for label in LABELS],
        "text": LABELS,
    }
    return {m: [preprocessor.prepare(m, preprocessor.decode(m, value)) for value in values[m]] for m in values}


@pytest.fixture(scope="module")
def evidence(tiny: Tiny) -> Iterator[Evidence]:
    """One run with a fault of each kind."""
    bundle = Bundle.open(tiny.bundle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensors, "CALM_S", 0.2)
        patch.setattr(sensors, "LOOK_S", 0.05)
        yield run_faults(bundle.info, lambda: OnnxBackend(bundle, threads=1), _readings(tiny), SHORT, count=1)


def test_no_fault_makes_a_decision_wrong_and_each_is_said_once_and_over_in_time(evidence: Evidence) -> None:
    verdict = judge(evidence)
    assert verdict.wrong == []
    assert {kind: len(seconds) for kind, seconds in verdict.recovery_s.items()} == {
        kind.name: 1 for kind in SHORT.kinds
    }
    assert max(seconds for each in verdict.recovery_s.values() for seconds in each) <= 2


def test_sensors_that_are_gone_do_not_count_and_the_others_go_on(evidence: Evidence) -> None:
    seen = {tuple(decision.presence.values()) for decision in evidence.decisions}
    assert {(True, True, True), (False, True, True), (True, False, True)} <= seen


def _changed(decision: Decision, evidence: Evidence) -> dict[str, Decision]:
    """A decision made wrong in every way."""
    older_ms = {**decision.age_ms, "image": decision.age_ms["image"] + 1.0}
    gone = {m: age_ms for m, age_ms in decision.age_ms.items() if m != "image"}
    return {
        "which no reading had": replace(decision, age_ms=older_ms),
        "is missing though": replace(decision, presence={**decision.presence, "image": False}, age_ms=gone),
        "has an age or a weight": replace(decision, presence={**decision.presence, "image": False}),
        "the answer is not that": replace(decision, probabilities=np.roll(decision.probabilities, 1)),
        "the skew is": replace(decision, skew_ms=decision.skew_ms + 1.0),
        "older reading than the newest": _stale(decision, evidence),
    }


def _stale(decision: Decision, evidence: Evidence) -> Decision:
    """The decision as if it stood on the picture before the one it had."""
    taken_ns = decision.t_ms * 1e6 - decision.age_ms["image"] * 1e6
    before_ns = max(t_ns for t_ns, _, _ in evidence.mailbox.log["image"] if t_ns < taken_ns - 1e6)
    return replace(decision, age_ms={**decision.age_ms, "image": decision.t_ms - before_ns / 1e6})


def test_the_judge_notices_a_decision_that_is_wrong_in_any_way(evidence: Evidence) -> None:
    index = next(i for i, decision in enumerate(evidence.decisions) if i > 10 and all(decision.presence.values()))
    for told, wrong in _changed(evidence.decisions[index], evidence).items():
        decisions = [*evidence.decisions[:index], wrong, *evidence.decisions[index + 1 :]]
        assert any(told in line for line in judge(replace(evidence, decisions=decisions)).wrong), told


def test_the_judge_notices_a_limit_that_is_not_kept(evidence: Evidence) -> None:
    found = judge(replace(evidence, limits_ms={**LIMITS_MS, "image": 60.0})).wrong
    assert any("image counts with a reading of" in line for line in found)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda notices: notices[1:], "not once that it is"),
        (lambda notices: [*notices, replace(notices[-1], t_ms=notices[-1].t_ms + 1)], "not once that it is"),
        (lambda notices: [replace(notices[0], t_ms=0.0), *notices], "said without need"),
        (lambda notices: [notices[0], replace(notices[1], t_ms=notices[1].t_ms + 60e3)], "its end was said after"),
    ],
)
def test_the_judge_notices_what_is_said_too_often_too_seldom_or_too_late(
    evidence: Evidence, change: Callable[[list], list], told: str
) -> None:
    about = [notice for notice in evidence.notices if notice.about == "audio"]
    others = [notice for notice in evidence.notices if notice.about != "audio"]
    assert any(told in line for line in judge(replace(evidence, notices=others + change(about))).wrong)


def test_the_judge_notices_that_nothing_came_back(evidence: Evidence) -> None:
    last = max(evidence.faults, key=lambda fault: fault.end_ns)
    decisions = [decision for decision in evidence.decisions if decision.t_ms * 1e6 < last.end_ns]
    assert any("no recovery" in line for line in judge(replace(evidence, decisions=decisions)).wrong)


def test_faults_of_one_lane_never_overlap() -> None:
    faults = schedule(SHORT, 20, 0)
    lanes = {kind.name: kind.lane for kind in SHORT.kinds}
    for lane in set(lanes.values()):
        own = [fault for fault in faults if lanes[fault.kind] == lane]
        assert all(first.end_ns < second.begin_ns for first, second in itertools.pairwise(own))
    assert {kind: sum(fault.kind == kind for fault in faults) for kind in lanes} == dict.fromkeys(lanes, 20)


def test_a_backend_that_failed_may_not_be_used_again(tiny: Tiny) -> None:
    bundle = Bundle.open(tiny.bundle)
    script = Script([Fault(inject.ERROR, "backend", 0, FOREVER)])
    presence = np.ones((1, 3), np.float32)
    with faulty(lambda: OnnxBackend(bundle, threads=1), script)() as backend:
        pipeline = backend.pipeline()
        with pytest.raises(BackendError):
            pipeline.run({}, presence)
        with pytest.raises(AssertionError):
            pipeline.run({}, presence)


def test_a_corrupt_frame_is_written_over_and_never_handed_in(tiny: Tiny) -> None:
    readings = _readings(tiny)["image"]
    mailbox = LoggedMailbox(lambda modality: {"image": np.empty_like(readings[0]["image"])}, ("image",))
    source = Replayed("image", readings, 1000.0, Script([Fault(inject.CORRUPT, "image", 0, FOREVER)]))
    writer = mailbox.writer("image")
    with pytest.raises(SensorError, match="corrupt"):
        source.read(writer)
    spoilt = {"image": np.empty_like(readings[0]["image"])}
    spoil(spoilt)
    np.testing.assert_array_equal(writer.tensors["image"], spoilt["image"])
    assert mailbox.take("image") is None
