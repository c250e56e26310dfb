"""Holds what was compiled against the masked dense model in float64.

Twice: the narrowed graph itself in float64, where only exact rewrites agree, and the emitted files
in the engine that will run them. The inputs are random, large and constant; a dynamic batch runs
all of them at once, which also proves that the batch axis is free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .checkpoint import Checkpoint
from .errors import UsageError, VerificationError
from .evaluate import Array, evaluate
from .passes.bind import bind
from .passes.emit_graph import Origin
from .passes.lower import to_float32
from .passes.trace import example_feeds

GRAPH_TOLERANCE = 1e-9
"""Largest error of the graph in float64 relative to the largest output: rounding of reordered sums
of some thousand terms stays near 1e-13, a wrong channel is at 1e-3 or more."""
ARTIFACT_TOLERANCE = 1e-5
"""The contract's bound in float32."""
HALF_TOLERANCE = 5e-3
"""The bound in float16, on inputs of the size that networks are trained on."""
LARGE = 1e3
"""Scale of the large-magnitude input."""

Feeds = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """One input and what the masked dense model makes of it.

    Attributes:
        name: "random", "large" or "constant".
        feeds: Input arrays in float64 by name.
        expected: The reference's outputs.
    """

    name: str
    feeds: Feeds
    expected: tuple[Array, ...]


@dataclass(frozen=True)
class Error:
    """The largest deviation over all cases and outputs.

    Attributes:
        absolute: max |y - r|, of the case with the largest relative error.
        relative: max |y - r| / max |r|.
        case: Where it was found.
    """

    absolute: float = 0.0
    relative: float = 0.0
    case: str = ""


def reference(checkpoint: Checkpoint, domain: str) -> Callable[..., Array | list[Array]]:
    """Returns the definition of correct: the masked dense model of a domain in float64.

    Args:
        checkpoint: A checkpoint.
        domain: One of its domains.

    Returns:
        A callable from one array per input to the output, or a list of several outputs, float64.

    Raises:
        UsageError: The domain is unknown, or a call has the wrong number of inputs.
    """
    if domain not in checkpoint.domains:
        raise UsageError(
            f"unknown domain {domain!r}; the checkpoint has {', '.join(checkpoint.domains)}"
        )
    graph = bind(checkpoint, domain).graph
    names = [str(value.name) for value in graph.inputs]

    def run(*inputs: Array) -> Array | list[Array]:
        if len(inputs) != len(names):
            raise UsageError(f"the model takes {len(names)} inputs, {len(inputs)} were given")
        feeds = {
            name: as_float64(np.asarray(array)) for name, array in zip(names, inputs, strict=True)
        }
        outputs = evaluate(graph, feeds)
        return outputs[0] if len(outputs) == 1 else outputs

    return run


def as_float64(array: Array) -> Array:
    """Widens floating-point data; other data is passed on."""
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def cases(checkpoint: Checkpoint, domain: str, seed: int = 0) -> list[Case]:
    """Makes the inputs and runs the reference on them."""
    graph = bind(checkpoint, domain).graph
    inputs = _inputs(checkpoint, seed)
    if checkpoint.dynamic_batch:
        batches = [next(iter(feeds.values())).shape[0] for feeds in inputs.values()]
        stacked = {
            name: np.concatenate([feeds[name] for feeds in inputs.values()])
            for name in checkpoint.examples
        }
        outputs = evaluate(graph, stacked)
        if all(output.shape[:1] == (sum(batches),) for output in outputs):
            ends = np.cumsum(batches)[:-1].tolist()
            parts = zip(*(np.split(output, ends) for output in outputs), strict=True)
            return [
                Case(name, feeds, tuple(part))
                for (name, feeds), part in zip(inputs.items(), parts, strict=True)
            ]
    return [Case(name, feeds, tuple(evaluate(graph, feeds))) for name, feeds in inputs.items()]


def _inputs(checkpoint: Checkpoint, seed: int) -> dict[str, Feeds]:
    example = example_feeds(checkpoint)
    rng = np.random.default_rng(seed)

    def make(fill: Callable[[tuple[int, ...]], npt.NDArray[np.float64]]) -> Feeds:
        # Inputs that are not floating-point index something: only the example's are known valid.
        return {
            name: fill(array.shape).astype(np.float32).astype(np.float64)
            if array.dtype.kind == "f"
            else array
            for name, array in example.items()
        }

    return {
        "random": make(lambda shape: rng.normal(size=shape)),
        "large": make(lambda shape: rng.normal(scale=LARGE, size=shape)),
        "constant": make(np.ones),
    }


def largest_error(
    found: Sequence[Case], run: Callable[[Feeds], Sequence[Array]], *, batched: bool
) -> Error:
    """Returns the largest error of something that maps inputs to outputs.

    Args:
        found: The inputs and what is expected.
        run: Maps input arrays by name to the outputs in order.
        batched: Whether the cases may be run as one batch.
    """
    worst = Error()
    if batched:
        stacked = {
            name: np.concatenate([case.feeds[name] for case in found]) for name in found[0].feeds
        }
        ends = np.cumsum([case.expected[0].shape[0] for case in found])[:-1].tolist()
        answers = list(zip(*(np.split(y, ends) for y in run(stacked)), strict=True))
    else:
        answers = [tuple(run(case.feeds)) for case in found]
    for case, answer in zip(found, answers, strict=True):
        for expected, actual in zip(case.expected, answer, strict=True):
            absolute, relative = deviation(expected, actual)
            if not relative <= worst.relative:
                worst = Error(absolute, relative, case.name)
    return worst


