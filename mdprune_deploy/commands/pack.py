"""`mdprune pack`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .. import pack as packing
from ..domain import Axis, Site
from .common import JsonOption, command, print_json, print_table


@command
def pack(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="MODEL.pt", help="The checkpoint to write.")
    ],
    factory: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="PACKAGE.MODULE:FACTORY",
            help="Called without arguments it returns the dense network. This code is run.",
        ),
    ],
    weights: Annotated[
        Path,
        typer.Option("--weights", metavar="FILE", help="The state dict that all domains share."),
    ],
    switches: Annotated[
        str,
        typer.Option(
            "--switches",
            metavar="PATTERN",
            help="Names of the switch tensors, such as '{module}.switches' or '{weight}_mask'.",
        ),
    ],
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input", metavar="SHAPE", help="Example shape, one per input, such as 1,3,32,32."
        ),
    ],
    layout: Annotated[
        packing.Layout,
        typer.Option(
            "--layout",
            help="Switches of shape (domains, channels) in --weights, or (channels,) in the files "
            "of --domain-weights.",
        ),
    ] = "domains-first",
    axis: Annotated[Axis, typer.Option("--axis", help="Channels that are switched.")] = "in",
    threshold: Annotated[
        float, typer.Option("--threshold", help="A channel is on where its score is above this.")
    ] = 0.0,
    site: Annotated[
        Site, typer.Option("--site", help="What a switch on output channels zeroes.")
    ] = "weight",
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", metavar="NAME", help="Domain names in the order of the rows."),
    ] = None,
    domain_weights: Annotated[
        list[str] | None,
        typer.Option("--domain-weights", metavar="NAME=FILE", help="A domain's own state dict."),
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="PATTERN->TARGET",
            help="Parameters of domains in --weights, such as "
            "'{module}.bns.{domain}.{name}->{module}.{name}'.",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--labels", metavar="NAME=FILE", help="Class names, one per line."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="Entry of the files that holds the state dict."),
    ] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Removed from the front of all names that have it.")
    ] = "",
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="GLOB", help="Names that need no place."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turns a researcher's state dict into a checkpoint that compile takes."""
    report = packing.pack(
        packing.PackOptions(
            output=output,
            factory=factory,
            weights=weights,
            switches=switches,
            inputs=tuple(inputs),
            layout=layout,
            axis=axis,
            threshold=threshold,
            site=site,
            domains=tuple(domain or ()),
            domain_weights=tuple(domain_weights or ()),
            state=tuple(state or ()),
            labels=tuple(labels or ()),
            key=key,
            prefix=prefix,
            ignore=tuple(ignore or ()),
        )
    )
    if as_json:
        print_json({"version": 1, "output": str(output), **asdict(report)})
        return
    rows = [[name, f"{report.masks[name]}", f"{report.state[name]}"] for name in report.domains]
    title = f"{output}: {report.shared} shared tensors, {len(report.ignored)} ignored"
    print_table(title, ("domain", "masks", "own tensors"), rows)
