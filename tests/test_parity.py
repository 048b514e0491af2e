"""The ledger: its hops are direct computations, a planted loss is named with its hop, part and node."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from edgefuse.optimize.export import export
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.parity import parity
from edgefuse.runtime.backend_onnx import open_session
from edgefuse.runtime.bundle import HEAD, Bundle, PartInfo, part_file
from edgefuse.runtime.errors import BundleError, ManifestError
from edgefuse.runtime.evaluate import evaluate
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.samples import Samples
from edgefuse.runtime.show import show
from tests.optimize_fixtures import PARTS, fresh_bundle, image_part, inputs_of
from tests.test_blame import set_constant
from tests.test_export import PLAIN, untrained_run
from tests.test_swap import int8_form

ENCODERS = ("image", "audio", "text")


def forms(parts: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
    """The trt and cpu parts of some fp32 parts: INT8 and FP16, and the fp32 ones again."""
    trt = {m: int8_form(parts[m], inputs_of(m, batch=8)).serialize() for m in ENCODERS if m in parts}
    return {"trt": {**trt, HEAD: to_fp16(Graph(parts[HEAD])).serialize()}, "cpu": dict(parts)}


def with_parts(bundle: Bundle, sets: dict[str, dict[str, bytes]]) -> Bundle:
    """The bundle with these part sets beside fp32."""
    files = {part_file(name, part): model for name, parts in sets.items() for part, model in parts.items()}
    infos = {n: {p: PartInfo(file=part_file(n, p), precision="any") for p in parts} for n, parts in sets.items()}
    return bundle.updated(files, parts={"fp32": bundle.info.parts["fp32"], **infos})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict[str, Any]]:
    """The small bundle with all part sets, and its ledger; read only."""
    bundle = with_parts(fresh_bundle(tmp_path_factory.mktemp("parity")), forms(PARTS))
    return bundle, parity(bundle.folder, limit=40)


def copied(bundle: Bundle, folder: Path) -> Bundle:
    return Bundle.open(Path(shutil.copytree(bundle.folder.parent, folder, dirs_exist_ok=True)) / "bundle")


def row_of(found: dict[str, Any], table: str, hop: str, part: str) -> dict[str, Any]:
    (row,) = [row for row in found[table] if (row["hop"], row["part"]) == (hop, part)]
    return row


@pytest.mark.parametrize("part", ENCODERS)
def test_a_hop_is_what_a_direct_computation_gives(small: tuple[Bundle, dict[str, Any]], part: str) -> None:
    bundle, found = small
    examples = read_manifest(bundle.info.lineage["manifest"], split="val", limit=40)
    (batch,) = Samples(Preprocessor(bundle), examples, part).batches(100)
    fp32, int8 = bundle.part("fp32", part), bundle.part("trt", part)
    outputs = {
        "fp32": open_session(fp32).run(None, batch)[0],
        "fp16": open_session(to_fp16(Graph(fp32)).serialize()).run(None, batch)[0],
        "int8": open_session(int8, exact_qdq=True).run(None, batch)[0],
        "ort": open_session(int8).run(None, batch)[0],
    }
    for before, after in (("fp32", "fp16"), ("fp16", "int8"), ("int8", "ort")):
        error = outputs[after].astype(np.float64) - outputs[before]
        row = row_of(found, "hops", f"{before}->{after}", part)
        assert row["max_abs"] == pytest.approx(np.abs(error).max(), abs=2e-6)
        assert row["mean_abs"] == pytest.approx(np.abs(error).mean(), abs=1e-6, rel=1e-3)


def test_a_perfect_copy_gives_zeros(small: tuple[Bundle, dict[str, Any]]) -> None:
    for part in (*ENCODERS, HEAD, "all"):
        row = row_of(small[1], "hops", "fp32->cpu", part)
        assert (row["max_abs"], row["mean_abs"], row["relative"], row["sqnr_db"]) == (0, 0, 0, None)
        assert row["cosine"] == pytest.approx(1)
        answer = row_of(small[1], "answers", "fp32->cpu", part)
        assert (answer["top1"], answer["kept"], answer["logits_db"]) == (1, 1, None)


def test_int8_loses_more_than_fp16_and_the_codes_say_by_how_much(small: tuple[Bundle, dict[str, Any]]) -> None:
    found = small[1]
    for part in ENCODERS:
        fp16, int8 = (row_of(found, "hops", hop, part)["sqnr_db"] for hop in ("fp32->fp16", "fp16->int8"))
        assert fp16 > int8 + 10
    assert row_of(found, "hops", "fp16->int8", HEAD)["max_abs"] == 0  # FP16 in both
    assert [row["part"] for row in found["codes"]] == list(ENCODERS)
    for row in found["codes"]:
        assert 0 < row["off_by_1"] < 0.5
        assert row["off_by_more"] < 0.1
        assert 0 <= row["clipped"] < 0.05
    assert found["lost_most"].startswith("fp16->int8 of ")


def test_accuracies_are_those_of_evaluate(small: tuple[Bundle, dict[str, Any]]) -> None:
    bundle, found = small
    manifest = bundle.info.lineage["manifest"]
    for hop, part_set in (("fp16->int8", "trt"), ("fp32->cpu", "cpu")):
        expected = evaluate(bundle.folder, manifest, part_set=part_set, split="val", limit=40)
        answer = row_of(found, "answers", hop, "all")
        assert answer["accuracy"] == pytest.approx(expected["accuracy"])
        assert answer["interval"] == pytest.approx(expected["interval"])


def test_the_result_is_json_and_readable_in_a_terminal(small: tuple[Bundle, dict[str, Any]]) -> None:
    found = small[1]
    json.dumps(found, allow_nan=False)
    assert "verdict" not in found
    page = io.StringIO()
    show(found, Console(file=page, width=100, highlight=False, markup=False, emoji=False))
    text = page.getvalue()
    order = [text.index(f"\n{title}\n") for title in ("hops", "answers", "codes", "nodes", "overflow")]
    assert order == sorted(order)
    assert max(map(len, text.splitlines())) <= 100
    assert "engine" in found
    assert "not measured" in found["engine"]


def test_a_damaged_scale_is_named_with_its_hop_part_and_node(
    small: tuple[Bundle, dict[str, Any]], tmp_path: Path
) -> None:
    bundle = copied(small[0], tmp_path)
    graph = Graph(bundle.part("trt", "text"))
    weights = [n for n in graph.nodes if n.op_type == "DequantizeLinear" and n.input[0] in graph.initializers]
    damaged = weights[5]
    (reader,) = graph.consumers(damaged.output[0])
    set_constant(graph, damaged.input[1], 2 * graph.array(damaged.input[1]))
    file = part_file("trt", "text")
    found = parity(bundle.updated({file: graph.serialize()}).folder, limit=20)
    assert found["lost_most"].startswith("fp16->int8 of text")
    assert f"among the int8 nodes of text {reader.name} ({reader.op_type}) lost most" in found["lost_most"]
    assert next(row for row in found["nodes"] if row["part"] == "text")["node"] == reader.name
    assert row_of(found, "hops", "fp32->fp16", "text")["sqnr_db"] > 50  # so FP16 is not at fault


def overflowing_image() -> bytes:
    """A channel so large that FP16 cannot hold it, made up for by the weights behind."""
    graph = Graph(image_part(6e4))
    for op, factor in (("Conv", 8.0), ("MatMul", 1 / 8)):
        weight = [node for node in graph.nodes if node.op_type == op][-1].input[1]
        set_constant(graph, weight, graph.array(weight) * np.float32(factor))
    return graph.serialize()


def test_a_value_that_overflows_fp16_is_named(tmp_path: Path) -> None:
    parts = {**PARTS, "image": overflowing_image()}
    bundle = fresh_bundle(tmp_path, parts)
    sets = forms(parts)
    sets["trt"]["image"] = to_fp16(Graph(parts["image"])).serialize()
    found = parity(with_parts(bundle, sets).folder, limit=20)
    row = next(row for row in found["overflow"] if row["part"] == "image")
    assert (row["node"], row["effect"], row["in"]) == ("mul_19", "overflows", "fp16")
    worst = next(row for row in found["nodes"] if row["part"] == "image")
    assert (worst["node"], worst["in"]) == ("mul_19", "fp16")
    assert worst["not_finite"] > 0


def test_missing_parts_and_manifests_are_told_in_one_line(small: tuple[Bundle, dict[str, Any]], tmp_path: Path) -> None:
    bundle = copied(small[0], tmp_path)
    manifest = Path(bundle.info.lineage["manifest"])
    cases: list[tuple[dict[str, Any], Any, type[Exception], str]] = [
        (
            {"parts": {"fp32": bundle.info.parts["fp32"]}},
            manifest,
            BundleError,
            "no trt parts.*run `edgefuse quantize`",
        ),
        ({"parts": {k: bundle.info.parts[k] for k in ("fp32", "trt")}}, manifest, BundleError, "no cpu parts"),
        ({"lineage": {}}, None, ManifestError, "does not say what it was trained on; give --manifest"),
        ({}, tmp_path / "none.jsonl", ManifestError, "cannot be read"),
    ]
    for change, given, error, message in cases:
        changed = copied(small[0], tmp_path).updated({}, **change)
        with pytest.raises(error, match=message) as caught:
            parity(changed.folder, manifest=given)
        assert "\n" not in str(caught.value)


def test_lines_without_a_sensor_of_the_model_are_left_out(small: tuple[Bundle, dict[str, Any]], tmp_path: Path) -> None:
    bundle = copied(small[0], tmp_path)
    manifest = tmp_path / "data" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    kept = [{key: row[key] for key in ("text", "split")} for row in rows if row["split"] == "val"][:6]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in kept))  # text only, no labels
    found = parity(bundle.folder, manifest=manifest)
    assert {row["part"] for row in found["hops"]} == {"text", HEAD, "all"}
    assert all("accuracy" not in row for row in found["answers"])


def test_without_a_run_torch_is_not_imported(
    small: tuple[Bundle, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "edgefuse.optimize.export", None)
    assert row_of(parity(small[0].folder, limit=2), "hops", "fp32->fp16", "all")


def test_the_first_hop_is_what_export_measured_and_of_the_same_model(
    small: tuple[Bundle, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = untrained_run(tmp_path, monkeypatch, data=PLAIN, audio=None, image=None)
    said = export(run, tmp_path / "bundle")
    bundle = Bundle.open(said["bundle"])
    parts = {part: bundle.part("fp32", part) for part in ("text", HEAD)}
    found = parity(with_parts(bundle, {"trt": parts, "cpu": parts}).folder, run=run, limit=said["samples"])
    errors = [row_of(found, "hops", "torch->fp32", part)["max_abs"] for part in parts]
    assert max(errors) == pytest.approx(said["max_abs_error"], rel=0.5)  # batches of another size sum otherwise
    assert 0 < max(errors) < 1e-4
    assert row_of(found, "answers", "torch->fp32", "all")["top1"] == 1
    assert found["nodes"] == []  # trt and fp32 are the same files
    with pytest.raises(BundleError, match="makes another model than this bundle; give the run"):
        parity(small[0].folder, run=run, limit=2)
