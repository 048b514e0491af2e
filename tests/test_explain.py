"""`edgefuse explain`: any subset of the sensors, what adds up, what is flat, and mistakes in one line."""

from __future__ import annotations

import itertools
import json
import math

import cv2
import numpy as np
import pytest
import soundfile

from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle, write_bundle
from edgefuse.runtime.errors import BundleError, MediaError
from edgefuse.runtime.explain import explain, explain_decoded
from edgefuse.runtime.explanation import FLAT
from edgefuse.runtime.predictor import Predictor
from tests.conftest import MODALITIES, PIXELS, RATE, SAMPLES
from tests.trt_rig import rig_of

KEYS = ["label", "answer", "logit", "baseline_logit", "shapley", "image_map", "audio_map", "words", "seconds"]
SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations(MODALITIES, size)]


@pytest.fixture
def sensors(tmp_path):
    """A black picture with a red square, a sound that says red in its last third, and the word."""
    pixels = np.zeros((PIXELS, PIXELS, 3), np.uint8)
    pixels[4:6, 2:4] = (0, 0, 250)  # BGR
    cv2.imwrite(str(tmp_path / "square.png"), pixels)
    pcm = np.zeros(SAMPLES, np.float32)
    pcm[-SAMPLES // 3 :] = 0.5
    soundfile.write(tmp_path / "late.wav", pcm, RATE, subtype="PCM_16")
    return {"image": tmp_path / "square.png", "audio": tmp_path / "late.wav", "text": "red blue"}


@pytest.mark.parametrize("given", SUBSETS, ids="+".join)
def test_any_subset_of_the_sensors_is_explained_and_adds_up(tiny, sensors, given):
    found = explain(tiny.bundle, **{modality: sensors[modality] for modality in given})

    assert list(found) == KEYS
    assert list(found["shapley"]) == list(given)
    assert sum(found["shapley"].values()) == pytest.approx(found["logit"] - found["baseline_logit"], abs=1e-4)
    measured = {"image": "image_map", "audio": "audio_map", "text": "words"}
    assert [found[key] is not None for key in measured.values()] == [modality in given for modality in measured]
    assert list(found["seconds"]) == ["shapley", *(measured[modality] for modality in given)]


def test_one_sensor_alone_has_the_whole_difference(tiny, sensors):
    found = explain(tiny.bundle, text=sensors["text"], label="green")

    assert found["shapley"]["text"] == pytest.approx(found["logit"] - found["baseline_logit"], abs=1e-9)


@pytest.mark.parametrize("given", SUBSETS, ids="+".join)
def test_the_log_odds_are_those_of_the_confidence_that_predict_gives(tiny, sensors, given):
    values = {modality: sensors[modality] for modality in given}
    bundle = Bundle.open(tiny.bundle)
    with OnnxBackend(bundle) as backend:
        answer = Predictor(bundle, backend).predict(**values)

    found = explain(tiny.bundle, **values)

    assert (found["label"], found["answer"]) == (answer.label, answer.label)
    assert 1 / (1 + math.exp(-found["logit"])) == pytest.approx(answer.confidence, abs=1e-6)


def test_with_nothing_given_the_tiny_head_finds_all_labels_equal(tiny, sensors):
    found = explain(tiny.bundle, image=sensors["image"])

    assert found["baseline_logit"] == pytest.approx(math.log((1 / 3) / (2 / 3)), abs=1e-6)


def test_the_map_lights_up_the_square_and_the_last_third_and_the_word(tiny, sensors):
    found = explain(tiny.bundle, **sensors, label="red")

    rows, columns = np.nonzero(np.array(found["image_map"]) >= FLAT)
    assert rows.min() >= 3
    assert rows.max() <= 6
    assert columns.min() >= 1
    assert columns.max() <= 4
    assert np.array(found["image_map"])[4:6, 2:4].min() >= FLAT
    late = np.array(found["audio_map"]) >= FLAT
    assert not late[:20].any()
    assert late[22:].all()
    importance = {word["word"]: word["importance"] for word in found["words"]}
    assert importance["red"] > 1
    assert importance["blue"] < -0.01  # without the word for another label, this one is more likely


def test_a_picture_of_one_colour_and_a_silence_are_flat(tiny):
    found = explain(
        tiny.bundle, image=np.full((9, 9, 3), 70, np.uint8), audio=np.zeros(SAMPLES, np.float32), label="red"
    )

    assert not np.any(found["image_map"])
    assert not np.any(found["audio_map"])


def test_a_text_longer_than_the_model_reads_says_which_words_it_did_not_read(tiny):
    found = explain(tiny.bundle, text="red red red red blue green")

    assert [word["importance"] is None for word in found["words"]] == [False] * 4 + [True] * 2


def test_the_command_line_prints_one_json_document_and_writes_the_page(run, tiny, sensors, tmp_path):
    options = [word for name, value in sensors.items() for word in (f"--{name}", value)]

    code, out, err = run("explain", tiny.bundle, *options, "--out", tmp_path / "new" / "why.html", "--json")

    found = json.loads(out.splitlines()[-1])
    assert (code, err, list(found)) == (0, "", [*KEYS, "out"])
    assert np.array(found["image_map"]).shape == (PIXELS, PIXELS)
    assert found["out"] == str(tmp_path / "new" / "why.html")
    assert (tmp_path / "new" / "why.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_command_line_is_readable_too_and_keeps_the_maps_to_itself(run, tiny, sensors):
    code, out, _ = run("explain", tiny.bundle, "--image", sensors["image"], "--text", "red", "--threads", "1")

    assert code == 0
    assert "baseline_logit" in out
    assert "image_map" not in out.replace("image_map 0", "")  # its seconds are told
    assert len(out.splitlines()) < 20


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_the_same_code_explains_on_tensorrt_over_its_double(tiny_copy, sensors, monkeypatch, target):
    rig = rig_of(tiny_copy, target, monkeypatch)
    documents = []
    for device in (rig.open(), OnnxBackend(rig.bundle, "trt", 1)):
        with device:
            predictor = Predictor(rig.bundle, device)
            decoded = {modality: predictor.preprocessor.decode(modality, value) for modality, value in sensors.items()}
            documents.append(explain_decoded(predictor, decoded, "red").document() | {"seconds": None})
    rig.driver.finish()

    assert documents[0] == documents[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no sensor given; this model takes: image, audio, text"),
        (["--text", "red", "--label", "pink"], "no label 'pink'; this model has: blue, green, red"),
        (["--text", "red", "--out", "why.pdf"], "why.pdf: an explanation is written as .html or .png"),
        (["--image", "gone.png"], "gone.png: No such file or directory; check the path"),
        (["--text", " "], "give words, or leave the text out"),
        (["--text", "red", "--part-dir", "trt"], "has no trt parts, only: fp32, cpu"),
        (["--text", "red", "--backend", "abacus"], "no backend is called 'abacus'; choose one of: cpu, "),
    ],
)
def test_a_mistake_is_one_line_and_exit_1(run, tiny, arguments, message):
    code, out, err = run("explain", tiny.bundle, *arguments, "--json")

    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_sensor_that_the_model_lacks_is_refused(tiny_copy, sensors):
    info = tiny_copy.info.model_copy(update={"audio": None, "tokens": {"image": tiny_copy.info.tokens["image"]}})
    files = {name: tiny_copy.read(name) for name in tiny_copy.info.files}
    bundle = write_bundle(tiny_copy.folder, info.model_copy(update={"text": None, "files": {}}), files)

    with pytest.raises(MediaError, match="this model has no audio encoder; it takes: image"):
        explain(bundle.folder, audio=sensors["audio"])


def test_a_model_with_one_label_is_refused(tiny_copy):
    info = tiny_copy.info.model_copy(update={"labels": ("it",), "files": {}})
    bundle = write_bundle(tiny_copy.folder, info, {name: tiny_copy.read(name) for name in tiny_copy.info.files})

    with pytest.raises(BundleError, match="this model has one label, 'it'"):
        explain(bundle.folder, text="red")
