"""The onnx target: valid models, one shared file, the same numbers in every runtime."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import openvino
import pytest
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnx.reference import ReferenceEvaluator
from onnx_models import Builder, conv_net, image

from mdprune_deploy.emit.external import write_model
from mdprune_deploy.emit.onnx_target import OnnxTarget, file_stems
from mdprune_deploy.errors import UnsupportedGraphError
from mdprune_deploy.layout.nchwc import host_layout
from mdprune_deploy.layout.store import StoreWriter
from mdprune_deploy.manifest import DomainModel, TensorSpec

SAME = 2e-6
"""Of the largest output: float32 sums of under 300 products, in another order."""


def emit(root: Path, models: dict[str, ir.Model]) -> tuple[dict[str, DomainModel], StoreWriter]:
    with OnnxTarget(root, list(models), host_layout()) as target:
        return {name: target.add(name, model) for name, model in models.items()}, target.store


def reference(model: ir.Model, x: np.ndarray) -> np.ndarray:
    (y,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"image": x})
    return y


def run_ort(path: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"image": x})
    return y


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= SAME * np.abs(expected).max()


def external(path: Path) -> dict[str, tuple[int, int]]:
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    infos = {t.name: ExternalDataInfo(t) for t in tensors if uses_external_data(t)}
    assert {info.location for info in infos.values()} == {"weights.bin"}
    return {name: (info.offset, info.length) for name, info in infos.items()}


@pytest.mark.parametrize("batch", [1, "N"])
def test_portable_model_runs_alike_in_onnxruntime_and_openvino(
    tmp_path: Path, batch: int | str
) -> None:
    model = conv_net(batch=batch)
    entries, _ = emit(tmp_path, {"digits": model})
    path = tmp_path / "onnx/digits.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    x = image(1 if batch == 1 else 3)
    expected = reference(model, x)
    assert_same(run_ort(path, x), expected)
    core = openvino.Core()
    compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_same(compiled([x])[0], expected)
    size = None if batch == "N" else 1
    entry = entries["digits"]
    assert entry.inputs == (TensorSpec("image", (size, 3, 16, 16), "float32"),)
    assert entry.outputs == (TensorSpec("head_out", (size, 5), "float32"),)
    assert entry.dynamic_batch == (batch == "N")


def test_mapped_model_is_blocked_and_runs_without_optimisation(tmp_path: Path) -> None:
    model = conv_net()
    entries, _ = emit(tmp_path, {"digits": model})
    layout, files = host_layout(), entries["digits"].onnx
    assert layout is not None and files is not None, "this build of ONNX Runtime blocks channels"
    (variant,) = files.mapped
    assert variant.file == f"onnx/digits.{layout.isa}.onnx"
    assert (variant.block, variant.onnxruntime) == (layout.block, onnxruntime.__version__)
    assert not variant.prepacking, "the head has one row"
    proto = onnx.load(tmp_path / variant.file)
    domains = {(node.op_type, node.domain) for node in proto.graph.node}
    assert ("Conv", "com.microsoft.nchwc") in domains
    assert {o.domain for o in proto.opset_import} == {"", "com.microsoft.nchwc"}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(tmp_path / variant.file), options)
    (y,) = session.run(None, {"image": image()})
    assert_same(y, reference(model, image()))


def test_weights_lie_in_the_shared_file_and_shapes_in_the_model(tmp_path: Path) -> None:
    _, store = emit(tmp_path, {"a": conv_net(seed=1), "b": conv_net(seed=2, width=48)})
    for path in sorted((tmp_path / "onnx").glob("*.onnx")):
        proto = onnx.load(path, load_external_data=False)
        assert proto.ir_version == 10 and proto.producer_name == "mdprune"
        assert next(o.version for o in proto.opset_import if not o.domain) == 20
        assert path.stat().st_size < 8192, "no large tensor stays inside"
        for offset, length in external(path).values():
            assert offset % (4096 if length >= 4096 else 64) == 0
    a, b = external(tmp_path / "onnx/a.onnx"), external(tmp_path / "onnx/b.onnx")
    assert a["stem.weight"] == b["stem.weight"], "the backbone's bytes are stored once"
    assert a["conv1.weight"] != b["conv1.weight"]
    assert not {"head.shape", "head.bias"} & (a.keys() | b.keys())
    shared = {length for (_, length) in [a["stem.weight"], a["stem.bias"]]}
    assert store.bytes_shared >= sum(shared)
    assert store.size == (tmp_path / "onnx/weights.bin").stat().st_size


def test_model_given_is_left_as_it_was(tmp_path: Path) -> None:
    model = conv_net()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    emit(tmp_path, {"digits": model})
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_source_paths_of_exporters_are_dropped(tmp_path: Path) -> None:
    model = conv_net()
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "File /home/someone/secret.py"
    with StoreWriter(tmp_path / "weights.bin") as store:
        write_model(model, tmp_path / "a.onnx", store, "a")
    assert b"secret" not in (tmp_path / "a.onnx").read_bytes()


def _emit_twice(folder: str) -> None:
    models = {"a": conv_net(seed=1), "b": conv_net(seed=2)}
    for name in ("first", "second"):
        (Path(folder) / name).mkdir()
        emit(Path(folder) / name, models)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_model_same_bytes_in_one_process_and_in_two(tmp_path: Path) -> None:
    code = "import sys, test_onnx_target as t; t._emit_twice(sys.argv[1])"
    tests = Path(__file__).parent
    environment = {"PYTHONPATH": f"{tests}:{tests.parent}", "PYTHONHASHSEED": "7"}
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    _emit_twice(str(tmp_path / "here"))
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there")], check=True, env=environment
    )
    places = [tmp_path / p / q for p in ("here", "there") for q in ("first", "second")]
    hashes = [_hashes(place) for place in places]
    assert len(hashes[0]) == 5
    assert all(other == hashes[0] for other in hashes[1:])


def test_prepacking_is_kept_where_a_product_has_several_rows(tmp_path: Path) -> None:
    build, weight = Builder(), np.eye(64, dtype=np.float32)
    x = ir.val("image", dtype=ir.DataType.FLOAT, shape=[1, 7, 64])
    y = build.node("MatMul", [x, build.weight("w", weight)], "product")
    y.dtype, y.shape = ir.DataType.FLOAT, ir.Shape([1, 7, 64])
    entries, _ = emit(tmp_path, {"tokens": build.model([x], [y])})
    files = entries["tokens"].onnx
    assert files is not None and files.mapped[0].prepacking


def test_invalid_model_is_refused_by_name(tmp_path: Path) -> None:
    build = Builder()
    x = ir.val("image", dtype=ir.DataType.FLOAT, shape=[1, 4])
    y = build.node("Relu", [x], "act", no_such_attribute=1)
    y.dtype, y.shape = ir.DataType.FLOAT, ir.Shape([1, 4])
    with pytest.raises(UnsupportedGraphError, match=r"domain 'd': the emitted model is not valid"):
        emit(tmp_path, {"d": build.model([x], [y])})


def test_model_that_onnxruntime_refuses_is_not_called_a_full_disk(tmp_path: Path) -> None:
    build = Builder()
    x = ir.val("image", dtype=ir.DataType.DOUBLE, shape=[1, 2, 4, 4])
    weight = build.weight("w", np.ones((2, 2, 1, 1)))
    y = build.node("Conv", [x, weight], "conv")
    y.dtype, y.shape = ir.DataType.DOUBLE, ir.Shape([1, 2, 4, 4])
    with pytest.raises(UnsupportedGraphError, match=r"domain 'd': ONNX Runtime .* does not take"):
        emit(tmp_path, {"d": build.model([x], [y])})


def test_output_without_a_shape_is_refused_by_name(tmp_path: Path) -> None:
    build = Builder()
    x = ir.val("image", dtype=ir.DataType.FLOAT, shape=[1, 4])
    y = build.node("Relu", [x], "act")
    with pytest.raises(UnsupportedGraphError, match="domain 'd': input or output 'act_out' has no"):
        emit(tmp_path, {"d": build.model([x], [y])})


def test_file_stems_are_safe_and_distinct() -> None:
    domains = ["digits", "Digits", "../etc/passwd", "a b", "a/b", "", "ü", "x" * 300, "n.avx512"]
    stems = file_stems(domains)
    assert list(stems) == domains
    assert stems["digits"] == "digits" and stems["Digits"] == "Digits-2"
    assert stems["../etc/passwd"] == "etc_passwd"
    assert {stems["a b"], stems["a/b"]} == {"a_b", "a_b-2"}
    assert len({stem.lower() for stem in stems.values()}) == len(domains)
    for stem in stems.values():
        assert 1 <= len(stem) <= 64 and stem.replace("-", "").replace("_", "").isalnum()
        assert stem.isascii()
