"""Selections of whole blocks between two convolutions, in models that ONNX Runtime optimised."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_models import Builder

from mdprune_deploy.emit.blocks import _whole_blocks, keep_selections_blocked
from mdprune_deploy.layout.nchwc import host_layout

LAYOUT = host_layout()
BLOCK = 16 if LAYOUT is None else LAYOUT.block
CHANNELS = 4 * BLOCK

blocked = pytest.mark.skipif(LAYOUT is None, reason="this ONNX Runtime has no blocked layout")


class Net(Builder):
    """A convolution, whatever selects from it, and another convolution."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)
        self.x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["batch", 3, 6, 6])

    def conv(self, name, x, fan_in, filters=CHANNELS, kernel=3):
        weight = self.rng.standard_normal((filters, fan_in, kernel, kernel)).astype(np.float32)
        bias = self.weight(f"{name}.bias", self.rng.standard_normal(filters).astype(np.float32))
        operands = [x, self.weight(f"{name}.weight", weight), bias]
        return self.node("Conv", operands, name, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)

    def gather(self, name, x, channels, axis=1):
        indices = self.weight(f"{name}.indices", np.asarray(channels, dtype=np.int64))
        return self.node("Gather", [x, indices], name, axis=axis)

    def slice(self, name, x, *bounds):
        operands = [
            self.weight(f"{name}.{i}", np.asarray([bound], dtype=np.int64))
            for i, bound in enumerate(bounds)
        ]
        return self.node("Slice", [x, *operands], name)

    def optimised(self, tmp_path, *outputs):
        """Returns what ONNX Runtime makes of the graph."""
        for value in outputs:
            value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(["batch", None, None, None])
        model = ir.to_proto(self.model([self.x], list(outputs)))
        model.ir_version = 10
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 4
        providers = ["CPUExecutionProvider"]
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        return onnx.load(options.optimized_model_filepath)


def run(model, batch):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(batch)
    return session.run(None, {"x": rng.standard_normal((batch, 3, 6, 6)).astype(np.float32)})


def operators(model):
    return [node.op_type for node in model.graph.node]


def surgery(model, expected):
    """Keeps selections blocked, and checks how many, and that no bit of any output changes."""
    changed = ir.from_proto(model)
    assert keep_selections_blocked(changed, BLOCK) == expected
    proto = ir.to_proto(changed)
    for batch in (1, 3):
        for before, after in zip(run(model, batch), run(proto, batch), strict=True):
            np.testing.assert_array_equal(before, after, strict=True)
    if not expected:
        assert operators(proto) == operators(model)
    return proto


def blocks(*numbers):
    return np.concatenate([np.arange(n * BLOCK, (n + 1) * BLOCK) for n in numbers])


@blocked
@pytest.mark.parametrize("numbers", [(0,), (2, 0), (3, 1, 2), (1, 1), (0, 1, 2, 3)])
def test_a_gather_of_whole_blocks_stays_in_the_layout(tmp_path, numbers):
    net = Net()
    y = net.gather("pick", net.conv("first", net.x, 3), blocks(*numbers))
    y = net.conv("second", y, len(numbers) * BLOCK, 8)
    before = net.optimised(tmp_path, y)
    assert operators(before).count("ReorderInput") == operators(before).count("ReorderOutput") - 1
    after = surgery(before, 1)
    assert operators(after).count("ReorderOutput") == 1  # of the model's output
    assert "ReorderInput" not in operators(after)


