"""The package's networks in PyTorch, layer by layer under the same names; images are (B, C, H, W).

This file needs PyTorch alone: ``dfke export MODEL --to torch`` puts a copy beside the weights.
"""

import torch
from torch import nn
from torch.nn import functional


def flat(x: torch.Tensor) -> torch.Tensor:
    """Maps as rows in the order of (H, W, C), in which the dense layers have their weights."""
    return x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x


def norm(features: int, enabled: bool = True, maps: bool = True) -> nn.Module:
    """Batch normalisation, or nothing."""
    if not enabled:
        return nn.Identity()
    return nn.BatchNorm2d(features) if maps else nn.BatchNorm1d(features)


class Dense(nn.Module):
    """Hidden dense layers ``dense1``, ``dense2``, ... with ReLU, and ``head``."""

    def __init__(self, inputs: int, units: tuple[int, ...], num_classes: int, batch_norm: bool):
        super().__init__()
        self.hidden = len(units)
        for i, width in enumerate(units, 1):
            self.add_module(f"dense{i}", nn.Linear(inputs, width))
            if batch_norm:
                self.add_module(f"dense{i}_norm", norm(width, maps=False))
            inputs = width
        self.head = nn.Linear(inputs, num_classes)

    def dense(self, x: torch.Tensor) -> torch.Tensor:
        x = flat(x)
        for i in range(1, self.hidden + 1):
            x = getattr(self, f"dense{i}")(x)
            if hasattr(self, f"dense{i}_norm"):
                x = getattr(self, f"dense{i}_norm")(x)
            x = functional.relu(x)
        return self.head(x)


class MLP(Dense):
    def __init__(self, shape, num_classes=10, units=(256, 128), batch_norm=False):
        super().__init__(shape[0] * shape[1] * shape[2], units, num_classes, batch_norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x)


class LeNet5(Dense):
    def __init__(self, shape, num_classes=10, filters=(6, 16), units=(120, 84), batch_norm=False):
        super().__init__(5 * 5 * filters[1], units, num_classes, batch_norm)
        self.conv1 = nn.Conv2d(shape[2], filters[0], 5)
        self.conv2 = nn.Conv2d(filters[0], filters[1], 5)
        if batch_norm:
            self.conv1_norm, self.conv2_norm = norm(filters[0]), norm(filters[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in ("conv1", "conv2"):
            x = getattr(self, name)(x)
            if hasattr(self, f"{name}_norm"):
                x = getattr(self, f"{name}_norm")(x)
            x = functional.max_pool2d(functional.relu(x), 2)
        return self.dense(x)


class TwoConv(Dense):
    def __init__(self, shape, num_classes=10, filters=(32, 64), units=128):
        inputs = (shape[0] // 4) * (shape[1] // 4) * filters[1]
        super().__init__(inputs, (units,), num_classes, batch_norm=False)
        self.conv1 = nn.Conv2d(shape[2], filters[0], 5, padding=2)
        self.conv2 = nn.Conv2d(filters[0], filters[1], 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in (self.conv1, self.conv2):
            x = functional.max_pool2d(functional.relu(conv(x)), 2)
        return self.dense(x)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, filters: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride, 1, bias=False)
        self.conv1_norm = norm(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.conv2_norm = norm(filters)
        if stride != 1 or inputs != filters:
            self.shortcut = nn.Conv2d(inputs, filters, 1, stride, bias=False)
            self.shortcut_norm = norm(filters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.conv1_norm(self.conv1(x)))
        y = self.conv2_norm(self.conv2(y))
        if hasattr(self, "shortcut"):
            x = self.shortcut_norm(self.shortcut(x))
        return functional.relu(x + y)


class ResNet(nn.Module):
    def __init__(self, shape, num_classes=10, depths=(2, 2, 2, 2), widths=(64, 128, 256, 512)):
        super().__init__()
        self.conv = nn.Conv2d(shape[2], widths[0], 3, 1, 1, bias=False)
        self.conv_norm = norm(widths[0])
        self.blocks, inputs = [], widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            for i in range(1, depth + 1):
                self.blocks.append(f"stage{stage}_block{i}")
                self.add_module(
                    self.blocks[-1], BasicBlock(inputs, width, 2 if stage > 1 and i == 1 else 1)
                )
                inputs = width
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.conv_norm(self.conv(x)))
        for name in self.blocks:
            x = getattr(self, name)(x)
        return self.head(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs: int, filters: int, stride: int):
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride, 1, bias=False)
        self.norm2 = norm(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        if stride != 1 or inputs != filters:
            self.shortcut = nn.Conv2d(inputs, filters, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(x))
        if hasattr(self, "shortcut"):
            x = self.shortcut(y)
        return x + self.conv2(functional.relu(self.norm2(self.conv1(y))))


class WideResNet(nn.Module):
    def __init__(self, shape, num_classes=10, depth=16, width=1):
        super().__init__()
        count = (depth - 4) // 6
        digits = len(str(count))
        self.conv = nn.Conv2d(shape[2], 16, 3, 1, 1, bias=False)
        self.blocks, inputs = [], 16
        for stage in range(1, 4):
            filters = 8 * 2**stage * width
            for i in range(1, count + 1):
                self.blocks.append(f"stage{stage}_block{i:0{digits}}")
                self.add_module(
                    self.blocks[-1], WideBlock(inputs, filters, 2 if stage > 1 and i == 1 else 1)
                )
                inputs = filters
        self.top_norm = norm(inputs)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return self.head(functional.relu(self.top_norm(x)).mean((2, 3)))


class VGG(nn.Module):
    def __init__(
        self, shape, num_classes=10, depths=(1, 1, 2, 2, 2), widths=(64, 128, 256, 512, 512)
    ):
        super().__init__()
        self.depths, inputs = depths, shape[2]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            for i in range(1, depth + 1):
                self.add_module(f"stage{stage}_conv{i}", nn.Conv2d(inputs, width, 3, 1, 1))
                self.add_module(f"stage{stage}_conv{i}_norm", norm(width))
                inputs = width
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = x.shape[2] >= 64
        for stage, depth in enumerate(self.depths, 1):
            for i in range(1, depth + 1):
                name = f"stage{stage}_conv{i}"
                x = functional.relu(getattr(self, f"{name}_norm")(getattr(self, name)(x)))
            if stage <= 3 or (stage == 4 and large):
                x = functional.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


class Classifier(nn.Module):
    """Pixels (B, C, H, W) in the box -> logits: size, fit, mean and std, then the network."""

    def __init__(self, network: nn.Module, size, fit: str, mean, std, low: float):
        super().__init__()
        self.network, self.size, self.fit, self.low = network, size, fit, low
        self.mean, self.std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (mean, std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.size is not None and tuple(x.shape[2:]) != tuple(self.size):
            x = self.fitted(x)
        return self.network((x - self.mean.to(x)) / self.std.to(x))

    def fitted(self, x: torch.Tensor) -> torch.Tensor:
        if self.fit == "bilinear":
            return functional.interpolate(x, self.size, mode="bilinear", antialias=True)
        if self.fit == "nearest":
            return functional.interpolate(x, self.size, mode="nearest-exact")
        rows, columns = self.size[0] - x.shape[2], self.size[1] - x.shape[3]
        edges = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return functional.pad(x, edges, value=self.low)
