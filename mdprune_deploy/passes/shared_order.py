"""One order of channels for all domains, so that what a domain uses of stored filters is few runs.

A weight is stored once, its filters in one order, and a domain's output has the filters that it
uses in that order. Values that a domain adds must agree, so values that any domain ties have one
order between them; so have values of which an operator adds a part, since a selection at rising
positions is cheap. For such a class, with S the sets of filters that the domains' products keep,
the channels are ordered by a Gray code of their membership words, the set over most weights first:
the channels that all keep lie first, and every S is few runs, so that the cache lines of stored
weights hold few filters that the domain does not use.

Every domain is placed twice: for its sets, then with the order that all of them gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .elements import Indices, indices_of
from .facts import Facts
from .operators import operator, product
from .order import classes, gray_order, meeting, set_order

_AXIS = 1


@dataclass(frozen=True, eq=False)
class KeptFilters:
    """The filters that one product of one domain keeps.

    Attributes:
        filters: Rising.
        weights: Stored weights that are read per filter.
    """

    filters: Indices
    weights: int


@dataclass(frozen=True, eq=False)
class TiedValues:
    """Values of one domain that must have one channel order.

    Attributes:
        names: Their names.
        weights: The weights whose filters they are; a weight has one order.
        near: Further values whose channels meet theirs, or a part of them.
        size: Their channels in the masked dense graph.
        pinned: Whether something depends on the natural order.
        kept: What the products among their producers keep.
    """

    names: tuple[str, ...]
    weights: frozenset[str]
    near: frozenset[str]
    size: int
    pinned: bool
    kept: tuple[KeptFilters, ...]


def tied_values(graph: ir.Graph, facts: Facts) -> list[TiedValues]:
    """Returns the classes of values of a domain that is placed."""
    return [
        TiedValues(
            names=tuple(str(value.name) for value in group.values),
            weights=frozenset(
                str(node.meta["weight"].name)
                for value in group.values
                if (node := value.producer()) is not None and "weight" in node.meta
            ),
            near=frozenset(
                str(operand.name)
                for value in group.values
                for operand in meeting(value, facts)
                if operand in facts.kept
            ),
            size=facts.size(group.values[0], _AXIS) if len(facts.shape(group.values[0])) > 1 else 0,
            pinned=group.pinned,
            kept=tuple(found for value in group.values if (found := _kept(value, facts))),
        )
        for group in classes(graph, facts)
    ]


def _kept(value: ir.Value, facts: Facts) -> KeptFilters | None:
    node = value.producer()
    entry = None if node is None else operator(node)
    if node is None or not isinstance(entry, product.Product):
        return None
    layer = entry.layer(node, facts)
    if layer.out_axis != _AXIS:
        return None
    read = facts.required[node, entry.data(node)].sets
    channels = len(indices_of(read, layer.in_axis, layer.channels)) // layer.groups
    filters = indices_of(facts.kept[value], _AXIS, layer.filters)
    return KeptFilters(np.sort(filters), channels * layer.kernel)


def global_order(domains: Iterable[Sequence[TiedValues]]) -> dict[str, Indices]:
    """Returns, by value, all of its channels in the order that serves all domains.

    Args:
        domains: The classes of every domain.

    Returns:
        Orders of the values that may have another than the natural one, and gain from it.
    """
    found = [group for domain in domains for group in domain]
    classes = _Classes(found)
    members: dict[str, list[TiedValues]] = {}
    for group in found:
        members.setdefault(classes.of(group.names[0]), []).append(group)
    orders: dict[str, Indices] = {}
    for root, groups in members.items():
        sets = _sets(groups)
        if sets and classes.free(root):
            ordered = gray_order(np.arange(groups[0].size), sets)
            orders.update({name: ordered for group in groups for name in group.names})
    return orders


class _Classes:
    """Which values have one order, by one of them."""

    def __init__(self, groups: Sequence[TiedValues]) -> None:
        self._parent: dict[str, str] = {}
        self._sizes: dict[str, set[int]] = {}
        self._pinned: set[str] = set()
        for group in groups:
            for name in (*group.names, *(f"weight {weight}" for weight in group.weights)):
                self._parent[self.of(name)] = self.of(group.names[0])
        for group in groups:
            root = self.of(group.names[0])
            self._sizes.setdefault(root, set()).add(group.size)
            if group.pinned:
                self._pinned.add(root)
        for group in groups:
            for name in sorted(group.near):
                a, b = self.of(group.names[0]), self.of(name)
                if self.free(a) and self.free(b) and self._sizes[a] == self._sizes[b]:
                    self._parent[b] = a

    def of(self, name: str) -> str:
        """Returns the value that stands for all that have the order of this one."""
        while self._parent.setdefault(name, name) != name:
            self._parent[name] = name = self._parent[self._parent[name]]
        return name

    def free(self, root: str) -> bool:
        """Tells whether the values may have another order than the natural one."""
        return root not in self._pinned and len(self._sizes.get(root, ())) == 1


def _sets(groups: Iterable[TiedValues]) -> list[Indices]:
    """Returns the distinct parts of the channels that products keep, most weights first."""
    weights: dict[bytes, int] = {}
    filters: dict[bytes, Indices] = {}
    for group in groups:
        for kept in group.kept:
            if len(kept.filters) < group.size:
                key = kept.filters.tobytes()
                weights[key] = weights.get(key, 0) + kept.weights * len(kept.filters)
                filters[key] = kept.filters
    return [filters[key] for key in sorted(weights, key=lambda key: -weights[key])]


def apply_order(graph: ir.Graph, facts: Facts, orders: Mapping[str, Indices]) -> None:
    """Puts the channels of a domain that is placed into the order of all domains, in place."""
    facts.orders = orders
    for group in classes(graph, facts):
        ordered = orders.get(str(group.values[0].name))
        if group.pinned or ordered is None:
            continue
        value = group.values[0]
        kept = indices_of(facts.kept[value], _AXIS, facts.size(value, _AXIS))
        set_order(group, ordered[np.isin(ordered, kept)], facts)
