"""The ready-optimised variant of a domain: mapped by ONNX Runtime, not copied.

Loading a stock model, ONNX Runtime optimises the graph and, on the way, copies every convolution
weight into its blocked layout: time and private memory, per domain and per process. Here that is
done once, at compile time: the optimised model is saved, and its weights, already in the blocked
order, move to the shared store on page boundaries. A session that loads it with optimisation
disabled maps them from the file, so that processes share one copy and untouched pages cost nothing.

Prepacking would copy again. It is left out unless a matrix product has several rows: measured with
version 1.32, one thread, prepacking changes a product with one row and plain convolutions by less
than 6 % (768x768 by 196 rows: 5 %), but a product with 8 rows takes 1.8 times as long without it.
"""

from __future__ import annotations

import errno
import math
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from mdprune_deploy.emit.blocks import keep_selections_blocked
from mdprune_deploy.emit.external import write_model
from mdprune_deploy.errors import UnsupportedGraphError
from mdprune_deploy.layout.nchwc import BlockedLayout
from mdprune_deploy.layout.store import StoreWriter
from mdprune_deploy.manifest import MappedVariant

_PREPACKED = ("MatMul", "Gemm", "ConvTranspose", "LSTM", "GRU")
_LARGE_WEIGHT = 1024
"""Elements from which on a weight's packing is worth a thought."""


def write_mapped(
    portable: onnx.ModelProto,
    portable_path: Path,
    store: StoreWriter,
    domain: str,
    layout: BlockedLayout,
) -> MappedVariant:
    """Writes `STEM.ISA.onnx` next to the portable model `STEM.onnx`.

    Args:
        portable: The portable model, as written.
        portable_path: Where it lies.
        store: The store that it names; takes the weights of the blocked layout too.
        domain: The domain that names them.
        layout: The layout of the installed ONNX Runtime on this host.

    Returns:
        The variant; its path is the file's name alone.

    Raises:
        OSError: A file cannot be written.
        UnsupportedGraphError: ONNX Runtime does not take the portable model.
    """
    store.flush()
    path = portable_path.with_suffix(f".{layout.isa}.onnx")
    with tempfile.TemporaryDirectory(dir=portable_path.parent, prefix=".optimised-") as folder:
        model = ir.load(_optimise(portable_path, Path(folder), domain))
        keep_selections_blocked(model, layout.block)
        _canonicalise(model.graph)
        used = {"", *(node.domain for node in model.graph.all_nodes())}
        for name in set(model.opset_imports) - used:
            del model.opset_imports[name]
        write_model(model, path, store, domain)
    return MappedVariant(
        file=path.name,
        isa=layout.isa,
        block=layout.block,
        onnxruntime=layout.onnxruntime,
        prepacking=_profits_from_prepacking(portable),
    )


def _canonicalise(graph: ir.Graph) -> None:
    """Orders and names the nodes by the graph's structure alone.

    ONNX Runtime numbers the reorderings that it inserts in the order of their addresses.
    """
    ordered: dict[ir.Node, None] = {}
    for output in graph.outputs:
        stack = [output.producer()]
        while stack:
            node = stack[-1]
            if node is None or node in ordered:
                stack.pop()
                continue
            waiting = [
                producer
                for value in node.inputs
                if value is not None
                and (producer := value.producer()) is not None
                and producer not in ordered
            ]
            if waiting:
                stack.append(waiting[0])
            else:
                ordered[node] = None
                stack.pop()
    for node in list(graph):
        graph.remove(node)
    for index, node in enumerate(ordered):
        graph.append(node)
        node.name = f"{node.op_type}_{index}"
        for position, value in enumerate(node.outputs):
            if value.name and not value.is_graph_output():
                value.name = f"{node.name}_{position}"


_REFUSALS = (ort_state.Fail, ort_state.InvalidGraph, ort_state.NotImplemented)


def _optimise(source: Path, folder: Path, domain: str) -> Path:
    """Saves what ONNX Runtime makes of a model for this host, weights in a file of their own."""
    target = folder / "optimised.onnx"
    try:
        _open_and_save(source, target)
    except _REFUSALS as error:
        _explain(source, domain)
        full = "ONNX Runtime could not save the optimised model; is the disk full?"
        raise OSError(errno.ENOSPC, full) from error
    return target


def _open_and_save(source: Path, target: Path | None) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # saving warns that the model is for this hardware only
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    if target is not None:
        options.optimized_model_filepath = str(target)
        key = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{key}_file_name", f"{target.stem}.bin")
        options.add_session_config_entry(f"{key}_min_size_in_bytes", "1024")
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _explain(source: Path, domain: str) -> None:
    """Raises if ONNX Runtime refuses the model itself, whether or not it can save another."""
    try:
        _open_and_save(source, None)
    except _REFUSALS as error:
        raise UnsupportedGraphError(
            f"domain {domain!r}: ONNX Runtime {onnxruntime.__version__} does not take the emitted "
            f"model: {error}"
        ) from error


def _profits_from_prepacking(model: onnx.ModelProto) -> bool:
    """Whether an operator that repacks its weights does more with them than read them once.

    Axes of unknown size, such as a batch, count as 1: the figures of a bundle are for batch 1.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    large = {t.name for t in graph.initializer if math.prod(t.dims) >= _LARGE_WEIGHT}
    shapes = {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info)
    }
    for node in graph.node:
        if node.op_type not in _PREPACKED or large.isdisjoint(node.input[1:]):
            continue
        rows = _rows(node, shapes.get(node.input[0], []))
        if rows != 1:
            return True
    return False


def _rows(node: onnx.NodeProto, shape: list[int]) -> int | None:
    """Rows that a matrix product multiplies with its weight; None where that is unknown."""
    if node.op_type not in ("MatMul", "Gemm") or not shape:
        return None
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return shape[1] if transposed else math.prod(shape[:-1])
