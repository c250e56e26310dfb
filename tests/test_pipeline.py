"""Whole compiles of awkward PyTorch networks, held to the module itself, masked by hand.

The reference is the user's own module in float64 with its weights multiplied by the masks, or its
layers' outputs by hooks; it shares nothing with the compiler.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from graphs import mask
from modules import Call, compile_exactly, randomise
from torch import Tensor, nn

import mdprune_deploy as mdp
from mdprune_deploy import CheckpointError, Domain, UsageError


class Net(nn.Module):
    """conv, batch norm, ReLU, then `middle`, then a convolution and a linear head."""

    def __init__(self, middle: nn.Module, channels: int = 8, kernel: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.middle = middle
        self.last = nn.Conv2d(channels, 6, kernel, padding=kernel // 2)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.middle(torch.relu(self.bn(self.stem(x)))))
        return self.fc(torch.relu(y).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        t = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(t).reshape(b, h * w, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, 8)
        return (t + self.proj(y)).transpose(1, 2).reshape(b, c, h, w)


class Cbam(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.gate = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        x = x * torch.sigmoid(self.expand(torch.relu(self.reduce(pooled))))
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.gate(maps))


def channels_first_norm(self: nn.Module, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-3)


def batch_of_groups(self: nn.Module, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = x.reshape(b * 2, c // 2, h, w)
    return (y * torch.sigmoid(y.mean((2, 3), keepdim=True))).reshape(b, c, h, w)


MIDDLES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "channel shuffle": (lambda: nn.ChannelShuffle(2), 8),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), 2),
    "pixel unshuffle": (lambda: nn.PixelUnshuffle(2), 32),
    "maxout by view": (
        lambda: Call(lambda s, x: x.view(x.shape[0], 4, 2, *x.shape[2:]).max(2)[0]), 4,
    ),
    "chunk": (lambda: Call(lambda s, x: torch.max(*x.chunk(2, 1))), 4),
    "slices that overlap": (
        lambda: Call(lambda s, x: torch.cat([x[:, :5], x[:, 3:], x[:, ::3]], 1)), 13,
    ),
    "stack and flip": (lambda: Call(lambda s, x: torch.stack([x, x.flip(1)], 1).sum(1)), 8),
    "channels by an index": (
        lambda: Call(lambda s, x: x[:, torch.tensor([3, 1, 2, 0, 7, 5, 6, 6])]), 8,
    ),
    "new zeros": (
        lambda: Call(lambda s, x: torch.cat([x, x.new_zeros(x.shape[0], 4, *x.shape[2:])], 1)), 12,
    ),
    "U-Net level": (
        lambda: Call(lambda s, x: torch.cat([x, F.interpolate(
            F.max_pool2d(x, 2), size=x.shape[2:], mode="bilinear", align_corners=True)], 1)), 16,
    ),
    "CBAM": (Cbam, 8),
    "group norm": (lambda: nn.GroupNorm(2, 8, 1e-3), 8),
    "instance norm": (lambda: nn.InstanceNorm2d(8, 1e-3, affine=True), 8),
    "layer norm, channels last": (
        lambda: Call(lambda s, x: s.ln(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
                     ln=nn.LayerNorm(8, 1e-3)), 8,
    ),
    "layer norm, channels first": (lambda: Call(channels_first_norm), 8),
    "local response norm": (lambda: nn.LocalResponseNorm(3), 8),
    "softmax over channels": (nn.Softmax2d, 8),
    "Gram matrix": (
        lambda: Call(lambda s, x: (x.flatten(2) @ x.flatten(2).mT / 64).unsqueeze(3)), 8,
    ),
    "attention": (Attention, 8),
    "multi-head attention": (
        lambda: Call(lambda s, x: s.mha(*[x.flatten(2).mT] * 3, need_weights=False)[0]
                     .mT.reshape(x.shape), mha=nn.MultiheadAttention(8, 2, batch_first=True)), 8,
    ),
    "groups as images": (lambda: Call(batch_of_groups), 8),
    "weight norm": (
        lambda: Call(lambda s, x: s.c(x),
                     c=nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))), 8,
    ),
    "functional convolution": (
        lambda: Call(lambda s, x: F.conv2d(x, s.w, None, 1, 1),
                     w=nn.Parameter(torch.randn(8, 8, 3, 3) / 5)), 8,
    ),
    "weight before the data": (
        lambda: Call(lambda s, x: (s.w @ x.flatten(2)).reshape(x.shape),
                     w=nn.Parameter(torch.randn(8, 8) / 3)), 8,
    ),
    "circular border": (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), 8),
    "hard swish": (lambda: nn.Sequential(nn.Hardswish(), nn.Conv2d(8, 8, 3, padding=1)), 8),
    "GELU": (lambda: nn.Sequential(nn.GELU(), nn.Conv2d(8, 8, 3, 2, 1)), 8),
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d(3), 8),
}  # fmt: skip


@pytest.mark.parametrize("middle", MIDDLES)
def test_awkward_network(middle: str, tmp_path: Path) -> None:
    """Masks before and after; filters that become constants, and channels that nobody reads."""
    torch.manual_seed(0)
    build, channels = MIDDLES[middle]
    model = randomise(Net(build(), channels, kernel=3))
    off = [1, 0, 1, 0, 0, 1, 1, 1]
    read = [int(i % 3 != 1) for i in range(channels)]
    domains = {
        "constants": Domain({"stem": mask(off, "out")}),
        "zeros": Domain({"stem": mask(off, "out", "output")}),
        "read": Domain({"last.weight": mask(read)}),
    }
    report = compile_exactly(tmp_path, model, domains)
    stems = [figures.layers[0] for figures in report.domains.values()]
    assert stems[0].params_dense == 8 * 27
    assert stems[0].params_used == stems[1].params_used == 5 * 27
    for name, figures in report.domains.items():
        held = sum(h.channels for h in report.held if h.domain == name)
        stem = figures.layers[0]
        if stem.params_emitted > stem.params_used:  # what stays is reported
            assert held


class Exits(nn.Module):
    """Two heads, the first behind the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.early, self.late = nn.Linear(8, 4), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.body(x))
        return self.early(x.mean((2, 3))), self.late(y.mean((2, 3)))


