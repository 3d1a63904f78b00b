"""Residual networks (He et al. 2016) with the stem for small images: 3×3 at stride one, no pooling."""

import flax.linen as nn

from dfke_jax.core.types import Array
from dfke_jax.nn.layers import BatchNorm, Conv, global_avg_pool, head, record

_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_PAD = ((1, 1), (1, 1))  # explicit: at stride two ``SAME`` pads differently from PyTorch


class BasicBlock(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))); where the shape changes, x goes through norm(1×1
    conv).
    """

    filters: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        def convolve(x: Array, size: int, stride: int, pad, name: str) -> Array:
            options = {"padding": pad, "use_bias": False, "kernel_init": _INIT, "name": name}
            x = Conv(self.filters, (size, size), (stride, stride), **options)(x)
            return BatchNorm(name=f"{name}_norm")(x, train=train)

        y = nn.relu(convolve(x, 3, self.stride, _PAD, "conv1"))
        y = convolve(y, 3, 1, _PAD, "conv2")
        if self.stride != 1 or x.shape[-1] != self.filters:
            x = convolve(x, 1, self.stride, ((0, 0), (0, 0)), "shortcut")
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stages of basic blocks, global pooling, one dense layer. Stages after the first start at
    stride two.

    Recorded are the stem before its ReLU and the output of each stage.

    Attributes:
      num_classes: K.
      depths: blocks of each stage.
      widths: filters of each stage; the stem has those of the first.
    """

    num_classes: int = 10
    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = Conv(
            self.widths[0], (3, 3), padding=_PAD, use_bias=False, kernel_init=_INIT, name="conv"
        )(x)
        x = nn.relu(record(self, "stem", BatchNorm(name="conv_norm")(x, train=train)))
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            for i in range(1, depth + 1):
                stride = 2 if stage > 1 and i == 1 else 1
                x = BasicBlock(width, stride, name=f"stage{stage}_block{i}")(x, train=train)
            record(self, f"stage{stage}", x)
        return head(self.num_classes)(record(self, "features", global_avg_pool(x)))


def resnet8(num_classes: int = 10) -> ResNet:
    """Three stages of one block, 16/32/64 filters, quick on a CPU; 78,042 parameters on three
    channels.

    Deviation from He et al. (section 4.2): shortcuts are normalised 1×1 convolutions, as in
    RepDistiller.
    """
    return ResNet(num_classes, (1, 1, 1), (16, 32, 64))


def resnet18(num_classes: int = 10) -> ResNet:
    """The student of DAFL, DFAD and most later work on CIFAR; 11,173,962 parameters on three
    channels.
    """
    return ResNet(num_classes)


def resnet18_half(num_classes: int = 10) -> ResNet:
    """ResNet-18 with half the filters; 2,797,610 parameters on three channels."""
    return ResNet(num_classes, widths=(32, 64, 128, 256))


def resnet34(num_classes: int = 10) -> ResNet:
    """The teacher of DAFL, DFAD and most later work on CIFAR; 21,282,122 parameters on three
    channels.
    """
    return ResNet(num_classes, (3, 4, 6, 3))


__all__ = ["BasicBlock", "ResNet", "resnet8", "resnet18", "resnet18_half", "resnet34"]
