"""Building engines: what is asked for and missing, and TensorRT-RTX where it is installed."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_tensorrt
import numpy as np
import onnx_ir as ir
import pytest
import tiny_checkpoints
from typer.testing import CliRunner

import mdprune_deploy as mdp
from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.cli import app
from mdprune_deploy.emit.tensorrt import choose as choosing
from mdprune_deploy.emit.tensorrt.node import GatherConv, parse
from mdprune_deploy.engines import tensorrt_build
from mdprune_deploy.engines.tensorrt_build import build_engine, choose_model, engine_path

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


@functools.cache
def bundle() -> Path:
    """A bundle with plug-in nodes in both domains; nobody may change it."""
    path = tiny_checkpoints._folder() / "tensorrt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "_decide", lambda weight, saved, moved: (True, "test"))
        mdp.compile(tiny_checkpoints.checkpoint(), path, targets=["tensorrt"])
    return path


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither TensorRT nor the plug-in library is there, whatever this machine has."""

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(tensorrt_build, "importlib", SimpleNamespace(import_module=missing))
    monkeypatch.setattr(tensorrt_build, "plugin_library", lambda: None)


def mdprune(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.usefixtures("absent")
def test_what_is_not_installed_is_said() -> None:
    with pytest.raises(
        mdp.BackendUnavailableError, match=r"pip install 'mdprune-deploy\[tensorrt\]"
    ):
        mdp.load(bundle(), "first", "tensorrt")
    result = mdprune("build-trt", str(bundle()))
    assert result.exit_code == 7 and "TensorRT is not installed" in result.stderr
    assert "JetPack" in result.stderr and "first: libmdprune_tensorrt.so is not" in result.stderr
    result = mdprune("build-trt", str(bundle()), "--rtx")
    assert result.exit_code == 7 and r"pip install 'mdprune-deploy[tensorrt-rtx]'" in result.stderr
    result = mdprune("build-trt", str(bundle()), "--plugins")
    assert result.exit_code == 7 and "docs/jetson.md" in result.stderr
    with pytest.raises(mdp.BackendUnavailableError, match="pycuda is not installed"):
        tensorrt_build.import_cuda()


@pytest.mark.usefixtures("absent")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int4"], "unknown precision 'int4'; there are fp16, fp32"),
        (["--domain", "third"], "unknown domain 'third'"),
        (["--batch", "0"], "batch is 0, at least 1 is needed"),
        (["--rtx", "--plugins"], "TensorRT-RTX builds the stock models only"),
        (["--gpu", "SM89"], "--gpu is TensorRT-RTX's"),
    ],
)
def test_wrong_arguments(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(tensorrt_build, "plugin_library", lambda: Path("there.so"))
    result = mdprune("build-trt", str(bundle()), *arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_the_engine_checks_its_arguments() -> None:
    with pytest.raises(mdp.UsageError, match="unknown variant 'x'; there are plugins, stock"):
        mdp.load(bundle(), "first", "tensorrt", variant="x")
    with pytest.raises(mdp.UsageError, match="unknown precision 'int8'"):
        mdp.load(bundle(), "first", "tensorrt", precision="int8")
    with pytest.raises(mdp.UsageError, match="threads is 0"):
        mdp.load(bundle(), "first", "tensorrt", threads=0)
    with pytest.raises(mdp.BackendUnavailableError, match="compile it with --target tensorrt"):
        mdp.load(tiny_checkpoints.bundle(), "first", "tensorrt")


def test_the_model_is_chosen_by_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = read_bundle(bundle())
    monkeypatch.setattr(tensorrt_build, "plugin_library", lambda: Path("there.so"))
    for precision in ("fp16", "fp32"):
        for plugins, kind in ((None, ""), (True, ""), (False, ".stock")):
            model, note = choose_model(opened, "first", precision, plugins)
            assert (model.file, note) == (f"tensorrt/first{kind}.{precision}.onnx", None)
    monkeypatch.setattr(tensorrt_build, "plugin_library", lambda: None)
    model, note = choose_model(opened, "first", "fp16", None)
    assert model.plugins == 0 and note is not None and "its own copy of the weights" in note


def test_a_model_that_was_left_out_is_said(tmp_path: Path) -> None:
    path = tmp_path / "stock"
    mdp.compile(tiny_checkpoints.checkpoint(), path, targets=["tensorrt"])
    with pytest.raises(mdp.BackendUnavailableError, match="no layer gains by the plug-in"):
        choose_model(read_bundle(path), "first", "fp16", True)


def test_the_engine_name_follows_the_content(tmp_path: Path) -> None:
    opened = read_bundle(bundle())
    stock, own = (choose_model(opened, "first", "fp32", False)[0] for _ in range(2))
    path = engine_path(opened, "first", stock, "sm87.trt10.3.0")
    assert path.parent == bundle().with_name("tensorrt.engines")
    assert path.name.startswith("first.stock.fp32.sm87.trt10.3.0.")
    assert path == engine_path(opened, "first", own, "sm87.trt10.3.0")
    copy = tiny_checkpoints.shutil.copytree(bundle(), tmp_path / "tensorrt")
    (copy / "tensorrt/weights.bin").write_bytes(b"other")
    tiny_checkpoints.bless(copy, "tensorrt/weights.bin")
    assert engine_path(read_bundle(copy), "first", stock, "sm87.trt10.3.0").name != path.name


# The engine, with TensorRT and pycuda as fakes


@pytest.fixture
def faked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of stock models, on a machine with TensorRT."""
    monkeypatch.setattr(tensorrt_build, "plugin_library", lambda: None)
    fake_tensorrt.install(monkeypatch)
    return Path(tiny_checkpoints.shutil.copytree(bundle(), tmp_path / "out"))


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-5), ("float16", 5e-3)])
def test_the_engine_runs_what_it_built(faked: Path, precision: str, bound: float) -> None:
    engine = mdp.load(faked, "first", "tensorrt", precision=precision)
    assert engine.variant == f"stock fp{precision[-2:]}" and engine.note is not None
    x = images(1)
    found = engine(x)
    expected = mdp.reference(mdp.load_checkpoint(tiny_checkpoints.checkpoint()), "first")(x)
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()
    assert engine.phases() == {"host_to_device": 2e-3, "compute": 2e-3, "device_to_host": 2e-3}
    assert np.array_equal(engine(x), found)


def test_an_engine_is_built_once(faked: Path) -> None:
    for _ in range(2):
        mdp.load(faked, "first", "tensorrt")(images(1))
    assert fake_tensorrt.built == [str(faked / "tensorrt/first.stock.fp32.onnx")]
    folder = faked.with_name("out.engines")
    (name,) = (path.name for path in folder.glob("*.engine"))
    assert name.startswith("first.stock.fp32.sm87.trt10.3.0.")
    assert (folder / "timing.sm87.trt10.3.0.cache").read_bytes() == b"more"
    mdp.load(faked, "second", "tensorrt")
    assert (folder / "timing.sm87.trt10.3.0.cache").read_bytes() == b"moremore"


def test_bench_tells_copies_and_computing_apart(faked: Path) -> None:
    options = ["--latency-only", "--runs", "3", "--json"]
    result = mdprune("bench", str(faked), "--engine", "tensorrt:cuda:float16", *options)
    assert result.exit_code == 0, result.stderr
    for run in json.loads(result.stdout)["runs"]:
        assert (run["engine"], run["device"], run["precision"]) == ("tensorrt", "cuda", "float16")
        phases = [run[f"{p}_p50_ms"] for p in ("host_to_device", "compute", "device_to_host")]
        assert None not in phases


def test_the_batch_that_an_engine_is_built_for(faked: Path) -> None:
    engine = mdp.load(faked, "first", "tensorrt")
    with pytest.raises(mdp.UsageError, match="not built for input 'x' of shape"):
        engine(images(3))
    result = mdprune("build-trt", str(faked), "--precision", "fp32", "--batch", "3", "--json")
    assert result.exit_code == 0, result.stderr
    (first, _) = json.loads(result.stdout)["engines"]
    assert first["runtime"] == "tensorrt 10.3.0" and first["model"].endswith("stock.fp32.onnx")
    assert mdp.load(faked, "first", "tensorrt")(images(3)).shape == (3, 5)


@needs_rtx
def test_the_real_modules_have_what_is_called() -> None:
    """TensorRT-RTX has TensorRT's Python interface."""
    import tensorrt_rtx as trt

    for fake, real in (
        (fake_tensorrt.Builder, trt.Builder),
        (fake_tensorrt.Parser, trt.OnnxParser),
        (fake_tensorrt.Profile, trt.IOptimizationProfile),
        (fake_tensorrt.Config, trt.IBuilderConfig),
        (fake_tensorrt.Context, trt.IExecutionContext),
        (fake_tensorrt.Runtime, trt.Runtime),
    ):
        called = {name for name in vars(fake) if not name.startswith("_")}
        assert called and called <= set(dir(real))


# TensorRT-RTX


def rtx_copy(tmp_path: Path) -> Path:
    return Path(tiny_checkpoints.shutil.copytree(bundle(), tmp_path / "out"))


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_rtx_builds_the_stock_models_without_a_gpu(tmp_path: Path, precision: str) -> None:
    out = rtx_copy(tmp_path)
    result = mdprune(
        "build-trt", str(out), "--rtx", "--precision", precision, "--gpu", "SM89", "--json"
    )
    assert result.exit_code == 0, result.stderr
    engines = json.loads(result.stdout)["engines"]
    assert [engine["domain"] for engine in engines] == ["first", "second"]
    for engine in engines:
        assert engine["plugins"] == 0 and engine["precision"] == precision
        assert engine["runtime"].startswith("tensorrt-rtx ")
        assert Path(engine["file"]).stat().st_size == engine["bytes"] > 0
    read_bundle(out).check_hashes()


@needs_rtx
def test_rtx_names_the_gpus_that_it_knows() -> None:
    with pytest.raises(mdp.UsageError, match=r"unknown GPU 'SM12'; .*SM89"):
        build_engine(read_bundle(bundle()), "first", runtime="tensorrt-rtx", capabilities=["SM12"])


@needs_rtx
def test_its_parser_hands_every_attribute_to_the_plugin() -> None:
    """The parser is TensorRT's; a plug-in in Python stands in for the one in C++."""
    import tensorrt_rtx as trt

    received: list[dict[str, Any]] = []

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = "GatherConv", "1", "mdprune"
            kinds = {"files": trt.PluginFieldType.CHAR}
            floats = ("scale", "shift", "alpha", "beta")
            names = [*node_attributes(), "bits", "rows"]
            kinds |= dict.fromkeys(floats, trt.PluginFieldType.FLOAT32)
            self.field_names = trt.PluginFieldCollection(
                [
                    trt.PluginField(name, np.array([]), kinds.get(name, trt.PluginFieldType.INT32))
                    for name in dict.fromkeys(names)
                ]
            )

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            received.append({field.name: _data(field, trt) for field in fields})
            return None

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    creator = Creator()
    registry = builder.get_plugin_registry()
    registry.register_creator(creator, "mdprune")
    try:
        network = builder.create_network(0)
        path = bundle() / "tensorrt/first.fp32.onnx"
        assert not trt.OnnxParser(network, logger).parse_from_file(str(path)), "it makes no plug-in"
    finally:
        registry.deregister_creator(creator)
    node = next(node for node in ir.load(path).graph if node.op_type == "GatherConv")
    expected = parse(node).attributes()
    assert len(received) == 1
    for name in expected.keys() - {"plugin_version", "plugin_namespace"}:
        assert np.array_equal(received[0][name], np.atleast_1d(expected[name])), name


def node_attributes() -> list[str]:
    graph = ir.load(bundle() / "tensorrt/first.fp32.onnx").graph
    node: GatherConv = next(parse(node) for node in graph if node.op_type == "GatherConv")
    return [name for name in node.attributes() if not name.startswith("plugin_")]


def _data(field: Any, trt: Any) -> Any:
    """Returns a field's data: text, or numbers."""
    kinds = {
        trt.PluginFieldType.CHAR: ctypes.c_char,
        trt.PluginFieldType.INT32: ctypes.c_int32,
        trt.PluginFieldType.FLOAT32: ctypes.c_float,
    }
    array = np.asarray(field.data)
    if field.type == trt.PluginFieldType.CHAR:
        return np.atleast_1d(array.tobytes().rstrip(b"\0").decode())
    return np.frombuffer(array.tobytes(), kinds[field.type])
