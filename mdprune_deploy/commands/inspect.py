"""`mdprune inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import inspect as inspection
from ..errors import UsageError
from ..inspect import Counts, Inspection, Layer
from .common import (
    BudgetOption,
    FitName,
    FitOption,
    JsonOption,
    MetricName,
    MetricOption,
    command,
    fitted,
    note,
    print_json,
    print_table,
    progress_bar,
    share,
    size,
)


@command
def inspect(
    path: Annotated[Path, typer.Argument(metavar="MODEL.pt|OUT", help="A checkpoint or a bundle.")],
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="PICTURE",
            help="Of a checkpoint: draw which domain uses which channels of every layer, "
            "as .png, .pdf or .svg.",
        ),
    ] = None,
    budget: BudgetOption = None,
    metric: MetricOption = "params",
    fit: FitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Shows what every domain uses, layer by layer, what domains share, and what is held."""
    if inspection.is_bundle(path):
        if plot is not None or budget is not None:
            option = "--budget" if plot is None else "--plot"
            raise UsageError(
                f"{path} is a bundle, which records how many weights are used, not which; "
                f"{option} needs the checkpoint"
            )
        found = inspection.inspect_bundle(path)
    else:
        found = _checkpoint(path, plot, budget, metric, fit)
    if as_json:
        print_json(found.to_json())
    else:
        _show(path, found)


def _checkpoint(
    path: Path, plot: Path | None, budget: float | None, metric: MetricName, fit: FitName | None
) -> Inspection:
    if plot is not None:
        inspection.check_plot(plot)
    checkpoint = fitted(path, budget, metric, fit)
    with progress_bar("counting") as tick:
        found = inspection.inspect_checkpoint(checkpoint, progress=tick)
    if plot is not None:
        inspection.plot(checkpoint, plot)
        note(f"wrote {plot}")
    return found


def _show(path: Path, found: Inspection) -> None:
    _show_domains(path, found)
    _show_layers(found)
    dense = max((counts.params_dense for counts in found.domains.values()), default=0)
    print(
        f"All domains together use {found.params_union:,} weights, {found.params_intersection:,} "
        f"of them in common; the largest dense network has {dense:,}."
    )
    if found.bytes_shared is not None and found.bytes_private is not None:
        print(
            f"The weight file: {size(found.bytes_shared)} that several domains name, "
            f"{size(found.bytes_private)} that one names."
        )
    _show_layout(found)
    _show_plugins(found)
    _show_held(found)


def _show_layout(found: Inspection) -> None:
    """Prints how the native target stores every weight, beside the least that it could take."""
    if not found.layout:
        return
    rows = [
        [
            weight.name,
            size(weight.bytes_dense),
            size(weight.bytes_union),
            size(weight.bytes_copies),
            size(weight.bytes_stored),
            _sharing(len(weight.private), len(weight.readers)),
            weight.reason,
        ]
        for weight in found.layout
    ]
    headings = ("weight", "dense", "union", "copies", "stored", "read from", "because")
    print_table("native target: how weights are stored", headings, rows)
    dense, union, copies, stored = (
        sum(getattr(weight, f"bytes_{what}") for weight in found.layout)
        for what in ("dense", "union", "copies", "stored")
    )
    limit = "" if found.memory_limit is None else f" under a limit of {size(found.memory_limit)}"
    print(
        f"The native target stores {size(stored)} of weights{limit}. The least for all domains is "
        f"{size(union)}, what some domain uses; a copy for every domain takes {size(copies)}, the "
        f"dense weights {size(dense)}."
    )


def _show_plugins(found: Inspection) -> None:
    """Prints which convolutions of the tensorrt target read the native target's weights."""
    if not found.plugins:
        return
    rows = [
        [
            choice.name,
            size(choice.bytes_copies),
            size(choice.bytes_stored),
            size(choice.bytes_activations),
            "plug-in" if choice.plugin else "stock",
            choice.reason,
        ]
        for choice in found.plugins
    ]
    headings = ("weight", "copies", "stored", "activations", "layer", "because")
    print_table("tensorrt target, in float16: what reads the weights", headings, rows)
    saved = sum(c.bytes_copies - c.bytes_stored for c in found.plugins if c.plugin)
    print(f"Its plug-ins save {size(saved)} of weights over all domains.")


def _sharing(private: int, readers: int) -> str:
    if not private:
        return "union"
    return "copies" if private == readers else f"union, {private} copies"


def _show_domains(path: Path, found: Inspection) -> None:
    rows = [
        [
            name,
            f"{c.params_dense:,}",
            share(c.params_used, c.params_dense),
            share(c.params_emitted, c.params_dense),
            f"{c.macs_dense:,}",
            share(c.macs_emitted, c.macs_dense),
        ]
        for name, c in found.domains.items()
    ]
    headings = ("domain", "weights", "used", "emitted", "MACs", "MACs left")
    print_table(f"{path}: a {found.source} of {len(rows)} domains", headings, rows)


def _show_layers(found: Inspection) -> None:
    domains = list(found.domains)
    shared = found.source == "checkpoint"
    headings = ["layer", "weights", *domains, *(("any domain", "all domains") if shared else ())]
    rows = [_layer_row(layer, domains, shared) for layer in found.layers]
    print_table("weights used per layer", headings, rows)


def _layer_row(layer: Layer, domains: list[str], shared: bool) -> list[str]:
    dense = max(counts.params_dense for counts in layer.domains.values())
    own = [_used(layer.domains.get(domain)) for domain in domains]
    sets = [layer.params_union, layer.params_intersection] if shared else []
    return [layer.name, f"{dense:,}", *own, *("-" if n is None else f"{n:,}" for n in sets)]


def _used(counts: Counts | None) -> str:
    return "-" if counts is None else share(counts.params_used, counts.params_dense)


def _show_held(found: Inspection) -> None:
    if not found.held:
        print("No masked channel is held: every one could be removed.")
        return
    rows = [
        [h.value, h.domain, f"{h.channels}", f"{h.operator} {h.node}", h.reason] for h in found.held
    ]
    headings = ("tensor", "domain", "channels", "held by", "because")
    print_table("masked channels that could not be removed", headings, rows)
