"""Masks and own parameters in the graph: the masked dense model by the contract's definition."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
import torch
from checks import compile_exactly
from graphs import Network, mask
from onnx import helper

from mdprune_deploy import CheckpointError, Domain, Mask, UnsupportedGraphError
from mdprune_deploy.evaluate import evaluate
from mdprune_deploy.passes.bind import bind
from mdprune_deploy.weight_parts import evaluated_shape, weight_part
from mdprune_deploy.weights import Reader

X = np.random.default_rng(0).standard_normal((2, 3, 6, 6))


def assert_bound(n: Network, domain: Domain) -> None:
    """Compares the bound graph with PyTorch."""
    graph = bind(n.checkpoint(d=domain), "d").graph
    for want, have in zip(n.expected(domain, X), evaluate(graph, {"x": X}), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-12, atol=1e-12 * np.abs(want).max())


def chain() -> Network:
    n = Network()
    x = n.conv_bn_act("x", 8)
    x = n.conv_transpose(n.conv(x, 4, groups=2), 8, groups=4)
    n.head(x)
    return n


@pytest.mark.parametrize("site", ["weight", "output"])
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_output_masks(layer: int, site: str) -> None:
    n = chain()
    on = [i % 3 > 0 for i in range(n.layers[layer].filters)]
    assert_bound(n, Domain({n.layers[layer].weight: mask(on, "out", site)}))


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_input_masks_of_plain_and_grouped_layers(layer: int) -> None:
    n = chain()
    on = [i % 3 > 0 for i in range(n.layers[layer].channels)]
    assert_bound(n, Domain({n.layers[layer].weight: mask(on)}))


def test_several_masks_multiply() -> None:
    n = chain()
    masks = [mask([1, 1, 0, 1, 1, 1, 1, 1]), mask([1, 0, 1, 1, 1, 1, 1, 0]),
             mask([1, 0, 1, 1], "out"), mask([1, 1, 0, 1], "out", "output")]  # fmt: skip
    assert_bound(n, Domain({n.layers[1].weight: masks}))


def test_scores_are_on_above_the_threshold() -> None:
    n = chain()
    scores = torch.tensor([0.1, 0.5, 0.50001, -1.0, 0.9, 0.5, 0.0, 2.0])
    assert_bound(n, Domain({n.layers[1].weight: Mask(scores, "in", threshold=0.5)}))


def test_own_parameters_replace_the_backbones() -> None:
    n = chain()
    own = {name: torch.randn(array.shape) for name, array in n.parameters.items()
           if not name.endswith("var")}  # fmt: skip
    assert_bound(n, Domain({n.layers[1].weight: mask([1, 0] * 4)}, own))


def test_uses_name_what_is_private() -> None:
    n = chain()
    first, second = n.layers[0].weight, n.layers[1].weight
    same = torch.from_numpy(n.parameters[second])
    domain = Domain(state={first: torch.randn(8, 3, 3, 3), second: same})
    graph = bind(n.checkpoint(d=domain), "d").graph
    uses = {node.meta["weight"].name: node.meta["weight"].version
            for node in graph if "weight" in node.meta}  # fmt: skip
    assert uses[first].startswith(f"{first}:") and len(uses[first]) == len(first) + 65
    assert uses[second] == ""


@pytest.mark.parametrize("first", [True, False])
def test_output_mask_of_a_matrix_product(first: bool) -> None:
    """The channels of `W @ x` are its rows, those of `x @ W` its columns; both have five."""
    n = Network(shape=(5, 5))
    name = n.parameter("w", n.rng.standard_normal((5, 5)))
    order = [name, "x"] if first else ["x", name]
    graph_output = n.fresh("matmul")

    n.nodes.append(helper.make_node("MatMul", order, [graph_output], name=graph_output))
    on = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]).double()

    def function(run: object, x: torch.Tensor) -> torch.Tensor:
        w = n.value(run, name)  # type: ignore[arg-type]
        return (w @ x) * on[:, None] if first else (x @ w) * on

    n.add_step(function, ["x"], graph_output)
    n.outputs.append(graph_output)
    domain = Domain({name: mask(on.tolist(), "out", "output")})
    checkpoint = n.checkpoint(d=domain)
    checkpoint.sites[name] = name
    x = np.random.default_rng(0).standard_normal((2, 5, 5))
    (have,) = evaluate(bind(checkpoint, "d").graph, {"x": x})
    np.testing.assert_allclose(have, n.expected(domain, x)[0], rtol=1e-12, atol=1e-12)


def test_masked_output_keeps_its_name_and_clashes_with_none() -> None:
    """Two heads, one masked at its output; a name of the graph ends like the mask's own."""
    n = chain()
    n.head("x")
    weight, output = n.layers[-1].weight, n.outputs[-1]
    n.head(n.node("Relu", ["x"], lambda run, x: torch.relu(x)))
    domain = Domain({weight: mask([1, 0, 1], "out", "output")})
    checkpoint = n.checkpoint(d=domain)
    graph = bind(checkpoint, "d").graph
    assert [value.name for value in graph.outputs] == n.outputs
    assert_bound(n, domain)
    made = [value.name for node in graph for value in node.outputs]
    names = [*made, *graph.initializers, *(value.name for value in graph.inputs)]
    assert len(set(names)) == len(names)
    assert output in names
    compile_exactly(n, domain)