def test_outputs_tap_different_depths(tmp_path: Path) -> None:
    torch.manual_seed(0)
    domains = {
        "early": Domain({"late": mask([0] * 8), "early": mask([1, 1, 0, 0, 0, 0, 0, 0])}),
        "late": Domain({"early": mask([0] * 8), "body": mask([0, 0, 0, 0, 0, 1, 1, 1])}),
        "dense": Domain(),
    }
    report = compile_exactly(tmp_path, Exits(), domains)
    used = [[layer.params_used for layer in d.layers] for d in report.domains.values()]
    assert sorted(used[0]) == sorted([2 * 27, 4 * 2, 0, 0])
    assert sorted(used[1]) == sorted([3 * 27, 0, 8 * 3 * 9, 48])
    assert sorted(used[2]) == sorted([8 * 27, 32, 8 * 8 * 9, 48])


def test_one_domain_is_dense_and_two_are_disjoint(tmp_path: Path) -> None:
    """Union and intersection by hand: disjoint halves share nothing but what a dense one adds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(2))
    low, high = mask([1, 1, 1, 1, 0, 0, 0, 0]), mask([0, 0, 0, 0, 1, 1, 1, 1])
    domains = {"low": Domain({"2.weight": low}), "high": Domain({"2.weight": high})}
    report = compile_exactly(tmp_path, model, domains)
    assert report.params_union == 8 * 27 + 32
    assert report.params_intersection == 0
    (tmp_path / "more").mkdir()
    report = compile_exactly(tmp_path / "more", model, {"low": domains["low"], "all": Domain()})
    assert report.params_union == 8 * 27 + 32
    assert report.params_intersection == 4 * 27 + 16


def test_private_convolution_is_not_shared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(2))
    half = mask([1, 1, 1, 1, 0, 0, 0, 0])
    domains = {
        "shared": Domain({"2.weight": half}),
        "own": Domain({"2.weight": half}, {"0.weight": torch.randn(8, 3, 3, 3)}),
        "same": Domain({"2.weight": half}, {"0.weight": model[0].weight.detach().clone()}),
    }
    report = compile_exactly(tmp_path, model, domains)
    assert report.params_union == 2 * 4 * 27 + 16
    assert report.params_intersection == 16


def test_bytes_count_what_is_stored_once(tmp_path: Path) -> None:
    """Domains with one mask store the first convolution once, or once each where it is private.

    Everything else is the same in all. Weights lie there once more in the layout of a variant that
    is optimised for this machine, where there is one.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.Flatten(2))
    half = mask([c < 16 for c in range(32)])
    same = {"a": Domain({"2": half}), "b": Domain({"2": half})}
    first, second, biases = 4 * 16 * 27, 4 * 32 * 16, 4 * (16 + 32)
    alone = compile_exactly(tmp_path / _new(tmp_path, "same"), model, same)
    assert alone.params_union == alone.params_intersection == 16 * 27 + 32 * 16
    copies = (alone.bytes_shared - biases) // (first + second)
    assert copies in (1, 2)
    assert (alone.bytes_shared, alone.bytes_private) == (copies * (first + second) + biases, 0)

    bias = {"0.bias": torch.randn(32)}
    other = {"a": same["a"], "b": Domain({"2": half}, bias)}
    report = compile_exactly(tmp_path / _new(tmp_path, "bias"), model, other)
    assert report.params_union == report.params_intersection == 16 * 27 + 32 * 16
    assert report.bytes_shared == copies * (first + second) + 4 * 32
    assert report.bytes_private == 2 * 4 * 16

    convolution = {"0.weight": torch.randn(32, 3, 3, 3)}
    other = {"a": same["a"], "b": Domain({"2": half}, convolution)}
    report = compile_exactly(tmp_path / _new(tmp_path, "convolution"), model, other)
    assert report.params_union == 2 * 16 * 27 + 32 * 16
    assert report.params_intersection == 32 * 16
    assert report.bytes_shared == copies * second + biases
    assert report.bytes_private == 2 * copies * first


