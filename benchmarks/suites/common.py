"""What several rows need: networks, and images that are nothing in particular."""

import jax

from dfke_jax.core.types import Array, Key
from dfke_jax.nn import Classifier, Preprocessing, build

GREY = (28, 28, 1)
COLOUR = (32, 32, 3)
DIGITS = (8, 8, 1)


def classifier(name: str, seed: int = 0, shape: tuple[int, int, int] | None = None) -> Classifier:
    """A registered network with fresh parameters; LeNets take 28×28 images and pad them to 32×32, others 32×32×3 or `shape`."""
    grey = name.startswith("lenet")
    preprocessing = Preprocessing(size=(32, 32)) if grey else Preprocessing()

    @jax.jit
    def create(key: Key) -> Classifier:
        return Classifier.create(build(name), key, shape or (GREY if grey else COLOUR), preprocessing)

    return create(jax.random.key(seed))


def random_images(count: int, shape: tuple[int, int, int] = GREY, seed: int = 1) -> Array:
    """(N, H, W, C), uniform on [0, 1]."""
    return jax.random.uniform(jax.random.key(seed), (count, *shape))


def random_labels(count: int, seed: int = 2) -> Array:
    """(N,), ten classes."""
    return jax.random.randint(jax.random.key(seed), (count,), 0, 10)
