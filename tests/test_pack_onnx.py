"""Dense ONNX files of several exporters with mask files, and everything that is refused."""

from __future__ import annotations

import dataclasses
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import safetensors.torch
import tiny_checkpoints
import torch
from dense_onnx import HALF, save, unfolded, weights
from onnx import TensorProto, helper, numpy_helper

import mdprune_deploy as mdp
from mdprune_deploy import CheckpointError, Mask, UnsupportedGraphError, UsageError, import_onnx
from mdprune_deploy.checkpoint import masks_of
from mdprune_deploy.evaluate import constant_array, evaluate
from mdprune_deploy.export import EXPORT_TOLERANCE, relative_error, tidy
from mdprune_deploy.pack import OnnxOptions, PackReport, pack_onnx

X = np.random.default_rng(5).standard_normal((2, 3, 8, 8)).astype(np.float32)


def pack(folder: Path, model: Path, arrays: Mapping[str, object], **options: object) -> PackReport:
    np.savez(folder / "masks.npz", **arrays)  # type: ignore[arg-type]
    return pack_onnx(
        OnnxOptions(model, folder / "masks.npz", folder / "model.pt", **options)  # type: ignore[arg-type]
    )


def compile_packed(folder: Path) -> mdp.CompileReport:
    """Compiles and verifies what was packed."""
    return mdp.compile(folder / "model.pt", folder / "out", targets=("onnx",), overwrite=True)


def run_original(
    model: Path, change: Mapping[str, np.ndarray], x: np.ndarray = X
) -> list[np.ndarray]:
    """Runs the file in ONNX Runtime with some of its tensors changed by hand."""
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if tensor.name in change:
            tensor.CopyFrom(numpy_helper.from_array(change[tensor.name], tensor.name))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return session.run(None, {"x": x})


def agree(folder: Path, domain: str, expected: np.ndarray, x: np.ndarray = X) -> None:
    """Holds reference and bundle to an output of the dense file with masked weights."""
    checkpoint = mdp.load_checkpoint(folder / "model.pt")
    for run in (mdp.reference(checkpoint, domain), mdp.load(folder / "out", domain, "onnxruntime")):
        found = run(x)
        assert found.shape == expected.shape
        # float32 in both: rounding of a few hundred products
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


# What works


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 18, 20, 21, 23])
def test_every_operator_set(tmp_path: Path, opset: int) -> None:
    """Masks by initialiser and by node, a head of its own, labels: against the file itself."""
    tensors = weights()
    model = save(tmp_path / "dense.onnx", unfolded(), tensors, opset=opset)
    head = {"last/kernel": np.ones((6, 8, 1, 1), np.float32), "last/bias": np.ones(6, np.float32)}
    report = pack(
        tmp_path, model,
        {
            "digits/in/last/kernel": HALF,
            "signs/out/Stem": np.array([0.2, -1, 1, 1, 1, 1, 1, 0.1]),
            "signs/threshold/Stem": np.array(0.15),
            "signs/labels": np.array(["a", "b", "c", "d", "e", "f"]),
            **{f"signs/state/{name}": array for name, array in head.items()},
        },
    )  # fmt: skip
    assert report == PackReport(
        ("digits", "signs"), {"digits": 1, "signs": 1}, {"digits": 0, "signs": 2}, 7, (), True
    )
    compiled = compile_packed(tmp_path)
    digits, signs = compiled.domains["digits"], compiled.domains["signs"]
    assert digits.params_used == digits.params_emitted == 4 * 27 + 4 * 4
    assert signs.params_dense == 8 * 27 + 6 * 8
    assert signs.params_used == signs.params_emitted == 6 * 27 + 6 * 6
    assert digits.macs_emitted == 4 * 27 * 64 + 4 * 4 * 64
    masked = tensors["last/kernel"] * HALF[:, None, None]
    (expected,) = run_original(model, {"last/kernel": masked})
    agree(tmp_path, "digits", expected)
    on = np.array([1, 0, 1, 1, 1, 1, 1, 0], np.float32)
    changed = {"stem/kernel": tensors["stem/kernel"] * on.reshape(-1, 1, 1, 1), **head}
    (expected,) = run_original(model, changed)
    agree(tmp_path, "signs", expected)
    assert mdp.load_checkpoint(tmp_path / "model.pt").domains["signs"].labels == list("abcdef")


