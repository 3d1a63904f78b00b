"""Noise optimisation: gradient descent on a batch of images, inside one program."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.mesh import constrain_samples, sample_devices
from dfke_jax.core.population import equations
from dfke_jax.core.types import Array, Key, PyTree

Objective = Callable[..., tuple[Array, Array]]
"""(key, images (B, H, W, C) in pixel space[, context]) -> (loss (B,), confidence (B,)).

The sum of the losses is differentiated, so samples are independent unless the objective couples
them (a statistics prior does; it adds the same scalar to every sample's loss, which multiplies the
published batch mean by B and leaves the updates of a scale-free optimiser as they are).
`confidence` decides when a sample stops; return zeros where nothing stops.
"""

Parametrisation = Literal["clip", "sigmoid", "free", "rescale"]


class Synthesised(NamedTuple):
    """What `optimise_noise` returns.

    Attributes:
      images: (B, H, W, C).
      loss: (B,) of these images as the objective last saw them (before the update that made them,
        for ``last``).
      confidence: (B,), likewise.
      steps: (B,) updates that each sample took.
      optimizer_state: to go on from (with ``keep="last"``).
    """

    images: Array
    loss: Array
    confidence: Array
    steps: Array
    optimizer_state: PyTree


def optimise_noise(
    key: Key,
    objective: Objective,
    start: Array,
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    box: tuple[float, float] = (0.0, 1.0),
    parametrisation: Parametrisation = "clip",
    jitter: int = 0,
    stop_at: Array | None = None,
    keep: Literal["last", "best"] = "last",
    optimizer_state: PyTree = None,
    context: PyTree = None,
    group: int | None = None,
) -> Synthesised:
    """Minimises Σ_b loss_b over a batch of images for a fixed number of steps.

    x ← project(x − optimiser(∇_x Σ_b loss_b(jitter(x))))

    Traceable: use it inside `jit`, `scan` and `vmap`. Under ``jax.set_mesh(device_mesh())`` the
    samples are split over all devices. Parameters that the objective needs should reach the
    enclosing program as arguments (`jax.tree_util.Partial`).

    Args:
      key: step i draws from ``fold_in(key, i)``.
      objective: see `Objective`.
      start: (B, H, W, C), in the box unless `parametrisation` is ``free``.
      steps: >= 1. For a control without synthesis take `start` itself.
      optimizer: any optax transformation. With one that looks at all pixels together
        (`optax.clip_by_global_norm`, trust ratios) samples touch one another, and they are taken in
        one group.
      box: lowest and highest pixel value.
      parametrisation: ``clip`` projects onto the box after every step; ``sigmoid`` optimises u with
        x = low + (high − low)·σ(u); ``free`` leaves pixels alone; ``rescale`` maps the whole batch
        to the box by its global minimum and maximum after every step (the released ZSKD code does).
      jitter: the objective sees the images rolled by up to this many pixels on both axes, one draw
        per step.
      stop_at: (B,) confidence at which a sample stops for good; masked, so the program's length
        does not change. Its image, optimiser state, loss and confidence stay what they were then.
      keep: the last iterate, or for every sample the one with the lowest loss.
      optimizer_state: to continue a previous call's.
      context: arrays (B, ...), each sample's own share of what the objective needs; the objective
        gets it as its third argument. To give one is to say that samples do not touch one another
        and that the objective draws nothing per sample: only then can they be taken in groups.
      group: samples that one device optimises together before it turns to the next ones; needs
        `context`. By default 64 on CPU, where a group should fit the cache (1.4 to 1.7 times faster
        than 200 to 400 on LeNet-5), and all elsewhere, and for an optimiser that couples samples.
        It changes speed and memory, not results.

    Returns:
      `Synthesised`.

    Raises:
      InputError: steps below one, a start that is not (B, H, W, C) with B >= 1, a jitter that is
        negative.
      UnknownNameError: for another parametrisation.
    """
    if steps < 1:
        raise InputError(
            f"steps must be at least 1, got {steps}; for a control without synthesis use the start "
            "images"
        )
    if start.ndim != 4:
        raise InputError(f"start must be (B, H, W, C), got shape {start.shape}")
    if not start.size:
        raise InputError(f"start must hold at least one sample, got shape {start.shape}")
    if jitter < 0:
        raise InputError(f"jitter must not be negative, got {jitter}")
    if keep not in ("last", "best"):
        raise UnknownNameError("choice of keep", keep, ("last", "best"))
    if group is not None and (context is None or group < 1):
        raise InputError(
            "group must be at least 1, and needs a context: only independent samples can be grouped"
        )
    options: dict[str, Any] = {
        "steps": steps,
        "optimizer": optimizer,
        "box": box,
        "parametrisation": parametrisation,
        "jitter": jitter,
        "keep": keep,
    }
    batch = start.shape[0]
    if context is not None and parametrisation != "rescale" and not _couples(optimizer):
        if group is None:
            group = 64 if jax.default_backend() == "cpu" else batch
        split, merge, groups = _grouping(batch, group)
        if groups > 1:
            parts = split((start, stop_at, optimizer_state, context))

            def one(part: tuple) -> Synthesised:
                start, stop_at, state, context = part
                return _optimise(key, objective, start, stop_at, state, context, **options)

            return merge(jax.lax.map(one, parts))
    return _optimise(key, objective, start, stop_at, optimizer_state, context, **options)


_MIXING = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "rev", "fft")


def _couples(optimizer: optax.GradientTransformation) -> bool:
    """Whether the rule does anything but arithmetic pixel by pixel: sums, products of matrices,
    orders, ...
    """

    def update(gradient: Array, parameters: Array) -> Array:
        return optimizer.update(gradient, optimizer.init(parameters), parameters)[0]  # pyright: ignore[reportReturnType]

    pixels = jax.ShapeDtypeStruct((2, 3, 5, 7), jnp.float32)
    for equation in equations(jax.make_jaxpr(update)(pixels, pixels).jaxpr):
        shapes = {value.aval.shape for value in equation.outvars if hasattr(value.aval, "shape")}
        for value in equation.invars:
            if getattr(value.aval, "size", 1) > 1 and (
                equation.primitive.name in _MIXING or value.aval.shape not in shapes
            ):
                return True
    return False


def _grouping(batch: int, group: int) -> tuple[Callable, Callable, int]:
    """How to take (B, ...) apart into groups, to put the results together again, and the number of
    groups.

    Every device of the mesh in use keeps its rows: group i is the i-th part of each device's share.
    """
    devices = sample_devices(batch)
    share = batch // devices
    size = max(d for d in range(1, min(group, share) + 1) if share % d == 0)
    # a prime share is better left whole
    groups = share // size if 2 * size >= min(group, share) else 1

    def split(tree: PyTree) -> PyTree:
        def apart(leaf: Array) -> Array:
            if leaf.ndim == 0 or leaf.shape[0] != batch:  # shared by all samples, like a step count
                return jnp.broadcast_to(leaf, (groups, *leaf.shape))
            leaf = leaf.reshape(devices, groups, size, *leaf.shape[1:]).swapaxes(0, 1)
            return leaf.reshape(groups, devices * size, *leaf.shape[3:])

        return jax.tree.map(apart, tree)

    def merge(tree: PyTree) -> PyTree:
        def together(leaf: Array) -> Array:
            if leaf.ndim == 1 or leaf.shape[1] != devices * size:
                return leaf[0]
            leaf = leaf.reshape(groups, devices, size, *leaf.shape[2:]).swapaxes(0, 1)
            return leaf.reshape(batch, *leaf.shape[3:])

        return jax.tree.map(together, tree)

    return split, merge, groups


def _optimise(
    key: Key,
    objective: Objective,
    start: Array,
    stop_at: Array | None,
    optimizer_state: PyTree,
    context: PyTree,
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    box: tuple[float, float],
    parametrisation: Parametrisation,
    jitter: int,
    keep: str,
) -> Synthesised:
    to_images, to_parameters, project = _parametrise(parametrisation, box)
    parameters = to_parameters(constrain_samples(start))
    batch = start.shape[0]
    context = () if context is None else (jax.tree.map(constrain_samples, context),)

    def total(parameters: Array, key: Key) -> tuple[Array, tuple[Array, Array]]:
        images = to_images(parameters)
        if jitter:
            key, jitter_key = jax.random.split(key)
            images = jnp.roll(
                images, jax.random.randint(jitter_key, (2,), -jitter, jitter + 1), (1, 2)
            )
        loss, confidence = objective(key, images, *context)
        return jnp.sum(loss), (loss, confidence)

    def per_sample(mask: Array, new: PyTree, old: PyTree) -> PyTree:
        def pick(new: Array, old: Array) -> Array:
            if new.ndim == 0 or new.shape[0] != batch:
                return new
            return jnp.where(mask.reshape(batch, *(1,) * (new.ndim - 1)), new, old)

        return jax.tree.map(pick, new, old)

    def step(carry: tuple, i: Array) -> tuple[tuple, None]:
        parameters, state, best, loss, confidence, taken, active = carry
        gradient, (new_loss, new_confidence) = jax.grad(total, has_aux=True)(
            parameters, jax.random.fold_in(key, i)
        )
        updates, new_state = optimizer.update(gradient, state, parameters)
        new_parameters = project(optax.apply_updates(parameters, updates))
        if keep == "best":
            better = active & (new_loss < loss)
            best = per_sample(better, parameters, best)
            loss, confidence = per_sample(better, (new_loss, new_confidence), (loss, confidence))
        else:
            loss, confidence = per_sample(active, (new_loss, new_confidence), (loss, confidence))
        if stop_at is not None:
            active = active & (new_confidence < stop_at)
            new_parameters, new_state = per_sample(
                active, (new_parameters, new_state), (parameters, state)
            )
        return (new_parameters, new_state, best, loss, confidence, taken + active, active), None

    state = optimizer.init(parameters) if optimizer_state is None else optimizer_state
    best = parameters if keep == "best" else jnp.zeros(())
    loss, confidence, taken = (
        jnp.full(batch, jnp.inf),
        jnp.zeros(batch),
        jnp.zeros(batch, jnp.int32),
    )
    carry = (parameters, state, best, loss, confidence, taken, jnp.ones(batch, bool))
    carry, _ = jax.lax.scan(step, carry, jnp.arange(steps))
    parameters, state, best, loss, confidence, taken, _ = carry
    return Synthesised(
        to_images(best if keep == "best" else parameters), loss, confidence, taken, state
    )


def _parametrise(name: str, box: tuple[float, float]) -> tuple[Callable, Callable, Callable]:
    low, high = box
    same = lambda x: x
    if name == "clip":
        return same, same, lambda x: jnp.clip(x, low, high)
    if name == "free":
        return same, same, same
    if name == "sigmoid":
        edge = 1e-4

        def to_parameters(images: Array) -> Array:
            unit = jnp.clip((images - low) / (high - low), edge, 1 - edge)
            return jnp.log(unit) - jnp.log1p(-unit)

        return lambda u: low + (high - low) * jax.nn.sigmoid(u), to_parameters, same
    if name == "rescale":

        def rescale(x: Array) -> Array:
            least, most = x.min(), x.max()
            return low + (high - low) * (x - least) / jnp.maximum(most - least, 1e-12)

        return same, same, rescale
    raise UnknownNameError("parametrisation", name, ("clip", "sigmoid", "free", "rescale"))


__all__ = ["Objective", "Parametrisation", "Synthesised", "optimise_noise"]
