"""One domain's budget as a knapsack: which channels to drop so that the rest fits.

Channels lie on masked axes of weights. A weight with one masked axis costs what the kept channels
of that axis cost; a weight masked on both costs the product |in| / in * |out| / out of the whole.
`Knapsack.choose` drops channels in rising order of gain per cost until that true cost fits, and
`Knapsack.bound` says how much any choice can gain at most. `budget.py` has the algebra.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Switches = NDArray[np.bool_]
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Knapsack:
    """The n channels of one domain's masked axes.

    Attributes:
        on: Channels that are on, bool (n,).
        droppable: Channels that are on and may be dropped, bool (n,).
        cost: Cost of each channel with the weight's other axis full, float64 (n,).
        axis: The masked axis of each channel, rising from 0, (n,).
        weight: The weight of each masked axis, (axes,).
        weight_cost: Cost of each whole weight, float64 (weights,).
    """

    on: Switches
    droppable: Switches
    cost: Floats
    axis: Indices
    weight: Indices
    weight_cost: Floats

    @property
    def total(self) -> float:
        """Cost of all masked weights."""
        return float(self.weight_cost.sum())

    def share(self, kept: Switches) -> float:
        """Returns the share of the masked weights that the channels `kept`, bool (n,), leave."""
        return self.share_of_axes(self.axis_costs(kept))

    def smallest_share(self) -> float:
        """Returns the share that is left with everything dropped that may be."""
        return self.share(self.on & ~self.droppable)

    def axis_costs(self, kept: Switches) -> Floats:
        """Returns the cost of the kept channels per masked axis, the other axis full."""
        costs = np.zeros(len(self.weight))
        np.add.at(costs, self.axis, self.cost * kept)
        return costs

    def share_of_axes(self, costs: Floats) -> float:
        """Returns the share that is left where each masked axis costs `costs`, (axes,).

        Whole numbers stay exact for a weight with one masked axis.
        """
        used = self.weight_cost.copy()
        seen = np.zeros(len(used), dtype=bool)
        for weight, cost in zip(self.weight, costs, strict=True):
            used[weight] = used[weight] * cost / self.weight_cost[weight] if seen[weight] else cost
            seen[weight] = True
        return float(used.sum()) / self.total if self.total else 0.0

    @cached_property
    def linear_cost(self) -> Floats:
        """Cost of each channel with the weight's other axis at its on-set, float64 (n,)."""
        return self.cost * self.other_axes(self.axis_costs(self.on))[self.axis]

    def other_axes(self, costs: Floats) -> Floats:
        """Returns per masked axis the share that the weight's other axis keeps, float64 (axes,).

        Args:
            costs: Cost of the kept channels per masked axis, the other axis full.
        """
        ratio = costs / self.weight_cost[self.weight]
        product = np.ones(len(self.weight_cost))
        np.multiply.at(product, self.weight, ratio)
        others = np.zeros_like(ratio)
        np.divide(product[self.weight], ratio, out=others, where=ratio > 0)
        return others

    def drop_order(self, gain: Floats) -> Indices:
        """Returns the droppable channels, the first to drop first, the best of each axis last."""
        density = self.density(gain)
        channels = np.flatnonzero(self.droppable)[::-1]
        order = channels[np.argsort(density[channels], kind="stable")]
        _, from_end = np.unique(self.axis[order][::-1], return_index=True)
        best = np.zeros(len(order), dtype=bool)
        best[len(order) - 1 - from_end] = True
        return np.concatenate([order[~best], order[best]])

    def density(self, gain: Floats) -> Floats:
        """Returns gain per cost; infinite where a channel costs nothing."""
        cost = self.linear_cost
        density = np.full(len(cost), np.inf)
        np.divide(gain, cost, out=density, where=cost > 0)
        return density

    def choose(self, gain: Floats, budget: float) -> Switches:
        """Chooses channels of much `gain` whose share is at most `budget`.

        Args:
            gain: What keeping a channel is worth, float64 (n,).
            budget: Largest share; at least `smallest_share()`.

        Returns:
            The kept channels, bool (n,), a subset of `on`.
        """
        order = self.drop_order(gain)

        def without(count: int) -> Switches:
            kept = self.on.copy()
            kept[order[:count]] = False
            return kept

        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            if self.share(without(middle)) <= budget:
                high = middle
            else:
                low = middle + 1
        return self.fill(without(low), order[:low][::-1], budget)

    def fill(self, kept: Switches, candidates: Indices, budget: float) -> Switches:
        """Puts back the candidates, in their order, that still fit; returns the kept channels."""
        costs = self.axis_costs(kept)
        # A lower bound on what each adds: most are seen not to fit without counting exactly.
        least = self.cost * self.other_axes(costs)[self.axis] * (1 - 1e-9) / (self.total or 1.0)
        share = self.share_of_axes(costs)
        for channel in candidates[share + least[candidates] <= budget * (1 + 1e-9)]:
            if share + least[channel] > budget * (1 + 1e-9):
                continue
            axis = self.axis[channel]
            costs[axis] += self.cost[channel]
            with_it = self.share_of_axes(costs)
            if with_it <= budget:
                kept[channel], share = True, with_it
            else:
                costs[axis] -= self.cost[channel]
        return kept

    def bound(self, gain: Floats, budget: float) -> float:
        """Returns a gain that no choice within the budget exceeds: the fractional knapsack's.

        `linear_cost` overstates what a drop saves on a weight with two masked axes, so the
        product's relaxation (McCormick's) can only raise the bound.
        """
        order = np.flatnonzero(self.droppable)
        order = order[np.argsort(self.density(gain)[order], kind="stable")]
        missing = (self.share(self.on) - budget) * self.total
        if missing <= 0:
            return float(gain[self.on].sum())
        saved = np.cumsum(self.linear_cost[order])
        last = min(int(np.searchsorted(saved, missing)), len(order) - 1)
        before = saved[last - 1] if last else 0.0
        part = min(1.0, (missing - before) / (saved[last] - before))
        lost = gain[order[:last]].sum() + part * gain[order[last]]
        return float(gain[self.on].sum() - lost)
