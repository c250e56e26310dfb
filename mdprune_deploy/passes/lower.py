"""From the narrowed float64 graph to the one that is emitted: norms folded, float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules.common import (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)

from ..evaluate import constant_array

_RULES = (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)


def fold_batch_norms(model: ir.Model) -> None:
    """Folds each batch norm into the product before it, where nothing else reads that, in place.

    The weights of this graph belong to one domain, so its batch norms may change them.
    """
    RewritePass(_RULES)(model)
    common.RemoveUnusedNodesPass()(model)


def to_float32(model: ir.Model) -> ir.Model:
    """Returns a copy in float32, ready to be written."""
    lowered = model.clone()
    graph = lowered.graph
    for value in [*graph.inputs, *graph.outputs]:
        if value.dtype == ir.DataType.DOUBLE:
            value.dtype = ir.DataType.FLOAT
    for value in graph.initializers.values():
        array = constant_array(value)
        if array.dtype == np.float64:
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
        value.shape = ir.Shape(array.shape)
        value.dtype = None if value.const_value is None else value.const_value.dtype
    for node in graph:
        for name, attr in list(node.attributes.items()):
            if name == "to" and attr.value == int(ir.DataType.DOUBLE):
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
            elif attr.type == ir.AttributeType.TENSOR:
                array = attr.as_tensor().numpy()
                if array.dtype == np.float64:
                    narrow = ir.tensor(array.astype(np.float32))
                    node.attributes[name] = ir.AttrTensor(name, narrow)
    return lowered
