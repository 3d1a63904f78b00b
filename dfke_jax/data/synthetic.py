"""A classification problem drawn from a formula: Gaussian classes that a network has to remember
rather than understand.
"""

import numpy as np

from dfke_jax.data.dataset import Dataset, Split

SHAPE = (8, 16, 1)
INFORMATIVE = 16
TRAIN_ROWS, TEST_ROWS = 40_000, 2_000
SEPARATION = 0.9
_CLASSES = 10


def gaussian_classes() -> Dataset:
    """Ten Gaussian classes in 16 of 128 dimensions; the other 112 are noise. The same rows every
    time.

    z = s·μ_y + ε in the first 16 dimensions and z = ε in the others, with μ_k ~ N(0, I) drawn once,
    ε ~ N(0, I) and s = 0.9; a pixel is 1/(1 + exp(−z)). Neighbouring pixels have nothing to do with
    one another, and classes overlap: a network trained on a few hundred rows fits them all and errs
    on others, which is what ownership tests and membership inference live on. 40,000 training rows
    are enough for dozens of models of disjoint data.

    Returns:
      A `Dataset` of images 8×16×1 in (0, 1), named ``synthetic``.
    """
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(_CLASSES, INFORMATIVE))

    def draw(count: int) -> Split:
        labels = rng.permutation(np.arange(count) % _CLASSES)
        values = rng.normal(size=(count, int(np.prod(SHAPE))))
        values[:, :INFORMATIVE] += SEPARATION * centres[labels]
        return Split((1 / (1 + np.exp(-values))).astype(np.float32).reshape(count, *SHAPE), labels)

    train, test = draw(TRAIN_ROWS), draw(TEST_ROWS)
    return Dataset(
        "synthetic",
        train,
        test,
        _CLASSES,
        tuple(map(str, range(_CLASSES))),
        "ten Gaussian classes, seed 0",
    )


__all__ = ["gaussian_classes"]
