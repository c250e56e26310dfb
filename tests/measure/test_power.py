"""The meters, on trees of files that machines have, and their arithmetic on counters by hand."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mdprune_deploy.measure import nvml, power
from mdprune_deploy.measure.power import Ina3221, Meter, Nvml, NvmlPower, Rapl, energy_of


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def monitor(root: Path, device: str, rails: list[tuple[str, int, int]]) -> None:
    """Writes one INA3221 as Linux shows it: rails of (label, mV, mA), and what is no rail."""
    folder = f"sys/bus/i2c/drivers/ina3221/{device}/hwmon/hwmon{device[-1]}"
    for number, (label, volts, amperes) in enumerate(rails, 1):
        write(root, {
            f"{folder}/in{number}_label": label, f"{folder}/in{number}_input": volts,
            f"{folder}/curr{number}_input": amperes, f"{folder}/in{number + 3}_input": 12,
        })  # fmt: skip
    write(root, {f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": 5})


def orin_nano(root: Path) -> None:
    rails = [("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 4900, 300)]
    monitor(root, "1-0040", rails)


def test_rails_of_one_module(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    found = Ina3221.find(tmp_path)
    assert found is not None
    assert found._watts() == {"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 2.0, "VDD_SOC": 1.47}
    assert found.total == ("VDD_IN",), "it feeds the others"


def test_rails_of_two_monitors_without_one_that_feeds_all(tmp_path: Path) -> None:
    rails = [("VDD_GPU_SOC", 19000, 200), ("VDD_CPU_CV", 19000, 50), ("VIN_SYS_5V0", 5000, 800)]
    monitor(tmp_path, "1-0040", rails)
    monitor(tmp_path, "1-0041", [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 100), ("NC", 0, 0)])
    found = Ina3221.find(tmp_path)
    assert found is not None
    assert found.total == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")
    assert sum(found._watts().values()) == pytest.approx(3.8 + 0.95 + 4.0 + 0.5)


def test_rails_of_one_name_on_two_monitors(tmp_path: Path) -> None:
    for device in ("1-0040", "2-0041"):
        monitor(tmp_path, device, [("VDD", 1000, 1000)])
    found = Ina3221.find(tmp_path)
    assert found is not None and found.total == ("VDD", "2-0041 VDD")


def test_a_sampled_meter_integrates_power_over_time(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    meter = Ina3221.find(tmp_path)
    assert meter is not None
    begin = time.perf_counter()
    meter.start()
    time.sleep(0.1)
    joules = meter.stop()
    taken = time.perf_counter() - begin
    # Power is constant here, so the sum is exact but for the time of starting and ending.
    assert 0.6 * 0.99 <= joules["VDD_IN"] <= 6.0 * taken
    assert joules["VDD_CPU_GPU_CV"] == pytest.approx(joules["VDD_IN"] / 3)


def packages(root: Path) -> None:
    zones = {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1", "2": "psys"}
    for zone, name in zones.items():
        folder = f"sys/class/powercap/intel-rapl:{zone}"
        energy = {"name": name, "energy_uj": 1_000_000, "max_energy_range_uj": 9_999_999}
        write(root, {f"{folder}/{key}": value for key, value in energy.items()})


def test_packages_and_memory_count_once_and_wrap(tmp_path: Path) -> None:
    packages(tmp_path)
    meter = Rapl.find(tmp_path)
    assert meter is not None and meter.total == ("package-0", "dram 0", "package-1")
    meter.start()
    write(tmp_path, {
        "sys/class/powercap/intel-rapl:0/energy_uj": 3_500_000,
        "sys/class/powercap/intel-rapl:1/energy_uj": 500_000,
    })  # fmt: skip
    assert meter.stop() == {"package-0": 2.5, "dram 0": 0.0, "package-1": 9.5}


def test_which_meter_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "card", lambda: None)
    assert power.find_meter(False, tmp_path) == (
        None, "no INA3221, and no RAPL counter that this user may read",
    )  # fmt: skip
    assert power.find_meter(True, tmp_path) == (
        None, "no INA3221 and no NVML (pip install nvidia-ml-py)",
    )  # fmt: skip
    packages(tmp_path)
    assert isinstance(power.find_meter(False, tmp_path)[0], Rapl)
    assert power.find_meter(True, tmp_path)[0] is None, "a processor's meter sees no GPU"
    orin_nano(tmp_path)
    assert isinstance(power.find_meter(False, tmp_path)[0], Ina3221)
    assert isinstance(power.find_meter(True, tmp_path)[0], Ina3221)


class NVMLError(Exception):
    pass


def driver(**answers: Any) -> SimpleNamespace:
    """A driver that answers what it is given and refuses the rest, as NVML does."""

    def refuse(*_: object) -> None:
        raise NVMLError("not supported")

    names = ("Name", "MemoryInfo", "EnforcedPowerLimit", "ClockInfo", "MaxClockInfo")
    names += ("Temperature", "TotalEnergyConsumption", "PowerUsage")
    functions: dict[str, Any] = {
        f"nvmlDeviceGet{name}": (lambda *_, name=name: answers[name]) if name in answers else refuse
        for name in names
    }
    functions |= {"nvmlSystemGetDriverVersion": lambda: b"580.1", "nvmlInit": lambda: None}
    functions |= {"nvmlDeviceGetHandleByIndex": lambda index: index, "NVMLError": NVMLError}
    constants = {"NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0}
    return SimpleNamespace(**functions, **constants)


def test_a_card_counts_energy_in_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"TotalEnergyConsumption": 5_000, "Name": b"GPU"}
    card = nvml.Card(driver(**answers))
    assert card.facts() == {"name": "GPU", "driver": "580.1"} and card.clocks() == {}
    meter = Nvml(card)
    meter.start()
    card._library.nvmlDeviceGetTotalEnergyConsumption = lambda _: 7_500
    assert meter.stop() == {"gpu": 2.5}
    monkeypatch.setattr(nvml, "card", lambda: card)
    assert isinstance(power.find_meter(True, Path("/nowhere"))[0], Nvml)


def test_a_card_without_a_counter_is_sampled_and_one_without_both_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = nvml.Card(driver(PowerUsage=42_000))
    monkeypatch.setattr(nvml, "card", lambda: card)
    meter, _ = power.find_meter(True, Path("/nowhere"))
    assert isinstance(meter, NvmlPower) and meter._watts() == {"gpu": 42.0}
    monkeypatch.setattr(nvml, "card", lambda: nvml.Card(driver()))
    assert power.find_meter(True, Path("/nowhere")) == (
        None, "no INA3221, and the GPU's driver tells neither energy nor power",
    )  # fmt: skip


def test_no_library_and_no_driver_are_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nvml.card.cache_clear()
    assert nvml.card() is None

    def refuse() -> None:
        raise NVMLError("no driver")

    library = driver()
    library.nvmlInit = refuse
    monkeypatch.setitem(sys.modules, "pynvml", library)
    nvml.card.cache_clear()
    assert nvml.card() is None
    nvml.card.cache_clear()


class Fake(Meter):
    """Counts 10 W of which 4 W are another rail's."""

    name = "fake"
    total = ("all",)

    def start(self) -> None:
        self.begin = time.perf_counter()

    def stop(self) -> dict[str, float]:
        taken = time.perf_counter() - self.begin
        return {"all": 10 * taken, "part": 4 * taken}


def test_energy_of_a_call_is_the_loops_over_its_runs() -> None:
    calls: list[int] = []
    energy = energy_of(Fake(), lambda: calls.append(time.sleep(0.002) or 1), 2.5, seconds=0.1)
    assert energy.runs == len(calls) - 1, "the first call warms up"
    # The meter ends a moment after the last call.
    assert energy.watts == pytest.approx(10, rel=0.1)
    assert energy.mj == pytest.approx(energy.watts * energy.seconds / energy.runs * 1e3)
    assert energy.above_idle_mj == pytest.approx(energy.mj * (1 - 2.5 / energy.watts))
    assert energy.rails_mj["part"] == pytest.approx(0.4 * energy.rails_mj["all"])
    assert (energy.meter, energy.total, energy.idle_watts) == ("fake", "all", 2.5)


def test_a_slow_call_runs_once() -> None:
    assert energy_of(Fake(), lambda: time.sleep(0.02), 0.0, seconds=0.01).runs == 1


def test_idle_power_is_that_of_the_total() -> None:
    assert power.idle_watts(Fake(), 0.02) == pytest.approx(10, rel=0.1)
