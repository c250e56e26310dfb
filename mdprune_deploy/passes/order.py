"""Chooses the order of channels, so that what a reader selects is whole blocks of them.

A blocked layout holds `BLOCK` channels of one position side by side. A selection of whole blocks
copies them as they lie; any other selection leaves the layout and comes back. The order of the
channels of an activation is free, as long as every value that is added to it has the same.

Values that must have the same order form a class. For the readers r of a class, S_r the channels
that r selects, the order should make every S_r few whole blocks. The channels are split by the
readers in turn, the one that would move most first, each time keeping the parts in an order in
which neighbours agree (a Gray code of the membership bits), so that every S_r is few runs. A reader
then selects the blocks that its runs touch; channels in them that it does not use meet zero
weights. It keeps its exact selection where those weights would cost more time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .elements import Indices, Sets, indices_of, same, sizes
from .facts import Facts, Requirement
from .operators import elementwise, mixing, movement, operator, product
from .operators.product import BLOCK
from .place import MOVE, whole_blocks

_AXIS = 1


@dataclass
class TiedClass:
    """Values of one channel order.

    Attributes:
        values: The values.
        pinned: Whether an operator depends on the natural order.
    """

    values: list[ir.Value] = field(default_factory=list)
    pinned: bool = False


@dataclass(frozen=True, eq=False)
class _Reader:
    """An operator that selects channels.

    Attributes:
        node: The node.
        index: Which input.
        selected: The channels.
        macs: Multiply-accumulates per channel that is read, for a convolution. None for an
            operator that passes its channels on, which takes exact blocks only.
        moved: Multiply-accumulates' worth of moving that a selection of whole blocks saves.
    """

    node: ir.Node
    index: int
    selected: Indices
    macs: int | None
    moved: int


def order(graph: ir.Graph, facts: Facts) -> None:
    """Reorders `facts.kept` and lets readers select whole blocks, in place."""
    found = _classes(graph, facts)
    imposed: dict[int, Indices] = {}
    for group in _distinct(found):
        if group.pinned:
            continue
        channels = _kept(group.values[0], facts)
        readers = [reader for value in group.values for reader in _readers(value, facts)]
        if len(channels) % BLOCK or not (readers or id(group) in imposed):
            continue
        readers.sort(key=lambda reader: -reader.moved)
        ordered = imposed.get(id(group))
        if ordered is None:
            ordered = gray_order(channels, [reader.selected for reader in readers])
        set_order(group, ordered, facts)
        for reader in readers:
            blocks = _touched(ordered, reader.selected)
            if reader.macs is None and len(blocks) == len(reader.selected):
                imposed.setdefault(id(found[reader.node.outputs[0]]), blocks)
            elif reader.macs is not None:
                computed = len(blocks) - whole_blocks(len(reader.selected))
                if computed * reader.macs <= reader.moved:
                    requirement = facts.required[reader.node, reader.index]
                    sets = _replaced(requirement.sets, blocks)
                    facts.required[reader.node, reader.index] = Requirement(sets)


def _kept(value: ir.Value, facts: Facts) -> Indices:
    return indices_of(facts.kept[value], _AXIS, facts.size(value, _AXIS))


def set_order(group: TiedClass, ordered: Indices, facts: Facts) -> None:
    """Gives the values of a class an order, as they are made and as they are read whole."""
    for value in group.values:
        size = facts.size(value, _AXIS)
        before = facts.kept[value]
        for node, index in value.uses():
            requirement = facts.required.get((node, index))
            if requirement is not None and same(requirement.sets[_AXIS], before[_AXIS], size):
                sets = _replaced(requirement.sets, ordered)
                facts.required[node, index] = Requirement(sets)
        facts.kept[value] = _replaced(before, ordered)
        producer = value.producer()
        if producer is None or isinstance(operator(producer), product.Product):
            continue
        for index, operand in enumerate(producer.inputs):
            requirement = facts.required.get((producer, index))
            if (
                requirement is not None
                and operand is not None
                and _same_channels(operand, value, facts)
            ):
                sets = _replaced(requirement.sets, ordered)
                facts.required[producer, index] = Requirement(sets)


def _same_channels(operand: ir.Value, output: ir.Value, facts: Facts) -> bool:
    """Tells whether channel i of an operand makes channel i of the output."""
    return len(facts.shape(operand)) > _AXIS and (
        facts.size(operand, _AXIS) == facts.size(output, _AXIS)
    )


def _replaced(sets: Sets, indices: Indices) -> Sets:
    return tuple(indices if axis == _AXIS else old for axis, old in enumerate(sets))


def classes(graph: ir.Graph, facts: Facts) -> list[TiedClass]:
    """Groups the emitted values by what ties their channel order, in graph order."""
    return _distinct(_classes(graph, facts))


def _distinct(found: dict[ir.Value, TiedClass]) -> list[TiedClass]:
    return list({id(group): group for group in found.values()}.values())


def _classes(graph: ir.Graph, facts: Facts) -> dict[ir.Value, TiedClass]:
    """Groups the emitted values by what ties their channel order, in graph order."""
    found: dict[ir.Value, TiedClass] = {}
    for value in [*graph.inputs, *(v for node in graph for v in node.outputs)]:
        if value in facts.kept:
            pinned = value.is_graph_input() or value.is_graph_output()
            pinned |= len(facts.shape(value)) <= _AXIS
            found[value] = TiedClass([value], pinned)
    for node in graph:
        output = node.outputs[0]
        if not any(value in found for value in node.outputs):
            continue
        tied = None if len(node.outputs) > 1 else _tied_operands(node, facts)
        if tied is None:
            for value in node.outputs:
                if value in found:
                    found[value].pinned = True
            for index, operand in enumerate(node.inputs):
                if operand is not None and operand in found and (node, index) in facts.required:
                    found[operand].pinned = True
        else:
            for operand in tied:
                _merge(found, found[output], found[operand])
    return found


def _merge(found: dict[ir.Value, TiedClass], a: TiedClass, b: TiedClass) -> None:
    if a is b:
        return
    a.values.extend(b.values)
    a.pinned |= b.pinned
    for value in b.values:
        found[value] = a


def _tied_operands(node: ir.Node, facts: Facts) -> list[ir.Value] | None:
    """Returns the operands whose order the output has, or None where order matters inside."""
    entry = operator(node)
    if isinstance(entry, product.Product):
        layer = entry.layer(node, facts)
        free = layer.groups == 1 and layer.in_axis == layer.out_axis == _AXIS
        return [] if free else None
    if not _is_per_channel(node, facts):
        return None
    output = node.outputs[0]
    tied = []
    for index, value in enumerate(node.inputs):
        requirement = facts.required.get((node, index))
        if value is None or requirement is None:
            continue
        if requirement.expand is not None or len(facts.shape(value)) <= _AXIS:
            return None
        if not _same_channels(value, output, facts):
            continue  # one channel for all
        if same(requirement.sets[_AXIS], facts.kept[value][_AXIS], facts.size(value, _AXIS)):
            tied.append(value)
    return tied


def meeting(value: ir.Value, facts: Facts) -> list[ir.Value]:
    """Returns the operands whose channel i makes channel i of a value, read whole or in part."""
    node = value.producer()
    if node is None or isinstance(operator(node), product.Product):
        return []
    if not _is_per_channel(node, facts):
        return []
    return [
        operand
        for index, operand in enumerate(node.inputs)
        if operand is not None
        and (node, index) in facts.required
        and _same_channels(operand, value, facts)
    ]


def _is_per_channel(node: ir.Node, facts: Facts) -> bool:
    """Tells whether channel i of the output depends on channel i of the operands alone."""
    entry = operator(node)
    output = node.outputs[0]
    if isinstance(entry, movement.Reshape):
        source = entry.sources(node)[0]
        return facts.shape(source)[: _AXIS + 1] == facts.shape(output)[: _AXIS + 1]
    same_rank = all(
        value is None
        or value.is_initializer()
        or len(facts.shape(value)) == len(facts.shape(output))
        for value in node.inputs
    )
    if isinstance(entry, mixing.Reduce):
        return all(axis > _AXIS for axis in entry.axes(node, facts))
    if isinstance(entry, elementwise.Expand):
        return False
    kinds = (
        elementwise.Elementwise,
        mixing.BatchNormalization,
        mixing.InstanceNormalization,
        mixing.Pool,
    )
    return same_rank and isinstance(entry, kinds)


def _readers(value: ir.Value, facts: Facts) -> Iterator[_Reader]:
    """Yields what selects channels of a value and gains from whole blocks."""
    shape = facts.shape(value)
    have = facts.kept[value]
    for node, index in value.uses():
        requirement = facts.required.get((node, index))
        if requirement is None or requirement.expand is not None or len(shape) <= 2:
            continue
        read = requirement.sets
        differing = [a for a, size in enumerate(shape) if not same(have[a], read[a], size)]
        selected = read[_AXIS]
        if differing != [_AXIS] or selected is None:
            continue
        whole = sizes(have, shape)[_AXIS]
        moved = MOVE * (whole + len(selected)) * int(np.prod(shape[2:]))
        entry = operator(node)
        if isinstance(entry, product.Conv):
            layer = entry.layer(node, facts)
            made = sizes(facts.kept[node.outputs[0]], facts.shape(node.outputs[0]))
            macs = made[1] * layer.kernel * int(np.prod(made[2:]))
            if layer.groups == 1:
                yield _Reader(node, index, selected, macs, moved)
        elif _is_per_channel(node, facts) and _selects_alone(node, facts):
            yield _Reader(node, index, selected, None, moved)


def _selects_alone(node: ir.Node, facts: Facts) -> bool:
    return sum((node, index) in facts.required for index in range(len(node.inputs))) == 1


def gray_order(channels: Indices, selections: list[Indices]) -> Indices:
    """Orders channels so that every selection is few runs, earlier ones fewer."""
    parts = [channels]
    for selected in selections:
        split: list[Indices] = []
        inside_first = True
        for part in parts:
            inside = np.isin(part, selected)
            halves = (part[inside], part[~inside])
            split.extend(halves if inside_first else halves[::-1])
            inside_first = not inside_first
        parts = [part for part in split if len(part)]
    return np.concatenate(parts)


def _touched(ordered: Indices, selected: Indices) -> Indices:
    """Returns the channels of the blocks that hold any selected one, in order."""
    blocks = ordered.reshape(-1, BLOCK)
    return blocks[np.isin(blocks, selected).any(axis=1)].reshape(-1)
