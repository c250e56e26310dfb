"""The tensorrt target: what is emitted, what the plug-in reads, and what verification finds."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_checkpoints
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import mdprune_deploy as mdp
from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.check import verify_bundle
from mdprune_deploy.cli import app
from mdprune_deploy.emit.native.operators import Activation, Function
from mdprune_deploy.emit.tensorrt import choose as choosing
from mdprune_deploy.emit.tensorrt import verify as verifying
from mdprune_deploy.emit.tensorrt.choose import choose
from mdprune_deploy.emit.tensorrt.evaluate import runner
from mdprune_deploy.emit.tensorrt.node import GatherConv, Slab, WeightName, parse
from mdprune_deploy.report import PluginChoice, WeightLayout

FLOAT32 = 1e-5
"""The contract's bound."""
HALF = 5e-3
"""The bound in float16."""
KINDS = ("stock.fp32", "stock.fp16", "fp32", "fp16")


@pytest.fixture
def all_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of a test are small: nothing would be worth a plug-in."""
    monkeypatch.setattr(choosing, "_decide", lambda weight, saved, moved: (True, "test"))


class Residual(nn.Module):
    """Blocks of every epilogue: norm and ReLU, an addition, a clip, a leaky ReLU, none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.a = nn.Conv2d(16, 24, 3, padding=2, dilation=2, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.b = nn.Conv2d(24, 16, 1)
        self.norm_b = nn.BatchNorm2d(16)
        self.c = nn.Conv2d(16, 20, (3, 1), padding=(1, 0))
        self.d = nn.Conv2d(20, 20, 3, padding=1)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.norm(self.a(x)))
        x = torch.relu(self.norm_b(self.b(y)) + x)
        x = nn.functional.hardtanh(self.c(x), 0.0, 6.0)
        x = nn.functional.leaky_relu(self.d(x), 0.2)
        return self.head(x.mean((2, 3)))


def residual_checkpoint(folder: Path, scale: float = 1.0, summed: int = 8) -> Path:
    """Of the sum of both branches `summed` channels are read; heads are multiplied by `scale`."""
    torch.manual_seed(0)
    net = Residual().eval()
    for norm in (net.norm, net.norm_b):
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    domains = {}
    for index, name in enumerate(("one", "two")):
        rng = np.random.default_rng(index)
        masks = {
            f"{layer}.weight": mdp.Mask(torch.from_numpy(rng.permutation(size) % 4 > 0), "in")
            for layer, size in (("a", 16), ("b", 24), ("d", 20))
        }
        masks["c.weight"] = mdp.Mask(torch.from_numpy(rng.permutation(16) < summed), "in")
        domains[name] = mdp.Domain(masks, {"head.weight": scale * torch.randn(4, 20)})
    mdp.save_checkpoint(folder / "model.pt", net, torch.randn(1, 3, 12, 12), domains)
    return folder / "model.pt"


def nodes(path: Path) -> list[GatherConv]:
    return [parse(node) for node in ir.load(path).graph if node.op_type == "GatherConv"]


def inputs(count: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 3, 12, 12)).astype(np.float32).astype(np.float64)


@pytest.mark.usefixtures("all_plugins")
def test_every_model_equals_the_reference(tmp_path: Path) -> None:
    path = residual_checkpoint(tmp_path)
    report = mdp.compile(path, tmp_path / "out", targets=["tensorrt"])
    assert report.missing == ()
    bundle = read_bundle(tmp_path / "out")
    x = inputs(3)
    for name, model in bundle.manifest.models.items():
        assert model.onnx is None and model.native is not None and model.tensorrt is not None
        assert [entry.file for entry in model.tensorrt.models] == [
            f"tensorrt/{name}.{kind}.onnx" for kind in KINDS
        ]
        assert model.tensorrt.plugin_weights == model.native.weights
        expected = mdp.reference(mdp.load_checkpoint(path), name)(x)
        for entry in model.tensorrt.models:
            half = entry.precision == "fp16"
            assert entry.plugins == (0 if "stock" in entry.file else 5)
            assert 0 <= entry.max_rel_error <= (HALF if half else FLOAT32)
            run = runner(bundle.root / entry.file, bundle.root / "native", entry.precision)
            (found,) = run({"x": x})
            error = np.abs(found - expected).max() / np.abs(expected).max()
            assert error <= (HALF if half else FLOAT32)
            assert (error > 1e-6) == half, "float16 rounds, float32 evaluated in float64 does not"
            assert found.dtype == (np.float32 if half else np.float64)
        assert report.domains[name].max_rel_error <= FLOAT32


