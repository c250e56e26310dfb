"""Published building blocks as PyTorch modules: exact, and smaller by exactly what the masks allow.

Every case names the weight elements that must remain, as filters x channels x kernel, and the
positions at which each is computed. Both are counted by hand from the masks. Every network starts
with a 3x3 `stem` of eight filters on 8x8 images and ends with a 1x1 convolution `last` to six.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from graphs import mask
from modules import Call, compile_exactly, randomise
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from mdprune_deploy import Domain, Mask, UnsupportedGraphError

pytestmark = [
    pytest.mark.usefixtures("narrowest"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
]

Masks = dict[str, Mask]


def on(size: int, *channels: int, axis: str = "in", site: str = "weight") -> Mask:
    """A mask with these channels on."""
    return mask([c in channels for c in range(size)], axis, site)


def conv(channels: int, filters: int, kernel: int = 1, **options: int) -> nn.Conv2d:
    options = {"padding": kernel // 2, **options}
    return nn.Conv2d(channels, filters, kernel, bias=False, **options)


def unit(channels: int, filters: int, kernel: int = 1, **options: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        conv(channels, filters, kernel, **options), nn.BatchNorm2d(filters), nn.ReLU()
    )


class Net(nn.Module):
    """The stem, a block, and the last convolution."""

    def __init__(self, block: nn.Module, channels: int = 8, act: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.bn = conv(3, 8, 3), nn.BatchNorm2d(8)
        self.act = nn.ReLU() if act is None else act
        self.block, self.last = block, nn.Conv2d(channels, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(self.act(self.bn(self.stem(x)))))


@dataclass(frozen=True)
class Case:
    """A network and what its masks must leave.

    Attributes:
        build: Makes the network.
        masks: The domain's masks.
        left: By weight: elements that are used and emitted, and positions.
        held: Operators that the report must name.
        stay: By weight: emitted elements, where exactness keeps more than is used.
        plain: Makes the network with plain weights from one with computed weights.
    """

    build: Callable[[], nn.Module]
    masks: Masks
    left: dict[str, tuple[int, int]]
    held: frozenset[str] = frozenset()
    stay: dict[str, int] = field(default_factory=dict)
    plain: Callable[[nn.Module], nn.Module] | None = None


# Concatenation and branches


def c2f() -> nn.Module:
    """YOLOv8: split, a residual bottleneck on one half, everything concatenated."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        a, b = self.cv1(x).chunk(2, 1)
        return torch.cat([a, b, b + self.m2(self.m1(b))], 1)

    return Net(Call(forward, cv1=unit(8, 8), m1=unit(4, 4, 3), m2=unit(4, 4, 3)), 12)


def dense_block() -> nn.Module:
    def layer(channels: int) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), conv(channels, 4, 3))

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = torch.cat([x, self.a(x)], 1)
        return torch.cat([x, self.b(x)], 1)

    return Net(Call(forward, a=layer(8), b=layer(12)), 16)


def inception() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, 1, 1)
        return torch.cat([self.one(x), self.three(x), self.pool(pooled)], 1)

    return Net(Call(forward, one=unit(8, 4), three=unit(8, 4, 3), pool=unit(8, 4)), 12)


def u_net() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([x, self.up(self.mid(F.max_pool2d(x, 2)))], 1)

    up = nn.ConvTranspose2d(8, 4, 2, 2)
    return Net(Call(forward, mid=unit(8, 8, 3), up=up), 12)


def hrnet() -> nn.Module:
    """Two resolutions that exchange once and are fused."""

    def forward(self: nn.Module, high: Tensor) -> Tensor:
        low = self.down(high)
        up = F.interpolate(self.to_high(low), scale_factor=2, mode="nearest")
        high, low = torch.relu(high + up), torch.relu(low + self.to_low(high))
        return torch.cat([high, F.interpolate(low, scale_factor=2, mode="bilinear")], 1)

    down, to_low = unit(8, 8, 3, stride=2), conv(8, 8, 3, stride=2)
    return Net(Call(forward, down=down, to_high=conv(8, 8), to_low=to_low), 16)


