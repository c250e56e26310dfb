"""All that `mdprune bench` measures, as one JSON document; `docs/benchmarking.md` specifies it."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import bench as benching
from ..bench import RUNS, SECONDS, Timing
from ..bundle import Bundle, read_bundle
from ..checkpoint import Checkpoint
from . import machine, memory, operators, power, switch
from .operators import Rate
from .runner import HOST, NATIVE, Runner, device_of, make_inputs

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        runners: The engines; the first one's figures are `domains`.
        domains: The domains; empty for all.
        threads: Threads that one call uses.
        runs: Timed calls of each domain and engine.
        seconds: About how long to time each at most.
        latency_only: Leave out memory, energy, switching and operators.
        peak_gmacs: Multiply-accumulates per second for the floors, in 1e9; None to measure.
        bandwidth_gbs: Bytes per second for the floors, in 1e9; None to measure.
    """

    runners: tuple[Runner, ...]
    domains: tuple[str, ...] = ()
    threads: int = 1
    runs: int = RUNS
    seconds: float = SECONDS
    latency_only: bool = False
    peak_gmacs: float | None = None
    bandwidth_gbs: float | None = None


def measure(
    bundle_dir: Path,
    settings: Settings,
    against: Checkpoint | None = None,
    progress: Progress = lambda what, done, total: None,
) -> tuple[list[Timing], dict[str, Any]]:
    """Measures a bundle.

    Args:
        bundle_dir: The bundle.
        settings: What to measure.
        against: A checkpoint whose dense networks are timed in the same run.
        progress: Told what begins, how much of it is done, and how much there is.

    Returns:
        The timings, and the document.

    Raises:
        Error: As `bench`.
    """
    bundle = read_bundle(bundle_dir)
    names = list(settings.domains or bundle.manifest.models)
    for runner in settings.runners:  # what cannot run is said before anything is measured
        runner.load(bundle, names[0], settings.threads)
    full = not settings.latency_only
    # First, while this process has nothing of the bundle mapped.
    taken = _memory(bundle, settings, names, progress) if full else None
    before = machine.clocks()
    timings = benching.bench(
        bundle_dir, names, settings.runners, settings.threads, against=against,
        runs=settings.runs, seconds=settings.seconds,
        progress=lambda done, total: progress("calls", done, total),
    )  # fmt: skip
    after = machine.clocks()
    document: dict[str, Any] = benching.to_json(timings)
    document |= {
        "bundle": bundle.root.resolve().name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": {
            "engines": [str(runner) for runner in settings.runners],
            "threads": settings.threads,
            "runs": settings.runs,
            "seconds": settings.seconds,
        },
        "machine": machine.facts(),
        "clocks": {
            "before": before, "after": after, "changed": machine.differences(before, after),
        },
        "memory": taken,
        "energy": _energy(bundle, settings, names, progress) if full else None,
        "switch": _switch(bundle, settings, names) if full else [],
        "operators": _operators(bundle, settings, names, progress) if full else [],
    }  # fmt: skip
    return timings, document


def _memory(
    bundle: Bundle, settings: Settings, names: Sequence[str], progress: Progress
) -> dict[str, Any]:
    setups = [str(runner) for runner in settings.runners]
    if any(runner.on_host for runner in _natives(settings)):
        setups.append(memory.ONE_CONTEXT)
    series = []
    for number, setup in enumerate(setups):
        progress("memory", number, len(setups))
        series.append(memory.measure(bundle.root, setup, settings.threads, names))
    native = bundle.manifest.models[names[0]].native
    return {
        "series": [dataclasses.asdict(found) for found in series],
        "copies": dataclasses.asdict(memory.copies(bundle.manifest, names)),
        "arena": None if native is None else _largest_arena(bundle),
    }


def _largest_arena(bundle: Bundle) -> int:
    return max(m.native.arena for m in bundle.manifest.models.values() if m.native is not None)


def _energy(
    bundle: Bundle, settings: Settings, names: Sequence[str], progress: Progress
) -> list[dict[str, Any]]:
    """Returns an entry per engine: its domains' energy, or why there is none."""
    found = []
    for runner in settings.runners:
        engines = [runner.load(bundle, name, settings.threads) for name in names]
        meter, why = power.find_meter(device_of(engines[0]) != HOST)
        entry: dict[str, Any] = {"engine": str(runner), "note": why or None, "domains": {}}
        if meter is not None:
            idle = power.idle_watts(meter, power.IDLE_SECONDS)
            for number, engine in enumerate(engines):
                progress("energy", number, len(engines))
                inputs = make_inputs(engine.inputs, seed=0)
                call = functools.partial(engine, *inputs)
                spent = power.energy_of(meter, call, idle, power.LOOP_SECONDS)
                entry["domains"][engine.domain] = dataclasses.asdict(spent)
        found.append(entry)
    return found


def _natives(settings: Settings) -> list[Runner]:
    """Returns the runners whose contexts can be looked into."""
    return [runner for runner in settings.runners if runner.engine == NATIVE]


def _switch(bundle: Bundle, settings: Settings, names: list[str]) -> list[dict[str, Any]]:
    if len(names) < 2:
        return []
    found = [switch.measure(bundle, names, r, settings.threads) for r in _natives(settings)]
    return [dataclasses.asdict(figures) for figures in found]


def _operators(
    bundle: Bundle, settings: Settings, names: Sequence[str], progress: Progress
) -> list[dict[str, Any]]:
    peak = bandwidth = None
    if settings.peak_gmacs is not None:
        peak = Rate(settings.peak_gmacs * 1e9, "stated")
    if settings.bandwidth_gbs is not None:
        bandwidth = Rate(settings.bandwidth_gbs * 1e9, "stated")
    found = []
    for runner in _natives(settings):
        for number, name in enumerate(names):
            progress("operators", number, len(names))
            found.append(operators.profile(bundle, name, runner, settings.threads, peak, bandwidth))
    return [dataclasses.asdict(profile) for profile in found]
