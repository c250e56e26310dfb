"""Where figures were taken: the processor, the versions and the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "mdprune-deploy",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "openvino",
    "torch",
    "torch-pruning",
)
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "amx_tile", "asimd", "sve")


def environment() -> dict[str, object]:
    """Returns the machine, the versions and the commit as JSON types; names no host."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "instruction_sets": instruction_sets(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "commit": commit(),
    }


def processor() -> str:
    """Returns the processor's model name, or its architecture where there is none."""
    return cpu_field("model name") or platform.machine()


def instruction_sets() -> list[str]:
    """Returns the instruction sets of interest that the processor has."""
    flags = (cpu_field("flags") or cpu_field("Features")).split()
    return [name for name in INSTRUCTION_SETS if name in flags]


def cpu_field(name: str) -> str:
    """Returns a field of the first processor in /proc/cpuinfo, or an empty string."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def installed(package: str) -> str | None:
    """Returns the installed version of `package`, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """Returns the commit, with `-dirty` where files differ from it, or `unknown`."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    root = Path(__file__).parent
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