@pytest.mark.usefixtures("all_plugins")
def test_nodes_hold_what_follows_the_convolution(tmp_path: Path) -> None:
    mdp.compile(residual_checkpoint(tmp_path), tmp_path / "out", targets=["tensorrt"])
    graph = ir.load(tmp_path / "out/tensorrt/one.fp32.onnx").graph
    found = [node for node in graph if node.domain == "mdprune"]
    others = {node.op_type for node in graph} - {"GatherConv"}
    assert others == {"Slice", "ReduceMean", "Gemm"}, (
        "norms, the addition and the activations are in the nodes, as are selections but the one "
        "that the addition reads"
    )
    assert [len(node.inputs) for node in found] == [1, 1, 2, 1, 1]
    assert [parse(node).activation for node in found] == [
        Activation(Function.RELU),
        Activation(Function.RELU),
        Activation(Function.RELU),
        Activation(Function.CLIP, 0.0, 6.0),
        Activation(Function.LEAKY_RELU, pytest.approx(0.2)),
    ]
    stem, a, _, c, _ = map(parse, found)
    assert (stem.kernel, stem.strides, stem.pads) == ((3, 3), (2, 2), (1, 1, 1, 1))
    assert (a.dilations, a.pads, c.kernel, c.pads) == ((2, 2), (2, 2, 2, 2), (3, 1), (1, 0, 1, 0))


@pytest.mark.usefixtures("all_plugins")
def test_a_sum_that_float16_pads_is_not_in_the_node(tmp_path: Path) -> None:
    path = residual_checkpoint(tmp_path, summed=9)
    mdp.compile(path, tmp_path / "out", targets=["tensorrt"])
    graph = ir.load(tmp_path / "out/tensorrt/one.fp32.onnx").graph
    found = [node for node in graph if node.domain == "mdprune"]
    assert [len(node.inputs) for node in found] == [1] * 5
    assert parse(found[2]).filters == 9 and parse(found[2]).activation == Activation()
    assert {"Add", "Relu"} <= {node.op_type for node in graph}


@pytest.mark.usefixtures("all_plugins")
def test_domains_read_one_weight_file_by_its_hash(tmp_path: Path) -> None:
    mdp.compile(residual_checkpoint(tmp_path), tmp_path / "out", targets=["tensorrt"])
    digest = hashlib.sha256((tmp_path / "out/native/weights.bin").read_bytes()).hexdigest()
    offsets, spans = {}, set()
    for name in ("one", "two"):
        found = nodes(tmp_path / f"out/tensorrt/{name}.fp16.onnx")
        ((file,),) = {node.files for node in found}
        assert (file.sha256, file.name) == (digest, "weights.bin")
        spans.add((file.begin, file.end))
        offsets[name] = {slab.offset for node in found for slab in node.slabs}
    assert offsets["one"] & offsets["two"], "slabs that both read"
    ((begin, end),) = spans
    assert begin == min(map(min, offsets.values())), "one span for all domains"
    assert (
        max(map(max, offsets.values()))
        < end
        <= (tmp_path / "out/native/weights.bin").stat().st_size
    )
    tensors = {}
    for path in sorted((tmp_path / "out/tensorrt").glob("*.onnx")):
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        tensors[path.name] = {tensor.name for tensor in model.graph.initializer}
        assert {i.domain: i.version for i in model.opset_import}[""] == 20
    assert "a.weight" in tensors["one.stock.fp16.onnx"]
    assert "a.weight" not in tensors["one.fp16.onnx"], "the plug-in's weights are not stored again"


