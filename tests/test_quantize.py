"""Quantizing: `evaluate` confirms what is kept, INT8 goes where it costs too much, a missed gate changes nothing."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgefuse.optimize import cost as cost_module
from edgefuse.optimize import quantize as module
from edgefuse.optimize.cost import Cost, estimated_cost
from edgefuse.optimize.cpu_parts import DYNAMIC, FUSED
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.judge import REFERENCE, Candidate, Judge, Verdict
from edgefuse.optimize.quantize import quantize
from edgefuse.optimize.trt_parts import FP16, INT8
from edgefuse.runtime import cli
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.errors import BundleError, GateError, ManifestError
from edgefuse.runtime.evaluate import evaluate
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.samples import Samples
from edgefuse.runtime.show import show
from tests.optimize_fixtures import (
    DIM,
    MODALITIES,
    PARTS,
    fresh_bundle,
    image_part,
    write_parts_bundle,
)

OUTLIER = 3000.0
OUTLIER_BLOCK = "1 MatMul 32x32 after Mul"  # that image_part(OUTLIER) ruins in INT8


def cost_of_weights(model: bytes) -> Cost:
    """A device on which INT8 pays wherever there are weights; small parts pay for it on none that is known."""
    graph = Graph(model)
    return Cost(1, 1000 * sum(graph.array(name).nbytes for name in graph.initializers))


@pytest.fixture(scope="module", autouse=True)
def int8_pays() -> Iterator[None]:
    """Let INT8 pay in these small parts, and compile nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "cost_source", lambda: ("made up", cost_of_weights))
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle with fp32 parts, and its data; read only."""
    return fresh_bundle(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def quantized(small: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict[str, Any]]:
    """The small bundle quantized with the defaults but for the gate, and what was said; read only."""
    folder = Path(shutil.copytree(small.folder.parent, tmp_path_factory.mktemp("quantized"), dirs_exist_ok=True))
    told = quantize(folder / "bundle", folder / "data" / "manifest.jsonl", gate=0.9)
    return Bundle.open(folder / "bundle"), told


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose image part INT8 ruins; read only."""
    return fresh_bundle(tmp_path_factory.mktemp("fragile"), {**PARTS, "image": image_part(OUTLIER)})


def copied(bundle: Bundle, folder: Path) -> Path:
    return Path(shutil.copytree(bundle.folder.parent, folder, dirs_exist_ok=True)) / "bundle"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_result_is_what_evaluate_measures(quantized: tuple[Bundle, dict[str, Any]]) -> None:
    bundle, told = quantized
    manifest = bundle.folder.parent / "data" / "manifest.jsonl"
    measured = {s: evaluate(bundle.folder, manifest, part_set=s, split="val") for s in ("fp32", "trt", "cpu")}
    assert measured["fp32"]["accuracy"] == 1.0  # the labels are its answers
    assert told["retention"] == pytest.approx(measured["trt"]["accuracy"])
    assert told["cpu"]["retention"] == pytest.approx(measured["cpu"]["accuracy"])
    assert told["by_subset"].keys() == measured["trt"]["by_subset"].keys()
    for name, row in told["by_subset"].items():
        assert row["accuracy"] == pytest.approx(measured["trt"]["by_subset"][name]["accuracy"])
        assert row["reference"] == pytest.approx(measured["fp32"]["by_subset"][name]["accuracy"])
    low, high = told["interval"]
    assert low <= told["retention"] <= high


