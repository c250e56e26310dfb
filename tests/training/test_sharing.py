"""The three losses against sets counted by hand, and their derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mdprune_deploy.errors import UsageError
from mdprune_deploy.training import MultiDomainNetwork, intersection_over_union
from mdprune_deploy.training.sharing import shares, sharing_loss


def network_of(*switches: str, sizes: tuple[int, ...] = (1, 2, 3, 4)) -> MultiDomainNetwork:
    """Returns a network whose domains have these switches on 4 channels of the given sizes."""
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1), nn.Flatten(), nn.Linear(1, 2))
    network = MultiDomainNetwork(plain, {f"d{i}": 2 for i in range(len(switches))})
    with torch.no_grad():
        network.sizes.copy_(torch.tensor(sizes))
        network.scores.copy_(
            torch.tensor([[0.25 if s == "1" else -0.125 for s in row] for row in switches])
        )
    return network


@pytest.mark.parametrize(
    ("switches", "inner", "outer", "mean"),
    [
        (("1111", "1111"), 10, 10, 10),
        (("1100", "0011"), 0, 10, 5),
        (("1010", "1011", "1110"), 4, 10, 6),
        (("0100", "0110"), 2, 5, 3.5),
    ],
)
def test_losses_are_those_of_the_sets(
    switches: tuple[str, ...], inner: int, outer: int, mean: float
):
    network, budget = network_of(*switches), 0.5
    assert [s.item() for s in shares(network)] == pytest.approx([inner / 10, outer / 10], abs=1e-7)
    expected = {
        "intersection": max(0, 1 - inner / 5),
        "union": 1 - mean / outer,
        "jaccard": 1 - inner / outer,
        "none": 0.0,
    }
    for kind, value in expected.items():
        # Float32 sums of few terms.
        assert sharing_loss(network, kind, budget).item() == pytest.approx(value, abs=1e-6)
    assert intersection_over_union(network) == inner / outer


def test_derivatives_are_those_of_the_soft_sets():
    network = network_of("1100", "1010", "1001")
    inner, outer = shares(network)
    soft = network.scores.detach() + 0.5
    sizes = network.sizes / 10
    (by_inner,) = torch.autograd.grad(inner, network.scores, retain_graph=True)
    (by_outer,) = torch.autograd.grad(outer, network.scores)
    others = torch.stack([soft[[1, 2]], soft[[0, 2]], soft[[0, 1]]])
    torch.testing.assert_close(by_inner, sizes * others.prod(1))
    torch.testing.assert_close(by_outer, sizes * (1 - others).prod(1))


@pytest.mark.parametrize("kind", ["intersection", "union", "jaccard"])
def test_descent_makes_domains_agree_where_two_of_four_differ(kind):
    network = network_of("1100", "1100", "1010", "1010", sizes=(4, 2, 2, 2))
    start = intersection_over_union(network)
    rate = torch.tensor(0.05)
    for _ in range(40):
        (gradient,) = torch.autograd.grad(sharing_loss(network, kind, 0.5), network.scores)
        with torch.no_grad():
            network.scores.sub_(rate * gradient.sign()).clamp_(-0.5, 0.5)
    assert intersection_over_union(network) > start + 0.1


def test_unknown_loss_is_refused():
    with pytest.raises(UsageError) as caught:
        sharing_loss(network_of("1111"), "dice", 0.5)
    assert str(caught.value) == (
        "sharing is 'dice': it must be one of intersection, union, jaccard, none"
    )