def shuffle_unit() -> nn.Module:
    """ShuffleNetV2: half of the channels through a branch, then shuffled with the other half."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return F.channel_shuffle(torch.cat([a, self.branch(b)], 1), 2)

    depthwise = nn.Sequential(conv(4, 4, 3, groups=4), nn.BatchNorm2d(4))
    return Net(Call(forward, branch=nn.Sequential(unit(4, 4), depthwise, unit(4, 4))))


def ghost() -> nn.Module:
    """GhostNet: half of the channels are cheap depthwise copies of the other half."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], 1)

    return Net(Call(forward, primary=unit(8, 4), cheap=unit(4, 4, 3, groups=4)))


def two_readers() -> nn.Module:
    """A down-sampling residual block with a side branch: three readers of one tensor."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = torch.relu(self.conv2(self.conv1(x)) + self.shortcut(x))
        return torch.cat([y, F.avg_pool2d(self.side(x), 2)], 1)

    conv1, shortcut = unit(8, 8, 3, stride=2), conv(8, 8, stride=2)
    block = Call(forward, conv1=conv1, conv2=conv(8, 8, 3), shortcut=shortcut, side=conv(8, 4))
    return Net(block, 12)


def stacked() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return torch.stack([x, self.other(x)], 2).flatten(1, 2)

    return Net(Call(forward, other=conv(8, 8)), 16)


BRANCHES = {
    "C2f": Case(
        c2f,
        {
            "last": on(12, 0, 2, 5, 8, 11),  # of each half a: 0, 2; b: 1; of the sum: 0, 3
            "block.m2.0": on(4, 2, 3),
            "block.m1.0": on(4, 0, 1),
        },
        {
            # b: 1 for the last, 0 and 3 for the sum, 0 and 1 for the bottleneck
            "stem": (8 * 27, 64), "block.cv1.0": ((2 + 3) * 8, 64), "block.m1.0": (2 * 2 * 9, 64),
            "block.m2.0": (2 * 2 * 9, 64), "last": (6 * 5, 64),
        },
    ),
    "dense block": Case(
        dense_block,
        {
            "last": on(16, 0, 1, 8, 15),
            "block.b.2": on(12, 2, 8, 9),
            "block.a.2": on(8, 2, 3),
        },
        {
            "stem": (4 * 27, 64), "block.a.2": (2 * 2 * 9, 64), "block.b.2": (1 * 3 * 9, 64),
            "last": (6 * 4, 64),
        },
    ),
    "Inception, one branch dead": Case(
        inception,
        {
            "last": on(12, 0, 9, 10),
            "block.one.0": on(8, 0, 1, 2, 3),
            "block.pool.0": on(8, 3, 4),
        },
        {
            "stem": (5 * 27, 64), "block.one.0": (1 * 4, 64), "block.three.0": (0, 64),
            "block.pool.0": (2 * 2, 64), "last": (6 * 3, 64),
        },
    ),
    "U-Net level": Case(
        u_net,
        {"last": on(12, 0, 5, 9), "block.up": on(8, 2, 3), "block.mid.0": on(8, 5, 6)},
        {
            "stem": (3 * 27, 64), "block.mid.0": (2 * 2 * 9, 16), "block.up": (2 * 1 * 4, 16),
            "last": (6 * 3, 64),
        },
    ),
    "HRNet exchange": Case(
        hrnet,
        {
            "last": on(16, 0, 1, 12),
            "block.to_high": on(8, 0, 1),
            "block.to_low": on(8, 6, 7),
            "block.down.0": on(8, 2, 3),
        },
        {
            # high: 0, 1 for the last, 6, 7 for the exchange, 2, 3 for the lower resolution
            "stem": (6 * 27, 64), "block.down.0": (3 * 2 * 9, 16), "block.to_high": (2 * 2, 16),
            "block.to_low": (1 * 2 * 9, 16), "last": (6 * 3, 64),
        },
    ),
    "ShuffleNetV2 unit": Case(
        shuffle_unit,
        {
            # Even channels are the first half's, odd ones the branch's.
            "last": on(8, 0, 1, 3),
            "block.branch.2.0": on(4, 2, 3),
            "block.branch.0.0": on(4, 0, 1),
        },
        {
            "stem": (3 * 27, 64), "block.branch.0.0": (2 * 2, 64), "block.branch.1.0": (2 * 9, 64),
            "block.branch.2.0": (2 * 2, 64), "last": (6 * 3, 64),
        },
    ),
    "GhostNet module": Case(
        ghost,
        {"last": on(8, 1, 4, 6), "block.primary.0": on(8, 0, 1, 2, 3)},
        {
            "stem": (4 * 27, 64), "block.primary.0": (3 * 4, 64), "block.cheap.0": (2 * 9, 64),
            "last": (6 * 3, 64),
        },
    ),
    "three readers of one tensor": Case(
        two_readers,
        {
            "block.conv1.0": on(8, 0, 1, 2),
            "block.shortcut": on(8, 2, 3),
            "block.side": on(8, 3, 4),
            "block.conv2": on(8, 6, 7),
            "last": on(12, 0, 1, 11),
        },
        {
            "stem": (5 * 27, 64), "block.conv1.0": (2 * 3 * 9, 16), "block.conv2": (2 * 2 * 9, 16),
            "block.shortcut": (2 * 2, 16), "block.side": (1 * 2, 64), "last": (6 * 3, 16),
        },
    ),
    "stack": Case(
        stacked,
        {"last": on(16, 0, 3), "block.other": on(8, 5)},
        {"stem": (2 * 27, 64), "block.other": (1, 64), "last": (6 * 2, 64)},
    ),
}  # fmt: skip


# Channels that move


MOVES = {
    "maxout by view": Case(
        lambda: Net(Call(lambda s, x: x.view(x.shape[0], 4, 2, *x.shape[2:]).max(2)[0]), 4),
        {"last": on(4, 0, 2)},
        {"stem": (4 * 27, 64), "last": (6 * 2, 64)},
    ),
    "pixel shuffle": Case(
        lambda: Net(nn.PixelShuffle(2), 2),
        {"last": on(2, 1)},
        {"stem": (4 * 27, 64), "last": (6, 256)},
    ),
    "pixel unshuffle": Case(
        lambda: Net(nn.PixelUnshuffle(2), 32),
        {"last": on(32, 0, 5, 6)},  # channels 0, 1 and 1
        {"stem": (2 * 27, 64), "last": (6 * 3, 16)},
    ),
    "channel shuffle": Case(
        lambda: Net(nn.ChannelShuffle(4), 8),
        {"last": on(8, 0, 1, 2, 3)},  # the first of every group
        {"stem": (4 * 27, 64), "last": (6 * 4, 64)},
    ),
    "strided and overlapping slices": Case(
        lambda: Net(Call(lambda s, x: torch.cat([x[:, :5], x[:, 3:], x[:, ::3]], 1)), 13),
        {"last": on(13, 4, 6, 12)},  # channels 4, 4 and 6
        {"stem": (2 * 27, 64), "last": (6 * 3, 64)},
    ),
    "concatenated zeros": Case(
        lambda: Net(
            Call(lambda s, x: torch.cat([x, x.new_zeros(x.shape[0], 4, *x.shape[2:])], 1)), 12
        ),
        {"last": on(12, 0, 1, 8, 9)},
        {"stem": (2 * 27, 64), "last": (6 * 2, 64)},
    ),
    "VGG, channels first": Case(
        lambda: Flat(lambda x: x.flatten(1)),
        {"last": on(32, *range(8, 12), *range(20, 24), 27)},  # channels 2 and 5, one place of 6
        {"stem": (3 * 27, 64), "last": (6 * 9, 1)},
    ),
    "VGG, channels last": Case(
        lambda: Flat(lambda x: x.permute(0, 2, 3, 1).flatten(1)),
        {"last": on(32, *(8 * p + c for p in range(4) for c in (2, 5)), 3 * 8 + 6)},
        {"stem": (3 * 27, 64), "last": (6 * 9, 1)},
    ),
}  # fmt: skip


class Flat(Net):
    """Pooled to 2x2, flattened, a linear layer."""

    def __init__(self, flatten: Callable[[Tensor], Tensor]) -> None:
        super().__init__(Call(lambda s, x: flatten(F.avg_pool2d(x, 4))))
        self.last = nn.Linear(32, 6)


# Blocks of published networks


def inverted_residual() -> nn.Module:
    """MobileNetV2."""
    body = nn.Sequential(
        conv(8, 16), nn.BatchNorm2d(16), nn.ReLU6(), conv(16, 16, 3, groups=16), nn.BatchNorm2d(16),
        nn.ReLU6(), conv(16, 8), nn.BatchNorm2d(8),
    )  # fmt: skip
    return Net(Call(lambda s, x: x + s.body(x), body=body))


def squeezed(act: type[nn.Module], gate: type[nn.Module]) -> nn.Module:
    """MobileNetV3 and EfficientNet: the expanded channels are gated before they are projected."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.expand(x)
        y = self.gate(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return self.project(x * y)

    expand = nn.Sequential(
        conv(8, 8), nn.BatchNorm2d(8), act(), conv(8, 8, 3, groups=8), nn.BatchNorm2d(8), act()
    )
    fc1, fc2 = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
    return Net(Call(forward, expand=expand, fc1=fc1, fc2=fc2, gate=gate(), project=conv(8, 8)))


SQUEEZED: tuple[Masks, dict[str, tuple[int, int]]] = (
    {
        "last": on(8, 0),
        "block.project": on(8, 0, 1, 2),
        "block.fc1": on(8, 4, 5),
        "block.fc2": on(4, 1),
        "block.expand.0": on(8, 0, 1, 2, 3),
    },
    {
        # 0 to 2 are projected, 4 and 5 are squeezed
        "stem": (4 * 27, 64), "block.expand.0": (5 * 4, 64), "block.expand.3": (5 * 9, 64),
        "block.fc1": (1 * 2, 1), "block.fc2": (3 * 1, 1), "block.project": (1 * 3, 64),
        "last": (6 * 1, 64),
    },
)  # fmt: skip


def resnext() -> nn.Module:
    """RegNet and ResNeXt: a grouped convolution between two of size one."""
    body = nn.Sequential(unit(8, 8), unit(8, 8, 3, groups=2), conv(8, 8))
    return Net(Call(lambda s, x: torch.relu(x + s.body(x)), body=body))


def convnext() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.norm(self.spread(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pw2(F.gelu(self.pw1(y)))).permute(0, 3, 1, 2)

    block = Call(
        forward, spread=conv(8, 8, 7, groups=8), norm=nn.LayerNorm(8, 1e-3), pw1=nn.Linear(8, 16),
        pw2=nn.Linear(16, 8),
    )  # fmt: skip
    block.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 8))
    return Net(block)


