"""Copycat: images of another domain, labels alone, and a clone trained with heavy augmentation."""

import math

from dfke_jax.core.method import Attack
from dfke_jax.core.types import Array, Augmentation
from dfke_jax.data.augment import affine, compose, gaussian_noise
from dfke_jax.extraction.pool import PoolAttackSettings
from dfke_jax.extraction.random_queries import random_attack
from dfke_jax.nn.classifier import Classifier
from dfke_jax.oracle.reveal import Reveal


def heavy_augmentation(width: int) -> Augmentation:
    """Rotation by up to 15°, scale 0.85 to 1.15, shift by up to width/14, noise of standard
    deviation up to 0.05.

    This project's choice: the paper does not fix one. Nothing is mirrored, which would change
    digits and letters.
    """
    return compose(affine(math.radians(15), (0.85, 1.15), width / 14), gaussian_noise(0.05))


def copycat(
    clone: Classifier,
    pool: Array,
    reveal: Reveal,
    settings: PoolAttackSettings | None = None,
    *,
    train_every: int | None = None,
    augment: Augmentation | None = None,
) -> Attack:
    """Copycat CNN: stolen labels argmax V(x) of unrelated images, learnt by cross-entropy with
    augmentation.

    The augmented images are not asked again: they keep the label of their original.

    Args:
      clone: gives the network.
      pool: (N, H, W, C), images of any domain.
      reveal: what the oracle answers; its largest class alone is used.
      settings, train_every: as for `random_attack`.
      augment: `heavy_augmentation` by default; pass ``dfke_jax.data.identity()`` for none.

    Returns:
      An `Attack` over `RandomState`.

    Raises:
      InputError: for a pool that does not fit.

    Source: Correia-Silva et al., Copycat CNN, IJCNN 2018. Deviations: new parameters (the paper
    begins from ImageNet's); the settings' defaults are those of Knockoff Nets.
    """
    return random_attack(
        clone,
        pool,
        reveal,
        settings or PoolAttackSettings(),
        train_every=train_every,
        hard=True,
        augment=heavy_augmentation(clone.input_shape[1]) if augment is None else augment,
    )


__all__ = ["copycat", "heavy_augmentation"]