@pytest.mark.parametrize("dynamo", [True, False])
def test_the_export_of_a_module_gives_the_figures_of_the_module(
    tmp_path: Path, dynamo: bool
) -> None:
    network, domains = tiny_checkpoints.network(), tiny_checkpoints.domains()
    example = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mdp.save_checkpoint(tmp_path / "direct.pt", network, example, domains)
    direct = mdp.compile(tmp_path / "direct.pt", tmp_path / "direct", targets=("onnx",))
    _export(network, example, tmp_path / "dense.onnx", dynamo=dynamo)
    arrays: dict[str, object] = {}
    for name, domain in domains.items():
        arrays[f"{name}/in/conv2.weight"] = domain.masks["conv2.weight"].values.numpy()
        arrays[f"{name}/state/head.weight"] = domain.state["head.weight"].numpy()
        arrays[f"{name}/labels"] = np.array(domain.labels)
    report = pack(tmp_path, tmp_path / "dense.onnx", arrays)
    assert report.dynamic_batch
    through = compile_packed(tmp_path)
    for name, figures in direct.domains.items():
        found = through.domains[name]
        for field in ("params_dense", "params_used", "params_emitted", "macs_dense",
                      "macs_emitted"):  # fmt: skip
            assert getattr(found, field) == getattr(figures, field), field
        # 12 of 16 channels are on: counted from the definition of the network
        assert found.params_used == 12 * 27 + 16 * 12 * 9 + 5 * 16
    assert through.params_union == direct.params_union
    assert through.params_intersection == direct.params_intersection
    packed = mdp.load_checkpoint(tmp_path / "model.pt")
    original = mdp.load_checkpoint(tmp_path / "direct.pt")
    for name in domains:
        left, right = mdp.reference(original, name)(X), mdp.reference(packed, name)(X)
        # the TorchScript exporter folds batch norm in float32
        np.testing.assert_allclose(right, left, rtol=0, atol=1e-6 * np.abs(left).max())


def _export(network: torch.nn.Module, example: torch.Tensor, path: Path, *, dynamo: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            axes = ({0: torch.export.Dim.DYNAMIC},)
            torch.onnx.export(
                network, (example.repeat(2, 1, 1, 1),), path, dynamo=True, dynamic_shapes=axes,
                verbose=False,
            )  # fmt: skip
        else:
            torch.onnx.export(
                network, (example,), path, dynamo=False, input_names=["x"], opset_version=13,
                dynamic_axes={"x": {0: "n"}}, training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
            )  # fmt: skip


def test_constant_nodes_are_weights_under_the_names_of_what_they_make(tmp_path: Path) -> None:
    tensors = weights()
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
        for name, array in tensors.items()
    ]
    model = save(tmp_path / "dense.onnx", [*nodes, *unfolded()], {})
    pack(tmp_path, model, {"d/in/last/kernel": HALF, "d/state/bn/shift": np.ones(8, np.float32)})
    report = compile_packed(tmp_path)
    assert report.domains["d"].params_emitted == 4 * 27 + 4 * 4
    arrays = {**tensors, "bn/shift": np.ones(8, np.float32)}
    arrays["last/kernel"] = tensors["last/kernel"] * HALF[:, None, None]
    other = save(tmp_path / "masked.onnx", unfolded(), arrays)
    agree(tmp_path, "d", run_original(other, {})[0])