def cbam() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        x = x * torch.sigmoid(self.expand(torch.relu(self.reduce(pooled))))
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.gate(maps))

    return Net(Call(forward, reduce=conv(8, 4), expand=conv(4, 8), gate=conv(2, 1, 3)))


def attention() -> nn.Module:
    """Two heads of four channels."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        t = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(t).reshape(b, h * w, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, 8)
        return self.proj(y).transpose(1, 2).reshape(b, c, h, w)

    return Net(Call(forward, qkv=nn.Linear(8, 24), proj=nn.Linear(8, 8)))


BLOCKS = {
    "MobileNetV2": Case(
        inverted_residual,
        {
            "block.body.6": on(16, 0, 3, 7, 8, 15),
            "block.body.0": on(8, 0, 1, 2),
            "last": on(8, 0, 7),
        },
        {
            "stem": (4 * 27, 64), "block.body.0": (5 * 3, 64), "block.body.3": (5 * 9, 64),
            "block.body.6": (2 * 5, 64), "last": (6 * 2, 64),
        },
    ),
    "MobileNetV3": Case(lambda: squeezed(nn.Hardswish, nn.Hardsigmoid), *SQUEEZED),
    "EfficientNet": Case(lambda: squeezed(nn.SiLU, nn.Sigmoid), *SQUEEZED),
    "RegNet": Case(
        resnext,
        {
            "block.body.2": on(8, 0, 1, 4, 5),
            "block.body.1.0": on(8, 0, 3, 4, 7),
            "block.body.0.0": on(8, 1, 2),
            "last": on(8, 0, 1),
        },
        {
            "stem": (3 * 27, 64), "block.body.0.0": (4 * 2, 64), "block.body.1.0": (4 * 2 * 9, 64),
            "block.body.2": (2 * 4, 64), "last": (6 * 2, 64),
        },
    ),
    "ConvNeXt": Case(
        convnext,
        {"block.pw2": on(16, *range(6)), "block.pw1": on(8, 0, 1, 2, 3), "last": on(8, 1, 2)},
        {
            # The norm needs all channels, what follows only its own.
            "stem": (8 * 27, 64), "block.spread": (8 * 49, 64), "block.pw1": (6 * 4, 64),
            "block.pw2": (2 * 6, 64), "last": (6 * 2, 64),
        },
        frozenset({"LayerNormalization"}),
    ),
    "ConvNeXt, filters off": Case(
        convnext,
        {"block.pw1": on(16, *range(6), axis="out"), "last": on(8, 1, 2)},
        {
            # GELU of the bias is a constant: ten channels become a part of the next bias.
            "stem": (8 * 27, 64), "block.spread": (8 * 49, 64), "block.pw1": (6 * 8, 64),
            "block.pw2": (2 * 6, 64), "last": (6 * 2, 64),
        },
    ),
    "CBAM": Case(
        cbam,
        {"block.reduce": on(8, 0, 1), "block.expand": on(4, 2), "last": on(8, 0, 1)},
        {
            # The spatial gate looks at every channel.
            "stem": (8 * 27, 64), "block.reduce": (1 * 2, 1), "block.expand": (8 * 1, 1),
            "block.gate": (2 * 9, 64), "last": (6 * 2, 64),
        },
    ),
    "attention, one head": Case(
        attention,
        {"block.proj": on(8, 0, 1, 2, 3), "block.qkv": on(8, 0, 1, 2, 3, 4), "last": on(8, 7)},
        {
            "stem": (5 * 27, 64), "block.qkv": (3 * 4 * 5, 64), "block.proj": (1 * 4, 64),
            "last": (6 * 1, 64),
        },
    ),
    "group norm": Case(
        lambda: Net(nn.GroupNorm(4, 8, 1e-3)),
        {"last": on(8, 0, 1, 2)},  # whole groups of two
        {"stem": (4 * 27, 64), "last": (6 * 3, 64)},
    ),
    "instance norm": Case(
        lambda: Net(nn.InstanceNorm2d(8, 1e-3, affine=True)),
        {"last": on(8, 0, 1, 2)},
        {"stem": (3 * 27, 64), "last": (6 * 3, 64)},
    ),
    "layer norm, channels last": Case(
        lambda: Net(Call(lambda s, x: s.ln(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
                         ln=nn.LayerNorm(8, 1e-3))),
        {"last": on(8, 0, 1, 2)},
        {"stem": (8 * 27, 64), "last": (6 * 3, 64)},
        frozenset({"LayerNormalization"}),
    ),
}  # fmt: skip


# Weights that are computed


class Standardised(nn.Conv2d):
    """A convolution whose filters have mean 0 and deviation 1."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.effective(), self.bias)

    def effective(self) -> Tensor:
        flat = self.weight.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 0.125)
        return flat.view_as(self.weight)


