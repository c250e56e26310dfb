"""`mdprune pack`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import pack as packing
from ..domain import Axis, Site
from ..errors import UsageError
from .common import JsonOption, command, note, print_json, print_table


@command
def pack(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="MODEL.pt",
            help="The checkpoint to write; may be left out with --onnx.",
        ),
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option("--onnx", metavar="DENSE.onnx", help="A dense network; needs --masks."),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            "--masks",
            metavar="FILE",
            help="With --onnx: an .npz of arrays such as 'DOMAIN/in/WEIGHT'.",
        ),
    ] = None,
    factory: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="PACKAGE.MODULE:FACTORY",
            help="Called without arguments it returns the dense network. This code is run.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="The state dict that all domains share."),
    ] = None,
    switches: Annotated[
        str | None,
        typer.Option(
            "--switches",
            metavar="PATTERN",
            help="Names of the switch tensors, such as '{module}.switches' or '{weight}_mask'.",
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="SHAPE", help="Example shape, one per input, such as 1,3,32,32."
        ),
    ] = None,
    layout: Annotated[
        packing.Layout | None,
        typer.Option(
            "--layout",
            help="Switches of shape (domains, channels) in --weights (default), or (channels,) in "
            "the files of --domain-weights.",
        ),
    ] = None,
    axis: Annotated[
        Axis | None, typer.Option("--axis", help="Channels that are switched (default: in).")
    ] = None,
    threshold: Annotated[
        float, typer.Option("--threshold", help="A channel is on where its score is above this.")
    ] = 0.0,
    site: Annotated[
        Site | None,
        typer.Option("--site", help="What a switch on output channels zeroes (default: weight)."),
    ] = None,
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
        str | None,
        typer.Option("--prefix", help="Removed from the front of all names that have it."),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="GLOB", help="Names that need no place."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turns a network with masks into a checkpoint that compile takes.

    Either a state dict with --model, --weights, --switches and --input, or an ONNX file with
    --onnx and --masks.
    """
    of_pytorch: dict[str, Any] = {
        "factory": factory,
        "weights": weights,
        "switches": switches,
        "layout": layout,
        "axis": axis,
        "site": site,
        "domain_weights": domain_weights,
        "state": state,
        "key": key,
        "prefix": prefix,
        "ignore": ignore,
    }
    given = {name: value for name, value in of_pytorch.items() if value is not None}
    shared: dict[str, Any] = {
        "inputs": tuple(inputs or ()),
        "threshold": threshold,
        "domains": tuple(domain or ()),
        "labels": tuple(labels or ()),
    }
    if onnx is not None:
        target, report = _pack_onnx(onnx, masks, output, given, shared)
    else:
        target, report = _pack_pytorch(masks, output, given, shared)
    if as_json:
        print_json({"version": 1, "output": str(target), **asdict(report)})
        return
    if not report.dynamic_batch:
        note("the network holds for the example's batch size only")
    rows = [[name, f"{report.masks[name]}", f"{report.state[name]}"] for name in report.domains]
    title = f"{target}: {report.shared} shared tensors, {len(report.ignored)} ignored"
    print_table(title, ("domain", "masks", "own tensors"), rows)


def _pack_onnx(
    onnx: Path,
    masks: Path | None,
    output: Path | None,
    given: Mapping[str, Any],
    shared: Mapping[str, Any],
) -> tuple[Path, packing.PackReport]:
    if given:
        raise UsageError(f"{_option(next(iter(given)))} does not go with --onnx")
    if masks is None:
        raise UsageError("--onnx needs --masks, a file with every domain's masks")
    options = packing.OnnxOptions(onnx, masks, output, **shared)
    return options.target, packing.pack_onnx(options)


def _pack_pytorch(
    masks: Path | None, output: Path | None, given: Mapping[str, Any], shared: Mapping[str, Any]
) -> tuple[Path, packing.PackReport]:
    if masks is not None:
        raise UsageError("--masks goes with --onnx; of a state dict --switches names the masks")
    missing = [name for name in ("factory", "weights", "switches") if name not in given]
    if missing or output is None:
        names = [*map(_option, missing), *(["-o"] if output is None else [])]
        raise UsageError(f"pack needs {', '.join(names)}, or --onnx and --masks")
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    return output, packing.pack(packing.PackOptions(output, **fields, **shared))


def _option(field: str) -> str:
    return {"factory": "--model"}.get(field, f"--{field.replace('_', '-')}")
