"""The native target without its runtime: plans are run by the tests' interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from native_interpreter import Interpreter

from mdprune_deploy.emit.native.plan import read_plan
from mdprune_deploy.manifest import DomainModel


class InterpretedEngine:
    """Stands in for `NativeEngine`."""

    def __init__(self, root: Path, domain: str, model: DomainModel, threads: int = 1) -> None:
        assert model.native is not None
        plan = root / model.native.plan
        self._run = Interpreter(read_plan(plan), plan.parent, np.float64)

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(y, dtype=np.float32) for y in self._run(*inputs)]
