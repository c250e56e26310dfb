"""`verify_bundle` and `mdprune verify`: every way in which a bundle can be wrong is told apart."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_checkpoints import (
    DOMAINS,
    bless,
    bundle,
    checkpoint,
    copy_of_bundle,
    domains,
    edit_manifest,
    network,
)
from typer.testing import CliRunner, Result

import mdprune_deploy as mdp
from mdprune_deploy.check import DomainCheck, verify_bundle
from mdprune_deploy.cli import app
from mdprune_deploy.errors import BundleError, VerificationError
from mdprune_deploy.layout.nchwc import host_layout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_of_bundle(tmp_path)


def verify(path: Path, *more: object) -> Result:
    arguments = ["verify", path, "--against", *(more or [checkpoint()])]
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(a) for a in arguments])


def refused(result: Result, code: int, *parts: str) -> None:
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def tensor_of(model: Path, op: str) -> tuple[int, int]:
    """Returns offset and length in weights.bin of the weight of a model's first node of a kind."""
    proto = onnx.load(model, load_external_data=False)
    name = next(node.input[1] for node in proto.graph.node if node.op_type == op)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    return int(place["offset"]), int(place["length"])


def spoil(path: Path, model: Path, op: str = "Conv") -> None:
    """Adds 1 to every element of a weight in weights.bin."""
    weights = path / "onnx" / "weights.bin"
    offset, length = tensor_of(model, op)
    data = bytearray(weights.read_bytes())
    values = np.frombuffer(data[offset : offset + length], np.float32) + np.float32(1)
    data[offset : offset + length] = values.tobytes()
    weights.write_bytes(data)


