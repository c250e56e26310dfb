"""Operators that read whole axes: reductions, norms, pooling, interpolation, running sums."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from ...evaluate import Array, attribute, window
from .interpolation import axis_weights
from .lowering import Layout, Lowering, lowers
from .operators import (
    Activation,
    Affine,
    Binary,
    BinaryKind,
    Fill,
    Function,
    Interpolate,
    Normalize,
    Pool,
    PoolKind,
    Reduce,
    ReduceKind,
    Softmax,
    Unary,
)
from .product import _triple

_REDUCE = {
    "ReduceMean": ReduceKind.MEAN,
    "ReduceSum": ReduceKind.SUM,
    "ReduceMax": ReduceKind.MAXIMUM,
    "ReduceMin": ReduceKind.MINIMUM,
    "ReduceProd": ReduceKind.PRODUCT,
    "ReduceL1": ReduceKind.L1,
    "ReduceL2": ReduceKind.L2,
    "ReduceSumSquare": ReduceKind.SUM_OF_SQUARES,
    "ReduceLogSum": ReduceKind.LOG_SUM,
    "ReduceLogSumExp": ReduceKind.LOG_SUM_EXP,
}


def _around(shape: tuple[int, ...], axis: int) -> dict[str, int]:
    """Returns a tensor's three axes around one."""
    return {
        "outer": int(np.prod(shape[:axis], dtype=np.int64)),
        "n": shape[axis],
        "inner": int(np.prod(shape[axis + 1 :], dtype=np.int64)),
    }


def _data(node: ir.Node) -> ir.Value:
    assert node.inputs[0] is not None
    return node.inputs[0]


@lowers(*_REDUCE)
def reduction(low: Lowering, node: ir.Node) -> None:
    """Over constant axes."""
    data = _data(node)
    rank = len(low.shape(data))
    given = node.inputs[1] if len(node.inputs) > 1 else None
    axes = low.constant(given)
    if given is not None and axes is None:
        raise low.refuse(node, "its axes depend on the input")
    if axes is None or axes.size == 0:
        if attribute(node, "noop_with_empty_axes", 0):
            low.alias(node.outputs[0], data)
            return
        axes = np.arange(rank)
    _reduce(low, node, _REDUCE[node.op_type], {int(a) % rank for a in axes.reshape(-1)})


@lowers("GlobalAveragePool", "GlobalMaxPool")
def global_pool(low: Lowering, node: ir.Node) -> None:
    """A reduction over space."""
    kind = ReduceKind.MEAN if node.op_type == "GlobalAveragePool" else ReduceKind.MAXIMUM
    _reduce(low, node, kind, set(range(2, len(low.shape(_data(node))))))


def _reduce(low: Lowering, node: ir.Node, kind: ReduceKind, axes: Collection[int]) -> None:
    """Reduces axes that lie together; others are brought together first."""
    data, output = _data(node), node.outputs[0]
    shape, name = low.shape(data), node.name or ""
    rank = len(shape)
    kept = [axis for axis in range(rank) if axis not in axes]
    preferred = low.layout([data])
    for layout in (preferred, preferred.other):
        order = layout.order(rank)
        span = [k for k, axis in enumerate(order) if axis in axes and shape[axis] > 1]
        between = range(span[0], span[-1] + 1) if span else range(0)
        together = all(order[k] in axes or shape[order[k]] == 1 for k in between)
        target = _order_of(low.shape(output), [a for a in order if a in kept], kept, rank)
        if together and target is not None and layout in low.layouts(data):
            break
    else:
        _reduce_apart(low, node, kind, kept, sorted(axes))
        return
    x = low.tensor(data, layout)
    physical = low.draft.shape(x)
    first, end = (span[0], span[-1] + 1) if span else (0, 0)
    y = low.make(output, target)
    low.draft.operators.append(
        Reduce(
            name=name, x=x, y=y, kind=kind,
            outer=int(np.prod(physical[:first], dtype=np.int64)),
            n=int(np.prod(physical[first:end], dtype=np.int64)),
            inner=int(np.prod(physical[end:], dtype=np.int64)),
        )
    )  # fmt: skip


def _order_of(
    shape: tuple[int, ...], lying: list[int], kept: list[int], rank: int
) -> Layout | None:
    """Returns the layout of a reduction's output whose kept axes lie in an order, if there is one.

    `kept` are the input's axes that stay, ascending; the output may have dropped the others.
    """
    number = {axis: axis if len(shape) == rank else i for i, axis in enumerate(kept)}
    actual = [number[axis] for axis in lying if shape[number[axis]] > 1]
    for layout in Layout:
        if actual == [axis for axis in layout.order(len(shape)) if shape[axis] > 1]:
            return layout
    return None


