"""Kernel models taken apart: their coefficients, and the rows that they were trained on, to the last
digits.

A kernel logistic regression answers p with log p_k − mean_j log p_j = Σ_r a_rk exp(−γ‖x − x_r‖²) + b_k.
Less b and multiplied by exp(γ‖x‖²) that is a sum of exponentials, Σ_r c_rk exp(2γ x·x_r), and sums
of exponentials are solved by matrices, without any search: the values at x = p_i + q_j, over all
pairs of two sets of rows and all classes, are a matrix A C of rank s, the number of representers, with
A_ir = exp(2γ p_i·x_r). The same values at p_i + q_j + d are A E C, E diagonal: the eigenvectors of the
pencil of both are the columns of A up to a factor each, and their logarithms are linear in x_r.

Source of the attack and its aim: Tramèr, Zhang, Juels, Reiter, Ristenpart, "Stealing Machine Learning
Models via Prediction APIs", USENIX Security 2016, section 4.1.3, who descend the gradient of the
cross-entropy in all coefficients and representers (`kernel_regression`). Of the solution: Roy, Kailath,
"ESPRIT", IEEE Trans. Acoustics, Speech and Signal Processing 1989, for sums of complex exponentials.
"""

import dataclasses
import math
import warnings
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.data.schema import Schema
from dfke_jax.extraction.cross_entropy import FittedModel, kernel_logs
from dfke_jax.oracle.reveal import Reveal, check_answers

_GAP = 1e4
_EXPONENT = 3.0
_CHECKS = 8
_CLOSE = 1e-6
_EXTRA = 4


def kernel_equations(
    schema: Schema, representers: int, gamma: float, *, reveal: Reveal | None = None
) -> HostAttack:
    """A kernel logistic regression, solved; and with it rows that it was trained on.

    Two rows so far away that no kernel reaches them give b; then `kernel_equation_rows` rows are
    asked in all, the last eight of which check what was found. Rows leave the schema's box.

    Args:
      schema: of the rows.
      representers: s, or more than there are: how many there are is seen, as a gap between singular
        values.
      gamma: γ of the kernel, as the service states it.
      reveal: what is answered: probabilities, unrounded.

    Returns:
      A `HostAttack` for answers (B, K); it finds a `FittedModel` whose parameter ``representers``
      (s, D) are the rows given away, in no order (see `evaluation.matched_rows`), and whose divergence is that
      of the eight rows.

    Raises, at once or while it runs:
      InputError: where no gap shows (more representers than `representers`, another γ, or answers
        that are rounded or float32: `kernel_regression` searches then), for an endpoint that clips
        rows, for probabilities that underflow, for labels.
      UserWarning: for a copy that answers otherwise than the victim on the eight rows.
    """
    reveal = reveal or Reveal()
    if reveal.kind != "probabilities":
        raise InputError(f"logarithms are taken of all probabilities, not of {reveal.kind!r}")
    if representers < 1 or not gamma > 0:
        raise InputError(
            f"representers must be at least 1 and gamma positive, got {representers}, {gamma}"
        )

    def solve(rng: np.random.Generator, ask: Ask) -> Solution:
        with ask.phase("equations"), threadpool_limits(1, user_api="blas"):
            return Solution(_solved(rng, ask, schema, representers, gamma, reveal))

    return HostAttack(solve)


def kernel_equation_rows(width: int, classes: int, representers: int) -> int:
    """Rows that `kernel_equations` asks: 2 + (M + s + 4)⌈(s + 4)/(K − 1)⌉ + 8 with M = max(s, D + 1)
    + 4.

    >>> kernel_equation_rows(64, 10, 20)
    289
    """
    few, first, second = _sizes(width, classes, representers)
    return 2 + (first + few) * second + _CHECKS


def fitted_kernels(rows: Any, answers: Any, representers: Any, gamma: float) -> FittedModel:
    """The kernel logistic regression on given representers whose log p, less their mean over the
    classes, are nearest to those of the answers (least squares).

    Args:
      rows: (B, D). answers: probabilities (B, K), above 0. representers: (s, D). gamma: γ.
    """
    rows, representers = (np.asarray(each, np.float64) for each in (rows, representers))
    apart = ((rows[:, None] - representers[None]) ** 2).sum(-1)
    design = np.concatenate([np.exp(-gamma * apart), np.ones((len(rows), 1))], 1)
    coefficients = np.linalg.lstsq(design, _centred_logs(answers), rcond=None)[0]
    parameters = {
        "representers": representers,
        "alpha": coefficients[:-1],
        "beta": coefficients[-1],
        "gamma": np.asarray(gamma, np.float64),
    }
    return FittedModel(parameters, kernel_logs)


