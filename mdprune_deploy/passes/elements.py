"""Arrays that say one thing per element of a tensor, with uniform axes collapsed to length 1.

Two such arrays describe every tensor of the graph:

* `known`, float64: the element's value where it is the same for every input of the network, NaN
  where it is live. This is the lattice zero, constant, live.
* `needed`, bool: whether the element is wanted.

A tensor is narrowed to a *product set*: for each axis a sorted index array, or None for all of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from ..evaluate import Array

Known = npt.NDArray[np.float64]
Needed = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Sets = tuple[Indices | None, ...]


def live(rank: int) -> Known:
    """Returns `known` of a tensor of which nothing is known."""
    return np.full((1,) * rank, np.nan)


def compress(array: Array) -> Array:
    """Collapses every axis along which all slices are equal (NaN equals NaN)."""
    for axis in range(array.ndim):
        if array.shape[axis] > 1:
            first = np.take(array, [0], axis=axis)
            equal = array == first
            if array.dtype.kind == "f":
                equal |= np.isnan(array) & np.isnan(first)
            if equal.all():
                array = first
    return array


def any_over(array: Needed, shape: Sequence[int]) -> Needed:
    """Reduces a broadcast result's elements to an operand of the given shape, by `any`."""
    extra = array.ndim - len(shape)
    array = any_along(array, range(extra)).reshape(array.shape[extra:])
    axes = [a for a, size in enumerate(shape) if size == 1 and array.shape[a] > 1]
    return any_along(array, axes)


def any_along(array: Needed, axes: Collection[int]) -> Needed:
    """Reduces axes to length 1 by `any`."""
    return np.asarray(array.any(axis=tuple(axes), keepdims=True)) if axes else array


def along(array: Needed, axis: int, size: int) -> Needed:
    """Returns, per index of an axis, whether any element there is set; shape `(size,)`."""
    others = tuple(a for a in range(array.ndim) if a != axis)
    return np.broadcast_to(array.any(axis=others), (size,))


def closure(needed: Needed, shape: Sequence[int], free: Collection[int]) -> Sets:
    """Returns the smallest product set that holds all needed elements.

    Args:
        needed: Broadcastable to `shape`.
        shape: The tensor's shape.
        free: Axes that may be narrowed; the others are kept whole.
    """
    sets: list[Indices | None] = []
    for axis, size in enumerate(shape):
        row = along(needed, axis, size)
        narrowed = axis in free and not row.all()
        sets.append(np.flatnonzero(row) if narrowed else None)
    return tuple(sets)


def elements(sets: Sets, shape: Sequence[int]) -> Needed:
    """Returns the elements of a product set, collapsed along the axes kept whole."""
    result = np.ones((1,) * len(shape), dtype=np.bool_)
    for axis, indices in enumerate(sets):
        if indices is not None:
            row = np.zeros(shape[axis], dtype=np.bool_)
            row[indices] = True
            result = result & row.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return result


def sizes(sets: Sets, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape of a tensor narrowed to a product set."""
    return tuple(
        size if indices is None else len(indices) for indices, size in zip(sets, shape, strict=True)
    )


def indices_of(sets: Sets, axis: int, size: int) -> Indices:
    """Returns the kept indices of one axis, spelt out."""
    indices = sets[axis]
    return np.arange(size) if indices is None else indices


def take(array: Array, sets: Sets) -> Array:
    """Narrows an array; an axis of length 1 is a broadcast one and stays.

    The last axes of `sets` are those of the array.
    """
    aligned = sets[len(sets) - array.ndim :]
    for axis, indices in enumerate(aligned):
        if indices is not None and array.shape[axis] > 1:
            array = np.take(array, indices, axis=axis)
    return array


def same(a: Indices | None, b: Indices | None, size: int) -> bool:
    """Tells whether two index arrays of an axis of that size choose the same."""
    left = np.arange(size) if a is None else a
    right = np.arange(size) if b is None else b
    return np.array_equal(left, right)
