"""What reading input channels through an index list costs: a random half beside a contiguous one.

Every convolution of the network becomes a network of its own, compiled twice with half of its input
channels on: a random half, and the first half. Filters, products and stored bytes are the same;
what differs is which channels of its input the kernel reads. Times are those that the runtime takes
of the operator, in turn; `ratio` is of medians, and the last row is of the sums over the network.
Run `python -m benchmarks.gather [--network r50]`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn

import mdprune_deploy as mdp
from mdprune_deploy.engines.native import Context, open_model

from .harness import relative_error, save, show
from .masks import masked_convolutions
from .networks import NETWORKS

Shape = tuple[int, int, int, int, int]
"""Input channels, filters, kernel, stride, size of the input's sides."""
HALVES = ("random", "contiguous")
TOLERANCE = 1e-5


def shapes_of(network: str) -> Counter[Shape]:
    """Returns the shapes of a network's masked convolutions and how often they occur."""
    model, example = NETWORKS[network]()
    shapes: Counter[Shape] = Counter()

    def count(layer: nn.Conv2d, inputs: tuple[torch.Tensor, ...]) -> None:
        kernel, stride = layer.kernel_size[0], layer.stride[0]
        size = inputs[0].shape[-1]
        shapes[layer.in_channels, layer.out_channels, kernel, stride, size] += 1

    for layer in masked_convolutions(model).values():
        layer.register_forward_pre_hook(count)
    with torch.no_grad():
        model(example)
    return shapes


def compile_half(shape: Shape, half: str, folder: Path) -> tuple[Path, torch.Tensor, nn.Module]:
    """Compiles a convolution that reads half of its input channels.

    Returns:
        The bundle, an input, and the convolution with the other half's weights zero.
    """
    channels, filters, kernel, stride, size = shape
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=False)
    order = torch.randperm(channels) if half == "random" else torch.arange(channels)
    on = torch.zeros(channels, dtype=torch.bool)
    on[order[: channels // 2]] = True
    x = torch.randn(1, channels, size, size)
    name = "x".join(map(str, shape)) + f"-{half}"
    checkpoint, bundle = folder / f"{name}.pt", folder / name
    domain = mdp.Domain(masks={"0.weight": mdp.Mask(on, axis="in")}, state={})
    model = nn.Sequential(layer).eval()
    mdp.save_checkpoint(checkpoint, model, x, {"half": domain})
    mdp.compile(checkpoint, bundle, targets=("native",))
    with torch.no_grad():
        layer.weight *= on[None, :, None, None]
    return bundle, x, model


def measure(shape: Shape, times: int, rounds: int, folder: Path) -> dict[str, object]:
    """Returns the row of one shape."""
    contexts, nanoseconds = {}, {half: [] for half in HALVES}
    for half in HALVES:
        bundle, x, model = compile_half(shape, half, folder)
        with torch.no_grad():
            expected = model(x).numpy()
        y = np.zeros_like(expected)
        context = Context(open_model(bundle), "half", 1, None, profile=True)
        contexts[half] = (context, [x.numpy()], [y])
        context.run(1, [x.numpy()], [y])
        error = relative_error(y, expected)
        if error > TOLERANCE:
            raise AssertionError(f"{shape}, {half}: relative error {error:.1e}")
    for index in range(rounds + 2):
        for half in HALVES[:: 1 if index % 2 else -1]:
            context, inputs, outputs = contexts[half]
            context.run(1, inputs, outputs)
            context.run(1, inputs, outputs)
            if index >= 2:
                nanoseconds[half].append(sum(time.nanoseconds for time in context.profile()))
    medians = {half: statistics.median(values) / 1e3 for half, values in nanoseconds.items()}
    row: dict[str, object] = {"shape": "x".join(map(str, shape)), "times": times}
    row |= {f"{half} us": value for half, value in medians.items()}
    return row | {"ratio": medians["random"] / medians["contiguous"]}


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, default="r50")
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(shape, times, arguments.rounds, Path(folder))
            for shape, times in shapes_of(arguments.network).items()
        ]
    total: dict[str, object] = {"shape": arguments.network, "times": 1}
    for half in HALVES:
        total[f"{half} us"] = sum(row["times"] * row[f"{half} us"] for row in rows)  # type: ignore[operator]
    total["ratio"] = total["random us"] / total["contiguous us"]  # type: ignore[operator]
    rows.append(total)
    show("A random half of the input channels beside a contiguous one", rows)
    print(save("gather", vars(arguments), rows))


if __name__ == "__main__":
    main()