@blocked
@pytest.mark.parametrize(
    "channels",
    [
        np.arange(BLOCK) + BLOCK // 2,  # a run that begins inside a block
        np.concatenate([blocks(0)[::-1], blocks(1)]),  # a block in another order
        np.r_[0 : 2 * BLOCK : 2],  # parts of two blocks
        np.r_[blocks(0), BLOCK : BLOCK + BLOCK // 2],  # a block and a half
    ],
    ids=["shifted", "reversed", "strided", "part"],
)
def test_a_gather_of_anything_else_is_left(tmp_path, channels):
    net = Net()
    y = net.gather("pick", net.conv("first", net.x, 3), channels)
    surgery(net.optimised(tmp_path, net.conv("second", y, len(channels), 8)), 0)


@blocked
@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((BLOCK, 3 * BLOCK, 1), 1),
        ((0, BLOCK, 1, 1), 0),  # a step: not what the compiler writes
        ((BLOCK // 2, BLOCK // 2 + BLOCK, 1), 0),
        ((0, BLOCK + 4, 1), 0),
        ((-BLOCK, 1 << 62, 1), 0),
        ((0, 4, 2), 0),  # rows of the image
    ],
)
def test_a_slice_stays_if_it_is_whole_blocks_of_channels(tmp_path, bounds, expected):
    net = Net()
    y = net.slice("pick", net.conv("first", net.x, 3), *bounds)
    width = len(range(CHANNELS)[bounds[0] : bounds[1]]) if bounds[2] == 1 else CHANNELS
    surgery(net.optimised(tmp_path, net.conv("second", y, width, 8)), expected)


@blocked
def test_several_readers_of_one_selection_share_it(tmp_path):
    net = Net()
    y = net.gather("pick", net.conv("first", net.x, 3), blocks(2, 1))
    outputs = [net.conv(name, y, 2 * BLOCK, 8) for name in ("second", "third")]
    after = surgery(net.optimised(tmp_path, *outputs), 1)
    assert operators(after).count("Gather") == 1
    assert "ReorderInput" not in operators(after)


@blocked
def test_two_selections_of_one_convolution(tmp_path):
    net = Net()
    x = net.conv("first", net.x, 3)
    y = net.conv("second", net.gather("pick", x, blocks(2, 1)), 2 * BLOCK, 8)
    z = net.conv("third", net.slice("cut", x, 0, BLOCK, 1), BLOCK, 8)
    surgery(net.optimised(tmp_path, y, z), 2)


@blocked
def test_the_convolution_may_be_read_elsewhere(tmp_path):
    net = Net()
    x = net.conv("first", net.x, 3)
    y = net.conv("second", net.gather("pick", x, blocks(2)), BLOCK, 8)
    after = surgery(net.optimised(tmp_path, y, net.node("Sinh", [x], "else")), 1)
    assert operators(after).count("ReorderOutput") == 2  # for the other reader and the output


@blocked
def test_the_convolution_may_be_an_output(tmp_path):
    net = Net()
    x = net.conv("first", net.x, 3)
    y = net.conv("second", net.gather("pick", x, blocks(2)), BLOCK, 8)
    surgery(net.optimised(tmp_path, y, x), 1)


@blocked
def test_a_selection_that_something_else_reads_is_left(tmp_path):
    net = Net()
    y = net.gather("pick", net.conv("first", net.x, 3), blocks(2))
    other = net.node("Sinh", [y], "else")
    surgery(net.optimised(tmp_path, net.conv("second", y, BLOCK, 8), other), 0)


@blocked
def test_a_selection_that_is_an_output_is_left(tmp_path):
    net = Net()
    y = net.gather("pick", net.conv("first", net.x, 3), blocks(2))
    surgery(net.optimised(tmp_path, net.conv("second", y, BLOCK, 8), y), 0)


@blocked
def test_a_selection_of_the_input_is_left(tmp_path):
    net = Net()
    surgery(net.optimised(tmp_path, net.conv("only", net.gather("pick", net.x, [2, 0]), 2)), 0)


@blocked
def test_two_selections_in_a_row(tmp_path):
    net = Net()
    y = net.gather("pick", net.conv("first", net.x, 3), blocks(2, 0, 1))
    y = net.conv("second", net.gather("again", y, blocks(1, 2)), 2 * BLOCK, 8)
    model = net.optimised(tmp_path, y)
    # The runtime may merge them; whatever is left, no bit changes.
    surgery(model, 0 if operators(model).count("Gather") == 2 else 1)


def test_whole_blocks():
    assert _whole_blocks(np.r_[32:48, 0:16], 16)
    assert _whole_blocks(np.r_[8:16], 8)
    assert not _whole_blocks(np.r_[8:24], 16)
    assert not _whole_blocks(np.r_[0:15], 16)
    assert not _whole_blocks(np.r_[1:16, 0], 16)
    assert not _whole_blocks(np.zeros(0, dtype=np.int64), 16)
