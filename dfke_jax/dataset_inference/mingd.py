"""MinGD: how far every sample is from every class, by gradient descent in three norms. White-box."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.mesh import sample_devices
from dfke_jax.core.types import Array, Predict

NORMS = ("l1", "l2", "linf")
"""In the order of the last axis of `Margins.distances`."""

L1_RULES = ("inward", "released")


@dataclasses.dataclass(frozen=True)
class MinGDSettings:
    """How MinGD descends. The defaults are those of the released code, for pixels in [0, 1].

    Attributes:
      max_steps: cap per sample, target and norm.
      l1_step: L1 length of one step, spread evenly over `l1_coordinates`.
      l1_coordinates: k, how many coordinates an L1 step moves; on inputs with fewer, all of them
        move by l1_step / l1_coordinates.
      l1_gap: a coordinate within this distance of the box's edge is not pushed further towards it.
      l1_rule: which coordinates an L1 step may move. ``inward``: a coordinate on an edge of the box
        may still move away from it, and exactly k move. ``released``, as the released code: a
        coordinate on an edge (a black or white pixel) never moves, and all that tie with the k-th
        do.
      l2_step: L2 length of one step.
      linf_step: L∞ length of one step.
      nearest: how many classes are targets: the most likely wrong ones in order, or every class
        (None) in the order of the labels. The released code takes 10 on CIFAR-100.
      lanes: items that descend side by side on one device. It changes speed and memory, not
        results.
    """

    max_steps: int = 500
    l1_step: float = 1.0
    l1_coordinates: int = 100
    l1_gap: float = 0.001
    l1_rule: Literal["inward", "released"] = "inward"
    l2_step: float = 0.01
    linf_step: float = 0.001
    nearest: int | None = None
    lanes: int = 64

    def __post_init__(self):
        for name in (
            "max_steps",
            "l1_coordinates",
            "lanes",
            *(() if self.nearest is None else ("nearest",)),
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("l1_step", "l2_step", "linf_step"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        if self.l1_rule not in L1_RULES:
            raise UnknownNameError("rule for L1 steps", self.l1_rule, L1_RULES)
        if not self.l1_gap >= 0:
            raise InputError(f"l1_gap must not be negative, got {self.l1_gap}")


class Margins(NamedTuple):
    """Distances to classes; T targets (K, or `MinGDSettings.nearest`), three norms in the order of
    `NORMS`.

    Attributes:
      distances: (N, T, 3) float32, ‖δ‖ where the descent stopped.
      steps: (N, T, 3) int32 updates taken.
      reached: (N, T, 3), whether the model says the target class there; False where `max_steps`
        ended it.
      targets: (N, T) int32 classes.
    """

    distances: Array
    steps: Array
    reached: Array
    targets: Array


def mingd(
    predict: Predict,
    images: Any,
    settings: MinGDSettings | None = None,
    *,
    box: tuple[float, float] = (0.0, 1.0),
) -> Margins:
    """Distances of samples to target classes in L1, L2 and L∞.

    For every sample x, target t and norm: δ ← 0; while argmax f(x + δ) ≠ t and fewer than
    `max_steps` were taken, g = ∂(f_t − max_k f_k)/∂δ and δ ← project(δ + α·direction(g)), with
    direction sign(g) for L∞, g/‖g‖₂ for L2, and for L1 the signs of the k largest |g| among
    coordinates that the box still lets move, divided by k. x + δ stays in the box. The distance to
    the class that the model gives already is 0.

    All samples, targets and norms are one queue; `lanes` of them descend at a time, and a lane that
    is done takes the next item at once. When the queue is empty, the lanes that still run are
    packed together. Traceable. Under ``jax.set_mesh(device_mesh())`` every device works through a
    queue of its own share of the samples.

    Args:
      predict: images (B, ...) -> logits (B, K); a `Classifier`, or a `Partial` whose parameters are
        arguments.
      images: (N, ...) floats in the box; N need not divide by anything.
      settings: see `MinGDSettings`.
      box: lowest and highest pixel value.

    Returns:
      `Margins`.

    Raises:
      InputError: images without a sample axis, or more targets than there are wrong classes.

    Source: Maini, Yaghini, Papernot, ICLR 2021, section 4.2 (MinGD), as released.
    Deviations: in an L1 step a coordinate on an edge of the box may move inwards (released: black
    and white pixels never move), and exactly k coordinates move, ties in favour of the first
    (released: all that tie); ``l1_rule="released"`` is the released step. A zero gradient moves
    nothing (released: division by zero in L2).
    """
    settings = settings or MinGDSettings()
    if images.ndim < 2 or images.shape[0] == 0:
        raise InputError(
            f"images must be (N, ...) with at least one sample, got shape {images.shape}"
        )
    if not callable(predict) or jax.tree_util.all_leaves([predict]):
        predict = Partial(predict)
    classes = jax.eval_shape(predict, images[:1]).shape[-1]
    if settings.nearest is not None and settings.nearest > classes - 1:
        raise InputError(f"there are {classes - 1} wrong classes to aim at, not {settings.nearest}")
    return _mingd(predict, jnp.asarray(images, jnp.float32), settings, box)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _mingd(
    predict: Predict, images: Array, settings: MinGDSettings, box: tuple[float, float]
) -> Margins:
    devices = sample_devices(images.shape[0])
    if devices == 1:
        return _descend_all(predict, images, settings, box)
    split = PartitionSpec("samples")
    work = functools.partial(_descend_all, settings=settings, box=box)
    return jax.shard_map(work, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False)(
        predict, images
    )


def _descend_all(
    predict: Predict, images: Array, settings: MinGDSettings, box: tuple[float, float]
) -> Margins:
    samples = images.shape[0]
    targets = _targets(predict, images, settings)
    per_sample = targets.shape[1] * len(NORMS)
    items = samples * per_sample
    queue = _Queue(images.reshape(samples, -1), targets.reshape(-1), items, images.shape[1:])
    lanes = min(settings.lanes, items)
    state = _State(
        item=jnp.arange(lanes, dtype=jnp.int32),
        position=queue.rows(jnp.arange(lanes, dtype=jnp.int32)),
        step=jnp.zeros(lanes, jnp.int32),
        next=jnp.asarray(lanes, jnp.int32),
        distances=jnp.zeros(items + 1),  # the last place receives what nobody wants
        steps=jnp.zeros(items + 1, jnp.int32),
        reached=jnp.zeros(items + 1, bool),
    )
    while lanes:
        fewer = lanes // 4 if lanes >= 32 else 0
        state = jax.lax.while_loop(
            lambda state, fewer=fewer: jnp.sum(state.item < items) > fewer,
            functools.partial(_step, predict, queue, settings, box),
            state,
        )
        lanes = fewer
        if lanes:  # the queue is empty: idle lanes hold the item number `items`, the largest
            kept = jnp.argsort(state.item)[:lanes]
            state = state._replace(
                item=state.item[kept], position=state.position[kept], step=state.step[kept]
            )
    shape = (samples, targets.shape[1], len(NORMS))
    distances, steps, reached = (
        part[:items].reshape(shape) for part in (state.distances, state.steps, state.reached)
    )
    return Margins(distances, steps, reached, targets)


def _targets(predict: Predict, images: Array, settings: MinGDSettings) -> Array:
    """(N, T)."""
    if settings.nearest is None:
        classes = jax.eval_shape(predict, images[:1]).shape[-1]
        return jnp.broadcast_to(jnp.arange(classes, dtype=jnp.int32), (images.shape[0], classes))
    size = min(256, images.shape[0])
    logits = jax.lax.map(lambda image: predict(image[None])[0], images, batch_size=size)
    order = jnp.argsort(-logits, axis=-1, stable=True)
    return order[:, 1 : settings.nearest + 1].astype(jnp.int32)


class _Queue(NamedTuple):
    """Items, in the order sample, target, norm. Item i belongs to row i // (T·3) of `images` (N,
    D).
    """

    images: Array
    targets: Array
    items: int
    shape: tuple[int, ...]

    def rows(self, item: Array) -> Array:
        """(B,) items -> (B, D); the number past the last item gives the last sample."""
        return self.images[
            jnp.minimum(item, self.items - 1) // (self.items // self.images.shape[0])
        ]

    def wanted(self, item: Array) -> tuple[Array, Array]:
        """(B,) target classes and (B,) norms."""
        item = jnp.minimum(item, self.items - 1)
        return self.targets[item // len(NORMS)], item % len(NORMS)


class _State(NamedTuple):
    """Lanes and what is finished.

    Attributes:
      item: (B,) which item a lane works on; the number of items for a lane that has run dry.
      position: (B, D), x + δ.
      step: (B,) updates taken.
      next: () the first item that no lane has taken.
      distances, steps, reached: (items + 1,).
    """

    item: Array
    position: Array
    step: Array
    next: Array
    distances: Array
    steps: Array
    reached: Array


def _step(
    predict: Predict,
    queue: _Queue,
    settings: MinGDSettings,
    box: tuple[float, float],
    state: _State,
) -> _State:
    """One look at all lanes: those that are done write and take new items, the others move."""
    lanes = state.item.shape[0]
    targets, norms = queue.wanted(state.item)
    logits, pull = jax.vjp(predict, state.position.reshape(lanes, *queue.shape))
    classes = jnp.arange(logits.shape[-1])[None]
    predicted = jnp.argmax(logits, -1)
    aim = (classes == targets[:, None]).astype(logits.dtype) - (
        classes == predicted[:, None]
    ).astype(logits.dtype)
    gradient = pull(aim)[0].reshape(lanes, -1)

    hit = predicted == targets
    done = (hit | (state.step >= settings.max_steps)) & (state.item < queue.items)
    place = jnp.where(done, state.item, queue.items)
    start = queue.rows(state.item)
    distance = _norm(state.position - start, norms)
    taken = jnp.cumsum(done)
    item = jnp.where(done, jnp.minimum(state.next + taken - 1, queue.items), state.item).astype(
        jnp.int32
    )

    moved = _move(state.position, gradient, norms, settings, box)
    return _State(
        item,
        jnp.where(done[:, None], queue.rows(item), moved),
        jnp.where(done, 0, state.step + 1),
        jnp.minimum(state.next + taken[-1], queue.items).astype(jnp.int32),
        state.distances.at[place].set(distance),
        state.steps.at[place].set(state.step),
        state.reached.at[place].set(hit),
    )


def _norm(delta: Array, norms: Array) -> Array:
    """(B, D) and (B,) indices into `NORMS` -> (B,)."""
    size = jnp.abs(delta)
    every = jnp.stack([size.sum(-1), jnp.sqrt(jnp.square(delta).sum(-1)), size.max(-1)], -1)
    return jnp.take_along_axis(every, norms[:, None], -1)[:, 0]


def _move(
    position: Array,
    gradient: Array,
    norms: Array,
    settings: MinGDSettings,
    box: tuple[float, float],
) -> Array:
    """(B, D) one update further, inside the box."""
    low, high = box
    sign = jnp.sign(gradient)
    length = jnp.sqrt(jnp.square(gradient).sum(-1, keepdims=True))
    by_l2 = (settings.l2_step / jnp.maximum(length, 1e-30)) * gradient
    outward = ((gradient < 0) & (position <= low + settings.l1_gap)) | (
        (gradient > 0) & (position >= high - settings.l1_gap)
    )
    k = min(settings.l1_coordinates, gradient.shape[-1])
    if settings.l1_rule == "released":
        free = jnp.where(outward | (position <= low) | (position >= high), 0.0, jnp.abs(gradient))
        chosen = (free > 0) & (free >= jax.lax.top_k(free, k)[0][:, -1:])
    else:
        free = jnp.where(outward, 0.0, jnp.abs(gradient))
        chosen = largest(free, k) & ~outward
    by_l1 = jnp.where(chosen, (settings.l1_step / settings.l1_coordinates) * sign, 0.0)
    norms = norms[:, None]
    update = jnp.where(norms == 0, by_l1, jnp.where(norms == 1, by_l2, settings.linf_step * sign))
    return jnp.clip(position + update, low, high)


def largest(values: Array, k: int) -> Array:
    """Marks the k largest of each row, (B, D) non-negative float32 -> (B, D) bool; ties in favour
    of the first.

    The k-th largest value is found bit by bit (the bits of non-negative floats are ordered as the
    floats are), by 31 counts, which vectorise where sorting does not.
    """
    if k >= values.shape[-1]:
        return jnp.ones(values.shape, bool)
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)

    def refine(threshold: Array, i: Array) -> tuple[Array, None]:
        trial = threshold | (jnp.int32(1) << (30 - i))
        enough = jnp.sum(bits >= trial[:, None], -1) >= k
        return jnp.where(enough, trial, threshold), None

    threshold, _ = jax.lax.scan(
        refine, jnp.zeros(values.shape[0], jnp.int32), jnp.arange(31, dtype=jnp.int32)
    )
    above, equal = bits > threshold[:, None], bits == threshold[:, None]
    room = k - above.sum(-1)
    index = jnp.arange(values.shape[-1], dtype=jnp.int32)[None]

    # the longest prefix whose ties fit into the room
    def shrink(bound: Array, i: Array) -> tuple[Array, None]:
        trial = bound + (jnp.int32(1) << (depth - 1 - i))
        fits = jnp.sum(equal & (index < trial[:, None]), -1) <= room
        return jnp.where(fits, trial, bound), None

    depth = int(np.ceil(np.log2(values.shape[-1] + 1)))
    bound, _ = jax.lax.scan(
        shrink, jnp.zeros(values.shape[0], jnp.int32), jnp.arange(depth, dtype=jnp.int32)
    )
    return above | (equal & (index < bound[:, None]))


def gradient_evaluations(margins: Margins) -> int:
    """Gradients that the descents needed: one for each update, and one look at the end of each."""
    steps: Any = np.asarray(margins.steps, np.int64)
    return int(steps.sum()) + steps.size


__all__ = ["L1_RULES", "NORMS", "Margins", "MinGDSettings", "gradient_evaluations", "mingd"]
