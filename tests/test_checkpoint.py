import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import safetensors.torch
import torch
from hostile.checkpoints import CASES, read_parts, write_parts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mdprune_deploy import checkpoint, checkpoint_file, export
from mdprune_deploy.checkpoint import Checkpoint, load_checkpoint, masks_of, save_checkpoint
from mdprune_deploy.domain import Domain, Mask
from mdprune_deploy.errors import CheckpointError, UsageError
from mdprune_deploy.evaluate import evaluate


class Small(nn.Module):
    """Convolution, batch norm, grouped and transposed convolutions, linear head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=4)
        self.up = nn.ConvTranspose2d(12, 8, 2, groups=2)
        self.fc = nn.Linear(8, 5)
        self.register_buffer("unused", torch.ones(3))

    def forward(self, x):
        y = torch.relu(self.bn(self.conv(x)))
        return self.fc(self.up(self.grouped(y)).mean((2, 3)))


X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def domains() -> dict[str, Domain]:
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(8, generator=generator)
    return {
        "first": Domain(
            masks={
                "conv": [
                    Mask(torch.tensor([True, False, True]), "in"),
                    Mask(scores, "out", "output", 0.25),
                ],
                "up.weight": Mask(scores.bfloat16(), "out"),
            },
            state={
                "fc.weight": torch.randn(9, 8, generator=generator),
                "fc.bias": torch.randn(9, generator=generator),
            },
            labels=list("abcdefghi"),
        ),
        "second": Domain(state={"unused": torch.zeros(7), "bn.num_batches_tracked": torch.ones(1)}),
    }


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Small()


@pytest.fixture(scope="module")
def good(tmp_path_factory, model) -> Path:
    path = tmp_path_factory.mktemp("good") / "model.pt"
    save_checkpoint(path, model, X, domains())
    return path


@pytest.fixture(scope="module")
def loaded(good) -> Checkpoint:
    return load_checkpoint(good)


def same_domain(left: Domain, right: Domain) -> bool:
    if left.labels != right.labels or list(left.masks) != list(right.masks):
        return False
    for key in left.masks:
        for a, b in zip(masks_of(left.masks[key]), masks_of(right.masks[key]), strict=True):
            if (a.axis, a.site, a.threshold, a.values.dtype) != (
                b.axis, b.site, b.threshold, b.values.dtype,
            ) or not torch.equal(a.values, b.values):  # fmt: skip
                return False
    return list(left.state) == list(right.state) and all(
        torch.equal(left.state[name], right.state[name]) for name in left.state
    )


def same(left: Checkpoint, right: Checkpoint) -> bool:
    fields = ("parameters", "aliases", "sites", "dynamic_batch")
    return (
        all(getattr(left, name) == getattr(right, name) for name in fields)
        and list(left.domains) == list(right.domains)
        and all(same_domain(left.domains[name], right.domains[name]) for name in left.domains)
        and list(left.examples) == list(right.examples)
        and all(np.array_equal(left.examples[name], right.examples[name]) for name in left.examples)
        and ir.to_proto(left.model).SerializeToString(deterministic=True)
        == ir.to_proto(right.model).SerializeToString(deterministic=True)
    )


# Round trip


def test_a_round_trip_keeps_everything(good, loaded, model):
    assert list(loaded.domains) == ["first", "second"]
    assert all(same_domain(loaded.domains[name], domain) for name, domain in domains().items())
    assert np.array_equal(loaded.examples["x"], X.numpy())
    assert loaded.sites == {"conv": "conv.weight", "up.weight": "up.weight"}
    assert loaded.aliases == {"bn.num_batches_tracked": "", "unused": ""}
    assert loaded.dynamic_batch
    state = model.state_dict()
    assert set(loaded.parameters) == set(state) - set(loaded.aliases)
    for name in loaded.parameters:
        stored = loaded.model.graph.initializers[name].const_value.numpy()
        assert np.array_equal(stored, state[name].numpy())


def test_the_loaded_graph_computes_what_the_model_computes(loaded, model):
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    (actual,) = evaluate(loaded.model.graph, {"x": x.numpy()})
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)  # float32 rounding, |y| < 1


def test_equal_content_gives_equal_bytes(good, loaded, tmp_path, model):
    save_checkpoint(tmp_path / "again.pt", model, X, domains())
    assert (tmp_path / "again.pt").read_bytes() == good.read_bytes()
    checkpoint_file.write(tmp_path / "copy.pt", loaded)
    assert (tmp_path / "copy.pt").read_bytes() == good.read_bytes()


def test_the_file_holds_no_path_of_this_machine(good):
    content = good.read_bytes()
    for place in (os.fsencode(Path(__file__).parent), b"site-packages", b"stack_trace", b".py"):
        assert place not in content


def test_the_file_has_the_users_permissions_and_replaces_an_older_one(tmp_path, loaded):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    checkpoint_file.write(path, loaded)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert load_checkpoint(path).domains.keys() == loaded.domains.keys()
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


# What cannot be read


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_refused_for_its_own_reason(good, tmp_path, name):
    change, message = CASES[name]
    path = tmp_path / "bad.pt"
    document, tensors = read_parts(good)
    change(document, tensors)
    write_parts(path, document, tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"checkpoint {str(path)!r}: ")
    assert "\n" not in str(caught.value)


def test_the_hostile_files_start_from_a_file_that_loads(good, tmp_path):
    document, tensors = read_parts(good)
    write_parts(tmp_path / "same.pt", document, tensors)
    assert same(load_checkpoint(tmp_path / "same.pt"), load_checkpoint(good))


class Payload:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, zipped):
    path, target = tmp_path / "model.pt", tmp_path / "created-by-the-payload"
    torch.save({"w": Payload(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"is a pickle .* never loaded .* `mdprune pack`"):
        load_checkpoint(path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the payload works: the test could have failed
    assert target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an mdprune checkpoint, or its beginning is lost"),
        (b"PK\3\4", "is a pickle"),
        (b"\x80\2}q\0.", "is a pickle"),
        (b"garbage, and more of it", "is not an mdprune checkpoint"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{", "is truncated or corrupt"),
        (b"\2\0\0\0\0\0\0\0{}", "is a safetensors file without the one metadata entry 'mdprune'"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, message):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt': does not exist"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="is not a file"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"mdprune": "{"}, "its metadata is corrupt"),
        ({"mdprune": "[" * 100_000}, "its metadata is corrupt"),
        ({"mdprune": '{"version": NaN}'}, "NaN is not a number"),
        ({"mdprune": '{"version": 1, "version": 1}'}, "'version' is given twice"),
        ({"mdprune": "[]"}, "metadata is a list, not a dict"),
        ({"mdprune": "{}", "more": ""}, "without the one metadata entry 'mdprune'"),
        (
            {"mdprune": '{"format": "mdprune-checkpoint", "version": 1}'},
            "does not match its sha256",
        ),
    ],
)
def test_bad_metadata_is_refused(tmp_path, metadata, message):
    path = tmp_path / "model.pt"
    path.write_bytes(safetensors.torch.save({"w": torch.ones(1)}, metadata))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_every_truncation_is_refused(good, tmp_path):
    content, path = good.read_bytes(), tmp_path / "cut.pt"
    header = 8 + int.from_bytes(content[:8], "little")
    offsets = {*range(0, 40), header - 1, header, header + 1, len(content) - 1}
    offsets |= set(range(0, len(content), max(1, len(content) // 200)))
    for offset in sorted(offsets):
        path.write_bytes(content[:offset])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match="is truncated or corrupt"):
        load_checkpoint(path)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_flipped_bit_is_refused_or_changes_nothing(good, loaded, tmp_path, data):
    content = bytearray(good.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    where = st.integers(0, header - 1) | st.integers(0, len(content) - 1)
    position = data.draw(where)
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "flipped.pt"
    path.write_bytes(content)
    try:
        found = load_checkpoint(path)
    except CheckpointError:
        return
    assert same(found, loaded)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_graph_under_a_valid_digest_is_refused_or_sound(good, tmp_path, data):
    document, tensors = read_parts(good)
    graph = bytearray(tensors["graph"].numpy().tobytes())
    for _ in range(data.draw(st.integers(1, 3))):
        graph[data.draw(st.integers(0, len(graph) - 1))] = data.draw(st.integers(0, 255))
    tensors["graph"] = torch.frombuffer(graph, dtype=torch.uint8)
    path = tmp_path / "graph.pt"
    write_parts(path, document, tensors)
    try:
        found = load_checkpoint(path)
    except CheckpointError:
        return
    onnx.checker.check_model(ir.to_proto(found.model))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_metadata_under_a_valid_digest_is_refused_or_sound(good, tmp_path, data):
    document, tensors = read_parts(good)
    junk = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    junk = junk | st.lists(junk, max_size=2) | st.dictionaries(st.text(), junk, max_size=2)
    place = document
    while True:
        step = data.draw(
            st.sampled_from(list(place) if isinstance(place, dict) else range(len(place)))
        )
        inner = place[step]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            break
        place = inner
    place[step] = data.draw(junk.filter(lambda value: "inf" not in json.dumps(value).lower()))
    path = tmp_path / "metadata.pt"
    write_parts(path, document, tensors)
    try:
        found = load_checkpoint(path)
    except CheckpointError:
        return
    assert found.domains


# What cannot be saved


GOOD_MASK = Mask(torch.ones(3, dtype=torch.bool), "in")


def on_conv(mask: object) -> dict[str, Domain]:
    return {"d": Domain(masks={"conv": mask})}


BAD_DOMAINS = {
    "none": ({}, "there are no domains: give a mapping of at least one name to Domain"),
    "a list": ([Domain()], "there are no domains"),
    "empty name": ({"": Domain()}, "domain name '' is not a non-empty string"),
    "number as name": ({1: Domain()}, "domain name 1 is not a non-empty string"),
    "slash": ({"a/b": Domain()}, "domain name 'a/b' cannot name a folder"),
    "backslash": ({"a\\b": Domain()}, "cannot name a folder"),
    "newline": ({"a\n": Domain()}, r"domain name 'a\\n' cannot name a folder"),
    "parent": ({"..": Domain()}, r"domain name '\.\.' cannot name a folder"),
    "long": ({"ü" * 101: Domain()}, "at most 200 bytes"),
    "no Domain": ({"d": {}}, "domain 'd' is a dict, not a Domain"),
    "masks list": ({"d": Domain(masks=[])}, "domain 'd': masks is not a mapping of names"),
    "state keys": ({"d": Domain(state={1: X})}, "domain 'd': state is not a mapping of names"),
    "no Mask": (on_conv(torch.ones(3)), "mask on 'conv' is a Tensor, not a Mask"),
    "no Masks": (on_conv([]), "mask on 'conv' is a list, not a Mask"),
    "no Mask in list": (on_conv([GOOD_MASK, 3]), "mask on 'conv' is a int, not a Mask"),
    "values": (on_conv(Mask([True] * 3, "in")), "mask on 'conv' is a list, not a tensor"),
    "sparse": (on_conv(Mask(torch.ones(3).to_sparse(), "in")), "is a sparse, quantized or meta"),
    "rank": (on_conv(Mask(torch.ones(1, 3), "in")), r"has shape \(1, 3\); masks have one axis"),
    "integers": (on_conv(Mask(torch.ones(3).long(), "in")), "is torch.int64; switches are bool"),
    "axis": (on_conv(Mask(torch.ones(3), "input")), "has axis 'input'; it is 'in' or 'out'"),
    "site": (on_conv(Mask(torch.ones(3), "in", "bias")), "has site 'bias'; it is 'weight' or"),
    "output in": (on_conv(Mask(torch.ones(3), "in", "output")), "'output', which needs axis 'out'"),
    "threshold": (
        on_conv(Mask(torch.ones(3), "in", threshold=float("nan"))),
        "has threshold nan, not a finite number",
    ),
    "nan": (on_conv(Mask(torch.tensor([1, torch.nan, 1]), "in")), "has score nan at channel 1"),
    "inf": (on_conv(Mask(torch.tensor([1, 1, torch.inf]), "in")), "has score inf at channel 2"),
    "short": (
        on_conv(Mask(torch.ones(2), "in")),
        "domain 'd': mask on 'conv' has 2 entries; Conv 'node_conv2d' has 3 input channels",
    ),
    "wrong side": (on_conv(Mask(torch.ones(3), "out")), "3 entries; Conv .* has 8 output channels"),
    "unknown": (
        {"d": Domain(masks={"conv.weigth": GOOD_MASK})},
        "mask on unknown weight 'conv.weigth'; did you mean 'conv.weight'?",
    ),
    "batch norm": (
        {"d": Domain(masks={"bn": GOOD_MASK})},
        "mask on 'bn': no convolution or matrix product reads 'bn.weight' as its weight",
    ),
    "unused buffer": (
        {"d": Domain(masks={"unused": GOOD_MASK})},
        "mask on 'unused': the graph does not use this parameter",
    ),
    "unknown state": (
        {"d": Domain(state={"fc.wait": X})},
        "domain 'd': state for unknown parameter 'fc.wait'; did you mean 'fc.weight'?",
    ),
    "state not a tensor": (
        {"d": Domain(state={"fc.bias": np.ones(5)})},
        "domain 'd': state 'fc.bias' is a ndarray, not a tensor",
    ),
    "state dtype": (
        {"d": Domain(state={"fc.bias": torch.ones(5).half()})},
        "state 'fc.bias' is torch.float16, the parameter torch.float32",
    ),
    "state rank": (
        {"d": Domain(state={"fc.bias": torch.ones(5, 1)})},
        r"state 'fc.bias' has shape \[5, 1\], the parameter \[5\]",
    ),
    "half a head": (
        {"d": Domain(state={"fc.weight": torch.ones(7, 8)})},
        r"with its fc.weight \[7, 8\] the shapes do not fit: 'fc.bias' of Gemm .* has 5 channels "
        "instead of 7",
    ),
    "head width": ({"d": Domain(state={"fc.weight": torch.ones(5, 9)})}, "the shapes do not fit"),
    "conv width": ({"d": Domain(state={"conv.weight": torch.ones(9, 3, 3, 3)})}, "do not fit"),
    "bias": ({"d": Domain(state={"conv.bias": torch.ones(1)})}, "'conv.bias' of Conv .* has 1"),
    "batch norm state": ({"d": Domain(state={"bn.bias": torch.ones(4)})}, "shapes do not fit"),
    "labels string": ({"d": Domain(labels="abcde")}, "labels are not a sequence of strings"),
    "labels numbers": ({"d": Domain(labels=[1] * 5)}, "labels are not a sequence of strings"),
    "no head": (
        {"d": Domain(labels=["cat", "dog"])},
        "domain 'd' has 2 labels but its output has 5 classes: a domain of its own classes needs "
        "a head of its own in state",
    ),
}


@pytest.fixture(scope="module")
def trace(model):
    return export.export(model, X, {"fc.weight", "fc.bias", "conv.weight", "conv.bias", "bn.bias"})


@pytest.fixture
def exported_once(monkeypatch, trace):
    """Keeps one trace: what is tested with it is refused before or after it."""
    monkeypatch.setattr(checkpoint, "export", lambda *_: trace)


@pytest.mark.parametrize("name", BAD_DOMAINS)
def test_a_bad_domain_is_refused_for_its_own_reason(tmp_path, model, exported_once, name):
    bad, message = BAD_DOMAINS[name]
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path / "model.pt", model, X, bad)
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_refused(tmp_path, model):
    good = {"d": Domain()}
    for arguments, message in [
        ((lambda x: x, X, good), "model is a function, not a torch.nn.Module"),
        ((model, (), good), "example_inputs is empty"),
        ((model, (X, 3), good), "example input 1 is a int, not a tensor"),
        ((model, X.double(), good), "example input 0 is float64, not float32"),
        ((model, X[:0], good), r"example input 0 has shape \(0, 3, 8, 8\): no elements"),
        ((Small().double(), X, good), r"is float64; only float32 models .* call model.float\(\)"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            save_checkpoint(tmp_path / "model.pt", *arguments)
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_named(tmp_path, loaded):
    path = tmp_path / "none" / "model.pt"
    with pytest.raises(
        UsageError, match=re.escape(f"cannot write checkpoint {str(path)!r}: No such")
    ):
        checkpoint_file.write(path, loaded)
    with pytest.raises(UsageError, match="cannot write checkpoint"):
        checkpoint_file.write(tmp_path, loaded)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (OSError(28, "No space left on device"), UsageError, "No space left on device"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_a_full_disk_and_an_interrupt_leave_the_old_file(
    tmp_path, loaded, monkeypatch, error, expected, message
):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(expected, match=message):
        checkpoint_file.write(path, loaded)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


# Weights that are not plain parameters


def round_trip(tmp_path: Path, network: nn.Module, inputs, domain: Domain) -> Checkpoint:
    save_checkpoint(tmp_path / "model.pt", network, inputs, {"d": domain})
    return load_checkpoint(tmp_path / "model.pt")


def test_masks_on_grouped_and_transposed_convolutions_count_the_layers_channels(
    tmp_path, model, exported_once
):
    for key, inputs, outputs in [("conv", 3, 8), ("grouped", 8, 12), ("up", 12, 8), ("fc", 8, 5)]:
        both = [Mask(torch.ones(inputs), "in"), Mask(torch.ones(outputs), "out")]
        save_checkpoint(tmp_path / "m.pt", model, X, {"d": Domain(masks={key: both})})
        for axis, wrong in (("in", inputs - 1), ("out", outputs + 1)):
            bad = {"d": Domain(masks={key: Mask(torch.ones(wrong), axis)})}
            right = {"in": inputs, "out": outputs}[axis]
            with pytest.raises(CheckpointError, match=f"has {right} {axis}put channels"):
                save_checkpoint(tmp_path / "m.pt", model, X, bad)


class Normalised(nn.Module):
    """A weight-normalised convolution, called twice."""

    def __init__(self):
        super().__init__()
        self.wn = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x):
        return self.wn(torch.relu(self.wn(x)))


@pytest.mark.parametrize("key", ["wn", "wn.weight"])
def test_a_parametrised_weight_is_the_value_that_feeds_the_layer(tmp_path, key):
    domain = Domain(masks={key: Mask(torch.ones(4), "in")})
    found = round_trip(tmp_path, Normalised(), torch.randn(1, 4, 6, 6), domain)
    convolutions = [node for node in found.model.graph if node.op_type == "Conv"]
    assert len(convolutions) == 2
    assert {node.inputs[1].name for node in convolutions} == {found.sites[key]}
    assert found.sites[key] not in found.model.graph.initializers
    bad = Domain(masks={key: Mask(torch.ones(5), "in")})
    with pytest.raises(CheckpointError, match=r"has 5 entries; Conv .* has 4 input channels"):
        round_trip(tmp_path, Normalised(), torch.randn(1, 4, 6, 6), bad)


class Tied(nn.Module):
    """Two linear layers with one weight, on three axes, and a raw parameter."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 6)
        self.two = nn.Linear(4, 6)
        self.two.weight = self.one.weight
        self.raw = nn.Parameter(torch.randn(3, 6, 1, 1))

    def forward(self, x):
        y = torch.relu(self.one(x)) + self.two(x * 2)
        return torch.nn.functional.conv2d(y.transpose(1, 2)[..., None], self.raw)


