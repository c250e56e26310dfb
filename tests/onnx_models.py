"""Small ONNX models and bundles for the tests of the target, the bundle and the engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mdprune_deploy.bundle import BundleWriter
from mdprune_deploy.emit.onnx_target import OnnxTarget
from mdprune_deploy.layout.nchwc import BlockedLayout, host_layout
from mdprune_deploy.manifest import DomainModel
from mdprune_deploy.report import CompileReport, DomainReport, Held, LayerFigures

BACKBONE = 5
"""Seed of the weights that all domains share unless `conv_net` is told another."""


class Builder:
    """Collects nodes and initialisers."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []

    def weight(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.val(name, dtype=tensor.dtype, shape=tensor.shape, const_value=tensor)
        self.weights.append(value)
        return value

    def node(self, op: str, inputs: list[ir.Value], name: str, **attributes: object) -> ir.Value:
        node = ir.node(op, inputs, attributes=attributes, name=name)  # type: ignore[arg-type]
        node.outputs[0].name = f"{name}_out"
        self.nodes.append(node)
        return node.outputs[0]

    def model(self, inputs: list[ir.Value], outputs: list[ir.Value], opset: int = 20) -> ir.Model:
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=self.weights,
            opset_imports={"": opset},
            name="net",
        )
        return ir.Model(graph, ir_version=13)


def conv_net(
    seed: int = 0, width: int = 32, batch: int | str = 1, classes: int = 5, outputs: int = 1
) -> ir.Model:
    """A residual net; the first convolution is the backbone's, all else is drawn from `seed`."""
    shared, rng, build = np.random.default_rng(BACKBONE), np.random.default_rng(seed), Builder()

    def conv(x: ir.Value, fan_in: int, filters: int, size: int, name: str) -> ir.Value:
        source = shared if name == "stem" else rng
        weight = source.standard_normal((filters, fan_in, size, size)) / np.sqrt(fan_in * size**2)
        bias = source.standard_normal(filters) * 0.1
        operands = [
            x,
            build.weight(f"{name}.weight", weight.astype(np.float32)),
            build.weight(f"{name}.bias", bias.astype(np.float32)),
        ]
        return build.node("Conv", operands, name, kernel_shape=[size, size], pads=[size // 2] * 4)

    x0 = ir.val("image", dtype=ir.DataType.FLOAT, shape=[batch, 3, 16, 16])
    stem = build.node("Relu", [conv(x0, 3, 32, 3, "stem")], "stem.relu")
    x = build.node("Relu", [conv(stem, 32, width, 3, "conv1")], "conv1.relu")
    x = conv(x, width, 32, 3, "conv2")
    x = build.node("Relu", [build.node("Add", [x, stem], "add")], "add.relu")
    pooled = build.node("GlobalAveragePool", [x], "pool")
    shape = build.weight("head.shape", np.array([0, -1], np.int64))
    flat = build.node("Reshape", [pooled, shape], "flatten")
    head = rng.standard_normal((classes, 32)).astype(np.float32)
    bias = build.weight("head.bias", np.zeros(classes, np.float32))
    logits = build.node("Gemm", [flat, build.weight("head.weight", head), bias], "head", transB=1)
    results = [logits, flat][:outputs]
    for value, size in zip(results, (classes, 32), strict=False):
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([batch, size])
    return build.model([x0], results)


def report_of(domains: Mapping[str, object]) -> CompileReport:
    """A report with figures of the right kind."""
    layer = LayerFigures("conv1.weight", "Conv", 20, 10, 12, 200, 120)
    held = Held("first", "x", 1, 2, "LayerNormalization", "", "it reads every channel")
    figures = DomainReport(20, 10, 12, 200, 120, 1e-6, 2e-7, (layer,))
    return CompileReport(dict.fromkeys(domains, figures), 15, 5, 4096, 8192, 1.5, (held,))


def write_bundle(
    path: Path,
    models: Mapping[str, ir.Model],
    *,
    overwrite: bool = False,
    layout: Callable[[], BlockedLayout | None] = host_layout,
) -> None:
    """Writes a bundle of the models; every domain but the last has labels."""
    with BundleWriter(path, overwrite) as writer:
        with OnnxTarget(writer.root, list(models), layout()) as target:
            entries = dict(_added(target, models))
        writer.finish(report_of(models), entries, {"mdprune": "0", "opset": "20"})


def _added(target: OnnxTarget, models: Mapping[str, ir.Model]) -> Iterator[tuple[str, DomainModel]]:
    for domain, model in models.items():
        labels = None if domain == list(models)[-1] else ["ant", "bee", "cat", "dog", "elk"]
        yield domain, target.add(domain, model, labels)


def image(batch: int = 1, seed: int = 0) -> np.ndarray:
    """An input of `conv_net`."""
    return np.random.default_rng(seed).standard_normal((batch, 3, 16, 16)).astype(np.float32)
