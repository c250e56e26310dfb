"""Counts: what each domain has, uses and emits, and what the domains share.

Parameters are weight elements of convolutions and matrix products, without biases and norms. A
channel pair is used where its weight is not zero, its filter is needed and live, and its input
channel is live.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..report import Held, LayerFigures
from .bind import WeightUse
from .elements import Needed, along, compress, elements, sizes
from .facts import Facts
from .operators import mixing, operator, product


@dataclass(frozen=True, eq=False)
class UsedPairs:
    """The used set of one weight in one domain.

    Attributes:
        pairs: Bool, shape `(filters, channels per group)`.
        kernel: Weight elements per pair.
    """

    pairs: Needed
    kernel: int

    @property
    def params(self) -> int:
        """Used weight elements."""
        return int(self.pairs.sum()) * self.kernel


def products(
    graph: ir.Graph, facts: Facts
) -> Iterator[tuple[ir.Node, product.Product, product.Layer]]:
    """Yields every convolution and matrix product with a constant weight."""
    for node in graph:
        entry = operator(node)
        if isinstance(entry, product.Product):
            yield node, entry, entry.layer(node, facts)


def used_pairs(node: ir.Node, entry: product.Product, facts: Facts) -> UsedPairs:
    """Returns the pairs that a domain's outputs depend on through one node."""
    layer = entry.layer(node, facts)
    need = facts.needed.get(node.outputs[0])
    if need is None:
        return UsedPairs(np.zeros_like(layer.pairs), layer.kernel)
    rows = along(need, layer.out_axis, layer.filters)
    live = layer.by_filter(entry.live_channels(node, facts))
    return UsedPairs(layer.pairs & rows[:, None] & live, layer.kernel)


def used_sets(graph: ir.Graph, facts: Facts) -> dict[WeightUse, UsedPairs]:
    """Returns the used set of every weight; a weight that is read twice counts once."""
    found: dict[WeightUse, UsedPairs] = {}
    for node, entry, _ in products(graph, facts):
        own = used_pairs(node, entry, facts)
        use = node.meta["weight"]
        before = found.get(use)
        pairs = own.pairs if before is None else before.pairs | own.pairs
        found[use] = UsedPairs(pairs, own.kernel)
    return found


def layer_figures(graph: ir.Graph, facts: Facts) -> tuple[LayerFigures, ...]:
    """Returns the figures of every product, in graph order.

    A weight's parameters are counted where it is read first.
    """
    rows: list[LayerFigures] = []
    used = used_sets(graph, facts)
    seen: set[WeightUse] = set()
    for node, entry, layer in products(graph, facts):
        use = node.meta["weight"]
        first = use not in seen
        seen.add(use)
        emitted = _emitted_pairs(node, entry, facts)
        rows.append(
            LayerFigures(
                name=use.name,
                kind=node.op_type,
                params_dense=layer.weight.size if first else 0,
                params_used=used[use].params if first else 0,
                params_emitted=emitted * layer.kernel,
                macs_dense=entry.macs(layer, node, facts, layer.pairs.size),
                macs_emitted=_emitted_macs(node, entry, layer, facts, emitted),
            )
        )
    rows.extend(_activation_products(graph, facts))
    return tuple(rows)


