"""Times the domains of a bundle, all of them in turn, so that drift of the machine meets all alike.

Every turn is one call that is not timed, which brings the domain's own weights into the cache as a
loop over one model does, and one that is. The order shifts by one from round to round. With a
checkpoint, every domain's dense network (its parameters, no masks) takes its turns as well.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .bundle import read_bundle
from .checkpoint import Checkpoint
from .domain import Domain
from .emit.onnx_target import OnnxTarget
from .engines import Array, Engine, load
from .engines.ort import OnnxRuntimeEngine
from .errors import UsageError
from .manifest import Manifest, TensorSpec
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


@dataclass(frozen=True)
class Timing:
    """Latency of one call at batch 1.

    Attributes:
        domain: The domain.
        engine: The engine.
        variant: Which variant of the bundle ran.
        note: Why it was not the variant that the bundle was optimised for, or None.
        threads: Threads that one call used.
        rounds: Timed calls.
        macs: Multiply-accumulates of what ran.
        macs_dense: Multiply-accumulates of the domain's dense network.
        p50_ms: Median in milliseconds.
        p90_ms: 90th percentile.
        min_ms: The fastest call.
        dense_p50_ms: Median of the domain's dense network, batch norms folded, in the same run, as
            ONNX Runtime runs it by default; None without one.
        ratio: `p50_ms / dense_p50_ms`.
    """

    domain: str
    engine: str
    variant: str
    note: str | None
    threads: int
    rounds: int
    macs: int
    macs_dense: int
    p50_ms: float
    p90_ms: float
    min_ms: float
    dense_p50_ms: float | None = None
    ratio: float | None = None


def bench(
    bundle_dir: str | Path,
    domains: Sequence[str] = (),
    engine: str = DEFAULT_ENGINE,
    threads: int = 1,
    *,
    against: Checkpoint | None = None,
    seconds: float = 5.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Times domains of a bundle.

    Args:
        bundle_dir: The bundle.
        domains: The domains; empty for all.
        engine: The engine.
        threads: Threads that one call uses.
        against: A checkpoint whose dense networks are timed in the same run.
        seconds: About how long to time all of them together; at least 20 rounds are timed.
        seed: Seed of the inputs.
        progress: Told the rounds done and the rounds there are.

    Returns:
        One timing per domain.

    Raises:
        BackendUnavailableError: The engine is not here.
        BundleError: The bundle cannot be read.
        UsageError: A domain, the engine or a number is wrong.
        VerificationError: The dense network that was built is not the checkpoint's.
    """
    if not 0 < seconds < float("inf"):
        raise UsageError(f"seconds is {seconds}, a number above 0 is needed")
    bundle = read_bundle(bundle_dir)
    names = list(domains or bundle.manifest.models)
    engines = [load(bundle, name, engine, threads) for name in names]
    with tempfile.TemporaryDirectory() as folder:
        dense = [] if against is None else [
            _checked_dense(against, name, Path(folder) / str(index), threads, seed)
            for index, name in enumerate(names)
        ]  # fmt: skip
        calls = [_call(runner, seed) for runner in [*engines, *dense]]
        times = _time_in_turn(calls, seconds, progress)
    timings = [
        _timing(runner, bundle.manifest, taken)
        for runner, taken in zip(engines, times, strict=False)
    ]
    return [
        dataclasses.replace(timing, dense_p50_ms=median, ratio=timing.p50_ms / median)
        for timing, median in zip(timings, map(_median_ms, times[len(names) :]), strict=True)
    ] if dense else timings  # fmt: skip


def _call(engine: Engine, seed: int) -> Callable[[], object]:
    inputs = make_inputs(engine.inputs, seed)
    return lambda: engine(*inputs)


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


def _time_in_turn(
    calls: Sequence[Callable[[], object]],
    seconds: float,
    progress: Callable[[int, int], None] | None,
) -> list[list[float]]:
    """Returns seconds of every timed call, per entry of `calls`."""
    begin = time.perf_counter()
    for _ in range(WARM_UP):
        _round(calls, 0)
    one = (time.perf_counter() - begin) / WARM_UP
    rounds = max(MIN_ROUNDS, int(seconds / one))
    times: list[list[float]] = [[] for _ in calls]
    for index in range(rounds):
        if progress is not None:
            progress(index, rounds)
        for position, taken in _round(calls, index):
            times[position].append(taken)
    return times


def _round(calls: Sequence[Callable[[], object]], start: int) -> list[tuple[int, float]]:
    found = []
    for step in range(len(calls)):
        position = (start + step) % len(calls)
        call = calls[position]
        call()
        begin = time.perf_counter()
        call()
        found.append((position, time.perf_counter() - begin))
    return found


def _median_ms(seconds: Sequence[float]) -> float:
    return float(np.median(seconds)) * 1e3


def _timing(engine: Engine, manifest: Manifest, seconds: Sequence[float]) -> Timing:
    figures = manifest.report.domains[engine.domain]
    native = manifest.models[engine.domain].native
    own = native is not None and engine.name == "native"
    return Timing(
        domain=engine.domain,
        engine=engine.name,
        variant=engine.variant,
        note=engine.note,
        threads=engine.threads,
        rounds=len(seconds),
        macs=native.macs_emitted if native is not None and own else figures.macs_emitted,
        macs_dense=figures.macs_dense,
        p50_ms=_median_ms(seconds),
        p90_ms=float(np.percentile(seconds, 90)) * 1e3,
        min_ms=min(seconds) * 1e3,
    )


def to_json(timings: Sequence[Timing]) -> dict[str, object]:
    """Returns the timings as plain JSON types."""
    rows = [dataclasses.asdict(timing) for timing in timings]
    return {"version": 1, "domains": {row.pop("domain"): row for row in rows}}
