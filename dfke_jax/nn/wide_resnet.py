"""Wide residual networks (Zagoruyko and Komodakis 2016), with activation before convolution."""

import flax.linen as nn

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array
from dfke_jax.nn.layers import BatchNorm, Conv, global_avg_pool, head, record

_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_PAD = ((1, 1), (1, 1))  # explicit: at stride two ``SAME`` pads differently from PyTorch


class WideBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))); where the shape changes, 1×1 conv(relu(norm(x)))
    for x.
    """

    filters: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        options = {"use_bias": False, "kernel_init": _INIT}
        strides = (self.stride, self.stride)
        y = nn.relu(BatchNorm(name="norm1")(x, train=train))
        if self.stride != 1 or x.shape[-1] != self.filters:
            x = Conv(
                self.filters, (1, 1), strides, padding=((0, 0), (0, 0)), name="shortcut", **options
            )(y)
        y = Conv(self.filters, (3, 3), strides, padding=_PAD, name="conv1", **options)(y)
        y = nn.relu(BatchNorm(name="norm2")(y, train=train))
        return x + Conv(self.filters, (3, 3), padding=_PAD, name="conv2", **options)(y)


class WideResNet(nn.Module):
    """WRN-depth-width: a stem of 16 filters, three stages of blocks, global pooling, one dense
    layer.

    Each stage has (depth − 4) / 6 blocks, of 16, 32 and 64 times `width` filters. Recorded are the
    stem, the output of each stage, and what enters the last ReLU as ``top``.

    Attributes:
      num_classes: K.
      depth: 6n + 4 for n blocks a stage.
      width: the widening factor k.
    """

    num_classes: int = 10
    depth: int = 16
    width: int = 1

    def __post_init__(self):
        check(self.depth, self.width)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        blocks = (self.depth - 4) // 6
        digits = len(str(blocks))  # so that names sort in the order of the layers
        x = record(
            self,
            "stem",
            Conv(16, (3, 3), padding=_PAD, use_bias=False, kernel_init=_INIT, name="conv")(x),
        )
        for stage in range(1, 4):
            for i in range(1, blocks + 1):
                stride = 2 if stage > 1 and i == 1 else 1
                name = f"stage{stage}_block{i:0{digits}}"
                x = WideBlock(8 * 2**stage * self.width, stride, name=name)(x, train=train)
            record(self, f"stage{stage}", x)
        x = nn.relu(record(self, "top", BatchNorm(name="top_norm")(x, train=train)))
        return head(self.num_classes)(record(self, "features", global_avg_pool(x)))


def check(depth: int, width: int) -> None:
    """Raises `InputError` unless depth = 6n + 4 with n ≥ 1, and width ≥ 1."""
    if depth < 10 or (depth - 4) % 6:
        raise InputError(
            f"a wide ResNet has depth 6n + 4 (10, 16, 22, 28, 34, 40, ...), got {depth}"
        )
    if width < 1:
        raise InputError(f"a wide ResNet has width 1 or more, got {width}")


def parameter_count(depth: int, width: int, num_classes: int = 10, channels: int = 3) -> int:
    """The number of parameters of WRN-depth-width, by summing over its layers."""
    check(depth, width)
    total, before = 9 * channels * 16, 16
    for stage in range(1, 4):
        filters = 8 * 2**stage * width
        for _ in range((depth - 4) // 6):
            total += 9 * filters * (before + filters) + 2 * (before + filters)
            if before != filters:
                total += before * filters
            before = filters
    return total + 2 * before + (before + 1) * num_classes


__all__ = ["WideBlock", "WideResNet", "check", "parameter_count"]
