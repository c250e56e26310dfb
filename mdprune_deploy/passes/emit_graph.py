"""Builds the narrowed graph of one domain from what the passes decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ..evaluate import Array
from .elements import Indices, Sets, same
from .facts import Facts
from .operators import operator
from .trace import add_initializer


@dataclass(frozen=True)
class Origin:
    """Where an emitted value comes from.

    Attributes:
        value: The value's name in the masked dense graph.
        sets: The product set of it that the emitted value holds.
    """

    value: str
    sets: Sets


@dataclass
class Builder:
    """Collects emitted nodes.

    Attributes:
        facts: What the passes decided.
        graph: The graph under construction.
        values: The emitted value of each value that is kept.
        origins: By emitted name, what the value is a part of.
    """

    facts: Facts
    graph: ir.Graph
    values: dict[ir.Value, ir.Value] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    _selections: dict[tuple[ir.Value, int, bytes], ir.Value] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def constant(self, array: Array, name: str) -> ir.Value:
        """Adds a constant."""
        return add_initializer(self.graph, array, self._fresh(name))

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        name: str,
        outputs: int = 1,
    ) -> list[ir.Value]:
        """Adds a node."""
        node = ir.node(
            op_type, inputs, attributes or {}, num_outputs=outputs, name=self._fresh(name)
        )
        for position, value in enumerate(node.outputs):
            value.name = f"{node.name}_{position}" if position else node.name
        self.graph.append(node)
        return list(node.outputs)

    def copy(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        *,
        outputs: int | None = None,
        **changed: Any,
    ) -> list[ir.Value]:
        """Adds a node of the same operator with other inputs and, where named, attributes."""
        kept = list(inputs)
        while kept and kept[-1] is None:
            kept.pop()
        attributes: dict[str, Any] = dict(node.attributes)
        attributes.update(changed)
        assert node.name is not None
        return self.op(
            node.op_type,
            kept,
            attributes,
            name=node.name,
            outputs=len(node.outputs) if outputs is None else outputs,
        )

    def read(self, node: ir.Node, index: int) -> ir.Value | None:
        """Returns what a node reads of one of its inputs, selecting channels where needed."""
        value = node.inputs[index]
        if value is None:
            return None
        array = self.facts.constant(value)
        if array is not None:
            return self.constant(array, value.name or "constant")
        requirement = self.facts.required[node, index]
        selected = self.select(value, requirement.sets)
        if requirement.expand is None:
            return selected
        return self._fill(selected, len(self.facts.shape(value)), *requirement.expand)

    def select(self, value: ir.Value, wanted: Sets) -> ir.Value:
        """Narrows an emitted value to the wanted indices of the original one."""
        current = self.values[value]
        for axis, (want, have) in enumerate(zip(wanted, self.facts.kept[value], strict=True)):
            size = self.facts.size(value, axis)
            if same(want, have, size):
                continue
            want = np.arange(size) if want is None else want
            positions = want if have is None else _positions(have, want, size)
            key = (current, axis, positions.tobytes())
            if key not in self._selections:
                self._selections[key] = self._gather(current, axis, positions)
            current = self._selections[key]
        return current

    def _gather(self, value: ir.Value, axis: int, positions: Indices) -> ir.Value:
        name = f"{value.name}_selected"
        first, count = int(positions[0]), len(positions)
        if np.array_equal(positions, np.arange(first, first + count)):
            bounds = [
                self.constant(np.asarray([number]), f"{name}_bound")
                for number in (first, first + count, axis)
            ]
            return self.op("Slice", [value, *bounds], name=name)[0]
        indices = self.constant(positions, f"{name}_indices")
        return self.op("Gather", [value, indices], {"axis": axis}, name=name)[0]

    def _fill(self, value: ir.Value, rank: int, axis: int, constants: Array) -> ir.Value:
        """Puts constants between the channels that are computed."""
        alive = np.isnan(constants)
        name = f"{value.name}_filled"
        pads = np.zeros(2 * rank, dtype=np.int64)
        pads[rank + axis] = 1
        padded = self.op("Pad", [value, self.constant(pads, f"{name}_pads")], name=name)[0]
        positions = np.where(alive, np.cumsum(alive) - 1, int(alive.sum()))
        filled = self._gather(padded, axis, positions)
        if not np.nan_to_num(constants).any():
            return filled
        shift = np.nan_to_num(constants).reshape([-1 if a == axis else 1 for a in range(rank)])
        return self.op("Add", [filled, self.constant(shift, f"{name}_shift")], name=name)[0]

    def _fresh(self, name: str) -> str:
        candidate, count = name, 0
        while candidate in self._names:
            count += 1
            candidate = f"{name}_{count}"
        self._names.add(candidate)
        return candidate


def _positions(have: Indices, want: Indices, size: int) -> Indices:
    """Returns where each wanted index stands among those that are there, in any order."""
    places = np.full(size, -1, dtype=np.int64)
    places[have] = np.arange(len(have))
    return places[want]


def emit_graph(source: ir.Model, facts: Facts) -> tuple[ir.Model, dict[str, Origin]]:
    """Builds the narrowed model.

    Returns:
        The model, in float64, and the origin of every emitted value by its name.
    """
    graph = ir.Graph(
        [], [], nodes=[], opset_imports=dict(source.graph.opset_imports), name=source.graph.name
    )
    build = Builder(facts, graph)
    reserved = {value.name for value in [*source.graph.inputs, *source.graph.outputs]}
    build._names.update(name for name in reserved if name is not None)
    for value in source.graph.inputs:
        new = ir.Value(name=value.name, shape=value.shape, type=value.type)
        graph.inputs.append(new)
        build.values[value] = new
    for node in source.graph:
        if not any(value in facts.kept for value in node.outputs):
            continue
        for value, new in zip(node.outputs, operator(node).emit(node, build), strict=False):
            if value in facts.kept:
                build.values[value] = new
    for value in source.graph.outputs:
        graph.outputs.append(_as_output(build, value))
    for value, new in build.values.items():
        assert value.name is not None and new.name is not None
        build.origins.setdefault(new.name, Origin(value.name, facts.kept[value]))
    model = ir.Model(graph, ir_version=source.ir_version, producer_name="mdprune")
    return model, build.origins


def _as_output(build: Builder, value: ir.Value) -> ir.Value:
    """Returns an emitted value under the output's own name."""
    new = build.values[value]
    if new.is_graph_input() or new.is_initializer() or new.is_graph_output():
        new = build.op("Identity", [new], name="output")[0]
    new.name = value.name
    new.shape, new.type = value.shape, value.type
    return new
