"""What the scripts share: cases, dense models, runners that are timed in turn, and results."""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from rich.console import Console, JustifyMethod
from rich.table import Table
from torch import nn

import mdprune_deploy as mdp
from mdprune_deploy.domain import Domain, Mask
from mdprune_deploy.engines import load
from mdprune_deploy.engines.ort import Variant
from mdprune_deploy.report import CompileReport

from .environment import environment
from .masks import make_domains
from .networks import NETWORKS

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-5
"""The contract's relative error in float32: max |y - r| / max |r|."""

Array = NDArray[Any]
Call = Callable[[], Array]


@dataclass(frozen=True, eq=False)
class Case:
    """A network with its domains.

    Attributes:
        name: Such as `r50-learned`.
        model: The backbone in eval mode.
        example: An input of batch 1, float32.
        domains: The domains by name.
    """

    name: str
    model: nn.Module
    example: torch.Tensor
    domains: dict[str, Domain]


def make_case(
    network: str, style: str, domains: int = 6, keep: float = 0.5, *, scores: bool = False
) -> Case:
    """Makes the case of one network and one style of masks, always the same.

    Args:
        network: One of `NETWORKS`.
        style: One of `STYLES`.
        domains: How many domains.
        keep: Share of the maskable weights that each keeps.
        scores: Scores instead of switches.
    """
    model, example = NETWORKS[network]()
    made = make_domains(model, domains, keep, style=style, scores=scores)
    return Case(f"{network}-{style}", model, example, made)


def masked_dense(model: nn.Module, domain: Domain, *, masked: bool = True) -> nn.Module:
    """Returns a domain's dense network: a copy with its parameters, masked input channels zero.

    Args:
        model: The backbone.
        domain: A domain whose masks are all on the input axis.
        masked: Whether to zero the masked channels.
    """
    model = copy.deepcopy(model)
    for name, value in domain.state.items():
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        old = getattr(module, leaf)
        setattr(module, leaf, nn.Parameter(value) if isinstance(old, nn.Parameter) else value)
        if isinstance(module, nn.Linear) and leaf == "weight":
            module.out_features = len(value)
    for name, mask in domain.masks.items() if masked else ():
        assert isinstance(mask, Mask) and mask.axis == "in"
        weight = model.get_parameter(name)
        weight.data = weight.data * mask.on.to(weight.dtype)[None, :, None, None]
    return model.eval()


def reference(model: nn.Module, x: Array) -> Array:
    """Returns what `model` gives on `x`, computed by PyTorch in float64."""
    with torch.no_grad():
        return np.asarray(copy.deepcopy(model).double()(torch.from_numpy(x).double()))


def inputs_of(example: torch.Tensor) -> dict[str, Array]:
    """Returns the contract's kinds of input, float32, shaped as `example`."""
    x = example.numpy()
    return {
        "random": x,
        "large": x * np.float32(1e3),
        "constant": np.full_like(x, 0.5),
        "zero": np.zeros_like(x),
    }


def compile_case(
    case: Case, folder: Path, targets: Sequence[str] = ("onnx", "native")
) -> tuple[Path, CompileReport]:
    """Saves a case and compiles it; returns the bundle and the report."""
    checkpoint, bundle = folder / f"{case.name}.pt", folder / case.name
    mdp.save_checkpoint(checkpoint, case.model, case.example, case.domains)
    return bundle, mdp.compile(checkpoint, bundle, targets=tuple(targets))


def dense_case(case: Case) -> Case:
    """Returns the dense network of a case as a case of one domain without masks, named `dense`."""
    return Case(f"{case.name}-dense", case.model, case.example, {"dense": Domain()})


def export_onnx(model: nn.Module, example: torch.Tensor, path: Path) -> Path:
    """Exports `model` the plain way, batch fixed, weights inside the file."""
    torch.onnx.export(
        model, (example,), path, dynamo=True, external_data=False, optimize=True, verbose=False
    )
    return path


