"""Where figures were taken: the processor, the versions and the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from mdprune_deploy.measure.machine import installed, instruction_sets, processor

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


def commit() -> str:
    """Returns the commit, with `-dirty` where files differ from it, or `unknown`."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    root = Path(__file__).parent
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
