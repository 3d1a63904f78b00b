"""Names for the types that every other module uses, and the one legend of shape letters.

Shape letters, in every docstring of the package:

| letter  | meaning                                                     |
|---------|-------------------------------------------------------------|
| B       | batch                                                       |
| N       | samples in a pool or data set                               |
| K       | classes                                                     |
| H, W, C | image height, width, channels (always in that order, NHWC)  |
| D       | flattened input, D = H·W·C, or the width of a feature       |
| M       | models in a population                                      |
| Z       | latent                                                      |
"""

from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array
Key = jax.Array
PyTree = Any
Metrics = dict[str, jax.Array]
Predict = Callable[[jax.Array], jax.Array]
"""A classifier seen from outside: images (B, H, W, C) in pixel space -> logits (B, K)."""
Augmentation = Callable[[jax.Array, jax.Array], jax.Array]
"""(key, images (B, H, W, C)) -> images of the same shape; traceable."""

__all__ = ["Array", "Augmentation", "Key", "Metrics", "Predict", "PyTree"]
