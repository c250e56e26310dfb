r"""The budget: each domain's complexity is at most beta, as a constrained problem.

With sizes n[c] and switches s[d, c], the complexity of domain d is

    C_d = sum_c n[c] s[d, c] / sum_c n[c],

and training solves, over weights w and scores r of all domains,

    min sum_d L_d(w, r_d)   subject to   C_d(r_d) <= beta for every d.

Its Lagrangian is sum_d L_d + lambda_d (C_d - beta) with lambda_d >= 0: descend in w and r, ascend
in the multipliers. As dC_d / d lambda_d is the violation itself, the ascent is

    lambda_d <- max(0, lambda_d + rate (C_d - beta)).

A multiplier grows while its domain is over the budget and returns to 0 below it, where the
constraint then costs nothing (complementary slackness): a domain may use less than it is allowed.

Ours: the pressure is that of the augmented Lagrangian (Hestenes, Powell, 1969),

    pressure_d = max(0, lambda_d + penalty (C_d - beta)),

which damps the swing that pure ascent has round the constraint; gradient steps alone come close to
the budget but need not end on the right side of it, so `fit` closes the gap exactly before the
last part of training, in which the switches stand still.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mdprune_deploy.errors import BudgetError
from mdprune_deploy.training.network import THRESHOLD, MultiDomainNetwork


@dataclass(eq=False)
class Constraint:
    """Multipliers of constraints `excess <= 0`, one per element.

    Attributes:
        multipliers: Non-negative, float32 (constraints,).
        rate: Step of the dual ascent.
        penalty: Weight of the augmenting term.
        most: No multiplier grows above this.
    """

    multipliers: Tensor
    rate: float
    penalty: float = 0.0
    most: float = float("inf")

    def term(self, excess: Tensor) -> Tensor:
        """Returns the term to add to the loss, a scalar; its gradient is pressure times that of
        `excess`, (constraints,).
        """
        pressure = (self.multipliers + self.penalty * excess.detach()).clamp(0, self.most)
        return (pressure * excess).sum()

    def ascend(self, excess: Tensor) -> None:
        """Moves the multipliers by `excess`, (constraints,)."""
        step = self.rate * excess.detach()
        self.multipliers = (self.multipliers + step).clamp(0, self.most)


def fit(network: MultiDomainNetwork, budget: float) -> None:
    """Turns off what is over the budget in every domain, lowest score first.

    A switch is skipped if it is the last of its convolution. Of equal scores, the one that fewer
    domains have on goes first, then the later one. Afterwards the size-weighted share of each
    domain is at most `budget` exactly.

    Args:
        network: Its scores are changed: those turned off become the threshold.
        budget: Largest share, in (0, 1].

    Raises:
        BudgetError: One channel of every convolution is more than the budget.
    """
    with torch.no_grad():
        votes = (network.scores > THRESHOLD).sum(0)
        for domain, scores in zip(network.domains, network.scores, strict=True):
            keep_one(network, scores)
            fit_domain(network, domain, scores, votes, budget)


def keep_one(network: MultiDomainNetwork, scores: Tensor) -> None:
    """Turns on the best channel of each convolution that has none on; `scores` is (channels,)."""
    for part in network.layers.values():
        own = scores[part]
        if not bool((own > THRESHOLD).any()):
            own[own.argmax()] = torch.finfo(own.dtype).eps


def fit_domain(
    network: MultiDomainNetwork, domain: str, scores: Tensor, votes: Tensor, budget: float
) -> None:
    """Fits one domain, see `fit`; `scores` and `votes` are (channels,)."""
    sizes, total = network.sizes.tolist(), int(network.sizes.sum())
    values, agreed = scores.tolist(), votes.tolist()
    used = sum(size for size, value in zip(sizes, values, strict=True) if value > THRESHOLD)
    layer_of = [part for part in network.layers.values() for _ in range(part.stop - part.start)]
    order = sorted(range(len(values)), key=lambda c: (values[c], agreed[c], -c))
    for channel in order:
        if used / total <= budget:
            return
        alive = int((scores[layer_of[channel]] > THRESHOLD).sum())
        if values[channel] > THRESHOLD and alive > 1:
            scores[channel] = THRESHOLD
            used -= sizes[channel]
    if used / total > budget:
        raise BudgetError(
            f"domain {domain!r} cannot meet the budget {budget:g}: one channel of every "
            f"convolution is {used / total:.4f} of the weights"
        )
