"""Adding, replacing and dropping domains: exact, small, and nothing of the others is touched."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from interpreted import InterpretedEngine
from torch import nn
from typer.testing import CliRunner

import mdprune_deploy as mdp
from mdprune_deploy import extend, pipeline
from mdprune_deploy.bundle import read_bundle
from mdprune_deploy.cli import app
from mdprune_deploy.emit.native.operators import Convolution
from mdprune_deploy.emit.native.plan import read_plan
from mdprune_deploy.emit.native.record import read_record
from mdprune_deploy.layout import extend as layout_extend
from mdprune_deploy.layout import union


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "NativeEngine", InterpretedEngine)
    monkeypatch.setattr(pipeline, "load_library", lambda: None)


class Net(nn.Module):
    """Convolutions of both kinds, a sum and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 48, 3, padding=1)
        self.norm = nn.BatchNorm2d(48)
        self.second = nn.Conv2d(48, 64, 3, padding=1)
        self.third = nn.Conv2d(64, 48, 1)
        self.head = nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.first(x)))
        z = torch.relu(y + self.third(torch.relu(self.second(y))))
        return self.head(z.mean((2, 3)))


def domain(seed: int) -> mdp.Domain:
    generator = torch.Generator().manual_seed(seed)

    def some(size: int) -> mdp.Mask:
        on = torch.rand(size, generator=generator) < 0.5
        on[: size // 4] = True
        return mdp.Mask(on, "in")

    return mdp.Domain(
        {"second": some(48), "third": some(64)},
        {"norm.bias": torch.randn(48, generator=generator),
         "head.weight": torch.randn(2 + seed % 3, 48, generator=generator),
         "head.bias": torch.randn(2 + seed % 3, generator=generator)},
        labels=[f"class {c}" for c in range(2 + seed % 3)],
    )  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> mdp.Checkpoint:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    domains = {name: domain(seed) for seed, name in enumerate(("a", "b", "c", "new"))}
    mdp.save_checkpoint(path, Net().eval(), torch.randn(1, 3, 6, 6), domains)
    return mdp.load_checkpoint(path)


def only(checkpoint: mdp.Checkpoint, *names: str) -> mdp.Checkpoint:
    return dataclasses.replace(checkpoint, domains={n: checkpoint.domains[n] for n in names})


@pytest.fixture
def bundle(given: mdp.Checkpoint, tmp_path: Path) -> Path:
    mdp.compile(only(given, "a", "b", "c"), tmp_path / "bundle", targets=["native"])
    return tmp_path / "bundle"


def outputs(bundle: Path, name: str, x: np.ndarray) -> np.ndarray:
    model = read_bundle(bundle).manifest.models[name]
    return InterpretedEngine(bundle, name, model)(x)[0]


X = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)


def assert_exact(bundle: Path, checkpoint: mdp.Checkpoint, *names: str) -> None:
    read_bundle(bundle).check_hashes()
    assert list(read_bundle(bundle).manifest.models) == list(names)
    for name in names:
        want = mdp.reference(checkpoint, name)(X)
        want = want[0] if isinstance(want, list) else want
        have = outputs(bundle, name, X)
        assert np.abs(have - want).max() <= 1e-5 * np.abs(want).max()  # of the contract


def inodes(bundle: Path) -> dict[str, int]:
    return {
        path.relative_to(bundle).as_posix(): path.stat().st_ino
        for path in bundle.rglob("*")
        if path.is_file()
    }


def test_an_added_domain_is_exact_and_the_others_keep_their_files(
    given: mdp.Checkpoint, bundle: Path
) -> None:
    before = inodes(bundle)
    change = mdp.add_domain(bundle, given, "new")
    after = inodes(bundle)
    assert_exact(bundle, given, "a", "b", "c", "new")
    changed = {"manifest.json", "native/index.bin", "native/union.json"}
    assert {path for path in before if after[path] != before[path]} == changed
    assert set(after) - set(before) == {"native/new.plan", "native/weights-1.bin"}
    sizes = {path: (bundle / path).stat().st_size for path in set(after) - set(before)}
    assert (change.domain, change.action) == ("new", "added")
    assert change.bytes_written == sum(sizes.values())
    assert change.bytes_weights == sizes["native/weights-1.bin"]
    assert change.bytes_reused > 0 and change.bytes_removed == 0
    assert change.figures is not None and change.figures.max_rel_error <= 1e-5