def effective(model: nn.Module) -> nn.Module:
    """The network with a plain convolution of the block's weight."""
    block = model.block
    weight = block.effective() if isinstance(block, Standardised) else block.weight
    plain = nn.Conv2d(8, 8, 3, padding=1)
    plain.load_state_dict({"weight": weight.detach(), "bias": block.bias.detach()})
    found = Net(plain)
    for name in ("stem", "bn", "act", "last"):
        setattr(found, name, getattr(model, name))
    return found.eval()


def computed(build: Callable[[], nn.Module]) -> Case:
    return Case(
        lambda: Net(build()),
        {"block": on(8, 0, 1), "last": on(8, 3)},
        {"stem": (2 * 27, 64), "block": (1 * 2 * 9, 64), "last": (6 * 1, 64)},
        plain=effective,
    )


COMPUTED = {
    "weight norm": computed(lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))),
    "old weight norm": computed(lambda: nn.utils.weight_norm(nn.Conv2d(8, 8, 3, padding=1))),
    "spectral norm": computed(
        lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))
    ),
    "standardised weights": computed(lambda: Standardised(8, 8, 3, padding=1)),
}


def functional(model: nn.Module) -> nn.Module:
    """The network with a module in the place of a parameter that `F.conv2d` reads."""
    plain = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    plain.load_state_dict({"weight": model.block.w.detach()})
    found = Net(Call(lambda s, x: s.w(x), w=plain))
    for name in ("stem", "bn", "act", "last"):
        setattr(found, name, getattr(model, name))
    return found.eval()


