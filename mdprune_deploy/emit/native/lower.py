"""From one domain's narrowed graph to a draft of its plan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ...errors import UnsupportedGraphError
from ...evaluate import Array, evaluate
from . import elementwise, mixing, movement, product
from .draft import Draft
from .fuse import fuse
from .lowering import RULES, Layout, Lowering, Share
from .pad import pad_channels

__all__ = ["elementwise", "lower", "mixing", "movement", "product"]


def lower(graph: ir.Graph, feeds: Mapping[str, Array], share: Share | None = None) -> Draft:
    """Lowers a graph.

    Args:
        graph: The narrowed graph in float64.
        feeds: Inputs of the sizes that the plan is for, by name.
        share: See `Lowering`.

    Raises:
        UnsupportedGraphError: The native target lacks an operator; the message names it.
    """
    shapes: dict[ir.Value, tuple[int, ...]] = {}
    dtypes: dict[ir.Value, np.dtype[np.generic]] = {}

    def observe(value: ir.Value, array: Array) -> None:
        shapes[value], dtypes[value] = tuple(array.shape), array.dtype

    for value in graph.inputs:
        observe(value, feeds[str(value.name)])
    evaluate(graph, feeds, observe=observe)
    low = Lowering(shapes, dtypes, graph.opset_imports[""], share)
    for value in graph.inputs:
        _check_port(value, "input", dtypes[value])
        low.define(value, low.draft.input(str(value.name), shapes[value]), Layout.ROWS)
    for node in graph:
        if low.fold(node):
            continue
        _check(low, node, shapes, dtypes)
        RULES[node.op_type](low, node)
    for value in graph.outputs:
        _finish(low, value, dtypes)
    fuse(low.draft)
    pad_channels(low.draft)
    return low.draft


def _check(
    low: Lowering,
    node: ir.Node,
    shapes: Mapping[ir.Value, tuple[int, ...]],
    dtypes: Mapping[ir.Value, np.dtype[np.generic]],
) -> None:
    if node.op_type not in RULES or node.domain:
        raise low.refuse(node, "there is no such operator")
    for value in node.outputs:
        if value not in shapes or not (value.uses() or value.is_graph_output()):
            continue
        if dtypes[value].kind not in "fb":
            raise low.refuse(node, f"it makes {dtypes[value]} of the inputs' data")
        if 0 in shapes[value]:
            raise low.refuse(node, "its output is empty")


def _check_port(value: ir.Value, what: str, dtype: np.dtype[np.generic]) -> None:
    if dtype.kind != "f":
        raise UnsupportedGraphError(
            f"the native target lacks {what}s of type {dtype}; {value.name!r} is one"
        )


def _finish(
    low: Lowering, value: ir.Value, dtypes: Mapping[ir.Value, np.dtype[np.generic]]
) -> None:
    """Moves an output to where the user gets it; `fuse` drops the copy where it can."""
    shape = low.shape(value)
    constant = low.constant(value)
    _check_port(value, "output", dtypes[value] if constant is None else constant.dtype)
    layout = Layout.ROWS if Layout.ROWS in low.layouts(value) else Layout.LAST
    x = low.tensor(value, layout)
    y = low.draft.output(str(value.name), shape)
    strides = layout.strides(shape), Layout.ROWS.strides(shape)
    low.move(str(value.name), x, y, shape, *strides)