def test_the_contract_says_what_was_done(quantized: tuple[Bundle, dict[str, Any]]) -> None:
    bundle, told = quantized
    trt = bundle.info.parts["trt"]
    assert {part: info.precision for part, info in trt.items()} == {
        **dict.fromkeys(MODALITIES, INT8),
        HEAD: FP16,
    }
    assert {part: row["precision"] for part, row in told["parts"].items()} == {p: i.precision for p, i in trt.items()}
    for part in MODALITIES:
        for row in told["blocks"]:
            if row["part"] == part:
                assert f"{row['block']} in {row['precision'].upper()}: {row['why']}" in trt[part].note
    assert "one row at a time" in trt[HEAD].note
    assert bundle.info.lineage["quantize"]["precision"] == "auto"
    assert bundle.info.lineage["manifest"]  # what was there stays
    assert bundle.info.quality["trt"]["retention"] == told["retention"]
    assert bundle.info.quality["plan"] == {key: told[key] for key in ("cost", "blocks", "pareto")}
    json.dumps(told)


def test_every_block_has_a_row_that_says_why(quantized: tuple[Bundle, dict[str, Any]]) -> None:
    rows = {(row["part"], row["block"]): row for row in quantized[1]["blocks"]}
    assert len(rows) == len(quantized[1]["blocks"])
    assert {part for part, _ in rows} == set(MODALITIES)
    assert rows["text", "1 attention"]["precision"] == "fp16"  # it has no weights, so it costs the same here
    assert rows["text", "1 attention"]["why"].startswith("INT8 here makes +0 kernels and +")
    assert rows["image", OUTLIER_BLOCK]["precision"] == "int8"  # as yet without an outlier
    assert rows["image", OUTLIER_BLOCK]["why"].startswith("INT8 here makes +0 kernels and -")
    assert rows["image", "2 Conv"]["why"].startswith("a matrix-vector product")


def test_the_pareto_rows_are_what_each_form_costs_and_keeps(quantized: tuple[Bundle, dict[str, Any]]) -> None:
    bundle, told = quantized
    for part in MODALITIES:
        rows = [row for row in told["pareto"] if row["part"] == part]
        assert [row["cost_us"] for row in rows] == sorted(row["cost_us"] for row in rows)
        assert rows[0]["form"] == "chosen"  # nothing had to be given back
        assert rows[0]["kept"] >= 0.9
        cost = cost_of_weights(bundle.part("trt", part))
        assert (rows[0]["kernels"], rows[0]["megabytes"]) == (cost.kernels, cost.bytes_touched / 1e6)
        assert "all FP16" in [row["form"] for row in rows]
        unmeasured = [row for row in rows[1:] if row["form"] != "all FP16" and row["kept"] is None]
        for row in unmeasured:  # dearer than those above it, so it has to touch less memory
            assert row["megabytes"] < min(other["megabytes"] for other in rows[: rows.index(row)])
        others = [row["form"] for row in rows[1:] if row["form"] != "all FP16"]
        assert all(change[:2] in ("+ ", "- ") for form in others for change in form.split(", "))
    assert all(row["part"] != HEAD for row in told["pareto"])


def test_trt_parts_are_at_most_half_as_large_as_fp32(quantized: tuple[Bundle, dict[str, Any]]) -> None:
    bundle, told = quantized
    assert told["bytes"] == {part_set: bundle.size(part_set) for part_set in ("fp32", "trt", "cpu")}
    # These parts are so small that names and shapes weigh as much as weights: compare the weights.
    weights = {s: sum(_weight_bytes(bundle.part(s, part)) for part in PARTS) for s in ("fp32", "trt")}
    assert weights["trt"] <= 0.55 * weights["fp32"]


def _weight_bytes(model: bytes) -> int:
    return sum(len(tensor.raw_data) for tensor in onnx.load_model_from_string(model).graph.initializer)


def test_int8_precision_takes_convolutions_too(small: Bundle, tmp_path: Path) -> None:
    told = quantize(copied(small, tmp_path / "a"), small.info.lineage["manifest"], precision="int8", gate=0.5)
    rows = {row["block"]: row for row in told["blocks"] if row["part"] == "image"}
    assert rows["2 dense Conv"] == {
        "part": "image",
        "block": "2 dense Conv",
        "precision": "int8",
        "why": "as asked for",
    }
    assert rows["2 Conv"]["precision"] == "fp16"
    assert (told["cost"], told["pareto"]) == ("not asked for", [])