def session(
    path: Path, threads: int, *, optimised: Path | None = None, ready: bool = False
) -> onnxruntime.InferenceSession:
    """Opens a model with ONNX Runtime's defaults, spinning off.

    Args:
        path: The model.
        threads: Threads within an operator.
        optimised: Where to write the model as ONNX Runtime optimises it.
        ready: The model is such a file: no further optimisation.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    if ready:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def runner(opened: onnxruntime.InferenceSession, x: Array) -> Call:
    """Returns a call that runs a session of one input and one output on `x`."""
    name = opened.get_inputs()[0].name

    def call() -> Array:
        (output,) = opened.run(None, {name: x})
        return np.asarray(output)

    return call


def engine_call(
    bundle: Path, domain: str, x: Array, threads: int = 1, variant: Variant | None = None
) -> Call:
    """Returns a call of a compiled domain of one output on `x`, by ONNX Runtime."""
    engine = load(bundle, domain, "onnxruntime", threads, variant=variant)
    return lambda: np.asarray(engine(x))


def native_call(bundle: Path, domain: str, x: Array, threads: int = 1) -> Call:
    """Returns a call of a compiled domain of one output on `x`, by the native engine."""
    engine = load(bundle, domain, "native", threads)
    return lambda: np.asarray(engine(x))


def relative_error(y: Array, reference: Array) -> float:
    """Returns max |y - reference| / max |reference|; infinite where shapes or finiteness differ."""
    if y.shape != reference.shape or not np.isfinite(y).all():
        return float("inf")
    difference = np.abs(y.astype(np.float64) - reference)
    return float(difference.max() / max(np.abs(reference).max(), np.finfo(np.float64).tiny))


def time_in_turn(
    calls: Mapping[str, Call],
    references: Mapping[str, Array],
    rounds: int,
    tolerance: float = TOLERANCE,
) -> dict[str, list[float]]:
    """Times calls one after the other, round after round, so that drift meets all alike.

    Every turn is one call that is not timed, to have its own weights in the cache as in a loop
    over one model, and one that is. The order turns by one from round to round.

    Args:
        calls: What to time.
        references: The right output of each, checked before and after.
        rounds: Timed calls of each.
        tolerance: Largest relative error.

    Returns:
        Seconds of every timed call.

    Raises:
        AssertionError: An output is wrong.
    """
    check(calls, references, tolerance)
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds + 2):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            calls[name]()
            begin = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - begin)
    check(calls, references, tolerance)
    return {name: values[2:] for name, values in seconds.items()}


def check(calls: Mapping[str, Call], references: Mapping[str, Array], tolerance: float) -> None:
    """Raises `AssertionError` where a call's output is not its reference."""
    for name, call in calls.items():
        error = relative_error(call(), references[name])
        if error > tolerance:
            raise AssertionError(f"{name}: relative error {error:.2e}, at most {tolerance:.0e}")


def median_ms(seconds: Sequence[float]) -> float:
    """Returns the median in milliseconds."""
    return statistics.median(seconds) * 1e3


def show(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Prints rows as a table; all rows have the first one's columns."""
    table = Table(title=title)
    for column, value in rows[0].items():
        justify: JustifyMethod = "left" if isinstance(value, str) else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(text_of(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def text_of(value: object) -> str:
    """Returns a table cell's text: small floats with an exponent, others with four digits."""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
    return str(value)


def save(
    script: str,
    settings: Mapping[str, object],
    rows: Sequence[Mapping[str, object]],
    folder: Path | None = None,
) -> Path:
    """Writes SCRIPT.json into `results/` or a folder: the environment, the settings, the rows."""
    folder = folder or RESULTS
    folder.mkdir(exist_ok=True)
    path = folder / f"{script}.json"
    content = {"environment": environment(), "settings": dict(settings), "rows": list(rows)}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