def raw_parameter() -> nn.Module:
    block = Call(lambda s, x: F.conv2d(x, s.w, None, 1, 1))
    block.w = nn.Parameter(torch.randn(8, 8, 3, 3) / 5)
    return Net(block)


COMPUTED["raw parameter"] = Case(
    raw_parameter,
    {"block.w": on(8, 0, 1), "last": on(8, 3)},
    {"stem": (2 * 27, 64), "block.w": (1 * 2 * 9, 64), "last": (6 * 1, 64)},
    plain=functional,
)  # fmt: skip


# Masks that leave nothing of something


def residual() -> nn.Module:
    body = nn.Sequential(unit(8, 8, 3), nn.Conv2d(8, 8, 3, padding=1))
    return Net(Call(lambda s, x: x + s.body(x), body=body))


DEAD = {
    "a reader without channels": Case(
        residual,
        {"block.body.1": on(8), "last": on(8, 0, 1, 2)},
        # Only the bias of the second convolution is left of the branch.
        {
            "stem": (3 * 27, 64), "block.body.0.0": (0, 64), "block.body.1": (0, 64),
            "last": (6 * 3, 64),
        },
    ),
    "a branch without filters": Case(
        residual,
        {"block.body.1": on(8, axis="out", site="output"), "last": on(8, 0, 1, 2)},
        {
            "stem": (3 * 27, 64), "block.body.0.0": (0, 64), "block.body.1": (0, 64),
            "last": (6 * 3, 64),
        },
    ),
    "a block without input": Case(
        residual,
        {"block.body.0.0": on(8), "last": on(8, 0, 1, 2)},
        {
            "stem": (3 * 27, 64), "block.body.0.0": (0, 64), "block.body.1": (0, 64),
            "last": (6 * 3, 64),
        },
    ),
}  # fmt: skip


