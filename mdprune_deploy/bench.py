"""Times the domains of a bundle, all of them in turn, so that drift of the machine meets all alike.

A turn is two calls: the first comes after the other domains' turns and brings the domain's own
weights into the cache, as a switch of domains does; the second is what a loop over one model does.
The order shifts by one from round to round. With a checkpoint, every domain's dense network (its
parameters, no masks) takes its turns as well.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .bundle import read_bundle
from .checkpoint import Checkpoint
from .domain import Domain
from .emit.onnx_target import OnnxTarget
from .engines import Array, Engine
from .engines.base import DeviceEngine
from .engines.ort import OnnxRuntimeEngine
from .errors import UsageError
from .manifest import Manifest
from .measure.runner import Runner, device_of, make_inputs, precision_of
from .passes.bind import bind
from .passes.lower import fold_batch_norms, to_float32
from .verify import ARTIFACT_TOLERANCE, check, deviation, reference
from .verify import Error as Deviation

DEFAULT_ENGINE = "native"
DENSE = "dense"
"""Name of the only domain of a checkpoint that `unmasked` returns."""
WARM_UP = 2
"""Rounds that do not count."""
MIN_ROUNDS = 20
RUNS = 200
SECONDS = 10.0


@dataclass(frozen=True)
class Timing:
    """Latency of one call at batch 1, in milliseconds.

    Attributes:
        domain: The domain.
        engine: The engine.
        device: Where it computes.
        precision: In which type it computes.
        variant: Which variant of the bundle ran.
        note: Why it was not the variant that the bundle was optimised for, or None.
        threads: Threads that one call used.
        rounds: Timed calls.
        macs: Multiply-accumulates of what ran.
        macs_dense: Multiply-accumulates of the domain's dense network.
        p50_ms: Median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        min_ms: The fastest call.
        max_ms: The slowest call.
        mean_ms: The mean.
        cv: Coefficient of variation: standard deviation over mean.
        drift: Median of the last quarter of the calls over that of the first.
        per_second: Calls in a second, one after the other: 1000 over the mean.
        first_p50_ms: Median of the first call after other domains' turns.
        host_to_device_p50_ms: Median of copying the inputs to the device; None on the processor.
        compute_p50_ms: Median of what the device computes; None on the processor.
        device_to_host_p50_ms: Median of copying the outputs back; None on the processor.
        dense_p50_ms: Median of the domain's dense network, batch norms folded, in the same run, as
            ONNX Runtime runs it by default; None without one.
        ratio: `p50_ms / dense_p50_ms`.
        percentiles_ms: The 0th to the 100th percentile: 101 numbers.
    """

    domain: str
    engine: str
    device: str
    precision: str
    variant: str
    note: str | None
    threads: int
    rounds: int
    macs: int
    macs_dense: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    mean_ms: float
    cv: float
    drift: float
    per_second: float
    first_p50_ms: float
    host_to_device_p50_ms: float | None = None
    compute_p50_ms: float | None = None
    device_to_host_p50_ms: float | None = None
    dense_p50_ms: float | None = None
    ratio: float | None = None
    percentiles_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Samples:
    """Seconds of every turn: of its first call, of its second, and of the second's phases."""

    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)


