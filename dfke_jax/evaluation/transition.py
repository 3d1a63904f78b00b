"""Whether two networks change their minds together along the way from one class to another."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Predict
from dfke_jax.evaluation.transfer import as_pytree
from dfke_jax.nn.classifier import as_float
from dfke_jax.nn.losses import cross_entropy


class TransitionCurves(NamedTuple):
    """Beliefs along adversarial paths, on the host.

    Attributes:
      first, second: probability (N', K − 1, steps) that each network gives to the class that the
        path leads to; `first` is the network that is walked on.
      rows: numbers (N',) of the images, those on whose class both networks agree.
    """

    first: np.ndarray
    second: np.ndarray
    rows: np.ndarray


def transition_curves(
    first: Predict,
    second: Predict,
    images: np.ndarray | Array,
    *,
    steps: int = 30,
    step_size: float = 1.0,
    batch_size: int = 50,
) -> TransitionCurves:
    """Walks from every image to every other class j on one network, and asks both on the way.

    x_0 = x, x_{t+1} = x_t − ξ·∇_x H(j, σ(a(x_t))), for all j that differ from the class i that both
    networks a and b give x; the curves are σ(a(x_t))_j and σ(b(x_t))_j for t = 0 … steps − 1.

    Args:
      first, second: a and b, images -> logits (B, K); pytrees travel as arguments. Walk on the
        student, and ask the teacher.
      images: (N, H, W, C), uint8 or float; the walk leaves their box, as published.
      steps: K of the paper, points of a path. step_size: ξ, in pixels.
      batch_size: images walked side by side, each to all classes.

    Raises:
      InputError: for numbers outside their range, or networks that agree on no image.

    Source: Micaelli and Storkey, NeurIPS 2019 (transition curves), and its released code.
    Deviation: steps are in pixels, not in units of a normalised input.
    """
    if steps < 1 or batch_size < 1 or not step_size > 0:
        raise InputError(
            "steps and batch_size must be at least 1 and step_size positive, got "
            f"{steps}, {batch_size} and {step_size}"
        )
    first, second = as_pytree(first), as_pytree(second)
    size = jnp.float32(step_size)
    agreed, curves = [], []
    for start in range(0, len(images), batch_size):
        piece = jnp.asarray(images[start : start + batch_size])
        fill = [(0, batch_size - len(piece))] + [(0, 0)] * (piece.ndim - 1)
        same, walked = _walk(first, second, jnp.pad(piece, fill), size, steps)
        agree = np.asarray(same)[: len(piece)]
        agreed.append(start + np.flatnonzero(agree))
        curves.append(np.asarray(walked)[:, : len(piece)][:, agree])
    rows = np.concatenate(agreed) if agreed else np.zeros(0, int)
    if not rows.size:
        raise InputError(f"the two networks agree on none of {len(images)} images")
    found = np.concatenate(curves, 1)
    return TransitionCurves(found[0], found[1], rows)


def mean_transition_error(curves: TransitionCurves) -> float:
    """Mean over images, classes and steps of |σ(a(x_t))_j − σ(b(x_t))_j|, in [0, 1].

    Source: Micaelli and Storkey, NeurIPS 2019. Over the curves' own images: those on whose class
    both agree.
    """
    return float(np.mean(np.abs(np.float64(curves.first) - np.float64(curves.second))))


@jax.jit(static_argnames="steps")
def _walk(
    first: Predict, second: Predict, images: Array, step_size: Array, steps: int
) -> tuple[Array, Array]:
    """Whether both agree (B,), and the curves of both (2, B, K − 1, steps)."""
    images = as_float(images)
    answers = first(images)
    batch, classes = answers.shape
    own = jnp.argmax(answers, -1)
    same = own == jnp.argmax(second(images), -1)
    others = classes - 1
    targets = ((own[:, None] + 1 + jnp.arange(others)[None]) % classes).reshape(-1)
    start = jnp.repeat(images, others, 0)

    def loss(x: Array) -> tuple[Array, Array]:
        logits = first(x)
        return jnp.sum(cross_entropy(logits, targets)), logits

    def belief(logits: Array) -> Array:
        return jnp.take_along_axis(jax.nn.softmax(logits), targets[:, None], -1)[:, 0]

    def step(x: Array, _: None) -> tuple[Array, Array]:
        slope, logits = jax.grad(loss, has_aux=True)(x)
        return x - step_size * slope, jnp.stack([belief(logits), belief(second(x))])

    _, curves = jax.lax.scan(step, start, length=steps)
    return same, jnp.moveaxis(curves, 0, -1).reshape(2, batch, others, steps)


__all__ = ["TransitionCurves", "mean_transition_error", "transition_curves"]
