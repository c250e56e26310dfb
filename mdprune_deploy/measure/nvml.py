"""NVIDIA's management library, where `nvidia-ml-py` and a driver are: one card's facts and meters.

A Jetson's integrated GPU has no such library or only a part of it; what a driver does not answer is
left out.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any


class Card:
    """A card of the driver.

    Args:
        library: The module `pynvml`, initialised.
        index: The card's number.
    """

    def __init__(self, library: Any, index: int = 0) -> None:
        self._library = library
        self._handle = library.nvmlDeviceGetHandleByIndex(index)

    def facts(self) -> dict[str, object]:
        """Returns its name, the driver's version and its limits."""
        nv = self._library
        return _known(
            name=lambda: _text(nv.nvmlDeviceGetName(self._handle)),
            driver=lambda: _text(nv.nvmlSystemGetDriverVersion()),
            memory_bytes=lambda: int(nv.nvmlDeviceGetMemoryInfo(self._handle).total),
            power_limit_w=lambda: nv.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1e3,
        )

    def clocks(self) -> dict[str, object]:
        """Returns its clocks in MHz, now and at most, and its temperature."""
        nv = self._library
        return _known(
            sm_mhz=lambda: nv.nvmlDeviceGetClockInfo(self._handle, nv.NVML_CLOCK_SM),
            sm_max_mhz=lambda: nv.nvmlDeviceGetMaxClockInfo(self._handle, nv.NVML_CLOCK_SM),
            memory_mhz=lambda: nv.nvmlDeviceGetClockInfo(self._handle, nv.NVML_CLOCK_MEM),
            celsius=lambda: nv.nvmlDeviceGetTemperature(self._handle, nv.NVML_TEMPERATURE_GPU),
        )

    def joules(self) -> float | None:
        """Returns the energy since the driver was loaded; None before Volta."""
        read = self._library.nvmlDeviceGetTotalEnergyConsumption
        found = _known(joules=lambda: read(self._handle) / 1e3)
        return float(found["joules"]) if found else None  # type: ignore[arg-type]

    def watts(self) -> float | None:
        """Returns the power that it draws now."""
        found = _known(watts=lambda: self._library.nvmlDeviceGetPowerUsage(self._handle) / 1e3)
        return float(found["watts"]) if found else None  # type: ignore[arg-type]

    def used_bytes(self) -> int | None:
        """Returns the device memory in use, by whatever process."""
        found = _known(used=lambda: self._library.nvmlDeviceGetMemoryInfo(self._handle).used)
        return int(found["used"]) if found else None  # type: ignore[call-overload]


@functools.cache
def card() -> Card | None:
    """Returns the first card, or None where the library or the driver is not there."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        library.nvmlInit()
        return Card(library)
    except library.NVMLError:
        return None


def _known(**reads: Callable[[], Any]) -> dict[str, object]:
    """Returns what can be read; NVML's errors are no subclass of a standard one."""
    found: dict[str, object] = {}
    for name, read in reads.items():
        try:
            found[name] = read()
        except Exception as error:
            if type(error).__name__.startswith("NVMLError"):
                continue
            raise
    return found


def _text(value: str | bytes) -> str:
    """Returns text; older versions of the library give bytes."""
    return value.decode() if isinstance(value, bytes) else value
