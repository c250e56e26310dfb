r"""Turns a researcher's plain state dict into a checkpoint.

The network comes from the researcher's own factory, the tensors from files that are read without
running code. Every tensor must find its place: as a switch, as a domain's own parameter, as a
parameter of the network, or on the list of what to ignore.

A pattern is a template such as `{module}.switches` or `{module}.bns.{domain}.{name}`, in which
`{module}` and `{weight}` match anything and `{domain}` and `{name}` anything without a dot, or a
regular expression with groups of these names, such as `(?P<weight>.*)\.mask`.
"""

from __future__ import annotations

import fnmatch
import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch

from .checkpoint import save_checkpoint
from .domain import Axis, Domain, Mask, Site
from .errors import CheckpointError, Error, UsageError
from .weights import did_you_mean

Layout = Literal["domains-first", "per-domain"]
Tensors = dict[str, torch.Tensor]
_PLACES = {"module": ".+?", "weight": ".+", "domain": r"[^.]+", "name": r"[^.]+"}


@dataclass(frozen=True)
class PackOptions:
    """What `pack` needs to know; one field per option of the command line.

    Attributes:
        output: The checkpoint to write.
        factory: `package.module:factory`; called without arguments it returns the dense network.
        weights: The state dict that all domains share.
        switches: Pattern of the switch tensors' names, with `module` or `weight`.
        inputs: Example shapes, one per input of the network, such as `1,3,32,32`.
        layout: `domains-first`: switches of shape `(domains, channels)` in `weights`;
            `per-domain`: of shape `(channels,)` in the files of `domain_weights`.
        axis: Whether the switches are on input or output channels.
        threshold: The score above which a channel is on; boolean and 0/1 integer switches
            have none.
        site: What a switch on output channels zeroes.
        domains: Domain names, in the order of the switches' rows. By default the names of
            `domain_weights`, else what `{domain}` matched, else the row numbers.
        domain_weights: `NAME=PATH` per domain: a state dict of its own. Parameters that
            differ from the shared ones become the domain's.
        state: Rules `PATTERN->TARGET` for parameters of domains in the shared file, such as
            `{module}.bns.{domain}.{name}->{module}.{name}`; `{domain}` is a name or a number.
        labels: `NAME=PATH` per domain: a text file with one class name per line.
        key: Entry of the files that holds the state dict, such as `state_dict`.
        prefix: Removed from the front of all names that have it, such as `module.`.
        ignore: Shell patterns of names that need no place.
    """

    output: Path
    factory: str
    weights: Path
    switches: str
    inputs: tuple[str, ...]
    layout: Layout = "domains-first"
    axis: Axis = "in"
    threshold: float = 0.0
    site: Site = "weight"
    domains: tuple[str, ...] = ()
    domain_weights: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    key: str | None = None
    prefix: str = ""
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackReport:
    """What went where.

    Attributes:
        domains: Domain names, in order.
        masks: Masks per domain.
        state: Own parameters and buffers per domain.
        shared: Parameters and buffers of the network that came from the shared file.
        ignored: Names that were ignored as asked.
    """

    domains: tuple[str, ...]
    masks: dict[str, int]
    state: dict[str, int]
    shared: int
    ignored: tuple[str, ...]


def pack(options: PackOptions) -> PackReport:
    """Reads a researcher's files and writes a checkpoint.

    Raises:
        UsageError: An option is wrong: a factory that cannot be imported, a pattern that matches
            nothing.
        CheckpointError: A file cannot be read, or its tensors do not fit the network.
        UnsupportedGraphError: The network cannot be exported.
    """
    examples = _examples(options.inputs)
    model = build(options.factory)
    sorter = _Sorter(options, {name: t.detach() for name, t in model.state_dict().items()})
    sorter.add_shared(read_state_dict(options.weights, options.key, options.prefix))
    for name, path in _pairs(options.domain_weights, "domain_weights"):
        sorter.add_own(name, read_state_dict(Path(path), options.key, options.prefix), path)
    sorter.finish()
    model.load_state_dict(sorter.for_model(), strict=False)
    labels = {name: _lines(Path(path)) for name, path in _pairs(options.labels, "labels")}
    for name in labels:
        if name not in sorter.names:
            raise UsageError(
                f"labels for unknown domain {name!r}{did_you_mean(name, sorter.names)}"
            )
    domains = {
        name: Domain(sorter.masks[name], sorter.state[name], labels.get(name))
        for name in sorter.names
    }
    save_checkpoint(options.output, model, examples, domains)
    return PackReport(
        domains=tuple(sorter.names),
        masks={name: len(domain.masks) for name, domain in domains.items()},
        state={name: len(domain.state) for name, domain in domains.items()},
        shared=len(sorter.shared),
        ignored=tuple(sorter.ignored),
    )


