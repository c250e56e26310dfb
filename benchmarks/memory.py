"""Load time and memory of a bundle's domains beside one stock ONNX file each.

Three set-ups load every domain and run each once, each in a fresh process, interleaved:

* `mapped`: the ready-optimised variants of the bundle;
* `portable`: the portable models of the bundle, optimised by ONNX Runtime while loading;
* `stock`: the same models as files of their own, weights inside, default session options.

Memory is the growth of the process's PSS (`smaps_rollup`) over an interpreter that has imported
ONNX Runtime. Files are in the page cache. Run `python -m benchmarks.memory BUNDLE`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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
from mdprune_deploy.manifest import DomainModel

SETUPS = ("mapped", "portable", "stock")
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


def load_bundle(bundle_dir: Path, variant: Any, threads: int) -> list[Callable[..., Any]]:
    """Loads all domains of a bundle."""
    bundle = read_bundle(bundle_dir)
    return [
        load(bundle, domain, "onnxruntime", threads, variant=variant)
        for domain in bundle.manifest.models
    ]


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
    print(
        json.dumps(
            {
                "load_ms": seconds * 1e3,
                "pss_loaded_mib": loaded["Pss"] - base["Pss"],
                "pss_mib": after["Pss"] - base["Pss"],
                "pss_private_mib": after["Pss_Anon"] - base["Pss_Anon"],
                "pss_mapped_mib": after["Pss_File"] - base["Pss_File"],
            }
        )
    )


def measure_all(bundle_dir: Path, threads: int, repeats: int) -> dict[str, dict[str, float]]:
    """Measures every set-up `repeats` times in processes of their own; returns the medians."""
    samples: dict[str, list[dict[str, float]]] = {setup: [] for setup in SETUPS}
    with tempfile.TemporaryDirectory() as folder:
        write_stock_files(bundle_dir, Path(folder))
        for _ in range(repeats):
            for setup in SETUPS:
                command = [sys.executable, "-m", "benchmarks.memory", str(bundle_dir)]
                command += ["--threads", str(threads), "--child", setup, folder]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                samples[setup].append(json.loads(done.stdout))
        check_outputs(Path(folder))
    return {
        setup: {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
        for setup, runs in samples.items()
    }


def check_outputs(folder: Path) -> None:
    """Stops if a set-up computed something else than the stock files."""
    stock = np.load(folder / "stock.npz")
    for setup in SETUPS:
        found = np.load(folder / f"{setup}.npz")
        for key in stock.files:
            error = np.abs(found[key] - stock[key]).max() / np.abs(stock[key]).max()
            if not error <= TOLERANCE:
                raise SystemExit(f"{setup}, output {key}: relative error {error:.1e}")


def machine() -> dict[str, Any]:
    """Says where and with what the figures were measured."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")]
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(
        describe, cwd=Path(__file__).parent, check=False, capture_output=True, text=True
    )
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "commit": commit.stdout.strip() or None,
    }


def print_table(result: dict[str, Any]) -> None:
    """Prints the figures and their ratios."""
    setups = result["setups"]
    dense, stock = result["dense_weights_mib"], setups["stock"]
    print(f"{result['domains']} domains, {result['threads']} thread(s), {result['machine']}")
    print(f"dense weights {dense:.1f} MiB; PSS over the bare runtime, after one run per domain")
    print(
        f"{'':10}{'load ms':>9}{'PSS MiB':>9}{'private':>9}{'mapped':>9}{'/stock':>8}{'/dense':>8}"
    )
    for setup, figures in setups.items():
        print(
            f"{setup:10}{figures['load_ms']:9.1f}{figures['pss_mib']:9.1f}"
            f"{figures['pss_private_mib']:9.1f}{figures['pss_mapped_mib']:9.1f}"
            f"{figures['pss_mib'] / stock['pss_mib']:8.2f}{figures['pss_mib'] / dense:8.2f}"
        )


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path, help="directory written by mdprune compile")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--child", nargs=2, metavar=("SETUP", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        setup, folder = args.child[0], Path(args.child[1])
        measure(setup, args.bundle, folder, args.threads, folder / f"{setup}.npz")
        return
    report = read_bundle(args.bundle).manifest.report
    dense = next(iter(report.domains.values())).params_dense * 4 / MIB
    result = {
        "machine": machine(),
        "domains": len(report.domains),
        "threads": args.threads,
        "dense_weights_mib": dense,
        "setups": measure_all(args.bundle, args.threads, args.repeats),
    }
    print_table(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
