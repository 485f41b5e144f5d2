"""Counters of energy, made up here: what is added, the turn of a counter, and what is said where nothing tells."""

import math
import sys
from types import SimpleNamespace

import pytest

from eos_sde.trials import train
from eos_sde.trials.energy import EnergyMeter

ZONES = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0:0": "core",  # inside the package: not counted again
    "intel-rapl:0:1": "dram",  # beside it
    "intel-rapl:1": "package-1",
    "intel-rapl:2": "psys",  # all of them
    "intel-rapl-mmio:0": "package-0",  # the same by another way
}


@pytest.fixture
def machine(tmp_path):
    """Two packages with memory, as Linux shows them; each counter at 9 J of 10 J before it turns."""
    for zone, name in ZONES.items():
        (tmp_path / zone).mkdir()
        for file, text in (("name", name), ("energy_uj", "9000000"), ("max_energy_range_uj", "10000000")):
            (tmp_path / zone / file).write_text(text + "\n")

    def set_to(**values):
        for zone, microjoules in values.items():
            (tmp_path / f"intel-rapl:{zone.replace('_', ':').strip(':')}" / "energy_uj").write_text(
                f"{microjoules}\n"
            )

    set_to.root = tmp_path
    return set_to


def test_packages_and_their_memory_are_added_past_a_turn_of_the_counter(machine):
    meter = EnergyMeter(machine.root)
    assert meter.source == "RAPL package-0, RAPL dram, RAPL package-1; all programs together"
    machine(_0=500_000, _1=9_250_000, _0_1=9_125_000, _0_0=9_900_000, _2=9_900_000)
    assert meter.joules() == pytest.approx(1.5 + 0.25 + 0.125)  # the first turned at 10 J
    assert meter.joules() == pytest.approx(1.875)
    machine(_0=400_000)
    assert meter.joules() == pytest.approx(1.875 + 9.9)


def test_a_counter_that_may_have_turned_twice_tells_nothing_more(machine):
    """10 J at the 1000 W that no package draws are 10 ms: read later, one turn or two look alike."""
    now = [0.0]
    meter = EnergyMeter(machine.root, clock=lambda: now[0])
    now[0] = 0.009
    assert meter.joules() == 0.0
    now[0] = 0.020
    assert math.isnan(meter.joules())
    now[0] = 0.021
    assert math.isnan(meter.joules())


def test_where_nothing_tells_it_is_said_why(machine, tmp_path):
    bare = tmp_path / "bare"
    assert math.isnan(EnergyMeter(bare).joules())
    assert EnergyMeter(bare).source == f"not told here: no RAPL counter in {bare}"
    for zone in ZONES:  # as for others than root: the file is there, and cannot be read
        (machine.root / zone / "energy_uj").unlink()
    assert EnergyMeter(machine.root).source.startswith("not told here: RAPL's counters")
    assert "may be read by root alone" in EnergyMeter(machine.root).source


class FakeNvml(SimpleNamespace):
    """Two GPUs, the second older than Volta."""

    class NVMLError(Exception):
        """As NVML's own."""

    millijoules = 5000

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, name):
        return int(name.removeprefix("GPU-"))

    def nvmlDeviceGetName(self, handle):
        return f"card {handle}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if handle == 1:
            raise self.NVMLError("Not Supported")
        return self.millijoules


def test_gpus_that_the_process_may_use_are_added(machine, monkeypatch, tmp_path):
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0")
    meter = EnergyMeter(tmp_path / "none", gpu=True)
    assert meter.source.startswith("NVML card 0; all programs together; without others: no RAPL counter in")
    nvml.millijoules = 7500
    assert meter.joules() == pytest.approx(2.5)
    nvml.millijoules = 10  # the driver was loaded anew
    assert math.isnan(meter.joules())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert "NVML card 1 has no counter of energy" in EnergyMeter(tmp_path / "none", gpu=True).source
    both = EnergyMeter(machine.root, gpu=True).source
    assert both.startswith("RAPL package-0, ")
    assert "without others: NVML card 1" in both
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install 'eos-sde[energy]'" in EnergyMeter(tmp_path / "none", gpu=True).source


@pytest.mark.slow
def test_a_run_stores_its_energy_and_of_what(tiny, machine, monkeypatch):
    """A counter that goes up by 2 J at every other reading, those after updates: 2 J a row."""
    reads = [0]

    class Meter:
        readable, source = True, "a made-up counter"

        def joules(self):
            reads[0] += 1
            return 2.0 * (reads[0] // 2)

    monkeypatch.setattr("eos_sde.trials.training.EnergyMeter", Meter)
    run = train(tiny("sgd", steps=6))
    assert run["energy_joules"].values.tolist() == [0.0, 2.0, 4.0, 6.0]
    assert run.attrs["energy"] == "a made-up counter"
    assert run["energy_joules"].attrs["units"] == "J"
