"""Switches and the multi-domain network against the plain module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mdprune_deploy.errors import UsageError
from mdprune_deploy.training import MultiDomainNetwork, to_backbone, to_domains
from mdprune_deploy.training.network import binarise, straight_through


def small_network(groups: int = 1) -> nn.Module:
    """Returns three convolutions, the last of `groups` groups, and a head of 5 classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 1, groups=groups),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_binarise_is_exact_forward_and_the_identity_backward():
    scores = torch.tensor([-0.4, -1e-9, 0.0, 1e-9, 0.3], requires_grad=True)
    switches = binarise(scores)
    assert switches.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
    (switches * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_straight_through_has_no_rounding_error():
    surrogate = torch.tensor([0.1, 1e8, -3e-7], requires_grad=True)
    value = torch.tensor([1 / 3, 1e-6, 7.0])
    assert torch.equal(straight_through(value, surrogate), value)


def test_untouched_network_computes_what_the_plain_one_does():
    plain = small_network().eval()
    network = MultiDomainNetwork(plain, {"a": 5}).eval()
    assert torch.equal(network(images(), "a"), plain(images()))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_switch_that_is_off_removes_the_input_channel(groups: int):
    plain = small_network(groups).eval()
    network = MultiDomainNetwork(plain, {"a": 5, "b": 5}).eval()
    off = torch.tensor([1, 4, 5, 11])
    with torch.no_grad():
        network.scores[1, network.layers["6"]][off] = -0.1

    def without_channels(module, inputs):
        x = inputs[0].clone()
        x[:, off] = 0
        return (x,)

    plain.get_submodule("6").register_forward_pre_hook(without_channels)
    # Another order of sums, in float32.
    torch.testing.assert_close(network(images(), "b"), plain(images()), rtol=1e-5, atol=1e-6)
    difference = network(images(), "a") - network(images(), "b")
    assert difference.abs().max() > 1e-3


def test_sizes_count_the_weight_elements_of_a_channel():
    network = MultiDomainNetwork(small_network(groups=4), {"a": 2})
    assert network.sizes[network.layers["3"]].tolist() == [12 * 9] * 8
    assert network.sizes[network.layers["6"]].tolist() == [8 // 4] * 12
    with torch.no_grad():
        network.scores[0, :4] = -0.1
    assert network.complexity().item() == pytest.approx(1 - 4 * 108 / (8 * 108 + 24), abs=1e-7)


def test_gradients_reach_every_switch_on_or_off_of_the_domain_that_ran():
    network = MultiDomainNetwork(small_network(), {"a": 5, "b": 5})
    with torch.no_grad():
        network.scores[:, ::3] = -0.1
    loss = nn.functional.cross_entropy(network(images(), "b"), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    gradient = network.scores.grad
    assert gradient is not None
    assert gradient[0].abs().max() == 0
    part = network.layers["6"]
    assert (gradient[1, part] != 0).all()
    # dL/ds = sum of dL/dV W with V = s W; where s = 1, dL/dW = dL/dV.
    layer = network.backbone.get_submodule("6")
    by_weight = (layer.weight.grad * layer.weight).sum((0, 2, 3))
    on = network.scores[1, part] > 0
    torch.testing.assert_close(gradient[1, part][on], by_weight[on], rtol=1e-4, atol=1e-7)


def test_batch_norm_statistics_belong_to_the_domain_that_ran():
    network = MultiDomainNetwork(small_network(), {"a": 5, "b": 3}).train()
    network(images() + 4, "b")
    a, b = network.own_state("a"), network.own_state("b")
    assert a["1.running_mean"].abs().max() == 0
    assert b["1.running_mean"].abs().max() > 0
    assert network.backbone.get_submodule("1").running_mean.abs().max() == 0
    assert b["9.weight"].shape == (3, 8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_export_computes_what_the_network_does(layout: torch.memory_format):
    trained = small_network().to(memory_format=layout)
    network = MultiDomainNetwork(trained, {"a": 5, "b": 3}).train()
    with torch.no_grad():
        network.scores[0, ::2] = -0.2
        network.scores[1, ::3] = -0.2
    for name in network.domains:
        network(images(), name)
    network.eval()
    plain = to_backbone(network)
    assert not plain.training
    assert all(tensor.is_contiguous() for tensor in plain.parameters())
    for name, domain in to_domains(network, {"a": "vwxyz", "b": "pqr"}).items():
        tensors = dict(domain.state)
        assert not any("num_batches" in key for key in tensors)
        for key, mask in domain.masks.items():
            assert mask.axis == "in" and mask.is_score
            tensors[key] = plain.state_dict()[key] * mask.on[None, :, None, None]
        output = torch.func.functional_call(plain, tensors, (images(),))
        # Another memory format sums in another order, in float32.
        torch.testing.assert_close(output, network(images(), name), rtol=1e-5, atol=1e-6)
        assert len(domain.labels) == output.shape[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": {}}, "no domains: give the number of classes of each by name"),
        ({"head": "3"}, "head '3' is no nn.Linear of the network: 9 are"),
        ({"switched": ["3", "1"]}, "switched layer '1' is no nn.Conv2d of the network"),
        (
            {"network": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))},
            "the network has no nn.Linear: there is no head to give to each domain",
        ),
        (
            {"network": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2))},
            "no convolution to switch: the network has fewer than two nn.Conv2d",
        ),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(UsageError) as caught:
        MultiDomainNetwork(**({"network": small_network(), "classes": {"a": 2}} | arguments))
    assert str(caught.value) == message