@pytest.mark.usefixtures("all_plugins")
def test_half_models_are_strongly_typed(tmp_path: Path) -> None:
    mdp.compile(residual_checkpoint(tmp_path), tmp_path / "out", targets=["tensorrt"])
    for kind in ("fp16", "stock.fp16"):
        model = onnx.load(tmp_path / f"out/tensorrt/one.{kind}.onnx")
        floats = {t.data_type for t in model.graph.initializer} - {onnx.TensorProto.INT64}
        assert floats == {onnx.TensorProto.FLOAT16}
        ports = [*model.graph.input, *model.graph.output]
        assert {p.type.tensor_type.elem_type for p in ports} == {onnx.TensorProto.FLOAT}
        casts = [node for node in model.graph.node if node.op_type == "Cast"]
        assert [cast.attribute[0].i for cast in casts] == [
            onnx.TensorProto.FLOAT16,
            onnx.TensorProto.FLOAT,
        ]


def test_small_layers_stay_stock(tmp_path: Path) -> None:
    report = mdp.compile(residual_checkpoint(tmp_path), tmp_path / "out", targets=["tensorrt"])
    assert [choice.name for choice in report.plugins] == [
        f"{layer}.weight" for layer in ("stem", "a", "b", "c", "d")
    ]
    assert not any(choice.plugin for choice in report.plugins)
    assert {choice.reason for choice in report.plugins} == {"the union saves less than 64 KiB"}
    assert sorted(path.name for path in (tmp_path / "out/tensorrt").iterdir()) == [
        "one.stock.fp16.onnx",
        "one.stock.fp32.onnx",
        "two.stock.fp16.onnx",
        "two.stock.fp32.onnx",
        "weights.bin",
    ]
    bundle = read_bundle(tmp_path / "out")
    assert bundle.manifest.report.plugins == report.plugins
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "out")])
    assert "the union saves less than 64 KiB" in shown.stdout
    assert "Its plug-ins save 0 B of weights over all domains." in shown.stdout


KIB = 1 << 10


@pytest.mark.parametrize(
    ("copies", "stored", "elements", "private", "plugin", "reason"),
    [
        (400 * KIB, 200 * KIB, 40 * KIB, (), True, "more than the activations"),
        (400 * KIB, 200 * KIB, 60 * KIB, (), False, "less than the activations"),
        (400 * KIB, 280 * KIB, 1 * KIB, (), False, "less than 64 KiB"),
        (400 * KIB, 200 * KIB, 1 * KIB, ("a", "b"), False, "a copy of its own"),
        (400 * KIB, 200 * KIB, 1 * KIB, ("a",), True, "more than the activations"),
    ],
)
def test_layers_are_chosen_by_bytes(
    copies: int, stored: int, elements: int, private: tuple[str, ...], plugin: bool, reason: str
) -> None:
    weight = WeightLayout("w", 0, 0, copies, stored, ("a", "b"), private, "")
    found = choose([weight], {"w": elements})["w"]
    assert (found.plugin, found.bytes_copies, found.bytes_stored, found.bytes_activations) == (
        plugin,
        copies // 2,
        stored // 2,
        elements * 2,
    )
    assert reason in found.reason
    assert choose([weight], {}) == {}, "no layer of it is a convolution of images"


def test_what_float16_cannot_hold_is_left_out_and_said(tmp_path: Path) -> None:
    path = residual_checkpoint(tmp_path, scale=1e6)
    report = mdp.compile(path, tmp_path / "out", targets=["tensorrt"])
    assert [missing.target for missing in report.missing] == [
        "tensorrt/one.stock.fp16.onnx",
        "tensorrt/two.stock.fp16.onnx",
    ]
    assert "beyond the range of float16" in report.missing[0].reason


def test_a_half_model_that_is_too_far_off_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "HALF_TOLERANCE", 1e-6)
    report = mdp.compile(residual_checkpoint(tmp_path), tmp_path / "out", targets=["tensorrt"])
    assert [m.target for m in report.missing] == [
        "tensorrt/one.stock.fp16.onnx",
        "tensorrt/two.stock.fp16.onnx",
    ]
    assert "in float16 its relative error is" in report.missing[0].reason
    assert not list((tmp_path / "out/tensorrt").glob("*fp16*"))


