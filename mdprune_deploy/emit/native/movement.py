"""Operators that only move elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...evaluate import attribute
from ...passes.elements import Indices
from .lowering import Layout, Lowering, lowers, operands
from .operators import Fill


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(low: Lowering, node: ir.Node) -> None:
    """Nothing moves where the elements' order stays."""
    data, output = node.inputs[0], node.outputs[0]
    assert data is not None
    before, after = low.shape(data), low.shape(output)
    forms = low.forms(data)
    last = Layout.LAST in forms and min(len(before), len(after)) > 2 and before[:2] == after[:2]
    if last:
        low.define(output, forms[Layout.LAST], Layout.LAST)
    if not last or Layout.ROWS in forms:
        low.define(output, low.tensor(data, Layout.ROWS), Layout.ROWS)


@lowers("Transpose")
def transpose(low: Lowering, node: ir.Node) -> None:
    """Nothing moves where one layout of the output is one of the input."""
    data, output = node.inputs[0], node.outputs[0]
    assert data is not None
    rank = len(low.shape(data))
    perm = tuple(attribute(node, "perm", tuple(range(rank))[::-1]))
    shape = low.shape(output)
    done = False
    for layout, tensor in low.forms(data).items():
        order = [perm.index(axis) for axis in layout.order(rank)]
        for target in Layout:
            if _longer(order, shape) == _longer(target.order(rank), shape):
                low.define(output, tensor, target)
                done = True
    if done:
        return
    layout = low.layout([data])
    source, y = low.tensor(data, layout), low.make(output, Layout.ROWS)
    strides = layout.strides(low.shape(data))
    moved = tuple(strides[axis] for axis in perm)
    low.move(node.name or "", source, y, shape, moved, Layout.ROWS.strides(shape))


def _longer(order: Sequence[int], shape: Sequence[int]) -> list[int]:
    return [axis for axis in order if shape[axis] > 1]


@lowers("Concat")
def concat(low: Lowering, node: ir.Node) -> None:
    """Every operand moves to its place."""
    values, output = operands(node), node.outputs[0]
    shape = low.shape(output)
    axis = int(node.attributes["axis"].value) % len(shape)
    layout = low.layout([value for value in values if low.constant(value) is None])
    tensors = [low.tensor(value, layout) for value in values]
    y = low.make(output, layout)
    strides, offset = layout.strides(shape), 0
    for value, tensor in zip(values, tensors, strict=True):
        own = low.shape(value)
        low.move(
            node.name or "", tensor, y, own, layout.strides(own), strides,
            y_offset=offset * strides[axis],
        )  # fmt: skip
        offset += own[axis]


@lowers("Slice")
def slices(low: Lowering, node: ir.Node) -> None:
    """Evenly spaced entries along some axes."""
    data, output = node.inputs[0], node.outputs[0]
    assert data is not None
    bounds = [low.constant(value) for value in node.inputs[1:]]
    missing = [v for v, b in zip(node.inputs[1:], bounds, strict=True) if v and b is None]
    if missing:
        raise low.refuse(node, "its bounds depend on the input")
    starts, ends, axes, steps = [*bounds, None, None][:4]
    assert starts is not None and ends is not None
    shape = low.shape(data)
    chosen: dict[int, Indices] = {}
    for n, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        axis = n if axes is None else int(axes[n]) % len(shape)
        step = 1 if steps is None else int(steps[n])
        floor = -shape[axis] - (step < 0)
        chosen[axis] = np.arange(shape[axis])[
            slice(max(start, floor), None if end < floor else end, step)
        ]
    _take(low, node.name or "", data, output, chosen)


def _take(
    low: Lowering, name: str, data: ir.Value, output: ir.Value, chosen: dict[int, Indices]
) -> None:
    """Selects entries, evenly spaced if along several axes."""
    shape = low.shape(data)
    chosen = {a: i for a, i in chosen.items() if not np.array_equal(i, np.arange(shape[a]))}
    if not chosen:
        low.alias(output, data)
        return
    if len(chosen) == 1:
        ((axis, indices),) = chosen.items()
        low.select(output, data, axis, indices)
        return
    layout = low.layout([data])
    x, y = low.tensor(data, layout), low.make(output, layout)
    strides, size = layout.strides(shape), low.shape(output)
    offset = sum(int(indices[0]) * strides[axis] for axis, indices in chosen.items())
    steps = [
        stride * (int(chosen[a][1] - chosen[a][0]) if a in chosen and len(chosen[a]) > 1 else 1)
        for a, stride in enumerate(strides)
    ]
    low.move(name, x, y, size, steps, layout.strides(size), x_offset=offset)


@lowers("Split")
def split(low: Lowering, node: ir.Node) -> None:
    """Consecutive pieces along an axis."""
    data = node.inputs[0]
    assert data is not None
    axis = int(attribute(node, "axis", 0)) % len(low.shape(data))
    start = 0
    for output in node.outputs:
        length = low.shape(output)[axis]
        if output.uses() or output.is_graph_output():
            indices = np.arange(start, start + length)
            _take(low, node.name or "", data, output, {axis: indices})
        start += length


@lowers("Gather")
def gather(low: Lowering, node: ir.Node) -> None:
    """Constant entries along an axis."""
    data, index_value = node.inputs
    assert data is not None
    indices, output = low.constant(index_value), node.outputs[0]
    if indices is None:
        raise low.refuse(node, "its indices depend on the input")
    shape = low.shape(data)
    axis = int(attribute(node, "axis", 0)) % len(shape)
    positions = indices.astype(np.int64).reshape(-1) % shape[axis]
    if indices.ndim == 1:
        _take(low, node.name or "", data, output, {axis: positions})
        return
    x, y = low.tensor(data, Layout.ROWS), low.make(output, Layout.ROWS)
    flat = low.draft.view(y, (*shape[:axis], len(positions), *shape[axis + 1 :]))
    low.take(node.name or "", x, flat, axis, positions)


