"""`Resize` along one axis as entries and weights.

With scale s along an axis and the length l = s old (the new size, but for fractions), output i
stands at x(i) in the input: `half_pixel` (i + 0.5) / s - 0.5, `asymmetric` i / s, `align_corners`
i (old - 1) / (l - 1), and so on as the ONNX specification lists them. `nearest` takes one entry;
`linear` two with weights 1 - f and f, f the fraction of x; `cubic` four with Keys' kernel of
parameter a. Entries outside are the border's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...evaluate import Array, attribute
from ...passes.elements import Indices

if TYPE_CHECKING:
    from .lowering import Lowering


def axis_weights(low: Lowering, node: ir.Node, axis: int) -> tuple[Indices, Array | None] | None:
    """Returns what a `Resize` makes of one axis.

    Returns:
        Entries `(new size, taps)` and their weights, or None for the weights where there is one
        entry each; None where the axis stays as it is.
    """
    data = node.inputs[0]
    assert data is not None
    old, new = low.shape(data)[axis], low.shape(node.outputs[0])[axis]
    scale = _scale(low, node, axis, old, new)
    mode = attribute(node, "mode", "nearest")
    if old == new and scale == 1.0:
        return None
    if attribute(node, "antialias", 0) and new < old and mode != "nearest":
        raise low.refuse(node, "it filters before it shrinks (antialias)")
    x = _coordinates(low, node, np.arange(new, dtype=np.float64), scale, old, new)
    match mode:
        case "nearest":
            entries = _nearest(low, node, x)[:, None]
            return np.clip(entries, 0, old - 1).astype(np.int64), None
        case "linear":
            return _linear(x, old)
        case "cubic":
            return _cubic(node, x, old)
    raise low.refuse(node, f"its mode is {mode!r}")


def _scale(low: Lowering, node: ir.Node, axis: int, old: int, new: int) -> float:
    at = 1 if node.op_type == "Upsample" else 2
    given = node.inputs[at] if len(node.inputs) > at else None
    scales = low.constant(given)
    if given is not None and scales is None:
        raise low.refuse(node, "its scales depend on the input")
    if scales is None or scales.size == 0:
        if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
            raise low.refuse(node, "it keeps the aspect ratio")
        return new / old
    rank = len(low.shape(node.outputs[0]))
    axes = [a % rank for a in attribute(node, "axes", tuple(range(rank)))]
    return float(scales[axes.index(axis)]) if axis in axes else 1.0


def _coordinates(low: Lowering, node: ir.Node, i: Array, scale: float, old: int, new: int) -> Array:
    length = scale * old
    default = "asymmetric" if node.op_type == "Upsample" else "half_pixel"
    kind = attribute(node, "coordinate_transformation_mode", default)
    match kind:
        case "half_pixel":
            return (i + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (i + 0.5) / scale - 0.5 if length != 1 else np.zeros_like(i)
        case "half_pixel_symmetric":
            center = old / 2 * (1 - new / length)
            return np.asarray(center + (i + 0.5) / scale - 0.5)
        case "align_corners":
            return i * (old - 1) / (length - 1) if length != 1 else np.zeros_like(i)
        case "asymmetric":
            return i / scale
    raise low.refuse(node, f"its coordinates are {kind!r}")


def _nearest(low: Lowering, node: ir.Node, x: Array) -> Array:
    default = "floor" if node.op_type == "Upsample" else "round_prefer_floor"
    match attribute(node, "nearest_mode", default):
        case "round_prefer_floor":
            return np.ceil(x - 0.5)
        case "round_prefer_ceil":
            return np.floor(x + 0.5)
        case "floor":
            return np.floor(x)
        case "ceil":
            return np.ceil(x)
    raise low.refuse(node, "its rounding is unknown")


def _linear(x: Array, old: int) -> tuple[Indices, Array]:
    x = np.clip(x, 0, old - 1)
    first = np.minimum(np.floor(x), max(old - 2, 0)).astype(np.int64)
    fraction = x - first
    entries = np.stack([first, np.minimum(first + 1, old - 1)], axis=1)
    return entries, np.stack([1 - fraction, fraction], axis=1)


def _cubic(node: ir.Node, x: Array, old: int) -> tuple[Indices, Array]:
    a = attribute(node, "cubic_coeff_a", -0.75)
    first = np.floor(x).astype(np.int64)
    entries = first[:, None] + np.arange(-1, 3)
    distance = np.abs(x[:, None] - entries)
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    if attribute(node, "exclude_outside", 0):
        weights = np.where((entries >= 0) & (entries < old), weights, 0.0)
        weights = weights / weights.sum(axis=1, keepdims=True)
    return np.clip(entries, 0, old - 1), weights
