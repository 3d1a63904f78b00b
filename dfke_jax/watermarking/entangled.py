"""Entangled watermarks: triggers whose representation lies among a class's own, so that a copy of
the task copies the mark.
"""

import functools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, Static, method
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.observation import observe
from dfke_jax.nn.soft_nearest import soft_nearest_neighbour_loss
from dfke_jax.nn.training import Training, training, updated_by
from dfke_jax.watermarking.entangled_settings import EntangledSettings
from dfke_jax.watermarking.triggers import TriggerSet, trigger_set


class EntangledWatermark(NamedTuple):
    """What a watermark is made of.

    Attributes:
      triggers: the trigger set, labelled with the target class.
      companions: (T', H, W, C), training images of the target class, the other half of every
        watermark batch.
      position: row and column of the patch's upper left corner; (-1, -1) without one.
    """

    triggers: TriggerSet
    companions: Array
    position: tuple[int, int]


class EntangledState(NamedTuple):
    """State of the interleaved training.

    Attributes:
      training: the network's variables and the optimiser's state; `dfke_jax.nn.trained` takes it.
      temperatures: (L,), log τ in the paper's form and τ̂ in the released one.
      step: watermark batches so far.
    """

    training: Training
    temperatures: Array
    step: Array


def entangled_watermark(
    classifier: Classifier,
    images: Array,
    labels: Array,
    source_images: Any,
    settings: EntangledSettings,
    count: int | None = None,
) -> EntangledWatermark:
    """Makes the triggers of an entangled watermark, with a network that was trained without them.

    1. D_w is `source_images`, repeated to the number of training images of c_T (or `count`), cut to
      whole half batches.
    2. In distribution: the gradient of Σ_l SNNL_l with respect to the triggers, averaged over all
       of them, each half batch beside one of c_T; a patch of ones where its sum over patch and
       channels is largest.
    3. Each half batch, `rounds` times: while more than `threshold` of it are answered c_T (and the
       half batch has taken fewer than `suppressions` such steps), x ← clip(x − α sign ∂z_cT/∂x);
       then one step x ← clip(x + α sign ∂Σ_l SNNL_l/∂x). Finally `last_suppressions` of the first
       kind. The triggers end where the clean network does not answer c_T, so that others' networks
       do not either, and entangled with c_T.

    Args:
      classifier: trained on the task.
      images, labels: its training set, (N, H, W, C) and (N,).
      source_images: (S, H, W, C): class c_S of the task, or of another data set.
      settings: see there.
      count: triggers at most; as many as c_T has images by default.

    Returns:
      An `EntangledWatermark`; its triggers' number is a multiple of ``settings.half``.

    Raises:
      InputError: for shapes that do not fit, a target class that is none, or fewer images than a
        half batch.
      UnknownNameError: for a layer that the network does not record.

    Source: Jia et al. 2021, section 4 and algorithm 1; step 3 from the authors' repository.
    """
    if settings.target >= classifier.num_classes:
        raise InputError(
            f"target class {settings.target} of a network of {classifier.num_classes} classes"
        )
    if (
        tuple(jnp.shape(source_images)[1:]) != tuple(classifier.input_shape)
        or len(source_images) == 0
    ):
        raise InputError(
            f"source images must be (S, {', '.join(map(str, classifier.input_shape))}), got "
            f"{jnp.shape(source_images)}"
        )
    if settings.distribution == "in" and min(classifier.input_shape[:2]) < settings.patch:
        raise InputError(
            f"a patch of {settings.patch} does not fit into images {classifier.input_shape}"
        )
    classifier.check_layers(settings.layers)
    companions = np.asarray(images)[np.asarray(labels) == settings.target]
    batches = min(len(companions), count or len(companions)) // settings.half
    if not batches:
        raise InputError(
            f"a half batch needs {settings.half} images of class {settings.target} and as many "
            f"triggers; there are {len(companions)} and {count or len(companions)}"
        )
    rows = np.resize(np.arange(len(source_images)), batches * settings.half)
    start = as_float(jnp.asarray(np.asarray(source_images)[rows]))
    companions = as_float(jnp.asarray(companions))
    shape = (batches, settings.half, *classifier.input_shape)
    beside = companions[: batches * settings.half].reshape(shape)
    position = (-1, -1)
    made = start.reshape(shape)
    if settings.distribution == "in":
        gradient = mean_gradient(classifier, made, beside, Static(settings))
        position = patch_position(gradient, settings.patch, settings.position)
        row, column = position
        patch = np.s_[:, :, row : row + settings.patch, column : column + settings.patch, 0]
        made = made.at[patch].set(1.0)
    made = _searched(classifier, made, beside, Static(settings)).reshape(start.shape)
    marks = jnp.full(len(start), settings.target)
    truth = jnp.full(len(start), settings.source) if settings.distribution == "in" else None
    return EntangledWatermark(
        trigger_set(made, marks, classifier.num_classes, truth), companions, position
    )


