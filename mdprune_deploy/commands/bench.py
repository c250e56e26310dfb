"""`mdprune bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import bench as benching
from ..bench import DEFAULT_ENGINE, Timing
from ..checkpoint import load_checkpoint
from .common import (
    BundleArgument,
    EngineOption,
    JsonOption,
    ThreadsOption,
    command,
    note,
    print_json,
    print_table,
    progress_bar,
    share,
)


@command
def bench(
    bundle: BundleArgument,
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", metavar="D", help="A domain to time; all by default."),
    ] = None,
    engine: EngineOption = DEFAULT_ENGINE,
    threads: ThreadsOption = 1,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="MODEL.pt",
            help="Time the dense networks of this checkpoint in the same run.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", help="How long to time, all together.")
    ] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Times the domains of a bundle in turn, one call at batch 1 at a time."""
    checkpoint = None if against is None else load_checkpoint(against)
    with progress_bar("timing") as tick:
        timings = benching.bench(
            bundle,
            domain or (),
            engine,
            threads,
            against=checkpoint,
            seconds=seconds,
            progress=lambda done, total: tick("rounds", done, total),
        )
    for remark in dict.fromkeys(timing.note for timing in timings if timing.note):
        note(remark)
    if as_json:
        print_json(benching.to_json(timings))
    else:
        _show(bundle, timings)


def _show(bundle: Path, timings: list[Timing]) -> None:
    first = timings[0]
    dense = first.dense_p50_ms is not None
    headings = ["domain", "variant", "MACs", "MACs left", "p50 ms", "p90 ms", "min ms"]
    rows = [_row(timing) for timing in timings]
    title = f"{bundle}: {first.engine}, {first.threads} threads, {first.rounds} rounds"
    print_table(title, [*headings, *(("dense p50 ms", "ratio") if dense else ())], rows)


def _row(timing: Timing) -> list[str]:
    row = [
        timing.domain,
        timing.variant,
        f"{timing.macs:,}",
        share(timing.macs, timing.macs_dense),
        f"{timing.p50_ms:.3f}",
        f"{timing.p90_ms:.3f}",
        f"{timing.min_ms:.3f}",
    ]
    if timing.dense_p50_ms is not None and timing.ratio is not None:
        row += [f"{timing.dense_p50_ms:.3f}", f"{timing.ratio:.2f}"]
    return row