def _centred_logs(answers: Any) -> np.ndarray:
    logs = np.log(np.asarray(answers, np.float64))
    return logs - logs.mean(1, keepdims=True)


def _sizes(width: int, classes: int, representers: int) -> tuple[int, int, int]:
    """Rows p that are asked again at p + d, rows p, rows q."""
    few = representers + _EXTRA
    return few, max(few, width + 1 + _EXTRA), -(-few // (classes - 1))


def _solved(
    rng: np.random.Generator,
    ask: Ask,
    schema: Schema,
    most: int,
    gamma: float,
    reveal: Reveal,
) -> FittedModel:
    asked: list[np.ndarray] = []
    answered: list[np.ndarray] = []

    def probabilities(rows: np.ndarray) -> np.ndarray:
        answers = np.asarray(ask(rows))
        if answers.ndim != 2 or answers.shape[1] < 2 or answers.dtype.kind != "f":
            raise InputError(
                f"probabilities (B, K) were expected, got shape {answers.shape} of {answers.dtype}"
            )
        check_answers(answers, len(rows), answers.shape[1], reveal)
        if not (answers > 0).all():
            raise InputError("probabilities underflow to 0, and have no logarithm")
        return answers.astype(np.float64)

    def logs(rows: np.ndarray) -> np.ndarray:
        """Of rows that the copy is made from."""
        asked.append(rows)
        answered.append(probabilities(rows))
        return _centred_logs(answered[-1])

    low, high = schema.box
    middle, half = (low + high) / 2, (high - low) / 2
    reach = float(gamma * (half**2).sum())
    if not reach > 0:
        raise InputError("no column has a range")
    away = (1 + math.sqrt(2000 / reach)) * half * rng.uniform(1, 2, schema.width)
    far = logs(np.stack([middle + away, middle - away]))
    if np.abs(far[0] - far[1]).max() > 1e-9:
        raise InputError(
            "two rows that no kernel reaches are answered otherwise: the endpoint clips rows, or "
            f"its kernel is wider than gamma = {gamma} says"
        )
    few, first, second = _sizes(schema.width, far.shape[1], most)
    # so far from the middle that exponents differ, and not so far that kernels vanish
    size = half * min(1.0, math.sqrt(_EXPONENT / reach))
    p, q, d = (size * rng.uniform(-1, 1, (n, schema.width)) for n in (first, second, 1))

    def values(left: np.ndarray) -> np.ndarray:
        """Σ_r c_rk exp(2γ z·x_r) at z = left_i + q_j, as (rows of left, pairs of j and k); the
        coordinates of z are counted from the middle.
        """
        z = (left[:, None] + q[None]).reshape(-1, schema.width)
        grown = (logs(middle + z) - far[0]) * np.exp(gamma * (z**2).sum(1))[:, None]
        return grown.reshape(len(left), -1)

    plain, moved = values(p), values(p[:few] + d)
    left, singular, right = np.linalg.svd(plain, full_matrices=False)
    gaps = singular[:most] / np.maximum(singular[1 : most + 1], np.finfo(float).tiny)
    count = int(np.argmax(gaps)) + 1
    if gaps[count - 1] < _GAP:
        raise InputError(
            f"the singular values have no gap (the largest ratio of neighbours is {gaps.max():.1f}): "
            f"there are more than {most} representers, answers are rounded or of float32, or the "
            f"kernel has another gamma than {gamma}; kernel_regression searches instead"
        )
    basis = left[:, :count]
    turned = moved @ (right[:count].T / singular[:count])
    _, vectors = np.linalg.eig(np.linalg.lstsq(basis[:few], turned, rcond=None)[0])
    columns = np.real(basis @ vectors)
    with np.errstate(divide="ignore"):
        exponents = np.log(np.abs(columns / columns[:1])) / (2 * gamma)
    places = np.linalg.lstsq(p[1:] - p[:1], exponents[1:], rcond=None)[0].T + middle

    found = fitted_kernels(np.concatenate(asked), np.concatenate(answered), places, gamma)
    checks = schema.uniform(rng, _CHECKS)
    truth = probabilities(checks)
    divergence = float((truth * (np.log(truth) - np.log(found(checks)))).sum(1).mean())
    if divergence > _CLOSE:
        warnings.warn(
            f"the copy is {divergence:.1e} nats from the victim on rows that it was not made from: "
            "answers are inexact, or representers nearly coincide",
            stacklevel=2,
        )
    return dataclasses.replace(found, divergence=max(divergence, 0.0))


__all__ = ["fitted_kernels", "kernel_equation_rows", "kernel_equations"]
