"""Latency of compiled domains over the dense network, all timed in turn in one process.

The dense network is exported the plain way and opened with ONNX Runtime's defaults, spinning off
(`dense`), and once more from the file that ONNX Runtime optimised ahead of time (`dense, offline`).
Every domain runs in the native engine, in the mapped and in the portable variant; `native dense` is
the dense network compiled as a bundle of one domain without masks, in the native engine. With
`--openvino`, OpenVINO runs the dense model and the portable files. Every output is compared with
PyTorch in float64 before and after.

Run `python -m benchmarks.latency [--networks r50 wrn] [--threads 1]`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.report import CompileReport

from .harness import (
    Array,
    Call,
    Case,
    compile_case,
    dense_case,
    engine_call,
    export_onnx,
    make_case,
    masked_dense,
    median_ms,
    native_call,
    reference,
    runner,
    save,
    session,
    show,
    time_in_turn,
)
from .masks import STYLES
from .networks import NETWORKS

Runs = dict[tuple[str, str], Call]
"""Calls by (what runs, domain); the dense network's domain is an empty string."""
Row = dict[str, object]


def onnxruntime_runs(case: Case, bundle: Path, folder: Path, threads: int) -> Runs:
    """Opens the dense network and every domain's variants with ONNX Runtime."""
    x = case.example.numpy()
    dense, offline = dense_file(case, folder), folder / f"{case.name}-offline.onnx"
    runs: Runs = {
        ("dense", ""): runner(session(dense, threads, optimised=offline), x),
        ("dense, offline", ""): runner(session(offline, threads, ready=True), x),
    }
    for domain in case.domains:
        for variant in ("mapped", "portable"):
            runs[variant, domain] = engine_call(bundle, domain, x, threads, variant)
    return runs


def native_runs(case: Case, bundle: Path, folder: Path, threads: int) -> Runs:
    """Opens the dense network and every domain with the native engine."""
    x = case.example.numpy()
    dense, _ = compile_case(dense_case(case), folder, ("native",))
    runs: Runs = {("native dense", ""): native_call(dense, "dense", x, threads)}
    for domain in case.domains:
        runs["native", domain] = native_call(bundle, domain, x, threads)
    return runs


def openvino_runs(case: Case, bundle: Path, folder: Path, threads: int) -> Runs:
    """Opens the dense network and every domain's portable file with OpenVINO, float32."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    x = case.example.numpy()

    def opened(path: Path) -> Call:
        request = core.compile_model(path, "CPU", settings).create_infer_request()
        return lambda: np.array(request.infer([x])[0])

    runs: Runs = {("OpenVINO dense", ""): opened(dense_file(case, folder))}
    for domain, model in read_bundle(bundle).manifest.models.items():
        assert model.onnx is not None
        runs["OpenVINO", domain] = opened(bundle / model.onnx.portable)
    return runs


def dense_file(case: Case, folder: Path) -> Path:
    """Exports the dense network once."""
    path = folder / f"{case.name}-dense.onnx"
    return path if path.exists() else export_onnx(case.model, case.example, path)


def references(case: Case) -> dict[str, Array]:
    """Returns the right outputs by domain; the dense network's is an empty string."""
    x = case.example.numpy()
    dense = {name: masked_dense(case.model, domain) for name, domain in case.domains.items()}
    return {name: reference(model, x) for name, model in {"": case.model, **dense}.items()}


def rows_of(
    case: Case, report: CompileReport, seconds: Mapping[tuple[str, str], list[float]], threads: int
) -> list[Row]:
    """Returns a row per kind of run and domain, and the mean over domains of each kind."""
    rows: list[Row] = []
    for kind in dict.fromkeys(kind for kind, _ in seconds):
        base = "OpenVINO dense" if kind.startswith("OpenVINO") else "dense"
        dense = median_ms(seconds[base, ""])
        offline = median_ms(seconds.get(("dense, offline", ""), seconds[base, ""]))
        times = {domain: median_ms(s) for (k, domain), s in seconds.items() if k == kind}
        macs = {
            name: figures.macs_emitted / figures.macs_dense
            for name, figures in report.domains.items()
        }
        left = {domain: macs.get(domain, 1.0) for domain in times}
        if len(times) > 1:
            times["mean"] = float(np.mean(list(times.values())))
            left["mean"] = float(np.mean(list(left.values())))
        for domain, milliseconds in times.items():
            row: Row = {"case": case.name, "threads": threads, "run": kind, "domain": domain}
            row |= {"ms": milliseconds, "over dense": milliseconds / dense}
            row |= {
                "over best dense": milliseconds / min(dense, offline),
                "MACs left": left[domain],
            }
            rows.append(row)
    return rows


def measure(case: Case, folder: Path, threads: int, rounds: int, openvino: bool) -> list[Row]:
    """Compiles a case, times it and returns its rows."""
    bundle, report = compile_case(case, folder)
    right = references(case)
    groups = [
        onnxruntime_runs(case, bundle, folder, threads) | native_runs(case, bundle, folder, threads)
    ]
    if openvino:
        groups.append(openvino_runs(case, bundle, folder, threads))
    rows: list[Row] = []
    for runs in groups:
        named = {" ".join(key): call for key, call in runs.items()}
        expected = {" ".join(key): right[key[1]] for key in runs}
        seconds = time_in_turn(named, expected, rounds)
        rows += rows_of(case, report, {key: seconds[" ".join(key)] for key in runs}, threads)
    return rows


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=["r50", "wrn"])
    parser.add_argument("--styles", nargs="*", choices=STYLES, default=["regular"])
    parser.add_argument("--domains", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--openvino", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for network in arguments.networks:
            for style in arguments.styles:
                case = make_case(network, style, arguments.domains)
                rows += measure(
                    case, Path(folder), arguments.threads, arguments.rounds, arguments.openvino
                )
    show(f"Latency at batch 1, medians of {arguments.rounds} rounds in turn", rows)
    name = "-".join(["latency", str(arguments.threads), *arguments.styles])
    print(save(name, vars(arguments), rows))


if __name__ == "__main__":
    main()