@lowers("Expand")
def expand(low: Lowering, node: ir.Node) -> None:
    """Repeats entries along axes of length 1."""
    data, output = node.inputs[0], node.outputs[0]
    assert data is not None
    shape = low.shape(output)
    own = (1,) * (len(shape) - len(low.shape(data))) + low.shape(data)
    if low.shape(data) == shape:
        low.alias(output, data)
        return
    layout = low.layout([data]) if len(low.shape(data)) == len(shape) else Layout.ROWS
    x, y = low.operand(data, len(shape), layout), low.make(output, layout)
    steps = [0 if size == 1 else step for size, step in zip(own, layout.strides(own), strict=True)]
    low.move(node.name or "", x, y, shape, steps, layout.strides(shape))


@lowers("Tile")
def tile(low: Lowering, node: ir.Node) -> None:
    """Repeats the whole tensor along axes."""
    data, output = node.inputs[0], node.outputs[0]
    repeats = low.constant(node.inputs[1])
    assert data is not None
    if repeats is None:
        raise low.refuse(node, "its repeats depend on the input")
    own, shape = low.shape(data), low.shape(output)
    layout = low.layout([data])
    x, y = low.tensor(data, layout), low.make(output, layout)
    x_steps, y_steps = layout.strides(own), layout.strides(shape)
    size, x_stride, y_stride = [], [], []
    for axis, times in enumerate(repeats.tolist()):
        size += [int(times), own[axis]]
        x_stride += [0, x_steps[axis]]
        y_stride += [own[axis] * y_steps[axis], y_steps[axis]]
    low.move(node.name or "", x, y, size, x_stride, y_stride)


@lowers("Pad")
def pad(low: Lowering, node: ir.Node) -> None:
    """A border of one number, or of mirrored or repeated entries."""
    data, output = node.inputs[0], node.outputs[0]
    assert data is not None
    pads, fill, axes = (
        low.constant(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2, 3)
    )
    given = [
        v for v, c in zip(node.inputs[1:], (pads, fill, axes), strict=False) if v and c is None
    ]
    if pads is None or given:
        raise low.refuse(node, "its border depends on the input")
    shape = low.shape(data)
    where = range(len(shape)) if axes is None else [int(a) % len(shape) for a in axes]
    border = [(0, 0)] * len(shape)
    for n, axis in enumerate(where):
        border[axis] = (int(pads[n]), int(pads[n + len(pads) // 2]))
    mode = attribute(node, "mode", "constant")
    layout = low.layout([data])
    x = low.tensor(data, layout)
    name = node.name or ""
    if mode != "constant":
        _mirror(low, node, x, layout, border, mode)
        return
    y = low.make(output, layout)
    value = 0.0 if fill is None else float(fill.reshape(()))
    low.draft.operators.append(Fill(name=name, y=y, value=value))
    size = [n + min(b, 0) + min(a, 0) for n, (b, a) in zip(shape, border, strict=True)]
    steps, y_steps = layout.strides(shape), layout.strides(low.shape(output))
    x_offset = sum(max(-b, 0) * s for (b, _), s in zip(border, steps, strict=True))
    y_offset = sum(max(b, 0) * s for (b, _), s in zip(border, y_steps, strict=True))
    low.move(name, x, y, size, steps, y_steps, x_offset, y_offset)


def _mirror(
    low: Lowering,
    node: ir.Node,
    x: int,
    layout: Layout,
    border: list[tuple[int, int]],
    mode: str,
) -> None:
    output = node.outputs[0]
    for axis, (before, after) in enumerate(border):
        if not before and not after:
            continue
        at = layout.position(axis, len(border))
        shape = list(low.draft.shape(x))
        indices = np.arange(max(0, -before), shape[at] - max(0, -after))
        indices = np.pad(indices, (max(0, before), max(0, after)), mode=mode)  # type: ignore[call-overload]
        shape[at] = len(indices)
        y = low.draft.activation(shape)
        low.take(node.name or "", x, y, at, indices)
        x = y
    low.define(output, x, layout)


@lowers("DepthToSpace", "SpaceToDepth")
def blocks(low: Lowering, node: ir.Node) -> None:
    """Exchanges channels and space."""
    data, output = node.inputs[0], node.outputs[0]
    assert data is not None
    size = attribute(node, "blocksize", 1)
    to_space = node.op_type == "DepthToSpace"
    small, large = (data, output) if to_space else (output, data)
    images, _, height, width = low.shape(small)
    channels = low.shape(large)[1]
    layout = low.layout([data])
    x, y = low.tensor(data, layout), low.make(output, layout)
    deep, wide = layout.strides(low.shape(small)), layout.strides(low.shape(large))
    if attribute(node, "mode", "DCR") == "CRD":
        by_channel, by_row, by_column = size * size, size, 1
    else:
        by_channel, by_row, by_column = 1, size * channels, channels
    sizes = (images, channels, height, size, width, size)
    narrow_steps = (
        deep[0], by_channel * deep[1], deep[2], by_row * deep[1], deep[3], by_column * deep[1],
    )  # fmt: skip
    wide_steps = (wide[0], wide[1], size * wide[2], wide[2], size * wide[3], wide[3])
    steps = (narrow_steps, wide_steps) if to_space else (wide_steps, narrow_steps)
    low.move(node.name or "", x, y, sizes, *steps)