def test_an_added_domain_stores_less_than_its_copy(given: mdp.Checkpoint, bundle: Path) -> None:
    change = mdp.add_domain(bundle, given, "new")
    alone = bundle.with_name("alone")
    mdp.compile(only(given, "new"), alone, targets=["native"])
    whole = (alone / "native" / "weights.bin").stat().st_size
    assert change.bytes_weights < 0.5 * whole
    # Of one domain more, everything is there: the head of `a`, and what its masks keep.
    again = dataclasses.replace(given, domains={"again": given.domains["a"]})
    change = mdp.add_domain(bundle, again)
    assert change.bytes_weights == 0
    assert not (bundle / "native" / "weights-2.bin").exists()
    assert_exact(bundle, dataclasses.replace(given, domains={**given.domains, **again.domains}),
                 "a", "b", "c", "new", "again")  # fmt: skip


def test_slabs_that_lack_filters_are_completed(
    given: mdp.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, cost in ((union, "GROUP_COST"), (layout_extend, "JOIN_COST")):
        monkeypatch.setattr(module, cost, 0)  # the network is small
    bundle = tmp_path / "out"
    mdp.compile(only(given, "a", "b", "c"), bundle, targets=["native"])
    mdp.add_domain(bundle, given, "new")
    assert_exact(bundle, given, "a", "b", "c", "new")
    plan = read_plan(bundle / "native" / "new.plan")
    products = [o for o in plan.operators if isinstance(o, Convolution)]
    assert [outputs for o in products for _, _, _, outputs in o.weights if outputs is not None]


def test_figures_after_adding_are_those_of_compiling_all(
    given: mdp.Checkpoint, bundle: Path
) -> None:
    mdp.add_domain(bundle, given, "new")
    whole = mdp.compile(given, bundle.with_name("whole"), targets=["native"])
    report = read_bundle(bundle).manifest.report
    assert report.params_union == whole.params_union
    assert report.params_intersection == whole.params_intersection
    assert list(report.domains) == list(whole.domains)
    for name, figures in whole.domains.items():
        same = dataclasses.replace(
            report.domains[name],
            max_abs_error=figures.max_abs_error,
            max_rel_error=figures.max_rel_error,
        )
        assert same == figures
    layout = {weight.name: weight for weight in report.layout}
    for weight in whole.layout:
        have = layout[weight.name]
        assert (have.bytes_dense, have.bytes_union) == (weight.bytes_dense, weight.bytes_union)
        assert (have.bytes_copies, have.readers) == (weight.bytes_copies, weight.readers)
    stored = sum(path.stat().st_size for path in (bundle / "native").glob("weights*.bin"))
    padding = 64 * 200  # tensors are aligned
    assert sum(weight.bytes_stored for weight in report.layout) <= stored
    assert report.bytes_shared + report.bytes_private <= stored + padding


def test_a_replaced_domain_keeps_its_place(given: mdp.Checkpoint, bundle: Path) -> None:
    other = dataclasses.replace(given, domains={"b": given.domains["new"]})
    with pytest.raises(mdp.UsageError) as caught:
        mdp.add_domain(bundle, other)
    assert str(caught.value) == f"{bundle} has a domain 'b'; --force replaces it"
    change = mdp.add_domain(bundle, other, replace=True)
    assert change.action == "replaced" and change.bytes_removed > 0
    mixed = {**given.domains, "b": given.domains["new"]}
    assert_exact(bundle, dataclasses.replace(given, domains=mixed), "a", "b", "c")
    assert read_bundle(bundle).manifest.models["b"].labels == tuple(given.domains["new"].labels)


def test_a_dropped_domain_leaves_with_what_was_its_alone(
    given: mdp.Checkpoint, bundle: Path
) -> None:
    before = inodes(bundle)
    change = mdp.add_domain(bundle, given, "new")
    added = change.bytes_written
    change = mdp.drop_domain(bundle, "new")
    assert (change.action, change.figures, change.bytes_removed) == ("dropped", None, added)
    assert change.bytes_written == 0
    assert set(inodes(bundle)) == set(before)
    assert_exact(bundle, given, "a", "b", "c")
    mdp.drop_domain(bundle, "a")
    assert_exact(bundle, given, "b", "c")
    whole = mdp.compile(only(given, "b", "c"), bundle.with_name("whole"), targets=["native"])
    report = read_bundle(bundle).manifest.report
    assert report.params_union == whole.params_union
    assert report.params_intersection == whole.params_intersection
    assert all("a" not in weight.readers for weight in report.layout)
    mdp.add_domain(bundle, given, "a")
    assert_exact(bundle, given, "b", "c", "a")


def test_the_onnx_target_gets_the_domain_too(given: mdp.Checkpoint, tmp_path: Path) -> None:
    bundle = tmp_path / "both"
    mdp.compile(only(given, "a", "b"), bundle, targets=["onnx", "native"])
    mdp.add_domain(bundle, given, "new")
    engine = mdp.load(bundle, "new", engine="onnxruntime")
    want = mdp.reference(given, "new")(X)
    assert np.abs(engine(X) - want).max() <= 1e-5 * np.abs(want).max()
    report = read_bundle(bundle).manifest.report
    whole = mdp.compile(
        only(given, "a", "b", "new"), tmp_path / "whole", targets=["onnx", "native"]
    )
    assert report.domains["new"].params_emitted == whole.domains["new"].params_emitted
    mdp.drop_domain(bundle, "a")
    assert_exact(bundle, given, "b", "new")
    assert not (bundle / "onnx" / "a.onnx").exists()


def test_another_backbone_is_refused(given: mdp.Checkpoint, bundle: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = tmp_path / "other.pt"
    mdp.save_checkpoint(path, Net().eval(), torch.randn(1, 3, 6, 6), {"new": domain(3)})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(mdp.CheckpointError) as caught:
        mdp.add_domain(bundle, path)
    assert str(caught.value) == (
        "weight 'first.weight' is not the one that the bundle's domains share: the checkpoint has "
        "another backbone"
    )
    small = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(144, 2)).eval()
    mdp.save_checkpoint(path, small, torch.randn(1, 3, 6, 6), {"new": mdp.Domain()})
    with pytest.raises(mdp.CheckpointError) as caught:
        mdp.add_domain(bundle, path)
    assert str(caught.value) == "the domain shares no weight with those of the bundle"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("when", ["_link", "_finish", "write_index"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupt_leaves_the_bundle_as_it_was(
    given: mdp.Checkpoint,
    bundle: Path,
    when: str,
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = inodes(bundle)

    def stop(*arguments: object) -> None:
        raise error(28, "No space left on device") if error is OSError else error

    monkeypatch.setattr(extend, when, stop)
    for change in (lambda: mdp.add_domain(bundle, given, "new"),
                   lambda: mdp.drop_domain(bundle, "a")):  # fmt: skip
        with pytest.raises(mdp.UsageError if error is OSError else error):
            change()
        assert inodes(bundle) == before and [p.name for p in bundle.parent.iterdir()] == ["bundle"]
    assert_exact(bundle, given, "a", "b", "c")


def test_copies_where_links_are_impossible(
    given: mdp.Checkpoint, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    mdp.add_domain(bundle, given, "new")
    assert_exact(bundle, given, "a", "b", "c", "new")


def test_what_is_open_goes_on(given: mdp.Checkpoint, bundle: Path) -> None:
    model = read_bundle(bundle).manifest.models["a"]
    before = outputs(bundle, "a", X)
    engine = InterpretedEngine(bundle, "a", model)
    engine(X)  # reads its weights
    mapped = np.memmap(bundle / "native" / "weights.bin", np.uint8, "r")
    content = mapped.tobytes()
    mdp.drop_domain(bundle, "a")
    mdp.add_domain(bundle, given, "new")
    np.testing.assert_array_equal(engine(X)[0], before)
    assert mapped.tobytes() == content


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, c: mdp.add_domain(b, c),
         "the checkpoint has several domains: a, b, c, new; --domain says which"),
        (lambda b, c: mdp.add_domain(b, c, "x"),
         "the checkpoint has no domain 'x'; it has a, b, c, new"),
        (lambda b, c: mdp.drop_domain(b, "x"), "{} has no domain 'x'; it has a, b, c"),
    ],
)  # fmt: skip
def test_wrong_names(given: mdp.Checkpoint, bundle: Path, call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(mdp.UsageError) as caught:
        call(bundle, given)
    assert str(caught.value) == message.format(bundle)


def test_the_last_domain_stays(given: mdp.Checkpoint, tmp_path: Path) -> None:
    bundle = tmp_path / "one"
    mdp.compile(only(given, "a"), bundle, targets=["native"])
    with pytest.raises(mdp.UsageError) as caught:
        mdp.drop_domain(bundle, "a")
    assert str(caught.value) == f"'a' is the only domain of {bundle}; remove the bundle"
    mdp.add_domain(bundle, given, "b")
    assert_exact(bundle, given, "a", "b")


def test_a_bundle_without_the_native_target(given: mdp.Checkpoint, tmp_path: Path) -> None:
    bundle = tmp_path / "onnx"
    mdp.compile(only(given, "a"), bundle, targets=["onnx"])
    with pytest.raises(mdp.UsageError) as caught:
        mdp.add_domain(bundle, given, "b")
    assert str(caught.value) == (
        f"{bundle} has no native target, which says what its domains share; compile it again with "
        "all domains"
    )


def test_the_recorded_budget_holds_for_an_added_domain(
    given: mdp.Checkpoint, tmp_path: Path
) -> None:
    bundle = tmp_path / "budget"
    mdp.compile(only(given, "a", "b"), bundle, budget=0.9, targets=["native"])
    full = mdp.Domain({"second": mdp.Mask(torch.ones(48, dtype=torch.bool), "in")})
    with pytest.raises(mdp.BudgetError):
        mdp.add_domain(bundle, dataclasses.replace(given, domains={"full": full}))


def test_a_damaged_weight_file_is_found(given: mdp.Checkpoint, bundle: Path) -> None:
    path = bundle / "native" / "weights.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(mdp.BundleError, match="the file was changed or damaged"):
        mdp.add_domain(bundle, given, "new")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version":1', '"version":2', "version 2; this mdprune reads 1"),
        ('"orders"', '"other"', "damaged: KeyError 'orders'"),
        ('"shape":[', '"shape":[-1,', "damaged: ValueError -1 is no size"),
        (
            '"file":"weights.bin"',
            '"file":"../x"',
            "damaged: ValueError '../x' is no plain file name",
        ),
        ("{", "", "not valid JSON"),
    ],
)
def test_a_record_that_is_damaged(bundle: Path, old: str, new: str, message: str) -> None:
    path = bundle / "native" / "union.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(mdp.BundleError) as caught:
        read_record(bundle / "native")
    assert str(caught.value).startswith(f"{path}: {message}")


def test_commands(given: mdp.Checkpoint, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.pt"
    torch.manual_seed(0)
    mdp.save_checkpoint(path, Net().eval(), torch.randn(1, 3, 6, 6), {"new": domain(3)})
    runner = CliRunner(env={"COLUMNS": "200"})
    result = runner.invoke(app, ["add", str(bundle), str(path), "--json"])
    assert result.exit_code == 0
    change = json.loads(result.stdout)
    assert (change["domain"], change["action"], change["version"]) == ("new", "added", 1)
    assert runner.invoke(app, ["add", str(bundle), str(path)]).exit_code == 2
    result = runner.invoke(app, ["add", str(bundle), str(path), "--force"])
    assert result.exit_code == 0 and "replaced 'new', largest error" in result.stdout
    result = runner.invoke(app, ["drop", str(bundle), "new"])
    assert result.exit_code == 0 and "dropped 'new'" in result.stdout
    assert runner.invoke(app, ["drop", str(bundle), "new"]).exit_code == 2
    assert_exact(bundle, given, "a", "b", "c")
