"""Groups that pruning left of different widths, as few convolutions as is fast.

A grouped convolution has groups of one width: so many channels and filters each. Groups of another
width need a convolution of their own, or zero weights up to the width of the others. A padded
channel reads one that is read anyhow, and a padded filter is dropped again, so padding keeps no
channel of any tensor. For runs R of groups, with w_R and f_R the largest numbers of channels and
filters in R, the time is

    sum over R of  |R| * w_R * f_R * (multiply-accumulates per pair) + RUN

Runs start as all groups of one width and are merged, neighbours in width, while that saves time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..elements import Indices

RUN = 200_000
"""Multiply-accumulates in the time that one more convolution takes, with its selection: about 10
microseconds in ONNX Runtime 1.32 on Zen 5, where grouped ones take about 0.05 ns each."""


@dataclass(frozen=True)
class Run:
    """Groups that one convolution makes.

    Attributes:
        groups: Their numbers, in order.
        width: Channels that each reads.
        count: Filters that each makes.
    """

    groups: tuple[int, ...]
    width: int
    count: int

    @property
    def pairs(self) -> int:
        """Channel pairs with a weight."""
        return len(self.groups) * self.width * self.count


def runs(read: Indices, made: Indices, macs_per_pair: int) -> list[Run]:
    """Chooses the convolutions of a grouped layer.

    Args:
        read: Channels that each group reads, shape `(groups,)`.
        made: Filters that each group makes; groups without any are gone.
        macs_per_pair: Multiply-accumulates of one channel pair.
    """
    by_width: dict[tuple[int, int], list[int]] = {}
    for group in np.flatnonzero(made):
        width = max(int(read[group]), 1)  # biases alone: any channel serves, with zero weights
        by_width.setdefault((width, int(made[group])), []).append(int(group))
    found = [Run(tuple(groups), *width) for width, groups in sorted(by_width.items())]
    while len(found) > 1:
        merged = [_merge(a, b) for a, b in pairwise(found)]
        added = [
            (run.pairs - a.pairs - b.pairs) * macs_per_pair
            for run, (a, b) in zip(merged, pairwise(found), strict=True)
        ]
        best = int(np.argmin(added))
        if added[best] >= RUN:
            break
        found[best : best + 2] = [merged[best]]
    return sorted(found, key=lambda run: run.groups)


def _merge(a: Run, b: Run) -> Run:
    groups = tuple(sorted(a.groups + b.groups))
    return Run(groups, max(a.width, b.width), max(a.count, b.count))
