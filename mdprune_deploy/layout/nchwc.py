"""The blocked activation layout (NCHWc) of ONNX Runtime on this host.

ONNX Runtime's optimiser rewrites convolutions to a layout whose channels come in blocks of c: 16
where the processor has AVX-512F, 8 on other x86-64. A model saved after that rewrite holds weights
in this order and is right only where c is the same, so c is asked of the runtime itself: its
reorder operator pads 4 channels to one block.
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

DOMAIN = "com.microsoft.nchwc"
_X86_NAMES = {16: "avx512", 8: "avx2"}


@dataclass(frozen=True)
class BlockedLayout:
    """What a ready-optimised model depends on.

    Attributes:
        isa: Name of the instruction set: `avx512`, `avx2`, or the machine's name elsewhere.
        block: Channels per block.
        onnxruntime: Version of the runtime, such as `1.32.0`; its blocked operators are internal.
    """

    isa: str
    block: int
    onnxruntime: str


@functools.cache
def host_layout() -> BlockedLayout | None:
    """Returns the layout of the installed ONNX Runtime here, or None where it has none."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            _reorder_model(), options, providers=["CPUExecutionProvider"]
        )
    except (ort_state.Fail, ort_state.InvalidGraph, ort_state.NotImplemented):
        return None  # the operator is not in this build
    (padded,) = session.run(None, {"x": np.zeros((1, 4, 1, 1), np.float32)})
    block = int(padded.shape[1])
    machine = platform.machine().lower()
    isa = _X86_NAMES.get(block, machine) if machine in ("x86_64", "amd64") else machine
    return BlockedLayout(isa, block, onnxruntime.__version__)


def _reorder_model() -> bytes:
    node = helper.make_node("ReorderInput", ["x"], ["y"], domain=DOMAIN, channels_last=0)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 1, 1])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    graph = helper.make_graph([node], "reorder", [x], [y])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized
