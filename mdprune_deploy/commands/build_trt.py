"""`mdprune build-trt`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from ..bundle import read_bundle
from ..engines.tensorrt_build import build_engine, choose_model
from .common import (
    BundleArgument,
    JsonOption,
    command,
    note,
    print_json,
    print_table,
    progress_bar,
    size,
)


@command
def build_trt(
    bundle: BundleArgument,
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", metavar="D", help="A domain to build; all by default."),
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", metavar="P", help="fp16 or fp32.")
    ] = "fp16",
    plugins: Annotated[
        bool | None,
        typer.Option(
            "--plugins/--stock",
            help="Insist on layers that read shared weights, or on none; by default if they are "
            "there.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="The largest batch.")] = 1,
    rtx: Annotated[
        bool,
        typer.Option("--rtx", help="Build with TensorRT-RTX, for desktop GPUs; none is needed."),
    ] = False,
    gpu: Annotated[
        list[str] | None,
        typer.Option("--gpu", metavar="SM", help="With --rtx: a GPU to build for, such as SM89."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Builds TensorRT engines of a bundle, beside it, for the GPU that is here."""
    opened = read_bundle(bundle)
    names = domain or list(opened.manifest.models)
    wanted = False if rtx and plugins is None else plugins
    for name in names:  # what is asked for is there, before minutes are spent
        remark = choose_model(opened, name, precision, wanted)[1]
        if remark:
            note(f"{name}: {remark}")
    found = []
    with progress_bar("building") as tick:
        for done, name in enumerate(names):
            tick(name, done, len(names))
            found.append(
                build_engine(
                    opened,
                    name,
                    precision=precision,
                    plugins=plugins,
                    runtime="tensorrt-rtx" if rtx else "tensorrt",
                    batch=batch,
                    capabilities=gpu or (),
                )
            )
    if as_json:
        print_json({"version": 1, "engines": [dataclasses.asdict(built) for built in found]})
        return
    rows = [
        [
            built.domain,
            built.precision,
            f"{built.plugins}",
            size(built.bytes),
            f"{built.seconds:.1f}",
            built.file,
        ]
        for built in found
    ]
    headings = ("domain", "precision", "plug-ins", "engine", "seconds", "file")
    print_table(f"{bundle}: engines of {found[0].runtime}", headings, rows)
