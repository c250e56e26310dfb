"""Torch-Pruning on the same masks: is it exact, what is left, how fast is it?

Torch-Pruning removes *groups*: channels that a residual sum or a common reader ties together go
together. Masks on input channels say something else: every reader drops its own channels. Two ways
to give one the other, per domain, on the masked dense network:

* `agree`: a channel goes only if every reader in its group has it off. Exact, but few go.
* `default`: as the tool is used. A group's importance is the mean of its readers' switches, and
  its lower half goes. Many go, also channels that some reader has on.

Beside them this project's bundle. The error is relative to the masked dense network in float64; a
row with an error above 1e-5 computes something else. Run `python -m benchmarks.torch_pruning`.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp  # type: ignore[import-untyped]
from torch import nn

from mdprune_deploy.domain import Domain, Mask

from .harness import (
    TOLERANCE,
    Array,
    Call,
    Case,
    compile_case,
    engine_call,
    export_onnx,
    make_case,
    masked_dense,
    median_ms,
    native_call,
    reference,
    relative_error,
    runner,
    save,
    session,
    show,
    time_in_turn,
)
from .masks import STYLES
from .networks import NETWORKS

Row = dict[str, object]
INPUT_PRUNERS = (tp.prune_conv_in_channels, tp.prune_linear_in_channels)


def switches_of(model: nn.Module, domain: Domain) -> dict[nn.Module, torch.Tensor]:
    """Returns the input switches of every convolution and linear layer, all on without a mask."""
    result: dict[nn.Module, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            mask = domain.masks.get(f"{name}.weight")
            assert mask is None or isinstance(mask, Mask)
            width = module.weight.shape[1]
            result[module] = torch.ones(width, dtype=torch.bool) if mask is None else mask.on
    return result


def readers_of(group: Any, switches: Mapping[nn.Module, torch.Tensor]) -> list[torch.Tensor]:
    """Returns, for each reader in a group, its switches in the order of the group's channels."""
    found = []
    for dependency, channels in group:
        if dependency.handler in INPUT_PRUNERS:
            found.append(switches[dependency.target.module][channels])
    return found


def prune_where_all_agree(
    model: nn.Module, example: torch.Tensor, switches: Mapping[nn.Module, torch.Tensor]
) -> None:
    """Removes the channels, in place, that every reader in their group has off."""
    graph = tp.DependencyGraph().build_dependency(model, example)
    for group in list(graph.get_all_groups(ignored_layers=heads(model))):
        readers = readers_of(group, switches)
        if readers:
            off = torch.flatten(torch.nonzero(~torch.stack(readers).any(dim=0))).tolist()
            if 0 < len(off) < len(readers[0]):
                group.prune(idxs=off)


class SwitchImportance(tp.importance.Importance):  # type: ignore[misc]
    """Importance of a group's channels: the mean of its readers' switches."""

    def __init__(self, switches: Mapping[nn.Module, torch.Tensor]):
        self.switches = switches

    def __call__(self, group: Any) -> torch.Tensor | None:
        """Returns one number per channel, or None for a group that nothing reads."""
        readers = readers_of(group, self.switches)
        return torch.stack(readers).float().mean(dim=0) if readers else None


def prune_by_default(
    model: nn.Module, example: torch.Tensor, switches: Mapping[nn.Module, torch.Tensor]
) -> None:
    """Removes the lowest half of every group, in place, as the tool's pruner does."""
    importance = SwitchImportance(switches)
    tp.pruner.BasePruner(
        model, example, importance, pruning_ratio=0.5, ignored_layers=heads(model)
    ).step()


def heads(model: nn.Module) -> list[nn.Module]:
    """Returns the linear layers: their outputs are the classes."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


MODES = {"agree": prune_where_all_agree, "default": prune_by_default}


def macs(model: nn.Module, example: torch.Tensor) -> int:
    """Counts the multiply-accumulates of convolutions and linear layers on `example`."""
    total = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        total += output.numel() // weight.shape[0] * weight.numel()

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    return total


@dataclass(frozen=True, eq=False)
class Contestant:
    """One tool's network of one domain: what to call, the right output, and its share of MACs."""

    tool: str
    domain: str
    call: Call
    expected: Array
    macs_left: float


def contestants(case: Case, folder: Path) -> list[Contestant]:
    """Prunes every domain with every tool; the first is the dense network."""
    x = case.example.numpy()
    bundle, report = compile_case(case, folder)
    dense = export_onnx(case.model, case.example, folder / f"{case.name}-dense.onnx")
    found = [Contestant("dense", "", runner(session(dense, 1), x), reference(case.model, x), 1.0)]
    for name, domain in case.domains.items():
        masked = masked_dense(case.model, domain)
        expected, whole = reference(masked, x), macs(masked, case.example)
        for mode, prune in MODES.items():
            model = copy.deepcopy(masked)
            prune(model, case.example, switches_of(model, domain))
            left = macs(model, case.example) / whole
            path = export_onnx(model, case.example, folder / f"{case.name}-{name}-{mode}.onnx")
            call = runner(session(path, 1), x)
            found.append(Contestant(f"Torch-Pruning, {mode}", name, call, expected, left))
        left = report.domains[name].macs_emitted / report.domains[name].macs_dense
        call = engine_call(bundle, name, x)
        found.append(Contestant("mdprune, ONNX Runtime", name, call, expected, left))
        call = native_call(bundle, name, x)
        found.append(Contestant("mdprune, native", name, call, expected, left))
    return found


def measure(case: Case, folder: Path, rounds: int) -> list[Row]:
    """Returns a row per domain and tool; inexact networks are timed too, and marked."""
    found = contestants(case, folder)
    calls = {f"{c.tool} {c.domain}": c.call for c in found}
    outputs = {name: call() for name, call in calls.items()}
    seconds = time_in_turn(calls, outputs, rounds)
    dense = median_ms(seconds["dense "])
    rows: list[Row] = []
    for c, name in zip(found, calls, strict=True):
        error = relative_error(outputs[name], c.expected)
        row: Row = {"case": case.name, "tool": c.tool, "domain": c.domain, "error": error}
        row |= {"exact": "yes" if error <= TOLERANCE else "NO", "MACs left": c.macs_left}
        milliseconds = median_ms(seconds[name])
        rows.append(row | {"ms": milliseconds, "over dense": milliseconds / dense})
    return rows


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=["r50", "wrn"])
    parser.add_argument("--styles", nargs="*", choices=STYLES, default=["regular"])
    parser.add_argument("--domains", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for network in arguments.networks:
            for style in arguments.styles:
                case = make_case(network, style, arguments.domains)
                rows += measure(case, Path(folder), arguments.rounds)
    show(f"The same masks, one thread, medians of {arguments.rounds} rounds in turn", rows)
    print(save("torch_pruning", vars(arguments), rows))


if __name__ == "__main__":
    main()
