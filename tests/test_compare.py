"""The measures of parity against numpy, scipy, scikit-learn and ONNX Runtime's own QuantizeLinear."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
import scipy.spatial.distance
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgefuse.optimize.compare import CodeDistance, Difference, agreement, beyond_codes
from edgefuse.runtime.backend_onnx import open_session

Floats = NDArray[np.float32]

numbers = st.floats(-1000, 1000, width=32, allow_subnormal=False)
pairs = st.integers(1, 60).flatmap(lambda n: arrays.arrays(np.float32, (2, n), elements=numbers))


def difference(reference: Floats, changed: Floats, pieces: int = 1) -> Difference:
    found = Difference()
    for first, second in zip(np.array_split(reference, pieces), np.array_split(changed, pieces), strict=True):
        found.update(first, second)
    return found


@given(pairs, st.integers(1, 5))
def test_errors_are_those_of_numpy_and_scikit_learn_however_the_values_come(pair: Floats, pieces: int) -> None:
    reference, changed = pair
    found = difference(reference, changed, pieces)
    wide = pair.astype(np.float64)
    assert found.max_abs == pytest.approx(sklearn.metrics.max_error(*wide), rel=1e-12)
    assert found.mean_abs == pytest.approx(sklearn.metrics.mean_absolute_error(*wide), rel=1e-9)
    if np.abs(wide[0]).sum():
        assert found.relative == pytest.approx(np.abs(wide[1] - wide[0]).mean() / np.abs(wide[0]).mean(), rel=1e-9)
    if (wide[0] @ wide[0]) and (wide[1] @ wide[1]):
        assert found.cosine == pytest.approx(1 - scipy.spatial.distance.cosine(*wide), abs=1e-12)
    squares = sklearn.metrics.mean_squared_error(*wide)
    if squares and np.square(wide[0]).mean():
        assert found.sqnr_db == pytest.approx(10 * np.log10(np.square(wide[0]).mean() / squares), abs=1e-6)
        assert found.noise == pytest.approx(squares / np.square(wide[0]).mean(), rel=1e-9)


@given(arrays.arrays(np.float32, arrays.array_shapes(max_dims=3), elements=numbers))
def test_a_perfect_copy_has_no_error(values: Floats) -> None:
    row = difference(values, values.copy()).row()
    assert row["max_abs"] == row["mean_abs"] == row["relative"] == 0
    assert row["cosine"] == pytest.approx(1)
    assert row["sqnr_db"] is None
    assert "not_finite" not in row


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_and_makes_the_noise_infinite(bad: float) -> None:
    found = difference(np.array([1.0, 2.0, 3.0], np.float32), np.array([1.5, bad, 3.0], np.float32))
    assert (found.count, found.max_abs, found.noise) == (2, 0.5, math.inf)
    assert found.row()["not_finite"] == 1
    json.dumps(found.row(), allow_nan=False)


def test_zeros_beside_something_stay_numbers() -> None:
    zeros, ones = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert difference(zeros, zeros).cosine == 1
    assert difference(zeros, ones).cosine == difference(ones, zeros).cosine == 0
    assert difference(ones, zeros).sqnr_db == pytest.approx(0)
    json.dumps(difference(zeros, ones).row(), allow_nan=False)
    json.dumps(Difference().row(), allow_nan=False)


@given(arrays.arrays(np.int8, (2, 40)), arrays.arrays(bool, 40), st.integers(1, 4))
def test_code_distances_are_counted_however_they_come(
    pair: NDArray[np.int8], clipped: NDArray[np.bool_], at: int
) -> None:
    whole, first, second = CodeDistance(), CodeDistance(), CodeDistance()
    whole.update(*pair, clipped)
    first.update(*pair[:, :at], clipped[:at])
    second.update(*pair[:, at:], clipped[at:])
    first.include(second)
    steps = [abs(int(a) - int(b)) for a, b in pair.T]
    assert whole.row() == first.row()
    assert whole.row() == {
        "off_by_1": steps.count(1) / 40,
        "off_by_more": sum(step > 1 for step in steps) / 40,
        "farthest": max(steps),
        "clipped": clipped.mean(),
    }


@given(
    arrays.arrays(np.float32, 30, elements=st.floats(-300, 300, width=32)),
    st.floats(0.0625, 2, width=32),
    st.sampled_from([np.int8(0), np.int8(-7), np.uint8(100)]),
)
def test_a_value_is_clipped_where_quantizelinear_loses_more_than_its_rounding(
    values: Floats, scale: float, zero: np.int8 | np.uint8
) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(array), name) for name, array in (("scale", np.float32(scale)), ("zero", zero))
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [30]) for name in "xy")
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(helper.make_graph(nodes, "qdq", [x], [y], constants), opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    (back,) = open_session(model.SerializeToString(), threads=1, exact_qdq=True).run(None, {"x": values})
    lost = np.abs(back.astype(np.float64) - values) / scale
    found = beyond_codes(values, np.float32(scale), np.array(zero))
    sure = np.abs(lost - 0.5) > 1e-3  # at half a step rounding and clipping lose alike
    np.testing.assert_array_equal(found[sure], lost[sure] > 0.5)


def test_agreement_is_the_share_of_equal_answers() -> None:
    random = np.random.default_rng(0)
    logits, others = random.standard_normal((2, 50, 3))
    expected = sklearn.metrics.accuracy_score(logits.argmax(axis=1), others.argmax(axis=1))
    assert agreement(logits, others) == pytest.approx(expected)
    assert agreement(logits, logits + 3) == 1
