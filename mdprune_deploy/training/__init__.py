"""The seed method: turns a convolutional network into a switchable multi-domain one and trains it.

Budget-aware adapters with parameter sharing, after Berriel et al., "Budget-Aware Adapters for
Multi-Domain Learning" (2019), and the parameter-sharing losses of dos Santos et al., "Budget-Aware
Pruning for Multi-Domain Learning" (2022); each module says which part is ours.
"""

from mdprune_deploy.training.export import to_backbone, to_domains
from mdprune_deploy.training.network import MultiDomainNetwork
from mdprune_deploy.training.sharing import Sharing, intersection_over_union
from mdprune_deploy.training.trainer import Settings, Step, accuracy, train

__all__ = [
    "MultiDomainNetwork",
    "Settings",
    "Sharing",
    "Step",
    "accuracy",
    "intersection_over_union",
    "to_backbone",
    "to_domains",
    "train",
]
