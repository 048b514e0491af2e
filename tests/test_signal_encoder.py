"""The signal's encoder: its normalisation, its layers against scipy, and what of the recipe it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from sklearn.preprocessing import StandardScaler

from edgefuse.runtime.bundle import SignalSpec
from edgefuse.runtime.errors import ManifestError, RecipeError
from edgefuse.runtime.manifest import Example, fingerprint, read_manifest
from edgefuse.train.recipe import parse_recipe
from edgefuse.train.settings import SignalSettings
from edgefuse.train.signal_encoder import SIGNAL_ENCODERS, SignalEncoder, TemporalLayer, settle, signal_statistics

FEATURES = ("latitude", "speed", "constant")
SPEC = SignalSpec(steps=4, features=FEATURES, rate_hz=10.0)


def settings(**changes: object) -> SignalSettings:
    return SignalSettings.model_validate({"features": FEATURES, "steps": 4, "rate_hz": 10, **changes})


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    rows = []
    for number in range(20):
        table = random.normal((47.1234, 20.0, 3.0), (1e-3, 5.0, 0.0), (4, 3))
        np.savetxt(tmp_path / f"{number}.csv", table, delimiter=",", header=",".join(FEATURES), comments="")
        rows += [json.dumps({"signal": f"{number}.csv", "label": "ab"[number % 2]})] * (1 + number % 2)
    (tmp_path / "m.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path / "m.jsonl"


def test_every_feature_has_mean_0_and_deviation_1_over_the_distinct_signals(manifest: Path) -> None:
    examples = read_manifest(manifest)
    rows = np.concatenate(
        [np.genfromtxt(manifest.parent / f"{n}.csv", delimiter=",", skip_header=1) for n in range(20)]
    ).astype(np.float32)
    scaler = StandardScaler().fit(rows.astype(np.float64))

    found = signal_statistics(SPEC, examples)

    np.testing.assert_allclose(found["mean"], scaler.mean_, rtol=1e-7)
    np.testing.assert_allclose(found["deviation"], np.sqrt(scaler.var_), rtol=1e-4, atol=1e-9)
    encoder = SignalEncoder(settings())
    settle(encoder, found)
    normal = encoder.frontend(torch.from_numpy(rows)[None]).numpy()[0]
    np.testing.assert_allclose(normal[:, 1], scaler.transform(rows)[:, 1], atol=1e-4)
    np.testing.assert_array_equal(normal[:, 2], 0)
    assert normal[:, 0].std() == pytest.approx(1, abs=0.02)  # float32 keeps 4e-6 of a degree


def test_a_table_that_cannot_be_read_is_refused_with_its_line(manifest: Path) -> None:
    (manifest.parent / "3.csv").write_text("latitude,speed,constant\n1,2,x\n")
    with pytest.raises(ManifestError, match=r"m.jsonl:5: .*3.csv:2: constant is 'x', it must be a finite number"):
        signal_statistics(SPEC, read_manifest(manifest))


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_a_layer_is_a_dilated_correlation_added_to_what_it_reads(dilation: int) -> None:
    layer = TemporalLayer(1, 3, dilation).eval()
    steps = torch.randn(1, 1, 20)
    kernel = np.zeros(2 * dilation + 1)
    kernel[::dilation] = layer.near.weight.detach().numpy()[0, 0]
    near = scipy.ndimage.correlate1d(steps.numpy()[0, 0], kernel, mode="constant") + layer.near.bias.detach().numpy()
    expected = steps.numpy()[0, 0] + np.maximum(near / np.sqrt(1 + layer.norm.eps), 0)
    np.testing.assert_allclose(layer(steps).detach().numpy()[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("name", SIGNAL_ENCODERS)
@pytest.mark.parametrize("tokens", ["pooled", "all"])
def test_every_row_gives_the_tokens_it_promises(name: str, tokens: str) -> None:
    encoder = SignalEncoder(settings(encoder=name, tokens=tokens)).eval()
    found = encoder(torch.randn(2, 4, 3))
    assert found.shape == (2, encoder.count, encoder.dim)
    assert encoder.count == (1 if tokens == "pooled" else 4)
    assert torch.isfinite(found).all()


def test_one_row_of_one_signal_has_no_variance_and_can_be_learned_from() -> None:
    encoder = SignalEncoder(settings(steps=1))
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder.train()(torch.ones(1, 1, len(settings().features))).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    assert all(module.training for module in encoder.modules())
    assert encoder.stem.weight.grad is not None


def test_what_the_recipe_cannot_say_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"signal.encoder 'tcn' is unknown; choose one of tcn_nano, tcn_small, tcn_b"):
        SignalEncoder(settings(encoder="tcn"))
    document = {"name": "a", "data": {"manifest": "m.jsonl"}, "signal": {"features": ["a", "a"], "steps": 4}}
    for change, message in (
        ({"rate_hz": 10}, "signal.features: Value error, a feature is named twice"),
        ({"rate_hz": 10, "features": []}, "signal.features"),
        ({"rate_hz": 0, "features": ["a"]}, "signal.rate_hz"),
        ({"features": ["a"]}, "signal.rate_hz"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_recipe({**document, "signal": {**document["signal"], **change}})  # type: ignore[dict-item]


def test_lines_without_a_signal_keep_the_fingerprint_they_always_had() -> None:
    line = Example("m:1", "a.png", None, "why", "yes", "train", None)
    assert fingerprint([line]) == "445efa769bcc3a5e"
    other = Example("m:1", "a.png", None, "why", "yes", "train", None, signal="a.csv")
    assert fingerprint([other]) != fingerprint([line])
