r"""One network, many domains: shared weights, and for each domain switches, batch norms and a head.

A switchable convolution with weight W (out, in, kh, kw) has for domain d a score r[d, c] per input
channel c and computes

    s[d, c] = 1 if r[d, c] > 0 else 0        y = sum_c (s[d, c] W[:, c]) * x[:, c] + bias.

The step has no useful derivative. The straight-through estimator takes ds/dr = 1, so that with
V = s W

    dL/dr[d, c] = dL/ds[d, c] = sum_{o,i,j} dL/dV[o, c, i, j] W[o, c, i, j],

which is not zero where the switch is off: a channel can come back. Switching a slice of the weight
is the same as switching the channel of x (the form in the literature) and stores no activation.
With groups, input channel c belongs to group c // (in / groups) and meets that group's filters
only. In every case a switch stands for |W| / in weight elements, its size.

The switches are those of budget-aware adapters (Berriel et al., 2019). Ours: scores are kept in
[-1/2, 1/2], so that p = r + 1/2 is a soft switch in [0, 1], s is p rounded, and the estimator is
that of BinaryConnect (Courbariaux et al., 2015). The sharing losses build on p.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from mdprune_deploy.errors import UsageError

THRESHOLD = 0.0
"""A switch is on where its score is above this."""
LIMIT = 0.5
"""Scores stay in [-LIMIT, LIMIT]."""
START = 0.25
"""Every score before training: all channels are on, and none for certain."""


class MultiDomainNetwork(nn.Module):
    """A convolutional network turned into one per domain, with shared weights.

    The wrapped network is copied and its code is not touched: each forward pass runs it with the
    domain's tensors in place of its own (`torch.func.functional_call`).

    Args:
        network: Any module of `nn.Conv2d` layers, batch norms and a linear head. Batch norms and
            the head become each domain's own; all other parameters are shared.
        classes: The number of classes of every domain by name.
        head: Name of the `nn.Linear` that makes the logits; the last one unless given.
        switched: Names of the `nn.Conv2d` layers that get switches; all but the first, which reads
            the image, unless given.

    Attributes:
        domains: The domains' names, in the order of `classes`.
        backbone: The wrapped copy, which holds the shared weights.
        layers: Where each switchable convolution's channels are in `scores`, by name.
        scores: Parameter (domains, channels), float32.
        sizes: Buffer (channels,), int64: the weight elements that a switch stands for.

    Raises:
        UsageError: There are no domains, or the head or a convolution is not what it must be.
    """

    sizes: Tensor

    def __init__(
        self,
        network: nn.Module,
        classes: Mapping[str, int],
        *,
        head: str | None = None,
        switched: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        if not classes:
            raise UsageError("no domains: give the number of classes of each by name")
        self.domains = tuple(classes)
        self.backbone = copy.deepcopy(network)
        self.layers, sizes = lay_out(switched_convolutions(network, switched))
        self.register_buffer("sizes", torch.tensor(sizes))
        self.scores = nn.Parameter(torch.full((len(classes), len(sizes)), START))
        head = head_name(network, head)
        self.own_names = tuple(
            name
            for name, module in network.named_modules()
            if isinstance(module, _BatchNorm) or name == head
        )
        self.own = nn.ModuleList(self._own_modules(count) for count in classes.values())
        for name in self.own_names:
            self.backbone.get_submodule(name).requires_grad_(False)

    def _own_modules(self, classes: int) -> nn.ModuleList:
        """Copies the batch norms as they are; the head only if it fits, else makes a new one."""
        own = nn.ModuleList()
        for name in self.own_names:
            module = copy.deepcopy(self.backbone.get_submodule(name))
            if isinstance(module, nn.Linear) and module.out_features != classes:
                bias = module.bias is not None
                module = nn.Linear(module.in_features, classes, bias, dtype=module.weight.dtype)
            own.append(module)
        return own

    def forward(self, x: Tensor, domain: str) -> Tensor:
        """Runs one domain.

        Args:
            x: The wrapped network's input.
            domain: Which domain.

        Returns:
            The wrapped network's output, (batch, classes of the domain).
        """
        index = self.domains.index(domain)
        tensors = self.own_state(domain) | self._switched_weights(binarise(self.scores[index]))
        output: Tensor = functional_call(self.backbone, tensors, (x,))
        return output

    def _switched_weights(self, switches: Tensor) -> dict[str, Tensor]:
        weights = {}
        for name, part in self.layers.items():
            layer = self.backbone.get_submodule(name)
            assert isinstance(layer, nn.Conv2d)
            groups, weight = layer.groups, layer.weight
            # (out, in / groups): every filter meets the channels of its own group.
            on = switches[part].view(groups, -1).repeat_interleave(len(weight) // groups, 0)
            weights[f"{name}.weight"] = weight * on[:, :, None, None]
        return weights

    def own_state(self, domain: str) -> dict[str, Tensor]:
        """Returns the domain's batch norms and head by their names in the wrapped network.

        The tensors are the live ones: a forward pass in training mode updates the statistics.
        """
        own = self.own[self.domains.index(domain)]
        assert isinstance(own, nn.ModuleList)
        return {
            f"{name}.{key}": tensor
            for name, module in zip(self.own_names, own, strict=True)
            for key, tensor in module.state_dict(keep_vars=True).items()
        }

    def switches(self) -> Tensor:
        """Returns all switches with straight-through gradient, float32 (domains, channels)."""
        return binarise(self.scores)

    def complexity(self) -> Tensor:
        """Returns each domain's size-weighted share of switches that are on, float32 (domains,)."""
        return self.switches() @ self.sizes.to(self.scores.dtype) / self.sizes.sum()


def binarise(scores: Tensor) -> Tensor:
    """Returns 1 where a score is above the threshold and 0 elsewhere, with gradient 1.

    Args:
        scores: Floating point, any shape.
    """
    return straight_through((scores > THRESHOLD).to(scores.dtype), scores)


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """Returns exactly `value` with the gradient of `surrogate`; both of one shape."""
    # A finite number minus itself is 0, so the value takes no rounding error.
    return value.detach() + (surrogate - surrogate.detach())


def head_name(network: nn.Module, head: str | None) -> str:
    """Returns the head's name, after checking it."""
    linear = [name for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise UsageError("the network has no nn.Linear: there is no head to give to each domain")
    if head is not None and head not in linear:
        raise UsageError(f"head {head!r} is no nn.Linear of the network: {', '.join(linear)} are")
    return linear[-1] if head is None else head


def switched_convolutions(
    network: nn.Module, switched: Collection[str] | None
) -> dict[str, nn.Conv2d]:
    """Returns the convolutions that get switches by name, after checking them."""
    layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    if switched is None:
        switched = list(layers)[1:]
    for name in switched:
        if name not in layers:
            raise UsageError(f"switched layer {name!r} is no nn.Conv2d of the network")
    if not switched:
        raise UsageError("no convolution to switch: the network has fewer than two nn.Conv2d")
    return {name: layer for name, layer in layers.items() if name in switched}


def lay_out(layers: Mapping[str, nn.Conv2d]) -> tuple[dict[str, slice], list[int]]:
    """Puts the layers' input channels in a row; returns each layer's place and all sizes."""
    places: dict[str, slice] = {}
    sizes: list[int] = []
    for name, layer in layers.items():
        places[name] = slice(len(sizes), len(sizes) + layer.in_channels)
        sizes += [layer.weight.numel() // layer.in_channels] * layer.in_channels
    return places, sizes
