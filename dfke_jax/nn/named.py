"""Classifiers by the name of their network, with preprocessing to its size."""

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
    info = registry.describe(name)
    size = info.input_size
    if size is not None and fit == "pad" and max(shape[0] / size[0], shape[1] / size[1]) > 1:
        fit = "bilinear"
    mean, std = info.normalisation or ((0.0,), (1.0,))
    if len(mean) not in (1, shape[2]):  # colours' figures say nothing of grey images
        mean, std = (0.0,), (1.0,)
    size = size if size != shape[:2] else None
    preprocessing = Preprocessing(size=size, fit=fit, mean=mean, std=std)  # type: ignore[arg-type]
    return Classifier.create(
        registry.build(name, num_classes), jax.random.key(0), shape, preprocessing
    )


__all__ = ["network"]