def test_fp16_precision_has_no_int8(small: Bundle, tmp_path: Path) -> None:
    told = quantize(copied(small, tmp_path), precision="fp16")
    assert {row["precision"] for row in told["parts"].values()} == {FP16}
    assert {row["precision"] for row in told["blocks"]} == {FP16}
    assert told["retention"] >= 0.98
    assert told["pareto"] == []


def test_auto_gives_the_block_back_that_costs_too_much(fragile: Bundle, tmp_path: Path) -> None:
    """The cheapest form misses the gate and one that is nearly as cheap passes: no other block has to go."""
    folder = copied(fragile, tmp_path)
    told = quantize(folder, precision="auto", gate=0.9)
    assert told["parts"]["image"]["precision"] == told["parts"]["text"]["precision"] == INT8
    rows = {row["block"]: row for row in told["blocks"] if row["part"] == "image"}
    assert rows[OUTLIER_BLOCK]["precision"] == "fp16"
    assert rows[OUTLIER_BLOCK]["why"].endswith("given back to FP16 for the gate")
    assert {name for name, row in rows.items() if row["precision"] == "int8"} == {
        "2 dense Conv",
        "1 pointwise Conv",
        "1 depthwise Conv",
    }
    pareto = {row["form"]: row for row in told["pareto"] if row["part"] == "image"}
    assert pareto[f"+ {OUTLIER_BLOCK}"]["cost_us"] < pareto["chosen"]["cost_us"]
    assert pareto[f"+ {OUTLIER_BLOCK}"]["kept"] < 0.9 <= pareto["chosen"]["kept"]
    assert min(told["retention"], told["pooled"]) >= 0.9
    graph = Graph(Bundle.open(folder).part("trt", "image"))
    product = next(node for node in graph.nodes if node.op_type == "MatMul")
    assert graph.producers[product.input[0]].op_type != "DequantizeLinear"


