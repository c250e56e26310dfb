"""A small dense ONNX file for the tests of `pack --onnx`: convolution and batch norm unfolded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HALF = np.array([1, 0, 1, 0, 1, 0, 1, 0], bool)
"""Switches of the last convolution's eight input channels."""


def save(
    path: Path, nodes: list[onnx.NodeProto], tensors: Mapping[str, np.ndarray], *,
    opset: int = 17, shape: tuple[object, ...] = ("batch", 3, 8, 8), dtype: int = TensorProto.FLOAT,
    extra: tuple[str, ...] = (), output_type: int = TensorProto.FLOAT,
) -> Path:  # fmt: skip
    """Writes a model from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", output_type, [None] * 4)],
        [numpy_helper.from_array(a, name) for name, a in tensors.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in extra)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "stem/kernel": (8, 3, 3, 3), "bn/scale": (8,), "bn/shift": (8,), "bn/mean": (8,),
        "bn/var": (8,), "last/kernel": (4, 8, 1, 1), "last/bias": (4,),
    }  # fmt: skip
    found = {name: rng.standard_normal(s).astype(np.float32) / 3 for name, s in shapes.items()}
    return {**found, "bn/var": np.abs(found["bn/var"]) + 0.5}


def unfolded(middle: Callable[[], list[onnx.NodeProto]] | None = None) -> list[onnx.NodeProto]:
    """Conv, batch norm, ReLU, `middle` from `c` to `d`, Conv, global pool."""
    node = helper.make_node
    norm = [f"bn/{part}" for part in ("scale", "shift", "mean", "var")]
    return [
        node("Conv", ["x", "stem/kernel"], ["a"], "Stem", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", *norm], ["b"], "Norm"),
        node("Relu", ["b"], ["c"], "Relu"),
        *(middle() if middle else [node("Identity", ["c"], ["d"])]),
        node("Conv", ["d", "last/kernel", "last/bias"], ["e"], "Last"),
        node("GlobalAveragePool", ["e"], ["y"], "Pool"),
    ]
