"""The predictor: answers from any subset of sensors, from files or arrays, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edgefuse.runtime.backend import OpenParts
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle, write_bundle
from edgefuse.runtime.errors import MediaError
from edgefuse.runtime.lanes import Lanes
from edgefuse.runtime.predictor import Predictor, predict_once, softmax


@pytest.fixture(scope="module")
def predictor(tiny) -> Iterator[Predictor]:
    bundle = Bundle.open(tiny.bundle)
    with OnnxBackend(bundle, "fp32") as backend:
        yield Predictor(bundle, backend)


SUBSETS = [("image",), ("audio",), ("text",), ("image", "text"), ("audio", "text"), ("image", "audio", "text")]


@pytest.mark.parametrize("sensors", SUBSETS, ids="+".join)
@pytest.mark.parametrize("label", ["blue", "green", "red"])
def test_every_subset_of_sensors_gives_the_answer(predictor, tiny, sensors, label):
    values = {"image": tiny.media / f"{label}.png", "audio": str(tiny.media / f"{label}.wav"), "text": label}

    answer = predictor.predict(**{sensor: values[sensor] for sensor in sensors})

    assert answer.label == label
    assert answer.weights == pytest.approx({m: (m in sensors) / len(sensors) for m in ("image", "audio", "text")})


def test_confidence_is_the_softmax_of_the_logits(predictor):
    answer = predictor.predict(text="red")

    assert answer.confidence == pytest.approx(np.exp(10) / (np.exp(10) + 2))


def test_sensors_that_disagree_are_weighed(predictor, tiny):
    answer = predictor.predict(image=tiny.media / "blue.png", text="red")  # 200/255 of the evidence against all of it

    assert answer.label == "red"
    assert answer.confidence == pytest.approx(1 / (1 + np.exp(10 * 200 / 255 / 2 - 5) + np.exp(-5)), rel=1e-5)


def test_stages_are_timed_for_the_parts_that_ran(predictor, tiny):
    stages = predictor.predict(image=tiny.media / "red.png", text="red").stages_ms

    assert list(stages) == ["decode", "preprocess", "image", "text", "head", "total"]
    assert all(time_ms >= 0 for time_ms in stages.values())
    assert stages["total"] >= stages["decode"] + stages["preprocess"] + max(stages["image"], stages["text"])


def test_with_one_lane_the_stages_are_one_after_the_other(tiny):
    bundle = Bundle.open(tiny.bundle)
    with OnnxBackend(bundle, threads=1) as backend:
        stages = Predictor(bundle, backend).predict(image=tiny.media / "red.png", text="red").stages_ms

    total = stages.pop("total")

    assert total >= sum(stages.values())


def test_loading_is_not_counted_as_work(tiny):
    bundle = Bundle.open(tiny.bundle)
    events = []

    class Recorder(OnnxBackend):
        def load(self, part):
            events.append(("load", part))
            super().load(part)

        def run(self, part, inputs):
            events.append(("run", part))
            return super().run(part, inputs)

    with Recorder(bundle) as backend:
        Predictor(bundle, backend).predict(text="red")

    assert events[:2] == [("load", "text"), ("load", "head")]
    assert ("run", "image") not in events


def test_arrays_answer_as_their_files_do(predictor, tiny):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :, 0] = 200  # red
    pcm = np.zeros(160, np.float32)
    pcm[np.arange(160) * 3 // 160 == 2] = 0.5

    from_arrays = predictor.predict(image=pixels, audio=pcm)
    from_files = predictor.predict(image=tiny.media / "red.png", audio=tiny.media / "red.wav")

    assert from_arrays.label == from_files.label == "red"
    assert from_arrays.confidence == pytest.approx(from_files.confidence, abs=1e-4)  # 16-bit samples


def test_the_bytes_of_a_file_answer_as_the_file(predictor, tiny):
    image, audio = tiny.media / "red.png", tiny.media / "red.wav"

    from_bytes = predictor.predict(image=image.read_bytes(), audio=audio.read_bytes())
    from_files = predictor.predict(image=image, audio=audio)

    assert (from_bytes.label, from_bytes.confidence) == (from_files.label, from_files.confidence)


def test_several_examples_are_encoded_and_fused_at_once(predictor):
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    pixels[0, :, :, 0], pixels[1, :, :, 2] = 255, 255  # red, blue

    tokens = predictor.encode("image", {"image": pixels})
    logits, weights = predictor.fuse({"image": tokens}, np.array([[1, 0, 0], [1, 0, 0]], np.float32))

    assert tokens.shape == (2, 2, 3)
    np.testing.assert_allclose(logits, [[0, 0, 10], [10, 0, 0]], atol=1e-4)
    np.testing.assert_array_equal(weights, [[1, 0, 0], [1, 0, 0]])


def test_a_query_is_encoded_side_by_side_and_a_batch_one_modality_after_the_other(tiny):
    """Each waits for the other, so that a query in a row would never end; a batch may deal out its own rows."""
    together, threads = threading.Barrier(2, timeout=10), set()

    class Waiting(OpenParts):
        def __init__(self) -> None:
            super().__init__({m: partial(self._encode, m) for m in ("image", "audio")})
            self.lanes = Lanes(2)

        def _encode(self, modality, tensors):
            batch = len(tensors[modality])
            threads.add(threading.get_ident()) if batch > 1 else together.wait()
            return {f"{modality}_tokens": np.zeros((batch, 2, 3), np.float32)}

    predictor = Predictor(Bundle.open(tiny.bundle), Waiting())
    one = {m: predictor.preprocessor.empty(m) for m in ("image", "audio")}
    two = {m: {name: np.repeat(array, 2, axis=0) for name, array in tensors.items()} for m, tensors in one.items()}

    assert list(predictor.encode_each(one)[0]) == ["image", "audio"]
    assert list(predictor.encode_each(two)[0]) == ["image", "audio"]
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("rows", [1, 2, 7, 20])
def test_the_modalities_of_a_batch_are_encoded_together_as_each_alone(tiny, rows):
    bundle, random = Bundle.open(tiny.bundle), np.random.default_rng(rows)
    with OnnxBackend(bundle, threads=2) as backend:
        predictor = Predictor(bundle, backend)
        pixels = random.integers(0, 256, (rows, 8, 8, 3), np.uint8)
        inputs = {"image": {"image": pixels}, "audio": {"audio": np.zeros((rows, 160), np.float32)}}

        tokens, took_ms = predictor.encode_each(inputs)

        assert list(tokens) == list(took_ms) == ["image", "audio"]
        for modality, tensors in inputs.items():
            np.testing.assert_array_equal(tokens[modality], predictor.encode(modality, tensors))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no sensor given; this model takes: image, audio, text"),
        ({"text": "   "}, "text: found '   '; give words"),
        ({"text": "\ud800"}, "not valid Unicode"),
        ({"image": np.zeros((8, 8, 3), np.float32)}, r"found float32 \[8, 8, 3\]; give a path or uint8 RGB"),
        ({"image": np.zeros((8, 8), np.uint8)}, r"found uint8 \[8, 8\]"),
        ({"image": np.zeros((0, 8, 3), np.uint8)}, "found no pixels"),
        ({"image": b"abc"}, "image: not a picture"),
        ({"audio": b"abc"}, "audio: not a sound"),
        ({"audio": np.zeros(160, np.int16)}, r"found int16 \[160\]; give a path or float32 mono"),
        ({"audio": np.zeros(0, np.float32)}, r"found float32 \[0\]"),
        ({"audio": np.full(160, np.nan, np.float32)}, "NaN or infinite"),
        ({"image": "nowhere.png"}, "nowhere.png: No such file or directory; check the path"),
    ],
)
def test_a_useless_input_is_refused_with_a_reason(predictor, given, message):
    with pytest.raises(MediaError, match=message):
        predictor.predict(**given)


def test_a_sensor_that_the_model_lacks_is_refused(tiny, tmp_path):
    whole = Bundle.open(tiny.bundle)
    info = whole.info.model_copy(
        update={
            "audio": None,
            "tokens": {m: spec for m, spec in whole.info.tokens.items() if m != "audio"},
            "parts": {"fp32": whole.info.parts["fp32"]},
            "files": {},
        }
    )
    files = {name: whole.read(name) for name in whole.info.files if "cpu" not in name}
    bundle = write_bundle(tmp_path / "deaf", info, files)

    with OnnxBackend(bundle) as backend, pytest.raises(MediaError, match=r"no audio encoder; it takes: image, text"):
        Predictor(bundle, backend).predict(audio=tiny.media / "red.wav")


def test_once_opens_answers_and_closes(tiny):
    found = predict_once(tiny.bundle, text="green", threads=1)

    assert (found["label"], sorted(found)) == ("green", ["confidence", "label", "stages_ms", "weights"])


def test_softmax_survives_large_logits():
    np.testing.assert_allclose(softmax(np.array([1e5, 1e5, -1e5], np.float32)), [0.5, 0.5, 0])


def test_paths_may_be_str_or_path(predictor, tiny):
    path: Path = tiny.media / "green.png"

    assert predictor.predict(image=path).label == predictor.predict(image=str(path)).label == "green"
