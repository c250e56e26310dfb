"""What the compiler knows about one operator, and the table of all of them.

An entry answers five questions. `known`: what is constant, given what is constant before it?
`dependence`: which input elements does a set of output elements depend on? `place`: which product
set can the operator make that holds what is demanded of it? `require`: what does it read to make
that? `emit`: the narrowed operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx_ir as ir

from ...errors import UnsupportedGraphError
from ..elements import Known, Needed, Sets, closure, elements, live
from ..facts import Facts, Requirement

if TYPE_CHECKING:
    from ..emit_graph import Builder


class Operator:
    """An entry of the table. This base is exact for every operator and narrows nothing."""

    mixes = True
    """Whether an output channel may depend on several input channels."""

    def applies(self, node: ir.Node) -> bool:
        """Tells whether this entry understands the node's attributes and which inputs vary."""
        return True

    def known(self, node: ir.Node, facts: Facts) -> list[Known]:
        """Returns what is known of each output."""
        return [live(len(facts.shape(value))) for value in node.outputs]

    def free(self, node: ir.Node, facts: Facts) -> list[frozenset[int]]:
        """Returns the axes of each output that may be narrowed."""
        return [frozenset() for _ in node.outputs]

    def dependence(
        self, node: ir.Node, needed: Sequence[Needed | None], facts: Facts
    ) -> list[Needed | None]:
        """Returns the input elements that the needed output elements depend on."""
        return [
            None if value is None or value.is_initializer() else ones(len(facts.shape(value)))
            for value in node.inputs
        ]

    def place(
        self, node: ir.Node, demanded: Sequence[Needed | None], facts: Facts
    ) -> list[Sets | None]:
        """Returns the product set that the operator makes of each output, None for none."""
        return [
            None if need is None else closure(need, facts.shape(value), facts.free[value])
            for value, need in zip(node.outputs, demanded, strict=True)
        ]

    def require(self, node: ir.Node, facts: Facts) -> list[Requirement | None]:
        """Returns what the operator reads of each input to make the kept sets, None for nothing."""
        kept = [
            elements(facts.kept[value], facts.shape(value)) if value in facts.kept else None
            for value in node.outputs
        ]
        return [
            None
            if value is None or need is None
            else Requirement(closure(need, facts.shape(value), facts.free[value]))
            for value, need in zip(node.inputs, self.dependence(node, kept, facts), strict=True)
        ]

    def reads(self, node: ir.Node, facts: Facts) -> list[Needed | None]:
        """Returns the input elements that are read where time does not matter."""
        return [
            None if requirement is None or value is None
            else elements(requirement.sets, facts.shape(value))
            for value, requirement in zip(node.inputs, self.require(node, facts), strict=True)
        ]  # fmt: skip

    def emit(self, node: ir.Node, build: Builder) -> list[ir.Value]:
        """Adds the narrowed operator; returns its outputs."""
        return build.copy(node, [build.read(node, index) for index in range(len(node.inputs))])

    def reason(self, node: ir.Node, facts: Facts) -> str:
        """Says why the operator reads channels that a mask removes."""
        return "it reads the whole tensor"


def ones(rank: int) -> Needed:
    """Returns `needed` of a tensor that is wanted whole."""
    return np.ones((1,) * rank, dtype=np.bool_)


def constant_operands(node: ir.Node, data: int = 0) -> bool:
    """Tells whether every input but one is absent or an initialiser."""
    return all(
        value is None or value.is_initializer()
        for index, value in enumerate(node.inputs)
        if index != data
    )


_TABLE: dict[str, list[Operator]] = {}
_OPAQUE = Operator()
_REFUSED = {
    "random": ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
               "Bernoulli", "Multinomial"),
    "a sequence": ("SequenceConstruct", "SequenceAt", "SequenceEmpty", "SequenceInsert",
                   "SplitToSequence", "ConcatFromSequence", "SequenceErase", "SequenceLength"),
    "optional data": ("Optional", "OptionalGetElement", "OptionalHasElement"),
    "text": ("StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
}  # fmt: skip

Entry = TypeVar("Entry", bound=Operator)


def register(*op_types: str) -> Callable[[type[Entry]], type[Entry]]:
    """Enters a class in the table under the operators' ONNX names; the first that applies wins."""

    def enter(entry: type[Entry]) -> type[Entry]:
        for op_type in op_types:
            _TABLE.setdefault(op_type, []).append(entry())
        return entry

    return enter


def operator(node: ir.Node) -> Operator:
    """Returns the entry for a node.

    An operator without an entry gets one that reads and makes whole tensors: exact, and its
    channels are reported as held.

    Raises:
        UnsupportedGraphError: The operator has no exact deterministic meaning here.
    """
    if node.domain != "":
        raise UnsupportedGraphError(
            f"{node.domain}::{node.op_type} (node {node.name!r}) is not a standard ONNX operator"
        )
    for what, op_types in _REFUSED.items():
        if node.op_type in op_types:
            raise UnsupportedGraphError(
                f"{node.op_type} (node {node.name!r}) is {what}, which cannot be compiled exactly"
            )
    entries = _TABLE.get(node.op_type, ())
    return next((entry for entry in entries if entry.applies(node)), _OPAQUE)
