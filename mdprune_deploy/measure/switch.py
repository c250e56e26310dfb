"""How long a context of the native runtime takes to switch to another domain."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ..bundle import Bundle
from ..engines.native import Context, open_model
from .runner import Runner, make_inputs

LOOP = 2000
RUNS = 50


@dataclass(frozen=True)
class Switch:
    """Microseconds of a switch, the call from Python included.

    Attributes:
        engine: The engine, as its runner is written.
        loop_p50_us: Median where nothing runs in between.
        loop_p99_us: 99th percentile of the same.
        after_run_p50_us: Median after a run: what the switch reads has left the near caches.
        after_run_p99_us: 99th percentile of the same.
    """

    engine: str
    loop_p50_us: float
    loop_p99_us: float
    after_run_p50_us: float
    after_run_p99_us: float


def measure(bundle: Bundle, domains: list[str], runner: Runner, threads: int) -> Switch:
    """Switches one context between domains, in turn.

    Args:
        bundle: A bundle with the native target.
        domains: At least two domains.
        runner: The native engine and where it computes.
        threads: Threads that one run uses.
    """
    model = open_model(bundle.root)
    context = runner.context(bundle, domains[0], threads)
    numbers = [model.find(name) for name in domains]
    inputs = [make_inputs(bundle.manifest.models[name].inputs, seed=0) for name in domains]
    outputs = [
        [np.empty(shape, np.float32) for shape in model.shapes(number, "output")]
        for number in numbers
    ]
    loop = [_select(context, numbers[index % len(numbers)]) for index in range(1, LOOP + 1)]
    after = []
    for index in range(RUNS * len(numbers)):
        at = index % len(numbers)
        after.append(_select(context, numbers[at]))
        context.run(1, inputs[at], outputs[at])
    figures = (*np.percentile(loop, [50, 99]).tolist(), *np.percentile(after, [50, 99]).tolist())
    return Switch(str(runner), *figures)


def _select(context: Context, number: int) -> float:
    begin = time.perf_counter()
    context.select(number)
    return (time.perf_counter() - begin) * 1e6
