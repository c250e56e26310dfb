"""Load time and memory of a bundle's domains beside one stock ONNX file each.

The set-ups that a bundle's targets allow load every domain and run each once, each in a fresh
process, interleaved:

* `native`: the native engine, an engine and so an arena of activations for every domain;
* `native, one`: the native engine, one arena that takes turns with all domains;
* `mapped`: the ready-optimised variants of the bundle;
* `portable`: the portable models of the bundle, optimised by ONNX Runtime while loading;
* `stock`: the same models as files of their own, weights inside, default session options.

Memory is the growth of the process's PSS (`smaps_rollup`) over an interpreter that has imported
ONNX Runtime; `without arenas` leaves out activations, as the native runtime states their size (ONNX
Runtime's are not known apart, and stay in). With bundles of one network and several numbers of
domains, `MiB per further domain` compares each with the one before. Files are in the page cache.
Run `python -m benchmarks.memory BUNDLE...`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.engines import load
from mdprune_deploy.engines.native import Context, open_model
from mdprune_deploy.manifest import DomainModel

from .harness import save, show

NATIVE, ONNX = ("native", "native, one"), ("mapped", "portable", "stock")
MIB = 1 << 20
TOLERANCE = 2e-5
"""Of max |y - stock| / max |stock|: each side may be 1e-5 from the reference."""


def smaps_rollup() -> dict[str, float]:
    """Returns this process's memory in MiB by the names that Linux gives."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}


def example_inputs(model: DomainModel) -> list[np.ndarray[Any, Any]]:
    """Draws inputs for one call; axes of any size get 1."""
    rng = np.random.default_rng(0)
    shapes = [[size or 1 for size in spec.shape] for spec in model.inputs]
    return [
        rng.standard_normal(shape).astype(spec.dtype)
        for shape, spec in zip(shapes, model.inputs, strict=True)
    ]


def write_stock_files(bundle_dir: Path, folder: Path) -> None:
    """Writes every domain's portable model with its weights inside, as `0.onnx` and so on."""
    bundle = read_bundle(bundle_dir)
    for index, model in enumerate(bundle.manifest.models.values()):
        assert model.onnx is not None
        onnx.save(onnx.load(bundle.root / model.onnx.portable), folder / f"{index}.onnx")


def setups_of(bundle_dir: Path) -> tuple[str, ...]:
    """Returns the set-ups for the targets of a bundle."""
    model = next(iter(read_bundle(bundle_dir).manifest.models.values()))
    return (() if model.native is None else NATIVE) + (() if model.onnx is None else ONNX)


def load_bundle(bundle_dir: Path, setup: str, threads: int) -> list[Callable[..., Any]]:
    """Loads all domains of a bundle."""
    bundle = read_bundle(bundle_dir)
    engine, variant = ("native", None) if setup == "native" else ("onnxruntime", setup)
    return [
        load(bundle, domain, engine, threads, variant=variant) for domain in bundle.manifest.models
    ]


def load_one_context(bundle_dir: Path, threads: int) -> list[Callable[..., Any]]:
    """Loads all domains of a bundle into one context."""
    names = list(read_bundle(bundle_dir).manifest.models)
    model = open_model(bundle_dir)
    context = Context(model, names[0], threads, None)

    def opened(domain: int) -> Callable[..., Any]:
        def run(*arrays: Any) -> Any:
            outputs = [np.empty(shape, np.float32) for shape in model.shapes(domain, "output")]
            context.select(domain)
            context.run(1, arrays, outputs)
            return outputs[0] if len(outputs) == 1 else outputs

        return run

    return [opened(model.find(name)) for name in names]


def arenas_mib(setup: str, bundle_dir: Path, domains: int) -> float:
    """Returns the activations' memory that the native runtime states for all contexts."""
    if setup not in NATIVE:
        return 0.0
    arena: int = open_model(bundle_dir).memory().arena
    return arena / MIB * (domains if setup == "native" else 1)


def load_stock(folder: Path, count: int, threads: int) -> list[Callable[..., Any]]:
    """Loads stock files the way a user does who knows nothing else."""

    def opened(path: Path) -> Callable[..., Any]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        names = [i.name for i in session.get_inputs()]

        def run(*arrays: Any) -> Any:
            outputs = session.run(None, dict(zip(names, arrays, strict=True)))
            return outputs[0] if len(outputs) == 1 else outputs

        return run

    return [opened(folder / f"{index}.onnx") for index in range(count)]


