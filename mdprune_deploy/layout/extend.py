"""What a reader that is added takes of slabs that are stored already.

Reader O x I takes of a slab the rows of its channels I, and of them the filters of O. Where the
slab lacks some of these, what it lacks in these rows is stored as another slab, and both together
are read as one. A slab is worth taking for what need not be stored again,

    bytes of the pairs that it has - `GROUP_COST`, or `JOIN_COST` where it lacks filters,

the best first, each for the channels that are not taken yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .union import FLOAT, GROUP_COST, Bits, Indices, Selection, Slab

JOIN_COST = 4 * GROUP_COST
"""Bytes that may be stored so that a reader has one pair less of slabs that complete each other:
there are two, and what joins is packed filter by filter."""


@dataclass(frozen=True, eq=False)
class Taking:
    """What is taken of one slab.

    Attributes:
        slab: The slab's number.
        rows: Per stored row whether it is used.
        bits: Per stored filter whether it is used.
        outputs: Per filter of the reader whether the slab has it.
    """

    slab: int
    rows: Bits
    bits: Bits
    outputs: Bits


def take(
    slabs: Sequence[Slab], selection: Selection, taps: int
) -> tuple[tuple[Taking, ...], Indices]:
    """Chooses what a reader takes of the slabs of a weight.

    Args:
        slabs: What is stored.
        selection: What it uses; the filters in stored order.
        taps: Weights per pair.

    Returns:
        What it takes, and the channels that it takes of no slab, rising.
    """
    channels = [selection.channels, *(slab.channels for slab in slabs)]
    missing = np.zeros(1 + max(int(part.max(initial=0)) for part in channels), dtype=np.bool_)
    missing[selection.channels] = True
    candidates = [taking for i, slab in enumerate(slabs) if (taking := _of(i, slab, selection))]
    chosen: list[Taking] = []
    while candidates:
        best = max(candidates, key=lambda c: _worth(c, missing[slabs[c.slab].channels], taps))
        candidates.remove(best)
        rows = missing[slabs[best.slab].channels]
        if _worth(best, rows, taps) <= 0:
            break
        chosen.append(Taking(best.slab, rows, best.bits, best.outputs))
        missing[slabs[best.slab].channels] = False
    return tuple(chosen), np.flatnonzero(missing)


def _of(number: int, slab: Slab, selection: Selection) -> Taking | None:
    bits = np.isin(slab.filters, selection.filters)
    outputs = np.isin(selection.filters, slab.filters)
    if not np.array_equal(slab.filters[bits], selection.filters[outputs]):
        return None  # it is stored in another order
    return Taking(number, np.ones(len(slab.channels), dtype=np.bool_), bits, outputs)


def _worth(taking: Taking, rows: Bits, taps: int) -> int:
    pairs = int(rows.sum()) * int(taking.bits.sum())
    return FLOAT * taps * pairs - (GROUP_COST if taking.outputs.all() else JOIN_COST)