def test_merged_parameters_part_again(tmp_path: Path) -> None:
    """Exporters make equal tensors one; a domain changes one of them, the other stays."""
    node, tensors = helper.make_node, weights()
    nodes = unfolded()
    del tensors["bn/mean"]
    model = save(
        tmp_path / "dense.onnx", [node("Identity", ["bn/shift"], ["bn/mean"]), *nodes], tensors
    )
    pack(tmp_path, model, {"d/state/bn/mean": np.full(8, 2.0, np.float32), "d/in/Last": HALF})
    compile_packed(tmp_path)
    arrays = {**weights(), "bn/mean": np.full(8, 2.0, np.float32)}
    arrays["last/kernel"] = tensors["last/kernel"] * HALF[:, None, None]
    other = save(tmp_path / "masked.onnx", nodes, arrays)
    agree(tmp_path, "d", run_original(other, {})[0])


def test_initialisers_among_the_inputs_and_weights_in_another_file(tmp_path: Path) -> None:
    model = save(tmp_path / "dense.onnx", unfolded(), weights())
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    (tmp_path / "outside").mkdir()
    onnx.save(
        proto, tmp_path / "outside" / "dense.onnx", save_as_external_data=True,
        location="dense.bin", size_threshold=0,
    )  # fmt: skip
    report = pack(tmp_path, tmp_path / "outside" / "dense.onnx", {"d/in/last/kernel": HALF})
    assert report.shared == 7
    assert compile_packed(tmp_path).domains["d"].params_emitted == 4 * 27 + 4 * 4
    (tmp_path / "outside" / "dense.bin").unlink()
    with pytest.raises(CheckpointError, match=r"dense.onnx': .*dense.bin"):
        pack(tmp_path, tmp_path / "outside" / "dense.onnx", {"d/in/last/kernel": HALF})


def test_a_batch_that_is_written_into_the_graph_is_fixed(tmp_path: Path) -> None:
    """Its input says that any batch will do; its reshape says otherwise."""
    tensors = {**weights(), "shape": np.array([1, 8, 64])}
    model = save(
        tmp_path / "dense.onnx",
        unfolded(lambda: [
            helper.make_node("Reshape", ["c", "shape"], ["r"]),
            helper.make_node("ReduceMean", ["r"], ["m"], axes=[2], keepdims=0),
            helper.make_node("Unsqueeze", ["m", "axes"], ["d"]),
        ]),
        {**tensors, "axes": np.array([2, 3])},
    )  # fmt: skip
    assert not pack(tmp_path, model, {"d/in/last/kernel": HALF}).dynamic_batch
    assert compile_packed(tmp_path).domains["d"].params_emitted == 4 * 27 + 4 * 4
    fixed = save(tmp_path / "fixed.onnx", unfolded(), weights(), shape=(1, 3, 8, 8))
    assert not pack(tmp_path, fixed, {"d/in/last/kernel": HALF}).dynamic_batch


def test_sizes_that_the_file_leaves_open_are_given(tmp_path: Path) -> None:
    model = save(tmp_path / "dense.onnx", unfolded(), weights(), shape=("n", 3, "h", "w"))
    arrays = {"d/in/last/kernel": HALF}
    report = pack(tmp_path, model, arrays, inputs=("1,3,6,4",))
    assert report.dynamic_batch
    assert compile_packed(tmp_path).domains["d"].macs_dense == (8 * 27 + 4 * 8) * 24
    for inputs, message in [
        ((), r"input 'x' has shape \(n, 3, h, w\): give its size with --input, such as"),
        (("1,4,6,6",), r"input 'x' has shape \(n, 3, h, w\), which 1,4,6,6 does not fit"),
        (("1,3,6",), r"input 'x' has shape \(n, 3, h, w\), which 1,3,6 does not fit"),
        (("1,3,6,6", "1"), "takes 1 inputs but 2 shapes came"),
        (("1,3,six",), "input shape '1,3,six' is not like 1,3,32,32"),
    ]:
        with pytest.raises(UsageError, match=message):
            pack(tmp_path, model, arrays, inputs=inputs)