def build(factory: str) -> torch.nn.Module:
    """Imports `package.module:factory`, from the working directory too, and calls it.

    Raises:
        UsageError: It cannot be imported, fails, or returns no module.
    """
    place, colon, name = factory.partition(":")
    if not (place and colon and name):
        raise UsageError(f"factory {factory!r} is not of the form package.module:factory")
    here = os.getcwd()  # noqa: PTH109 - a string for sys.path
    sys.path.insert(0, here)
    try:
        target: Any = importlib.import_module(place)
        for part in name.split("."):
            target = getattr(target, part)
        model = target()
    except Error:
        raise
    except Exception as error:
        raise UsageError(f"factory {factory!r} fails: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"factory {factory!r} returns a {type(model).__name__}, not a Module")
    return model


def read_state_dict(path: Path, key: str | None = None, prefix: str = "") -> Tensors:
    """Reads tensors by name from a `torch.save` or safetensors file, without running code.

    Args:
        path: The file.
        key: The entry that holds the state dict, if it is nested.
        prefix: Removed from the front of names that have it.

    Raises:
        CheckpointError: The file is unreadable or holds more than tensors.
    """
    where = f"weights {str(path)!r}"
    content = _read(path, where)
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            raise CheckpointError(f"{where}: there is no entry {key!r}")
        content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{where}: holds a {type(content).__name__}, not a state dict")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{where}: entry {name!r} is a {type(tensor).__name__}, not a tensor; if it holds "
                "the state dict, name it as the key"
            )
    named = {name.removeprefix(prefix): tensor.detach() for name, tensor in content.items()}
    if len(named) < len(content):
        raise CheckpointError(f"{where}: two tensors have one name without {prefix!r}")
    return named


def _read(path: Path, where: str) -> Any:
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:9] == b"{":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be read: {error.strerror}") from error
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{where}: is corrupt, or holds more than tensors, which is never loaded because it "
            f"could run code; save the state dict alone ({line})"
        ) from error


class _Pattern:
    """A template or regular expression, and what it has matched."""

    def __init__(self, text: str, option: str, needs: Sequence[str]) -> None:
        self.text, self.option, self.used = text, option, False
        try:
            self.expression = re.compile(text if "(?P<" in text else self._translate(text))
        except re.error as error:
            raise UsageError(f"{option} {text!r} is no pattern: {error}") from error
        if not set(needs) & set(self.expression.groupindex):
            raise UsageError(f"{option} {text!r} has no {' or '.join(f'{{{n}}}' for n in needs)}")

    @staticmethod
    def _translate(template: str) -> str:
        parts = re.split(r"\{(\w+)\}", template)
        for index in range(1, len(parts), 2):
            if parts[index] not in _PLACES:
                raise UsageError(f"pattern {template!r} has unknown place {{{parts[index]}}}")
        return "".join(
            f"(?P<{part}>{_PLACES[part]})" if index % 2 else re.escape(part)
            for index, part in enumerate(parts)
        )

    def match(self, name: str) -> dict[str, str] | None:
        found = self.expression.fullmatch(name)
        if found is None:
            return None
        self.used = True
        return {key: text for key, text in found.groupdict().items() if text is not None}


@dataclass
class _Rule:
    pattern: _Pattern
    target: str


@dataclass
class _Sorter:
    """Gives every tensor its place."""

    options: PackOptions
    network: Tensors
    names: list[str] = field(default_factory=list)
    masks: dict[str, dict[str, Mask]] = field(default_factory=dict)
    state: dict[str, Tensors] = field(default_factory=dict)
    shared: Tensors = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        own = [name for name, _ in _pairs(self.options.domain_weights, "domain_weights")]
        self.names = list(self.options.domains) or own
        if own and set(own) != set(self.names):
            raise UsageError(f"domains {self.names} and domain_weights {own} differ")
        if len(set(self.names)) < len(self.names):
            raise UsageError(f"domains {self.names} repeat a name")
        if self.options.layout == "per-domain" and not own:
            raise UsageError("layout 'per-domain' needs domain_weights, one NAME=PATH per domain")
        self.switches = _Pattern(self.options.switches, "switches", ("module", "weight"))
        self.rules = [_rule(text) for text in self.options.state]

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
            raise CheckpointError(f"the weights lack {_some(missing)}")

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
            f"state of unknown domain {word!r}; the domains are {_some(self.names)}"
        )

    def _mask(self, key: str, values: torch.Tensor) -> Mask:
        if values.ndim != 1:
            raise CheckpointError(
                f"switches of {key!r} have shape {list(values.shape)}, not (channels,)"
            )
        if not values.is_floating_point() and values.dtype != torch.bool:
            if bool(((values != 0) & (values != 1)).any()):
                raise CheckpointError(f"switches of {key!r} are integers other than 0 and 1")
            values = values.bool()
        return Mask(values, self.options.axis, self.options.site, self.options.threshold)


def _rule(text: str) -> _Rule:
    pattern, arrow, target = text.partition("->")
    if not (pattern and arrow and target):
        raise UsageError(f"state rule {text!r} is not of the form PATTERN->TARGET")
    rule = _Rule(_Pattern(pattern.strip(), "state", ("domain",)), target.strip())
    unknown = set(re.findall(r"\{(\w*)\}", rule.target)) - set(rule.pattern.expression.groupindex)
    if unknown:
        raise UsageError(
            f"state rule {text!r} uses {_some(sorted(unknown))}, which it never matches"
        )
    return rule


def _pairs(texts: Sequence[str], option: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UsageError(f"{option} {text!r} is not of the form NAME=PATH")
        pairs.append((name, path))
    if len({name for name, _ in pairs}) < len(pairs):
        raise UsageError(f"{option} names a domain twice")
    return pairs


def _examples(shapes: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Returns random examples: zeros would hide what a network does."""
    if not shapes:
        raise UsageError("inputs is empty: give one shape per input, such as 1,3,32,32")
    generator = torch.Generator().manual_seed(0)
    examples = []
    for text in shapes:
        sizes = re.split(r"[,x]", text)
        if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
            raise UsageError(f"input shape {text!r} is not like 1,3,32,32")
        examples.append(torch.randn([int(size) for size in sizes], generator=generator))
    return tuple(examples)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"labels {str(path)!r} cannot be read: {error}") from error


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
