"""Time to switch a context of the native runtime between two domains.

`back to back` alternates between them; `between runs` runs the domain after each switch, so that
what a switch reads has left the near caches. `call` is a function of the library that does nothing:
what Python takes of the times. Run `python -m benchmarks.switch BUNDLE`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.engines.native import Context, open_model

from .harness import save, show


def measure(bundle: Path, count: int, runs: int) -> dict[str, object]:
    """Returns medians and the 99th percentile in microseconds."""
    names = list(read_bundle(bundle).manifest.models)
    if len(names) < 2:
        raise SystemExit(f"{bundle} has one domain, two are needed")
    model = open_model(bundle)
    context = Context(model, names[0], 1, None)
    inputs, outputs = (
        [[np.ones(shape, np.float32) for shape in model.shapes(d, side)] for d in range(2)]
        for side in ("input", "output")
    )
    call = seconds_of(lambda _: model.library.mdp_context_domain(context.handle), count)
    alternating = seconds_of(context.select, count)
    context.select(0)
    between = []
    for index in range(runs):
        context.run(1, inputs[index % 2], outputs[index % 2])
        between += seconds_of(context.select, 1, first=index + 1)
    return {
        "case": bundle.name,
        "back to back us": statistics.median(alternating) * 1e6,
        "99th percentile us": float(np.percentile(alternating, 99)) * 1e6,
        "between runs us": statistics.median(between) * 1e6,
        "call us": statistics.median(call) * 1e6,
    }


def seconds_of(call: Callable[[int], object], count: int, first: int = 0) -> list[float]:
    """Times `call(0)`, `call(1)`, `call(0)` and so on, one by one."""
    seconds = []
    for index in range(first, first + count):
        begin = time.perf_counter()
        call(index % 2)
        seconds.append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="directory written by mdprune compile")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=200)
    arguments = parser.parse_args()
    rows = [measure(arguments.bundle, arguments.count, arguments.runs)]
    show("Switching between two domains", rows)
    settings = {"count": arguments.count, "runs": arguments.runs}
    print(save("switch", settings, rows))


if __name__ == "__main__":
    main()
