"""Which value of a graph is the weight of which layer.

A weight is an operand of a convolution or matrix product that no graph input reaches. It is an
initialiser, or computed from initialisers (weight normalisation, weight standardisation).
Transpositions between the two are looked through: a linear layer on more than two axes is exported
as `MatMul(x, Transpose(weight))`.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from .errors import CheckpointError
from .export import SCOPES

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Reader:
    """A product and the weight that it reads.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        operand: The node's input that is the weight.
        index: Which input that is.
        weight: The operand without the transpositions in front of it.
    """

    node: ir.Node
    operand: ir.Value
    index: int
    weight: ir.Value


def readers(graph: ir.Graph) -> list[Reader]:
    """Returns every product with a weight, in the graph's order."""
    constants = _constants(graph)
    found = []
    for node in graph:
        if node.op_type not in PRODUCTS or node.domain != "":
            continue
        for index in (1, 0) if node.op_type in ("Gemm", "MatMul") else (1,):
            operand = node.inputs[index] if index < len(node.inputs) else None
            if operand is not None and operand in constants:
                found.append(Reader(node, operand, index, _untransposed(operand)))
                break
    return found


def readers_of(site: str, candidates: Iterable[Reader]) -> list[Reader]:
    """Returns the readers whose weight is the named value or is computed from it."""
    return [
        reader
        for reader in candidates
        if any(value.name == site for value in with_ancestors(reader.operand))
    ]


def find_site(
    key: str,
    candidates: Sequence[Reader],
    parameters: Sequence[str],
    aliases: Mapping[str, str],
    *,
    node_names: bool = False,
) -> str:
    """Resolves a mask's key to the name of the value that is the weight.

    Args:
        key: A parameter's name or a module's; a module means its `weight`.
        candidates: The graph's readers.
        parameters: The parameters that the graph uses.
        aliases: Further names of parameters.
        node_names: Whether the key may also be the name of the node that reads the weight.

    Raises:
        CheckpointError: The key names no weight, or more than one.
    """
    known = {**{name: name for name in parameters}, **aliases}
    for name in (key, f"{key}.weight"):
        if target := known.get(name):
            if readers_of(target, candidates):
                return target
            raise CheckpointError(
                f"mask on {key!r}: no convolution or matrix product reads {name!r} as its weight"
            )
    for reader in candidates:
        if node_names and reader.node.name == key:
            return _weight_of_node(reader, candidates)
    module = key.removesuffix(".weight")
    computed = {
        str(reader.weight.name)
        for reader in candidates
        if reader.weight.producer() is not None and module_of(reader.node) == module
    }
    if len(computed) == 1:
        return computed.pop()
    if computed:
        raise CheckpointError(
            f"mask on {key!r}: module {module!r} computes {len(computed)} weights; name a parameter"
        )
    if key in known:
        raise CheckpointError(f"mask on {key!r}: the graph does not use this parameter")
    modules = {module_of(reader.node) for reader in candidates} - {""}
    names = {str(reader.node.name) for reader in candidates} if node_names else set()
    near = did_you_mean(key, {*known, *modules, *names})
    raise CheckpointError(f"mask on unknown weight {key!r}{near}")


def _weight_of_node(reader: Reader, candidates: Sequence[Reader]) -> str:
    weight = str(reader.weight.name)
    for other in candidates:
        if other is not reader and other.weight is reader.weight:
            raise CheckpointError(
                f"mask on {reader.node.name!r}: node {other.node.name!r} reads the same weight, "
                f"and a mask is on a weight: name {weight!r}"
            )
    return weight


def module_of(node: ir.Node) -> str:
    """Returns the name of the module that a node was exported from; empty for the root."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        # The second call of a module is called "name@1".
        return re.sub(r"@\d+", "", str(scopes[-2])) if len(scopes) > 1 else ""
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        return ""


def weight_axes(node: ir.Node, index: int, rank: int) -> tuple[int, int]:
    """Returns the output and the input axis of a product's weight operand.

    Args:
        node: Conv, ConvTranspose, Gemm or MatMul.
        index: Which input of the node is the weight.
        rank: The weight's number of axes.
    """
    if node.op_type == "Conv":
        return 0, 1
    if node.op_type == "ConvTranspose":
        return 1, 0
    transposed = node.attributes.get("transB" if index == 1 else "transA")
    flipped = transposed is not None and bool(transposed.as_int())
    first_is_out = flipped == (index == 1)
    return (rank - 2, rank - 1) if first_is_out else (rank - 1, rank - 2)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _constants(graph: ir.Graph) -> set[ir.Value]:
    constants = set(graph.initializers.values())
    for node in graph:
        if all(value is None or value in constants for value in node.inputs):
            constants.update(node.outputs)
    return constants


def _untransposed(value: ir.Value) -> ir.Value:
    while (node := value.producer()) is not None and node.op_type in ("Transpose", "Identity"):
        if not node.inputs or node.inputs[0] is None:
            break
        value = node.inputs[0]
    return value


def with_ancestors(value: ir.Value) -> Iterator[ir.Value]:
    """Yields a value and every value that it is computed from."""
    stack, seen = [value], {value}
    while stack:
        current = stack.pop()
        yield current
        node = current.producer()
        for parent in node.inputs if node is not None else ():
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
