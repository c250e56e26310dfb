"""A wide residual network in plain PyTorch: the example brings its own network on purpose."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-activation residual block: batch norm, ReLU and 3x3 convolution, twice."""

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
    """WRN-16 (Zagoruyko and Komodakis, 2016) whose first convolution halves the image.

    Args:
        width: Multiplies the 16, 32 and 64 channels of the three stages.
        depth: 6 n + 4 layers, n blocks in each stage.
        classes: Outputs of the head `fc`.
    """

    def __init__(self, width: int = 2, depth: int = 16, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        blocks: list[nn.Module] = []
        inputs = 16
        for stage in range(3):
            outputs = (16 << stage) * width
            for index in range((depth - 4) // 6):
                blocks.append(Block(inputs, outputs, 2 if stage and not index else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (batch, 3, 32, 32) to logits (batch, classes)."""
        y = torch.relu(self.bn(self.blocks(self.conv1(x))))
        logits: Tensor = self.fc(y.mean((2, 3)))
        return logits