def test_old_upsampling_is_converted(tmp_path: Path) -> None:
    """`Upsample` left ONNX with operator set 10; its scales are no weight."""
    scales = np.array([1, 1, 2, 2], np.float32)
    model = save(
        tmp_path / "dense.onnx",
        unfolded(lambda: [helper.make_node("Upsample", ["c", "scales"], ["d"], "Up")]),
        {**weights(), "scales": scales},
        opset=9,
    )
    assert pack(tmp_path, model, {"d/in/last/kernel": HALF}).shared == 7
    report = compile_packed(tmp_path)
    assert report.domains["d"].params_emitted == 4 * 27 + 4 * 4
    assert report.domains["d"].macs_dense == 8 * 27 * 64 + 4 * 8 * 256


def test_a_mask_file_of_safetensors_and_a_dense_domain(tmp_path: Path) -> None:
    model = save(tmp_path / "dense.onnx", unfolded(), weights())
    masks = {"a/in/last/kernel": torch.from_numpy(HALF), "a/output/Stem": torch.ones(8).long()}
    safetensors.torch.save_file(masks, tmp_path / "masks.safetensors")
    (tmp_path / "names.txt").write_text("p\nq\nr\ns\n")
    report = pack_onnx(
        OnnxOptions(
            model, tmp_path / "masks.safetensors", tmp_path / "model.pt",
            domains=("all", "a"), labels=(f"all={tmp_path}/names.txt",),
        )
    )  # fmt: skip
    assert report.masks == {"all": 0, "a": 2}
    packed = mdp.load_checkpoint(tmp_path / "model.pt")
    assert packed.domains["all"].labels == ["p", "q", "r", "s"]
    compiled = compile_packed(tmp_path)
    assert compiled.domains["all"].params_emitted == 8 * 27 + 4 * 8
    assert compiled.params_intersection == 4 * 27 + 4 * 4


def test_every_kind_of_mask_arrives(tmp_path: Path) -> None:
    model = save(tmp_path / "dense.onnx", unfolded(), weights())
    scores = np.linspace(-1, 1, 8, dtype=np.float32)
    arrays = {"d/in/last/kernel": HALF, "d/out/stem/kernel": scores, "d/output/stem/kernel": HALF}
    pack(tmp_path, model, arrays, threshold=0.5)
    masks = mdp.load_checkpoint(tmp_path / "model.pt").domains["d"].masks
    (read,) = masks_of(masks["last/kernel"])
    assert (read.axis, read.site, read.on.tolist()) == ("in", "weight", HALF.tolist())
    filters, output = masks_of(masks["stem/kernel"])
    assert (filters.axis, filters.site, filters.threshold) == ("out", "weight", 0.5)
    assert torch.equal(filters.values, torch.from_numpy(scores))
    assert (output.axis, output.site) == ("out", "output")


# What is refused


def nothing_written(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if ".pt" in path.name]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds no arrays; a name is DOMAIN/KIND/WEIGHT, with a kind of in, out, output"),
        ({"mask": HALF}, "array 'mask': a name is DOMAIN/KIND/WEIGHT"),
        ({"d/inn/Last": HALF}, "or DOMAIN/labels; did you mean 'in'\\?"),
        ({"d/in/": HALF}, "array 'd/in/': a name is DOMAIN/KIND/WEIGHT"),
        ({"/in/Last": HALF}, "array '/in/Last': a name is DOMAIN/KIND/WEIGHT"),
        ({"d/in/Last": HALF[None]}, r"switches of 'Last' have shape \[1, 8\], not \(channels,\)"),
        ({"d/in/Last": np.arange(8)}, "switches of 'Last' are integers other than 0 and 1"),
        ({"d/in/Last": np.full(8, np.nan)}, "mask on 'Last' has score nan at channel 0"),
        ({"d/in/Last": np.array(["a"])}, "holds <U1, not numbers or switches"),
        ({"d/in/Last": np.array([{}])}, "is corrupt, or holds more than arrays: Object arrays"),
        ({"d/labels": np.arange(4)}, "array 'd/labels': labels are strings along one axis"),
        ({"d/threshold/Last": np.zeros(2)}, r"has shape \[2\]; a threshold is one number"),
        ({"d/threshold/Last": 0.5}, "domain 'd': has a threshold but no scores for 'Last'"),
        ({"d/threshold/Last": 0.5, "d/in/Last": HALF}, "a threshold but no scores for 'Last'"),
        ({"d/in/Lasst": HALF}, "mask on unknown weight 'Lasst'; did you mean 'Last'"),
        ({"d/in/Norm": HALF}, "mask on unknown weight 'Norm'"),
        ({"d/in/bn/scale": HALF}, "no convolution or matrix product reads 'bn/scale' as its"),
        ({"d/in/Last": HALF[:4]}, "mask on 'Last' has 4 entries; Conv 'Last' has 8 input"),
        ({"d/state/bn/scal": HALF}, "state for unknown parameter 'bn/scal'; did you mean 'bn/sc"),
        ({"d/state/bn/scale": np.ones(8)}, "state 'bn/scale' is torch.float64, the parameter"),
        (
            {"d/state/last/bias": np.ones(5, np.float32)},
            "'last/bias' of Conv 'Last' has 5 channels instead of 4",
        ),
        ({"d/labels": np.array(["a", "b"])}, "domain 'd' has 2 labels but its output has 4"),
        ({"a\tb/in/Last": HALF}, "cannot name a folder: no slashes or control characters"),
    ],
)  # fmt: skip
def test_mask_files_that_do_not_fit_are_named(
    tmp_path: Path, arrays: dict[str, object], message: str
) -> None:
    model = save(tmp_path / "dense.onnx", unfolded(), weights())
    with pytest.raises(CheckpointError, match=message):
        pack(tmp_path, model, arrays)
    assert nothing_written(tmp_path)


