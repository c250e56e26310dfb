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
from .evaluate import Array
from .knapsack import Switches
from .passes.bind import WeightUse
from .passes.facts import Facts
from .passes.figures import products, used_sets
from .passes.operators.product import Layer, Product
from .passes.remove import analyzed
from .weights import readers, readers_of


@dataclasses.dataclass(frozen=True, eq=False)
class _Weight:
    """A masked weight: its dense layer and its multiply-accumulates at batch 1."""

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
    sites = {checkpoint.sites[key] for key in checkpoint.domains[domain].masks}
    if metric == "switches":
        return _used_switches(checkpoint, domain, model.graph, facts)
    used = used_sets(model.graph, facts)
    counted: set[WeightUse] = set()
    kept = total = 0
    for node, entry, layer in products(model.graph, facts):
        use = node.meta["weight"]
        if use.name not in sites or (metric == "params" and use in counted):
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
    kept = total = 0
    for key, _, mask in flat_masks(checkpoint.domains[domain]):
        site = checkpoint.sites[key]
        total += mask.on.numel()
        if site in by_name:
            pairs, layer = by_name[site], layers[site]
            used = layer.by_channel(pairs) if mask.axis == "in" else pairs.any(axis=1)
            kept += int((mask.on.numpy() & used).sum())
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
    weights = _masked_weights(checkpoint, domain)
    found = []
    for key, _, mask in flat_masks(checkpoint.domains[domain]):
        weight = weights[key]
        on = mask.on.cpu().numpy()
        total = {"params": weight.layer.weight.size, "macs": weight.macs, "switches": len(on)}
        found.append(
            SwitchGroup(
                weight=checkpoint.sites[key],
                axis=mask.axis,
                cost=np.full(len(on), total[metric] / len(on)),
                on=on,
                scores=mask.values.cpu().double().numpy() if mask.is_score else None,
                magnitude=_norms(weight.layer, mask.axis) if magnitudes else None,
                threshold=mask.threshold,
            )
        )
    return found


def _masked_weights(checkpoint: Checkpoint, domain: str) -> dict[str, _Weight]:
    """Returns the dense layer behind every mask of a domain."""
    dense = dataclasses.replace(checkpoint.domains[domain], masks={})
    unmasked = dataclasses.replace(checkpoint, domains={domain: dense})
    model, facts = analyzed(unmasked, domain)
    layers: dict[str, tuple[ir.Node, Product, Layer]] = {}
    for node, entry, layer in products(model.graph, facts):
        layers.setdefault(node.meta["weight"].name, (node, entry, layer))
    found = {}
    sources = readers(checkpoint.model.graph)
    for key in checkpoint.domains[domain].masks:
        reader = readers_of(checkpoint.sites[key], sources)[0]
        node, entry, layer = layers[str(reader.weight.name)]
        found[key] = _Weight(layer, entry.macs(layer, node, facts, layer.pairs.size))
    return found


def _norms(layer: Layer, axis: Axis) -> Array:
    """Returns the Euclidean norm of each channel's weights."""
    squares = (layer.weight**2).reshape(*layer.weight.shape[:2], -1).sum(axis=2)
    if axis == "in":
        squares = squares.reshape(layer.groups, -1, squares.shape[1]).swapaxes(1, 2)
    norms: Array = np.sqrt(squares.sum(axis=-1)).reshape(-1)
    return norms
