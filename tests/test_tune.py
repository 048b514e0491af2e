"""The choices: the best of those tried on the part's own output, the same each time, and honest about what they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.optimize.ptq import BATCH, calibrate_part
from edgefuse.optimize.tune import TRIED, Tuned, main, tune
from tests.optimize_fixtures import DIM, PARTS, Net, inputs_of, outputs

Inputs = dict[str, NDArray[Any]]


def batches_of(part: str) -> list[Inputs]:
    inputs = inputs_of(part, batch=3 * BATCH)
    starts = range(0, 3 * BATCH, BATCH)
    return [{name: array[start : start + BATCH] for name, array in inputs.items()} for start in starts]


def sqnr_db(model: bytes, exact: bytes, batches: list[Inputs]) -> float:
    error = signal = 0.0
    for batch in batches:
        reference = outputs(exact, batch)[0].astype(np.float64)
        signal += (reference**2).sum()
        error += ((outputs(model, batch, exact_qdq=True)[0] - reference) ** 2).sum()
    return float(10 * np.log10(signal / error))


@pytest.mark.parametrize("part", ["audio", "text"])
def test_the_choice_is_at_least_as_near_to_fp32_as_any_method_alone(part: str) -> None:
    batches = batches_of(part)
    tuned = tune(PARTS[part], lambda: batches, convolutions=False)
    assert sqnr_db(tuned.model(tuned.part.placed), PARTS[part], batches) == pytest.approx(tuned.sqnr_db, abs=0.01)
    plain = calibrate_part(PARTS[part], lambda: batches, convolutions=False, smoothing=False)
    for method in TRIED:
        alone = Tuned(plain, method).model(plain.placed)
        assert tuned.sqnr_db >= sqnr_db(alone, PARTS[part], batches) - 0.01


def test_the_choice_is_the_same_each_time() -> None:
    batches = batches_of("text")
    first, second = (tune(PARTS["text"], lambda: batches, convolutions=False) for _ in range(2))
    assert first.note == second.note
    assert first.model(first.part.placed) == second.model(second.part.placed)


def test_what_stays_fp16_is_neither_quantized_nor_corrected() -> None:
    batches = batches_of("audio")
    tuned = tune(PARTS["audio"], lambda: batches, convolutions=True)
    assert {node.op_type for node in onnx.load_model_from_string(tuned.model(())).graph.node}.isdisjoint(
        {"QuantizeLinear", "DequantizeLinear"}
    )
    assert tuned.model(()) == Tuned(tuned.part, "max").model(())
    one = onnx.load_model_from_string(tuned.model(tuned.part.placed[:1]))
    names = {tensor.name for tensor in one.graph.initializer}
    assert sum("corrected_bias" in name for name in names) <= 1


def outlier_part() -> bytes:
    """Two products whose input has one large channel: a layer that SmoothQuant is made for."""
    net = Net(8)
    scale = np.ones(DIM)
    scale[5] = 60.0
    normed = net.add("LayerNormalization", "x", scale, np.zeros(DIM), axis=-1)
    mixed = net.add("Mul", net.add("Sigmoid", net.linear(normed, DIM, DIM)), net.linear(normed, DIM, DIM))
    return net.model({"x": (FLOAT, [6, DIM])}, {"y": mixed})


def test_outliers_are_smoothed_and_the_note_says_so() -> None:
    random = np.random.default_rng(0)
    batches: list[Inputs] = [{"x": random.standard_normal((BATCH, 6, DIM)).astype(np.float32)} for _ in range(4)]
    tuned = tune(outlier_part(), lambda: batches, convolutions=False)
    assert len(tuned.part.smoothed) == 1
    assert "SmoothQuant on 1 layers" in tuned.note
    assert tuned.method in tuned.note


def test_a_part_without_anything_for_int8_stays_fp16() -> None:
    net = Net()
    model = net.model({"x": (FLOAT, [4])}, {"y": net.add("Relu", "x")})
    tuned = tune(model, lambda: [{"x": np.ones((2, 4), np.float32)}], convolutions=True)
    assert tuned.part.placed == []
    assert len(Graph(tuned.model(())).nodes) >= 1


def test_samples_are_read_again_from_the_start_and_never_all_at_once() -> None:
    started = 0

    def batches() -> Iterator[Inputs]:
        nonlocal started
        started += 1
        yield from batches_of("text")

    tune(PARTS["text"], batches, convolutions=False)
    assert started >= 4


def test_the_command_writes_each_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "part.onnx").write_bytes(PARTS["text"])
    np.savez(tmp_path / "samples.npz", **inputs_of("text", batch=10))  # type: ignore[arg-type]
    paths = [str(tmp_path / "part.onnx"), str(tmp_path / "samples.npz"), str(tmp_path)]
    main([*paths, "--method", "max", "entropy", "--correct-biases"])
    main(paths)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    methods = ("max", "entropy")
    assert told[0]["notes"] == {method: f"{method} calibration, biases corrected" for method in methods}
    assert told[1]["peak_mb"] > 20
    for name in ("max", "entropy", "tuned", "fp16"):
        assert outputs((tmp_path / f"{name}.onnx").read_bytes(), inputs_of("text"))[0].shape == (4, 8, DIM)