def test_checkpoint_stays_as_it_was() -> None:
    n = chain()
    checkpoint = n.checkpoint(d=Domain({n.layers[1].weight: mask([1, 0] * 4)}))
    before = ir.to_proto(checkpoint.model).SerializeToString(deterministic=True)
    bind(checkpoint, "d")
    assert ir.to_proto(checkpoint.model).SerializeToString(deterministic=True) == before


def test_mask_without_a_reader_is_refused() -> None:
    n = chain()
    domain = Domain({"bn": mask([1] * 8)})
    checkpoint = n.checkpoint(d=domain)
    checkpoint.sites["bn"] = "bn3.weight"
    with pytest.raises(CheckpointError) as error:
        bind(checkpoint, "d")
    assert str(error.value) == "mask on 'bn': no layer of the graph reads it as its weight"


def test_subgraphs_are_refused_by_name() -> None:
    n = chain()
    checkpoint = n.checkpoint(d=Domain())
    body = ir.Graph([], [], nodes=[], name="body")
    condition = checkpoint.model.graph.inputs[0]
    node = ir.node("If", [condition], {"then_branch": body, "else_branch": body}, name="branch")
    checkpoint.model.graph.append(node)
    with pytest.raises(UnsupportedGraphError) as error:
        bind(checkpoint, "d")
    assert str(error.value) == (
        "If (node 'branch') holds a subgraph; control flow that depends on data cannot be compiled"
    )


@pytest.mark.parametrize(
    ("op", "attributes", "index", "shape", "axis", "on", "expected"),
    [
        ("Conv", {}, 1, (2, 3, 1), "in", [1, 0, 1], [[1, 0, 1]]),
        ("Conv", {}, 1, (2, 3, 1), "out", [1, 0], [[1], [0]]),
        ("Conv", {"group": 2}, 1, (4, 2, 1), "in", [1, 0, 0, 1], [[1, 0], [1, 0], [0, 1], [0, 1]]),
        ("ConvTranspose", {}, 1, (2, 3, 1), "in", [1, 0], [[1], [0]]),
        ("ConvTranspose", {"group": 2}, 1, (4, 1, 1), "out", [1, 0], [[1], [1], [0], [0]]),
        ("Gemm", {"transB": 1}, 1, (2, 3), "in", [1, 0, 1], [[1, 0, 1]]),
        ("Gemm", {}, 1, (3, 2), "in", [1, 0, 1], [[1], [0], [1]]),
        ("MatMul", {}, 1, (3, 2), "out", [1, 0], [[1, 0]]),
        ("MatMul", {}, 0, (3, 2), "out", [1, 0, 1], [[1], [0], [1]]),
    ],
)
def test_factor_of_a_mask(
    op: str, attributes: dict[str, int], index: int, shape: tuple[int, ...], axis: str,
    on: Sequence[int], expected: Sequence[Sequence[int]],
) -> None:  # fmt: skip
    node = ir.node(op, [ir.Value(name="a"), ir.Value(name="b")], attributes)
    weight = node.inputs[index]
    weight.const_value = ir.tensor(np.ones(shape))
    part = weight_part(Reader(node, weight, index, weight), weight.name, evaluated_shape)
    factor = part.factor(axis, np.asarray(on, dtype=np.float64))
    flat = np.broadcast_to(factor, shape).reshape(shape[0], shape[1], -1)[:, :, 0]
    want = np.broadcast_to(np.asarray(expected, dtype=np.float64), shape[:2])
    np.testing.assert_array_equal(flat, want)
