"""Batches of rows, as Ray Data and Spark give them: each row is answered as the predictor alone would."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefuse.runtime import predict_batches
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import MediaError, OptionError
from edgefuse.runtime.predict_batches import PredictBatches
from edgefuse.runtime.predictor import Answer, Predictor
from tests.conftest import LABELS, MODALITIES


@pytest.fixture(scope="module")
def predict(tiny) -> Iterator[PredictBatches]:
    with closing(PredictBatches(tiny.bundle, part_set="fp32", keep=["id"])) as batches:
        yield batches


@pytest.fixture(scope="module")
def predictor(tiny) -> Iterator[Predictor]:
    bundle = Bundle.open(tiny.bundle)
    with OnnxBackend(bundle, "fp32") as backend:
        yield Predictor(bundle, backend)


def column(values: list[Any]) -> np.ndarray:
    """A column of objects, as Ray makes it of anything but numbers."""
    made = np.empty(len(values), object)
    made[:] = values
    return made


def alone_or_why(predictor: Predictor, sensors: dict[str, Any]) -> Answer | str:
    try:
        return predictor.predict(**sensors)
    except MediaError as error:
        return str(error)


def assert_answered_as_alone(answers: dict[str, np.ndarray], batch: dict[str, Any], predictor: Predictor) -> None:
    sensors = [name for name in MODALITIES if name in batch]
    for number, row in enumerate(zip(*(batch[name] for name in sensors), strict=True)):
        there = {name: value for name, value in zip(sensors, row, strict=True) if value is not None and len(value)}
        alone = alone_or_why(predictor, there)
        if isinstance(alone, str):
            assert answers["error"][number] == alone
            assert answers["label"][number] == ""
            assert np.isnan(answers["confidence"][number])
            assert not any(answers[f"weight_{name}"][number] for name in MODALITIES)
        else:
            assert answers["error"][number] == ""
            assert answers["label"][number] == alone.label
            assert answers["confidence"][number] == pytest.approx(alone.confidence, abs=1e-6)
            for name in MODALITIES:
                assert answers[f"weight_{name}"][number] == pytest.approx(alone.weights[name], abs=1e-6)


VALUES = st.sampled_from([*LABELS, None, "", "damaged"])


@settings(max_examples=25)
@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=9), st.integers(1, 4))
def test_each_row_is_answered_as_alone_whatever_it_lacks(predict, predictor, tiny, rows, at_once):
    kinds = {"image": ".png", "audio": ".wav"}
    batch = {
        name: column([str(tiny.media / f"{value}{kinds[name]}") if value and name in kinds else value for value in of])
        for name, of in zip(MODALITIES, zip(*rows, strict=True), strict=True)
    }
    batch["id"] = np.arange(len(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_batches, "AT_ONCE", at_once)
        answers = predict(batch)

    assert list(answers) == ["id", "label", "confidence", *(f"weight_{name}" for name in MODALITIES), "error"]
    np.testing.assert_array_equal(answers["id"], batch["id"])
    assert_answered_as_alone(answers, batch, predictor)


def test_columns_may_hold_bytes_and_arrays(predict, predictor, tiny):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 14, 3), dtype=np.uint8)  # as ray.data.read_images
    pixels.flags.writeable = False  # what lies in Ray's object store is
    batch = {
        "id": column(["a", "b", "c"]),
        "image": pixels,
        "audio": column([(tiny.media / f"{label}.wav").read_bytes() for label in LABELS]),  # read_binary_files
    }

    answers = predict(batch)

    assert_answered_as_alone(answers, batch, predictor)
    assert set(answers["error"]) == {""}


def test_a_damaged_row_says_why_and_the_others_are_answered(predict, tiny):
    batch = {"id": [0, 1, 2], "image": [str(tiny.media / "red.png"), "nowhere.png", None], "text": ["red", "red", None]}

    answers = predict(batch)

    assert list(answers["label"]) == ["red", "", ""]
    assert answers["error"][0] == ""
    assert answers["error"][1].startswith("nowhere.png: No such file")
    assert answers["error"][2] == "no sensor given; this model takes: image, audio, text"


def test_an_empty_batch_has_the_same_columns_and_types(predict):
    some = predict({"id": np.array([1]), "text": column(["red"])})
    none = predict({"id": np.array([], np.int64), "text": column([])})

    assert {name: array.dtype for name, array in none.items()} == {name: array.dtype for name, array in some.items()}
    assert {len(array) for array in none.values()} == {0}


def test_a_sensor_that_the_model_lacks_is_an_error_of_the_row(predict):
    answers = predict({"id": [1, 2], "signal": ["a.csv", None], "text": ["red", "red"]})

    assert "this model has no signal encoder" in answers["error"][0]
    assert list(answers["label"]) == ["", "red"]


@pytest.mark.parametrize("batch", [{"id": [1], "picture": ["a.png"]}, {"text": ["red"]}, {}])
def test_a_batch_without_the_columns_is_refused(predict, batch):
    with pytest.raises(OptionError, match="a batch needs one of image/audio/text, id"):
        predict(batch)


def test_a_kept_column_must_not_have_the_name_of_an_answer(tiny):
    with pytest.raises(OptionError, match="keep: found label, which is made here"):
        PredictBatches(tiny.bundle, keep=["label"])


def test_the_class_and_its_arguments_travel_to_a_worker(tiny):
    """Ray pickles the class by its name and builds it on the worker: `fn_constructor_args`."""
    kind, arguments = pickle.loads(pickle.dumps((PredictBatches, (str(tiny.bundle),))))

    with closing(kind(*arguments)) as batches:
        assert list(batches({"text": np.array(["green", "blue"])})["label"]) == ["green", "blue"]


def test_it_serves_as_sparks_map_in_pandas(tiny, predictor):
    def label(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:  # as docs/fleets.md has it
        predict = PredictBatches(tiny.bundle, part_set="fp32", keep=["id"])
        for frame in frames:
            yield pd.DataFrame(predict(frame))

    files = [str(tiny.media / "red.png"), None, str(tiny.media / "blue.png")]
    frames = [pd.DataFrame({"id": [i, i + 3, i + 6], "image": files, "text": ["red", "green", None]}) for i in range(2)]

    found = pd.concat(label(iter(frames)))

    assert list(found["id"]) == [0, 3, 6, 1, 4, 7]
    assert list(found["label"]) == ["red", "green", "blue"] * 2
    assert set(found["error"]) == {""}