def _reduce_apart(
    low: Lowering, node: ir.Node, kind: ReduceKind, kept: list[int], axes: list[int]
) -> None:
    data, output = _data(node), node.outputs[0]
    shape = low.shape(data)
    layout = low.layout([data])
    steps = layout.strides(shape)
    order = [*kept, *axes]
    sizes = [shape[axis] for axis in order]
    moved = low.draft.activation(sizes)
    low.move(
        node.name or "", low.tensor(data, layout), moved, sizes, [steps[a] for a in order],
        Layout.ROWS.strides(sizes),
    )  # fmt: skip
    y = low.make(output, Layout.ROWS)
    outer, n = (int(np.prod([shape[a] for a in group])) for group in (kept, axes))
    low.draft.operators.append(
        Reduce(name=node.name or "", x=moved, y=y, kind=kind, outer=outer, n=n, inner=1)
    )


@lowers("Softmax", "LogSoftmax")
def softmax(low: Lowering, node: ir.Node) -> None:
    """Along one axis, in whichever layout the operand is."""
    data = _data(node)
    layout = low.layout([data])
    x, y = low.tensor(data, layout), low.make(node.outputs[0], layout)
    rank = len(low.shape(data))
    axis = layout.position(int(attribute(node, "axis", -1)), rank)
    log = int(node.op_type == "LogSoftmax")
    low.draft.operators.append(
        Softmax(name=node.name or "", x=x, y=y, log=log, **_around(low.draft.shape(x), axis))
    )


@lowers("LpNormalization")
def lp_normalization(low: Lowering, node: ir.Node) -> None:
    """Divides by the norm along an axis."""
    data = _data(node)
    if attribute(node, "p", 2) != 2:
        raise low.refuse(node, "its norm is not of order 2")
    layout = low.layout([data])
    x, y = low.tensor(data, layout), low.make(node.outputs[0], layout)
    shape = low.draft.shape(x)
    axis = layout.position(int(attribute(node, "axis", -1)), len(shape))
    norm = low.draft.activation([1 if a == axis else size for a, size in enumerate(shape)])
    name = node.name or ""
    low.draft.operators.append(
        Reduce(name=name, x=x, y=norm, kind=ReduceKind.L2, **_around(shape, axis))
    )
    low.draft.operators.append(Binary(name=name, a=x, b=norm, y=y, kind=BinaryKind.DIVIDE))


@lowers("BatchNormalization")
def batch_normalization(low: Lowering, node: ir.Node) -> None:
    """Scale and shift per channel, of a selection of the channels."""
    data = _data(node)
    parameters = [low.constant(value) for value in node.inputs[1:5]]
    scale, bias, mean, variance = (None if p is None else p.astype(np.float64) for p in parameters)
    if scale is None or bias is None or mean is None or variance is None:
        raise low.refuse(node, "its parameters depend on the input")
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    source, indices = low.selection(data, 1)
    x, y = low.tensor(source, Layout.LAST), low.make(node.outputs[0], Layout.LAST)
    low.draft.operators.append(
        Affine(
            name=node.name or "",
            x=x,
            y=y,
            index=None if indices is None else low.draft.index(indices),
            scale=low.draft.constant(factor),
            shift=low.draft.constant(bias - mean * factor),
        )
    )


def _scale_and_shift(
    low: Lowering, node: ir.Node, x: int, layout: Layout, axis: int, scale: Array, shift: Array
) -> None:
    """Ends a norm: scale and shift that vary along one axis, as the node's output."""
    shape, name = low.draft.shape(x), node.name or ""
    if layout.position(axis, len(shape)) == len(shape) - 1:
        y = low.make(node.outputs[0], layout)
        factors = low.draft.constant(scale), low.draft.constant(shift)
        low.draft.operators.append(Affine(name=name, x=x, y=y, scale=factors[0], shift=factors[1]))
        return
    spread = [-1 if a == axis else 1 for a in range(len(shape))]
    for kind, array, idle in (
        (BinaryKind.MULTIPLY, scale, 1.0), (BinaryKind.ADD, shift, 0.0),
    ):  # fmt: skip
        if (array != idle).any():
            padded = array.reshape(spread).transpose(layout.order(len(shape)))
            y = low.draft.activation(shape)
            low.draft.operators.append(
                Binary(name=name, a=x, b=low.draft.constant(padded), y=y, kind=kind)
            )
            x = y
    low.define(node.outputs[0], x, layout)