def patch_position(gradient: Any, size: int = 3, rule: str = "largest") -> tuple[int, int]:
    """Where a patch of ones raises the loss most: the largest sum of its gradient over a square and
    all channels.

    Args:
      gradient: (H, W, C).
      size: of the square.
      rule: ``largest``; or ``released``, which takes the smallest sum and exchanges row and column.
        On an image that is higher than wide, or wider than high, the exchanged place may lie
        outside; it is then moved inside.

    Returns:
      (row, column) of its upper left corner.
    """
    gradient = np.asarray(gradient, np.float64).sum(-1)
    windows = np.lib.stride_tricks.sliding_window_view(gradient, (size, size)).sum((2, 3))
    if rule == "released":
        row, column = np.unravel_index(windows.T.argmin(), windows.T.shape)
        return min(int(row), windows.shape[0] - 1), min(int(column), windows.shape[1] - 1)
    row, column = np.unravel_index(windows.argmax(), windows.shape)
    return int(row), int(column)


def clean_batches(ratio: float, step: Array) -> tuple[Array | int, int]:
    """Clean batches before watermark batch `step`, ⌊r(t + 1)⌋ − ⌊rt⌋, and the most that any has,
    ⌈r⌉.

    Deviation: for fractions the released code has the extra batch a little earlier; the mean is the
    same.
    """
    r = Fraction(ratio).limit_denominator(1000)
    if r.denominator == 1:
        return r.numerator, r.numerator
    place = step % r.denominator
    count = (r.numerator * (place + 1)) // r.denominator - (r.numerator * place) // r.denominator
    return count, -(-r.numerator // r.denominator)


def entangled_training(
    classifier: Classifier,
    images: Array,
    labels: Array,
    watermark: EntangledWatermark,
    settings: EntangledSettings,
) -> Method:
    """Interleaved training that entangles triggers with their target class. One step is one
    watermark batch.

    Before watermark batch t, ⌊r(t + 1)⌋ − ⌊rt⌋ steps on clean batches descend the cross-entropy.
    The watermark batch is half triggers, half images of c_T, all labelled c_T, and descends

        mean CE(·, c_T) − (1/B) Σ_l κ_l · SNNL(ReLU(h_l); trigger or not; τ_l),

    while the temperatures descend the SNNL that the network ascends, τ_l ← τ_l − η ∂SNNL_l/∂τ_l:
    without that, a larger temperature alone would do.

    Args:
      classifier: trained without the watermark; the training goes on from its variables, with a new
        optimiser.
      images, labels: the training set. watermark: from `entangled_watermark`.
      settings: see there; with ``settings.plain_backdoor()`` the control, whose steps cost no SNNL,
        on the same triggers; with ``settings.ordinary_backdoor()``, here and where the triggers are
        made, the baseline of the paper.

    Returns:
      A `Method` over `EntangledState` with metrics ``loss`` (clean), ``watermark_loss``
      (cross-entropy), ``watermark_success`` (share of the batch's triggers answered c_T, as the
      network trains), ``entanglement`` (mean SNNL of the layers, 0 for the control) and
      ``temperature`` (their mean; τ̂ in the released form).

    Raises:
      InputError: fewer triggers or companions than a half batch.
      UnknownNameError: for a layer that the network does not record.

    Source: Jia et al. 2021, algorithm 1.
    Deviations: losses are means, κ and Adam's epsilon are divided by the batch size to match; Adam
    begins anew; batches are drawn at random, clean ones with replacement, where the released code
    goes through them in order.
    """
    triggers, companions, _ = watermark
    if min(len(triggers.images), len(companions)) < settings.half:
        raise InputError(
            f"a half batch is {settings.half}; there are {len(triggers.images)} triggers and "
            f"{len(companions)} companions"
        )
    classifier.check_layers(settings.layers)
    clean = training(
        classifier,
        images,
        labels,
        loss=Partial(cross_entropy),
        optimizer=_adam(settings),
        batch_size=settings.batch_size,
        fine_tune=True,
    )
    fixed = Static((classifier.module, classifier.preprocessing, settings))
    return method(_init, _step, fixed, clean, triggers, companions)


def marked_steps(epochs: float, rows: int, triggers: int, settings: EntangledSettings) -> int:
    """Steps of `entangled_training` in the released count of epochs: round(epochs · ⌊N/B⌋ / n)
    passes over the n half batches.

    Args:
      epochs: over the training set. rows: N. triggers: number of triggers.
      settings: give the batch size.
    """
    batches = triggers // settings.half
    return max(1, round(epochs * (rows // settings.batch_size) / batches)) * batches


@functools.lru_cache(maxsize=64)
def _adam(settings: EntangledSettings) -> optax.GradientTransformation:
    rate = settings.learning_rate
    if settings.decay_steps:
        rate = optax.cosine_decay_schedule(
            rate, math.ceil(settings.decay_steps * (1 + settings.ratio))
        )
    return optax.adam(rate, *settings.betas, eps=settings.epsilon / settings.batch_size)


def _is_trigger(half: int) -> Array:
    return jnp.arange(2 * half) < half


def _temperature(settings: EntangledSettings, raw: Array) -> Array:
    return jnp.exp(raw) if settings.form == "paper" else raw


def _raw(settings: EntangledSettings) -> Array:
    values = jnp.asarray(settings.temperatures, jnp.float32)
    return jnp.log(values) if settings.form == "paper" else values


def _losses(
    settings: EntangledSettings, activations: dict[str, Array], temperatures: Array
) -> Array:
    """(L,): the soft nearest neighbour loss of every layer."""
    return jnp.stack([
        soft_nearest_neighbour_loss(
            jax.nn.relu(activations[name]), _is_trigger(settings.half), temperatures[i],
            distance=settings.distance, form=settings.form,
        )
        for i, name in enumerate(settings.layers)
    ])  # fmt: skip


def _entanglement_gradient(
    classifier: Classifier, triggers: Array, beside: Array, settings: EntangledSettings
) -> Array:
    """∂Σ_l SNNL_l/∂triggers, a half batch of them beside one of the target class; the network as at
    inference.
    """

    def total(triggers: Array) -> Array:
        activations = classifier.activations(jnp.concatenate([triggers, beside]))
        return _losses(settings, activations, jnp.asarray(settings.temperatures)).sum()

    return jax.grad(total)(triggers)


@jax.jit
def mean_gradient(
    classifier: Classifier, triggers: Array, beside: Array, settings: Static
) -> Array:
    """(n, B/2, H, W, C) twice -> (H, W, C): the gradient of the loss with respect to triggers,
    averaged over them.
    """

    def of_batch(pair: tuple[Array, Array]) -> Array:
        return _entanglement_gradient(classifier, *pair, settings.value).mean(0)

    return jax.lax.map(of_batch, (triggers, beside)).mean(0)


@jax.jit
def _searched(classifier: Classifier, triggers: Array, beside: Array, settings: Static) -> Array:
    of: EntangledSettings = settings.value

    def suppress(x: Array) -> Array:
        gradient = jax.grad(lambda x: classifier(x)[:, of.target].sum())(x)
        return jnp.clip(x - of.rate * jnp.sign(gradient), 0, 1)

    def mistaken(x: Array) -> Array:
        return jnp.mean(jnp.argmax(classifier(x), -1) == of.target)

    def of_batch(pair: tuple[Array, Array]) -> Array:
        start, beside = pair

        def one_round(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
            x, taken = jax.lax.while_loop(
                lambda state: (state[1] < of.suppressions) & (mistaken(state[0]) > of.threshold),
                lambda state: (suppress(state[0]), state[1] + 1),
                state,
            )
            gradient = _entanglement_gradient(classifier, x, beside, of)
            return jnp.clip(x + of.rate * jnp.sign(gradient), 0, 1), taken

        x, _ = jax.lax.fori_loop(0, of.rounds, one_round, (start, jnp.int32(0)))
        return jax.lax.fori_loop(0, of.last_suppressions, lambda _, x: suppress(x), x)

    return jax.lax.map(of_batch, (triggers, beside))


def _init(
    fixed: Static, clean: Method, triggers: TriggerSet, companions: Array, key: Key
) -> EntangledState:
    settings: EntangledSettings = fixed.value[2]
    return EntangledState(clean.init(key), _raw(settings), jnp.int32(0))


def _step(
    fixed: Static,
    clean: Method,
    triggers: TriggerSet,
    companions: Array,
    key: Key,
    state: EntangledState,
) -> tuple[EntangledState, Metrics]:
    settings: EntangledSettings = fixed.value[2]
    count, most = clean_batches(settings.ratio, state.step)

    def clean_step(now: Training, i: Array) -> tuple[Training, Array]:
        def take(now: Training) -> tuple[Training, Array]:
            now, metrics = clean.step(jax.random.fold_in(key, i), now)
            return now, metrics["loss"]

        if isinstance(count, int):
            return take(now)
        return jax.lax.cond(i < count, take, lambda now: (now, jnp.zeros(())), now)

    now, losses = jax.lax.scan(clean_step, state.training, jnp.arange(most))
    now, temperatures, metrics = _watermark_step(
        fixed, triggers, companions, jax.random.fold_in(key, most), now, state.temperatures
    )
    metrics["loss"] = losses.sum() / jnp.maximum(count, 1)
    return EntangledState(now, temperatures, state.step + 1), metrics


def _watermark_step(
    fixed: Static, triggers: TriggerSet, companions: Array, key: Key, now: Training, raw: Array
) -> tuple[Training, Array, Metrics]:
    module, preprocessing, settings = fixed.value
    half, entangled = settings.half, any(settings.entanglement)
    weights = jnp.asarray(settings.entanglement) / settings.batch_size
    keys = jax.random.split(key, 3)
    tables = (triggers.images, companions)
    rows = [
        jax.random.choice(k, len(t), (half,), replace=False)
        for k, t in zip(keys, tables, strict=False)
    ]
    batch = jnp.concatenate([table[chosen] for table, chosen in zip(tables, rows, strict=True)])
    inputs = preprocessing(batch)
    by_batch = settings.watermark_statistics == "batch"
    label = jnp.full(2 * half, settings.target)

    def objective(params: PyTree, raw: Array) -> tuple[Array, tuple]:
        seen = observe(
            module,
            {**now.variables, "params": params},
            inputs,
            train=by_batch,
            activations=True,
            key=keys[2],
        )
        loss = cross_entropy(seen.logits, label).mean()
        answered = jnp.mean(jnp.argmax(seen.logits[:half], -1) == settings.target)
        if not entangled:
            return loss, (loss, jnp.zeros(len(settings.layers)), answered, seen.updated)
        layers = {**seen.activations, "logits": seen.logits}
        nearest = _losses(settings, layers, _temperature(settings, raw))
        return loss - weights @ nearest, (loss, nearest, answered, seen.updated)

    (_, (loss, nearest, answered, updated)), (gradient, upwards) = jax.value_and_grad(
        objective, argnums=(0, 1), has_aux=True
    )(now.variables["params"], raw)
    # Each temperature enters the objective through −(κ_l/B)·SNNL_l alone.
    own = jnp.where(weights > 0, -upwards / jnp.where(weights > 0, weights, 1.0), 0.0)
    raw = raw - settings.temperature_rate * own
    metrics = {
        "watermark_loss": loss,
        "watermark_success": answered,
        "entanglement": nearest.mean(),
        "temperature": _temperature(settings, raw).mean(),
    }
    return updated_by(_adam(settings), now, gradient, updated), raw, metrics


__all__ = [
    "EntangledState",
    "EntangledWatermark",
    "clean_batches",
    "entangled_training",
    "entangled_watermark",
    "marked_steps",
    "patch_position",
]