def _new(folder: Path, name: str) -> str:
    (folder / name).mkdir()
    return name


def test_masks_that_cut_every_path_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomise(Net(nn.Conv2d(8, 8, 3, padding=1)))
    domains = {"d": Domain({"middle": mask([0] * 8)})}
    mdp.save_checkpoint(tmp_path / "m.pt", model, torch.randn(1, 3, 8, 8), domains)
    with pytest.raises(CheckpointError) as error:
        mdp.compile(tmp_path / "m.pt", tmp_path / "out", targets=("onnx",))
    assert str(error.value) == (
        "domain 'd': its masks cut every path: no output depends on the input"
    )
    assert not (tmp_path / "out").exists()


def test_masks_that_kill_a_block_leave_its_identity(tmp_path: Path) -> None:
    """The branch is a constant behind its batch norm: nothing of it is computed."""
    torch.manual_seed(0)
    branch = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
    )  # fmt: skip
    model = randomise(Net(Call(lambda s, x: torch.relu(x + s.branch(x)), branch=branch)))
    domains = {"d": Domain({"middle.branch.0": mask([0] * 8)})}
    report = compile_exactly(tmp_path, model, domains)
    by_name = {layer.name: layer for layer in report.domains["d"].layers}
    for name in ("middle.branch.0.weight", "middle.branch.3.weight"):
        assert (by_name[name].params_used, by_name[name].macs_emitted) == (0, 0)
    assert by_name["stem.weight"].params_used == 8 * 27


def test_unknown_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown target 'tflite'; there are onnx"):
        mdp.compile(tmp_path / "none.pt", tmp_path / "out", targets=("tflite",))