# Constants: four filters of the stem are off behind a live batch norm


OFF = {"stem": on(8, 0, 2, 5, 6, axis="out")}
PADDED = frozenset({"Conv"})


def constant(
    block: Callable[[], nn.Module], left: dict[str, tuple[int, int]], **options: object
) -> Case:
    return Case(lambda: Net(block(), act=nn.Sigmoid()), OFF, left, **options)  # type: ignore[arg-type]


CONSTANTS = {
    "hard swish": constant(nn.Hardswish, {"stem": (4 * 27, 64), "last": (6 * 4, 64)}),
    "1 - x": constant(
        lambda: Call(lambda s, x: 1 - x), {"stem": (4 * 27, 64), "last": (6 * 4, 64)}
    ),
    "reflected border": constant(
        lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        {"stem": (4 * 27, 64), "block": (8 * 4 * 9, 64), "last": (6 * 8, 64)},
    ),
    "repeated border": constant(
        lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate"),
        {"stem": (4 * 27, 64), "block": (8 * 4 * 9, 64), "last": (6 * 8, 64)},
    ),
    "circular border": constant(
        lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        {"stem": (4 * 27, 64), "block": (8 * 4 * 9, 64), "last": (6 * 8, 64)},
    ),
    "strided": constant(
        lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1),
        {"stem": (4 * 27, 64), "block": (8 * 4 * 9, 16), "last": (6 * 8, 16)},
        stay={"stem": 5 * 27, "block": 8 * 5 * 9}, held=PADDED,
    ),
    "dilated": constant(
        lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        {"stem": (4 * 27, 64), "block": (8 * 4 * 9, 64), "last": (6 * 8, 64)},
        stay={"stem": 5 * 27, "block": 8 * 5 * 9}, held=PADDED,
    ),
    "transposed": constant(
        lambda: nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1),
        {"stem": (4 * 27, 64), "block": (4 * 8 * 9, 64), "last": (6 * 8, 256)},
        stay={"stem": 5 * 27, "block": 5 * 8 * 9}, held=frozenset({"ConvTranspose"}),
    ),
    "transposed and dilated": constant(
        lambda: nn.ConvTranspose2d(8, 8, 3, padding=2, dilation=2),
        {"stem": (4 * 27, 64), "block": (4 * 8 * 9, 64), "last": (6 * 8, 64)},
        stay={"stem": 5 * 27, "block": 5 * 8 * 9}, held=frozenset({"ConvTranspose"}),
    ),
    "depthwise, multiplier 2": Case(
        lambda: Net(conv(8, 16, 3, groups=8, padding=0), 16, nn.Sigmoid()), OFF,
        {"stem": (4 * 27, 64), "block": (8 * 9, 36), "last": (6 * 8, 36)},
    ),
    "global pool": constant(
        lambda: nn.AdaptiveAvgPool2d(1), {"stem": (4 * 27, 64), "last": (6 * 4, 1)}
    ),
}  # fmt: skip

