"""`mdprune add` and `mdprune drop`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import extend
from ..extend import DomainChange
from .common import JsonOption, command, print_json, progress_bar, share, size

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A compiled bundle.")]


@command
def add(
    bundle: BundleArgument,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.pt", help="A checkpoint with the bundle's backbone.")
    ],
    domain: Annotated[
        str | None,
        typer.Option("--domain", metavar="NAME", help="Which domain; needed if there are several."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a domain of that name.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Adds a domain to a bundle: what the others store is used, what it lacks is added."""
    with progress_bar("adding") as tick:
        change = extend.add_domain(
            bundle,
            model,
            domain,
            replace=force,
            progress=lambda name, stage, done, total: tick(f"{name}, {stage}", done, total),
        )
    _show(bundle, change, as_json)


@command
def drop(
    bundle: BundleArgument,
    domain: Annotated[str, typer.Argument(metavar="NAME", help="The domain to drop.")],
    as_json: JsonOption = False,
) -> None:
    """Drops a domain of a bundle, with the files that no other domain uses."""
    _show(bundle, extend.drop_domain(bundle, domain), as_json)


def _show(bundle: Path, change: DomainChange, as_json: bool) -> None:
    if as_json:
        print_json(change.to_json())
        return
    if change.figures is not None:
        read = change.bytes_weights + change.bytes_reused
        print(
            f"{bundle}: {change.action} {change.domain!r}, largest error "
            f"{change.figures.max_rel_error:.1e}. {size(change.bytes_written)} are new, "
            f"{size(change.bytes_weights)} of them native weights; "
            f"{share(change.bytes_reused, read)} of the native weights that it reads were there."
        )
    else:
        print(f"{bundle}: dropped {change.domain!r}")
    if change.bytes_removed:
        print(f"{size(change.bytes_removed)} are there no more.")
