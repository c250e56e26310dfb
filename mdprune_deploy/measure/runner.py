"""What runs the domains that are measured, as a user names it, and inputs for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..engines import ENGINES, Array, Engine, load
from ..engines.native import Context, open_model
from ..errors import UsageError
from ..manifest import TensorSpec

NATIVE = "native"
HOST = "cpu"
FLOAT32, HALF = "float32", "float16"


@dataclass(frozen=True)
class Runner:
    """An engine on a device in a precision; None is the engine's own choice.

    Attributes:
        engine: The engine.
        device: `cpu`, `cuda`, or one of several, `cuda:1`.
        precision: `float32` or `float16`.
    """

    engine: str
    device: str | None = None
    precision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Runner:
        """Reads `ENGINE[:DEVICE[:PRECISION]]`.

        Raises:
            UsageError: The text has other parts, or there is no such engine.
        """
        engine, *rest = text.split(":")
        if len(rest) > 1 and rest[1].isdigit():
            rest[:2] = [":".join(rest[:2])]
        if len(rest) > 2 or "" in rest:
            raise UsageError(f"engine {text!r}: ENGINE[:DEVICE[:PRECISION]] is needed")
        if engine not in ENGINES:
            raise UsageError(f"unknown engine {engine!r}; there are {', '.join(ENGINES)}")
        return cls(engine, *rest)

    def __str__(self) -> str:
        return ":".join(part for part in (self.engine, self.device, self.precision) if part)

    def filled(self, device: str | None, precision: str | None) -> Runner:
        """Returns it with what it leaves out; another engine than the native one has its own."""
        if self.engine != NATIVE:
            return self
        return Runner(self.engine, self.device or device, self.precision or precision)

    @property
    def on_host(self) -> bool:
        """Whether it computes on the processor."""
        return self.device in (None, HOST) and self.engine != "tensorrt"

    def load(self, bundle: Bundle, domain: str, threads: int) -> Engine:
        """Loads a domain."""
        chosen = {"device": self.device, "precision": self.precision}
        options: dict[str, Any] = {key: value for key, value in chosen.items() if value}
        return load(bundle, domain, self.engine, threads, **options)

    def context(
        self, bundle: Bundle, domain: str, threads: int, *, profile: bool = False
    ) -> Context:
        """Makes a context of the native runtime, which can switch and measure operators."""
        return Context(
            open_model(bundle.root),
            domain,
            threads,
            None,
            profile=profile,
            device=self.device or HOST,
            precision=self.precision or FLOAT32,
        )


def device_of(engine: Engine) -> str:
    """Returns where an engine computes."""
    return str(getattr(engine, "device", HOST))


def precision_of(engine: Engine) -> str:
    """Returns in which type an engine computes."""
    return str(getattr(engine, "precision", FLOAT32))


def make_inputs(specs: Sequence[TensorSpec], seed: int) -> list[Array]:
    """Makes one input each, batch 1: normal random numbers, zeros where the type is no float."""
    rng = np.random.default_rng(seed)
    inputs: list[Array] = []
    for spec in specs:
        shape = [1 if size is None else size for size in spec.shape]
        floating = np.dtype(spec.dtype).kind == "f"
        inputs.append(
            (rng.standard_normal(shape) if floating else np.zeros(shape)).astype(spec.dtype)
        )
    return inputs
