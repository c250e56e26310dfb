"""The two networks of the benchmarks, with random weights that keep activations near unit scale.

`resnet50` has torchvision's architecture (v1.5: the stride is on the 3x3 convolution) and its
state-dict names, so trained weights of that form load into it. `wrn_28_4` is the pre-activation
wide residual network of Zagoruyko and Komodakis (2016) with 28 layers and width 4.

Convolutions have Kaiming's scale, batch norms a variance near 1, and the scales before a
residual sum are small, so that many sums in a row do not explode.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

BRANCH_SCALE = 0.4
"""Mean of the batch-norm weights before a residual sum; other batch norms have mean 1."""


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside an identity or a projection."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, inputs, height, width) to (batch, 4 width, height/stride, width/stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn3(self.conv3(y)) + shortcut)


class ResNet(nn.Module):
    """A bottleneck residual network with torchvision's names."""

    def __init__(
        self, blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage, count in enumerate(blocks):
            inner = width << stage
            layer = nn.Sequential()
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layer.append(Bottleneck(inputs, inner, stride))
                inputs = 4 * inner
            self.add_module(f"layer{stage + 1}", layer)
        self.stages = len(blocks)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (batch, 3, height, width) to logits (batch, classes)."""
        y = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            y = self.get_submodule(f"layer{stage + 1}")(y)
        logits: Tensor = self.fc(y.mean((2, 3)))
        return logits


class PreactivationBlock(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice, beside an identity or a projection."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, inputs, height, width) to (batch, outputs, height/stride, width/stride)."""
        active = torch.relu(self.bn1(x))
        y: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A pre-activation wide residual network; `depth` is 6 n + 4."""

    def __init__(self, depth: int = 28, width: int = 4, classes: int = 100):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        inputs = 16
        for stage in range(3):
            outputs = (16 << stage) * width
            layer = nn.Sequential()
            for index in range((depth - 4) // 6):
                layer.append(PreactivationBlock(inputs, outputs, 2 if stage and not index else 1))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", layer)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (batch, 3, height, width) to logits (batch, classes)."""
        y = self.conv1(x)
        for stage in range(3):
            y = self.get_submodule(f"layer{stage + 1}")(y)
        logits: Tensor = self.fc(torch.relu(self.bn(y)).mean((2, 3)))
        return logits


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Fills the weights from `seed` and returns the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, 0.0, (2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.1, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            scale = BRANCH_SCALE if enters_sum(model, name) else 1.0
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.7 * scale, 1.3 * scale, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.1, generator=generator)
            nn.init.normal_(module.running_mean, 0.0, 0.1, generator=generator)
            nn.init.uniform_(module.running_var, 0.8, 1.25, generator=generator)
    return model.eval()


def enters_sum(model: nn.Module, name: str) -> bool:
    """Whether batch norm `name` of `model` is the last one before a residual sum."""
    parent, _, child = name.rpartition(".")
    last = {Bottleneck: "bn3", PreactivationBlock: "bn2", nn.Sequential: "1"}
    return last.get(type(model.get_submodule(parent))) == child


def resnet50(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Returns ResNet-50 with 1000 classes and an example input of (1, 3, 224, 224)."""
    return randomise(ResNet(), seed), example_input(224, seed)


def wrn_28_4(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Returns WRN-28-4 with 100 classes and an example input of (1, 3, 64, 64)."""
    return randomise(WideResNet(), seed), example_input(64, seed)


def resnet_tiny(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Returns a small network of ResNet-50's form, for smoke runs, and an input of 32 by 32."""
    return randomise(ResNet((1, 2, 1, 1), 16, 20), seed), example_input(32, seed)


def wrn_tiny(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Returns a small network of WRN-28-4's form, for smoke runs, and an input of 16 by 16."""
    return randomise(WideResNet(10, 1, 10), seed), example_input(16, seed)


def example_input(size: int, seed: int) -> Tensor:
    """Returns a random normal image of (1, 3, size, size), float32."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed + 1))


NETWORKS: dict[str, Callable[..., tuple[nn.Module, Tensor]]] = {
    "r50": resnet50,
    "wrn": wrn_28_4,
    "r50-tiny": resnet_tiny,
    "wrn-tiny": wrn_tiny,
}
"""The networks by the name that the scripts take: `f(seed=0) -> (model, example input)`."""
