"""`mdprune compile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import pipeline
from ..report import CompileReport
from ..sizes import parse_size
from .common import (
    BudgetOption,
    FitOption,
    JsonOption,
    MetricOption,
    command,
    print_json,
    print_table,
    progress_bar,
    share,
    size,
)


@command
def compile(
    model: Annotated[Path, typer.Argument(metavar="MODEL.pt", help="A checkpoint.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The bundle.")],
    budget: BudgetOption = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="T,...",
            help="What to emit: onnx, native, tensorrt; without it the first two, native where it "
            "can be.",
        ),
    ] = None,
    metric: MetricOption = "params",
    fit: FitOption = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            "--memory-limit",
            metavar="SIZE",
            help="Most bytes of the native weight file, such as 120MiB: what the union of all "
            "domains leaves of it goes into copies that save time.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a bundle that stands at OUT.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compiles every domain of a checkpoint into one bundle, and checks what it wrote."""
    with progress_bar("compiling") as tick:
        report = pipeline.compile(
            model,
            output,
            budget=budget,
            metric=metric,
            targets=None
            if target is None
            else [name.strip() for name in target.split(",") if name.strip()],
            fit=fit,
            overwrite=force,
            memory_limit=None if memory_limit is None else parse_size(memory_limit),
            progress=lambda domain, stage, done, total: tick(f"{domain}, {stage}", done, total),
        )
    if as_json:
        print_json(report.to_json())
    else:
        show(report, output)


def show(report: CompileReport, output: Path) -> None:
    """Prints the figures of a compile."""
    rows = [
        [
            name,
            f"{d.params_dense:,}",
            share(d.params_used, d.params_dense),
            share(d.params_emitted, d.params_dense),
            share(d.macs_emitted, d.macs_dense),
            f"{d.max_rel_error:.1e}",
        ]
        for name, d in report.domains.items()
    ]
    headings = ("domain", "weights", "used", "emitted", "MACs left", "largest error")
    print_table(f"{output}: every domain equals its reference", headings, rows)
    print(
        f"All domains together use {report.params_union:,} weights, {report.params_intersection:,} "
        f"of them in common. The weight files: {size(report.bytes_shared)} that several domains "
        f"name, {size(report.bytes_private)} that one names."
    )
    if report.plugins:
        taken = sum(choice.plugin for choice in report.plugins)
        print(f"TensorRT: {taken} of {len(report.plugins)} convolutions read shared weights.")
    for missing in report.missing:
        what = missing.target if "/" in missing.target else f"{missing.target} target"
        print(f"The bundle has no {what}: {missing.reason}.")
    show_held(len(report.held), sum(held.channels for held in report.held))
    if report.seconds is not None:
        print(f"Compiled and checked in {report.seconds:.1f} s.")


def show_held(places: int, channels: int) -> None:
    """Says how much could not be removed, if anything."""
    if places:
        print(
            f"{channels:,} masked channels in {places:,} places could not be removed: "
            "mdprune inspect lists the operators that hold them."
        )
