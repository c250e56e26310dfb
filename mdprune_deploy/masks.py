"""Fits the domains' masks to a budget: the bridge between a checkpoint and `budget`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
import torch

from .budget import SHARING, Metric, SwitchGroup, select
from .checkpoint import Checkpoint
from .domain import Axis, Domain, Mask
from .errors import UnsupportedGraphError
from .evaluate import Array
from .knapsack import Switches
from .passes.bind import WeightUse
from .passes.facts import Facts
from .passes.figures import products, used_sets
from .passes.operators.product import Layer
from .passes.remove import analyzed
from .weights import readers, readers_of


@dataclasses.dataclass(frozen=True, eq=False)
class _Weight:
    """A masked weight of the dense network.

    Attributes:
        name: The weight's name: where a parameter is masked, that of the weight made from it.
        layer: The first layer that reads it.
        macs: Multiply-accumulates of all layers that read it, at batch 1.
    """

    name: str
    layer: Layer
    macs: int


def flat_masks(domain: Domain) -> Iterator[tuple[str, int, Mask]]:
    """Yields every mask of a domain with its key and its place under that key."""
    for key, masks in domain.masks.items():
        for index, mask in enumerate([masks] if isinstance(masks, Mask) else masks):
            yield key, index, mask


def fit_budget(
    checkpoint: Checkpoint,
    budget: float,
    metric: Metric = "params",
    fit: str | None = None,
    sharing: float = SHARING,
) -> Checkpoint:
    """Returns the checkpoint with masks that keep every domain inside the budget.

    Args:
        checkpoint: A checkpoint.
        budget: Largest used share of a domain's masked weights, in (0, 1].
        metric: What is counted: `params`, `macs` or `switches`.
        fit: `"magnitude"` allows boolean masks to be cut by the norm of their channels' weights.
        sharing: How strongly channels that other domains keep are preferred.

    Raises:
        BudgetError: Boolean masks are outside the budget; the message has the figures.
        UsageError: The budget or the metric is not one.
    """
    groups = {
        name: _groups(checkpoint, name, metric, magnitudes=fit is not None)
        for name in checkpoint.domains
    }
    chosen = select(
        groups,
        budget,
        metric=metric,
        sharing=sharing,
        fit=fit,  # type: ignore[arg-type]
        used_share=lambda name, kept: used_share(_with_switches(checkpoint, name, kept), name,
                                                 metric),
    )  # fmt: skip
    for name, kept in chosen.items():
        checkpoint = _with_switches(checkpoint, name, kept)
    return checkpoint


def used_share(checkpoint: Checkpoint, domain: str, metric: Metric) -> float:
    """Returns the share of a domain's masked weights that masks and dead code leave."""
    model, facts = analyzed(checkpoint, domain)
    masked = set(_weight_names(checkpoint, domain).values())
    if metric == "switches":
        return _used_switches(checkpoint, domain, model.graph, facts)
    used = used_sets(model.graph, facts)
    counted: set[WeightUse] = set()
    kept = total = 0
    for node, entry, layer in products(model.graph, facts):
        use = node.meta["weight"]
        if use.name not in masked or (metric == "params" and use in counted):
            continue
        counted.add(use)
        pairs = int(used[use].pairs.sum())
        if metric == "params":
            kept, total = kept + pairs * layer.kernel, total + layer.weight.size
        else:
            kept += entry.macs(layer, node, facts, pairs)
            total += entry.macs(layer, node, facts, layer.pairs.size)
    return kept / total if total else 0.0


def _used_switches(checkpoint: Checkpoint, domain: str, graph: ir.Graph, facts: Facts) -> float:
    """Counts the switches that are on and whose channel has a used pair."""
    by_name = {use.name: used.pairs for use, used in used_sets(graph, facts).items()}
    layers = {node.meta["weight"].name: layer for node, _, layer in products(graph, facts)}
    names = _weight_names(checkpoint, domain)
    kept = total = 0
    for key, _, mask in flat_masks(checkpoint.domains[domain]):
        total += mask.on.numel()
        if names[key] in by_name:
            pairs, layer = by_name[names[key]], layers[names[key]]
            used = layer.by_channel(pairs) if mask.axis == "in" else pairs.any(axis=1)
            kept += int((mask.on.cpu().numpy() & used).sum())
    return kept / total if total else 0.0