@lowers("InstanceNormalization")
def instance_normalization(low: Lowering, node: ir.Node) -> None:
    """Normalises every channel of every image over space."""
    data = _data(node)
    scale, shift = (low.constant(value) for value in node.inputs[1:3])
    if scale is None or shift is None:
        raise low.refuse(node, "its parameters depend on the input")
    layout = low.layout([data])
    x = low.tensor(data, layout)
    images, channels, *space = low.shape(data)
    size = int(np.prod(space, dtype=np.int64))
    axes = (images, size, channels) if layout is Layout.LAST else (images * channels, size, 1)
    normal = low.draft.activation(low.draft.shape(x))
    low.draft.operators.append(
        Normalize(
            name=node.name or "", x=x, y=normal, epsilon=attribute(node, "epsilon", 1e-5),
            outer=axes[0], n=axes[1], inner=axes[2],
        )
    )  # fmt: skip
    _scale_and_shift(low, node, normal, layout, 1, scale, shift)


@lowers("GroupNormalization")
def group_normalization(low: Lowering, node: ir.Node) -> None:
    """Normalises groups of channels over the group and space."""
    data = _data(node)
    scale, shift = (low.constant(value) for value in node.inputs[1:3])
    if scale is None or shift is None:
        raise low.refuse(node, "its parameters depend on the input")
    images, channels, *_ = shape = low.shape(data)
    groups = attribute(node, "num_groups", 1)
    x = low.tensor(data, Layout.ROWS)
    normal = low.draft.activation(shape)
    outer = images * groups
    low.draft.operators.append(
        Normalize(
            name=node.name or "", x=x, y=normal, epsilon=attribute(node, "epsilon", 1e-5),
            outer=outer, n=int(np.prod(shape)) // outer, inner=1,
        )
    )  # fmt: skip
    if len(scale) == groups and groups != channels:  # until opset 20: one number per group
        scale, shift = (np.repeat(array, channels // groups) for array in (scale, shift))
    _scale_and_shift(low, node, normal, Layout.ROWS, 1, scale, shift)


@lowers("LayerNormalization")
def layer_normalization(low: Lowering, node: ir.Node) -> None:
    """Normalises over an axis and all after it."""
    data = _data(node)
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise low.refuse(node, "its second and third outputs are read")
    shape = low.shape(data)
    axis = int(attribute(node, "axis", -1)) % len(shape)
    given = [value for value in node.inputs[1:] if value is not None]
    vectors: list[int | None] = []
    for value in [*node.inputs[1:], None, None][:2]:
        array = low.constant(value)
        if array is None and value is not None:
            raise low.refuse(node, "its parameters depend on the input")
        spread = None if array is None else np.broadcast_to(array, shape[axis:]).reshape(-1)
        vectors.append(None if spread is None else low.draft.constant(spread))
    x = low.tensor(data, Layout.ROWS)
    y = low.make(node.outputs[0], Layout.ROWS)
    name = node.name or ""
    outer, n = (int(np.prod(part, dtype=np.int64)) for part in (shape[:axis], shape[axis:]))
    normal = low.draft.activation(shape) if given else y
    low.draft.operators.append(
        Normalize(
            name=name, x=x, y=normal, epsilon=attribute(node, "epsilon", 1e-5),
            outer=outer, n=n, inner=1,
        )
    )  # fmt: skip
    if given:  # the normalised axes as one
        flat, made = (low.draft.view(tensor, (outer, n)) for tensor in (normal, y))
        low.draft.operators.append(
            Affine(name=name, x=flat, y=made, scale=vectors[0], shift=vectors[1])
        )


@lowers("RMSNormalization")
def rms_normalization(low: Lowering, node: ir.Node) -> None:
    """Divides by the root of the mean square over an axis and all after it."""
    data = _data(node)
    shape = low.shape(data)
    axis = int(attribute(node, "axis", -1)) % len(shape)
    scale = low.constant(node.inputs[1]) if len(node.inputs) > 1 else np.ones(1)
    if scale is None:
        raise low.refuse(node, "its scale depends on the input")
    outer, n = (int(np.prod(part, dtype=np.int64)) for part in (shape[:axis], shape[axis:]))
    x = low.draft.view(low.tensor(data, Layout.ROWS), (outer, n))
    y = low.draft.view(low.make(node.outputs[0], Layout.ROWS), (outer, n))
    name = node.name or ""
    squares, mean, root, normal = (
        low.draft.activation(size) for size in ((outer, n), (outer, 1), (outer, 1), (outer, n))
    )
    epsilon = low.draft.constant(np.full(1, attribute(node, "epsilon", 1e-5)))
    low.draft.operators += [
        Unary(name=name, x=x, y=squares, activation=Activation(Function.SQUARE)),
        Reduce(name=name, x=squares, y=mean, kind=ReduceKind.MEAN, outer=outer, n=n, inner=1),
        Affine(name=name, x=mean, y=root, shift=epsilon, activation=Activation(Function.SQRT)),
        Binary(name=name, a=x, b=root, y=normal, kind=BinaryKind.DIVIDE),
        Affine(
            name=name, x=normal, y=y,
            scale=low.draft.constant(np.broadcast_to(scale, shape[axis:]).reshape(-1)),
        ),
    ]  # fmt: skip


@lowers("LRN")
def local_response(low: Lowering, node: ir.Node) -> None:
    """`x / (bias + alpha / size * sum of squares of neighbouring channels) ** beta`."""
    data = _data(node)
    layout = low.layout([data])
    x, y = low.tensor(data, layout), low.make(node.outputs[0], layout)
    shape, name = low.draft.shape(x), node.name or ""
    axis = layout.position(1, len(shape))
    size, channels = attribute(node, "size", 1), shape[axis]
    taps = np.arange(channels)[:, None] + np.arange(size) - (size - 1) // 2
    inside = (taps >= 0) & (taps < channels)
    weights = np.where(inside, attribute(node, "alpha", 1e-4) / size, 0.0)
    squares, sums, base, power = (low.draft.activation(shape) for _ in range(4))
    ones = (1,) * len(shape)
    bias = low.draft.constant(np.full(shape[-1], attribute(node, "bias", 1.0)))
    beta = low.draft.constant(np.full(ones, attribute(node, "beta", 0.75)))
    low.draft.operators += [
        Unary(name=name, x=x, y=squares, activation=Activation(Function.SQUARE)),
        Interpolate(
            name=name, x=squares, y=sums, index=low.draft.index(np.clip(taps, 0, channels - 1)),
            weight=low.draft.constant(weights), taps=size, **_around(shape, axis),
        ),
        Affine(name=name, x=sums, y=base, shift=bias),
        Binary(name=name, a=base, b=beta, y=power, kind=BinaryKind.POWER),
        Binary(name=name, a=x, b=power, y=y, kind=BinaryKind.DIVIDE),
    ]  # fmt: skip


@lowers("MaxPool", "AveragePool")
def pool(low: Lowering, node: ir.Node) -> None:
    """Windows over space, channels-last."""
    data, output = _data(node), node.outputs[0]
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise low.refuse(node, "its second output is read")
    shape = low.shape(data)
    kernel = node.attributes["kernel_shape"].value
    if len(kernel) > 3:
        raise low.refuse(node, f"it has {len(kernel)} spatial axes, at most 3 are there")
    geometry = window(node, shape, kernel)
    kind, pad = PoolKind.MAXIMUM, geometry.begin
    x = low.tensor(data, Layout.LAST)
    if node.op_type == "AveragePool":
        whole = attribute(node, "count_include_pad", 0) and geometry.padded
        kind = PoolKind.MEAN_WHOLE if whole else PoolKind.MEAN_INSIDE
        ends = [
            (size - 1) * stride + (k - 1) * dilation + 1
            for size, stride, k, dilation in zip(
                low.shape(output)[2:], geometry.strides, kernel, geometry.dilations, strict=True
            )
        ]
        reach = zip(shape[2:], geometry.begin, geometry.end, ends, strict=True)
        if whole and any(end > size + a + b for size, a, b, end in reach):
            x, pad = _bordered(low, node, x, geometry.begin, geometry.end), (0,) * len(kernel)
            kind = PoolKind.MEAN_INSIDE  # beyond the border nothing counts
    y = low.make(output, Layout.LAST)
    low.draft.operators.append(
        Pool(
            name=node.name or "",
            x=x,
            y=y,
            kind=kind,
            spatial=len(kernel),
            kernel=_triple(kernel, 1),
            stride=_triple(geometry.strides, 1),
            dilation=_triple(geometry.dilations, 1),
            pad=_triple(pad, 0),
        )
    )


def _bordered(
    low: Lowering, node: ir.Node, x: int, begin: tuple[int, ...], end: tuple[int, ...]
) -> int:
    """Puts a border of zeros around space, channels-last."""
    shape, name = low.draft.shape(x), node.name or ""
    space = [size + a + b for size, a, b in zip(shape[1:-1], begin, end, strict=True)]
    y = low.draft.activation((shape[0], *space, shape[-1]))
    steps = Layout.ROWS.strides(low.draft.shape(y))
    offset = sum(a * step for a, step in zip(begin, steps[1:-1], strict=True))
    low.draft.operators.append(Fill(name=name, y=y, value=0.0))
    low.move(name, x, y, shape, Layout.ROWS.strides(shape), steps, y_offset=offset)
    return y


@lowers("Resize", "Upsample")
def resize(low: Lowering, node: ir.Node) -> None:
    """One axis after the other: a selection, or sums of neighbours."""
    data, output = _data(node), node.outputs[0]
    layout = low.layout([data])
    x = low.tensor(data, layout)
    rank = len(low.shape(data))
    for axis in range(rank):
        weights = axis_weights(low, node, axis)
        if weights is None:
            continue
        indices, factors = weights
        at = layout.position(axis, rank)
        shape = low.draft.shape(x)
        y = low.draft.activation([len(indices) if a == at else n for a, n in enumerate(shape)])
        if factors is None:
            low.take(node.name or "", x, y, at, indices[:, 0])
        else:
            low.draft.operators.append(
                Interpolate(
                    name=node.name or "", x=x, y=y, index=low.draft.index(indices),
                    weight=low.draft.constant(factors), taps=indices.shape[1],
                    **_around(shape, at),
                )
            )  # fmt: skip
        x = y
    low.define(output, x, layout)


@lowers("CumSum")
def cumulative_sum(low: Lowering, node: ir.Node) -> None:
    """Sums with weights 0 and 1 of all entries along an axis."""
    data = _data(node)
    axis_array = low.constant(node.inputs[1])
    if axis_array is None:
        raise low.refuse(node, "its axis depends on the input")
    layout = low.layout([data])
    x, y = low.tensor(data, layout), low.make(node.outputs[0], layout)
    shape = low.draft.shape(x)
    axis = layout.position(int(axis_array.reshape(())), len(shape))
    n = shape[axis]
    weights = np.tril(np.ones((n, n)), -1 if attribute(node, "exclusive", 0) else 0)
    if attribute(node, "reverse", 0):
        weights = weights[::-1, ::-1]
    low.draft.operators.append(
        Interpolate(
            name=node.name or "", x=x, y=y,
            index=low.draft.index(np.broadcast_to(np.arange(n), (n, n))),
            weight=low.draft.constant(weights), taps=n, **_around(shape, axis),
        )
    )  # fmt: skip


@lowers("LpPool")
def lp_pool(low: Lowering, node: ir.Node) -> None:
    """The p-norm of a window, p 1 or 2: a mean of absolute values or squares, times its size."""
    data = _data(node)
    p = attribute(node, "p", 2)
    kernel = node.attributes["kernel_shape"].value
    if p not in (1, 2) or attribute(node, "ceil_mode", 0) or len(kernel) > 3:
        raise low.refuse(node, "its order is neither 1 nor 2, or its windows are cut")
    geometry = window(node, low.shape(data), kernel)
    x = low.tensor(data, Layout.LAST)
    y = low.make(node.outputs[0], Layout.LAST)
    size, name = low.draft.shape(y), node.name or ""
    powers, mean = low.draft.activation(low.draft.shape(x)), low.draft.activation(size)
    first, last = (
        (Function.ABSOLUTE, Function.IDENTITY) if p == 1 else (Function.SQUARE, Function.SQRT)
    )
    count = low.draft.constant(np.full(size[-1], float(np.prod(kernel))))
    low.draft.operators += [
        Unary(name=name, x=x, y=powers, activation=Activation(first)),
        Pool(
            name=name, x=powers, y=mean, kind=PoolKind.MEAN_WHOLE, spatial=len(kernel),
            kernel=_triple(kernel, 1), stride=_triple(geometry.strides, 1),
            dilation=_triple(geometry.dilations, 1), pad=_triple(geometry.begin, 0),
        ),
        Affine(name=name, x=mean, y=y, scale=count, activation=Activation(last)),
    ]  # fmt: skip