def test_unreadable_mask_files_are_named(tmp_path: Path) -> None:
    model = save(tmp_path / "dense.onnx", unfolded(), weights())
    path = tmp_path / "masks.npz"
    options = OnnxOptions(model, path, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"masks '.*masks.npz': cannot be read: No such file"):
        pack_onnx(options)
    np.savez(path, **{"d/in/Last": HALF})
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="is corrupt, or holds more than tensors"):
        pack_onnx(options)
    path.write_bytes(whole.replace(b"'fortran_order': False", b"'fortran_order': Fulse"))
    with pytest.raises(CheckpointError, match="is corrupt, or holds more than arrays"):
        pack_onnx(options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w") as archive:
            for _ in range(2):
                archive.writestr("d/in/Last.npy", b"")
    with pytest.raises(CheckpointError, match="holds one name twice"):
        pack_onnx(options)
    assert nothing_written(tmp_path)


def test_unreadable_models_are_named(tmp_path: Path) -> None:
    model = tmp_path / "dense.onnx"
    with pytest.raises(CheckpointError, match=r"ONNX model '.*': cannot be read: No such file"):
        pack(tmp_path, model, {"d/in/Last": HALF})
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        pack(tmp_path, tmp_path, {"d/in/Last": HALF})
    whole = save(model, unfolded(), weights()).read_bytes()
    for content in (b"", b"\x80\x02 a pickle", whole[:200], whole[:-3]):
        model.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"dense.onnx': is no valid ONNX: \w"):
            pack(tmp_path, model, {"d/in/Last": HALF})
    nodes = unfolded()
    nodes[2].op_type = "Reluu"
    with pytest.raises(CheckpointError, match="is no valid ONNX: No Op registered for Reluu"):
        pack(tmp_path, save(model, nodes, weights()), {"d/in/Last": HALF})
    nodes[2].op_type, nodes[2].input[0] = "Relu", "nobody"
    with pytest.raises(CheckpointError, match="is no valid ONNX: Nodes in a graph must be topo"):
        pack(tmp_path, save(model, nodes, weights()), {"d/in/Last": HALF})
    proto = onnx.load(save(model, unfolded(), weights()))
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 13))
    onnx.save(proto, model)
    with pytest.raises(CheckpointError, match=r"is no valid ONNX: "):
        pack(tmp_path, model, {"d/in/Last": HALF})
    assert nothing_written(tmp_path)


def middle(op: str, inputs: list[str], **attributes: object) -> list[onnx.NodeProto]:
    return unfolded(lambda: [helper.make_node(op, inputs, ["d"], "Middle", **attributes)])


