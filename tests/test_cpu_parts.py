"""Parts for ONNX Runtime's CPU: they answer as FP32 does, keep the front end float, and are timed fairly."""

from __future__ import annotations

import numpy as np
import pytest

from edgefuse.optimize.cpu_parts import DYNAMIC, FUSED, cpu_candidates, fused, median_ms
from edgefuse.optimize.judge import REFERENCE, Candidate
from edgefuse.runtime.bundle import HEAD
from tests.optimize_fixtures import PARTS, cosine, inputs_of, operators, outputs


@pytest.mark.parametrize("part", PARTS)
def test_cpu_candidates_answer_as_fp32_does(part: str) -> None:
    candidates = {candidate.precision: candidate.model for candidate in cpu_candidates(PARTS[part])}
    assert candidates[REFERENCE] == PARTS[part]
    for batch in (1, 4):
        inputs = inputs_of(part, batch)
        expected = outputs(PARTS[part], inputs)[0]
        if FUSED in candidates:
            np.testing.assert_allclose(outputs(candidates[FUSED], inputs)[0], expected, atol=1e-5)
        assert cosine(outputs(candidates[DYNAMIC], inputs)[0], expected) > 0.999


def test_a_form_that_changes_nothing_is_no_candidate() -> None:
    assert [candidate.precision for candidate in cpu_candidates(PARTS["image"])] == [REFERENCE, DYNAMIC]
    assert fused(PARTS["image"]) == PARTS["image"]


def test_rewriting_twice_changes_nothing_more() -> None:
    for part in ("audio", "text"):
        assert operators(fused(fused(PARTS[part]))) == operators(fused(PARTS[part]))


def test_times_are_medians_of_interleaved_runs() -> None:
    times = median_ms([Candidate("a", PARTS[HEAD]), Candidate("b", PARTS[HEAD])], inputs_of(HEAD, batch=1))
    assert set(times) == {"a", "b"}
    assert all(0 < time < 100 for time in times.values())
