"""Blind walk: how far every sample is from the decision boundary, in random directions, from labels
alone.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.mesh import sample_devices
from dfke_jax.core.method import answers_on_host
from dfke_jax.core.types import Array, Key

FAMILIES = ("laplace", "gaussian", "uniform")
"""Families of noise, each measured in a norm of its own: L1, L2, L∞ (the order of `mingd.NORMS`).
"""

Labels = Callable[[Any], Any]
"""Rows (B, ...) -> labels (B,) or logits (B, K)."""


@dataclasses.dataclass(frozen=True)
class BlindWalkSettings:
    """How blind walks go. The defaults are those of the released code for CIFAR, for pixels in [0,
    1].

    Attributes:
      starts: directions of each family.
      max_steps: steps after which a walk that has not flipped is given up.
      laplace: scale b of the Laplace noise.
      gaussian: standard deviation of the Gaussian noise.
      uniform: half width of the uniform noise.
      noise: multiplies all three. The released code takes 2, with 100 steps, on SVHN. Where most
        walks never flip the noise is too small.
      block: consecutive steps of one walk that are asked together. It changes how many rows are
        sent, not what comes out; 1 sends what a step-by-step attacker would, for endpoints that
        charge.
      lanes: walks that are asked together; by default as many as keep the device busy and, on CPU,
        the rows in its cache (see `lanes_for`). It changes speed and memory, not results.
    """

    starts: int = 10
    max_steps: int = 50
    laplace: float = 0.01
    gaussian: float = 0.005
    uniform: float = 0.005
    noise: float = 1.0
    block: int = 5
    lanes: int | None = None

    def __post_init__(self):
        for name in ("starts", "max_steps", "block", *(() if self.lanes is None else ("lanes",))):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("laplace", "gaussian", "uniform", "noise"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")

    def lanes_for(self, size: int, *, host: bool = False) -> int:
        """`lanes`, or what stands for it with images of so many values.

        Rows of half a mebibyte on CPU, within 64 to 2,048 of them (LeNet-5: 1.5 times what 640 rows
        do on one core; 64-256-10 on 64 pixels: 1.2 times); of 32 MiB on accelerators; 640 rows a
        request for a host.
        """
        if self.lanes is not None:
            return self.lanes
        if host:
            rows = 640
        elif jax.default_backend() == "cpu":
            rows = min(max(2**17 // size, 64), 2048)
        else:
            rows = max(2**23 // size, 640)
        return max(1, rows // self.block)


class Walks(NamedTuple):
    """First flips of S starts in three families, in the order of `FAMILIES`.

    Attributes:
      distances: (N, S, 3) float32, ‖δ‖ at the first step whose label differs, or at the last step.
      steps: (N, S, 3) int32, which step that was, from 1.
      flipped: (N, S, 3), False where `max_steps` ended the walk.
      asked: (N,) int32, label queries that an attacker who sends one step at a time would have
        spent on each sample.
    """

    distances: Array
    steps: Array
    flipped: Array
    asked: Array

    @property
    def queries(self) -> int:
        """Label queries that an attacker who sends one step at a time would have sent in all."""
        return int(np.asarray(self.asked, np.int64).sum())

    @property
    def never(self) -> float:
        """Fraction of walks that never flipped."""
        return float(1 - np.mean(np.asarray(self.flipped)))

    def rows_sent(self, settings: BlindWalkSettings) -> int:
        """Rows that were asked in fact: every walk to the end of the block in which it ended."""
        steps = np.asarray(self.steps, np.int64)
        rows = np.minimum(-(-steps // settings.block) * settings.block, settings.max_steps)
        return int(rows.sum() + np.asarray(self.asked, np.int64).sum() - steps.sum())


def blind_walk(
    key: Key,
    predict: Labels,
    images: Any,
    labels: Any | None,
    settings: BlindWalkSettings | None = None,
    *,
    box: tuple[float, float] = (0.0, 1.0),
    host: bool | None = None,
) -> Walks:
    """Walks from every sample in random directions until the label changes.

    For every sample x, family and start, draw one direction δ₀; for k = 1, 2, … ≤ max_steps ask for
    the label at clip(x + k·δ₀) until it differs from y. The feature is ‖clip(x + k·δ₀) − x‖ in the
    family's norm.

    No step needs the answer to another, so many steps of many walks are asked at once, and every
    walk is charged up to its first flip only. Without `host` all of it is one program, traceable;
    under ``jax.set_mesh(device_mesh())`` every device walks with its own share of the samples.

    Args:
      key: sample i draws from ``fold_in(key, i)``: settings of speed and the number of devices
        change no direction, and the same key walks the same ways with every model.
      predict: rows (B, ...) -> labels (B,) integer or logits (B, K); a `Classifier`, a `Partial`,
        or with `host` anything that takes a NumPy array: a PyTorch module in a wrapper, an HTTP
        client.
      images: (N, ...) floats in the box.
      labels: y, true labels (N,), as published: a sample that is classified wrongly usually flips
        at its first step. None takes the model's own answer at x, for one more query a sample.
      settings: see `BlindWalkSettings`.
      box: lowest and highest pixel value.
      host: `predict` runs on the host and gets NumPy arrays, at most lanes·block rows at a time;
        oracles and endpoints know it of themselves.

    Returns:
      `Walks` (NumPy arrays, with `host`).

    Raises:
      InputError: images without a sample axis, labels of another shape, answers of a host that are
        neither labels nor finite logits.

    Source: Maini, Yaghini, Papernot, ICLR 2021, section 4.2 (Blind Walk), as released.
    Deviation: a walk that never flips is measured at its last step; the released code goes one step
    beyond.
    """
    settings = settings or BlindWalkSettings()
    shape = np.shape(images)
    if len(shape) < 2 or shape[0] == 0:
        raise InputError(f"images must be (N, ...) with at least one sample, got shape {shape}")
    if labels is not None and np.shape(labels) != shape[:1]:
        raise InputError(f"labels must have shape ({shape[0]},), got {np.shape(labels)}")
    if answers_on_host(predict, host):
        return _on_host(key, predict, np.asarray(images, np.float32), labels, settings, box)
    if jax.tree_util.all_leaves([predict]):
        predict = Partial(predict)
    wanted = None if labels is None else jnp.asarray(labels, jnp.int32)
    return _blind_walk(key, predict, jnp.asarray(images, jnp.float32), wanted, settings, box)


def directions(key: Key, index: Array, size: int, settings: BlindWalkSettings) -> Array:
    """Draws δ₀ for some samples: their numbers (n,) -> (n, S, 3, D), in the order of `FAMILIES`."""

    def draw(index: Array) -> Array:
        laplace, gaussian, uniform = jax.random.split(jax.random.fold_in(key, index), 3)
        shape = (settings.starts, size)
        drawn = (
            settings.laplace * jax.random.laplace(laplace, shape),
            settings.gaussian * jax.random.normal(gaussian, shape),
            jax.random.uniform(uniform, shape, minval=-settings.uniform, maxval=settings.uniform),
        )
        return settings.noise * jnp.stack(drawn, 1)

    return jax.vmap(draw)(index)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _blind_walk(
    key: Key,
    predict: Labels,
    images: Array,
    labels: Array | None,
    settings: BlindWalkSettings,
    box: tuple[float, float],
) -> Walks:
    index = jnp.arange(images.shape[0], dtype=jnp.uint32)
    work = functools.partial(_walk_all, settings=settings, box=box)
    if sample_devices(images.shape[0]) == 1:
        return work(key, predict, images, labels, index)
    whole, split = PartitionSpec(), PartitionSpec("samples")
    specs = (whole, whole, split, split, split)
    return jax.shard_map(work, in_specs=specs, out_specs=split, check_vma=False)(
        key, predict, images, labels, index
    )


def _walk_all(
    key: Key,
    predict: Labels,
    images: Array,
    labels: Array | None,
    index: Array,
    *,
    settings: BlindWalkSettings,
    box: tuple[float, float],
) -> Walks:
    """Takes as many samples at a time as their directions fit into 64 MiB."""
    samples, size = images.shape[0], math.prod(images.shape[1:])
    groups = -(-samples // _samples_at_a_time(size, settings))
    share = -(-samples // groups)
    order = jnp.minimum(jnp.arange(groups * share), samples - 1).reshape(groups, share)

    def group(rows: Array) -> Walks:
        own = None if labels is None else labels[rows]
        return _walk_group(key, predict, images[rows], own, index[rows], settings, box)

    if groups == 1:
        return group(order[0])
    found = jax.lax.map(group, order)
    return jax.tree.map(lambda leaf: leaf.reshape(groups * share, *leaf.shape[2:])[:samples], found)


def _samples_at_a_time(size: int, settings: BlindWalkSettings) -> int:
    return max(1, 2**24 // (settings.starts * len(FAMILIES) * size))


def _walk_group(
    key: Key,
    predict: Labels,
    images: Array,
    labels: Array | None,
    index: Array,
    settings: BlindWalkSettings,
    box: tuple[float, float],
) -> Walks:
    samples, shape, size = images.shape[0], images.shape[1:], math.prod(images.shape[1:])
    flat = images.reshape(samples, size)
    ways = directions(key, index, size, settings)
    if labels is None:
        answers = predict(images)
        wanted = answers if answers.ndim == 1 else jnp.argmax(answers, -1)
        wanted = wanted.astype(jnp.int32)
    else:
        wanted = labels
    per_sample = settings.starts * len(FAMILIES)
    items, block = samples * per_sample, settings.block
    paths = ways.reshape(items, size)
    lanes = min(settings.lanes_for(size), items)
    ahead = jnp.arange(1, block + 1, dtype=jnp.int32)

    def look(state: tuple) -> tuple:
        item, walked, following, steps, flipped = state
        safe = jnp.minimum(item, items - 1)
        sample = safe // per_sample
        at = walked[:, None] + ahead[None]
        rows = flat[sample][:, None] + at[..., None].astype(jnp.float32) * paths[safe][:, None]
        rows = jnp.clip(rows, *box).reshape(lanes * block, *shape)
        differs = _differs(predict(rows), jnp.repeat(wanted[sample], block)).reshape(lanes, block)
        differs &= at <= settings.max_steps
        found = differs.any(-1)
        # the number of the first step that differs
        first = walked + jnp.min(jnp.where(differs, ahead[None], block + 1), -1)
        done = (found | (walked + block >= settings.max_steps)) & (item < items)
        place = jnp.where(done, item, items)
        steps = steps.at[place].set(jnp.where(found, first, settings.max_steps))
        flipped = flipped.at[place].set(found)
        taken = jnp.cumsum(done)
        item = jnp.where(done, jnp.minimum(following + taken - 1, items), item).astype(jnp.int32)
        following = jnp.minimum(following + taken[-1], items).astype(jnp.int32)
        return item, jnp.where(done, 0, walked + block), following, steps, flipped

    start = (
        jnp.arange(lanes, dtype=jnp.int32),
        jnp.zeros(lanes, jnp.int32),
        jnp.asarray(lanes, jnp.int32),
        jnp.zeros(items + 1, jnp.int32),  # the last place receives what nobody wants
        jnp.zeros(items + 1, bool),
    )
    *_, steps, flipped = jax.lax.while_loop(lambda state: jnp.any(state[0] < items), look, start)
    steps = steps[:items].reshape(ways.shape[:3])
    ends = jnp.clip(flat[:, None, None] + steps[..., None].astype(jnp.float32) * ways, *box)
    asked = steps.sum((1, 2)) + (1 if labels is None else 0)
    return Walks(
        _lengths(ends - flat[:, None, None]), steps, flipped[:items].reshape(steps.shape), asked
    )


def _differs(answers: Array, wanted: Array) -> Array:
    """Labels (B,) or logits (B, K), and labels (B,) -> (B,) whether the answer is another label."""
    if answers.ndim == 1:
        return answers != wanted
    # as argmax(answers) != wanted, in a form that vectorises: somebody is larger, or equal and
    # earlier
    classes = jnp.arange(answers.shape[-1], dtype=jnp.int32)[None]
    own = jnp.max(jnp.where(classes == wanted[:, None], answers, -jnp.inf), -1, keepdims=True)
    return jnp.any((answers > own) | ((answers == own) & (classes < wanted[:, None])), -1)


def _lengths(delta: Any) -> Any:
    """(n, S, 3, D) -> (n, S, 3), each family in its norm."""
    xp = np if isinstance(delta, np.ndarray) else jnp
    size = xp.abs(delta)
    return xp.stack(
        [size[:, :, 0].sum(-1), xp.sqrt(xp.square(delta[:, :, 1]).sum(-1)), size[:, :, 2].max(-1)],
        -1,
    ).astype(np.float32)


def _on_host(
    key: Key,
    predict: Labels,
    images: np.ndarray,
    labels: Any | None,
    settings: BlindWalkSettings,
    box: tuple[float, float],
) -> Walks:
    samples, shape, size = len(images), images.shape[1:], math.prod(images.shape[1:])
    flat = images.reshape(samples, size)
    together = settings.lanes_for(size, host=True)
    limit = together * settings.block
    if labels is None:
        parts = [_host_labels(predict, images[i : i + limit]) for i in range(0, samples, limit)]
        wanted = np.concatenate(parts)
    else:
        wanted = np.asarray(labels)
    steps = np.full((samples, settings.starts, len(FAMILIES)), settings.max_steps, np.int32)
    flipped, distances = np.zeros(steps.shape, bool), np.zeros(steps.shape, np.float32)
    share = _samples_at_a_time(size, settings)
    for begin in range(0, samples, share):
        own = np.arange(begin, min(begin + share, samples))
        ways = np.asarray(_directions(key, jnp.asarray(own, jnp.uint32), size, settings))
        paths = ways.reshape(-1, size)
        sample = np.repeat(own, settings.starts * len(FAMILIES))
        step, flip = np.full(len(paths), settings.max_steps, np.int32), np.zeros(len(paths), bool)
        active = np.arange(len(paths))
        for walked in range(0, settings.max_steps, settings.block):
            at = np.arange(walked + 1, min(walked + settings.block, settings.max_steps) + 1)
            for i in range(0, len(active), together):
                lanes = active[i : i + together]
                rows = (
                    flat[sample[lanes], None]
                    + at[None, :, None].astype(np.float32) * paths[lanes, None]
                )
                rows = np.clip(rows, np.float32(box[0]), np.float32(box[1])).reshape(-1, *shape)
                answers = _host_labels(predict, rows).reshape(len(lanes), len(at))
                differs = answers != wanted[sample[lanes], None]
                found = differs.any(1)
                step[lanes[found]] = at[differs[found].argmax(1)]
                flip[lanes[found]] = True
            active = active[~flip[active]]
            if not len(active):
                break
        steps[own], flipped[own] = step.reshape(ways.shape[:3]), flip.reshape(ways.shape[:3])
        ends = np.clip(
            flat[own, None, None] + steps[own][..., None].astype(np.float32) * ways,
            np.float32(box[0]),
            np.float32(box[1]),
        )
        distances[own] = _lengths(ends - flat[own, None, None])
    asked = steps.sum((1, 2), dtype=np.int32) + np.int32(labels is None)
    return Walks(distances, steps, flipped, asked)  # type: ignore[arg-type]


_directions = jax.jit(directions, static_argnums=(2, 3))


def _host_labels(predict: Labels, rows: np.ndarray) -> np.ndarray:
    answers = np.asarray(predict(rows))
    if answers.ndim == 2 and len(answers) == len(rows):
        if not np.isfinite(answers).all():
            raise InputError(
                f"{int((~np.isfinite(answers)).any(1).sum())} of {len(rows)} answers contain NaN "
                "or infinity"
            )
        return answers.argmax(1)
    if answers.shape != (len(rows),) or not np.issubdtype(answers.dtype, np.integer):
        raise InputError(
            f"asked {len(rows)} rows, expected integer labels ({len(rows)},) or logits "
            f"({len(rows)}, K), got {answers.dtype} of shape {answers.shape}"
        )
    return answers


__all__ = ["FAMILIES", "BlindWalkSettings", "Labels", "Walks", "blind_walk", "directions"]
