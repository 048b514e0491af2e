"""The roofline: never below either of its limits, monotone, and silent where a figure is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.benchmarks.gpu_peaks import DEVICES
from edgefuse.benchmarks.limits import NOT_PUBLISHED, NOT_TOLD, attainable, intensity, kernel_bound, total

NANO = replace(DEVICES[0], int8_tops=20, fp16_tflops=10, fp32_tflops=1.28, memory_gb_s=68)
works = st.fixed_dictionaries({
    "flops": st.integers(0, 10**12),
    "bytes": st.integers(1, 10**9),
    "precision": st.sampled_from(["Int8", "Half", "Float"]),
})  # fmt: skip
rates = st.floats(1e6, 1e15)


def test_a_bound_worked_out_by_hand():
    """100 MFLOP at 20 TOPS are 5 us, 680 kB at 68 GB/s are 10; at FP32 the operations take 78.125."""
    work = {"flops": 100_000_000, "bytes": 680_000, "precision": "Int8"}
    told = kernel_bound(work, NANO)
    assert [told[name] for name in ("compute_us", "memory_us", "bound_us")] == pytest.approx([5, 10, 10])
    assert kernel_bound({**work, "precision": "Float"}, NANO)["bound_us"] == pytest.approx(78.125)


@given(works, st.sampled_from(DEVICES))
def test_a_bound_is_the_larger_limit_and_what_the_roofline_attains(work, device):
    told = kernel_bound(work, device)
    assert told["bound_us"] == max(told["compute_us"], told["memory_us"])
    if work["flops"]:
        roof = attainable(
            device.peak_flops(work["precision"]) or 0, device.peak_bytes or 0, intensity(work["flops"], work["bytes"])
        )
        assert work["flops"] / roof * 1e6 == pytest.approx(told["bound_us"])


@given(works, st.floats(1, 100), st.floats(1, 100))
def test_a_faster_device_never_has_a_larger_bound(work, compute, memory):
    faster = replace(
        NANO, int8_tops=20 * compute, fp16_tflops=10 * compute, fp32_tflops=1.28 * compute, memory_gb_s=68 * memory
    )
    assert kernel_bound(work, faster)["bound_us"] <= kernel_bound(work, NANO)["bound_us"]


@given(rates, rates, st.floats(1e-3, 1e4))
def test_what_is_attained_is_never_above_the_peak_or_what_memory_feeds(peak, bandwidth, ratio):
    assert attainable(peak, bandwidth, ratio) in (peak, bandwidth * ratio)
    assert attainable(peak, bandwidth, ratio) <= min(peak, bandwidth * ratio)


@given(st.lists(works, max_size=5))
def test_a_sum_is_not_below_either_of_its_limits(several):
    told = total(kernel_bound(work, NANO) for work in several)
    assert told["bound_us"] >= max(told["compute_us"], told["memory_us"]) * (1 - 1e-12)
    assert told["why"] == ""


@pytest.mark.parametrize(
    ("work", "device", "why"),
    [
        ({"flops": 8, "bytes": 8, "precision": "Int8"}, replace(NANO, int8_tops=None), NOT_PUBLISHED),
        ({"flops": 0, "bytes": 8, "precision": "Int8"}, replace(NANO, memory_gb_s=None), NOT_PUBLISHED),
        ({"flops": 8, "bytes": 8, "precision": "FP8"}, NANO, NOT_PUBLISHED),
        ({"flops": None, "bytes": 8, "precision": "Int8"}, NANO, NOT_TOLD),
        ({"flops": 8, "bytes": None, "precision": "Int8"}, NANO, NOT_TOLD),
        ({"flops": 8, "bytes": 8, "precision": ""}, NANO, NOT_TOLD),
    ],
)
def test_a_missing_figure_makes_no_bound_but_a_reason_also_for_the_sum(work, device, why):
    told = kernel_bound(work, device)
    fine = kernel_bound({"flops": 8, "bytes": 8, "precision": "Half"}, NANO)
    for bound in (told, total([fine, told])):
        assert bound == {"compute_us": None, "memory_us": None, "bound_us": None, "why": why}


def test_what_multiplies_nothing_is_bound_by_memory_alone():
    told = kernel_bound({"flops": 0, "bytes": 68_000, "precision": ""}, NANO)
    assert (told["compute_us"], told["bound_us"]) == (0, pytest.approx(1))
