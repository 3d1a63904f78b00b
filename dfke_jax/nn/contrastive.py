"""Contrastive learning: encoders from images without labels."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.mesh import constrain_samples
from dfke_jax.core.method import Method, Static, check_arguments, method
from dfke_jax.core.types import Array, Augmentation, Key, Metrics, PyTree
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.observation import observe
from dfke_jax.nn.soft_nearest import unit_rows
from dfke_jax.nn.training import Training, descend


def nt_xent(first: Array, second: Array, temperature: float | Array = 0.5) -> Array:
    """The normalised temperature-scaled cross-entropy of B positive pairs, each among all others.

    With z the 2B rows of both, scaled to length 1, and i' the partner of row i:

    ℓ_i = −⟨z_i, z_i'⟩/τ + log Σ_{k≠i} exp(⟨z_i, z_k⟩/τ)

    Computed as a log-sum-exp, so that any temperature is sound.

    Args:
      first, second: (B, D), B ≥ 2; row b of the one and row b of the other belong together. A row
        of zeros has no direction, cosine 0 with every row, and no gradient.
      temperature: τ > 0.

    Returns:
      (B,), (ℓ_b + ℓ_b')/2 in nats; its mean is the paper's loss.

    Raises:
      InputError: for shapes that do not fit, fewer than two pairs, or a temperature (a Python
        number) not above 0.

    Source: Chen, Kornblith, Norouzi, Hinton, A Simple Framework for Contrastive Learning of Visual
    Representations, ICML 2020, equation 1.
    """
    if first.ndim != 2 or first.shape != second.shape or first.shape[0] < 2:
        raise InputError(
            f"pairs must be two arrays (B, D) with B >= 2, got {first.shape} and {second.shape}"
        )
    if isinstance(temperature, int | float) and not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    pairs = first.shape[0]
    rows = unit_rows(jnp.concatenate([first, second]).astype(jnp.float32))
    similar = jnp.matmul(rows, rows.T, precision="highest") / temperature
    among = jax.nn.logsumexp(jnp.where(jnp.eye(2 * pairs, dtype=bool), -jnp.inf, similar), 1)
    together = jnp.diagonal(similar[:pairs, pairs:])
    return (among[:pairs] + among[pairs:]) / 2 - together


class Projection(nn.Module):
    """W₂·ReLU(W₁·h + b₁) + b₂, between representations and the contrastive loss; (B, D) -> (B,
    outputs).

    Attributes:
      outputs: width of the space of the loss. The hidden layer is as wide as h.
    """

    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = nn.relu(nn.Dense(x.shape[-1], name="hidden")(x))
        return nn.Dense(self.outputs, name="output")(hidden)


class Contrastive(NamedTuple):
    """State of contrastive training: the network's variables, the projection's parameters, the
    optimiser's state.

    `nn.trained` takes the encoder out of it.
    """

    variables: PyTree
    projection: PyTree
    optimizer_state: Any


def contrastive_training(
    encoder: Classifier,
    images: Array,
    *,
    augment: Augmentation,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    temperature: float | Array = 0.5,
    projection: int = 64,
    fine_tune: bool = False,
) -> Method:
    """SimCLR: two random views of an image shall lie closer to one another than to views of other
    images.

    Every step draws `batch_size` images without replacement, two views of each, and descends the
    mean of `nt_xent` over ``projection(features(view))``. The representation is
    `Classifier.features`; the network's own last layer takes no part and stays as it was drawn.

    Args:
      encoder: gives network and preprocessing; its variables are used with `fine_tune` alone.
      images: (N, H, W, C) on the device, uint8 or float in [0, 1]; no labels.
      augment: draws a view; see `dfke_jax.data.augment`.
      optimizer: see `optimiser`.
      batch_size: B, 2 to N.
      temperature: τ of `nt_xent`.
      projection: width of the space of the loss.
      fine_tune: begin from the encoder's own variables, with a new projection and a new optimiser.

    Returns:
      A `Method` over `Contrastive` with metric ``loss``; `trained` puts the result into a
      classifier.

    Raises:
      InputError: a batch size out of range, a projection without outputs, a bare function as
        augmentation, or a network that records no ``features``.

    Source: Chen, Kornblith, Norouzi, Hinton, ICML 2020, algorithm 1. Deviations: no LARS optimiser
    and no warm-up; batch normalisation, where there is any, uses the statistics of both views
    together.
    """
    if not 2 <= batch_size <= images.shape[0]:
        raise InputError(
            f"batch_size must lie in [2, {images.shape[0]}], the number of images, got {batch_size}"
        )
    if projection < 1:
        raise InputError(f"projection must be at least 1, got {projection}")
    encoder.check_layers(["features"])
    check_arguments(augment, "augment")
    fixed = (
        encoder.module,
        encoder.preprocessing,
        encoder.input_shape,
        optimizer,
        batch_size,
        Projection(projection),
    )
    start = encoder.variables if fine_tune else None
    return method(_init, _step, Static(fixed), images, augment, temperature, start)


def _init(
    fixed: Static, images: Array, augment: Any, temperature: Any, start: PyTree, key: Key
) -> Contrastive:
    module, preprocessing, shape, optimizer, _, projection = fixed.value
    network_key, projection_key = jax.random.split(key)
    if start is None:
        start = Classifier.create(module, network_key, shape, preprocessing).variables
    else:
        start = jax.tree.map(jnp.array, start)
    width = feature_width(Classifier(module, start, preprocessing, shape))
    head = projection.init(projection_key, jnp.zeros((2, width)))["params"]
    return Contrastive(start, head, optimizer.init((start["params"], head)))


def _step(
    fixed: Static,
    images: Array,
    augment: Augmentation,
    temperature: Any,
    start: PyTree,
    key: Key,
    state: Contrastive,
) -> tuple[Contrastive, Metrics]:
    module, preprocessing, _, optimizer, batch_size, projection = fixed.value
    row_key, *view_keys, dropout_key = jax.random.split(key, 4)
    chosen = jax.random.choice(row_key, images.shape[0], (batch_size,), replace=False)
    batch = constrain_samples(as_float(images[chosen]))
    inputs = preprocessing(jnp.concatenate([augment(view_key, batch) for view_key in view_keys]))

    def mean_loss(trainable: tuple[PyTree, PyTree]) -> tuple[Array, tuple[None, PyTree]]:
        params, head = trainable
        variables = {**state.variables, "params": params}
        seen = observe(module, variables, inputs, train=True, activations=True, key=dropout_key)
        rows = projection.apply({"params": head}, seen.activations["features"])
        return jnp.mean(nt_xent(rows[:batch_size], rows[batch_size:], temperature)), (
            None,
            seen.updated,
        )

    both = {**state.variables, "params": (state.variables["params"], state.projection)}
    (variables, optimizer_state), loss, _ = descend(
        optimizer, Training(both, state.optimizer_state), mean_loss
    )
    params, head = variables["params"]
    return Contrastive({**variables, "params": params}, head, optimizer_state), {"loss": loss}


def representation(encoder: Classifier) -> Partial:
    """`Classifier.features` as a function that is a pytree: images (B, H, W, C) -> (B, D), in
    float32.
    """
    return Partial(_representation, encoder)


def feature_width(encoder: Classifier) -> int:
    """D of `Classifier.features`; nothing is computed."""
    return jax.eval_shape(
        encoder.features, jax.ShapeDtypeStruct((2, *encoder.input_shape), jnp.float32)
    ).shape[-1]


def _representation(encoder: Classifier, images: Array) -> Array:
    return encoder.features(as_float(images)).astype(jnp.float32)


__all__ = [
    "Contrastive",
    "Projection",
    "contrastive_training",
    "feature_width",
    "nt_xent",
    "representation",
]
