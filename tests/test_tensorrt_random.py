"""Any network of the building blocks, any masks, every layer that can be a plug-in is one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from any_network import any_network
from checks import inputs_for, rounding
from graphs import Drawn

from mdprune_deploy import CheckpointError, UnsupportedGraphError
from mdprune_deploy.emit.native.target import FOLDER as NATIVE
from mdprune_deploy.emit.native.target import NativeTarget
from mdprune_deploy.emit.tensorrt import choose as choosing
from mdprune_deploy.emit.tensorrt.evaluate import runner
from mdprune_deploy.emit.tensorrt.target import TensorrtTarget
from mdprune_deploy.passes.remove import remove_for, shared_orders
from mdprune_deploy.passes.trace import example_feeds

STORED = 2e-5
"""Relative to the largest output: constants are rounded to float32, and sums may cancel."""


@any_network(examples=40, nightly=1000)
def test_every_model_is_exact(drawn: Drawn) -> None:
    checkpoint = drawn.network.checkpoint(**drawn.domains)
    names = list(drawn.domains)
    stems = {name: name for name in names}
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
        NativeTarget(Path(folder), stems) as native,
        TensorrtTarget(Path(folder), stems) as target,
    ):
        patch.setattr(choosing, "_decide", lambda weight, saved, moved: (True, "test"))
        try:
            orders = shared_orders(checkpoint) if len(names) > 1 else {}
        except CheckpointError:  # a domain's masks cut every path
            return
        feeds = {key: array[:1] for key, array in example_feeds(checkpoint).items()}
        x = inputs_for(drawn.network.example.shape)
        for name in names:
            expected = drawn.network.expected(drawn.domains[name], x)
            outputs = zip(drawn.network.outputs, expected, strict=True)
            shapes = {value: (None, *array.shape[1:]) for value, array in outputs}
            try:
                graphs = remove_for(checkpoint, name, ["native", "onnx"], orders)
                native.add(name, graphs["native"].model, feeds, dynamic_batch=True)
            except (CheckpointError, UnsupportedGraphError):
                return
            for graph in graphs.values():  # as an export states them
                for value in graph.model.graph.outputs:
                    value.type = ir.TensorType(ir.DataType.DOUBLE)
                    value.shape = value.shape or ir.Shape(shapes[str(value.name)])
            target.add(name, graphs["onnx"].model, graphs["native"].model, feeds)
        native.finish()
        for name, files in target.finish(native.placed, native.layout).items():
            expected = drawn.network.expected(drawn.domains[name], x)
            bound = max(STORED, 2 * rounding(checkpoint, name, expected, x))
            for model in files.models:
                run = runner(Path(folder) / model.file, Path(folder) / NATIVE, model.precision)
                found = run({"x": x})
                if model.precision == "fp16":  # its range is the network's; what it says is whole
                    assert [y.shape for y in found] == [y.shape for y in expected]
                    continue
                for want, have in zip(expected, found, strict=True):
                    scale = max(np.abs(want).max(initial=0.0), 1e-30)
                    assert np.abs(have - want).max(initial=0.0) <= bound * scale, model.file