def test_tied_weights_linear_layers_on_three_axes_and_raw_parameters_are_found(tmp_path):
    state = torch.randn(6, 4)
    domain = Domain(
        masks={
            "one": Mask(torch.ones(4), "in"),
            "two.weight": Mask(torch.ones(6), "out"),
            "raw": Mask(torch.ones(6), "in"),
        },
        state={"one.weight": state, "two.weight": state.clone()},
    )
    found = round_trip(tmp_path, Tied(), torch.randn(1, 5, 4), domain)
    (alias,) = found.aliases.items()
    assert set(alias) == {"one.weight", "two.weight"}
    assert found.sites == {"one": alias[1], "two.weight": alias[1], "raw": "raw"}
    (convolution,) = [node for node in found.model.graph if node.op_type == "Conv"]
    assert len(convolution.inputs) == 2  # no zero bias is left behind

    differing = Domain(state={"one.weight": state, "two.weight": state + 1})
    with pytest.raises(CheckpointError, match="are one tensor but differ in state"):
        round_trip(tmp_path, Tied(), torch.randn(1, 5, 4), differing)
    swapped = Domain(masks={"one": Mask(torch.ones(6), "in")})
    with pytest.raises(CheckpointError, match=r"has 6 entries; MatMul .* has 4 input channels"):
        round_trip(tmp_path, Tied(), torch.randn(1, 5, 4), swapped)


class FunctionalHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Parameter(torch.randn(5, 3, 1, 1))

    def forward(self, x):
        return torch.nn.functional.conv2d(x, self.head).mean((2, 3))


def test_a_domain_may_change_the_classes_of_a_head_without_a_bias(tmp_path):
    domain = Domain(state={"head": torch.randn(7, 3, 1, 1)}, labels=list("abcdefg"))
    found = round_trip(tmp_path, FunctionalHead(), X, domain)
    graph = found.model.graph
    graph.initializers["head"].const_value = ir.tensor(domain.state["head"].numpy(), name="head")
    (actual,) = evaluate(graph, {"x": X.numpy()})
    expected = torch.nn.functional.conv2d(X, domain.state["head"]).mean((2, 3))
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-5)  # float32, |y| < 10