def branch() -> list[onnx.NodeProto]:
    """A subgraph that depends on the data."""
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Relu", ["c"], ["z"])], "body", [], [value])
    return unfolded(lambda: [
        helper.make_node("ReduceSum", ["c"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["t"], to=TensorProto.BOOL),
        helper.make_node("If", ["t"], ["d"], "Middle", then_branch=body, else_branch=body),
    ])  # fmt: skip


def training() -> list[onnx.NodeProto]:
    nodes = unfolded()
    nodes[1].attribute.append(helper.make_attribute("training_mode", 1))
    nodes[1].output.extend(["mean_out", "var_out"])
    return nodes


def random_mask() -> list[onnx.NodeProto]:
    return unfolded(lambda: [
        helper.make_node("RandomUniformLike", ["c"], ["r"], "Random"),
        helper.make_node("Mul", ["c", "r"], ["d"]),
    ])  # fmt: skip


def dropout() -> list[onnx.NodeProto]:
    return unfolded(lambda: [
        helper.make_node("Constant", [], ["on"],
                         value=numpy_helper.from_array(np.array(True), "on")),
        helper.make_node("Dropout", ["c", "", "on"], ["d"], "Middle"),
    ])  # fmt: skip


def halves() -> list[onnx.NodeProto]:
    return unfolded(lambda: [
        helper.make_node("Cast", ["c"], ["h"], "Half", to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["d"], to=TensorProto.FLOAT),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "options", "message"),
    [
        (middle("Gelu", ["c"], domain="com.microsoft"), {"extra": ("com.microsoft",)},
         "com.microsoft::Gelu (node 'Middle') is not a standard ONNX operator"),
        (branch(), {"opset": 13}, "If (node 'Middle') holds a subgraph; control flow that depends"),
        (training(), {}, "BatchNormalization (node 'Norm') is in training mode: its output"),
        (random_mask(), {}, "RandomUniformLike (node 'Random') draws random numbers"),
        (halves(), {}, "Cast (node 'Half') casts to FLOAT16; only float32 can be packed"),
        (dropout(), {}, "Dropout (node 'Middle') draws random numbers"),
        (unfolded(), {"opset": 6}, "uses operator set 6; 7 is the oldest that is read"),
        (unfolded(), {"dtype": TensorProto.FLOAT16, "output_type": TensorProto.FLOAT16},
         "input 'x' is FLOAT16; only float32 networks can be packed"),
    ],
    ids=["domain", "subgraph", "training", "random", "half", "dropout", "opset", "float16"],
)  # fmt: skip
def test_unsupported_models_are_refused_by_name(
    tmp_path: Path, nodes: list[onnx.NodeProto], options: dict[str, object], message: str
) -> None:
    tensors = weights()
    if "dtype" in options:
        tensors = {name: array.astype(np.float16) for name, array in tensors.items()}
    model = save(tmp_path / "dense.onnx", nodes, tensors, **options)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedGraphError) as refusal:
        pack(tmp_path, model, {"d/in/last/kernel": HALF})
    assert message in str(refusal.value)
    assert nothing_written(tmp_path)


def test_integer_arithmetic_and_integer_inputs_are_refused(tmp_path: Path) -> None:
    tensors = {**weights(), "scale": np.float32(0.1), "zero": np.uint8(0)}
    nodes = unfolded(lambda: [
        helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["q"], "Quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
    ])  # fmt: skip
    model = save(tmp_path / "dense.onnx", nodes, tensors)
    with pytest.raises(UnsupportedGraphError, match=r"QuantizeLinear \(node 'Quantize'\) computes"):
        pack(tmp_path, model, {"d/in/Last": HALF})
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), *unfolded()]
    nodes[1].input[0] = "f"
    model = save(tmp_path / "dense.onnx", nodes, weights(), dtype=TensorProto.INT64)
    with pytest.raises(UnsupportedGraphError, match="input 'x' is INT64; only float32 inputs can"):
        pack(tmp_path, model, {"d/in/Last": HALF})


