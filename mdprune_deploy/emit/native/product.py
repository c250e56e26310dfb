"""Convolutions and matrix products.

A weight in canonical form is `(filters, channels per group, *kernel)`. Packed, it is
`(groups, ceil(filters / groups / 16), taps, channels per group, 16)`, filters past the last zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...evaluate import Array, attribute, window
from ...passes.elements import Indices
from ...passes.stored import StoredWeight
from .lowering import Layout, Lowering, lowers
from .operators import Affine, Binary, BinaryKind, Convolution, Depthwise, MatMul, Triple

BLOCK = 16
PANEL_BLOCKS = 4
_MOST_AXES = 3


def packed(weight: Array, groups: int) -> Array:
    """Returns the packed form of a canonical weight, `(groups, blocks, taps, channels, 16)`.

    The sizes tell how much there is; it lies panel after panel, as the format says.
    """
    filters, channels = weight.shape[0] // groups, weight.shape[1]
    blocks = -(-filters // BLOCK)
    split = weight.reshape(groups, filters, channels, -1)
    padded = np.zeros((groups, blocks * BLOCK, *split.shape[2:]), dtype=weight.dtype)
    padded[:, :filters] = split
    panels = np.array_split(np.arange(blocks), -(-blocks // PANEL_BLOCKS))
    rows = [
        padded[:, panel[0] * BLOCK : (panel[-1] + 1) * BLOCK].transpose(0, 3, 2, 1)
        for panel in panels
    ]
    flat = np.concatenate([panel.reshape(groups, -1) for panel in rows], axis=1)
    return flat.reshape(groups, blocks, -1, channels, BLOCK)


def _triple(values: Sequence[int], fill: int) -> Triple:
    a, b, c = (fill,) * (_MOST_AXES - len(values)) + tuple(int(v) for v in values)
    return a, b, c


def _shift(low: Lowering, bias: Array | None) -> int | None:
    return None if bias is None or not bias.any() else low.draft.constant(bias.reshape(-1))


def _weight(low: Lowering, node: ir.Node, weight: Array, groups: int) -> dict[str, Any]:
    """Returns a canonical weight's operand: a part of a shared one if it is, else packed."""
    stored = node.meta.get("stored")
    if not isinstance(stored, StoredWeight) or low.share is None:
        constant = low.draft.constant(packed(weight, groups), weight=True)
        return {"weights": ((constant, None, None, None),)}
    number = node.meta["part"] = low.share(stored, weight)
    found: dict[str, Any] = {"weights": ((low.draft.part(number), None, None, None),)}
    if not stored.live.all():  # the other filters are constants, whatever their weights
        found["scale"] = low.draft.constant(stored.live.astype(np.float64))
    return found


def _index(low: Lowering, indices: Indices | None) -> int | None:
    return None if indices is None else low.draft.index(indices)


@lowers("Conv", "ConvTranspose")
def convolution(low: Lowering, node: ir.Node) -> None:
    """A convolution reads its input channels-last, through a selection of its channels."""
    data, weight_value = node.inputs[0], node.inputs[1]
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    weight, bias = low.constant(weight_value), low.constant(bias_value)
    assert data is not None
    if weight is None or (bias is None and bias_value is not None):
        raise low.refuse(node, "its weight or bias depends on the input")
    spatial = weight.ndim - 2
    if not 1 <= spatial <= _MOST_AXES:
        raise low.refuse(node, f"it has {spatial} spatial axes, at most 3 are there")
    groups = attribute(node, "group", 1)
    transposed = node.op_type == "ConvTranspose"
    if transposed:
        split = weight.reshape(groups, -1, *weight.shape[1:])
        weight = np.swapaxes(split, 1, 2).reshape(-1, split.shape[1], *weight.shape[2:])
    geometry = window(node, low.shape(data), weight.shape[2:])
    windows: dict[str, Any] = {
        "spatial": spatial,
        "kernel": _triple(geometry.kernel, 1),
        "stride": _triple(geometry.strides, 1),
        "dilation": _triple(geometry.dilations, 1),
        "pad": _triple(geometry.begin, 0),
    }
    name, shift = node.name or "", _shift(low, bias)
    if groups > 1 and weight.shape[1] == 1 and not transposed:
        x = low.tensor(data, Layout.LAST)
        y = low.make(node.outputs[0], Layout.LAST)
        taps = low.draft.constant(weight.reshape(len(weight), -1).T, weight=True)
        low.draft.operators.append(
            Depthwise(name=name, x=x, y=y, shift=shift, weight=taps, **windows)
        )
        return
    source, indices = low.selection(data, 1)
    x = low.tensor(source, Layout.LAST)
    y = low.make(node.outputs[0], Layout.LAST)
    low.draft.operators.append(
        Convolution(
            name=name,
            x=x,
            y=y,
            shift=shift,
            index=_index(low, indices),
            transposed=int(transposed),
            groups=groups,
            filters=len(weight),
            **_weight(low, node, weight, groups),
            **windows,
        )
    )