def _emitted_macs(
    node: ir.Node, entry: product.Product, layer: product.Layer, facts: Facts, pairs: int
) -> int:
    output = node.outputs[0]
    if output not in facts.kept:
        return 0
    whole, kept = facts.shape(output), sizes(facts.kept[output], facts.shape(output))
    positions = [int(np.prod(s)) // s[layer.out_axis] for s in (whole, kept)]
    return entry.macs(layer, node, facts, pairs) * positions[1] // positions[0]


def _emitted_pairs(node: ir.Node, entry: product.Product, facts: Facts) -> int:
    if node.outputs[0] not in facts.kept:
        return 0
    return sum(run.pairs for run in entry.runs(node, facts))


def _activation_products(graph: ir.Graph, facts: Facts) -> Iterator[LayerFigures]:
    for node in graph:
        if isinstance(operator(node), mixing.ActivationProduct) and node.inputs[0] is not None:
            output = node.outputs[0]
            contracted = facts.shape(node.inputs[0])[-1]
            dense = int(np.prod(facts.shape(output))) * contracted // facts.trace.batch
            emitted = 0
            if output in facts.kept:
                kept = sizes(facts.kept[output], facts.shape(output))
                emitted = int(np.prod(kept)) * contracted // facts.trace.batch
            yield LayerFigures(node.name or "", node.op_type, 0, 0, 0, dense, emitted)


def union_and_intersection(
    domains: Mapping[str, Mapping[WeightUse, UsedPairs]],
) -> tuple[int, int]:
    """Returns the weight elements that some domain uses and those that all domains use."""
    union: dict[WeightUse, UsedPairs] = {}
    count: dict[WeightUse, int] = {}
    common: dict[WeightUse, Needed] = {}
    for sets in domains.values():
        for use, used in sets.items():
            before = union.get(use)
            union[use] = used if before is None else UsedPairs(before.pairs | used.pairs,
                                                               used.kernel)  # fmt: skip
            common[use] = used.pairs if before is None else common[use] & used.pairs
            count[use] = count.get(use, 0) + 1
    total = sum(used.params for used in union.values())
    shared = sum(
        int(pairs.sum()) * union[use].kernel
        for use, pairs in common.items()
        if count[use] == len(domains)
    )
    return total, shared


def held_channels(domain: str, graph: ir.Graph, facts: Facts) -> list[Held]:
    """Lists every layer whose filters stay though no output depends on them, and who holds them.

    Channels that are kept because a kernel is faster with them are not held.
    """
    held = _held_by_outputs(graph, facts)
    found: list[Held] = []
    for node in reversed(list(graph)):
        entry = operator(node)
        if isinstance(entry, product.Product):
            _hold_own_filters(node, entry, held, facts)
        for operand, elements_held in _reads_idle(node, held, facts):
            own = held.setdefault(operand, {})
            for holder, idle in elements_held.items():
                own[holder] = compress(own[holder] | idle) if holder in own else idle
    for node in graph:
        entry = operator(node)
        if isinstance(entry, product.Product):
            axis = entry.layer(node, facts).out_axis
            for holder, idle in held.get(node.outputs[0], {}).items():
                value, size = node.outputs[0], facts.size(node.outputs[0], axis)
                channels = along(idle, axis, size)
                if (need := _live_need(value, facts)) is not None:
                    channels = channels & ~along(need, axis, size)
                if count := int(channels.sum()):
                    found.append(_held(domain, value, axis, count, holder, facts))
        elif "weight" in node.meta:
            found.extend(_held_by_stack(domain, node, facts))
        elif isinstance(entry, mixing.Mixing):
            found.extend(
                _held(domain, node.inputs[0], axis, count, node, facts)
                for axis in entry.axes(node, facts)
                if (count := _beyond_output(entry, node, axis, facts))
            )
    return found


def _held_by_outputs(graph: ir.Graph, facts: Facts) -> dict[ir.Value, dict[ir.Node, Needed]]:
    """Returns the constant elements of the network's outputs: these are made whole."""
    held: dict[ir.Value, dict[ir.Node, Needed]] = {}
    for value in graph.outputs:
        constant = ~np.isnan(facts.known_of(value))
        if constant.any() and not value.is_graph_input():
            held[value] = {ir.node("Output", [], name=value.name): constant}
    return held


def _held(
    domain: str, value: ir.Value | None, axis: int, count: int, holder: ir.Node, facts: Facts
) -> Held:
    assert value is not None
    reason = operator(holder).reason(holder, facts)
    name = holder.name or ""
    return Held(domain, str(value.name), axis, count, holder.op_type, name, reason)


def _held_by_stack(domain: str, node: ir.Node, facts: Facts) -> Iterator[Held]:
    """Yields the channels that a `MatMul` with a stack of weights reads and multiplies by zero."""
    for index, (value, axis) in enumerate(zip(node.inputs, (-1, -2), strict=False)):
        weight = facts.constant(node.inputs[1 - index]) if node.op_type == "MatMul" else None
        if weight is None or value is None:
            continue
        contracted = weight.ndim - 2 if index == 0 else weight.ndim - 1
        others = tuple(a for a in range(weight.ndim) if a != contracted)
        if count := int((~weight.any(axis=others)).sum()):
            yield _held(domain, value, len(facts.shape(value)) + axis, count, node, facts)


def _reads_idle(
    node: ir.Node, held: Mapping[ir.Value, Mapping[ir.Node, Needed]], facts: Facts
) -> Iterator[tuple[ir.Value, dict[ir.Node, Needed]]]:
    """Yields the elements of each input that a node reads though no output depends on them.

    They are there because the node itself needs them for what is needed of its outputs, or because
    an operator behind it holds some more of its outputs.
    """
    entry = operator(node)
    reads: list[tuple[ir.Node, Sequence[Needed | None]]] = []
    needed = [_live_need(value, facts) for value in node.outputs]
    if any(need is not None for need in needed):
        sets = entry.place(node, needed, facts)
        kept = {v: s for v, s in zip(node.outputs, sets, strict=False) if s is not None}
        probe = dataclasses.replace(facts, kept=kept)
        reads.append((node, entry.reads(node, probe)))
    for position, value in enumerate(node.outputs):
        for holder, idle in held.get(value, {}).items():
            wanted: list[Needed | None] = [None] * len(node.outputs)
            wanted[position] = idle
            reads.append((holder, _passed_on(node, entry.dependence(node, wanted, facts), facts)))
    for index, operand in enumerate(node.inputs):
        if operand is None or operand.is_initializer():
            continue
        idle_by: dict[ir.Node, Needed] = {}
        accounted = facts.needed.get(operand, np.zeros((1,) * len(facts.shape(operand)), bool))
        for holder, inputs in reads:
            read = inputs[index]
            if read is not None and (idle := read & ~accounted).any():
                before = idle_by.get(holder)
                idle_by[holder] = idle if before is None else before | idle
                accounted = accounted | idle
        yield operand, idle_by


def _passed_on(node: ir.Node, read: Sequence[Needed | None], facts: Facts) -> list[Needed | None]:
    """Returns what a node reads for outputs that are held: a product reads no constants."""
    if not isinstance(operator(node), product.Product):
        return list(read)
    return [
        None if value is None or part is None else part & np.isnan(facts.known_of(value))
        for value, part in zip(node.inputs, read, strict=True)
    ]


def _hold_own_filters(
    node: ir.Node, entry: product.Product, held: dict[ir.Value, dict[ir.Node, Needed]], facts: Facts
) -> None:
    """Notes the filters that a depthwise product makes so that its groups stay equally wide."""
    value = node.outputs[0]
    need = _live_need(value, facts)
    if need is None:
        return
    sets = entry.place(node, [need], facts)[0]
    if sets is not None and (idle := elements(sets, facts.shape(value)) & ~need).any():
        own = held.setdefault(value, {})
        own[node] = idle | own.get(node, idle)


def _live_need(value: ir.Value, facts: Facts) -> Needed | None:
    need = facts.needed.get(value)
    if need is None:
        return None
    need = need & np.isnan(facts.known_of(value))
    return need if need.any() else None


def _beyond_output(entry: mixing.Mixing, node: ir.Node, axis: int, facts: Facts) -> int:
    """Counts channels that only a mixing operator reads: what it makes of them is dropped."""
    output = node.outputs[0]
    shape = facts.shape(output)
    source = node.inputs[0]
    need = facts.needed.get(output)
    if not entry.mixes or axis >= len(shape) or need is None or source is None:
        return 0
    if shape[axis] != facts.size(source, axis):
        return 0
    return int((~along(need, axis, shape[axis])).sum())
