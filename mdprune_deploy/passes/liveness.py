"""What is constant, and what the outputs depend on: one sweep forwards, one backwards."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .elements import Known, Needed, compress, live
from .facts import Facts
from .operators import operator
from .operators.base import ones
from .trace import Trace


def analyze(graph: ir.Graph, trace: Trace) -> Facts:
    """Finds the constant elements, the narrowable axes and the needed elements of a graph."""
    facts = Facts(trace)
    for value in graph.inputs:
        rank = len(facts.shape(value))
        facts.known[value] = live(rank)
        facts.free[value] = frozenset(range(1, min(rank, 2))) - facts.varying(value)
    for node in graph:
        entry = operator(node)
        for value, known in zip(node.outputs, entry.known(node, facts), strict=False):
            facts.known[value] = _same_in_batch(known, facts.varying(value))
        facts.free.update(zip(node.outputs, entry.free(node, facts), strict=False))
    _propagate_need(graph, facts)
    return facts


def _same_in_batch(known: Known, varying: frozenset[int]) -> Known:
    """Forgets what differs along an axis that follows the batch: its length is not known."""
    for axis in varying:
        if known.shape[axis] > 1:
            first = np.take(known, [0], axis=axis)
            known = np.where((known == first).all(axis=axis, keepdims=True), first, np.nan)
    return known


def _propagate_need(graph: ir.Graph, facts: Facts) -> None:
    for value in graph.outputs:
        facts.needed[value] = ones(len(facts.shape(value)))
    for node in reversed(list(graph)):
        needed: list[Needed | None] = []
        for value in node.outputs:
            need = facts.needed.get(value)
            if need is not None:
                need = need & np.isnan(facts.known_of(value))
            needed.append(need if need is not None and need.any() else None)
        if all(need is None for need in needed):
            continue
        for operand, need in zip(
            node.inputs, operator(node).dependence(node, needed, facts), strict=True
        ):
            if operand is None or need is None or operand.is_initializer():
                continue
            need = need & np.isnan(facts.known_of(operand))
            before = facts.needed.get(operand)
            facts.needed[operand] = compress(need if before is None else before | need)
