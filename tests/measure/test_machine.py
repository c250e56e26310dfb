"""What is read of a machine, on trees of files as a Jetson and a server have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_power import NVMLError, driver, write

from mdprune_deploy.measure import machine, nvml

POLICY = "sys/devices/system/cpu/cpufreq/policy0"
GPU = "sys/class/devfreq/17000000.gpu"


@pytest.fixture(autouse=True)
def _no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "card", lambda: None)


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    write(tmp_path, {
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd42",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0, BOARD: generic\nmore",
        f"{POLICY}/scaling_governor": "schedutil", f"{POLICY}/scaling_cur_freq": 729600,
        f"{POLICY}/scaling_min_freq": 729600, f"{POLICY}/scaling_max_freq": 2201600,
        f"{GPU}/cur_freq": 306000000, f"{GPU}/governor": "nvhost_podgov",
        f"{GPU}/max_freq": 1300500000,
        "sys/class/thermal/thermal_zone0/type": "gpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": 48500,
        "sys/class/thermal/thermal_zone1/type": "cv0-thermal",
        "sys/class/thermal/thermal_zone1/temp": "Resource temporarily unavailable",
    })  # fmt: skip
    return tmp_path


def test_facts_of_a_jetson(jetson: Path) -> None:
    found = machine.facts(jetson)
    assert found["board"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert found["jetson_linux"] == "R36 (release), REVISION: 4.0, BOARD: generic"
    assert found["instruction_sets"] == ["asimd"] and "gpu" not in found
    json.dumps(found)


def test_clocks_of_a_jetson(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = jetson / "bin/nvpmodel"
    write(jetson, {"bin/nvpmodel": "#!/bin/sh\necho 'NV Power Mode: MAXN'\necho 0"})
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    assert machine.clocks(jetson) == {
        "cpu": {
            "policy0": {
                "cur_mhz": 729.6, "min_mhz": 729.6, "max_mhz": 2201.6, "governor": "schedutil",
            }
        },
        "devices": {
            "17000000.gpu": {"cur_mhz": 306.0, "max_mhz": 1300.5, "governor": "nvhost_podgov"}
        },
        "power_mode": "MAXN",
        "celsius": {"gpu-thermal": 48.5},
    }  # fmt: skip


def test_a_machine_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.clocks(tmp_path) == {}
    assert {"board", "jetson_linux", "gpu"}.isdisjoint(machine.facts(tmp_path))
    assert machine.processor(tmp_path), "the architecture at least"


def test_a_power_mode_that_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvpmodel"
    program.write_text("#!/bin/sh\necho denied >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert machine.power_mode() is None


def test_settings_that_change_are_named(jetson: Path) -> None:
    before = machine.clocks(jetson)
    write(jetson, {f"{POLICY}/scaling_cur_freq": 2201600, f"{GPU}/governor": "performance"})
    after = {**machine.clocks(jetson), "power_mode": "15W"}
    assert machine.differences(before, before) == []
    assert machine.differences({**before, "power_mode": "MAXN"}, after) == [
        "17000000.gpu: governor was nvhost_podgov, is performance",
        "power mode was MAXN, is 15W",
    ]


def test_a_card_is_part_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = nvml.Card(driver(Name="GPU", ClockInfo=1200, EnforcedPowerLimit=350_000))
    monkeypatch.setattr(nvml, "card", lambda: card)
    expected = {"name": "GPU", "driver": "580.1", "power_limit_w": 350.0}
    assert machine.facts(tmp_path)["gpu"] == expected
    assert machine.clocks(tmp_path)["gpu"] == {"sm_mhz": 1200, "memory_mhz": 1200}


def test_an_error_that_is_not_nvmls_is_raised() -> None:
    def broken(_: object) -> None:
        raise ValueError("no driver's")

    library = driver()
    library.nvmlDeviceGetPowerUsage = broken
    with pytest.raises(ValueError, match="no driver's"):
        nvml.Card(library).watts()
    assert NVMLError.__name__.startswith("NVMLError")