def test_masks_by_node_are_refused_where_they_are_ambiguous(tmp_path: Path) -> None:
    twice = unfolded(lambda: [
        helper.make_node("Conv", ["c", "mix"], ["m"], "First"),
        helper.make_node("Conv", ["m", "mix"], ["d"], "Second"),
    ])  # fmt: skip
    tensors = {**weights(), "mix": np.eye(8, dtype=np.float32)[:, ::-1].reshape(8, 8, 1, 1).copy()}
    model = save(tmp_path / "dense.onnx", twice, tensors)
    with pytest.raises(CheckpointError) as refusal:
        pack(tmp_path, model, {"d/in/Second": HALF})
    assert str(refusal.value) == (
        "mask on 'Second': node 'First' reads the same weight, and a mask is on a weight: "
        "name 'mix'"
    )
    pack(tmp_path, model, {"d/in/mix": HALF})


def test_the_checkpoint_has_the_models_name_unless_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("masks.npz", **{"d/in/Last": HALF})
    options = OnnxOptions(save(tmp_path / "dense.onnx", unfolded(), weights()), Path("masks.npz"))
    pack_onnx(options)
    assert isinstance(mdp.load_checkpoint("dense.pt").domains["d"].masks["Last"], Mask)
    with pytest.raises(UsageError, match=r"'dense\.pt' exists; name the checkpoint with -o"):
        pack_onnx(options)
    pack_onnx(dataclasses.replace(options, output=Path("dense.pt")))
    for changes, message in [
        ({"domains": ("d", "d")}, r"domains \['d', 'd'\] repeat a name"),
        ({"labels": ("e=masks.npz",)}, "labels 'masks.npz' cannot be read"),
        ({"labels": ("e=names.txt",)}, "labels for unknown domain 'e'"),
        ({"labels": ("names.txt",)}, "labels 'names.txt' is not of the form NAME=PATH"),
    ]:
        (tmp_path / "names.txt").write_text("a\n")
        with pytest.raises((UsageError, CheckpointError), match=message):
            pack_onnx(dataclasses.replace(options, output=Path("new.pt"), **changes))
    assert not Path("new.pt").exists()


# Networks that magnify rounding


def magnifying(folder: Path) -> Path:
    """Magnifies the rounding of a norm a million times."""
    middle = [helper.make_node("Mul", ["c", "k"], ["m"]), helper.make_node("Sin", ["m"], ["d"])]
    tensors = {**weights(), "k": np.asarray(1e6, np.float32)}
    return save(folder / "dense.onnx", unfolded(lambda: middle), tensors)


def test_rounding_that_a_network_magnifies_is_no_wrong_import(tmp_path: Path) -> None:
    model = magnifying(tmp_path)
    pack(tmp_path, model, {"digits/in/last/kernel": HALF})
    graph = mdp.load_checkpoint(tmp_path / "model.pt").model.graph
    (expected,) = run_original(model, {})
    (found,) = evaluate(graph, {"x": X})
    assert relative_error(expected, found) > EXPORT_TOLERANCE  # in float32 they differ


def test_a_wrong_import_is_not_excused_by_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: ir.Model, *names: Collection[str]) -> None:
        tidy(model, *names)
        bias = model.graph.initializers["last/bias"]
        bias.const_value = ir.tensor(constant_array(bias) * np.float32(1.001), name=bias.name)

    monkeypatch.setattr(import_onnx, "tidy", wrong)
    with pytest.raises(UnsupportedGraphError, match="output 'y' differs by"):
        pack(tmp_path, magnifying(tmp_path), {"digits/in/last/kernel": HALF})


def test_a_runtime_that_computes_something_else_is_not_excused_by_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = onnxruntime.InferenceSession.run
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run", lambda *given: [y + 100 for y in run(*given)]
    )
    with pytest.raises(UnsupportedGraphError, match="between ONNX Runtime and the ONNX spec"):
        pack(tmp_path, magnifying(tmp_path), {"digits/in/last/kernel": HALF})
