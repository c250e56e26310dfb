"""The constraint's multipliers, and the exact fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mdprune_deploy.errors import BudgetError
from mdprune_deploy.training import MultiDomainNetwork
from mdprune_deploy.training.budget import Constraint, fit


def network_of(*scores: list[float]) -> MultiDomainNetwork:
    """Returns a network with a row of scores per domain: 4 channels of 8 weights, 8 of 2."""
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1), nn.Flatten(), nn.Linear(2, 2)
    )
    network = MultiDomainNetwork(plain, {f"d{i}": 2 for i in range(len(scores))})
    with torch.no_grad():
        network.scores.copy_(torch.tensor(scores))
    return network


def on(network: MultiDomainNetwork) -> list[list[int]]:
    return (network.scores > 0).int().tolist()


def test_multipliers_follow_the_violation_and_stay_in_range():
    constraint = Constraint(torch.zeros(3), rate=2.0, most=3.0)
    for expected in ([1.0, 0.0, 3.0], [2.0, 0.0, 3.0]):
        constraint.ascend(torch.tensor([0.5, -0.5, 4.0]))
        assert constraint.multipliers.tolist() == expected
    constraint.ascend(torch.tensor([-2.0, 0.0, -0.5]))
    assert constraint.multipliers.tolist() == [0.0, 0.0, 2.0]


def test_term_has_the_gradient_of_the_augmented_lagrangian():
    constraint = Constraint(torch.tensor([1.0, 0.0, 0.1]), rate=1.0, penalty=2.0)
    excess = torch.tensor([0.5, 0.25, -0.4], requires_grad=True)
    constraint.term(excess).backward()
    # Exact in binary: 1 + 2 * 0.5, 0 + 2 * 0.25, max(0, 0.1 - 0.8).
    assert excess.grad.tolist() == [2.0, 0.5, 0.0]


def test_fit_turns_off_the_lowest_scores_until_the_share_fits():
    network = network_of([0.4, 0.3, 0.2, 0.1, 0.05, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    fit(network, 0.5)
    # 48 elements: without 2, 8, 8 and 8 of them 22 are left, at most 24.
    assert on(network) == [[1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]]


def test_fit_leaves_a_domain_that_fits_alone():
    network = network_of([0.4, -0.1, -0.2, 0.1] + [0.3] * 4 + [-0.3] * 4)
    before = network.scores.detach().clone()
    fit(network, 0.5)
    assert torch.equal(network.scores, before)


def test_fit_prefers_what_other_domains_keep_among_equals():
    network = network_of([0.5] * 4 + [0.2] * 8, [-0.5, -0.5, 0.5, 0.5] + [0.2] * 8)
    fit(network, 0.75)
    assert on(network)[0][:4] == [1, 1, 1, 1]
    assert on(network)[1][:4] == [0, 0, 1, 1]
    network = network_of([0.2] * 4 + [0.5] * 8, [-0.5, -0.5, 0.2, 0.2] + [0.5] * 8)
    fit(network, 0.75)
    assert on(network)[0][:4] == [0, 0, 1, 1]


def test_fit_keeps_one_channel_of_every_convolution():
    network = network_of([-0.1, -0.3, -0.2, -0.4] + [0.5] * 8)
    fit(network, 0.25)
    assert on(network) == [[1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]]
    with pytest.raises(BudgetError) as caught:
        fit(network, 0.2)
    assert str(caught.value) == (
        "domain 'd0' cannot meet the budget 0.2: one channel of every convolution is "
        "0.2083 of the weights"
    )
