"""Convolutions and matrix products with a constant weight.

All are `y[o] = bias[o] + sum_i W[o, i] * x[g(o), i]` over channels, `*` a spatial correlation or
the product of two numbers, g(o) the filter's group. A channel pair (o, i) counts where the weight
between them is not zero.

Constant input channels. Let x[i] = c_i everywhere. Away from the border the pairs of constant
channels add `sum_i c_i sum_k W[o, i, k]`, a bias. At a zero-padded border they add less, by the
kernel positions that fall outside, so the bias would be wrong there. One constant channel r is
kept instead, with the weight `sum_i (c_i / c_r) W[o, i, k]`: exact at every position. A filter that
reads nothing but constants makes a pattern that is known too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ...evaluate import Array, attribute, constant_array, evaluate_node, window
from ..elements import Known, Needed, Sets, along, closure, compress, elements, indices_of
from ..facts import Facts, Requirement
from ..stored import record_stored
from .base import Operator, constant_operands, register
from .groups import Run, runs

if TYPE_CHECKING:
    from ..emit_graph import Builder

BLOCK = 16
"""Channels that convolution kernels compute together: 16 float32 fill an AVX-512 register."""
ALIGNMENT = 4
"""ONNX Runtime uses its blocked kernels only for convolutions whose input channels are a multiple
of this; with fewer than `BLOCK` of them it leaves the blocked layout."""
WORTH_ROUNDING = 1_000_000
"""Multiply-accumulates of the dense layer below which rounding gains less than it adds."""


@dataclass(frozen=True)
class Layer:
    """One product in its canonical form.

    Attributes:
        weight: Shape `(filters, channels per group, *kernel)`.
        bias: Shape `(filters,)`.
        groups: Number of groups.
        in_axis: The channel axis of the input.
        out_axis: The channel axis of the output.
        border: Whether the input is padded, so that a constant channel makes a pattern.
        pointwise: Whether axes other than the channel's map one to one.
    """

    weight: Array
    bias: Array
    groups: int
    in_axis: int
    out_axis: int
    border: bool
    pointwise: bool

    @property
    def filters(self) -> int:
        """Output channels."""
        return int(self.weight.shape[0])

    @property
    def channels(self) -> int:
        """Input channels."""
        return int(self.weight.shape[1]) * self.groups

    @property
    def kernel(self) -> int:
        """Weight elements per channel pair."""
        return int(np.prod(self.weight.shape[2:], dtype=np.int64))

    @property
    def padded(self) -> bool:
        """Whether groups that stay are kept equally wide, so that they stay one convolution."""
        return self.groups > 1 and self.weight.shape[1] == 1

    @cached_property
    def pairs(self) -> Needed:
        """Whether the weight of a pair is not zero, shape `(filters, channels per group)`."""
        flat = self.weight.reshape(*self.weight.shape[:2], -1)
        return np.asarray((flat != 0.0).any(axis=2))

    def by_filter(self, per_channel: Array) -> Array:
        """Spreads one entry per channel over the pairs, shape `(filters, channels per group)`."""
        split = per_channel.reshape(self.groups, -1)
        return np.repeat(split, self.filters // self.groups, axis=0)

    def by_channel(self, per_pair: Needed) -> Needed:
        """Reduces pairs to channels by `any`, shape `(channels,)`."""
        per_group = per_pair.reshape(self.groups, self.filters // self.groups, -1)
        return per_group.any(axis=1).reshape(-1)


@dataclass(frozen=True)
class Part:
    """An emitted product: all of a layer, or some of its groups.

    Attributes:
        filters: Which of the kept filters it makes, in its order; -1 for padding.
        channels: The layer's input channels that it reads.
        weight: In canonical form.
        bias: Shape `(filters,)`.
        groups: Number of groups.
    """

    filters: Array
    channels: Array
    weight: Array
    bias: Array
    groups: int


class Product(Operator):
    """The shared algebra; subclasses translate to and from one ONNX operator."""

    def applies(self, node: ir.Node) -> bool:
        return "weight" in node.meta and constant_operands(node, self.data(node))

    def layer(self, node: ir.Node, facts: Facts) -> Layer:
        """Returns the canonical form of a node."""
        cached = node.meta.get("layer")
        if cached is None:
            cached = node.meta["layer"] = self.canonical(node, facts)
        assert isinstance(cached, Layer)
        return cached

    def canonical(self, node: ir.Node, facts: Facts) -> Layer:
        """Reads the canonical form off the node."""
        raise NotImplementedError

    def canonical_weight(self, node: ir.Node, operand: Array) -> Array:
        """Returns a weight in the form of `Layer.weight`, given in the form of the operand."""
        raise NotImplementedError

    def data(self, node: ir.Node) -> int:
        """Returns which input carries the activations."""
        return 0

    def filter_cost(self, node: ir.Node, facts: Facts) -> int:
        """Returns the multiply-accumulates of one output element."""
        layer = self.layer(node, facts)
        return int(layer.weight.shape[1]) * layer.kernel

    def macs(self, layer: Layer, node: ir.Node, facts: Facts, pairs: int) -> int:
        """Returns the multiply-accumulates that a number of channel pairs costs, at batch 1."""
        shape = facts.shape(node.outputs[0])
        positions = int(np.prod(shape, dtype=np.int64)) // shape[layer.out_axis]
        return positions * pairs * layer.kernel // facts.trace.batch

    def live_channels(self, node: ir.Node, facts: Facts) -> Needed:
        """Tells of each input channel whether any of its elements is live, shape `(channels,)`."""
        layer = self.layer(node, facts)
        value = node.inputs[self.data(node)]
        assert value is not None
        return along(np.isnan(facts.known_of(value)), layer.in_axis, layer.channels)

    def channel_constants(self, node: ir.Node, facts: Facts) -> Known:
        """Returns the constant of each input channel, NaN where it is live or not uniform."""
        layer = self.layer(node, facts)
        value = node.inputs[self.data(node)]
        assert value is not None
        uniform = _uniform(facts.known_of(value), layer.in_axis)
        return np.broadcast_to(uniform, (layer.channels,))

    def known(self, node: ir.Node, facts: Facts) -> list[Known]:
        layer = self.layer(node, facts)
        if layer.pointwise:
            return [self._known_pointwise(node, facts)]
        constants = layer.by_filter(self.channel_constants(node, facts))
        acting = layer.pairs & ~(constants == 0.0)
        alive = (acting & layer.by_filter(self.live_channels(node, facts))).any(axis=1)
        rank = len(facts.shape(node.outputs[0]))
        if alive.all():
            return [np.full((1,) * rank, np.nan)]
        shape = [-1 if axis == layer.out_axis else 1 for axis in range(rank)]
        patterned = (acting & (np.isnan(constants) | layer.border)).any(axis=1)
        if (patterned & ~alive).any():
            values = self._constant_output(node, facts)
            return [compress(np.where(alive.reshape(shape), np.nan, values))]
        sums = layer.weight.reshape(*layer.weight.shape[:2], -1).sum(axis=2)
        values = layer.bias + (np.nan_to_num(constants) * sums).sum(axis=1)
        return [compress(np.where(alive, np.nan, values).reshape(shape))]

    def _constant_output(self, node: ir.Node, facts: Facts) -> Array:
        """Returns what the layer makes of its constant channels alone, for a batch of one."""
        arguments = [facts.constant(value) for value in node.inputs]
        source = node.inputs[0]
        assert source is not None
        known = np.nan_to_num(facts.known_of(source))
        arguments[0] = np.array(np.broadcast_to(known, (1, *facts.shape(source)[1:])))
        opset = node.graph.opset_imports[""] if node.graph is not None else 0
        return evaluate_node(node, arguments, opset)[0]

    def _known_pointwise(self, node: ir.Node, facts: Facts) -> Known:
        layer = self.layer(node, facts)
        source = node.inputs[self.data(node)]
        assert source is not None
        known = np.moveaxis(facts.known_of(source), layer.in_axis, -1)
        if np.isnan(known).all() and layer.pairs.any(axis=1).all():
            return np.full((1,) * len(facts.shape(node.outputs[0])), np.nan)
        known = np.broadcast_to(known, (*known.shape[:-1], layer.channels))
        alive = np.isnan(known).astype(np.float64) @ layer.pairs.T > 0.0
        values = np.nan_to_num(known) @ layer.weight.T + layer.bias
        return compress(np.moveaxis(np.where(alive, np.nan, values), -1, layer.out_axis))

    def free(self, node: ir.Node, facts: Facts) -> list[frozenset[int]]:
        layer = self.layer(node, facts)
        axes = {layer.out_axis}
        value = node.inputs[self.data(node)]
        assert value is not None
        if layer.pointwise:
            axes |= facts.free[value] - {layer.in_axis}
        return [frozenset(axes)]

    def dependence(
        self, node: ir.Node, needed: Sequence[Needed | None], facts: Facts
    ) -> list[Needed | None]:
        layer = self.layer(node, facts)
        need = needed[0]
        assert need is not None
        rows = along(need, layer.out_axis, layer.filters)
        channels = layer.by_channel(layer.pairs & rows[:, None])
        return self._at_data(node, self._spread(layer, channels, need))

    def _spread(self, layer: Layer, channels: Needed, need: Needed) -> Needed:
        """Places channels on the input's axes; the other axes are passed on or read whole."""
        shape = [-1 if axis == layer.in_axis else 1 for axis in range(need.ndim)]
        spread = channels.reshape(shape)
        if layer.pointwise:
            spread = spread & need.any(axis=layer.out_axis, keepdims=True)
        return spread

    def _at_data(self, node: ir.Node, item: Needed) -> list[Needed | None]:
        return [item if index == self.data(node) else None for index in range(len(node.inputs))]

    def place(
        self, node: ir.Node, demanded: Sequence[Needed | None], facts: Facts
    ) -> list[Sets | None]:
        """Keeps the demanded filters; of a depthwise layer, as many in every group that stays."""
        need = demanded[0]
        assert need is not None
        layer = self.layer(node, facts)
        output = node.outputs[0]
        sets = list(closure(need, facts.shape(output), facts.free[output]))
        if layer.padded:
            kept = np.zeros(layer.filters, dtype=np.bool_)
            kept[indices_of(tuple(sets), layer.out_axis, layer.filters)] = True
            sets[layer.out_axis] = np.flatnonzero(_balance(kept.reshape(layer.groups, -1)))
        return [tuple(sets)]

    def require(self, node: ir.Node, facts: Facts) -> list[Requirement | None]:
        layer = self.layer(node, facts)
        value = node.inputs[self.data(node)]
        assert value is not None
        output = node.outputs[0]
        kept = facts.kept[output]
        channels = np.zeros(layer.channels, dtype=np.bool_)
        channels[self._read_channels(node, facts)] = True
        needed = self._spread(layer, channels, elements(kept, facts.shape(output)))
        free = facts.free[value] | {layer.in_axis}  # of a whole value, a part can be selected
        sets = closure(needed, facts.shape(value), free)
        return [
            Requirement(sets) if index == self.data(node) else None
            for index in range(len(node.inputs))
        ]

    def _live_rows(self, node: ir.Node, facts: Facts) -> tuple[Array, Needed]:
        """Returns the kept filters and, for each, whether it computes anything."""
        layer = self.layer(node, facts)
        output = node.outputs[0]
        kept = indices_of(facts.kept[output], layer.out_axis, layer.filters)
        return kept, np.isnan(self._row_constants(node, facts))[kept]

    def _row_constants(self, node: ir.Node, facts: Facts) -> Known:
        layer = self.layer(node, facts)
        known = facts.known_of(node.outputs[0])
        return np.broadcast_to(_uniform(known, layer.out_axis), (layer.filters,))

    def _acting(self, node: ir.Node, facts: Facts) -> tuple[Needed, Known]:
        """Returns the pairs that act on kept live filters, and the pairs' constants."""
        layer = self.layer(node, facts)
        kept, alive = self._live_rows(node, facts)
        rows = np.zeros(layer.filters, dtype=np.bool_)
        rows[kept[alive]] = True
        return layer.pairs & rows[:, None], self.channel_constants(node, facts)

    def representatives(self, node: ir.Node, facts: Facts) -> dict[int, int]:
        """Returns, per group, the constant channel that carries all of them over a border."""
        layer = self.layer(node, facts)
        acting, constants = self._acting(node, facts)
        candidates = layer.by_channel(acting) & ~np.isnan(constants) & (constants != 0.0)
        if not layer.border or not candidates.any():
            return {}
        size = np.where(candidates, np.abs(np.nan_to_num(constants)), 0.0)
        best = size.reshape(layer.groups, -1).argmax(axis=1)
        per_group = layer.channels // layer.groups
        return {
            group: int(group * per_group + index)
            for group, index in enumerate(best)
            if size[group * per_group + index] > 0.0
        }

    def reads(self, node: ir.Node, facts: Facts) -> list[Needed | None]:
        layer = self.layer(node, facts)
        output = node.outputs[0]
        kept = elements(facts.kept[output], facts.shape(output))
        return self._at_data(node, self._spread(layer, self._exact_channels(node, facts), kept))

    def _read_channels(self, node: ir.Node, facts: Facts) -> Array:
        """Returns the channels that are read, rounded where a kernel is faster so."""
        read = self._exact_channels(node, facts)
        if self.layer(node, facts).groups == 1:
            read = self.rounded(node, read, facts)
        return np.flatnonzero(read)

    def _exact_channels(self, node: ir.Node, facts: Facts) -> Needed:
        """Returns the channels that must be read; of a depthwise layer, one in every group."""
        layer = self.layer(node, facts)
        acting, constants = self._acting(node, facts)
        read = layer.by_channel(acting) & np.isnan(constants)
        read[list(self.representatives(node, facts).values())] = True
        if not layer.padded:
            read[0] |= not read.any()
            return read
        kept, _ = self._live_rows(node, facts)
        staying = np.zeros((layer.groups, 1), dtype=np.bool_)
        staying[kept // (layer.filters // layer.groups)] = True
        per_group = read.reshape(layer.groups, -1)
        if not per_group.any():
            per_group[:, 0] = True
        return _balance(per_group, staying)

    def rounded(self, node: ir.Node, read: Needed, facts: Facts) -> Needed:
        """Adds channels, with zero weights, where a kernel is faster with them; `(channels,)`."""
        return read

    def parts(self, node: ir.Node, facts: Facts) -> list[Part]:
        """Returns the emitted products, in the order of their first groups."""
        layer = self.layer(node, facts)
        weight, bias = self._narrowed(node, facts)
        kept, _ = self._live_rows(node, facts)
        requirement = facts.required[node, self.data(node)]
        channels = indices_of(requirement.sets, layer.in_axis, layer.channels)
        if layer.groups == 1:
            return [Part(np.arange(len(kept)), channels, weight[:, channels], bias, 1)]
        made = kept // (layer.filters // layer.groups)
        per_group = layer.channels // layer.groups
        found = []
        for run in self.runs(node, facts):
            shape = (len(run.groups), run.count)
            filters, biases = np.full(shape, -1), np.zeros(shape)
            sources = np.full((len(run.groups), run.width), channels[0])
            weights = np.zeros((*shape, run.width, *weight.shape[2:]))
            for index, group in enumerate(run.groups):
                rows = np.flatnonzero(made == group)
                own = channels[channels // per_group == group]
                filters[index, : len(rows)], biases[index, : len(rows)] = rows, bias[rows]
                sources[index, : len(own)] = own
                weights[index, : len(rows), : len(own)] = weight[rows][:, own % per_group]
            stored = weights.reshape(-1, *weights.shape[2:])
            parts = (filters.reshape(-1), sources.reshape(-1), stored, biases.reshape(-1))
            found.append(Part(*parts, len(run.groups)))
        return found

    def runs(self, node: ir.Node, facts: Facts) -> list[Run]:
        """Returns the groups of each emitted product."""
        layer = self.layer(node, facts)
        kept, _ = self._live_rows(node, facts)
        sets = facts.required[node, self.data(node)].sets
        channels = indices_of(sets, layer.in_axis, layer.channels)
        read, made = (
            np.bincount(indices * layer.groups // size, minlength=layer.groups)
            for indices, size in ((channels, layer.channels), (kept, layer.filters))
        )
        return runs(read, made, self.macs(layer, node, facts, 1))

    def _narrowed(self, node: ir.Node, facts: Facts) -> tuple[Array, Array]:
        """Returns weight and bias of the kept filters, constant channels folded into them."""
        layer = self.layer(node, facts)
        kept, alive = self._live_rows(node, facts)
        constants = self.channel_constants(node, facts)
        per_filter = layer.by_filter(constants)
        expand = (slice(None), slice(None), *[None] * (layer.weight.ndim - 2))
        weight = np.where(np.isnan(per_filter)[expand], layer.weight, 0.0)
        folded = np.nan_to_num(per_filter)[expand] * (layer.weight - weight)
        representatives = self.representatives(node, facts)
        per_group = layer.channels // layer.groups
        rows = layer.filters // layer.groups
        bias = layer.bias
        if layer.border:
            for group, channel in representatives.items():
                span = slice(group * rows, (group + 1) * rows)
                weight[span, channel % per_group] = folded[span].sum(axis=1) / constants[channel]
        else:
            bias = bias + folded.sum(axis=tuple(range(1, folded.ndim)))
        fixed = self._row_constants(node, facts)[kept]
        bias = np.where(alive, bias[kept], np.nan_to_num(fixed))
        return weight[kept] * alive.reshape(-1, *[1] * (weight.ndim - 1)), bias

    def emit_parts(
        self, node: ir.Node, build: Builder, store: Callable[[Part], Array]
    ) -> list[ir.Value]:
        """Adds a convolution per part and puts their filters in order.

        Args:
            node: The convolution.
            build: The graph under construction.
            store: Returns a part's weight as the operator stores it.
        """
        facts, source = build.facts, node.inputs[0]
        assert source is not None
        parts = self.parts(node, facts)
        sets = facts.required[node, 0].sets
        made = []
        for part in parts:
            data = build.select(source, (sets[0], part.channels, *sets[2:]))
            inputs = self.operands(node, data, store(part), part.bias, build)
            made += self.emitted(node, inputs, part, build, group=part.groups)
        joined = made[0]
        if len(parts) > 1:
            (joined,) = build.op("Concat", made, {"axis": 1}, name=f"{node.name}_parts")
        filters = np.concatenate([part.filters for part in parts])
        places = np.argsort(filters, kind="stable")[(filters < 0).sum() :]
        if np.array_equal(places, np.arange(len(filters))):
            return [joined]
        order = build.constant(places, f"{node.name}_order")
        return build.op("Gather", [joined, order], {"axis": 1}, name=f"{node.name}_ordered")

    def operands(
        self, node: ir.Node, data: ir.Value | None, weight: Array, bias: Array, build: Builder
    ) -> list[ir.Value | None]:
        """Returns the inputs of the emitted node, with a bias where there is one."""
        name = node.meta["weight"].name
        inputs: list[ir.Value | None] = [data, build.constant(weight, name)]
        if bias.any() or len(node.inputs) > 2:
            inputs.append(build.constant(bias, f"{node.name}.bias"))
        return inputs

    def emitted(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        part: Part,
        build: Builder,
        **changed: Any,
    ) -> list[ir.Value]:
        """Adds a narrowed node, which notes what its weight is a part of.

        One of a grouped layer notes nothing: its weight belongs to the domain.

        Args:
            node: The node in the masked dense graph.
            inputs: The emitted node's inputs.
            part: What it makes of the layer.
            build: The graph under construction.
            changed: Attributes that differ.
        """
        outputs = build.copy(node, inputs, **changed)
        layer = self.layer(node, build.facts)
        operand = node.meta.get("unmasked")
        producer = outputs[0].producer()
        if operand is not None and producer is not None and layer.groups == 1:
            kept, alive = self._live_rows(node, build.facts)
            record_stored(
                producer,
                use=node.meta["weight"],
                stored=self.canonical_weight(node, operand),
                emitted=part.weight,
                filters=kept,
                live=alive,
                channels=part.channels,
                order=build.facts.orders.get(str(node.outputs[0].name)),
            )
        return outputs

    def reason(self, node: ir.Node, facts: Facts) -> str:
        if self.representatives(node, facts):
            return "a constant channel makes a pattern at its zero-padded border"
        if self.layer(node, facts).padded:
            return "its groups must stay equally wide"
        value = node.inputs[self.data(node)]
        if value is not None and not facts.is_live(value):
            return "a constant channel differs from place to place"
        return "it needs at least one channel"


def _uniform(known: Known, axis: int) -> Known:
    """Returns the constant at each index of an axis, NaN where it is live or differs."""
    moved = np.moveaxis(known, axis, 0)
    flat = moved.reshape(moved.shape[0], -1)
    return np.where((flat == flat[:, :1]).all(axis=1), flat[:, 0], np.nan)


def _balance(chosen: Needed, staying: Needed | None = None) -> Needed:
    """Adds channels until every group with any has as many as the widest; shape `(groups, n)`."""
    rows = np.asarray(chosen.any(axis=1)) if staying is None else staying[:, 0]
    chosen = chosen & rows.reshape(-1, 1)
    width = int(chosen.sum(axis=1).max())
    for group in np.flatnonzero(rows):
        missing = width - int(chosen[group].sum())
        chosen[group, np.flatnonzero(~chosen[group])[:missing]] = True
    return chosen.reshape(-1)


def _bias(facts: Facts, node: ir.Node, index: int, filters: int) -> Array:
    value = node.inputs[index] if len(node.inputs) > index else None
    array = facts.constant(value)
    return np.zeros(filters) if array is None else np.broadcast_to(array.reshape(-1), (filters,))


@register("Conv")
class Conv(Product):
    """`Conv` of any rank, stride, dilation, padding and number of groups."""

    def canonical_weight(self, node: ir.Node, operand: Array) -> Array:
        return operand

    def rounded(self, node: ir.Node, read: Needed, facts: Facts) -> Needed:
        if not facts.widening.inputs:
            return read
        layer = self.layer(node, facts)
        count = int(read.sum())
        width = -(-count // ALIGNMENT) * ALIGNMENT
        if width < BLOCK <= 1.5 * count:
            width = BLOCK
        missing = min(width, layer.channels) - count
        value = node.inputs[0]
        assert value is not None
        if missing <= 0 or self.macs(layer, node, facts, layer.pairs.size) < WORTH_ROUNDING:
            return read
        idle = np.flatnonzero(~read)
        need = facts.needed.get(value)
        if need is not None:  # channels that another reader needs cost nothing
            wanted = along(need, layer.in_axis, layer.channels)[idle]
            idle = idle[np.argsort(~wanted, kind="stable")]
        read = read.copy()
        read[idle[:missing]] = True
        return read

    def canonical(self, node: ir.Node, facts: Facts) -> Layer:
        weight = facts.constant(node.inputs[1])
        assert weight is not None and node.inputs[0] is not None
        geometry = window(node, facts.shape(node.inputs[0]), weight.shape[2:])
        return Layer(
            weight=weight,
            bias=_bias(facts, node, 2, weight.shape[0]),
            groups=attribute(node, "group", 1),
            in_axis=1,
            out_axis=1,
            border=geometry.padded,
            pointwise=False,
        )

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        return self.emit_parts(node, build, lambda part: part.weight)


@register("ConvTranspose")
class ConvTranspose(Product):
    """`ConvTranspose`; its weight is stored `(channels, filters per group, *kernel)`."""

    def canonical_weight(self, node: ir.Node, operand: Array) -> Array:
        split = operand.reshape(attribute(node, "group", 1), -1, *operand.shape[1:])
        return np.swapaxes(split, 1, 2).reshape(-1, split.shape[1], *operand.shape[2:])

    def canonical(self, node: ir.Node, facts: Facts) -> Layer:
        stored = facts.constant(node.inputs[1])
        assert stored is not None
        weight = self.canonical_weight(node, stored)
        return Layer(
            weight=weight,
            bias=_bias(facts, node, 2, weight.shape[0]),
            groups=attribute(node, "group", 1),
            in_axis=1,
            out_axis=1,
            border=True,  # strided windows overlap unevenly, with or without padding
            pointwise=False,
        )

    def macs(self, layer: Layer, node: ir.Node, facts: Facts, pairs: int) -> int:
        assert node.inputs[0] is not None
        shape = facts.shape(node.inputs[0])
        positions = int(np.prod(shape, dtype=np.int64)) // shape[1]
        return positions * pairs * layer.kernel // facts.trace.batch

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        return self.emit_parts(node, build, self._stored)

    @staticmethod
    def _stored(part: Part) -> Array:
        split = part.weight.reshape(part.groups, -1, *part.weight.shape[1:])
        return np.swapaxes(split, 1, 2).reshape(-1, split.shape[1], *part.weight.shape[2:])


@register("Gemm")
class Gemm(Product):
    """`alpha * x @ W + beta * b` with a constant weight; anything else is read whole."""

    def applies(self, node: ir.Node) -> bool:
        if not super().applies(node) or attribute(node, "transA", 0):
            return False
        addend = node.inputs[2] if len(node.inputs) > 2 else None
        return addend is None or sum(size > 1 for size in constant_array(addend).shape[:-1]) == 0

    def canonical_weight(self, node: ir.Node, operand: Array) -> Array:
        weight = operand if attribute(node, "transB", 0) else operand.T
        return np.asarray(weight * attribute(node, "alpha", 1.0))

    def canonical(self, node: ir.Node, facts: Facts) -> Layer:
        stored = facts.constant(node.inputs[1])
        assert stored is not None
        weight = self.canonical_weight(node, stored)
        return Layer(
            weight=weight,
            bias=_bias(facts, node, 2, weight.shape[0]) * attribute(node, "beta", 1.0),
            groups=1,
            in_axis=1,
            out_axis=1,
            border=False,
            pointwise=True,
        )

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        (part,) = self.parts(node, build.facts)
        inputs = self.operands(node, build.read(node, 0), part.weight, part.bias, build)
        return self.emitted(node, inputs, part, build, transB=1, alpha=1.0, beta=1.0)


@register("MatMul")
class MatMul(Product):
    """`x @ W` or `W @ x` with a constant 2-D weight."""

    def applies(self, node: ir.Node) -> bool:
        weight = node.inputs[1 - self.data(node)]
        return super().applies(node) and weight is not None and constant_array(weight).ndim == 2

    def data(self, node: ir.Node) -> int:
        assert node.inputs[0] is not None
        return 1 if node.inputs[0].is_initializer() else 0

    def canonical_weight(self, node: ir.Node, operand: Array) -> Array:
        return operand.T if self.data(node) == 0 else operand

    def canonical(self, node: ir.Node, facts: Facts) -> Layer:
        data = self.data(node)
        stored = facts.constant(node.inputs[1 - data])
        assert stored is not None
        rank = len(facts.shape(node.outputs[0]))
        axis = rank - 1 if data == 0 else rank - 2
        weight = self.canonical_weight(node, stored)
        return Layer(
            weight=weight,
            bias=np.zeros(weight.shape[0]),
            groups=1,
            in_axis=axis,
            out_axis=axis,
            border=False,
            pointwise=True,
        )

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        (part,) = self.parts(node, build.facts)
        weight, bias, use = part.weight, part.bias, node.meta["weight"]
        source = build.read(node, self.data(node))
        if self.data(node) == 0:
            operands = [source, build.constant(weight.T, use.name)]
        else:
            operands = [build.constant(weight, use.name), source]
            bias = bias[:, None]
        outputs = self.emitted(node, operands, part, build)
        if not bias.any():
            return outputs
        shift = build.constant(bias, f"{node.name}.bias")
        return build.op("Add", [outputs[0], shift], name=f"{node.name}_bias")
