r"""Parameter sharing: losses that make the domains agree on the channels that they use.

Over D domains with switches s[d, c] and sizes n[c], N = sum_c n[c], the weight elements that all
domains use and those that at least one uses are

    I = sum_c n[c] prod_d s[d, c]            U = sum_c n[c] (1 - prod_d (1 - s[d, c])).

What is not in the union need not be stored; what is in the intersection is stored once for all.
With C = sum_d C_d / D the mean complexity and beta the budget, the losses are 0 where all domains
use the same channels (and, for the intersection, all of the budget) and below 1 everywhere else:

    intersection   1 - (I / N) / beta     as I / N <= C_d <= beta: what all could use and do not
    union          1 - C / (U / N)        as C <= U / N: what a mean domain leaves of the union
    Jaccard        1 - I / U              as I <= U

By the quotient rule the last is d(I / U) = (dI - (I / U) dU) / U, and the union's is
d(C / (U / N)) = (dC - (C N / U) dU / N) N / U. U alone would not do as a loss: the domains lower it
by using less, without using the same; divided into C it asks for the same at any use.

The products above, read as polynomials in s, have useless derivatives at binary points: of a
channel that two of four domains use neither the product of the s nor that of the 1 - s changes with
any single switch, so no domain is asked to move. Ours: their value is taken at the binary switches,
their derivative at the soft ones p = r + 1/2 of `network`,

    d/dp_d (prod_e p_e) = prod_{e != d} p_e
    d/dp_d (1 - prod_e (1 - p_e)) = prod_{e != d} (1 - p_e).

This is the straight-through estimator for a product. The soft products are the expected
intersection and union if every switch were drawn on its own with probability p. So a domain is
pulled to a channel in the measure that the others are likely to have it.

The weight of the loss is learned as the budget's is: with the constraint loss <= target it is a
multiplier, raised by dual ascent while the domains share less than is asked for, lowered after.
The published description says that the three losses exist and that their weight is learned; the
normalisation, the soft derivative and the reading of the weight as a multiplier are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from mdprune_deploy.errors import UsageError
from mdprune_deploy.training.network import (
    LIMIT,
    THRESHOLD,
    MultiDomainNetwork,
    straight_through,
)

Sharing = Literal["intersection", "union", "jaccard", "none"]


def sharing_loss(network: MultiDomainNetwork, kind: Sharing, budget: float) -> Tensor:
    """Returns the loss over all domains' switches, a scalar in [0, 1] that is 0 at best.

    Args:
        network: The domains' switches.
        kind: Which loss; `"none"` is 0.
        budget: beta of the module's text.

    Raises:
        UsageError: There is no such loss.
    """
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "intersection": lambda inner, _: 1 - inner / budget,
        "union": lambda _, outer: 1 - network.complexity().mean() / outer,
        "jaccard": lambda inner, outer: 1 - inner / outer,
        "none": lambda inner, _: torch.zeros_like(inner),
    }
    if kind not in losses:
        raise UsageError(f"sharing is {kind!r}: it must be one of {', '.join(get_args(Sharing))}")
    inner, outer = shares(network)
    # Nothing on at all: nothing to share, and no division by zero.
    return losses[kind](inner, outer.clamp_min(torch.finfo(outer.dtype).tiny)).clamp(0, 1)


def shares(network: MultiDomainNetwork) -> tuple[Tensor, Tensor]:
    """Returns I / N and U / N, scalars: exact values, with derivatives at the soft switches."""
    soft = network.scores + LIMIT
    hard = (network.scores > THRESHOLD).to(soft.dtype)
    weights = network.sizes / network.sizes.sum()
    inner = straight_through(weights @ hard.prod(0), weights @ soft.prod(0))
    outer = straight_through(weights @ hard.amax(0), weights @ (1 - (1 - soft).prod(0)))
    return inner, outer


def intersection_over_union(network: MultiDomainNetwork) -> float:
    """Returns I / U of the domains' switches as they are, counted exactly; 1 if none is on."""
    on = network.scores.detach() > THRESHOLD
    union = int(network.sizes[on.any(0)].sum())
    return int(network.sizes[on.all(0)].sum()) / union if union else 1.0
