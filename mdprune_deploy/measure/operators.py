"""Time of every operator beside the least that it could take.

floor = max(MACs / peak, bytes / bandwidth), where the bytes are what the operator has to read and
write: the input channels that it uses, its weights, its outputs, each once. Peak and bandwidth are
those of the best operator, so no operator is below its floor; on the processor those of a probe (a
matrix product and a copy, with as many threads) where that is larger; or what the user states. A
floor is of arithmetic and memory alone: activations that are still in a cache cost less than
`bytes` says, packing costs more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..bundle import Bundle
from ..emit.native.operators import Convolution, Depthwise, MatMul, Operator
from ..emit.native.plan import Plan, read_plan
from ..engines.native import OperatorTime
from .runner import HALF, Runner, make_inputs

PROBE_ORDER = 1024
"""Rows and columns of the probe's matrices."""
PROBE_BYTES = 64 << 20
PROBES = 10
BEST = "the best operator of the network"
WARM_UP = 3
RUNS = 50


@dataclass(frozen=True)
class Work:
    """What an operator has to do at batch 1: multiply-accumulates, and bytes read and written."""

    macs: int
    bytes: int


@dataclass(frozen=True)
class OperatorFigures:
    """An operator's time and floor in microseconds.

    Attributes:
        name: The ONNX node that it came from.
        kind: What it is, such as `Convolution`.
        us: Median of its time.
        floor_us: The least that it could take.
        bound: Which of the two the floor is: `compute` or `memory`.
        macs: Multiply-accumulates.
        bytes: Bytes that it has to read and write.
    """

    name: str
    kind: str
    us: float
    floor_us: float
    bound: str
    macs: int
    bytes: int


@dataclass(frozen=True)
class Rate:
    """A rate per second and where it is from."""

    per_second: float
    source: str


@dataclass(frozen=True)
class Profile:
    """The operators of one domain in the native engine.

    Attributes:
        engine: The engine, as its runner is written.
        domain: The domain.
        isa: What ran: an instruction set, or a GPU and a precision.
        runs: Runs of which the times are medians.
        peak: Multiply-accumulates per second.
        bandwidth: Bytes per second.
        operators: The operators, in the order that they run.
    """

    engine: str
    domain: str
    isa: str
    runs: int
    peak: Rate
    bandwidth: Rate
    operators: tuple[OperatorFigures, ...]


def work_of(operator: Operator, plan: Plan, size: int = 4) -> Work:
    """Counts what an operator has to do, with elements of `size` bytes."""

    def elements(tensors: Sequence[int | None]) -> int:
        return sum(plan.tensors[number].elements for number in tensors if number is not None)

    if isinstance(operator, Convolution):
        x, y = plan.tensors[operator.x], plan.tensors[operator.y]
        used = x.shape[-1] if operator.index is None else elements([operator.index])
        taps, filters = int(np.prod(operator.kernel)), operator.filters
        weights = taps * filters * used // operator.groups
        # Channels behind the last filter are not counted: nobody reads them.
        positions = (x.elements // x.shape[-1], y.elements // y.shape[-1])
        maps = len(operator.writes()) + (operator.residual is not None)
        moved = positions[0] * used + weights + maps * positions[1] * filters
        return Work(positions[0 if operator.transposed else 1] * weights, size * moved)
    moved = elements([*operator.reads(), *operator.writes()])
    macs = 0
    if isinstance(operator, Depthwise):
        macs = plan.tensors[operator.y].elements * int(np.prod(operator.kernel))
    elif isinstance(operator, MatMul):
        macs = plan.tensors[operator.y].elements * plan.tensors[operator.a].shape[-1]
    return Work(macs, size * moved)


def profile(
    bundle: Bundle,
    domain: str,
    runner: Runner,
    threads: int,
    peak: Rate | None = None,
    bandwidth: Rate | None = None,
) -> Profile:
    """Times the operators of a domain in the native engine.

    Args:
        bundle: A bundle with the native target.
        domain: The domain.
        runner: The native engine and where it computes.
        threads: Threads that one call uses.
        peak: Multiply-accumulates per second that the user states; None for a probe's.
        bandwidth: Bytes per second that the user states; None for a probe's.
    """
    files = bundle.manifest.models[domain].native
    assert files is not None
    plan = read_plan(Path(bundle.root) / files.plan)
    context = runner.context(bundle, domain, threads, profile=True)
    inputs = make_inputs(bundle.manifest.models[domain].inputs, seed=0)
    outputs = [np.empty(shape, np.float32) for shape in context.output_shapes]
    rounds: list[list[OperatorTime]] = []
    for _ in range(WARM_UP + RUNS):
        context.run(1, inputs, outputs)
        rounds.append(context.profile())
    medians = [
        statistics.median(entry.nanoseconds for entry in entries) / 1e9
        for entries in zip(*rounds[WARM_UP:], strict=True)
    ]
    size = 2 if runner.precision == HALF else 4
    works = [work_of(operator, plan, size) for operator in plan.operators]
    pairs = list(zip(works, medians, strict=True))
    peak = peak or Rate(max(w.macs / s for w, s in pairs if s), BEST)
    bandwidth = bandwidth or Rate(max(w.bytes / s for w, s in pairs if s), BEST)
    if runner.on_host:
        peak, bandwidth = (
            _larger(peak, probe_peak, threads),
            _larger(bandwidth, probe_bandwidth, threads),
        )
    return Profile(
        str(runner), domain, context.isa, RUNS, peak, bandwidth,
        tuple(
            _figures(entry, work, seconds, peak, bandwidth)
            for entry, (work, seconds) in zip(rounds[0], pairs, strict=True)
        ),
    )  # fmt: skip


def _figures(
    entry: OperatorTime, work: Work, seconds: float, peak: Rate, bandwidth: Rate
) -> OperatorFigures:
    compute, memory = work.macs / peak.per_second, work.bytes / bandwidth.per_second
    return OperatorFigures(
        name=entry.name,
        kind=entry.kind,
        us=seconds * 1e6,
        floor_us=max(compute, memory) * 1e6,
        bound="compute" if compute >= memory else "memory",
        macs=work.macs,
        bytes=work.bytes,
    )


def _larger(rate: Rate, probe: Callable[[int], Rate], threads: int) -> Rate:
    """Returns the larger of a rate and a probe's, or what the user states."""
    return max(rate, probe(threads), key=lambda r: r.per_second) if rate.source == BEST else rate


def probe_peak(threads: int) -> Rate:
    """Times a matrix product of PyTorch in float32."""
    a = torch.rand(PROBE_ORDER, PROBE_ORDER)
    out = torch.empty_like(a)
    seconds = _fastest(lambda: torch.mm(a, a, out=out), threads)
    return Rate(PROBE_ORDER**3 / seconds, f"a matrix product of order {PROBE_ORDER}, float32")


def probe_bandwidth(threads: int) -> Rate:
    """Times a copy, which reads and writes."""
    a = torch.zeros(PROBE_BYTES, dtype=torch.uint8)
    out = torch.ones_like(a)
    seconds = _fastest(lambda: out.copy_(a), threads)
    return Rate(2 * PROBE_BYTES / seconds, f"a copy of {PROBE_BYTES >> 20} MiB")


def _fastest(call: Callable[[], object], threads: int) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times = []
        for _ in range(PROBES):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return min(times)
    finally:
        torch.set_num_threads(before)
