"""What an endpoint reveals of its victim, and what an attacker can read out of it."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Array

Kind = Literal["logits", "probabilities", "top_k", "label"]
KINDS = ("logits", "probabilities", "top_k", "label")
UNSEEN = 1e-7
"""What an unrounded probability that came back as zero stands for, where its row has none below."""


@dataclasses.dataclass(frozen=True)
class Reveal:
    """How much of a victim's answer leaves the endpoint; hashable, so it can stand in a `Static`.

    Attributes:
      kind: ``logits``; ``probabilities``; ``top_k``: the k largest probabilities, zero elsewhere;
        ``label``: the largest alone.
      k: of ``top_k``.
      renormalise: whether the k probabilities are divided by their sum.
      decimals: logits or probabilities are rounded to so many decimals; None for none.

    Raises:
      UnknownNameError: for another kind.
      InputError: for a k or decimals that mean nothing.
    """

    kind: Kind = "probabilities"
    k: int | None = None
    renormalise: bool = False
    decimals: int | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UnknownNameError("kind of answer", self.kind, KINDS)
        if (self.kind == "top_k") != (self.k is not None) or (self.k is not None and self.k < 1):
            raise InputError(
                f"k >= 1 belongs to kind='top_k' and to nothing else, got kind={self.kind!r}, "
                f"k={self.k}"
            )
        if self.decimals is not None and (self.decimals < 0 or self.kind == "label"):
            raise InputError(
                f"decimals must be at least 0 and round numbers, got {self.decimals} for "
                f"{self.kind!r}"
            )

    @property
    def differentiable(self) -> bool:
        """Whether a finite difference of answers can be other than zero for small steps: unrounded
        numbers.
        """
        return self.kind != "label" and self.decimals is None

    def of_logits(self, logits: Array) -> Array:
        """Logits (B, K) -> answers: (B, K), or (B,) int32 for ``label``."""
        if self.kind == "logits":
            return _rounded(logits, self.decimals)
        return (
            self.of_probabilities(jax.nn.softmax(logits))
            if self.kind != "label"
            else _labels(logits)
        )

    def of_probabilities(self, probabilities: Array) -> Array:
        """Probabilities (B, K) -> answers; logits cannot be had from them.

        Raises:
          InputError: for kind ``logits``.
        """
        if self.kind == "logits":
            raise InputError(
                "a victim that gives probabilities cannot reveal logits; reveal probabilities "
                "instead"
            )
        if self.kind == "label":
            return _labels(probabilities)
        if self.k is not None:
            probabilities = keep_largest(probabilities, self.k)
            if self.renormalise:
                probabilities = probabilities / probabilities.sum(-1, keepdims=True)
        return _rounded(probabilities, self.decimals)


def keep_largest(probabilities: Array, k: int) -> Array:
    """(B, K) with all but the k largest zeroed; ties at the k-th place fall to the lower index, as
    in a sorted answer.

    Raises:
      InputError: for more than K.
    """
    if k > probabilities.shape[-1]:
        raise InputError(f"top {k} of {probabilities.shape[-1]} classes")
    rank = jnp.argsort(jnp.argsort(-probabilities, -1), -1)
    return jnp.where(rank < k, probabilities, 0)


def _rounded(values: Array, decimals: int | None) -> Array:
    return values if decimals is None else jnp.round(values, decimals)


def _labels(values: Array) -> Array:
    return jnp.argmax(values, -1).astype(jnp.int32)


def answered_labels(answers: Array, reveal: Reveal) -> Array:
    """(B,) int32 from any kind of answer."""
    return answers if reveal.kind == "label" else _labels(answers)


def answered_probabilities(answers: Array, reveal: Reveal, num_classes: int) -> Array:
    """(B, K) targets from any kind of answer.

    What top-k or rounding left out of the total is spread evenly over the classes that came back as
    zero; labels become one-hot.
    """
    if reveal.kind == "label":
        return jax.nn.one_hot(answers, num_classes)
    if reveal.kind == "logits":
        return jax.nn.softmax(answers)
    missing = jnp.maximum(1 - answers.sum(-1, keepdims=True), 0)
    empty = answers <= 0
    share = missing / jnp.maximum(empty.sum(-1, keepdims=True), 1)
    filled = jnp.where(empty, share, answers)
    return filled / filled.sum(-1, keepdims=True)


def answered_logits(answers: Array, reveal: Reveal) -> Array:
    """(B, K) logits with mean zero over the classes: z_i − mean_j z_j, from logits or from log p_i
    − mean_j log p_j.

    Unrounded probabilities are taken as they are, down to the smallest normal number of their type
    (1.2e-38 for float32: gaps between logits of up to 87 come back). One that came back as zero
    (top-k, a defence, underflow) stands for the smallest positive one of its row, or 1e-7 if that
    is less; its logit is a guess. Of rounded answers nothing below half a unit of the last decimal
    is known, and that is where all of them end.

    Raises:
      InputError: for labels, which have no logits.

    Source: Truong et al., CVPR 2021, section 3 (logit recovery).
    """
    if reveal.kind == "label":
        raise InputError(
            "logits cannot be recovered from labels alone; use an attack for hard labels"
        )
    if reveal.kind == "logits":
        values = answers
    elif reveal.decimals is not None:
        values = jnp.log(jnp.maximum(answers, 0.5 * 10.0**-reveal.decimals))
    else:
        known = answers >= jnp.finfo(answers.dtype).tiny
        guess = jnp.min(jnp.where(known, answers, UNSEEN), -1, keepdims=True, initial=UNSEEN)
        values = jnp.log(jnp.where(known, answers, guess))
    return values - values.mean(-1, keepdims=True)


def check_classes(answers: Array, reveal: Reveal, num_classes: int) -> None:
    """Whether answers are of the K classes that a clone has; their shape tells, so it can be asked
    of traced ones.

    Raises:
      InputError: when they are not.
    """
    expected = "(B,) labels" if reveal.kind == "label" else f"(B, {num_classes})"
    if answers.ndim != (1 if reveal.kind == "label" else 2) or answers.shape[1:] not in (
        (),
        (num_classes,),
    ):
        raise InputError(
            f"the clone has {num_classes} classes and learns {expected} of kind {reveal.kind!r}; "
            f"the endpoint answered shape {tuple(answers.shape)}"
        )


def check_answers(answers: Any, rows: int, num_classes: int, reveal: Reveal) -> None:
    """Checks what came back from a host or an endpoint, before anything learns from it.

    Args:
      answers: NumPy array. rows: B that were asked. num_classes: K expected.

    Raises:
      InputError: another shape or number of classes, NaN, labels out of range, or probabilities
        that are negative or do not sum to one (to at most one, for an unnormalised top-k; within
        the rounding).
    """
    import numpy as np

    answers = np.asarray(answers)
    shape = (rows,) if reveal.kind == "label" else (rows, num_classes)
    if answers.shape != shape:
        raise InputError(
            f"asked {rows} rows of {num_classes} classes ({reveal.kind}), got answers of shape "
            f"{answers.shape}"
        )
    if reveal.kind == "label":
        if (
            not np.issubdtype(answers.dtype, np.integer)
            or answers.min() < 0
            or answers.max() >= num_classes
        ):
            raise InputError(
                f"labels must be integers in [0, {num_classes}), got {answers.min()} to "
                f"{answers.max()}"
            )
        return
    if not np.isfinite(answers).all():
        raise InputError(
            f"{int((~np.isfinite(answers)).any(1).sum())} of {rows} answers contain NaN or infinity"
        )
    if reveal.kind == "logits":
        return
    slack = 1e-3 + (0 if reveal.decimals is None else 0.5 * num_classes * 10.0**-reveal.decimals)
    total = answers.sum(1)
    partial = reveal.kind == "top_k" and not reveal.renormalise
    if (
        answers.min() < -1e-6
        or total.max() > 1 + slack
        or (not partial and total.min() < 1 - slack)
    ):
        raise InputError(
            f"probabilities must be non-negative and sum to 1, got values from {answers.min():.4g} "
            f"and sums from {total.min():.4g} to {total.max():.4g}"
        )


__all__ = [
    "KINDS",
    "Kind",
    "Reveal",
    "answered_labels",
    "answered_logits",
    "answered_probabilities",
    "check_answers",
    "check_classes",
    "keep_largest",
]