def edit_model(path: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    """Changes the portable model of the first domain and enters its hash."""
    file = path / "onnx" / "first.onnx"
    proto = onnx.load(file, load_external_data=False)
    edit(proto)
    file.write_bytes(proto.SerializeToString())
    bless(path, "onnx/first.onnx")


def test_a_good_bundle_passes_in_every_engine() -> None:
    found = verify_bundle(bundle(), checkpoint())
    assert list(found) == list(DOMAINS)
    layout = host_layout()
    assert layout is not None
    for check in found.values():
        assert {name for name in check.engines if not name.startswith("native ")} == {
            "onnxruntime portable",
            f"onnxruntime {layout.isa}-mapped",
        }
        assert check.graph_rel_error <= 1e-9
        assert 0 < check.stored_rel_error <= 1e-5  # float32 is not exact: something was compared
        assert 0 < check.max_rel_error <= 1e-5 and check.skipped == {}
        assert check.max_rel_error == max(check.engines.values())


def test_the_command_prints_a_table_or_json() -> None:
    result = verify(bundle())
    assert result.exit_code == 0 and result.stderr == ""
    assert all(name in result.stdout for name in DOMAINS) and "files intact" in result.stdout
    tree = json.loads(verify(bundle(), checkpoint(), "--json").stdout)
    fields = {field.name for field in dataclasses.fields(DomainCheck)}
    assert all(set(domain) == fields for domain in tree["domains"].values())


def test_changed_bytes_are_damage(copy: Path) -> None:
    spoil(copy, copy / "onnx" / "first.onnx")
    refused(verify(copy), 3, "weights.bin: sha256 is", "the file was changed or damaged")


def test_changed_weights_with_a_right_hash_are_a_difference(copy: Path) -> None:
    spoil(copy, copy / "onnx" / "first.onnx")
    bless(copy, "onnx/weights.bin")
    refused(
        verify(copy), 5, "domain 'first': the graph in onnx/first.onnx differs from the reference",
        "relative error", "the first node that differs is Conv '",
    )  # fmt: skip


def test_a_changed_head_is_named_not_what_comes_before_it(copy: Path) -> None:
    spoil(copy, copy / "onnx" / "second.onnx", "Gemm")
    bless(copy, "onnx/weights.bin")
    refused(verify(copy), 5, "domain 'second'", "the first node that differs is Gemm")


def test_changed_blocked_weights_are_a_difference_of_the_mapped_model(copy: Path) -> None:
    layout = host_layout()
    assert layout is not None
    spoil(copy, copy / "onnx" / f"first.{layout.isa}.onnx")
    bless(copy, "onnx/weights.bin")
    refused(
        verify(copy), 5, "domain 'first': the mapped ONNX model in ONNX Runtime differs",
        "the first node that differs is Conv",
    )  # fmt: skip


def test_a_changed_operator_is_named(copy: Path) -> None:
    def negate(proto: onnx.ModelProto) -> None:
        next(n for n in proto.graph.node if n.op_type == "Relu").op_type = "Neg"

    edit_model(copy, negate)
    refused(verify(copy), 5, "the graph in onnx/first.onnx", "first node that differs is Neg")


def test_a_model_that_cannot_be_read_is_damage(copy: Path) -> None:
    (copy / "onnx" / "first.onnx").write_bytes(b"\xff" * 100)
    bless(copy, "onnx/first.onnx")
    refused(verify(copy), 3, "first.onnx: the model cannot be read")


def test_a_renamed_input_is_a_difference(copy: Path) -> None:
    def rename(proto: onnx.ModelProto) -> None:
        old = proto.graph.input[0].name
        proto.graph.input[0].name = "picture"
        for node in proto.graph.node:
            node.input[:] = ["picture" if name == old else name for name in node.input]

    edit_model(copy, rename)
    refused(verify(copy), 5, "onnx/first.onnx takes picture; the checkpoint's network takes x")


def saved(path: Path, net: torch.nn.Module, **options: Any) -> Path:
    example = torch.zeros(1, 3, 8, 8)
    mdp.save_checkpoint(path, net, example, domains(**options))
    return path


def test_another_checkpoint_with_the_same_masks(tmp_path: Path) -> None:
    net = network()
    with torch.no_grad():
        net.get_parameter("conv1.weight").mul_(1.001)
    other = saved(tmp_path / "m.pt", net)
    with pytest.raises(VerificationError, match="first node that differs is Conv '"):
        verify_bundle(bundle(), other)


def test_other_domains(tmp_path: Path) -> None:
    other = saved(tmp_path / "m.pt", network(), names=("first", "third"))
    refused(verify(bundle(), other), 5, "has the domains first, second; the checkpoint has first,")


def test_the_budget_of_the_compile_is_recorded(tmp_path: Path) -> None:
    mdp.compile(checkpoint("scores"), tmp_path / "out", budget=0.5)
    assert verify(tmp_path / "out", checkpoint("scores")).exit_code == 0

    def dense(tree: dict[str, Any]) -> None:
        tree["budget"] = None

    edit_manifest(tmp_path / "out", dense)
    refused(
        verify(tmp_path / "out", checkpoint("scores")), 5, "'conv1.weight' it uses 216 weights",
        "the checkpoint's masks 324",
    )  # fmt: skip


def test_a_variant_of_another_host_is_said_to_be_left_out(copy: Path) -> None:
    def older(tree: dict[str, Any]) -> None:
        for model in tree["models"].values():
            model["targets"]["onnx"]["mapped"][0]["onnxruntime"] = "1.0.0"

    edit_manifest(copy, older)
    result = verify(copy, checkpoint(), "--json")
    assert result.exit_code == 0
    for domain in json.loads(result.stdout)["domains"].values():
        ran = [name for name in domain["engines"] if name.startswith("onnxruntime ")]
        assert ran == ["onnxruntime portable"]
        assert "with ONNX Runtime 1.0.0" in domain["skipped"]["onnxruntime mapped"]
    assert "first: onnxruntime mapped was not run: " in result.stderr


def test_a_damaged_manifest_is_no_bundle(copy: Path) -> None:
    edit_manifest(copy, lambda tree: tree["domains"]["first"]["layers"][0].pop("name"))
    with pytest.raises(BundleError, match="has no field 'name'"):
        verify_bundle(copy, checkpoint())


def test_progress_is_told_every_domain() -> None:
    calls: list[tuple[str, int, int]] = []
    verify_bundle(bundle(), checkpoint(), progress=lambda *call: calls.append(call))
    assert calls == [("first", 0, 2), ("second", 1, 2)]