def _with_switches(checkpoint: Checkpoint, domain: str, kept: Sequence[Switches]) -> Checkpoint:
    """Replaces a domain's masks by boolean ones, in the order of `flat_masks`."""
    masks: dict[str, list[Mask]] = {}
    old = checkpoint.domains[domain]
    for (key, _, mask), switches in zip(flat_masks(old), kept, strict=True):
        values = torch.from_numpy(np.ascontiguousarray(switches, dtype=np.bool_))
        masks.setdefault(key, []).append(dataclasses.replace(mask, values=values))
    domains = dict(checkpoint.domains)
    domains[domain] = dataclasses.replace(old, masks=masks)
    return dataclasses.replace(checkpoint, domains=domains)


def _groups(
    checkpoint: Checkpoint, domain: str, metric: Metric, *, magnitudes: bool
) -> list[SwitchGroup]:
    """Returns a domain's masks as the budget sees them.

    The budget counts two masks on one weight as a product, which a grouped convolution is not: of
    a depthwise one, half of the filters and the same half of the channels leave one half, not a
    quarter. What is left is at most either mask's share, so at most their mean: there each mask
    counts as a weight of its own with half of the cost.
    """
    weights = _masked_weights(checkpoint, domain)
    masks = list(flat_masks(checkpoint.domains[domain]))
    axes = {(weights[key].name, mask.axis) for key, _, mask in masks}
    found = []
    for key, _, mask in masks:
        weight = weights[key]
        grouped = weight.layer.groups > 1
        on = mask.on.cpu().numpy()
        total = {"params": weight.layer.weight.size, "macs": weight.macs, "switches": len(on)}
        halved = grouped and {(weight.name, "in"), (weight.name, "out")} <= axes
        cost = total[metric] / (2 if halved and metric != "switches" else 1)
        found.append(
            SwitchGroup(
                weight=f"{weight.name} by filter"
                if grouped and mask.axis == "out"
                else weight.name,
                axis=mask.axis,
                cost=np.full(len(on), cost / len(on)),
                on=on,
                scores=mask.values.cpu().double().numpy() if mask.is_score else None,
                magnitude=_norms(weight.layer, mask.axis) if magnitudes else None,
                threshold=mask.threshold,
            )
        )
    return found


def _masked_weights(checkpoint: Checkpoint, domain: str) -> dict[str, _Weight]:
    """Returns the dense weight behind every mask of a domain, by the mask's key."""
    dense = dataclasses.replace(checkpoint.domains[domain], masks={})
    unmasked = dataclasses.replace(checkpoint, domains={domain: dense})
    model, facts = analyzed(unmasked, domain)
    layers: dict[str, Layer] = {}
    macs: dict[str, int] = {}
    for node, entry, layer in products(model.graph, facts):
        name = node.meta["weight"].name
        layers.setdefault(name, layer)
        macs[name] = macs.get(name, 0) + entry.macs(layer, node, facts, layer.pairs.size)
    names = _weight_names(checkpoint, domain)
    found = {}
    for key, name in names.items():
        if name not in layers:
            raise UnsupportedGraphError(
                f"domain {domain!r}: the mask on {key!r} cannot be held to a budget: no layer that "
                f"reads {name!r} has channels that can be counted"
            )
        found[key] = _Weight(name, layers[name], macs[name])
    for key, _, mask in flat_masks(checkpoint.domains[domain]):
        layer = layers[names[key]]
        if len(mask.values) != (layer.channels if mask.axis == "in" else layer.filters):
            raise UnsupportedGraphError(
                f"domain {domain!r}: the mask on {key!r} cannot be held to a budget: its layers "
                "read parts of that weight"
            )
    return found


def _weight_names(checkpoint: Checkpoint, domain: str) -> dict[str, str]:
    """Returns, by the key of a domain's masks, the name of the weight that layers read."""
    candidates = readers(checkpoint.model.graph)
    return {
        key: str(readers_of(checkpoint.sites[key], candidates)[0].weight.name)
        for key in checkpoint.domains[domain].masks
    }


def _norms(layer: Layer, axis: Axis) -> Array:
    """Returns the Euclidean norm of each channel's weights."""
    squares = (layer.weight**2).reshape(*layer.weight.shape[:2], -1).sum(axis=2)
    if axis == "in":
        squares = squares.reshape(layer.groups, -1, squares.shape[1]).swapaxes(1, 2)
    norms: Array = np.sqrt(squares.sum(axis=-1)).reshape(-1)
    return norms
