"""The ceilings of a report: the figures of roofline.py, always called a bound, and a line where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgefuse.benchmarks import cpu_share, markup, roofline
from edgefuse.benchmarks.ceilings import LARGEST, RANKED_BY, measure_ceilings, section
from edgefuse.benchmarks.gpu_peaks import DEVICES
from edgefuse.benchmarks.limits import LABEL
from edgefuse.runtime.bundle import Bundle, part_file
from edgefuse.runtime.errors import MissingExtraError
from tests.optimize_fixtures import MODALITIES, PARTS, write_parts_bundle
from tests.test_work import RTX, bundle_with_engine, engine

PEAKS = {"fp32_flops": 1e11, "int8_flops": 4e11, "stream_bytes": 1e10}
WITHOUT_ONNX = """
import json, sys
sys.modules["onnx"] = None
import edgefuse.benchmarks.bench
from edgefuse.benchmarks.ceilings import measure_ceilings
from edgefuse.runtime.bundle import Bundle
print(json.dumps(measure_ceilings(Bundle.open(sys.argv[1]), 2)))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks that are given instead of measured."""
    monkeypatch.setattr(cpu_share, "measure_peaks", lambda threads: dict(PEAKS))


def compiled(folder: Path) -> Bundle:
    """A bundle with an engine of every part, each of more kernels than the one before."""
    bundle = Bundle.open(bundle_with_engine(folder))
    for place, part in enumerate(MODALITIES):
        tensors = [{"Name": name, "Dimensions": [32, 32 * (place + 1)], "Datatype": "Half"} for name in ("a", "b")]
        layer = {"LayerType": "kgen", "Inputs": tensors, "Outputs": tensors[:1]}
        layers = [{**layer, "Name": f"{part}{number}"} for number in range(3 * place + 3)]
        plan = json.dumps({"Layers": layers, "I/O Tensors": []})
        engine(folder, part, bundle.info.files[part_file("trt", part)], plan)
    return bundle


def test_bounds_and_largest_kernels_are_those_of_the_command(tmp_path: Path) -> None:
    bundle = compiled(tmp_path / "bundle")
    found, whole = measure_ceilings(bundle, 2), roofline.roofline(bundle.folder, runs=2)
    assert found["decision"] == whole["decision"]
    assert list(found["decision"][RTX]) == [device.key for device in DEVICES]
    assert found["no_bounds"] == []
    assert sum(each["kernels"] for each in found["engines"]) == 3 + 6 + 9 + 1
    every = sorted(kernel["bound_us"][RANKED_BY.key] for each in whole["engines"] for kernel in each["kernels"])
    largest = [kernel["bound_us"][RANKED_BY.key] for kernel in found["largest"][RTX]]
    assert largest == every[::-1][:LARGEST]


def test_every_figure_of_a_gpu_stands_beside_the_word_bound(tmp_path: Path) -> None:
    found = measure_ceilings(compiled(tmp_path / "bundle"), 2)
    decisions, kernels, sources, peaks, shares = section({"ceilings": found}).tables
    assert [row[0] for row in decisions.rows] == [f"{device.name}, {device.mode}" for device in DEVICES]
    assert all(LABEL in row for table in (decisions, kernels) for row in table.rows)
    assert all(LABEL in table.caption for table in (decisions, kernels))
    assert all("measured" in table.caption and LABEL not in table.caption for table in (peaks, shares))
    assert all(source.source in row for source, row in zip(DEVICES, sources.rows, strict=True))
    assert all(len(row) == len(table.head) for table in section({"ceilings": found}).tables for row in table.rows)
    assert markup.section(section({"ceilings": found})).count(LABEL) > len(DEVICES) + len(kernels.rows)


def test_the_cpu_is_told_with_its_peaks_and_every_part(tmp_path: Path) -> None:
    found = measure_ceilings(write_parts_bundle(tmp_path / "bundle"), 2)
    peaks, shares = section({"ceilings": found}).tables
    assert peaks.rows[0] == ["1", "100.0", "400.0", "10.0"]
    assert {row[0] for row in shares.rows} == {f"fp32 {part}" for part in PARTS}
    assert len(shares.rows) == len(PARTS) * len(peaks.rows)
    assert (
        section({"ceilings": found}).notes[0]
        == "No bound: no engine in this bundle, so no bound for a GPU; edgefuse build makes them."
    )


def test_a_decision_has_no_bound_where_a_part_has_no_engine(tmp_path: Path) -> None:
    found = measure_ceilings(Bundle.open(bundle_with_engine(tmp_path / "bundle")), 2)
    assert found["decision"] == {}
    assert found["no_bounds"] == [f"{RTX} has no engine of {', '.join(MODALITIES)}, so no bound of a whole decision"]
    assert LABEL not in markup.section(section({"ceilings": found}))


def test_a_stale_engine_is_a_line_and_the_cpu_is_measured_all_the_same(tmp_path: Path) -> None:
    found = measure_ceilings(Bundle.open(bundle_with_engine(tmp_path / "bundle", sha256="0" * 64)), 2)
    (why,) = found["no_bounds"]
    assert "was not built from the head part of this bundle; run `edgefuse build " in why
    assert {row["part"] for row in found["cpu"]["parts"]} == set(PARTS)


def test_products_that_no_kernel_names_are_said(tmp_path: Path) -> None:
    found = measure_ceilings(compiled(tmp_path / "bundle"), 2)
    lost = sum(each["unplaced_flops"] for each in found["engines"])
    assert lost > 0
    assert (
        section({"ceilings": found}).notes[0]
        == f"{lost / 1e6:.2f} MFLOP of products that no kernel names are in no bound."
    )


def test_without_onnx_bench_is_imported_and_the_section_says_what_is_missing(tmp_path: Path) -> None:
    folder = write_parts_bundle(tmp_path / "bundle").folder
    command = [sys.executable, "-c", WITHOUT_ONNX, str(folder)]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told == {"not_measured": "counting a graph's work needs onnx: pip install 'edgefuse[optimize]'"}
    assert section({"ceilings": told}).tables == []
    assert "Not measured: counting" in markup.section(section({"ceilings": told}))


def test_the_command_needs_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"edgefuse\[optimize\]"):
        roofline.roofline(write_parts_bundle(tmp_path / "bundle").folder, runs=2)
