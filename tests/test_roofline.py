"""The ceilings of a bundle: bounds by hand, always called so; peaks and shares of this CPU; refusals in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgefuse.benchmarks import cpu_share
from edgefuse.benchmarks import roofline as module
from edgefuse.benchmarks.cpu_peaks import gemm_flops, measure_peaks, triad_bytes
from edgefuse.benchmarks.gpu_peaks import DEVICES
from edgefuse.benchmarks.limits import LABEL
from edgefuse.benchmarks.roofline import roofline
from edgefuse.runtime.bundle import HEAD
from tests.optimize_fixtures import PARTS, write_parts_bundle
from tests.test_work import RTX, bundle_with_engine

PEAKS = {"fp32_flops": 1e11, "int8_flops": 4e11, "stream_bytes": 1e10}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks that are given instead of measured."""
    monkeypatch.setattr(cpu_share, "measure_peaks", lambda threads: dict(PEAKS))


def test_the_bounds_of_an_engine_are_summed_over_its_kernels_and_over_the_parts(tmp_path: Path, quick: None) -> None:
    told = roofline(bundle_with_engine(tmp_path / "bundle"), ["orin-nano", "rtx-4090"], runs=2)
    assert told["label"] == LABEL == "bound, not measured"
    (engine,) = told["engines"]
    (kernel,) = engine["kernels"]
    assert kernel["intensity"] == pytest.approx(2048 / 6144)
    assert kernel["bound_us"]["orin-nano"] == pytest.approx(6144 / 68e3)  # 68 kB a us; 2048 operations need 0.0002 us
    assert engine["total"]["orin-nano"]["compute_us"] == pytest.approx(2048 / 10e6)
    assert told["decision"][RTX]["orin-nano"] == engine["total"]["orin-nano"]
    assert told["decision"][RTX]["rtx-4090"]["bound_us"] < told["decision"][RTX]["orin-nano"]["bound_us"]
    assert [device["key"] for device in told["devices"]] == ["orin-nano", "rtx-4090"]


def test_every_part_is_timed_with_each_number_of_threads_and_shares_are_of_the_peaks(
    tmp_path: Path, quick: None
) -> None:
    told = roofline(write_parts_bundle(tmp_path / "bundle").folder, runs=2)
    assert (told["engines"], told["decision"]) == ([], {})
    assert {row["part"] for row in told["cpu"]["parts"]} == set(PARTS)
    assert {str(row["threads"]) for row in told["cpu"]["parts"]} == set(told["cpu"]["peaks"])
    for row in told["cpu"]["parts"]:
        assert row["latency"]["n"] == 2
        rate = row["flops"] / row["latency"]["p50_ms"] * 1e3
        assert row["flops_per_s"] == pytest.approx(rate)
        assert row["share_of_peak"] == pytest.approx(rate / 1e11)
        assert row["share_of_roofline"] == pytest.approx(rate / min(1e11, 1e10 * row["flops"] / row["bytes"]))
        assert row["share_of_roofline"] >= row["share_of_peak"]


def test_a_dynamic_int8_part_is_held_against_the_int8_peak_and_one_without_products_against_none() -> None:
    told = {"flops": 1_000_000, "bytes": 1000, "precision": "dynamic-int8"}
    assert cpu_share._reached(told, 0.01, PEAKS)["share_of_peak"] == pytest.approx(1e11 / 4e11)
    assert cpu_share._reached({**told, "precision": "fp32"}, 0.01, PEAKS)["share_of_peak"] == pytest.approx(1)
    assert set(cpu_share._reached({**told, "flops": 0}, 0.01, PEAKS).values()) == {None}


def test_more_threads_never_have_a_lower_peak_than_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_share, "_cores", lambda: 2)
    monkeypatch.setattr(
        cpu_share, "measure_peaks", lambda n: {**PEAKS, "stream_bytes": 1e10 / n, "fp32_flops": 1e11 * n}
    )
    bundle = write_parts_bundle(tmp_path / "bundle")
    peaks = cpu_share.cpu_shares(bundle, {"fp32": {HEAD: {"flops": 1, "bytes": 1}}}, 2)["peaks"]
    assert peaks["2"] == {**PEAKS, "fp32_flops": 2e11}


def test_measured_peaks_are_rates_that_a_cpu_can_have() -> None:
    """From a slow core, shared with others, up to a large server."""
    told = measure_peaks(1, size=64, stream_bytes=1 << 20)
    assert told.keys() == PEAKS.keys()
    assert 1e7 < told["fp32_flops"] < 1e14
    assert 1e7 < told["int8_flops"] < 1e15
    assert 1e7 < told["stream_bytes"] < 1e13


def test_a_peak_is_the_shortest_of_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.5, *[1.0] * 100])
    monkeypatch.setattr("edgefuse.benchmarks.cpu_peaks._seconds", lambda work: next(seconds))
    assert gemm_flops("fp32", 1, 10) == 2 * 10**3 / 0.5
    seconds = iter([1.0, 0.25])
    assert triad_bytes(1, 1) == 3 * 4 * (1 << 20) / 0.25  # one stretch, two passes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "gtx-480"], "--devices 'gtx-480' is unknown; choose from orin-nano, "),
        (["--runs", "1"], "--runs 1 is too few for a median; ask for 2 or more"),
        ([], "nowhere"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_1(tmp_path: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, module.__file__, "nowhere", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_stale_engine_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundle_with_engine(tmp_path / "bundle", sha256="0" * 64)
    monkeypatch.setattr(sys, "argv", ["roofline.py", str(folder)])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 1
    assert "was not built from the head part of this bundle; run `edgefuse build " in capsys.readouterr().err


def test_the_page_calls_every_figure_of_a_gpu_a_bound_and_its_last_line_is_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    out, folder = tmp_path / "made" / "ceilings.json", bundle_with_engine(tmp_path / "bundle")
    monkeypatch.setattr(sys, "argv", ["roofline.py", str(folder), "--runs", "2", "--json", "--out", str(out)])
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{RTX}, us for one example: bound, not measured"
    assert [line.split()[0] for line in lines[2 : 2 + len(DEVICES)]] == [device.key for device in DEVICES]
    assert all(f"{device.key}: {device.name}, {device.mode}; {device.source}" in "\n".join(lines) for device in DEVICES)
    assert json.loads(lines[-1]) == json.loads(out.read_text())


def test_what_is_not_published_is_said_instead_of_a_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(module, "DEVICES", (replace(DEVICES[0], fp16_tflops=None),))
    module._show(roofline(bundle_with_engine(tmp_path / "bundle"), runs=2))
    assert f"{DEVICES[0].key:18}not published" in capsys.readouterr().out.splitlines()