CASES = {**BRANCHES, **MOVES, **BLOCKS, **COMPUTED, **DEAD, **CONSTANTS}


@pytest.mark.parametrize("name", CASES)
def test_what_the_masks_leave(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    model = randomise(case.build())
    plain = case.plain(model) if case.plain else None
    report = compile_exactly(tmp_path, model, {"d": Domain(case.masks)}, plain=plain)
    figures = report.domains["d"]
    layers = dict(zip(case.left, in_order(figures.layers, case.left), strict=True))
    used = {key: layer.params_used for key, layer in layers.items()}
    assert used == {key: elements for key, (elements, _) in case.left.items()}
    emitted = {key: layer.params_emitted for key, layer in layers.items()}
    assert emitted == {**used, **case.stay}
    work = {key: layer.macs_emitted for key, layer in layers.items()}
    assert work == {key: emitted[key] * positions for key, (_, positions) in case.left.items()}
    assert {held.operator for held in report.held} == case.held


def in_order(layers: tuple, names: dict[str, tuple[int, int]]) -> list:
    """Returns the layer of each name; computed weights have names of the exporter's."""
    named = {layer.name.removesuffix(".weight"): layer for layer in layers}
    rest = [layer for name, layer in named.items() if name not in names]
    return [named.get(name) or rest.pop(0) for name in names]


def test_one_convolution_called_twice(tmp_path: Path) -> None:
    """Its weight is stored once: what either call uses; each call computes only its own part."""
    torch.manual_seed(0)
    model = randomise(Net(Call(lambda s, x: s.c(torch.relu(s.c(x))), c=conv(8, 8, 3))))
    domain = Domain({"block.c": on(8, 0, 1), "last": on(8, 5)})
    figures = compile_exactly(tmp_path, model, {"d": domain}).domains["d"]
    # The first call makes channels 0 and 1 from channels 0 and 1, the second channel 5 from them.
    assert figures.params_dense == 8 * 27 + 8 * 8 * 9 + 6 * 8
    assert figures.params_used == 2 * 27 + 3 * 2 * 9 + 6 * 1
    assert figures.macs_emitted == 64 * (2 * 27 + 2 * 2 * 9 + 1 * 2 * 9 + 6 * 1)


def test_a_weight_that_the_exporter_cannot_express_is_refused(tmp_path: Path) -> None:
    block = parametrizations.orthogonal(nn.Conv2d(8, 8, 3, padding=1))
    with pytest.raises(UnsupportedGraphError, match=r"cannot be exported: .*matrix_exp"):
        compile_exactly(tmp_path, Net(block), {"d": Domain()})
