"""The table at the end of `make demo`: what compiling did to the trained example.

Reads what the steps before it wrote into one directory: `accuracy.json` and `test-split.npz` from
`train.py`, the bundle, and `bench.json` from `mdprune bench`. The compiled model of every domain
runs on the whole test split, in the engine that was timed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from mdprune_deploy.bundle import Bundle, read_bundle
from mdprune_deploy.engines import Engine, load

HEADINGS = (
    "unpruned",
    "masked",
    "compiled",
    "weights left",
    "MACs left",
    "dense ms",
    "compiled ms",
    "time left",
    "largest error",
)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="where the steps before wrote")
    folder = parser.parse_args().directory
    bundle = read_bundle(folder / "bundle")
    trained = json.loads((folder / "accuracy.json").read_text())["domains"]
    timed = json.loads((folder / "bench.json").read_text())["domains"]
    table = Table(title="Accuracy on the test split, size, speed and exactness per domain")
    table.add_column("domain")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    with np.load(folder / "test-split.npz") as split:
        for name in bundle.manifest.models:
            engine = load(bundle, name, timed[name]["engine"])
            compiled = accuracy(engine, split, name)
            table.add_row(name, *cells(bundle, name, trained[name], compiled, timed[name]))
    table.caption = f"Compiled: the {engine.name} engine, {engine.variant}. {total(bundle)}"
    table.caption_justify = "left"
    # In a file the table keeps its columns; on a terminal it takes the width there is.
    console = Console()
    (console if console.is_terminal else Console(width=130)).print(table)


def accuracy(engine: Engine, split: Any, name: str) -> float:
    """Returns the share of test images that a compiled domain gets right."""
    images: NDArray[np.float32] = split[f"{name}/x"]
    classes: NDArray[np.int64] = split[f"{name}/y"]
    step = len(images) if engine.inputs[0].shape[0] is None else 1
    found = []
    for start in range(0, len(images), step):
        logits = engine(np.ascontiguousarray(images[start : start + step]))
        assert isinstance(logits, np.ndarray)
        found.append(logits.argmax(axis=1))
    return float((np.concatenate(found) == classes).mean())


def cells(
    bundle: Bundle, name: str, trained: dict[str, float], compiled: float, timed: dict[str, Any]
) -> list[str]:
    """Returns a domain's row without its name."""
    figures = bundle.manifest.report.domains[name]
    return [
        f"{trained['baseline']:.1%}",
        f"{trained['masked']:.1%}",
        f"{compiled:.1%}",
        f"{figures.params_used / figures.params_dense:.0%}",
        f"{timed['macs'] / timed['macs_dense']:.0%}",
        f"{timed['dense_p50_ms']:.3f}",
        f"{timed['p50_ms']:.3f}",
        f"{timed['ratio']:.0%}",
        f"{figures.max_rel_error:.0e}",
    ]


def total(bundle: Bundle) -> str:
    """Returns what all domains need together."""
    report = bundle.manifest.report
    dense = sum(figures.params_dense for figures in report.domains.values())
    used = sum(figures.params_used for figures in report.domains.values())
    files = sum(entry.size for entry in bundle.manifest.files.values()) / 1e6
    return (
        f"All {len(report.domains)} domains: {dense:,} weights dense, {used:,} used, "
        f"{report.params_union:,} of them different, {report.params_intersection:,} in all. "
        f"The bundle: {files:.1f} MB, {report.bytes_shared / 1e6:.1f} MB of it shared."
    )


if __name__ == "__main__":
    main()