def bench(
    bundle_dir: str | Path,
    domains: Sequence[str] = (),
    engine: str | Sequence[Runner] = DEFAULT_ENGINE,
    threads: int = 1,
    *,
    against: Checkpoint | None = None,
    runs: int = RUNS,
    seconds: float = SECONDS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Times domains of a bundle.

    Args:
        bundle_dir: The bundle.
        domains: The domains; empty for all.
        engine: The engine, or several that are timed in the same run.
        threads: Threads that one call uses.
        against: A checkpoint whose dense networks are timed in the same run.
        runs: Timed calls of each domain.
        seconds: About how long to time each domain at most; at least 20 calls are timed.
        seed: Seed of the inputs.
        progress: Told the rounds done and the rounds there are.

    Returns:
        One timing per engine and domain.

    Raises:
        BackendUnavailableError: The engine is not here.
        BundleError: The bundle cannot be read.
        UsageError: A domain, the engine or a number is wrong.
        VerificationError: The dense network that was built is not the checkpoint's.
    """
    if not 0 < seconds < float("inf"):
        raise UsageError(f"seconds is {seconds}, a number above 0 is needed")
    if runs < 1:
        raise UsageError(f"runs is {runs}, at least 1 is needed")
    runners = [Runner.parse(engine)] if isinstance(engine, str) else engine
    bundle = read_bundle(bundle_dir)
    names = list(domains or bundle.manifest.models)
    engines = [runner.load(bundle, name, threads) for runner in runners for name in names]
    with tempfile.TemporaryDirectory() as folder:
        dense = [] if against is None else [
            _checked_dense(against, name, Path(folder) / str(index), threads, seed)
            for index, name in enumerate(names)
        ]  # fmt: skip
        calls = [_Call(runner, seed) for runner in [*engines, *dense]]
        samples = time_in_turn(calls, runs, seconds, progress)
    timings = [
        timing_of(loaded, bundle.manifest, taken)
        for loaded, taken in zip(engines, samples, strict=False)
    ]
    if not dense:
        return timings
    medians = [float(np.median(taken.second)) * 1e3 for taken in samples[len(engines) :]]
    return [
        dataclasses.replace(timing, dense_p50_ms=median, ratio=timing.p50_ms / median)
        for timing, median in zip(timings, medians * len(runners), strict=True)
    ]


class _Call:
    """Calls an engine with inputs of its own."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine = engine
        self._inputs = make_inputs(engine.inputs, seed)

    def __call__(self) -> None:
        self._engine(*self._inputs)

    def phases(self) -> dict[str, float]:
        """Returns where the last call's time went, or nothing."""
        return self._engine.phases() if isinstance(self._engine, DeviceEngine) else {}


def unmasked(checkpoint: Checkpoint, domain: str) -> Checkpoint:
    """Returns a checkpoint whose only domain, `dense`, has a domain's parameters and no masks."""
    own = checkpoint.domains[domain]
    return dataclasses.replace(checkpoint, domains={DENSE: Domain({}, own.state, own.labels)})


def dense_engine(dense: Checkpoint, folder: Path, threads: int) -> OnnxRuntimeEngine:
    """Opens the network of `unmasked` as a stock ONNX model, batch norms folded.

    Args:
        dense: What `unmasked` returns.
        folder: A directory to make for the model.
        threads: Threads that one call uses.
    """
    model = bind(dense, DENSE)
    fold_batch_norms(model)
    folder.mkdir()
    with OnnxTarget(folder, [DENSE], None) as target:
        entry = target.add(DENSE, to_float32(model))
    return OnnxRuntimeEngine(folder, DENSE, entry, threads, "portable")


def _checked_dense(
    checkpoint: Checkpoint, domain: str, folder: Path, threads: int, seed: int
) -> OnnxRuntimeEngine:
    if domain not in checkpoint.domains:
        raise UsageError(f"the checkpoint has no domain {domain!r}: the bundle is not made from it")
    dense = unmasked(checkpoint, domain)
    engine = dense_engine(dense, folder, threads)
    inputs = make_inputs(engine.inputs, seed)
    expected, actual = reference(dense, DENSE)(*inputs), engine(*inputs)
    pairs = zip(_listed(expected), _listed(actual), strict=True)
    worst = max((deviation(r, y) for r, y in pairs), key=lambda pair: pair[1])
    error = Deviation(*worst, "random")
    check(domain, "the dense ONNX model", error, ARTIFACT_TOLERANCE, None)
    return engine


def _listed(outputs: Array | list[Array]) -> list[Array]:
    return outputs if isinstance(outputs, list) else [outputs]


def time_in_turn(
    calls: Sequence[Callable[[], object]],
    runs: int,
    seconds: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[Samples]:
    """Returns the samples of every entry of `calls`: `runs` of them, fewer where time runs out."""
    begin = time.perf_counter()
    for _ in range(WARM_UP):
        _round(calls, 0)
    one = (time.perf_counter() - begin) / WARM_UP
    rounds = min(runs, max(MIN_ROUNDS, int(seconds * len(calls) / one)))
    samples = [Samples() for _ in calls]
    for index in range(rounds):
        if progress is not None:
            progress(index, rounds)
        for position, first, second, phases in _round(calls, index):
            samples[position].first.append(first)
            samples[position].second.append(second)
            samples[position].phases.append(phases)
    return samples


def _round(
    calls: Sequence[Callable[[], object]], start: int
) -> list[tuple[int, float, float, dict[str, float]]]:
    found = []
    for step in range(len(calls)):
        position = (start + step) % len(calls)
        call = calls[position]
        begin = time.perf_counter()
        call()
        middle = time.perf_counter()
        call()
        end = time.perf_counter()
        phases = call.phases() if isinstance(call, _Call) else {}
        found.append((position, middle - begin, end - middle, phases))
    return found


def timing_of(engine: Engine, manifest: Manifest, samples: Samples) -> Timing:
    """Returns the figures of an engine's samples."""
    figures = manifest.report.domains[engine.domain]
    native = manifest.models[engine.domain].native
    own = native is not None and engine.name == "native"
    taken = np.asarray(samples.second) * 1e3
    percentiles = np.percentile(taken, np.arange(101))
    quarter = max(1, len(taken) // 4)
    phases = {
        f"{phase}_p50_ms": float(np.median([found[phase] for found in samples.phases])) * 1e3
        for phase in ("host_to_device", "compute", "device_to_host")
        if all(phase in found for found in samples.phases)
    }
    return Timing(
        domain=engine.domain,
        engine=engine.name,
        device=device_of(engine),
        precision=precision_of(engine),
        variant=engine.variant,
        note=engine.note,
        threads=engine.threads,
        rounds=len(taken),
        macs=native.macs_emitted if native is not None and own else figures.macs_emitted,
        macs_dense=figures.macs_dense,
        p50_ms=float(percentiles[50]),
        p90_ms=float(percentiles[90]),
        p99_ms=float(percentiles[99]),
        min_ms=float(percentiles[0]),
        max_ms=float(percentiles[100]),
        mean_ms=float(taken.mean()),
        cv=float(taken.std() / taken.mean()),
        drift=float(np.median(taken[-quarter:]) / np.median(taken[:quarter])),
        per_second=float(1e3 / taken.mean()),
        first_p50_ms=float(np.median(samples.first)) * 1e3,
        percentiles_ms=tuple(percentiles.tolist()),
        **phases,
    )


def to_json(timings: Sequence[Timing]) -> dict[str, object]:
    """Returns the timings as plain JSON types; `domains` has those of the first engine.

    The percentiles stand in `runs`, which has all engines.
    """
    runs = [dataclasses.asdict(timing) for timing in timings]
    domains: dict[str, object] = {}
    for row in runs:
        own = {key: row[key] for key in row if key not in ("domain", "percentiles_ms")}
        domains.setdefault(row["domain"], own)
    return {"version": 1, "domains": domains, "runs": runs}