def _matrix_product(
    low: Lowering, node: ir.Node, data: ir.Value, weight: Array, bias: Array | None
) -> None:
    """Multiplies the last axis by a canonical weight."""
    source, indices = low.selection(data, -1)
    x = low.tensor(source, Layout.ROWS)
    y = low.make(node.outputs[0], Layout.ROWS)
    low.draft.operators.append(
        Convolution(
            name=node.name or "",
            x=x,
            y=y,
            shift=_shift(low, bias),
            index=_index(low, indices),
            spatial=0,
            filters=len(weight),
            **_weight(low, node, weight, 1),
        )
    )


@lowers("Gemm")
def gemm(low: Lowering, node: ir.Node) -> None:
    """`alpha * A B + beta * C`; a constant B is a product with a weight."""
    a, b = node.inputs[:2]
    c = node.inputs[2] if len(node.inputs) > 2 else None
    assert a is not None and b is not None
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    weight, addend = low.constant(b), low.constant(c)
    turned = attribute(node, "transA", 0)
    per_filter = c is None or (addend is not None and addend.size in (1, addend.shape[-1]))
    if weight is not None and not turned and per_filter:
        canonical = weight if attribute(node, "transB", 0) else weight.T
        bias = None if addend is None else np.broadcast_to(
            beta * addend.reshape(-1), (len(canonical),)
        )  # fmt: skip
        _matrix_product(low, node, a, alpha * canonical, bias)
        return
    x, y = (
        _transposed(low, v, bool(attribute(node, key, 0)))
        for v, key in ((a, "transA"), (b, "transB"))
    )
    made = low.make(node.outputs[0], Layout.ROWS)
    product = made if c is None and alpha == 1.0 else low.draft.activation(low.draft.shape(made))
    low.draft.operators.append(MatMul(name=node.name or "", a=x, b=y, y=product))
    if product == made:
        return
    width = low.draft.shape(made)[-1]
    scaled = made if c is None else low.draft.activation(low.draft.shape(made))
    scale = low.draft.constant(np.full(width, alpha))
    low.draft.operators.append(Affine(name=node.name or "", x=product, y=scaled, scale=scale))
    if c is not None:
        other = low.operand(c, 2, Layout.ROWS)
        if beta != 1.0:
            times = low.draft.activation(low.draft.shape(other))
            factor = low.draft.constant(np.full((1, 1), beta))
            low.draft.operators.append(
                Binary(name=node.name or "", a=other, b=factor, y=times, kind=BinaryKind.MULTIPLY)
            )
            other = times
        low.draft.operators.append(
            Binary(name=node.name or "", a=scaled, b=other, y=made, kind=BinaryKind.ADD)
        )


def _transposed(low: Lowering, value: ir.Value, turned: bool) -> int:
    tensor = low.tensor(value, Layout.ROWS)
    if not turned:
        return tensor
    rows, columns = low.shape(value)
    made = low.draft.activation((columns, rows))
    low.move(str(value.name), tensor, made, (rows, columns), (columns, 1), (1, rows))
    return made


@lowers("MatMul")
def matmul(low: Lowering, node: ir.Node) -> None:
    """A constant matrix on the right is a weight; all else is a product of two tensors."""
    a, b = node.inputs
    assert a is not None and b is not None
    weight = low.constant(b)
    if weight is not None and weight.ndim == 2:
        _matrix_product(low, node, a, weight.T, None)
        return
    sizes = low.shape(a), low.shape(b)
    rank = max(2, *map(len, sizes))
    left, right = (
        low.draft.constant(constant, weight=True) if (constant := low.constant(v)) is not None
        else low.tensor(v, Layout.ROWS)
        for v in (a, b)
    )  # fmt: skip
    if len(sizes[0]) == 1:
        left = low.draft.view(left, (1, *sizes[0]))
    if len(sizes[1]) == 1:
        right = low.draft.view(right, (*sizes[1], 1))
    y = low.make(node.outputs[0], Layout.ROWS)
    left, right = (
        low.draft.view(t, (1,) * (rank - len(low.draft.shape(t))) + low.draft.shape(t))
        for t in (left, right)
    )
    batch = np.broadcast_shapes(low.draft.shape(left)[:-2], low.draft.shape(right)[:-2])
    shape = (*batch, low.draft.shape(left)[-2], low.draft.shape(right)[-1])
    low.draft.operators.append(
        MatMul(name=node.name or "", a=left, b=right, y=low.draft.view(y, shape))
    )
