"""`mdprune run`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..bench import DEFAULT_ENGINE
from ..engines import Array, Engine, load
from ..errors import UsageError
from ..files import write_whole
from ..images import read_input
from .common import (
    BundleArgument,
    DeviceOption,
    EngineOption,
    JsonOption,
    PrecisionOption,
    ThreadsOption,
    command,
    note,
    print_json,
    print_table,
)

TOP = 5
MOST_VALUES = 100_000
"""Values of an output that JSON still takes; larger ones need --output."""


@command
def run(
    bundle: BundleArgument,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT.npy|IMAGE...", help="One per input of the network; PNG or JPEG images."
        ),
    ],
    domain: Annotated[str, typer.Option("--domain", metavar="D", help="The domain to run.")],
    engine: EngineOption = DEFAULT_ENGINE,
    threads: ThreadsOption = 1,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="Y.npy", help="Write the output; several outputs need .npz."
        ),
    ] = None,
    mean: Annotated[
        str, typer.Option("--mean", help="Per channel of an image: x = (pixel / 255 - mean) / std.")
    ] = "",
    std: Annotated[str, typer.Option("--std", help="Per channel of an image.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Runs one domain on arrays or an image; prints the best classes where there are labels."""
    opened = load(bundle, domain, engine, threads, device=device, precision=precision)
    if len(inputs) != len(opened.inputs):
        names = ", ".join(spec.name for spec in opened.inputs)
        raise UsageError(f"domain {domain!r} takes {len(opened.inputs)} inputs ({names})")
    scale = _numbers("--mean", mean), _numbers("--std", std)
    arrays = [
        read_input(path, spec, *scale) for path, spec in zip(inputs, opened.inputs, strict=True)
    ]
    found = opened(*arrays)
    outputs = found if isinstance(found, list) else [found]
    if opened.note:
        note(opened.note)
    if output is not None:
        _write(output, opened, outputs)
    if as_json:
        print_json(_to_json(opened, outputs, output))
    else:
        _show(opened, outputs, output)


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is not a list such as 0.5,0.5,0.5") from error


def _write(path: Path, engine: Engine, outputs: list[Array]) -> None:
    data = io.BytesIO()
    if path.suffix == ".npy" and len(outputs) == 1:
        np.save(data, outputs[0], allow_pickle=False)
    elif path.suffix == ".npz":
        named = {spec.name: array for spec, array in zip(engine.outputs, outputs, strict=True)}
        np.savez(data, **named)  # type: ignore[arg-type]
    else:
        fitting = ".npy or .npz" if len(outputs) == 1 else ".npz, as the domain has several outputs"
        raise UsageError(f"--output {path}: the name must end in {fitting}")
    write_whole(path, data.getvalue())


def best_classes(engine: Engine, outputs: list[Array]) -> list[list[tuple[str, float]]]:
    """Returns per image the labels with the largest outputs; empty where there are no labels."""
    for array in outputs:
        if engine.labels and array.ndim == 2 and array.shape[1] == len(engine.labels):
            order = np.argsort(-array, axis=1, kind="stable")[:, :TOP]
            return [
                [(engine.labels[index], float(row[index])) for index in best]
                for row, best in zip(array, order, strict=True)
            ]
    return []


def _to_json(engine: Engine, outputs: list[Array], path: Path | None) -> dict[str, Any]:
    if path is None and sum(array.size for array in outputs) > MOST_VALUES:
        raise UsageError(f"the outputs have more than {MOST_VALUES:,} values; give --output")
    return {
        "version": 1,
        "domain": engine.domain,
        "engine": engine.name,
        "variant": engine.variant,
        "top": [
            [{"label": label, "value": _finite(value)} for label, value in image]
            for image in best_classes(engine, outputs)
        ],
        "outputs": [
            {
                "name": spec.name,
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "values": _listed(array) if path is None else None,
            }
            for spec, array in zip(engine.outputs, outputs, strict=True)
        ],
        "written": None if path is None else str(path),
    }


def _finite(value: float) -> float | None:
    """Returns None for what JSON has no number for."""
    return value if np.isfinite(value) else None


def _listed(array: Array) -> Any:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()
    values = array.astype(object)
    values[~np.isfinite(array)] = None
    return values.tolist()


def _show(engine: Engine, outputs: list[Array], path: Path | None) -> None:
    ran = f"domain {engine.domain}, {engine.name} {engine.variant}"
    for index, image in enumerate(best_classes(engine, outputs)):
        rows = [[label, f"{value:.4g}"] for label, value in image]
        print_table(f"{ran}, image {index}", ("class", "output"), rows)
    if path is not None:
        print(f"wrote {path}")
    elif not best_classes(engine, outputs):
        for spec, array in zip(engine.outputs, outputs, strict=True):
            print(f"{ran}: {spec.name}, {array.dtype} {array.shape}\n{array}")
