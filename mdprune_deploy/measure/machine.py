"""The machine that figures are of: processor, board, versions, clocks and power mode.

Every function takes the root of the file system, so that other machines' trees can be read.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import nvml

PACKAGES = ("mdprune-deploy", "numpy", "onnxruntime", "pycuda", "tensorrt", "torch")
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "amx_tile", "asimd", "sve")
ROOT = Path("/")
_SECONDS = 5


def facts(root: Path = ROOT) -> dict[str, object]:
    """Returns what does not change during a run, as JSON types; names no host."""
    found: dict[str, object] = {
        "processor": processor(root),
        "cores": os.cpu_count(),
        "instruction_sets": instruction_sets(root),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: known for name in PACKAGES if (known := installed(name))},
    }
    board = read(root / "proc/device-tree/model")
    if board is not None:
        found["board"] = board.strip("\0")
    release = read(root / "etc/nv_tegra_release")
    if release is not None:
        found["jetson_linux"] = release.partition("\n")[0].lstrip("# ")
    card = nvml.card()
    if card is not None:
        found["gpu"] = card.facts()
    return found


def clocks(root: Path = ROOT) -> dict[str, object]:
    """Returns what may change during a run: clocks, governors, power mode, temperatures.

    Frequencies are in MHz. Only what the machine tells is there.
    """
    found: dict[str, object] = {}
    policies = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
    if policies:
        found["cpu"] = {policy.name: _frequency(policy, "scaling_", 1e3) for policy in policies}
    devices = sorted((root / "sys/class/devfreq").glob("*"))
    if devices:
        found["devices"] = {device.name: _frequency(device, "", 1e6) for device in devices}
    mode = power_mode()
    if mode is not None:
        found["power_mode"] = mode
    zones = {
        name: int(text) / 1e3
        for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"))
        if (name := read(zone / "type")) and (text := read(zone / "temp")) and _is_number(text)
    }
    if zones:
        found["celsius"] = zones
    card = nvml.card()
    if card is not None:
        found["gpu"] = card.clocks()
    return found


def _frequency(folder: Path, prefix: str, unit: float) -> dict[str, object]:
    """Reads cpufreq's or devfreq's files; `unit` is how many of theirs are a MHz."""
    found: dict[str, object] = {}
    for key in ("cur_freq", "min_freq", "max_freq"):
        text = read(folder / f"{prefix}{key}")
        if text is not None and _is_number(text):
            found[key.replace("freq", "mhz")] = int(text) / unit
    governor = read(folder / f"{prefix}governor")
    return found if governor is None else {**found, "governor": governor}


def power_mode() -> str | None:
    """Returns what `nvpmodel` says is a Jetson's power mode, or None where it is not."""
    program = shutil.which("nvpmodel")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-q"], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith("NV Power Mode:")]
    return lines[0].partition(":")[2].strip() if lines else None


def processor(root: Path = ROOT) -> str:
    """Returns the processor's model name, or its architecture where there is none."""
    return cpu_field("model name", root) or platform.machine()


def instruction_sets(root: Path = ROOT) -> list[str]:
    """Returns the instruction sets of interest that the processor has."""
    flags = (cpu_field("flags", root) or cpu_field("Features", root)).split()
    return [name for name in INSTRUCTION_SETS if name in flags]


def cpu_field(name: str, root: Path = ROOT) -> str:
    """Returns a field of the first processor in /proc/cpuinfo, or an empty string."""
    lines = (read(root / "proc/cpuinfo") or "").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def installed(package: str) -> str | None:
    """Returns the installed version of `package`, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def read(path: Path) -> str | None:
    """Returns a file's text without the space around it, or None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Names the settings that changed between two of `clocks`: not temperatures, not clocks."""
    found = []
    for group in ("cpu", "devices"):
        old, new = before.get(group), after.get(group)
        if not isinstance(old, Mapping) or not isinstance(new, Mapping):
            continue
        for name in old:
            for key in ("governor", "min_mhz", "max_mhz"):
                was, now = old[name].get(key), new.get(name, {}).get(key)
                if was != now:
                    found.append(f"{name}: {key} was {was}, is {now}")
    if before.get("power_mode") != after.get("power_mode"):
        found.append(f"power mode was {before.get('power_mode')}, is {after.get('power_mode')}")
    return found


def _is_number(text: str) -> bool:
    return text.lstrip("-").isdigit()
