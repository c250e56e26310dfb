"""What an emitted product's weight is a part of: the weight before any mask, which domains share.

Removing channels takes a rectangle of the stored weight W, filters O by channels I. Exactness may
change single columns of it: a constant channel that carries others has a combined weight, a
channel that is read again has zeros. A column is the stored one where it equals W[O, i] in float32
for every filter that computes something; the others belong to the domain alone. A filter that
computes nothing is a constant: its scale is zero, so its weights do not matter.

Grouped products belong to the domain alone: removal splits and pads their groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..evaluate import Array
from .elements import Indices, Needed

if TYPE_CHECKING:
    from .bind import WeightUse


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """How an emitted product's weight follows from the stored one; in `node.meta["stored"]`.

    Attributes:
        use: Which weight it is. Nodes may read one weight transposed, so equal uses need not have
            equal arrays.
        weight: The whole weight before any mask, float32, `(filters, channels per group, *kernel)`.
        filters: The filters of `weight` that are emitted, in emitted order.
        live: Per emitted filter whether it computes something; bool.
        channels: The layer's channels that the emitted node reads, in emitted order.
        shared: Per emitted channel whether its column is that of `weight` for all live filters;
            bool.
        used: Per emitted channel whether any live filter has a weight there that is not zero; bool.
        order: All filters of `weight` in the order of all domains, which that of `filters` follows;
            None for the natural one.
    """

    use: WeightUse
    weight: Array
    filters: Indices
    live: Needed
    channels: Indices
    shared: Needed
    used: Needed
    order: Indices | None


def record_stored(
    node: ir.Node,
    *,
    use: WeightUse,
    stored: Array,
    emitted: Array,
    filters: Indices,
    live: Needed,
    channels: Indices,
    order: Indices | None,
) -> None:
    """Notes on an emitted node what its weight is a part of.

    Args:
        node: The emitted node.
        use: Which weight it reads.
        stored: The weight before any mask, in canonical form.
        emitted: The emitted weight in canonical form, filters and channels as in `filters` and
            `channels`.
        filters: Filters of `stored`.
        live: Per emitted filter whether it computes something.
        channels: The layer's channels.
        order: All filters in the order of all domains.
    """
    weight = np.asarray(stored, dtype=np.float32)
    columns = emitted[live].astype(np.float32)
    others = (0, *range(2, columns.ndim))
    shared = (columns == weight[np.ix_(filters[live], channels)]).all(axis=others)
    used = (columns != 0).any(axis=others)
    node.meta["stored"] = StoredWeight(use, weight, filters, live, channels, shared, used, order)
