"""The check of every compile: its inputs, its measure of error, and the node that it names."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import Network, mask

from mdprune_deploy import Domain, UsageError, VerificationError, reference
from mdprune_deploy.evaluate import constant_array, evaluate
from mdprune_deploy.passes.remove import remove
from mdprune_deploy.verify import (
    ARTIFACT_TOLERANCE,
    GRAPH_TOLERANCE,
    LARGE,
    Error,
    can_batch,
    cases,
    check,
    check_rounding,
    deviation,
    first_difference,
    first_rounding,
    largest_error,
)

INF, NAN = np.inf, np.nan


def network() -> tuple[Network, Domain]:
    n = Network()
    n.head(n.conv_bn_act(n.conv_bn_act("x", 8), 4))
    return n, Domain({n.layers[1].weight: mask([1, 1, 0, 0, 1, 0, 0, 1])})


def test_tolerances_are_the_contracts() -> None:
    assert (GRAPH_TOLERANCE, ARTIFACT_TOLERANCE) == (1e-9, 1e-5)


def test_reference_is_the_masked_dense_model() -> None:
    n, domain = network()
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    found = reference(n.checkpoint(d=domain), "d")(x)
    assert isinstance(found, np.ndarray) and found.dtype == np.float64
    np.testing.assert_allclose(found, n.expected(domain, x)[0], rtol=1e-12)


def test_reference_of_an_unknown_domain() -> None:
    n, domain = network()
    with pytest.raises(UsageError) as error:
        reference(n.checkpoint(d=domain, e=domain), "f")
    assert str(error.value) == "unknown domain 'f'; the checkpoint has d, e"


def test_reference_counts_its_inputs() -> None:
    n, domain = network()
    with pytest.raises(UsageError) as error:
        reference(n.checkpoint(d=domain), "d")()
    assert str(error.value) == "the model takes 1 inputs, 0 were given"


def test_cases_are_random_large_and_constant() -> None:
    n, domain = network()
    checkpoint = n.checkpoint(d=domain)
    found = {case.name: case for case in cases(checkpoint, "d")}
    assert list(found) == ["random", "large", "constant"]
    assert 0.5 < found["random"].feeds["x"].std() < 2.0
    assert 0.5 * LARGE < found["large"].feeds["x"].std() < 2.0 * LARGE
    assert (found["constant"].feeds["x"] == 1.0).all()
    for case in found.values():
        x = case.feeds["x"]
        assert (x == x.astype(np.float32)).all()  # the same in both precisions
        np.testing.assert_allclose(case.expected[0], n.expected(domain, x)[0], rtol=1e-12)
    assert can_batch(checkpoint, list(found.values()))


@pytest.mark.parametrize(
    ("expected", "actual", "figures"),
    [
        ([1.0, 2.0], [1.0, 2.0], (0.0, 0.0)),
        ([1.0, -4.0], [1.5, -4.0], (0.5, 0.125)),
        ([0.0, 0.0], [0.0, 0.0], (0.0, 0.0)),
        ([0.0, 0.0], [0.0, 1e-30], (1e-30, INF)),
        ([1.0, 2.0], [1.0], (INF, INF)),
        ([1.0, INF], [1.0, INF], (0.0, 0.0)),
        ([1.0, INF], [1.0, 5.0], (INF, INF)),
        ([1.0, INF], [1.0, -INF], (INF, INF)),
        ([1.0, NAN], [1.0, NAN], (0.0, 0.0)),
        ([1.0, NAN], [1.0, INF], (INF, INF)),
        ([1.0, 2.0], [1.0, NAN], (INF, INF)),
    ],
)
def test_deviation(
    expected: list[float], actual: list[float], figures: tuple[float, float]
) -> None:
    assert deviation(np.array(expected), np.array(actual)) == figures


@pytest.mark.parametrize("batched", [True, False])
def test_largest_error_is_found_in_any_case_and_output(batched: bool) -> None:
    n = Network()
    x = n.conv_bn_act("x", 4)
    n.head(x)
    n.head(n.conv(x, 4))
    domain = Domain()
    found = cases(n.checkpoint(d=domain), "d")

    def wrong(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs = n.expected(domain, feeds["x"])
        constant = (feeds["x"] == 1.0).all(axis=(1, 2, 3))
        outputs[1] = outputs[1] * (1.0 + 1e-3 * constant)[:, None]
        return outputs

    error = largest_error(found, wrong, batched=batched)
    assert error.case == "constant"
    assert error.relative == pytest.approx(1e-3, rel=1e-6)


def test_largest_error_takes_nan_for_the_worst() -> None:
    n, domain = network()
    found = cases(n.checkpoint(d=domain), "d")
    error = largest_error(found, lambda feeds: [np.full((1, 3), NAN)], batched=False)
    assert error.relative == INF


def test_check_names_domain_figures_and_node() -> None:
    check("d", "the graph", Error(1.0, 1e-9, "random"), 1e-9, None)
    with pytest.raises(VerificationError) as error:
        check("d", "the graph", Error(1.0, 0.25, "large"), 1e-9, "Conv 'c'")
    assert str(error.value) == (
        "domain 'd': the graph differs from the reference: relative error 0.25 on the large "
        "input, allowed 1e-09; the first node that differs is Conv 'c'"
    )
    with pytest.raises(VerificationError, match=r"allowed 1e-05$"):
        check("d", "the file", Error(1.0, NAN, "large"), 1e-5, None)


def test_first_difference_is_the_first() -> None:
    """A weight of the second of three layers is off: its node is named, not the last one."""
    n, domain = network()
    checkpoint = n.checkpoint(d=domain)
    removed = remove(checkpoint, "d")
    feeds = cases(checkpoint, "d")[0].feeds
    graph = removed.model.graph
    assert first_difference(checkpoint, "d", graph, removed.origins, feeds, 1e-9) is None
    node = [node for node in graph if node.op_type == "Conv"][1]
    weight = node.inputs[1]
    assert weight is not None
    weight.const_value = ir.tensor(constant_array(weight) * 1.01, name=weight.name)
    found = first_difference(checkpoint, "d", graph, removed.origins, feeds, 1e-9)
    made = next(iter(node.outputs[0].uses()))[0] if node.outputs[0].name not in removed.origins \
        else node  # fmt: skip
    assert found == f"{made.op_type} {made.name!r}"


def test_first_rounding_names_a_node_that_cancels() -> None:
    """(x + 1e6) - 1e6 loses seven digits in float32 and none that count in float64."""
    n = Network()
    x = n.conv_bn_act("x", 4)
    big = n.constant(1e6, "float32")
    for op, sign in (("Add", 1.0), ("Sub", -1.0)):
        x = n.node(op, [x, big], lambda run, x, sign=sign: x + sign * 1e6)
    n.head(x)
    model = remove(n.checkpoint(d=Domain()), "d").model
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 6, 6))}
    assert evaluate(model.graph, feeds)[0].shape == (1, 3)
    assert first_rounding(model, feeds).startswith("Sub ")


def test_rounding_that_numpy_does_not_make_is_named_too() -> None:
    """Nothing is off by the bound: the node that rounds most is the sum of a hundred products."""
    n = Network(shape=(100, 1, 1))
    n.outputs.append(n.act(n.conv("x", 1, 1)))
    model = remove(n.checkpoint(d=Domain()), "d").model
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 100, 1, 1))}
    check_rounding("d", "the file", Error(1.0, 1e-5, "large"), model, feeds)
    with pytest.raises(VerificationError) as error:
        check_rounding("d", "the file", Error(1.0, 2e-5, "large"), model, feeds)
    assert str(error.value) == (
        "domain 'd': the file differs from the reference: relative error 2e-05 on the large input, "
        "allowed 1e-05; its graph is exact in float64, so this is float32 rounding, of Conv 'conv3'"
    )
