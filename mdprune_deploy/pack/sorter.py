"""Gives every tensor of a researcher's files its place."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field

import torch

from ..domain import Mask
from ..errors import CheckpointError, UsageError
from ..weights import did_you_mean
from .options import PackOptions, as_switches, listed, pairs
from .patterns import Pattern, read_rule
from .state_dict import Tensors


@dataclass
class Sorter:
    """Sorts tensors: the shared file first, then each domain's.

    Attributes:
        options: The patterns and what else was asked.
        network: The network's parameters and buffers; their shapes decide what fits.
        names: The domains.
        masks: Found masks, by domain and key.
        state: Found parameters of domains, by domain and name.
        shared: Found parameters that all domains share.
        ignored: Names that `options.ignore` matched.
    """

    options: PackOptions
    network: Tensors
    names: list[str] = field(default_factory=list)
    masks: dict[str, dict[str, Mask]] = field(default_factory=dict)
    state: dict[str, Tensors] = field(default_factory=dict)
    shared: Tensors = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        own = [name for name, _ in pairs(self.options.domain_weights, "domain_weights")]
        self.names = list(self.options.domains) or own
        if own and set(own) != set(self.names):
            raise UsageError(f"domains {self.names} and domain_weights {own} differ")
        if len(set(self.names)) < len(self.names):
            raise UsageError(f"domains {self.names} repeat a name")
        if self.options.layout == "per-domain" and not own:
            raise UsageError("layout 'per-domain' needs domain_weights, one NAME=PATH per domain")
        self.switches = Pattern(self.options.switches, "switches", ("module", "weight"))
        self.rules = [read_rule(text) for text in self.options.state]

    def add_shared(self, tensors: Tensors) -> None:
        """Sorts the shared file: parameters, switches of all domains, parameters of domains."""
        own: list[tuple[str, str, torch.Tensor]] = []
        rows: Tensors = {}
        first_rows = self.options.layout == "domains-first"
        for name, tensor in tensors.items():
            match = self.switches.match(name) if first_rows else None
            if match is not None:
                rows[match.get("weight") or match["module"]] = tensor
                continue
            found = self._own_parameter(name)
            if found is not None:
                own.append((*found, tensor))
            elif self._is_parameter(name, tensor, str(self.options.weights)):
                self.shared[name] = tensor
        self._name_domains(rows, [domain for domain, _, _ in own])
        self.masks = {name: {} for name in self.names}
        self.state = {name: {} for name in self.names}
        for key, tensor in rows.items():
            if tensor.ndim != 2 or len(tensor) != len(self.names):
                raise CheckpointError(
                    f"switches of {key!r} have shape {list(tensor.shape)}, not "
                    f"({len(self.names)} domains, channels)"
                )
            for name, row in zip(self.names, tensor, strict=True):
                self.masks[name][key] = self._mask(key, row)
        for domain, target, tensor in own:
            self.state[self._domain(domain)][target] = tensor

    def add_own(self, domain: str, tensors: Tensors, path: str) -> None:
        """Sorts one domain's file: its switches, and parameters that differ from the shared."""
        for name, tensor in tensors.items():
            match = self.switches.match(name) if self.options.layout == "per-domain" else None
            if match is not None:
                key = match.get("weight") or match["module"]
                self.masks[domain][key] = self._mask(key, tensor)
            elif self._is_parameter(name, tensor, path, any_shape=True):
                shared = self.shared.get(name)
                if shared is None or not torch.equal(shared, tensor):
                    self.state[domain][name] = tensor

    def finish(self) -> None:
        """Checks that every pattern matched and that the network is complete."""
        for pattern in [self.switches, *(rule.pattern for rule in self.rules)]:
            if not pattern.used:
                raise UsageError(f"{pattern.option} {pattern.text!r} matches no tensor")
        missing = [
            name
            for name in self.network
            if name not in self.shared
            and not name.endswith(".num_batches_tracked")
            and not all(name in state for state in self.state.values())
        ]
        if missing:
            raise CheckpointError(f"the weights lack {listed(missing)}")

    def for_model(self) -> Tensors:
        """Returns what the network loads; what every domain brings is taken from the first."""
        first = self.state[self.names[0]]
        fitting = {
            name: tensor
            for name, tensor in first.items()
            if name not in self.shared and tensor.shape == self.network[name].shape
        }
        return {**self.shared, **fitting}

    def _own_parameter(self, name: str) -> tuple[str, str] | None:
        for rule in self.rules:
            match = rule.pattern.match(name)
            if match is not None:
                target = rule.target.format(**match)
                if target not in self.network:
                    raise UsageError(
                        f"state {rule.pattern.text!r} sends {name!r} to {target!r}, which the "
                        f"network lacks{did_you_mean(target, self.network)}"
                    )
                return match["domain"], target
        return None

    def _is_parameter(
        self, name: str, tensor: torch.Tensor, path: str, *, any_shape: bool = False
    ) -> bool:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.options.ignore):
            self.ignored.append(name)
            return False
        if name not in self.network:
            raise CheckpointError(
                f"weights {path!r}: tensor {name!r} is left over: no parameter of the network, "
                f"and no pattern matches it{did_you_mean(name, self.network)}"
            )
        if not any_shape and tensor.shape != self.network[name].shape:
            raise CheckpointError(
                f"weights {path!r}: {name!r} has shape {list(tensor.shape)}, the network's "
                f"{list(self.network[name].shape)}"
            )
        return True

    def _name_domains(self, rows: Tensors, matched: list[str]) -> None:
        if self.names:
            return
        words = list(dict.fromkeys(matched))
        if words and not all(word.isdigit() for word in words):
            self.names = words
            return
        count = max((len(tensor) for tensor in rows.values() if tensor.ndim == 2), default=0)
        if not count:
            raise UsageError(f"switches {self.options.switches!r} matches no tensor with rows")
        self.names = [str(index) for index in range(count)]

    def _domain(self, word: str) -> str:
        if word in self.state:
            return word
        if word.isdigit() and int(word) < len(self.names):
            return self.names[int(word)]
        raise CheckpointError(
            f"state of unknown domain {word!r}; the domains are {listed(self.names)}"
        )

    def _mask(self, key: str, values: torch.Tensor) -> Mask:
        options = self.options
        return Mask(as_switches(key, values), options.axis, options.site, options.threshold)