@pytest.mark.usefixtures("all_plugins")
def test_a_wrong_weight_is_found(tmp_path: Path) -> None:
    path = residual_checkpoint(tmp_path)
    mdp.compile(path, tmp_path / "out", targets=["tensorrt"])
    checks = verify_bundle(tmp_path / "out", path)
    assert set(checks["one"].engines) >= {
        f"evaluated tensorrt {kind} {precision}"
        for kind in ("stock", "plug-ins")
        for precision in ("fp32", "fp16")
    }
    assert checks["one"].max_rel_error <= FLOAT32, "float16 is not in it"
    model = tmp_path / "out/tensorrt/one.fp32.onnx"
    proto = onnx.load(model, load_external_data=False)
    (scale,) = (a for a in proto.graph.node[1].attribute if a.name == "scale")
    scale.floats[0] *= 1.01
    model.write_bytes(proto.SerializeToString())
    tiny_checkpoints.bless(tmp_path / "out", "tensorrt/one.fp32.onnx")
    with pytest.raises(mdp.VerificationError, match=r"tensorrt/one\.fp32\.onnx differs"):
        verify_bundle(tmp_path / "out", path)


@pytest.mark.usefixtures("all_plugins")
def test_domains_are_dropped_but_not_added(tmp_path: Path) -> None:
    path = residual_checkpoint(tmp_path)
    mdp.compile(path, tmp_path / "out", targets=["tensorrt"])
    with pytest.raises(mdp.UsageError, match="has a tensorrt target"):
        mdp.add_domain(tmp_path / "out", path, "one", replace=True)
    mdp.drop_domain(tmp_path / "out", "one")
    left = read_bundle(tmp_path / "out")
    left.check_hashes()
    assert sorted(file for file in left.manifest.files if file.startswith("tensorrt/")) == [
        "tensorrt/two.fp16.onnx",
        "tensorrt/two.fp32.onnx",
        "tensorrt/two.stock.fp16.onnx",
        "tensorrt/two.stock.fp32.onnx",
        "tensorrt/weights.bin",
    ]


# The node itself


