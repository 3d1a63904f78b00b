"""Whether adversarial examples made on one classifier fool another: what a clone is worth to an
attacker.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key, Predict
from dfke_jax.evaluation.summary import wilson_interval
from dfke_jax.nn.classifier import as_float
from dfke_jax.nn.losses import cross_entropy

Box = tuple[float, float]


def fgsm(
    classifier: Predict, images: Array, labels: Array, epsilon: float, box: Box = (0.0, 1.0)
) -> Array:
    """x + ε·sign ∇_x H(y, σ(f(x))), clipped to the box.

    Args:
      classifier: f; a pytree (`Classifier`, `Partial`) travels into the compiled program as an
        argument.
      images: (B, H, W, C), uint8 or float in the box.
      labels: y, (B,) integers: the truth, or the classifier's own answers.
      epsilon: ε ≥ 0, in units of pixels.
      box: lowest and highest pixel value.

    Returns:
      (B, H, W, C), within ε of the images in every pixel.

    Raises:
      InputError: for a negative ε.

    Source: Goodfellow, Shlens and Szegedy, ICLR 2015, section 4.
    """
    if epsilon < 0:
        raise InputError(f"epsilon must not be negative, got {epsilon}")
    return _fgsm(as_pytree(classifier), images, labels, epsilon, box)


def pgd(
    key: Key,
    classifier: Predict,
    images: Array,
    labels: Array,
    epsilon: float,
    *,
    step_size: float | None = None,
    steps: int = 40,
    random_start: bool = True,
    box: Box = (0.0, 1.0),
) -> Array:
    """x_{t+1} = Π(x_t + a·sign ∇ H(y, σ(f(x_t)))), Π onto the L∞ ball of radius ε around x and the
    box.

    Args:
      key: of the random start. The others as for `fgsm`.
      step_size: a > 0; 2.5·ε/steps by default.
      steps: at least 1.
      random_start: begin uniformly within the ball rather than at x.

    Returns:
      (B, H, W, C), within ε of the images in every pixel.

    Raises:
      InputError: for numbers outside their range.

    Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018,
    section 2.1.
    """
    if epsilon < 0 or steps < 1 or (step_size is not None and step_size <= 0):
        raise InputError(
            "epsilon must not be negative, steps at least 1 and step_size positive, got "
            f"{epsilon}, {steps}, {step_size}"
        )
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    return _pgd(
        key, as_pytree(classifier), images, labels, epsilon, step_size, steps, box, random_start
    )


def as_pytree(classifier: Predict) -> Predict:
    """The classifier as an argument of compiled programs: a bare function becomes a `Partial`."""
    return Partial(classifier) if jax.tree_util.all_leaves([classifier]) else classifier


def _slope(classifier: Predict, images: Array, labels: Array) -> Array:
    return jnp.sign(jax.grad(lambda x: jnp.sum(cross_entropy(classifier(x), labels)))(images))


@jax.jit
def _fgsm(classifier: Predict, images: Array, labels: Array, epsilon: Any, box: Any) -> Array:
    images = as_float(images)
    return jnp.clip(images + epsilon * _slope(classifier, images, labels), *box)


@jax.jit(static_argnames="random_start")
def _pgd(
    key: Key,
    classifier: Predict,
    images: Array,
    labels: Array,
    epsilon: Any,
    step_size: Any,
    steps: Any,
    box: Any,
    random_start: bool,
) -> Array:
    images = as_float(images)
    low, high = jnp.maximum(images - epsilon, box[0]), jnp.minimum(images + epsilon, box[1])
    start = images
    if random_start:
        start = jnp.clip(
            images + epsilon * jax.random.uniform(key, images.shape, minval=-1.0), low, high
        )

    def step(_: Array, x: Array) -> Array:
        return jnp.clip(x + step_size * _slope(classifier, x, labels), low, high)

    return jax.lax.fori_loop(0, steps, step, start)


def transfer_rate(
    clean: Any, adversarial: Any, labels: Any, confidence: float = 0.95
) -> dict[str, Any]:
    """How often an adversarial example makes a victim wrong, among the inputs that it gets right.

    Args:
      clean, adversarial: the victim's scores (N, K) or classes (N,) on the inputs, and on what was
        made of them.
      labels: the truth, integers (N,).
      confidence: of the interval.

    Returns:
      ``rate``, its Wilson ``interval``, and ``n``, the inputs that count; (None, None) and None
      with n = 0.

    Raises:
      InputError: for shapes that do not fit.

    Source: Papernot et al., AsiaCCS 2017, section 5 (transferability). Deviation: inputs that the
    victim gets wrong anyway do not count.
    """
    before, after = (np.asarray(side) for side in (clean, adversarial))
    before, after = (side.argmax(-1) if side.ndim == 2 else side for side in (before, after))
    truth = np.asarray(labels)
    if not before.shape == after.shape == truth.shape or truth.ndim != 1 or not truth.size:
        raise InputError(
            "clean and adversarial answers and labels must be of the same N >= 1 inputs, got "
            f"{np.shape(clean)}, {np.shape(adversarial)} and {truth.shape}"
        )
    right = before == truth
    count, fooled = int(right.sum()), int((right & (after != truth)).sum())
    if not count:
        return {"rate": None, "interval": (None, None), "n": 0}
    return {
        "rate": fooled / count,
        "interval": wilson_interval(fooled, count, confidence),
        "n": count,
    }


__all__ = ["as_pytree", "fgsm", "pgd", "transfer_rate"]
