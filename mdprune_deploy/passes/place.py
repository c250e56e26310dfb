"""Chooses what every value keeps and what every node reads.

The narrowest choice is found first, outputs first: a value keeps what its readers demand. It is
then widened where that costs no time: to fill the last block of channels that a convolution
kernel computes anyway, and along a residual chain whose need shrinks, where each sum would have to
select from the one before it.

The model of time counts multiply-accumulates, in whole blocks of `BLOCK` channels, and moved
elements at `MOVE` multiply-accumulates each. Every emitted element still has the value that it has
in the masked dense model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from .elements import Indices, Needed, Sets, compress, elements, same, sizes
from .facts import Facts
from .operators import elementwise, mixing, operator, product
from .operators.base import ones
from .operators.product import BLOCK, WORTH_ROUNDING

MOVE = 16
"""Multiply-accumulates in the time that moves one element: measured with ONNX Runtime 1.32 on
Zen 5, one thread: 0.12 ns per element of a selection or a reordering, 0.0077 ns per MAC."""
_SUM_MOVES = 3
"""Elements moved per element of a sum that is not fused into the convolution before it."""
_ROUNDS = 8


def place(graph: ir.Graph, facts: Facts) -> None:
    """Fills `facts.kept` and `facts.required`, as wide as `facts.widening` allows."""
    facts.kept.clear()
    facts.required.clear()
    wider: dict[ir.Value, Needed] = {}
    _place_narrow(graph, facts, wider)
    fill = [_fill_blocks] if facts.widening.blocks else []
    sums = [_cheaper_sums] * _ROUNDS if facts.widening.sums else []
    for widen in (*fill, *sums, *fill):
        grown = widen(graph, facts)
        if grown:
            for value, need in grown.items():
                wider[value] = need | wider.get(value, need)
            facts.kept.clear()
            facts.required.clear()
            _place_narrow(graph, facts, wider)


def _place_narrow(graph: ir.Graph, facts: Facts, wider: Mapping[ir.Value, Needed]) -> None:
    """Keeps what the readers demand, and what is worth keeping besides; outputs first."""
    demanded: dict[ir.Value, Needed] = dict(wider)
    for value in graph.outputs:
        demanded[value] = ones(len(facts.shape(value)))
    for value in graph.inputs:
        facts.kept[value] = (None,) * len(facts.shape(value))
    for node in reversed(list(graph)):
        wanted = [demanded.get(value) for value in node.outputs]
        if all(want is None for want in wanted):
            continue
        entry = operator(node)
        for value, sets in zip(node.outputs, entry.place(node, wanted, facts), strict=False):
            if sets is not None:
                facts.kept[value] = sets
        for index, requirement in enumerate(entry.require(node, facts)):
            operand = node.inputs[index]
            if requirement is None or operand is None or operand.is_initializer():
                continue
            facts.required[node, index] = requirement
            want = elements(requirement.sets, facts.shape(operand))
            before = demanded.get(operand)
            demanded[operand] = want if before is None else compress(before | want)


def _fill_blocks(graph: ir.Graph, facts: Facts) -> dict[ir.Value, Needed]:
    """Returns what convolutions and sums of them should keep besides to fill their last block.

    A kernel computes the block anyway, and readers of all channels then stay in its layout.
    """
    found: dict[ir.Value, Needed] = {}
    for node in graph:
        output = node.outputs[0]
        entry = operator(node)
        if output not in facts.kept or not isinstance(
            entry, (product.Conv, elementwise.Elementwise)
        ):
            continue
        end = _end_of_chain(output, facts)
        shape = facts.shape(end)
        if len(shape) < 3 or end not in facts.kept or 1 not in facts.free[end]:
            continue
        indices = facts.kept[end][1]
        if indices is None or _row_cost(output, facts) == 0:
            continue
        count = len(indices)
        width = min(whole_blocks(count), shape[1])
        dense = _row_cost(output, facts) * int(np.prod(shape[1:]))
        if count < width <= 1.5 * count and dense >= WORTH_ROUNDING:
            found[end] = _with_more(end, indices, width - count, facts)
    return found


def _with_more(value: ir.Value, indices: Indices, missing: int, facts: Facts) -> Needed:
    """Adds channels to those kept: live ones first, since constant ones cost no less."""
    size = facts.size(value, 1)
    known = np.broadcast_to(
        np.moveaxis(facts.known_of(value), 1, 0).reshape(facts.known_of(value).shape[1], -1)[:, 0],
        (size,),
    )
    idle = np.setdiff1d(np.arange(size), indices)
    idle = idle[np.argsort(~np.isnan(known[idle]), kind="stable")]
    row = np.zeros(size, dtype=np.bool_)
    row[indices] = row[idle[:missing]] = True
    return row.reshape([-1 if axis == 1 else 1 for axis in range(len(facts.shape(value)))])


def _cheaper_sums(graph: ir.Graph, facts: Facts) -> dict[ir.Value, Needed]:
    """Returns what sums should keep besides, so that they need not select from an operand."""
    widths = dict(facts.kept)
    found: dict[ir.Value, Needed] = {}
    for node in graph:
        output = node.outputs[0]
        if not isinstance(operator(node), elementwise.Elementwise) or output not in widths:
            continue
        operands = [
            value
            for index, value in enumerate(node.inputs)
            if (requirement := facts.required.get((node, index))) is not None
            and requirement.expand is None
            and value is not None
            and facts.shape(value) == facts.shape(output)
        ]
        if len(operands) < 2:
            continue
        widest = max(operands, key=lambda value: _count(widths[value], facts.shape(value)))
        if not _is_cheaper(node, widest, operands, widths, facts):
            continue
        end = _end_of_chain(output, facts)
        if end in widths:
            need = elements(widths[widest], facts.shape(output))
            found[end] = need | elements(widths[end], facts.shape(output))
            widths[output] = widths[end] = widths[widest]
    return found


def _is_cheaper(
    node: ir.Node,
    widest: ir.Value,
    operands: list[ir.Value],
    widths: Mapping[ir.Value, Sets],
    facts: Facts,
) -> bool:
    """Compares selecting from the widest operand with computing all of its channels."""
    output = node.outputs[0]
    shape = facts.shape(output)
    wide, narrow = widths[widest], widths[output]
    axes = [a for a, size in enumerate(shape) if not same(wide[a], narrow[a], size)]
    if len(axes) != 1 or axes[0] not in facts.free[output]:
        return False
    axis = axes[0]
    before, after = (sizes(sets, shape)[axis] for sets in (narrow, wide))
    rows = sum(
        _row_cost(value, facts)
        for value in operands
        if value is not widest and not same(widths[value][axis], wide[axis], shape[axis])
    )
    computed = (whole_blocks(after) - whole_blocks(before)) * rows
    moved = MOVE * (after + _SUM_MOVES * before)
    return computed <= moved


def _row_cost(value: ir.Value, facts: Facts) -> int:
    """Returns the multiply-accumulates per element of the filters behind a value, as narrowed."""
    node = value.producer()
    while node is not None:
        entry = operator(node)
        if isinstance(entry, product.Product):
            layer = entry.layer(node, facts)
            data = entry.data(node)
            source = node.inputs[data]
            assert source is not None
            read = sizes(facts.required[node, data].sets, facts.shape(source))
            return read[layer.in_axis] // layer.groups * layer.kernel
        sources = [
            source
            for index, source in enumerate(node.inputs)
            if source is not None and (node, index) in facts.required  # a constant costs nothing
        ]
        if entry.mixes or not sources:
            return 0
        if len(sources) > 1:
            return sum(_row_cost(source, facts) for source in sources)
        node = sources[0].producer()
    return 0


def _end_of_chain(value: ir.Value, facts: Facts) -> ir.Value:
    """Follows a value through the operators on single operands that alone read it."""
    while len(value.uses()) == 1 and not value.is_graph_output():
        node, _ = next(iter(value.uses()))
        sources = [v for v in node.inputs if v is not None and not v.is_initializer()]
        if operator(node).mixes or len(sources) != 1 or not _keeps_channels(node, facts):
            return value
        value = node.outputs[0]
    return value


def _keeps_channels(node: ir.Node, facts: Facts) -> bool:
    kinds = (elementwise.Elementwise, mixing.BatchNormalization, mixing.Pool)
    return isinstance(operator(node), kinds) and len(facts.shape(node.outputs[0])) > 2


def whole_blocks(channels: int) -> int:
    """Returns the channels that a kernel computes for so many."""
    return -(-channels // BLOCK) * BLOCK


def _count(sets: Sets, shape: tuple[int, ...]) -> int:
    return int(np.prod(sizes(sets, shape), dtype=np.int64))