def example(tmp_path: Path) -> GatherConv:
    """Two slabs of 12 filters: of the first 8 filters and 2 of 3 rows, of the second all rows."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((2, 3, 12)).astype("<f4")
    second = rng.standard_normal((2, 2, 8)).astype("<f4")
    padding = bytes(-first.nbytes % 64)
    (tmp_path / "w.bin").write_bytes(first.tobytes() + padding + second.tobytes())
    bits = np.arange(12) % 3 > 0
    return GatherConv(
        files=(WeightName("0" * 64, 0, 448, "w.bin"),),
        slabs=(
            Slab(0, 0, 3, 12, bits, np.array([True, False, True])),
            Slab(0, first.nbytes + len(padding), 2, 8),
        ),
        channels=6,
        index=np.array([5, 0, 1, 3]),
        scale=rng.standard_normal(8).astype(np.float32),
        shift=rng.standard_normal(8).astype(np.float32),
        kernel=(1, 2),
        strides=(2, 1),
        pads=(1, 0, 0, 1),
        activation=Activation(Function.LEAKY_RELU, 0.25),
    )


def roundtrip(node: GatherConv, **changed: object) -> GatherConv:
    attributes = {**node.attributes(), **changed}
    kept = {name: value for name, value in attributes.items() if value is not None}
    return parse(ir.node("GatherConv", [], kept, domain="mdprune", name="n"))


def test_a_node_is_its_formula(tmp_path: Path) -> None:
    node = example(tmp_path)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 6, 5, 4))
    residual = rng.standard_normal((2, 8, 3, 4))
    raw = np.frombuffer((tmp_path / "w.bin").read_bytes(), "<f4")
    first = raw[:72].reshape(2, 3, 12)[:, [0, 2]][:, :, np.arange(12) % 3 > 0]
    second = raw[80:112].reshape(2, 2, 8)
    weight = np.concatenate([first, second], axis=1).astype(np.float64)  # taps, channels, filters
    expected = np.zeros((2, 8, 3, 4))
    for n, f, i, j in np.ndindex(2, 8, 3, 4):
        acc = 0.0
        for tap in range(2):
            row, column = 2 * i - 1, j + tap
            if 0 <= row < 5 and column < 4:
                acc += weight[tap, :, f] @ x[n, [5, 0, 1, 3], row, column]
        v = acc * float(node.scale[f]) + float(node.shift[f]) + residual[n, f, i, j]
        expected[n, f, i, j] = v if v > 0 else 0.25 * v
    found = roundtrip(node).run(tmp_path, x, residual)
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()
    half = node.run(tmp_path, x.astype(np.float16), residual.astype(np.float16))
    assert half.dtype == np.float16
    assert np.abs(half - expected).max() <= HALF * np.abs(expected).max()


def test_attributes_read_back(tmp_path: Path) -> None:
    node = example(tmp_path)
    again = roundtrip(node)
    for field in dataclasses.fields(GatherConv):
        if field.name == "slabs":
            continue
        before, after = getattr(node, field.name), getattr(again, field.name)
        assert np.array_equal(before, after), field.name
    for before, after in zip(node.slabs, again.slabs, strict=True):
        for field in dataclasses.fields(Slab):
            assert np.array_equal(getattr(before, field.name), getattr(after, field.name))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("plugin_version", "2", "its version is '2', not '1'"),
        ("files", "abc w.bin", "no list of hashes"),
        ("files", "0" * 64 + " 0 448 ../w.bin", "no list of hashes"),
        ("files", "0" * 64 + " 0 448 ..", "no list of hashes"),
        ("files", "0" * 64 + " 8 448 w.bin", "no list of hashes"),
        ("files", "0" * 64 + " 0 447 w.bin", "outside of its file's span"),
        ("files", "0" * 64 + " 64 448 w.bin", "outside of its file's span"),
        ("files", None, "no attribute 'files'"),
        ("slabs", [0, 0, 3], "no list of slabs"),
        ("slabs", [], "no attribute 'slabs'|no list of slabs"),
        ("slabs", [0, -1, 3, 12, 1, 1, 0, 5, 2, 8, 0, 0], "no list of slabs"),
        ("slabs", [1, 0, 3, 12, 1, 1, 0, 5, 2, 8, 0, 0], "of no file or empty"),
        ("slabs", [0, 0, 3, 12, 0, 1, 0, 5, 2, 8, 0, 0], "'bits' has 1 entries, not 0"),
        ("slabs", [0, 0, 3, 12, 1, 1, 0, 4, 2, 9, 0, 0], "a slab gives 9 filters, scale has 8"),
        ("bits", [-1], "bits past the last"),
        ("bits", [1], "a slab gives 1 filters"),
        ("rows", [8], "bits past the last"),
        ("rows", [0], "no row that is used"),
        ("rows", [7], "'index' has 4 entries, not 5"),
        ("rows", [5, 0], "'rows' has 2 entries, not 1"),
        ("index", [5, 0, 1], "'index' has 3 entries, not 4"),
        ("index", [5, 0, 1, 6], "a channel that x does not have"),
        ("index", [5, 0, 1, -1], "a channel that x does not have"),
        ("channels", 0, "a channel that x does not have"),
        ("shift", [1.0], "differ in length"),
        ("activation", 9, "no activation 9"),
        ("strides", [0, 1], "not positive"),
        ("pads", [0, 0, -1, 0], "not positive"),
        ("kernel_shape", [1], "'kernel_shape' has 1 entries, not 2"),
        ("kernel_shape", 1, "no attribute 'kernel_shape'"),
    ],
)
def test_what_a_node_cannot_be(tmp_path: Path, name: str, value: object, message: str) -> None:
    with pytest.raises(mdp.BundleError, match=message):
        roundtrip(example(tmp_path), **{name: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "is not there"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "less than 448 bytes"),
    ],
)
def test_a_weight_file_that_is_not_there(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    node = example(tmp_path)
    spoil(tmp_path / "w.bin")
    with pytest.raises(mdp.BundleError, match=message):
        node.run(tmp_path, np.zeros((1, 6, 5, 4)))


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    node = example(tmp_path)
    with pytest.raises(mdp.BundleError, match="it takes 6 channels"):
        node.run(tmp_path, np.zeros((1, 5, 5, 4)))
    with pytest.raises(mdp.BundleError, match="the residual's shape is"):
        node.run(tmp_path, np.zeros((1, 6, 5, 4)), np.zeros((1, 8, 3, 3)))


def test_the_manifest_keeps_choices(tmp_path: Path) -> None:
    choice = PluginChoice("w", True, 1, 2, 3, "because")
    bundle = tiny_checkpoints.copy_of_bundle(tmp_path)
    tiny_checkpoints.edit_manifest(
        bundle, lambda tree: tree.update(plugins=[dataclasses.asdict(choice)])
    )
    assert read_bundle(bundle).manifest.report.plugins == (choice,)
