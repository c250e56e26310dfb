"""The figures of a GPU: kernels against cuDNN, a network against PyTorch, memory, switching.

`make bench-gpu` runs it. Without a GPU it says so and ends with 1; `--emulate` runs all of it that
needs no PyTorch with CUDA, on the library that `MDPRUNE_CUDA_LIBRARY` names and on a network of
toy size: its figures mean nothing.

Convolutions: those of the network, each with half of its channels and filters, in float16. `gather`
is the time with drawn index lists over the time of the same kernel without any; `cuDNN` is
the time of cuDNN's convolution with bias and ReLU fused, of as many products, over that of the
gathered one; above 1 ours is faster. The network: its domains keep half of each convolution's input
channels; `PyTorch` is the same domain physically pruned, channels-last in float16. Both are
replayed as CUDA graphs on device memory.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.engines import load
from mdprune_deploy.engines.cuda import CudaEngine
from mdprune_deploy.engines.native import Context, open_model

from .gather import Shape, shapes_of
from .harness import (
    Array,
    Case,
    compile_case,
    make_case,
    masked_dense,
    reference,
    relative_error,
    save,
    show,
)
from .masks import make_domains
from .networks import ResNet
from .torch_graph import TorchGraph

Row = dict[str, object]
PROGRAM = Path("build/gpu/tests/cuda_convolution_bench")
LIMITS = {"float32": 1e-5, "float16": 5e-3}
NEEDS_GPU = "no GPU: PyTorch finds none; --emulate tries the script on an emulated one"


def toy_case(domains: int) -> Case:
    """Returns a network that an emulated GPU runs in a second."""
    torch.manual_seed(0)
    model = ResNet(blocks=(1, 1), width=8).eval()
    return Case("toy", model, torch.randn(1, 3, 32, 32), make_domains(model, domains))


def figure(name: str, value: float, at_least: float, aim: float | None, *, most: bool) -> Row:
    """Returns the row of one figure of the goals; `most`: smaller is better."""
    good = value <= at_least if most else value >= at_least
    return {
        "figure": name, "value": value, "bound": at_least, "aim": aim, "holds": str(good).lower(),
    }  # fmt: skip


# Convolutions


def time_convolution(program: Path, precision: str, batch: int, shape: Shape, rounds: int) -> Row:
    """Runs the C++ program on one shape."""
    arguments = [precision, batch, *shape, rounds]
    result = subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise SystemExit(f"{program} {' '.join(map(str, arguments))}: {result.stderr.strip()}")
    found = json.loads(result.stdout)
    name = "x".join(map(str, shape))
    return {
        "precision": precision, "batch": batch, "shape": name, "plain us": found["plain"],
        "gathered us": found["gathered"], "ratio": found["gathered"] / found["plain"],
    }  # fmt: skip


def time_cudnn(batch: int, shape: Shape, rounds: int) -> float:
    """Returns microseconds of cuDNN's convolution of half the channels and filters, fused."""
    channels, filters, kernel, stride, size = shape
    layout = {"dtype": torch.float16, "device": "cuda"}
    x = torch.randn(batch, channels // 2, size, size, **layout)  # type: ignore[call-overload]
    weight = torch.randn(filters // 2, channels // 2, kernel, kernel, **layout)  # type: ignore[call-overload]
    x = x.to(memory_format=torch.channels_last)
    weight = weight.to(memory_format=torch.channels_last)
    bias = torch.randn(filters // 2, **layout)  # type: ignore[call-overload]
    pad = kernel // 2

    def call() -> None:
        torch.cudnn_convolution_relu(x, weight, bias, [stride] * 2, [pad] * 2, [1, 1], 1)

    return graph_microseconds(call, rounds, launches=20)


def graph_microseconds(call: Callable[[], object], rounds: int, launches: int = 1) -> float:
    """Captures calls in a CUDA graph and returns the median time of one."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(launches):
            call()
    return replay_microseconds(graph, rounds) / launches


def replay_microseconds(graph: torch.cuda.CUDAGraph, rounds: int) -> float:
    """Returns the median time of a replay."""
    times = []
    for _ in range(rounds + 10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times[10:])


def convolutions(
    program: Path, shapes: dict[Shape, int], arguments: argparse.Namespace
) -> list[Row]:
    """Times all shapes at all batches; cuDNN beside them where PyTorch has CUDA."""
    rows = []
    for batch in arguments.batches:
        for shape, times in shapes.items():
            row = time_convolution(program, "float16", batch, shape, arguments.rounds)
            row["times"] = times
            if not arguments.emulate:
                row["cuDNN us"] = time_cudnn(batch, shape, arguments.rounds)
                row["cuDNN"] = row["cuDNN us"] / row["gathered us"]  # type: ignore[operator]
            rows.append(row)
    return rows


def geometric_mean(values: Iterable[float]) -> float:
    """Returns exp(mean(log(values)))."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


# The network


def errors(case: Case, bundle: Path) -> list[Row]:
    """Holds the first domain against the masked dense network in float64."""
    x = case.example.numpy()
    expected = reference(masked_dense(case.model, case.domains["domain0"]), x)
    rows = []
    for precision, limit in LIMITS.items():
        engine = load(bundle, "domain0", device="cuda", precision=precision)
        error = relative_error(np.asarray(engine(x)), expected)
        rows.append(figure(f"error of {precision}", error, limit, None, most=True))
    return rows


def time_network(case: Case, bundle: Path, rounds: int) -> list[Row]:
    """Times a domain as a CUDA graph beside PyTorch's on the same memory."""
    x = case.example.cuda()
    files = read_bundle(bundle).manifest.models["domain0"].onnx
    assert files is not None
    pruned = TorchGraph(bundle / files.portable, "cuda", torch.float16)
    with torch.no_grad():
        y = torch.empty_like(pruned(x))
        other = graph_microseconds(lambda: pruned(x), rounds)
    stream = torch.cuda.Stream()
    context = Context(
        open_model(bundle), "domain0", 1, None, device="cuda", precision="float16", tune=True,
        stream=stream.cuda_stream,
    )  # fmt: skip
    context.run_on_device(1, [x.data_ptr()], [y.data_ptr()])
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        context.run_on_device(1, [x.data_ptr()], [y.data_ptr()])
    own = replay_microseconds(graph, rounds)
    with torch.no_grad():
        error = relative_error(y.cpu().numpy(), pruned(x).cpu().numpy())
    if error > 2 * LIMITS["float16"]:
        raise SystemExit(f"the network differs from PyTorch's by {error:.1e}")
    print(f"{case.name}: {own:.0f} us, PyTorch {other:.0f} us")
    return [figure("PyTorch / ours, end to end", other / own, 1.0, 1.5, most=False)]


def memory(case: Case, bundle: Path) -> list[Row]:
    """Compares what all domains hold on the GPU with the dense network's weights in float16."""
    engine = load(bundle, "domain0", device="cuda", precision="float16")
    assert isinstance(engine, CudaEngine)
    held = engine.memory()
    dense = 2 * sum(p.numel() for p in case.model.parameters())
    ratio = (held.weights + held.tables) / dense
    print(f"{held.weights:,} B of weights, {held.tables:,} B of tables, dense {dense:,} B")
    name = f"weights and tables of {len(case.domains)} domains / dense"
    return [figure(name, ratio, 1.05, 0.9, most=True)]


def switching(bundle: Path, x: Array, rounds: int) -> list[Row]:
    """Times the choice of another domain, and what the first run behind it takes more."""
    model = open_model(bundle)
    context = Context(model, "domain0", 1, None, device="cuda", precision="float16")
    outputs = [[np.empty(model.shapes(d, "output")[0], np.float32)] for d in range(2)]

    def times(step: int) -> tuple[float, float]:
        selects, runs = [], []
        for index in range(rounds + 4):
            domain = index * step % 2
            begin = time.perf_counter()
            context.select(domain)
            selected = time.perf_counter()
            context.run(1, [x], outputs[domain])
            selects.append(selected - begin)
            runs.append(time.perf_counter() - selected)
        return statistics.median(selects[4:]), statistics.median(runs[4:])

    (_, same), (select, other) = times(0), times(1)
    print(f"select {select * 1e6:.1f} us, runs of one domain {same * 1e6:.0f} us, of two in turn")
    print(f"{other * 1e6:.0f} us")
    return [figure("switch, us", select * 1e6, 50, 10, most=True)]


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--program", type=Path, default=PROGRAM)
    parser.add_argument("--network", default="r50")
    parser.add_argument("--domains", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 16])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--output", type=Path, help="folder of the result")
    parser.add_argument("--emulate", action="store_true")
    arguments = parser.parse_args()
    if not arguments.emulate and not torch.cuda.is_available():
        raise SystemExit(NEEDS_GPU)
    if not arguments.program.exists():
        raise SystemExit(f"{arguments.program} is not built: make bench-gpu builds it")
    if arguments.emulate:
        shapes: dict[Shape, int] = {(16, 32, 3, 1, 6): 1, (32, 16, 1, 2, 6): 2}
        case = toy_case(arguments.domains)
    else:
        shapes = dict(shapes_of(arguments.network))
        case = make_case(arguments.network, "regular", arguments.domains)
    rows = convolutions(arguments.program, shapes, arguments)
    gather = geometric_mean(float(row["ratio"]) for row in rows)  # type: ignore[arg-type]
    figures = [figure("gathered / plain", gather, 1.05, 1.02, most=True)]
    if not arguments.emulate:
        for batch in arguments.batches:
            ratio = geometric_mean(float(r["cuDNN"]) for r in rows if r["batch"] == batch)  # type: ignore[arg-type]
            figures.append(figure(f"cuDNN / ours, batch {batch}", ratio, 0.85, 1.2, most=False))
    with tempfile.TemporaryDirectory() as folder:
        bundle, _ = compile_case(case, Path(folder))
        figures += errors(case, bundle)
        if not arguments.emulate:
            figures += time_network(case, bundle, arguments.rounds)
        figures += memory(case, bundle) + switching(bundle, case.example.numpy(), arguments.rounds)
        variant = load(bundle, "domain0", device="cuda", precision="float16").variant
    show("Convolutions", rows)
    show("Figures", figures)
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "output"}
    settings |= {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    settings |= {"runs on": variant} | ({} if arguments.emulate else device_versions())
    print(save("cuda", settings, [*figures, *rows], arguments.output))


def device_versions() -> dict[str, str]:
    """Returns what the GPU is and what drives it."""
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "gpu": torch.cuda.get_device_name(), "driver": driver.stdout.strip(),
        "cuda of PyTorch": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
