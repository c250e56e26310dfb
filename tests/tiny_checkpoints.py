"""A small checkpoint for the tests of the command line and of the libraries behind it."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mdprune_deploy as mdp

DOMAINS = ("first", "second")
LABELS = ["ant", "bee", "cat", "dog", "elk"]


class Net(nn.Module):
    """Two masked convolutions and a head; `op` sits between them and may be anything."""

    def __init__(self, op: Callable[[Tensor], Tensor] = torch.relu):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        y = self.op(self.bn(self.conv1(x)))
        return self.head(torch.relu(self.conv2(y)).mean((2, 3)))


def network(op: Callable[[Tensor], Tensor] = torch.relu) -> nn.Module:
    torch.manual_seed(0)
    net = Net(op)
    nn.init.uniform_(net.bn.running_mean, -0.5, 0.5)
    nn.init.uniform_(net.bn.running_var, 0.5, 2.0)
    return net.eval()


def scores(seed: int) -> Tensor:
    """Of 16 channels 12 are on."""
    values = torch.rand(16, generator=torch.Generator().manual_seed(seed)) + 0.1
    values[torch.randperm(16, generator=torch.Generator().manual_seed(seed))[:4]] *= -1
    return values


def domains(*, boolean: bool = True, names: tuple[str, ...] = DOMAINS) -> dict[str, mdp.Domain]:
    found = {}
    for index, name in enumerate(names):
        values = scores(index)
        mask = mdp.Mask(values > 0 if boolean else values, "in")
        own = torch.randn(5, 16, generator=torch.Generator().manual_seed(index))
        found[name] = mdp.Domain({"conv2.weight": mask}, {"head.weight": own}, LABELS)
    return found


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="mdprune-tests-"))
    atexit.register(shutil.rmtree, folder)
    return folder


@functools.cache
def checkpoint(kind: str = "boolean") -> Path:
    """Returns a checkpoint file, made once in a test run; nobody may change it.

    Args:
        kind: `boolean` switches, `scores`, or `unsupported` for a graph that cannot be compiled.
    """
    path = _folder() / f"{kind}.pt"
    op = (lambda y: torch.cumsum(y, 1)) if kind == "unsupported" else torch.relu
    example = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mdp.save_checkpoint(path, network(op), example, domains(boolean=kind != "scores"))
    return path


@functools.cache
def bundle() -> Path:
    """Returns the bundle of `checkpoint()`; nobody may change it."""
    path = _folder() / "bundle"
    mdp.compile(checkpoint(), path)
    return path


def copy_of_bundle(folder: Path) -> Path:
    """Returns a copy of `bundle()` that may be changed."""
    return Path(shutil.copytree(bundle(), folder / "copy"))


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes a bundle's manifest."""
    manifest = path / "manifest.json"
    tree = json.loads(manifest.read_text())
    edit(tree)
    manifest.write_text(json.dumps(tree))


def bless(path: Path, name: str) -> None:
    """Enters a changed file's size and sha256 into the manifest."""
    data = (path / name).read_bytes()
    entry = {"size": len(data), "sha256": sha256(data).hexdigest()}
    edit_manifest(path, lambda tree: tree["files"].update({name: entry}))
