import copy

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from mdprune_deploy.errors import UnsupportedGraphError
from mdprune_deploy.evaluate import evaluate
from mdprune_deploy.export import EXPORT_TOLERANCE, OPSET, SCOPES, export

X = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1))


class Chunked(nn.Module):
    """Splits channels; a buffer that is not persistent and one that nothing uses."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("scale", torch.full((2, 1, 1), 0.5), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        left, right = (x + (torch.arange(4.0) * 2)[:, None, None]).chunk(2, 1)
        return self.dropout(self.conv(left * right * self.scale)).flatten(1)


def operators(exported) -> list[str]:
    return [node.op_type for node in exported.model.graph]


def agree(exported, network: nn.Module, *inputs: torch.Tensor) -> None:
    with torch.no_grad():
        expected = network.eval()(*inputs)
    feeds = {
        value.name: x.numpy() for value, x in zip(exported.model.graph.inputs, inputs, strict=True)
    }
    expected = expected if isinstance(expected, tuple) else (expected,)
    for left, right in zip(evaluate(exported.model.graph, feeds), expected, strict=True):
        # float32 rounding of sums of a few hundred products of size 1 to 10
        np.testing.assert_allclose(left, right.numpy(), rtol=1e-5, atol=1e-4)


def test_the_graph_is_tidy_and_keeps_the_parameters_names():
    network = Chunked()
    exported = export(network, X)
    graph = exported.model.graph
    assert exported.parameters == ("conv.weight", "conv.bias", "scale")
    assert exported.aliases == {"steps": ""}
    assert "Split" in operators(exported)
    assert not {"SplitToSequence", "SequenceAt", "Constant", "Dropout", "Identity", "Range"} & {
        *operators(exported)
    }
    assert exported.model.opset_imports == {"": OPSET}
    assert all(value.const_value is not None for value in graph.initializers.values())
    onnx.checker.check_model(ir.to_proto(exported.model), full_check=True)
    agree(exported, network, X)


def test_only_module_names_are_left_of_the_metadata():
    exported = export(Chunked(), X)
    for node in exported.model.graph:
        assert set(node.metadata_props) <= {SCOPES}
        assert node.doc_string is None
    (convolution,) = [node for node in exported.model.graph if node.op_type == "Conv"]
    assert convolution.metadata_props[SCOPES].startswith("['', 'conv'")
    proto = ir.to_proto(exported.model)
    del proto.graph.initializer[:]
    assert "/" not in str(proto)
    assert ".py" not in str(proto)


def test_shapes_are_kept_for_inputs_and_parameters_only():
    graph = export(Chunked(), X).model.graph
    outputs = {value for node in graph for value in node.outputs}
    assert all(value.shape is None for value in outputs - set(graph.outputs))
    assert [list(value.shape) for value in graph.inputs] == [["batch", 4, 6, 6]]
    assert [len(value.shape) for value in graph.outputs] == [2]


def test_the_batch_is_dynamic_from_an_example_of_one():
    network = Chunked()
    exported = export(network, X)
    assert exported.dynamic_batch
    assert exported.examples["x"].shape == (1, 4, 6, 6)
    for batch in (1, 2, 5):
        agree(exported, network, torch.randn(batch, 4, 6, 6))


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(1, 8, 18) * 2


class SpecialBatch(nn.Module):
    """Treats a batch of one differently: no one graph holds for all batches."""

    def forward(self, x):
        return x.mean((2, 3)) if x.shape[0] == 1 else x.amax((2, 3))


@pytest.mark.parametrize(
    ("network", "batch"), [(FixedBatch(), 1), (SpecialBatch(), 1), (SpecialBatch(), 3)]
)
def test_a_model_without_a_dynamic_batch_is_exported_for_its_example(network, batch):
    x = X.repeat(batch, 1, 1, 1)
    exported = export(network, x)
    assert not exported.dynamic_batch
    assert list(exported.model.graph.inputs[0].shape) == [batch, 4, 6, 6]
    agree(exported, network, x)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, image, index):
        return image.mean((2, 3)) + self.table(index), image.amax((2, 3))


def test_several_inputs_and_outputs_keep_their_order():
    network = TwoInputs()
    exported = export(network, (X, torch.tensor([3])))
    assert list(exported.examples) == ["image", "index"]
    assert exported.examples["index"].dtype == np.int64
    assert exported.dynamic_batch
    agree(exported, network, torch.randn(3, 4, 6, 6), torch.tensor([0, 6, 2]))


class Shadowing(nn.Module):
    """Parameters called like operators, inputs and the exporter's own names."""

    def __init__(self):
        super().__init__()
        self.relu = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.val_0 = nn.Parameter(torch.randn(4, 1, 1))
        self.x = nn.Parameter(torch.randn(4, 1, 1))
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return torch.relu(self.conv(x) * self.x) * self.relu[:, None, None] + self.val_0


