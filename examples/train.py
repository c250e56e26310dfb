"""Trains one multi-domain network on four image domains and writes it as `model.pt`.

A dense network with own batch norms and heads per domain is trained first. From there two runs of
equal length go on: the unpruned baseline, and the switchable network under the budget. Both are
judged on the same test split, which is written too, so that compiled engines can be judged on it.
The same arguments on the same machine give the same bytes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# One thread for each network: the baseline and the masked one train side by side, neither waits
# for the other, and no sum depends on the number of threads. OpenMP reads this as torch loads.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from data import ImageDomain, Split, load_domains
from model import WideResNet
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from mdprune_deploy.checkpoint import save_checkpoint
from mdprune_deploy.training import (
    MultiDomainNetwork,
    Settings,
    accuracy,
    intersection_over_union,
    to_backbone,
    to_domains,
    train,
)

SHARING_TARGET = 0.3
"""The domains are asked to overlap up to a sharing loss of this, and are free beyond it."""
SHIFT = 2
"""Training batches are shifted by up to this many pixels."""


@dataclass(frozen=True)
class Scale:
    """How large a run is: images per domain, width of the network, steps of both phases."""

    train_images: int
    test_images: int
    width: int
    warm_steps: int
    steps: int


FULL = Scale(train_images=2500, test_images=500, width=2, warm_steps=400, steps=450)
QUICK = Scale(train_images=400, test_images=100, width=1, warm_steps=30, steps=30)


def main() -> None:
    """Reads the command line and does everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="directory to write into")
    parser.add_argument("--budget", type=float, default=0.5)
    sharing = ("jaccard", "union", "intersection", "none")
    parser.add_argument("--sharing", choices=sharing, default="jaccard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small run that only smokes")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    scale = QUICK if args.quick else FULL
    settings = Settings(
        steps=scale.steps,
        budget=args.budget,
        sharing=args.sharing,
        sharing_target=SHARING_TARGET,
        seed=args.seed,
    )
    started = time.perf_counter()
    images = load_domains(scale.train_images, scale.test_images, args.seed)
    baseline, masked = train_both(images, settings, scale)
    args.output.mkdir(parents=True, exist_ok=True)
    figures = evaluate(images, baseline, masked)
    write(args.output, images, masked, figures)
    show(figures, time.perf_counter() - started)


def train_both(
    images: dict[str, ImageDomain], settings: Settings, scale: Scale
) -> tuple[MultiDomainNetwork, MultiDomainNetwork]:
    """Returns the unpruned baseline and the masked network, trained for as long as each other."""
    data = {name: tensors(domain.train) for name, domain in images.items()}
    classes = {name: len(domain.labels) for name, domain in images.items()}
    plain = WideResNet(scale.width)
    # PyTorch's types know this argument only with a tensor.
    plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:

        def run(title: str, start: MultiDomainNetwork, settings: Settings) -> MultiDomainNetwork:
            task = progress.add_task(title, total=settings.steps)
            trained = copy.deepcopy(start)
            train(trained, data, settings, augment=shift, watch=lambda _: progress.advance(task))
            return trained

        dense = replace(settings, budget=1.0, search=0.0, sharing="none")
        start = replace(dense, steps=scale.warm_steps, rate=2 * dense.rate)
        warm = run("dense start", MultiDomainNetwork(plain, classes), start)
        with ThreadPoolExecutor(max_workers=2) as pool:
            baseline = pool.submit(run, "unpruned baseline", warm, dense)
            masked = pool.submit(run, f"budget {settings.budget:g}", warm, settings)
            return baseline.result(), masked.result()


def tensors(split: Split) -> tuple[Tensor, Tensor]:
    """Returns a split as tensors, channels last: the faster layout for convolutions on a CPU."""
    x = torch.from_numpy(split.x).contiguous(memory_format=torch.channels_last)
    return x, torch.from_numpy(split.y)


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Moves a batch of images by a few pixels; what leaves one side comes in at the other."""
    down, right = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
    return torch.roll(x, (down, right), (2, 3))


def evaluate(
    images: dict[str, ImageDomain], baseline: MultiDomainNetwork, masked: MultiDomainNetwork
) -> dict[str, Any]:
    """Returns what `accuracy.json` holds."""
    data = {name: tensors(domain.test) for name, domain in images.items()}
    before, after = accuracy(baseline, data), accuracy(masked, data)
    kept = dict(zip(masked.domains, masked.complexity().tolist(), strict=True))
    return {
        "domains": {
            name: {
                "classes": len(domain.labels),
                "test_images": len(domain.test.y),
                "baseline": before[name],
                "masked": after[name],
                "switches_on": kept[name],
            }
            for name, domain in images.items()
        },
        "intersection_over_union": intersection_over_union(masked),
    }


def write(
    output: Path,
    images: dict[str, ImageDomain],
    masked: MultiDomainNetwork,
    figures: dict[str, Any],
) -> None:
    """Writes `model.pt`, `accuracy.json` and `test-split.npz`."""
    example = torch.from_numpy(next(iter(images.values())).test.x[:1])
    labels = {name: domain.labels for name, domain in images.items()}
    save_checkpoint(output / "model.pt", to_backbone(masked), example, to_domains(masked, labels))
    (output / "accuracy.json").write_text(json.dumps(figures, indent=1) + "\n")
    arrays = {
        f"{name}/{key}": getattr(domain.test, key)
        for name, domain in images.items()
        for key in "xy"
    }
    np.savez(output / "test-split.npz", **arrays)


def show(figures: dict[str, Any], seconds: float) -> None:
    """Prints the table."""
    table = Table(title="Accuracy on the test split")
    table.add_column("domain")
    for heading in ("classes", "images", "unpruned", "masked", "weights kept"):
        table.add_column(heading, justify="right")
    for name, row in figures["domains"].items():
        shares = (f"{row[key]:.1%}" for key in ("baseline", "masked", "switches_on"))
        table.add_row(name, str(row["classes"]), str(row["test_images"]), *shares)
    overlap = figures["intersection_over_union"]
    table.caption = f"all domains keep {overlap:.0%} of what any keeps; trained in {seconds:.0f} s"
    Console().print(table)


if __name__ == "__main__":
    main()
