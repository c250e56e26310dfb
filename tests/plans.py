"""Graphs of a few operators as plans, and what is expected of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import onnx_ir as ir
from native_interpreter import Interpreter

from mdprune_deploy.emit.native.plan import Plan, read_plan
from mdprune_deploy.emit.native.target import FOLDER, NativeTarget
from mdprune_deploy.engines import native
from mdprune_deploy.errors import BackendUnavailableError
from mdprune_deploy.evaluate import Array, evaluate

STORED = 2e-6
"""Relative to the largest output: constants are stored in float32, all else is in float64."""
RUNTIME = 1e-5
"""The contract's bound in float32."""
OPSET = 20


class Graph:
    """Writes a graph of float64; inputs and constants are float32 numbers."""

    def __init__(self, *shapes: Sequence[int], seed: int = 0, opset: int = OPSET) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.feeds: dict[str, Array] = {}
        self.inputs: list[ir.Value] = []
        for number, shape in enumerate(shapes):
            name = f"x{number}"
            self.feeds[name] = self.draw(*shape)
            self.inputs.append(ir.val(name, dtype=ir.DataType.DOUBLE, shape=ir.Shape(list(shape))))

    def draw(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(np.float32).astype(np.float64)

    def constant(self, array: object, kind: str = "") -> ir.Value:
        data = np.asarray(array)
        name = f"constant_{len(self.constants)}"
        tensor = ir.tensor(data, name=name)
        value = ir.val(name, dtype=tensor.dtype, shape=tensor.shape, const_value=tensor)
        self.constants.append(value)
        return value

    def weight(self, *shape: int) -> ir.Value:
        return self.constant(self.draw(*shape) / np.sqrt(np.prod(shape[1:], initial=1.0)))

    def integers(self, *values: int) -> ir.Value:
        return self.constant(np.asarray(values, dtype=np.int64))

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        return self.ops(kind, *inputs, **attributes)[0]

    def ops(
        self, kind: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: object
    ) -> Sequence[ir.Value]:
        name = f"{kind.lower()}_{len(self.nodes)}"
        node = ir.node(kind, list(inputs), attributes, num_outputs=outputs, name=name)  # type: ignore[arg-type]
        for position, value in enumerate(node.outputs):
            value.name = f"{name}_{position}"
        self.nodes.append(node)
        return list(node.outputs)

    def model(self, *outputs: ir.Value) -> ir.Model:
        graph = ir.Graph(
            self.inputs, list(outputs), nodes=self.nodes, initializers=self.constants,
            opset_imports={"": self.opset}, name="graph",
        )  # fmt: skip
        return ir.Model(graph, ir_version=10)


def written(model: ir.Model, feeds: dict[str, Array], folder: Path) -> Plan:
    """Writes a graph as the only domain of a bundle's native part."""
    with NativeTarget(folder, {"d": "d"}) as target:
        target.add("d", model, feeds, dynamic_batch=False)
        files = target.finish()
    return read_plan(folder / files["d"].plan)


def expect(graph: Graph, *outputs: ir.Value) -> Plan:
    """Holds the plan of a graph to its evaluation, by the interpreter and by the runtime."""
    model = graph.model(*outputs)
    wanted = evaluate(model.graph, graph.feeds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = written(model, graph.feeds, folder)
        found = Interpreter(plan, folder / FOLDER, np.float64)(*graph.feeds.values())
        _compare(wanted, found, STORED, "the interpreter")
        kinds = [(device, None) for device in devices()]
        for device, isa in [*kinds, *([("cpu", "reference")] if has_runtime() else [])]:
            run = run_plan(folder, plan, list(graph.feeds.values()), isa, device=device)
            _compare(wanted, run, RUNTIME, f"the runtime on {device}, {isa or 'fastest'}")
    return plan


CUDA_VARIABLE = "MDPRUNE_CUDA_LIBRARY"
CUDA_LIBRARY = Path(
    os.environ.get(
        CUDA_VARIABLE, Path(__file__).parents[1] / "build/test/tests/libmdprune_cuda_emulated.so"
    )
)
"""The kernels of the machine's GPU (`make test-gpu`), or those that `make test-cpp` emulates."""


def has_runtime() -> bool:
    """Tells whether the C++ library is here."""
    try:
        native.load_library()
    except BackendUnavailableError:
        return False
    return True


def devices() -> tuple[str, ...]:
    """Returns where the C++ library runs plans here: nowhere if it is not built."""
    if not has_runtime():
        return ()
    return ("cpu", "cuda") if CUDA_LIBRARY.exists() else ("cpu",)


def run_plan(
    folder: Path,
    plan: Plan,
    inputs: Sequence[Array],
    isa: str | None,
    domain: str = "d",
    device: str = "cpu",
) -> list[Array]:
    """Runs a bundle's plan with the C++ library."""
    with mock.patch.dict(os.environ, {CUDA_VARIABLE: str(CUDA_LIBRARY)}):
        context = native.Context(native.Model(folder), domain, 1, isa, device=device)
    outputs = [np.full(shape, np.nan, np.float32) for shape in context.output_shapes]
    context.run(1, [np.ascontiguousarray(x, dtype=np.float32) for x in inputs], outputs)
    return outputs


def _compare(wanted: Sequence[Array], found: Sequence[Array], bound: float, who: str) -> None:
    assert len(wanted) == len(found)
    for want, have in zip(wanted, found, strict=True):
        assert want.shape == have.shape, f"{who}: shape {have.shape}, not {want.shape}"
        scale = max(float(np.abs(want).max(initial=0.0)), 1e-30)
        error = float(np.abs(have.astype(np.float64) - want).max(initial=0.0)) / scale
        assert error <= bound, f"{who}: relative error {error:.1e}"
