"""Selections of whole blocks stay in ONNX Runtime's blocked layout.

The runtime leaves its layout for every selection of channels: ReorderOutput, Gather or Slice,
ReorderInput. A blocked tensor has the sizes of the plain one, and its block b of c channels fills
exactly the memory of plain channels b c to b c + c - 1, for every batch item. So a selection of
whole blocks along the channel axis, applied to the blocked tensor as it is, copies those blocks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

_NCHWC = "com.microsoft.nchwc"


def keep_selections_blocked(model: ir.Model, block: int) -> int:
    """Removes the reorderings around selections of whole blocks, in place.

    Args:
        model: A model that ONNX Runtime optimised.
        block: Channels per block of its layout.

    Returns:
        How many selections stay in the layout.
    """
    changed = 0
    graph = model.graph
    for node in list(graph):
        chosen = _selected_channels(node)
        source = node.inputs[0] if node.inputs else None
        if chosen is None or source is None:
            continue
        reorder = source.producer()
        if reorder is None or not _is(reorder, "ReorderOutput"):
            continue
        output = node.outputs[0]
        readers = [reader for reader, _ in output.uses()]
        if output.is_graph_output() or not all(_is(reader, "ReorderInput") for reader in readers):
            continue
        if _channels_last(reorder) or any(_channels_last(reader) for reader in readers):
            continue
        channels = reorder.attributes["channels"].as_int()
        if channels % block or not _whole_blocks(chosen, block):
            continue
        node.replace_input_with(0, reorder.inputs[0])
        for reader in readers:
            reader.outputs[0].replace_all_uses_with(output)
            graph.remove(reader, safe=True)
        if not source.uses() and not source.is_graph_output():
            graph.remove(reorder, safe=True)
        changed += 1
    return changed


def _is(node: ir.Node, op_type: str) -> bool:
    return node.domain == _NCHWC and node.op_type == op_type


def _channels_last(node: ir.Node) -> bool:
    attribute = node.attributes.get("channels_last")
    return attribute is not None and bool(attribute.as_int())


def _selected_channels(node: ir.Node) -> npt.NDArray[np.int64] | None:
    """Returns the channels that a Gather or Slice with constant operands selects, or None."""
    if node.domain != "" or node.op_type not in ("Gather", "Slice"):
        return None
    operands = [
        None if value is None or value.const_value is None else value.const_value.numpy()
        for value in node.inputs[1:]
    ]
    if any(operand is None for operand in operands):
        return None
    if node.op_type == "Gather":
        axis = node.attributes.get("axis")
        indices = operands[0]
        if axis is None or axis.as_int() != 1 or indices is None or indices.ndim != 1:
            return None
        return indices.astype(np.int64)
    if len(operands) != 3 or any(operand is None or operand.size != 1 for operand in operands):
        return None
    start, end, axis_of = (int(operand.reshape(-1)[0]) for operand in operands if
                           operand is not None)  # fmt: skip
    return np.arange(start, end) if axis_of == 1 and 0 <= start < end < 1 << 31 else None


def _whole_blocks(indices: npt.NDArray[np.int64], block: int) -> bool:
    if len(indices) == 0 or len(indices) % block:
        return False
    rows = indices.reshape(-1, block)
    return bool((rows[:, 0] % block == 0).all() and (rows == rows[:, :1] + np.arange(block)).all())
