"""Fully connected networks, for images of any size."""

import flax.linen as nn

from dfke_jax.core.types import Array
from dfke_jax.nn.layers import BatchNorm, flatten, head, record


class MLP(nn.Module):
    """Dense layers with ReLU between them, on flattened images.

    Attributes:
      num_classes: K.
      units: of the hidden layers.
      batch_norm: normalise after each hidden layer, before the ReLU.
    """

    num_classes: int = 10
    units: tuple[int, ...] = (256, 128)
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = flatten(x)
        for i, units in enumerate(self.units, 1):
            x = nn.Dense(units, name=f"dense{i}")(x)
            if self.batch_norm:
                x = BatchNorm(name=f"dense{i}_norm")(x, train=train)
            x = nn.relu(record(self, f"dense{i}", x))
        return head(self.num_classes)(record(self, "features", x))


def hinton_mlp(num_classes: int = 10) -> MLP:
    """784-1200-1200-10, the teacher of Hinton et al. 2015; 2,395,210 parameters on 28×28×1.

    Deviation: no dropout and no weight constraint, which the paper trains with; as in Lopes et al.
    2017.
    """
    return MLP(num_classes, (1200, 1200))


def hinton_mlp_half(num_classes: int = 10) -> MLP:
    """784-800-800-10, the student of Hinton et al. 2015; 1,276,810 parameters on 28×28×1."""
    return MLP(num_classes, (800, 800))


def mlp_small(num_classes: int = 10) -> MLP:
    """784-256-128-10, of this project, for quick runs; 235,146 parameters on 28×28×1."""
    return MLP(num_classes, (256, 128))


__all__ = ["MLP", "hinton_mlp", "hinton_mlp_half", "mlp_small"]
