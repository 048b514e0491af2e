"""Evaluation: accuracy per type and subset, each value encoded once, and statistics against independent code."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import GateError, ManifestError
from edgefuse.runtime.evaluate import ALL, encode_examples, evaluate, retention, right_by_subset, subsets, wilson
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.predictor import Predictor

ALL_SUBSETS = ["image", "audio", "text", "image+audio", "image+text", "audio+text", "image+audio+text"]


@pytest.fixture
def write_manifest(tiny, tmp_path):
    """Writes a manifest of these rows beside a copy of the tiny data."""
    shutil.copytree(tiny.media, tmp_path / "data")

    def write(*rows):
        path = tmp_path / "data/rows.jsonl"
        path.write_text("\n".join(json.dumps({"split": "test", **row}) for row in rows))
        return path

    return write


def test_a_model_that_is_always_right_scores_one(tiny):
    found = evaluate(tiny.bundle, tiny.manifest)

    assert (found["accuracy"], found["n"], found["part_set"], found["split"]) == (1.0, 12, "cpu", "test")
    assert found["interval"] == pytest.approx([0.7575, 1.0], abs=1e-4)
    assert {kind: score["n"] for kind, score in found["by_answer_type"].items()} == {"cold": 8, "warm": 4}
    assert list(found["by_subset"]) == ALL_SUBSETS
    assert all(score["accuracy"] == 1 and score["n"] == 12 for score in found["by_subset"].values())
    json.dumps(found)


def test_subsets_are_measured_on_the_lines_that_have_them(tiny, write_manifest):
    path = write_manifest(
        {"image": "red.png", "text": "red", "label": "red"},
        {"image": "red.png", "text": "blue", "label": "red"},  # the text lies, and a word outweighs a picture
        {"text": "green", "label": "green"},
        {"audio": "blue.wav", "label": "blue"},
    )

    found = evaluate(tiny.bundle, path, part_set="fp32")

    assert {name: (score["accuracy"], score["n"]) for name, score in found["by_subset"].items()} == {
        "image": (1.0, 2),
        "audio": (1.0, 1),
        "text": (2 / 3, 3),
        "image+text": (0.5, 2),
    }
    assert (found["accuracy"], found["n"], found["by_answer_type"]) == (0.75, 4, {})


def test_a_dropped_sensor_is_not_used(tiny, write_manifest):
    path = write_manifest(
        {"image": "red.png", "text": "blue", "label": "red"},
        {"text": "green", "label": "green"},
    )

    found = evaluate(tiny.bundle, path, drop=["text"])

    assert (found["accuracy"], found["n"]) == (1.0, 1)  # the second line has no sensor left
    with pytest.raises(ManifestError, match=r"no line of split 'test' has a sensor .* \(audio\); drop fewer sensors"):
        evaluate(tiny.bundle, path, drop=["text", "image"])
    with pytest.raises(ManifestError, match=r"\(none\); drop fewer sensors"):
        evaluate(tiny.bundle, path, drop=["text", "image", "audio"])


def test_who_is_right_is_told_with_the_numbers_of_the_lines(tiny, write_manifest):
    bundle = Bundle.open(tiny.bundle)
    path = write_manifest(
        {"text": "green", "label": "green"},
        {"image": "red.png", "text": "blue", "label": "red"},
        {"image": "blue.png", "label": "blue"},
    )
    examples = read_manifest(path)
    with OnnxBackend(bundle) as backend:
        answered = right_by_subset(encode_examples(Predictor(bundle, backend), examples), examples)

    assert {name: (lines.tolist(), right.tolist()) for name, (lines, right) in answered.items()} == {
        ALL: ([0, 1, 2], [True, False, True]),
        "image": ([1, 2], [True, True]),
        "text": ([0, 1], [True, False]),
        "image+text": ([1], [False]),
    }


def test_each_distinct_value_is_encoded_once(tiny):
    bundle = Bundle.open(tiny.bundle)
    rows = []

    class Counting(OnnxBackend):
        def run(self, part, inputs):
            rows.append((part, len(next(iter(inputs.values())))))
            return super().run(part, inputs)

    with Counting(bundle) as backend:
        encoded = encode_examples(Predictor(bundle, backend), read_manifest(tiny.manifest), batch=2)
        encoders = list(rows)
        logits = encoded.logits(["image", "audio", "text"])

    assert encoders == [(part, n) for part in ("image", "audio", "text") for n in (2, 1)]
    assert rows[len(encoders) :] == [("head", 12)]
    assert logits.shape == (12, 3)


def test_batched_logits_are_those_of_single_answers(tiny):
    bundle = Bundle.open(tiny.bundle)
    examples = read_manifest(tiny.manifest)
    with OnnxBackend(bundle) as backend:
        predictor = Predictor(bundle, backend)
        logits = encode_examples(predictor, examples).logits(["image", "audio"])
        answers = [predictor.predict(image=example.image, audio=example.audio) for example in examples]

    best = logits.argmax(axis=1)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [bundle.info.labels[k] for k in best] == [answer.label for answer in answers]
    np.testing.assert_allclose(shares.max(axis=1), [answer.confidence for answer in answers], rtol=1e-5)


def test_a_damaged_picture_is_named_with_its_line(tiny, write_manifest):
    path = write_manifest({"image": "red.png", "label": "red"}, {"image": "bad.png", "label": "red"})
    picture = path.parent / "bad.png"
    picture.write_bytes((path.parent / "red.png").read_bytes()[:-10])

    with pytest.raises(ManifestError, match=rf"^{path}:2: {picture}: the picture is cut off"):
        evaluate(tiny.bundle, path)


def test_a_label_that_the_model_does_not_know_is_refused(tiny, write_manifest):
    with pytest.raises(ManifestError, match=":1: label 'pink'; the model knows: blue, green, red"):
        evaluate(tiny.bundle, write_manifest({"text": "x", "label": "pink"}))


def test_a_limit_spreads_over_the_split(tiny):
    assert evaluate(tiny.bundle, tiny.manifest, limit=4)["n"] == 4


def test_subsets_come_small_ones_first():
    assert subsets(("image", "text")) == [("image",), ("text",), ("image", "text")]
    assert ["+".join(subset) for subset in subsets(("image", "audio", "text"))] == ALL_SUBSETS


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(case):
    correct, n = case

    interval = scipy.stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")

    assert wilson(correct, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_wilson_of_nothing_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


def test_retention_agrees_with_a_bootstrap_of_the_examples():
    random = np.random.default_rng(1)
    reference = random.random(400) < 0.9
    candidate = np.where(random.random(400) < 0.06, ~reference, reference)

    ratio, (low, high) = retention(reference, candidate)

    oracle = scipy.stats.bootstrap(
        (reference, candidate),
        lambda a, b, axis: b.mean(axis=axis) / a.mean(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=random,
    ).confidence_interval
    assert ratio == candidate.sum() / reference.sum()
    assert (low, high) == pytest.approx((oracle.low, oracle.high), abs=2e-3)
    assert low < ratio < high


def test_retention_is_the_same_each_time_and_equals_are_not_called_proven_equal():
    right = np.arange(50) % 3 > 0

    few, many = retention(right, right), retention(np.tile(right, 40), np.tile(right, 40))
    assert few[0] == many[0] == 1.0
    assert 0.9 < few[1][0] < many[1][0] < 1.0
    assert retention(right, ~right) == retention(right, ~right)


def test_a_reference_without_a_right_answer_is_refused():
    with pytest.raises(GateError, match="none of 5 examples right"):
        retention(np.zeros(5, bool), np.ones(5, bool))
