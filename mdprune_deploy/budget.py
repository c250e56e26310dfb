r"""Choosing which channels every domain keeps so that each fits the budget.

Let x[d, c] be 1 where domain d keeps channel c, cost[c] the parameters or MACs of the channel's
slice of its weight, and w[d, c] >= 0 its importance: cost times margin, where the margin is how
far the score lies above the threshold (for a boolean mask with `fit="magnitude"`: the norm of the
channel's weights over the mean norm in that weight), scaled so that the channels that are on in a
domain sum to 1. Because importance grows with cost, importance per cost IS the margin: with no
sharing the rule is to raise one threshold for the whole domain until it fits, which is what the
scores were trained against, and no layer is emptied for being large. The objective, maximised over
subsets of the on-sets, is

    F(x) = sum_{d,c} w[d, c] x[d, c] (1 + sharing / (D - 1) * sum_{e != d} x[e, c])

subject to used(x[d]) <= budget * total for every domain. The second term pays a channel once more
if all other domains keep it too; `sharing = 0` is independent selection. `used` counts the masks of
one weight as a product: masks on both axes leave |in| / in * |out| / out of it.

Algorithm. Block-coordinate ascent. Given the other domains, the worth of a channel to domain d is

    g[c] = w[d, c] (1 + sharing / (D - 1) sum_e x[e, c]) + sharing / (D - 1) sum_e w[e, c] x[e, c]

and the domain's own problem is a knapsack: drop channels in rising order of g / cost (cost as if
the weight's other axis were at its on-set; of equals the later one first) until the true product
count fits, then put back, best first, what still fits. The best channel of every mask is dropped
last, so a mask is emptied only if one channel for each does not fit. A domain's new set is taken
only if it raises F; rounds over the domains stop at a fixed point or after `MAX_ROUNDS`. The
ascent starts from independent selection, so it never ends below it. It takes the domains in the
order of their contents, so their names and their order do not matter.

Cost: O(rounds * domains * (channels * log(channels) + domains * channels)).

Bound. F is at most the sum over domains of the fractional knapsack in which every other domain
keeps all of its on-set. For two masks on one weight the product is replaced by McCormick's
underestimate, x y >= X y + Y x - X Y for x <= X and y <= Y. Without sharing the gap is less than
one channel's importance per domain; with sharing the bound is loose, since the other domains
cannot keep everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from .domain import Axis
from .errors import BudgetError, CheckpointError, UsageError
from .knapsack import Floats, Indices, Knapsack, Switches

Metric = Literal["params", "macs", "switches"]
UsedShare = Callable[[str, Sequence[Switches]], float]

SHARING = 1.0
"""Default weight of the sharing term."""
MAX_ROUNDS = 20
"""Most rounds over the domains in one ascent; it settles in a handful."""


@dataclass(frozen=True, eq=False)
class SwitchGroup:
    """The channels of one mask of one weight in one domain.

    Attributes:
        weight: The weight's name: masks of the same name, axis and length meet across domains.
        axis: The axis that the mask is on.
        cost: What each channel of the whole weight costs in the metric, float64 (channels,):
            the weight's parameters or MACs over its channels on this axis, or 1 for switches.
        on: Which channels the mask leaves on, bool (channels,).
        scores: The scores of a score mask, (channels,); `None` for a boolean mask.
        magnitude: Norms of the channels' weights, (channels,): the importance of a boolean mask
            under `fit="magnitude"`. Without it a boolean mask is never changed.
        threshold: The score above which a channel is on.
    """

    weight: str
    axis: Axis
    cost: Floats
    on: Switches
    scores: Floats | None = None
    magnitude: Floats | None = None
    threshold: float = 0.0


@dataclass(frozen=True, eq=False)
class Selection:
    """What was chosen, and how good it is.

    Attributes:
        kept: Per domain one bool array per group, in the order given; a subset of `on`.
        objective: F of the choice.
        independent: F of every domain choosing alone.
        bound: No choice within the budget has an F above this.
        rounds: Rounds over the domains until the fixed point.
    """

    kept: dict[str, list[Switches]]
    objective: float
    independent: float
    bound: float
    rounds: int


def select(
    groups: Mapping[str, Sequence[SwitchGroup]],
    budget: float,
    *,
    metric: Metric = "params",
    sharing: float = SHARING,
    fit: Literal["magnitude"] | None = None,
    used_share: UsedShare | None = None,
) -> dict[str, list[Switches]]:
    """Chooses the channels that every domain keeps; the contract's budget.

    A domain that fits is kept as it is. Otherwise its scores decide; boolean masks are touched
    only with `fit="magnitude"`.

    Args:
        groups: Per domain its masks; weights without a mask do not count.
        budget: Largest used share of a domain, in (0, 1].
        metric: What `cost` counts; with `"switches"` the masks of one weight add up.
        sharing: Weight of the sharing term, 0 or more.
        fit: `"magnitude"` lets boolean masks be cut by their `magnitude`.
        used_share: Used share of a domain that has these channels on, counted with dead code, for
            domains with boolean masks only; the default counts masks. Scores are always
            projected by masks, which is at least as strict.

    Returns:
        Per domain one bool array per group, in the order given.

    Raises:
        UsageError: The budget, the metric, the sharing or the fit is none.
        CheckpointError: A score or a norm that decides is not finite.
        BudgetError: A domain does not fit and may not be cut; the message has all figures.
    """
    return project(
        groups, budget, metric=metric, sharing=sharing, fit=fit, used_share=used_share
    ).kept


def project(
    groups: Mapping[str, Sequence[SwitchGroup]],
    budget: float,
    *,
    metric: Metric = "params",
    sharing: float = SHARING,
    fit: Literal["magnitude"] | None = None,
    used_share: UsedShare | None = None,
) -> Selection:
    """Does what `select` does and reports how good the choice is; the same arguments."""
    check_arguments(budget, metric, sharing, fit)
    layout = Layout.of(groups)
    players = {name: Player.of(name, m, layout, metric, fit) for name, m in groups.items()}
    on = {name: [mask.on.copy() for mask in masks] for name, masks in groups.items()}
    over = shares_over(budget, groups, on, metric, used_share)
    stuck = {n: s for n, s in over.items() if players[n].knapsack.smallest_share() > budget}
    if stuck:
        raise BudgetError(over_budget_message(stuck, players, budget, metric, fit))
    # In the order of their contents, sums and updates do not depend on names.
    order = sorted(players, key=lambda name: players[name].contents())
    game = Game([players[n] for n in order], [n in over for n in order], layout, budget, sharing)
    rows, independent, rounds = game.solve()
    for name, row in zip(order, rows, strict=True):
        if name in over:
            for mask, switches in zip(groups[name], on[name], strict=True):
                if importance_of(mask, fit) is not None:
                    switches &= row[layout.slices[key_of(mask)]]
    cut = {name: groups[name] for name in over}
    still_over = shares_over(budget, cut, on, metric, used_share)
    if still_over:  # `used_share` may count what no mask removes.
        raise BudgetError(over_budget_message(still_over, players, budget, metric, fit))
    return Selection(on, game.objective(rows), independent, game.bound(), rounds)


def mask_share(groups: Sequence[SwitchGroup], kept: Sequence[Switches], metric: Metric) -> float:
    """Returns the share of a domain's masked weights that `kept` leaves, by the masks alone.

    Args:
        groups: The domain's masks.
        kept: One bool array per mask.
        metric: What the masks' costs count.
    """
    shown = [replace(mask, on=on, scores=None) for mask, on in zip(groups, kept, strict=True)]
    knapsack = Player.of("", shown, Layout.of({"": shown}), metric, None).knapsack
    return knapsack.share(knapsack.on)


def shares_over(
    budget: float,
    groups: Mapping[str, Sequence[SwitchGroup]],
    kept: Mapping[str, Sequence[Switches]],
    metric: Metric,
    used_share: UsedShare | None,
) -> dict[str, float]:
    """Returns the used shares of the domains that are over the budget with `kept` on."""
    shares = {}
    for name, masks in groups.items():
        if used_share is not None and all(mask.scores is None for mask in masks):
            shares[name] = used_share(name, kept[name])
        else:
            shares[name] = mask_share(masks, kept[name], metric)
    return {name: share for name, share in shares.items() if share > budget}


def check_arguments(budget: float, metric: str, sharing: float, fit: str | None) -> None:
    """Refuses arguments out of range with `UsageError`."""
    if not 0 < budget <= 1:
        raise UsageError(f"the budget is {budget}: it must be above 0 and at most 1")
    if metric not in get_args(Metric):
        known = ", ".join(get_args(Metric))
        raise UsageError(f"the metric is {metric!r}: it must be one of {known}")
    if not 0 <= sharing < np.inf:
        raise UsageError(f"the sharing weight is {sharing}: it must be finite and at least 0")
    if fit not in (None, "magnitude"):
        raise UsageError(f"the fit is {fit!r}: the only one is 'magnitude'")


def over_budget_message(
    stuck: Mapping[str, float],
    players: Mapping[str, Player],
    budget: float,
    metric: Metric,
    fit: str | None,
) -> str:
    """Returns the figures of the domains that do not fit, one line each, and what to do."""
    lines = [
        f"{len(stuck)} of {len(players)} domains do not fit the budget {budget:g} of {metric}:"
    ]
    for name, share in stuck.items():
        total = players[name].knapsack.total
        lines.append(
            f"  {name}: uses {share:.4f} ({share * total:,.0f} of {total:,.0f}), "
            f"allowed {budget * total:,.0f}"
        )
    if fit is None:
        lines.append(
            "boolean masks are kept as they are: raise the budget, "
            "or let channels be dropped by weight norm with --fit magnitude"
        )
    else:
        lines.append("what is left cannot be dropped: raise the budget")
    return "\n".join(lines)


Key = tuple[str, str, int]


def key_of(mask: SwitchGroup) -> Key:
    """Returns what makes two masks, of one domain or of two, speak of the same channels."""
    return mask.weight, mask.axis, len(mask.on)


@dataclass(frozen=True, eq=False)
class Layout:
    """The channels of all masks of all domains on one axis of indices, sorted by name."""

    slices: dict[Key, slice]
    channels: int

    @classmethod
    def of(cls, groups: Mapping[str, Sequence[SwitchGroup]]) -> Layout:
        """Lays out the channels of `groups`."""
        slices, position = {}, 0
        for key in sorted({key_of(mask) for masks in groups.values() for mask in masks}):
            slices[key] = slice(position, position + key[2])
            position += key[2]
        return cls(slices, position)


def importance_of(mask: SwitchGroup, fit: str | None) -> Floats | None:
    """Returns the margin of each channel, (channels,), or `None` if the mask may not be cut."""
    if mask.scores is not None:
        return np.asarray(mask.scores, dtype=np.float64) - mask.threshold
    if fit == "magnitude" and mask.magnitude is not None:
        norms = np.asarray(mask.magnitude, dtype=np.float64)
        return norms / (norms.mean() or 1.0)
    return None


@dataclass(frozen=True, eq=False)
class Player:
    """A domain in the joint choice: its knapsack over n channels and what they are worth.

    Attributes:
        knapsack: The domain's own problem; masks on one axis of a weight are one there.
        where: Position of its channels in the layout, (n,).
        importance: w of the module's text, float64 (n,); zero where a channel cannot be dropped.
    """

    knapsack: Knapsack
    where: Indices
    importance: Floats

    @classmethod
    def of(
        cls,
        name: str,
        masks: Sequence[SwitchGroup],
        layout: Layout,
        metric: Metric,
        fit: str | None,
    ) -> Player:
        """Gathers the masks of domain `name`."""
        size = layout.channels
        where, on = np.zeros(size, dtype=bool), np.ones(size, dtype=bool)
        cost, margin = np.zeros(size), np.full(size, np.inf)
        for mask in masks:
            part = layout.slices[key_of(mask)]
            where[part] = True
            cost[part] = mask.cost
            on[part] &= mask.on
            own = importance_of(mask, fit)
            if own is not None:
                check_finite(name, mask, own)
                margin[part] = np.minimum(margin[part], own)
        droppable = on & np.isfinite(margin)
        worth = np.zeros(size)
        worth[droppable] = margin[droppable] * cost[droppable]
        worth /= worth.sum() or 1.0
        keys = [key for key, part in layout.slices.items() if where[part].any()]
        # Switches are counted one by one, so there every masked axis is a weight of its own.
        names = [key if metric == "switches" else key[:1] for key in keys]
        weights = {weight: index for index, weight in enumerate(dict.fromkeys(names))}
        weight_cost = np.zeros(len(weights))
        for key, weight in zip(keys, names, strict=True):
            weight_cost[weights[weight]] = cost[layout.slices[key]].sum()
        knapsack = Knapsack(
            on[where],
            droppable[where],
            cost[where],
            np.repeat(np.arange(len(keys)), [key[2] for key in keys]),
            np.array([weights[weight] for weight in names], dtype=np.intp),
            weight_cost,
        )
        return cls(knapsack, np.flatnonzero(where), worth[where])

    def contents(self) -> tuple[bytes, ...]:
        """Returns a key that orders domains by what they hold."""
        arrays = (self.where, self.importance, self.knapsack.on, self.knapsack.cost)
        return tuple(array.tobytes() for array in arrays)


def check_finite(name: str, mask: SwitchGroup, values: Floats) -> None:
    """Refuses importances that are not finite with `CheckpointError`."""
    bad = np.flatnonzero(np.isnan(values) | (mask.on & np.isinf(values)))
    if bad.size:
        what = "score" if mask.scores is not None else "weight norm"
        raise CheckpointError(
            f"domain {name!r}: the {what} of channel {bad[0]} of {mask.weight!r}, "
            f'axis "{mask.axis}", is not finite'
        )


@dataclass(frozen=True, eq=False)
class Game:
    """All domains together; rows are bool (channels of the layout,), true where unmasked.

    Attributes:
        players: The D domains.
        movable: Which of them must be cut.
        layout: The channels of all domains.
        budget: Largest share of a domain.
        sharing: Weight of the sharing term.
    """

    players: Sequence[Player]
    movable: Sequence[bool]
    layout: Layout
    budget: float
    sharing: float

    def solve(self) -> tuple[list[Switches], float, int]:
        """Returns the rows found, F of independent selection, and the rounds taken."""
        rows = [
            self.row(d, self.choose(d, p.importance) if self.movable[d] else p.knapsack.on)
            for d, p in enumerate(self.players)
        ]
        independent = self.objective(rows)
        rounds = self.ascend(rows)
        return rows, independent, rounds

    def ascend(self, rows: list[Switches]) -> int:
        """Improves `rows` in place, one domain after the other; returns the rounds with a change.

        Every row must fit the budget.
        """
        for count in range(MAX_ROUNDS):
            changed = False
            for d in (d for d, movable in enumerate(self.movable) if movable):
                gain = self.gain(rows, d)
                old, new = rows[d][self.players[d].where], self.choose(d, gain)
                if gain[new].sum() > gain[old].sum() * (1 + 1e-12):
                    rows[d] = self.row(d, new)
                    changed = True
            if not changed:
                return count
        return MAX_ROUNDS

    def choose(self, d: int, gain: Floats) -> Switches:
        """Returns domain `d`'s own choice, (n,), where its channels are worth `gain`."""
        return self.players[d].knapsack.choose(gain, self.budget)

    def gain(self, rows: Sequence[Switches], d: int) -> Floats:
        """Returns g of the module's text for domain `d`, (n,), given the others' rows."""
        worth = np.zeros(self.layout.channels)
        for e, other in enumerate(self.players):
            if e != d:
                worth[other.where] += other.importance * rows[e][other.where]
        return self.paid(d, rows) + self.bonus * worth[self.players[d].where]

    def paid(self, d: int, rows: Sequence[Switches]) -> Floats:
        """Returns what F pays for each channel of domain `d`, (n,), if `d` keeps it."""
        player = self.players[d]
        keep = np.zeros(self.layout.channels)
        for e, row in enumerate(rows):
            if e != d:
                keep += row
        return player.importance * (1 + self.bonus * keep[player.where])

    @property
    def bonus(self) -> float:
        """Sharing weight of one other domain."""
        return self.sharing / max(1, len(self.players) - 1)

    def row(self, d: int, kept: Switches) -> Switches:
        """Spreads domain `d`'s channels (n,) over the layout."""
        row = np.ones(self.layout.channels, dtype=bool)
        row[self.players[d].where] = kept
        return row

    def objective(self, rows: Sequence[Switches]) -> float:
        """Returns F of the module's text."""
        return sum(
            float(self.paid(d, rows)[rows[d][self.players[d].where]].sum())
            for d in range(len(rows))
        )

    def bound(self) -> float:
        """Returns the bound of the module's text."""
        full = [self.row(d, player.knapsack.on) for d, player in enumerate(self.players)]
        return sum(
            player.knapsack.bound(self.paid(d, full), self.budget if self.movable[d] else 1.0)
            for d, player in enumerate(self.players)
        )
