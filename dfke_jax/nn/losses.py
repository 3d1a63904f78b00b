"""Losses of distillation: how far a student is from a teacher, in answers, features and relations.

Losses over answers and features are returned per sample, (B,), so that callers weight, mask and
average as a paper does; losses over relations are one number for the batch. Everything is computed
in float32. The teacher's side is a constant: no gradient flows through it, unless `through_teacher`
asks for it (a generator that searches for inputs on which student and teacher differ needs it).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import Tracer

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array
from dfke_jax.nn.layers import Conv


def cross_entropy(logits: Array, labels: Array) -> Array:
    """H(y, σ(z)) = −Σ_k y_k log σ(z)_k, per sample.

    Args:
      logits: (B, K).
      labels: integers (B,) in [0, K), or distributions (B, K), which are constants.

    Returns:
      (B,), in nats. In a compiled program, which cannot raise errors, a label outside [0, K) has
      the loss NaN.

    Raises:
      InputError: for shapes that do not fit, or a label outside [0, K).
    """
    return soft_cross_entropy(logits, _targets(logits, labels))


def smooth_labels(labels: Array, num_classes: int, smoothing: float | Array) -> Array:
    """Distributions (1 − ε)·onehot(y) + ε/K.

    Args:
      labels: integers (B,) in [0, K). smoothing: ε in [0, 1).

    Returns:
      (B, K).

    Source: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016, section
    7.
    """
    hot = jax.nn.one_hot(labels, num_classes)
    return (1 - smoothing) * hot + smoothing / num_classes


def soft_cross_entropy(logits: Array, targets: Array, temperature: float | Array = 1.0) -> Array:
    """−Σ_k t_k log σ(z / τ)_k, per sample and without a factor τ².

    Args:
      logits: z, (B, K).
      targets: distributions t, (B, K), taken as they are (not softened) and as constants.
      temperature: τ > 0.

    Returns:
      (B,), in nats.
    """
    _same(logits, targets, "logits", "targets")
    targets = jax.lax.stop_gradient(targets.astype(jnp.float32))
    return -jnp.sum(targets * _log_softmax(logits, temperature), -1)


def response_kl(
    student_logits: Array,
    teacher_logits: Array,
    temperature: float | Array = 1.0,
    *,
    through_teacher: bool = False,
) -> Array:
    """τ² · KL(σ(t/τ) ‖ σ(s/τ)), per sample: the teacher's softened answer is the reference.

    The factor keeps the size of the gradient about the same for every τ.

    Args:
      student_logits, teacher_logits: s and t, (B, K).
      temperature: τ > 0.
      through_teacher: whether gradients flow into `teacher_logits`.

    Returns:
      (B,), in nats.

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, section 2.
    Deviation: code that averages over classes too (PyTorch's ``kl_div`` with its default reduction)
    gets a K-th of this.
    """
    student, teacher = _pair(student_logits, teacher_logits, through_teacher)
    log_student, log_teacher = (
        _log_softmax(student, temperature),
        _log_softmax(teacher, temperature),
    )
    return temperature**2 * jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), -1)


def response_mix(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    temperature: float | Array = 4.0,
    weight: float | Array = 1.0,
) -> Array:
    """λ · H(y, σ(s)) + τ² · KL(σ(t/τ) ‖ σ(s/τ)), per sample.

    Args:
      student_logits, teacher_logits: s and t, (B, K).
      labels: y, as in `cross_entropy`.
      temperature: τ > 0, of the second term only.
      weight: λ ≥ 0; data-free methods without labels set it to 0, which is `response_kl`.

    Returns:
      (B,), in nats.

    Source: as `response_kl`.
    """
    return weight * cross_entropy(student_logits, labels) + response_kl(
        student_logits, teacher_logits, temperature
    )


def logit_l1(
    student_logits: Array, teacher_logits: Array, *, through_teacher: bool = False
) -> Array:
    """(1/K) Σ_k |s_k − t_k|, per sample; (B, K) and (B, K) -> (B,). Its gradient where s_k = t_k is
    0.

    Source: Fang et al., Data-Free Adversarial Distillation, 2019, section 3.
    """
    student, teacher = _pair(student_logits, teacher_logits, through_teacher)
    difference = student - teacher
    # The derivative of jnp.abs at 0 is 1.
    return jnp.mean(difference * jax.lax.stop_gradient(jnp.sign(difference)), -1)


def logit_l2(
    student_logits: Array, teacher_logits: Array, *, through_teacher: bool = False
) -> Array:
    """(1/K) Σ_k (s_k − t_k)², per sample; (B, K) and (B, K) -> (B,).

    Source: Ba and Caruana, Do Deep Nets Really Need to be Deep?, 2014, equation 1.
    Deviation: the mean over classes, not half the sum.
    """
    student, teacher = _pair(student_logits, teacher_logits, through_teacher)
    return jnp.mean(jnp.square(student - teacher), -1)


def jensen_shannon(p_logits: Array, q_logits: Array, temperature: float | Array = 1.0) -> Array:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q)/2, p = σ(p_logits/τ), q = σ(q_logits/τ), per
    sample.

    Symmetric, differentiable on both sides (stop the gradient of the one that is a teacher's),
    within [0, ln 2], and without a factor τ².

    Args:
      p_logits, q_logits: (B, K).
      temperature: τ > 0.

    Returns:
      (B,), in nats.

    Source: Lin, Divergence Measures Based on the Shannon Entropy, 1991.
    """
    _same(p_logits, q_logits, "p_logits", "q_logits")
    log_p, log_q = _log_softmax(p_logits, temperature), _log_softmax(q_logits, temperature)
    # log m − log p = softplus(log q − log p) − ln 2 neither overflows nor cancels where p or q is
    # tiny.
    ratio, log_two = log_q - log_p, math.log(2)
    from_p = jnp.exp(log_p) * (log_two - jax.nn.softplus(ratio))
    from_q = jnp.exp(log_q) * (log_two - jax.nn.softplus(-ratio))
    divergence = jnp.sum(from_p + from_q, -1) / 2
    # Rounding may leave the interval by an ulp: the value is put back, the gradient is the
    # formula's.
    return divergence + jax.lax.stop_gradient(jnp.clip(divergence, 0, log_two) - divergence)


class HintRegressor(nn.Module):
    """A linear map from a student's features to the width of a teacher's.

    Maps (B, H, W, C) -> (B, H, W, features) by a 1×1 convolution, vectors (B, D) -> (B, features)
    by a dense layer.

    Attributes:
      features: width of the teacher's features.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, 2015, section 2.2.
    Deviation: the kernel is 1×1, so both maps must have the same height and width.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.ndim == 4:
            return Conv(self.features, (1, 1))(x)
        if x.ndim == 2:
            return nn.Dense(self.features)(x)
        raise InputError(f"features must be (B, H, W, C) or (B, D), got shape {x.shape}")


def hint_loss(
    student_features: Array,
    teacher_features: Array,
    regressor: Callable[[Array], Array] | None = None,
) -> Array:
    """½ ‖u − r(v)‖², per sample, summed over all features.

    Args:
      student_features: v, (B, ...).
      teacher_features: u, (B, ...), constants.
      regressor: r, from the student's features to the teacher's shape, usually a bound
        `HintRegressor`; None for features of equal shapes.

    Returns:
      (B,).

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, 2015, equation 3.
    """
    fitted = student_features if regressor is None else regressor(student_features)
    _same(fitted, teacher_features, "regressed student features", "teacher features")
    student, teacher = _pair(fitted, teacher_features, False, None)
    return jnp.sum(jnp.square(teacher - student), tuple(range(1, student.ndim))) / 2


def attention_transfer(
    student_maps: Sequence[Array], teacher_maps: Sequence[Array], beta: float | Array = 1000.0
) -> Array:
    """β/2 · Σ_j ‖Q_S^j − Q_T^j‖², per sample, where Q = F/‖F‖₂ and F = vec(mean_c A_c²) is an
    attention map.

    Args:
      student_maps, teacher_maps: for each place j, activations A (B, H_j, W_j, C); heights and
        widths of both sides must agree, channels need not.
      beta: β.

    Returns:
      (B,). An all-zero map has Q = 0.

    Source: Zagoruyko and Komodakis, Paying More Attention to Attention, 2017, equation 2, the norm
    squared.
    Deviation: code that takes the mean over pixels of the squared difference, and no ½, needs
    another β: 2β/(H·W) here, map by map.
    """
    if len(student_maps) != len(teacher_maps) or not len(student_maps):
        raise InputError(
            f"got {len(student_maps)} student maps and {len(teacher_maps)} teacher maps"
        )
    total = jnp.zeros(student_maps[0].shape[:1])
    for place, (student, teacher) in enumerate(zip(student_maps, teacher_maps, strict=True)):
        if student.ndim != 4 or teacher.ndim != 4 or student.shape[:3] != teacher.shape[:3]:
            raise InputError(
                f"maps at place {place} must be (B, H, W, C) with equal B, H and W, "
                f"got {student.shape} and {teacher.shape}"
            )
        difference = _attention(student) - jax.lax.stop_gradient(_attention(teacher))
        total = total + jnp.sum(jnp.square(difference), -1)
    return beta / 2 * total


def relational_distance(student_features: Array, teacher_features: Array) -> Array:
    """Mean over ordered pairs i ≠ j of Huber(ψ_S(i, j) − ψ_T(i, j)), ψ(i, j) = ‖x_i − x_j‖ / μ.

    μ is the mean distance of the batch's pairs, on each side separately, and Huber(d) is d²/2 up
    to |d| = 1 and |d| − ½ beyond. Coinciding samples have distance 0 and no gradient; if all
    coincide, ψ is 0.

    Args:
      student_features, teacher_features: (B, ...), B ≥ 2, of any widths; flattened.

    Returns:
      A scalar. The paper's weight for it is 25.

    Source: Park et al., Relational Knowledge Distillation, 2019, section 3.2.1.
    Deviation: the mean over pairs, where the paper writes a sum; the authors' code divides by B².
    """
    student, teacher = _rows(student_features, teacher_features, 2)
    count = student.shape[0] * (student.shape[0] - 1)
    return jnp.sum(_huber(_relative_distances(student) - _relative_distances(teacher))) / count


def relational_angle(student_features: Array, teacher_features: Array) -> Array:
    """Mean over ordered triplets of distinct i, j, k of Huber(cos_S ∠ijk − cos_T ∠ijk), with vertex
    j.

    cos ∠ijk = ⟨e_ij, e_kj⟩ with e_ij = (x_i − x_j)/‖x_i − x_j‖, and e_ij = 0, without a gradient,
    where the two coincide. Memory grows as B³ + B²·D.

    Args:
      student_features, teacher_features: (B, ...), B ≥ 3, of any widths; flattened.

    Returns:
      A scalar. The paper's weight for it is 50.

    Source: Park et al., Relational Knowledge Distillation, 2019, section 3.2.2.
    Deviation: the mean over triplets, where the paper writes a sum; the authors' code divides by
    B³.
    """
    student, teacher = _rows(student_features, teacher_features, 3)
    batch = student.shape[0]
    # i = j and k = j are zero on both sides, i = k is masked
    distinct = ~jnp.eye(batch, dtype=bool)[None]
    difference = jnp.where(distinct, _cosines(student) - _cosines(teacher), 0.0)
    return jnp.sum(_huber(difference)) / (batch * (batch - 1) * (batch - 2))


def _log_softmax(logits: Array, temperature: Any) -> Array:
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, -1)


def _targets(logits: Array, labels: Array) -> Array:
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return labels
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError(
            f"logits (B, K) need integer labels (B,), got {logits.shape} and {labels.shape}"
        )
    classes = logits.shape[-1]
    inside = (labels >= 0) & (labels < classes)
    if not isinstance(inside, Tracer) and not inside.all():
        raise InputError(f"labels must lie in [0, {classes}), got {labels.min()} to {labels.max()}")
    return jnp.where(inside[:, None], jax.nn.one_hot(labels, classes), jnp.nan)


def _same(first: Array, second: Array, first_name: str, second_name: str) -> None:
    if first.shape != second.shape:
        raise InputError(
            f"{first_name} and {second_name} differ in shape: {first.shape} and {second.shape}"
        )


def _pair(
    student: Array, teacher: Array, through_teacher: bool, ndim: int | None = 2
) -> tuple[Array, Array]:
    _same(student, teacher, "student", "teacher")
    if ndim is not None and student.ndim != ndim:
        raise InputError(f"logits must be (B, K), got shape {student.shape}")
    student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
    return student, teacher if through_teacher else jax.lax.stop_gradient(teacher)


def _rows(student: Array, teacher: Array, least: int) -> tuple[Array, Array]:
    if student.ndim < 2 or teacher.ndim < 2 or student.shape[0] != teacher.shape[0]:
        raise InputError(
            f"features must be (B, ...) with equal B, got {student.shape} and {teacher.shape}"
        )
    if student.shape[0] < least:
        raise InputError(
            f"a batch of {student.shape[0]} has no relation to compare; at least {least} samples "
            "are needed"
        )
    student, teacher = (x.astype(jnp.float32).reshape(x.shape[0], -1) for x in (student, teacher))
    return student, jax.lax.stop_gradient(teacher)


def _attention(maps: Array) -> Array:
    energy = jnp.mean(jnp.square(maps.astype(jnp.float32)), -1).reshape(maps.shape[0], -1)
    # The scale drops out of Q; taking it out first keeps fourth powers of small activations from
    # vanishing.
    scale = jax.lax.stop_gradient(jnp.max(energy, -1, keepdims=True))
    energy = energy / jnp.where(scale > 0, scale, 1.0)
    squared = jnp.sum(jnp.square(energy), -1, keepdims=True)
    return energy * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.0))


def _offsets(rows: Array) -> tuple[Array, Array]:
    """x_i − x_j, (B, B, D), and its length, (B, B), with gradient 0 where that is 0."""
    offsets = rows[:, None] - rows[None]
    squared = jnp.sum(jnp.square(offsets), -1)
    positive = squared > 0
    return offsets, jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def _relative_distances(rows: Array) -> Array:
    _, distances = _offsets(rows)
    batch = rows.shape[0]
    mean = jnp.sum(distances) / (batch * (batch - 1))
    return distances / jnp.where(mean > 0, mean, 1.0)


def _cosines(rows: Array) -> Array:
    """cos ∠ijk at [j, i, k], (B, B, B)."""
    offsets, lengths = _offsets(rows)
    units = offsets / jnp.where(lengths > 0, lengths, 1.0)[..., None]
    return jnp.einsum("ijd,kjd->jik", units, units, precision="highest")


def _huber(difference: Array) -> Array:
    size = jnp.abs(difference)
    return jnp.where(size <= 1, jnp.square(difference) / 2, size - 0.5)


__all__ = [
    "HintRegressor",
    "attention_transfer",
    "cross_entropy",
    "hint_loss",
    "jensen_shannon",
    "logit_l1",
    "logit_l2",
    "relational_angle",
    "relational_distance",
    "response_kl",
    "response_mix",
    "soft_cross_entropy",
]
