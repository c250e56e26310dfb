"""How far every compiled domain is from its masked dense network.

Two relative errors (max |y - r| / max |r|) per domain: the one that compiling reports, and one that
this script takes itself, on random, large and constant inputs, against PyTorch in float64 for the
benchmark networks and `mdprune_deploy.reference` for a checkpoint. Run
`python -m benchmarks.exactness [--checkpoint MODEL.pt ...]`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import mdprune_deploy as mdp
from mdprune_deploy.engines.ort import Variant
from mdprune_deploy.report import CompileReport

from .harness import (
    TOLERANCE,
    Array,
    compile_case,
    engine_call,
    inputs_of,
    make_case,
    masked_dense,
    native_call,
    reference,
    relative_error,
    save,
    show,
)
from .masks import STYLES
from .networks import NETWORKS

VARIANTS: tuple[Variant, ...] = ("portable", "mapped")
Row = dict[str, object]


def network_rows(network: str, style: str, count: int, folder: Path) -> list[Row]:
    """Compiles a benchmark network and returns a row per domain."""
    case = make_case(network, style, count)
    bundle, report = compile_case(case, folder)
    inputs = inputs_of(case.example)
    dense = {name: masked_dense(case.model, domain) for name, domain in case.domains.items()}
    expected = {
        name: {kind: reference(model, x) for kind, x in inputs.items()}
        for name, model in dense.items()
    }
    return rows_of(case.name, bundle, report, inputs, expected)


def checkpoint_rows(path: Path, folder: Path) -> list[Row]:
    """Compiles a checkpoint of one input and one output and returns a row per domain."""
    checkpoint = mdp.load_checkpoint(path)
    report = mdp.compile(checkpoint, folder / path.stem, targets=("onnx", "native"))
    (example,) = checkpoint.examples.values()
    inputs = inputs_of(torch.from_numpy(np.asarray(example, dtype=np.float32)))
    expected = {}
    for name in checkpoint.domains:
        run = mdp.reference(checkpoint, name)
        expected[name] = {kind: np.asarray(run(x)) for kind, x in inputs.items()}
    return rows_of(path.stem, folder / path.stem, report, inputs, expected)


def rows_of(
    case: str,
    bundle: Path,
    report: CompileReport,
    inputs: dict[str, Array],
    expected: dict[str, dict[str, Array]],
) -> list[Row]:
    """Returns the errors of every domain of a bundle, the largest over the inputs."""
    rows: list[Row] = []
    for name, references in expected.items():
        figures = report.domains[name]
        row: Row = {"case": case, "domain": name, "compile's": figures.max_rel_error}
        for variant in VARIANTS:
            row[variant] = max(
                relative_error(engine_call(bundle, name, x, variant=variant)(), references[kind])
                for kind, x in inputs.items()
            )
        row["native"] = max(
            relative_error(native_call(bundle, name, x)(), references[kind])
            for kind, x in inputs.items()
        )
        row["MACs left"] = figures.macs_emitted / figures.macs_dense
        rows.append(row)
    return rows


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=["r50", "wrn"])
    parser.add_argument("--styles", nargs="*", choices=STYLES, default=list(STYLES))
    parser.add_argument("--domains", type=int, default=6)
    parser.add_argument("--checkpoint", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in arguments.checkpoint:
            rows += checkpoint_rows(path, Path(folder))
        for network in arguments.networks:
            for style in arguments.styles:
                rows += network_rows(network, style, arguments.domains, Path(folder))
    show(f"Relative error, at most {TOLERANCE:.0e}", rows)
    print(save("exactness", {"tolerance": TOLERANCE}, rows))


if __name__ == "__main__":
    main()