def test_without_the_compiler_the_costs_are_estimated(
    small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cost_source", cost_module.cost_source)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(cost_module, "run_compiler", lambda *_: pytest.fail("it was compiled"))
    folder = copied(small, tmp_path)
    told = quantize(folder, precision="auto", gate=0.9)
    assert told["cost"] == "estimated from the graph, since TensorRT-RTX is not installed"
    for part in MODALITIES:
        (chosen,) = [row for row in told["pareto"] if row["part"] == part and row["form"].startswith("chosen")]
        cost = estimated_cost(Bundle.open(folder).part("trt", part))
        assert (chosen["kernels"], chosen["cost_us"]) == (cost.kernels, cost.us)
        assert told["parts"][part]["precision"] == FP16  # kernels cost more than these few weights


def test_forms_that_were_timed_are_ranked_by_it_though_their_bytes_are_not_known(
    small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost_of(model: bytes) -> Cost:
        return Cost(None, None, measured_us=cost_of_weights(model).us, spread_us=0.5)

    monkeypatch.setattr(module, "cost_source", lambda: ("timed on a made-up GPU", cost_of))
    folder = copied(small, tmp_path)
    told = quantize(folder, gate=0.9)
    show(told)  # as the command line prints it
    assert told["cost"] == Bundle.open(folder).info.quality["plan"]["cost"] == "timed on a made-up GPU"
    for part in MODALITIES:
        rows = {row["form"]: row for row in told["pareto"] if row["part"] == part}
        assert rows["chosen"]["cost_us"] < rows["all FP16"]["cost_us"]
        assert {(row["kernels"], row["megabytes"]) for row in rows.values()} == {(None, None)}
    assert any(" us (spread 0.5)" in row["why"] for row in told["blocks"])


def test_a_missed_gate_says_so_and_changes_nothing(
    fragile: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(fragile, tmp_path)
    quantize(folder, precision="fp16", gate=0.9)
    before = content(folder)
    with pytest.raises(
        GateError, match=r"int8 parts keep [\d.]+% .* the gate asks 99.00%; use --precision auto or lower --gate; "
    ) as error:
        quantize(folder, precision="int8")
    assert "\n" not in str(error.value)
    assert content(folder) == before
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["quantize", str(folder), "--precision", "int8", "--gate", "0.99"])
    assert stop.value.code == 1
    assert str(error.value) in " ".join(capsys.readouterr().err.split())
    assert content(folder) == before


def beyond_fp16() -> bytes:
    """The image part with its tokens scaled so far down in between that FP16 holds zeros."""
    graph = Graph(PARTS["image"])
    last = graph.nodes[-1]
    small = graph.add_initializer("small", np.full((1, 1, DIM), 1e-12, np.float32))
    large = graph.add_initializer("large", np.full((1, 1, DIM), 1e12, np.float32))
    scaled = [
        onnx.helper.make_node("Mul", [last.input[0], small], ["down"], name="down"),
        onnx.helper.make_node("Mul", ["down", large], ["up"], name="up"),
        onnx.helper.make_node("Identity", ["up"], list(last.output), name="tokens"),
    ]
    return graph.rebuilt([*graph.nodes[:-1], *scaled]).serialize()


def test_a_gate_that_fp16_misses_too_is_missed_by_auto(tmp_path: Path) -> None:
    bundle = fresh_bundle(tmp_path, {**PARTS, "image": beyond_fp16()})
    before = content(bundle.folder)
    with pytest.raises(GateError, match=r"auto parts keep .*; train longer or lower --gate; .* is as it was"):
        quantize(bundle.folder, precision="auto", gate=0.99)
    assert content(bundle.folder) == before


def test_quantizing_again_replaces_both_sets(quantized: tuple[Bundle, dict[str, Any]], tmp_path: Path) -> None:
    folder = copied(quantized[0], tmp_path)
    quantize(folder, precision="fp16", gate=0.5, calibration=4)
    bundle = Bundle.open(folder)
    assert bundle.info.parts["trt"]["text"].precision == FP16
    assert bundle.info.lineage["quantize"]["calibration"] == 4
    for part_set in bundle.info.parts:
        for part in PARTS:
            bundle.part(part_set, part)  # every hash holds


def test_a_manifest_is_needed(small: Bundle, tmp_path: Path) -> None:
    folder = copied(small, tmp_path)
    Bundle.open(folder).updated({}, lineage={})
    with pytest.raises(ManifestError, match="give --manifest"):
        quantize(folder)


def test_an_unknown_precision_is_refused(small: Bundle) -> None:
    with pytest.raises(BundleError, match="'int4' is unknown; choose one of auto, fp16, int8"):
        quantize(small.folder, precision="int4")


def test_a_modality_without_training_lines_is_refused(small: Bundle, tmp_path: Path) -> None:
    folder = copied(small, tmp_path)
    manifest = folder.parent / "data" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        if row["split"] == "train":
            del row["audio"]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ManifestError, match="no training line has audio"):
        quantize(folder, manifest)


def test_a_broken_file_is_named_with_its_line(small: Bundle, tmp_path: Path) -> None:
    folder = copied(small, tmp_path)
    (folder.parent / "data" / "3.png").write_bytes(b"not a picture")
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:4: .*3\.png"):
        quantize(folder, folder.parent / "data" / "manifest.jsonl")


def test_samples_hold_each_value_once(small: Bundle) -> None:
    examples = read_manifest(small.info.lineage["manifest"], split="val")
    twice = [*examples, *examples]
    samples = Samples(Preprocessor(small), twice, "image")
    assert len(samples) == len(examples)
    np.testing.assert_array_equal(samples.rows, np.tile(np.arange(len(examples)), 2))
    sizes = [len(batch["image"]) for batch in samples.batches(32)]
    assert sizes == [32, 28]


def judge_of(small: Bundle) -> Judge:
    judge = Judge(small, read_manifest(small.info.lineage["manifest"], split="val", labels=small.info.labels))
    noise = Graph(PARTS["text"])
    noise.nodes[-1].op_type = "Neg"  # the tokens with the wrong sign
    for part, model in PARTS.items():
        bad = [Candidate("bad", noise.serialize())] if part == "text" else []
        judge.add(part, [Candidate(REFERENCE, model), Candidate("good", model), *bad])
    return judge


def test_a_verdict_counts_every_subset_and_pools_them(small: Bundle) -> None:
    verdict = judge_of(small).verdict({**dict.fromkeys(PARTS, "good"), "text": "bad"})
    rows = verdict.by_subset
    assert set(rows) == {
        *("image", "audio", "text", "image+audio", "image+text", "audio+text", "image+audio+text"),
    }
    assert rows["image+audio"]["accuracy"] == rows["image+audio"]["reference"]
    right = sum(row["accuracy"] * row["n"] for row in rows.values())
    assert verdict.pooled == pytest.approx(right / sum(row["reference"] * row["n"] for row in rows.values()))
    assert verdict.retention == pytest.approx(rows["image+audio+text"]["accuracy"])
    assert verdict.kept == min(verdict.pooled, verdict.retention) < 1


def test_wishes_are_granted_alone_and_together(small: Bundle) -> None:
    judge = judge_of(small)
    base = dict.fromkeys(PARTS, REFERENCE)
    settled = judge.settle(base, {"image": ["good"], "text": ["bad", "good"], HEAD: []}, gate=0.99)
    assert settled.choice == {**base, "image": "good", "text": "good"}
    assert settled.alone["text", "bad"] < 0.99 <= settled.alone["text", "good"] == 1.0
    assert settled.verdict.kept == 1.0
    assert judge.settle(base, {"text": ["bad"]}, gate=0.99).choice == base
    hopeless = judge.settle({**base, "text": "bad"}, {"image": ["good"]}, gate=0.99)
    assert hopeless.verdict.kept < 0.99


def test_together_the_one_that_costs_most_goes_first(monkeypatch: pytest.MonkeyPatch, small: Bundle) -> None:
    """Two wishes that pass alone may fail together; then the worse one is given up."""
    judge = judge_of(small)
    real = judge.verdict({**dict.fromkeys(PARTS, "good")})

    def verdict(choice: dict[str, str]) -> Any:
        cost = 0.006 * (choice["image"] == "good") + 0.008 * (choice["audio"] == "good")
        return Verdict(1 - cost, real.interval, 1.0, {})

    monkeypatch.setattr(judge, "verdict", verdict)
    settled = judge.settle(dict.fromkeys(PARTS, REFERENCE), {"image": ["good"], "audio": ["good"]}, gate=0.99)
    assert settled.choice["image"] == "good"
    assert settled.choice["audio"] == REFERENCE


def test_the_fastest_cpu_form_that_passes_is_kept(
    small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {REFERENCE: 2.0, DYNAMIC: 1.0, FUSED: 1.99}
    monkeypatch.setattr(
        module, "median_ms", lambda candidates, inputs: {c.precision: times[c.precision] for c in candidates}
    )
    told = quantize(copied(small, tmp_path), precision="fp16", gate=0.5)
    assert {row["cpu"] for row in told["parts"].values()} == {DYNAMIC}
    assert "2.00x the speed of fp32" in told["parts"]["image"]["cpu_note"]
    times[DYNAMIC] = 1.95  # not worth it
    told = quantize(copied(small, tmp_path / "again"), precision="fp16", gate=0.5)
    assert {row["cpu"] for row in told["parts"].values()} == {REFERENCE}


def test_fp32_parts_are_left_alone(quantized: tuple[Bundle, dict[str, Any]], tmp_path: Path) -> None:
    fresh = write_parts_bundle(tmp_path / "bundle")
    for part in PARTS:
        assert quantized[0].part("fp32", part) == fresh.part("fp32", part)
