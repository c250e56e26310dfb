"""`mdprune verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import check
from .common import (
    BundleArgument,
    JsonOption,
    command,
    note,
    print_json,
    print_table,
    progress_bar,
)


@command
def verify(
    bundle: BundleArgument,
    against: Annotated[
        Path, typer.Option("--against", metavar="MODEL.pt", help="The checkpoint it was made from.")
    ],
    device: Annotated[
        str, typer.Option("--device", metavar="cuda", help="Run the native target there as well.")
    ] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Checks every file and every domain of a bundle against its checkpoint."""
    with progress_bar("verifying") as tick:
        found = check.verify_bundle(bundle, against, device=device, progress=tick)
    for domain, result in found.items():
        for what, reason in result.skipped.items():
            note(f"{domain}: {what} was not run: {reason}")
    if as_json:
        print_json(check.to_json(found))
        return
    rows = [
        [
            domain,
            f"{c.graph_rel_error:.1e}",
            "-" if c.stored_rel_error is None else f"{c.stored_rel_error:.1e}",
            f"{c.max_rel_error:.1e}",
            ", ".join(c.engines) or "-",
        ]
        for domain, c in found.items()
    ]
    headings = ("domain", "graph in float64", "stored model", "engines", "engines that ran")
    print_table(f"{bundle}: files intact, relative errors against {against}", headings, rows)