def measure(setup: str, bundle_dir: Path, stock: Path, threads: int, outputs: Path) -> None:
    """Measures one set-up in this process and prints the figures as JSON."""
    inputs = [example_inputs(m) for m in read_bundle(bundle_dir).manifest.models.values()]
    base = smaps_rollup()
    start = time.perf_counter()
    if setup == "stock":
        engines = load_stock(stock, len(inputs), threads)
    elif setup == "native, one":
        engines = load_one_context(bundle_dir, threads)
    else:
        engines = load_bundle(bundle_dir, setup, threads)
    seconds = time.perf_counter() - start
    loaded = smaps_rollup()
    results = [engine(*arrays) for engine, arrays in zip(engines, inputs, strict=True)]
    after = smaps_rollup()
    flat = [
        y if isinstance(y, np.ndarray) else np.concatenate([a.ravel() for a in y]) for y in results
    ]
    np.savez(outputs, *flat)
    arenas = arenas_mib(setup, bundle_dir, len(inputs))
    print(
        json.dumps(
            {
                "load_ms": seconds * 1e3,
                "pss_loaded_mib": loaded["Pss"] - base["Pss"],
                "pss_mib": after["Pss"] - base["Pss"],
                "pss_private_mib": after["Pss_Anon"] - base["Pss_Anon"],
                "pss_mapped_mib": after["Pss_File"] - base["Pss_File"],
                "without_arenas_mib": after["Pss"] - base["Pss"] - arenas,
            }
        )
    )


def measure_all(bundle_dir: Path, threads: int, repeats: int) -> dict[str, dict[str, float]]:
    """Measures every set-up `repeats` times in processes of their own; returns the medians."""
    setups = setups_of(bundle_dir)
    samples: dict[str, list[dict[str, float]]] = {setup: [] for setup in setups}
    with tempfile.TemporaryDirectory() as folder:
        if "stock" in setups:
            write_stock_files(bundle_dir, Path(folder))
        for _ in range(repeats):
            for setup in setups:
                command = [sys.executable, "-m", "benchmarks.memory", str(bundle_dir)]
                command += ["--threads", str(threads), "--child", setup, folder]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                samples[setup].append(json.loads(done.stdout))
        check_outputs(Path(folder), setups)
    return {
        setup: {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
        for setup, runs in samples.items()
    }


def check_outputs(folder: Path, setups: tuple[str, ...]) -> None:
    """Stops if a set-up computed something else than the last: the stock files where there are."""
    stock = np.load(folder / f"{setups[-1]}.npz")
    for setup in setups:
        found = np.load(folder / f"{setup}.npz")
        for key in stock.files:
            error = np.abs(found[key] - stock[key]).max() / np.abs(stock[key]).max()
            if not error <= TOLERANCE:
                raise SystemExit(f"{setup}, output {key}: relative error {error:.1e}")


def rows_of(bundle_dir: Path, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Measures a bundle and returns a row per set-up."""
    report = read_bundle(bundle_dir).manifest.report
    dense = next(iter(report.domains.values())).params_dense * 4 / MIB
    rows = []
    for setup, found in measure_all(bundle_dir, threads, repeats).items():
        row: dict[str, Any] = {"domains": len(report.domains), "set-up": setup}
        row |= {"load ms": found["load_ms"], "PSS MiB": found["pss_mib"]}
        row |= {"private": found["pss_private_mib"], "mapped": found["pss_mapped_mib"]}
        row |= {"over dense": found["pss_mib"] / dense}
        row |= {"without arenas": found["without_arenas_mib"]}
        row |= {"without arenas over dense": found["without_arenas_mib"] / dense}
        rows.append(row)
    return rows


def add_differences(rows: list[dict[str, Any]]) -> None:
    """Adds to every row what a domain more takes, by the row of the same set-up before it."""
    before: dict[str, dict[str, Any]] = {}
    for row in rows:
        last = before.get(row["set-up"])
        row["MiB per further domain"] = None
        if last is not None and row["domains"] > last["domains"]:
            further = row["domains"] - last["domains"]
            difference = row["without arenas"] - last["without arenas"]
            row["MiB per further domain"] = difference / further
        before[row["set-up"]] = row


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", type=Path, nargs="+", help="directories of mdprune compile")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", nargs=2, metavar=("SETUP", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        setup, folder = args.child[0], Path(args.child[1])
        measure(setup, args.bundles[0], folder, args.threads, folder / f"{setup}.npz")
        return
    rows = [row for path in args.bundles for row in rows_of(path, args.threads, args.repeats)]
    add_differences(rows)
    show("Load time and memory, after one run per domain", rows)
    print(save("memory", {"threads": args.threads, "repeats": args.repeats}, rows))


if __name__ == "__main__":
    main()
