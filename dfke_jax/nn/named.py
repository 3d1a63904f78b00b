"""Classifiers by the name of their network, with the preprocessing that brings images to its size."""

import functools

import jax

from dfke_jax.nn import registry
from dfke_jax.nn.classifier import Classifier, Preprocessing


@functools.lru_cache(maxsize=64)
def network(
    name: str, num_classes: int, shape: tuple[int, int, int], fit: str = "pad"
) -> Classifier:
    """A network by name for images of a shape, with the preprocessing that brings them to its size.

    The variables are placeholders; training draws its own. The same arguments give the same value,
    made once.

    Raises:
      UnknownNameError: for a name that is not registered.
      InputError: where the network cannot take the images.
    """
    size = registry.describe(name).input_size
    if size is not None and fit == "pad" and max(shape[0] / size[0], shape[1] / size[1]) > 1:
        fit = "bilinear"
    preprocessing = Preprocessing(size=size if size != shape[:2] else None, fit=fit)  # type: ignore[arg-type]
    return Classifier.create(
        registry.build(name, num_classes), jax.random.key(0), shape, preprocessing
    )


__all__ = ["network"]