def deviation(expected: Array, actual: Array) -> tuple[float, float]:
    """Returns max |y - r| and that over max |r|; infinite where shapes or finiteness differ."""
    if expected.shape != actual.shape:
        return float("inf"), float("inf")
    with np.errstate(invalid="ignore"):
        difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    finite = np.isfinite(expected)
    same = np.array_equal(expected[~finite], actual[~finite], equal_nan=True)
    if not same or not np.isfinite(actual[finite]).all():
        return float("inf"), float("inf")
    absolute = float(difference[finite].max(initial=0.0))
    scale = float(np.abs(expected[finite]).max(initial=0.0))
    if absolute == 0.0:
        return 0.0, 0.0
    return absolute, absolute / scale if scale else float("inf")


def can_batch(checkpoint: Checkpoint, found: Sequence[Case]) -> bool:
    """Tells whether all cases can run as one batch whose outputs split again."""
    batch = next(iter(checkpoint.examples.values())).shape[:1]
    return checkpoint.dynamic_batch and all(
        output.shape[:1] == batch for case in found for output in case.expected
    )


def check(domain: str, what: str, error: Error, tolerance: float, where: str | None) -> None:
    """Refuses an error above the tolerance.

    Raises:
        VerificationError: Names the domain, the artifact, the figures and the first node that
            differs.
    """
    if error.relative <= tolerance:
        return
    node = f"; the first node that differs is {where}" if where else ""
    raise VerificationError(
        f"domain {domain!r}: {what} differs from the reference: relative error "
        f"{error.relative:.3g} on the {error.case} input, allowed {tolerance:g}{node}"
    )


def first_difference(
    checkpoint: Checkpoint,
    domain: str,
    emitted: ir.Graph,
    origins: Mapping[str, Origin],
    feeds: Feeds,
    tolerance: float,
) -> str | None:
    """Returns the first emitted node whose value is not its part of the reference's value."""
    values: dict[str, Array] = {}
    evaluate(
        bind(checkpoint, domain).graph,
        feeds,
        observe=lambda value, array: values.update({str(value.name): array}),
    )
    found: list[str] = []

    def compare(value: ir.Value, array: Array) -> None:
        origin = origins.get(str(value.name))
        if found or origin is None or origin.value not in values:
            return
        expected = values[origin.value]
        for axis, indices in enumerate(origin.sets):
            if indices is not None:
                expected = np.take(expected, indices, axis=axis)
        if expected.dtype.kind == "f" and deviation(expected, array)[1] > tolerance:
            node = value.producer()
            found.append(f"{node.op_type} {node.name!r}" if node is not None else str(value.name))

    evaluate(emitted, feeds, observe=compare)
    return found[0] if found else None


def check_rounding(domain: str, what: str, error: Error, model: ir.Model, feeds: Feeds) -> None:
    """Refuses a float32 artifact that is farther off than the contract allows.

    Args:
        domain: The domain.
        what: The artifact.
        error: Its largest error.
        model: Its graph in float64, which was found exact.
        feeds: The inputs of the largest error.

    Raises:
        VerificationError: Names the domain, the artifact, the figures and the node that rounds.
    """
    if error.relative <= ARTIFACT_TOLERANCE:
        return
    raise VerificationError(
        f"domain {domain!r}: {what} differs from the reference: relative error "
        f"{error.relative:.3g} on the {error.case} input, allowed {ARTIFACT_TOLERANCE:g}; its "
        f"graph is exact in float64, so this is float32 rounding, of {first_rounding(model, feeds)}"
    )


def first_rounding(model: ir.Model, feeds: Feeds) -> str:
    """Returns the first node whose value in float32 is farther off than the contract allows.

    NumPy evaluates the graph here, which rounds otherwise than an engine: where no node is that
    far off, the one that is farthest off is returned.
    """
    values: dict[str, Array] = {}
    evaluate(model.graph, feeds, observe=lambda v, array: values.update({str(v.name): array}))
    found: list[tuple[float, ir.Value]] = []

    def compare(value: ir.Value, array: Array) -> None:
        expected = values.get(str(value.name))
        if expected is not None and expected.dtype.kind == "f":
            found.append((deviation(expected, array)[1], value))

    narrow = {
        name: array.astype(np.float32) if array.dtype == np.float64 else array
        for name, array in feeds.items()
    }
    evaluate(to_float32(model).graph, narrow, observe=compare)
    over = [value for error, value in found if error > ARTIFACT_TOLERANCE]
    value = over[0] if over else max(found, key=lambda item: item[0])[1]
    node = value.producer()
    assert node is not None  # only what nodes make is observed
    return f"{node.op_type} {node.name!r}"
