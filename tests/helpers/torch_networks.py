"""PyTorch networks with the weights of this package's."""

import numpy as np
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, before, filters, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, filters, 3, stride, 1, bias=False)
        self.conv1_norm = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.conv2_norm = nn.BatchNorm2d(filters)
        self.relu = nn.ReLU(inplace=True)
        if stride != 1 or before != filters:
            self.shortcut = nn.Conv2d(before, filters, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(filters)

    def forward(self, x):
        y = self.relu(self.conv1_norm(self.conv1(x)))
        y = self.conv2_norm(self.conv2(y))
        if hasattr(self, "shortcut"):
            x = self.shortcut_norm(self.shortcut(x))
        y += x
        return self.relu(y)


class ResNet8(nn.Module):
    """Written as PyTorch's users write it, activations in place; modules are called as in `dfke_jax.nn.resnet`."""

    def __init__(self, classes=10, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.conv_norm = nn.BatchNorm2d(16)
        self.stage1_block1 = Block(16, 16, 1)
        self.stage2_block1 = Block(16, 32, 2)
        self.stage3_block1 = Block(32, 64, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, classes)

    def forward(self, x):
        x = torch.relu(self.conv_norm(self.conv(x)))
        x = self.stage3_block1(self.stage2_block1(self.stage1_block1(x)))
        return self.head(self.pool(x).view(x.size(0), -1))


def with_weights_of(module, variables):
    """The module with the arrays of Linen variables whose paths are its modules' names."""
    params, stored = variables["params"], variables["batch_stats"]

    def at(tree, path):
        for part in path.split("."):
            tree = tree[part]
        return {name: torch.tensor(np.asarray(value)) for name, value in tree.items()}

    with torch.no_grad():
        for path, layer in module.named_modules():
            if isinstance(layer, nn.BatchNorm2d):
                own, running = at(params, path), at(stored, path)
                layer.weight.copy_(own["scale"])
                layer.bias.copy_(own["bias"])
                layer.running_mean.copy_(running["mean"])
                layer.running_var.copy_(running["var"])
            elif isinstance(layer, nn.Conv2d):
                layer.weight.copy_(at(params, path)["kernel"].permute(3, 2, 0, 1))
            elif isinstance(layer, nn.Linear):
                own = at(params, path)
                layer.weight.copy_(own["kernel"].T)
                layer.bias.copy_(own["bias"])
    return module.eval()