def test_names_that_clash_stay_with_the_parameters():
    network = Shadowing()
    exported = export(network, X)
    state = network.state_dict()
    assert set(exported.parameters) == set(state)
    for name, tensor in state.items():
        stored = exported.model.graph.initializers[name].const_value.numpy()
        assert np.array_equal(stored, tensor.numpy())
    graph = exported.model.graph
    names = [v.name for v in [*graph.inputs, *graph.initializers.values()]]
    names += [v.name for node in graph for v in node.outputs]
    assert len(names) == len(set(names))
    agree(exported, network, X)


def test_the_users_model_is_left_as_it_was():
    network = Chunked().train()
    before = copy.deepcopy(network.state_dict())
    exported = export(network, X)
    assert network.training
    assert network.conv.weight.requires_grad
    assert "Dropout" not in operators(exported)
    with torch.no_grad():
        network.conv.weight.zero_()
    stored = exported.model.graph.initializers["conv.weight"].const_value.numpy()
    assert np.array_equal(stored, before["conv.weight"].numpy())


def test_the_old_weight_norm_can_be_copied_and_exported():
    with pytest.warns(FutureWarning, match="weight_norm"):
        network = nn.utils.weight_norm(nn.Conv2d(4, 4, 3))
    network(X)  # leaves a tensor with a gradient on the module
    exported = export(network, X)
    assert {"weight_g", "weight_v"} <= set(exported.parameters)
    agree(exported, network, X)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Untranslatable(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Noisy(nn.Module):
    """Random by less than rounding in some networks is."""

    def forward(self, x):
        return x + 0.01 * torch.rand_like(x)


class Failing(nn.Module):
    def forward(self, x):
        raise ValueError("not today")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Branching(), "the model cannot be exported: Could not guard on data-dependent expression"),
        (Untranslatable(), "the model cannot be exported: No ONNX function found for .*svd"),
        (Random(), "differs from the model's by .*; a network that is random in eval mode"),
        (Noisy(), "differs from the model's by .*; a network that is random in eval mode"),
        (Failing(), "the model cannot be exported: not today"),
    ],
)
def test_a_refused_model_says_why_in_one_line(network, message, capfd):
    with pytest.raises(UnsupportedGraphError, match=message) as caught:
        export(network, X)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_nothing_is_printed_or_warned(capfd, recwarn):
    export(Chunked(), X)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert not list(recwarn)


def test_a_translation_that_computes_something_else_is_refused(monkeypatch):
    def wrong(graph, feeds):
        return [array * 1.01 for array in evaluate(graph, feeds)]

    monkeypatch.setattr("mdprune_deploy.export.evaluate", wrong)
    with pytest.raises(UnsupportedGraphError, match=r"differs from the model's by 1.0e-02 of its"):
        export(Chunked(), X)


class Magnifying(nn.Module):
    """Magnifies the rounding of a norm a hundred thousand times."""

    def __init__(self, table=None):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.table = table
        for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean):
            nn.init.normal_(tensor, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        y = self.norm(x) if self.table is None else self.norm(x) @ self.table
        return torch.sin(1e5 * y)


def test_rounding_that_a_network_magnifies_is_no_wrong_translation():
    network = Magnifying().eval()
    exported = export(network, X)
    graph = exported.model.graph
    with torch.no_grad():
        expected = network(X).numpy()
    (actual,) = evaluate(graph, {graph.inputs[0].name: X.numpy()})
    assert np.abs(actual - expected).max() > EXPORT_TOLERANCE  # in float32 they differ


def test_a_wrong_translation_is_not_excused_by_rounding(monkeypatch):
    def wrong(graph, feeds):
        return [array * 1.0001 for array in evaluate(graph, feeds)]

    monkeypatch.setattr("mdprune_deploy.export.evaluate", wrong)
    with pytest.raises(UnsupportedGraphError, match="differs from the model's by"):
        export(Magnifying(), X)


def test_what_runs_in_float32_alone_is_held_to_float32():
    network = Magnifying(torch.eye(6))  # no buffer: it stays float32
    with pytest.raises(UnsupportedGraphError, match="differs from the model's by"):
        export(network, X)
