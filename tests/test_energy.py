"""Energy: the meters against a made-up /sys, and that what is taken at rest is subtracted."""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path

import pytest
from scipy.integrate import trapezoid

from edgefuse.benchmarks import meters as meters_module
from edgefuse.benchmarks.energy import measure_energy
from edgefuse.benchmarks.meters import PowerMeter, RaplMeter, open_meters


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(meters_module, "NVML", "no-such-library.so")


@pytest.fixture
def zone(tmp_path):
    """One package of a CPU that has counted 999 uJ of at most 1000."""
    return write(tmp_path / "class/powercap/intel-rapl:0", name="package-0", energy_uj=999, max_energy_range_uj=1000)


def test_a_package_is_a_meter_and_what_is_within_it_is_not(zone, tmp_path):
    write(zone.parent / "intel-rapl:0:0", name="core", energy_uj=1, max_energy_range_uj=1000)
    write(zone.parent / "intel-rapl-mmio:0", name="package-0", energy_uj=1, max_energy_range_uj=1000)
    write(zone.parent / "intel-rapl", enabled=1)

    assert [meter.name for meter in open_meters(tmp_path)] == ["rapl package-0 (intel-rapl:0)"]


def test_a_counter_that_wraps_around_goes_on(zone):
    meter = RaplMeter(zone)

    found = []
    for counted in (999, 1000, 0, 500, 200, 200):
        (zone / "energy_uj").write_text(str(counted))
        found.append(round(meter.joules() * 1e6))

    assert found == [0, 1, 2, 502, 1203, 1203]


def test_a_counter_that_is_not_for_us_to_read_is_no_meter(zone, tmp_path):
    (zone / "energy_uj").unlink()

    assert open_meters(tmp_path) == []


def test_a_machine_without_meters_says_that_nothing_was_measured(tmp_path):
    found = measure_energy(open_meters(tmp_path), {"cpu": pytest.fail}, 10, 1.0)

    assert list(found) == ["not_measured"]


def test_the_rails_of_a_jetson_are_integrated_over_time(tmp_path, monkeypatch):
    chip = write(tmp_path / "class/hwmon/hwmon3", name="ina3221", in1_label="VDD_IN", in1_input=5000, curr1_input=2000)
    write(tmp_path / "class/hwmon/hwmon0", name="thermal", in1_label="other", in1_input=1, curr1_input=1)
    now = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr(meters_module.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(PowerMeter, "_follow", lambda _: None)
    (meter,) = open_meters(tmp_path)

    found = [meter.joules()]
    (chip / "curr1_input").write_text("4000")
    found.append(meter.joules())
    meter.close()

    assert meter.name == "ina3221 VDD_IN"
    assert found == pytest.approx([10, 10 + trapezoid([10, 20], dx=2)])


def test_the_counter_of_a_gpu_begins_at_nought(monkeypatch):
    counted = iter([5_000, 7_500])

    class Library:
        nvmlInit_v2 = staticmethod(lambda: 0)  # noqa: N815

        @staticmethod
        def nvmlDeviceGetCount_v2(count):  # noqa: N802
            ctypes.cast(count, ctypes.POINTER(ctypes.c_uint))[0] = 2
            return 0

        @staticmethod
        def nvmlDeviceGetHandleByIndex_v2(index, device):  # noqa: N802
            return 0 if index.value == 0 else 3  # the second does not count

        @staticmethod
        def nvmlDeviceGetTotalEnergyConsumption(device, millijoules):  # noqa: N802
            ctypes.cast(millijoules, ctypes.POINTER(ctypes.c_ulonglong))[0] = next(counted)
            return 0

    monkeypatch.setattr(meters_module.ctypes, "CDLL", lambda _: Library)
    (meter,) = open_meters(Path("/nowhere"))

    assert meter.name == "nvml gpu 0"
    assert meter.joules() == 2.5


class Machine:
    """Takes 3 W at rest and 0.5 J more for a decision, which lasts 0.1 s; it is its own meter and clock."""

    name = "made up"

    def __init__(self):
        self.now, self.extra, self.closed = 0.0, 0.0, 0

    def rest(self, seconds):
        self.now += seconds

    def decide(self, joules):
        self.now += 0.1
        self.extra += joules

    def joules(self):
        return 3 * self.now + self.extra

    def close(self):
        self.closed += 1


def test_what_is_taken_at_rest_is_subtracted():
    machine = Machine()
    decide = {"fp32": partial(machine.decide, 0.5), "cpu": partial(machine.decide, 0.25)}

    found = measure_energy([machine], decide, 10, 2.0, machine.rest, lambda: machine.now)

    assert found["fp32"]["made up"]["joules_per_decision"] == pytest.approx(0.5)
    assert found["cpu"]["made up"]["joules_per_decision"] == pytest.approx(0.25)
    assert found["cpu"]["made up"]["at_rest_watts"] == pytest.approx(3)
    assert (found["cpu"]["made up"]["decisions"], found["cpu"]["made up"]["seconds"]) == (10, 1)
    assert machine.closed == 1
