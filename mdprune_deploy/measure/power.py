"""Energy of a call, by whatever meter the machine has.

A meter counts joules per rail from its `start`. Power sensors are sampled by a thread, and
E = sum over samples of P(t_i) (t_i - t_(i-1)); counters are read twice. Energy per call is that of
a loop of calls over their number, at least two seconds of them: sensors are slow. Where no rail
feeds all others the total is the sum of all rails, and too much if some of them feed others.

| meter | where | what it counts |
| --- | --- | --- |
| INA3221 | Jetson, /sys/bus/i2c/drivers/ina3221 | the module's rails: mV times mA |
| NVML | NVIDIA cards, `nvidia-ml-py` | the card |
| RAPL | x86, /sys/class/powercap, mostly root's alone | processor packages and memory |
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import nvml
from .machine import ROOT, read

INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "5V_IN", "VIN")
"""Rails that feed all others of a module."""
SAMPLE_SECONDS = 0.02
IDLE_SECONDS = 1.0
LOOP_SECONDS = 2.0


@dataclass(frozen=True)
class Energy:
    """Energy of a loop of calls.

    Attributes:
        meter: Which meter counted.
        total: The rails whose sum is the total, joined by ` + `.
        runs: Calls.
        seconds: How long they took.
        mj: Millijoules of a call, in total.
        above_idle_mj: The same less what the machine took for as long while nothing ran.
        watts: Mean power of the loop.
        idle_watts: Mean power while nothing ran.
        rails_mj: Millijoules of a call per rail.
    """

    meter: str
    total: str
    runs: int
    seconds: float
    mj: float
    above_idle_mj: float
    watts: float
    idle_watts: float
    rails_mj: dict[str, float]


class Meter(ABC):
    """Counts joules per rail; `total` names the rails whose sum is all that it sees."""

    name: str
    total: tuple[str, ...]

    @abstractmethod
    def start(self) -> None:
        """Begins to count."""

    @abstractmethod
    def stop(self) -> dict[str, float]:
        """Ends and returns the joules since `start`, per rail."""


class _Sampled(Meter):
    """Integrates the power that a sensor tells."""

    def start(self) -> None:
        """Begins to sample, in a thread."""
        self._joules = dict.fromkeys(self._watts(), 0.0)
        self._last = time.perf_counter()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """Ends the thread after a last sample."""
        self._done.set()
        self._thread.join()
        return self._joules

    def _sample(self) -> None:
        more = True
        while more:
            more = not self._done.wait(SAMPLE_SECONDS)
            watts = self._watts()
            now = time.perf_counter()
            for rail, power in watts.items():
                self._joules[rail] += power * (now - self._last)
            self._last = now

    @abstractmethod
    def _watts(self) -> dict[str, float]:
        """Returns the power of every rail now."""


class Ina3221(_Sampled):
    """A Jetson's power monitors: the rails that have a name.

    Args:
        rails: Per rail the files of its voltage (mV) and its current (mA).
    """

    name = "INA3221"

    def __init__(self, rails: dict[str, tuple[Path, Path]]) -> None:
        self._rails = rails
        fed = [rail for rail in rails if rail in INPUT_RAILS]
        self.total = tuple(fed[:1] or rails)

    def _watts(self) -> dict[str, float]:
        return {
            rail: int(volts.read_text()) * int(amperes.read_text()) / 1e6
            for rail, (volts, amperes) in self._rails.items()
        }

    @classmethod
    def find(cls, root: Path = ROOT) -> Ina3221 | None:
        """Returns the monitors of the machine, or None where none can be read."""
        rails: dict[str, tuple[Path, Path]] = {}
        for folder in sorted((root / "sys/bus/i2c/drivers/ina3221").glob("*/hwmon/*")):
            for channel in (1, 2, 3):  # the driver's others are sums and shunt voltages
                label = read(folder / f"in{channel}_label")
                files = folder / f"in{channel}_input", folder / f"curr{channel}_input"
                if label in (None, "", "NC") or any(read(file) is None for file in files):
                    continue
                name = label if label not in rails else f"{folder.parent.parent.name} {label}"
                rails[str(name)] = files
        return cls(rails) if rails else None


class Nvml(Meter):
    """The energy counter of an NVIDIA card.

    Args:
        card: A card that has one.
    """

    name = "NVML"
    total = ("gpu",)

    def __init__(self, card: nvml.Card) -> None:
        self._card = card

    def start(self) -> None:
        """Reads the counter."""
        self._begin = self._card.joules() or 0.0

    def stop(self) -> dict[str, float]:
        """Reads the counter again."""
        return {"gpu": (self._card.joules() or 0.0) - self._begin}


class NvmlPower(_Sampled):
    """The power sensor of an NVIDIA card that has no energy counter.

    Args:
        card: The card.
    """

    name = "NVML, sampled"
    total = ("gpu",)

    def __init__(self, card: nvml.Card) -> None:
        self._card = card

    def _watts(self) -> dict[str, float]:
        return {"gpu": self._card.watts() or 0.0}


@dataclass(frozen=True)
class _Zone:
    counter: Path
    wraps_at: int


class Rapl(Meter):
    """The energy counters of an x86 processor, which wrap.

    Args:
        zones: Files by name of a package or memory zone.
    """

    name = "RAPL"

    def __init__(self, zones: dict[str, _Zone]) -> None:
        self._zones = zones
        self.total = tuple(zones)

    def start(self) -> None:
        """Reads the counters."""
        self._begin = self._read()

    def stop(self) -> dict[str, float]:
        """Reads them again; one that wrapped in between is smaller."""
        end = self._read()
        return {
            name: (end[name] - begin) % (self._zones[name].wraps_at + 1) / 1e6
            for name, begin in self._begin.items()
        }

    def _read(self) -> dict[str, int]:
        return {name: int(zone.counter.read_text()) for name, zone in self._zones.items()}

    @classmethod
    def find(cls, root: Path = ROOT) -> Rapl | None:
        """Returns the counters of the machine, or None where none can be read.

        Of the zones those count that hold no other: packages, and memory, which is beside them.
        """
        zones: dict[str, _Zone] = {}
        for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
            name, end = read(folder / "name"), read(folder / "max_energy_range_uj")
            if name is None or end is None or read(folder / "energy_uj") is None:
                continue
            if name.startswith("package"):
                zones[name] = _Zone(folder / "energy_uj", int(end))
            elif name == "dram":
                zones[f"dram {folder.name.split(':')[1]}"] = _Zone(folder / "energy_uj", int(end))
        return cls(zones) if zones else None


def find_meter(on_device: bool, root: Path = ROOT) -> tuple[Meter | None, str]:
    """Returns the machine's meter for work on the processor or on a GPU, or why there is none."""
    ina = Ina3221.find(root)
    if ina is not None:
        return ina, ""
    if on_device:
        card = nvml.card()
        if card is None:
            return None, "no INA3221 and no NVML (pip install nvidia-ml-py)"
        if card.joules() is not None:
            return Nvml(card), ""
        if card.watts() is not None:
            return NvmlPower(card), ""
        return None, "no INA3221, and the GPU's driver tells neither energy nor power"
    rapl = Rapl.find(root)
    if rapl is not None:
        return rapl, ""
    return None, "no INA3221, and no RAPL counter that this user may read"


def idle_watts(meter: Meter, seconds: float) -> float:
    """Returns the mean power while this process sleeps."""
    begin = time.perf_counter()
    meter.start()
    time.sleep(seconds)
    joules = meter.stop()
    return sum(joules[rail] for rail in meter.total) / (time.perf_counter() - begin)


def energy_of(meter: Meter, call: Callable[[], object], idle: float, seconds: float) -> Energy:
    """Runs a call again and again and returns the energy of one.

    Args:
        meter: What counts.
        call: The call; it returns when its work is done.
        idle: What `idle_watts` gave.
        seconds: The least time to run.
    """
    call()
    runs = 0
    begin = time.perf_counter()
    meter.start()
    while (taken := time.perf_counter() - begin) < seconds or runs == 0:
        call()
        runs += 1
    joules = meter.stop()
    total = sum(joules[rail] for rail in meter.total)
    return Energy(
        meter=meter.name,
        total=" + ".join(meter.total),
        runs=runs,
        seconds=taken,
        mj=total / runs * 1e3,
        above_idle_mj=(total - idle * taken) / runs * 1e3,
        watts=total / taken,
        idle_watts=idle,
        rails_mj={rail: value / runs * 1e3 for rail, value in joules.items()},
    )
