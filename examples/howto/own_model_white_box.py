"""Images out of a model of one's own, by a method that reads its normalisation layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfke_jax import core
from dfke_jax.distillation import InversionSettings, deep_inversion
from dfke_jax.nn import Preprocessing
from dfke_jax.nn.adapters import from_linen

SHAPE = (8, 8, 1)


class MyNetwork(nn.Module):
    """Somebody's: normalised by Flax, and told of training by an argument of its own name."""

    classes: int = 3

    @nn.compact
    def __call__(self, x, training: bool):
        for filters in (8, 16):
            x = nn.Conv(filters, (3, 3), strides=2)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not training)(x))
        return nn.Dense(self.classes)(x.mean((1, 2)))


def white_box(key: jax.Array):
    """The network with variables, here fresh ones, as a teacher of every method that it has enough for."""
    module = MyNetwork()
    variables = module.init(key, jnp.zeros((1, *SHAPE)), training=False)
    return from_linen(
        module, variables, SHAPE, preprocessing=Preprocessing(mean=(0.5,), std=(0.25,))
    )


def images_of(teacher, steps: int = 100) -> jax.Array:
    """Twelve images, DeepInversion's."""
    method = deep_inversion(teacher, InversionSettings(steps=steps), 12, 12)
    return core.run(method, jax.random.key(1), 1).state.images


if __name__ == "__main__":
    teacher = white_box(jax.random.key(0))
    print(teacher.name, "lacks", dict(teacher.missing) or "nothing")
    print(images_of(teacher).shape)
