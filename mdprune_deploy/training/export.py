"""From a trained network to what `save_checkpoint` takes: the plain module and its domains."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from mdprune_deploy.domain import Domain, Mask
from mdprune_deploy.training.network import THRESHOLD, MultiDomainNetwork


def to_backbone(network: MultiDomainNetwork) -> nn.Module:
    """Returns a copy of the wrapped module in eval mode with the trained shared weights.

    Its weights are contiguous, whatever memory format they were trained in. Its batch norms and
    head are the untrained ones that it came with; every domain of `to_domains` overrides them.
    """
    plain = copy.deepcopy(network.backbone).requires_grad_(False).eval()
    # PyTorch's types know this argument only with a tensor.
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return plain


def to_domains(
    network: MultiDomainNetwork, labels: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Domain]:
    """Returns masks, batch norms and head of every domain.

    Args:
        network: The trained network; the tensors are copied.
        labels: Class names by domain.

    Returns:
        Domains by name. Masks are scores, `axis="in"`, one for each switchable convolution.
    """
    scores = network.scores.detach().clone()
    domains = {}
    for name, own in zip(network.domains, scores, strict=True):
        masks = {
            f"{layer}.weight": Mask(own[part].clone(), "in", threshold=THRESHOLD)
            for layer, part in network.layers.items()
        }
        state = {
            key: tensor.detach().clone()
            for key, tensor in network.own_state(name).items()
            # Counts batches for a mode of batch norm in training; nothing reads it afterwards.
            if not key.endswith("num_batches_tracked")
        }
        domains[name] = Domain(masks, state, None if labels is None else labels[name])
    return domains
