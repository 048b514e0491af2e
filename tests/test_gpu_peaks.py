"""The table of published peaks: sourced, dense, and in units that agree with each other."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlparse

import pytest

from edgefuse.benchmarks.gpu_peaks import DEVICES, Device

BY_KEY = {device.key: device for device in DEVICES}
each = pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.key)


def test_the_devices_that_people_deploy_on_are_there_once():
    assert len(BY_KEY) == len(DEVICES)
    assert {"orin-nano", "orin-nano-super", "orin-nx-16", "agx-orin-64", "thor-t5000"} <= BY_KEY.keys()
    assert {"rtx-3060", "rtx-4060", "rtx-4090"} <= BY_KEY.keys()


@each
def test_a_row_names_its_sources_and_says_how_what_is_not_printed_follows(device: Device):
    assert device.source.count("NVIDIA")
    assert device.follows
    assert device.mode
    assert device.urls
    assert all(urlparse(url).scheme == "https" and urlparse(url).path.strip("/") for url in device.urls)
    assert any(urlparse(url).netloc.endswith("nvidia.com") for url in device.urls)


@each
def test_a_dense_rate_is_half_of_the_sparse_one_as_far_as_they_are_printed(device: Device):
    for dense, sparse in ((device.int8_tops, device.int8_sparse_tops), (device.fp16_tflops, device.fp16_sparse_tflops)):
        if dense is not None and sparse is not None:
            assert dense <= sparse
            assert sparse / dense == pytest.approx(2, rel=0.02)


@each
def test_a_narrower_precision_is_never_slower_and_int8_is_twice_fp16(device: Device):
    int8, fp16, fp32 = (device.peak_flops(precision) for precision in ("Int8", "Half", "Float"))
    assert int8 is not None
    assert fp16 is not None
    assert fp32 is not None
    assert int8 / fp16 == pytest.approx(2, rel=0.04)
    assert fp16 > fp32


@each
def test_rates_are_in_the_units_that_their_names_say(device: Device):
    """10^12 operations and 10^9 bytes: edge and desktop GPUs do 1 to 100 TFLOPS in FP32, and move 50 to 2000 GB/s."""
    assert 1e12 <= (device.peak_flops("Float") or 0) <= 1e14
    assert 5e10 <= (device.peak_bytes or 0) <= 2e12


@pytest.mark.parametrize("precision", ["FP8", "", "Int32"])
def test_a_precision_without_a_published_rate_has_none(precision: str):
    assert BY_KEY["orin-nano"].peak_flops(precision) is None


def test_what_is_not_published_has_no_peak():
    unknown = replace(BY_KEY["orin-nano"], int8_tops=None, memory_gb_s=None)
    assert unknown.peak_flops("Int8") is None
    assert unknown.peak_bytes is None
    assert unknown.peak_flops("Half") == 10e12
