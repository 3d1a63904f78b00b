"""Tests of "private and public samples look alike to this model". NumPy and SciPy, float64.

Throughout, scores are one number a sample, larger for what looks more public; the null hypothesis
is that the mean score of public samples is not larger than that of private ones, and a small
p-value speaks for theft.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError

MINIMUM_NULL = 20
"""Independent models below which no conformal p-value is given: with fewer it cannot fall below
0.05.
"""


class WelchTest(NamedTuple):
    """A one-sided Welch test.

    Attributes:
      p_value: P(T ≥ t) under equal means.
      statistic: t. freedom: Welch's degrees of freedom.
      effect: Δμ, mean public minus mean private score.
      interval: two-sided confidence interval of Δμ.
      standardised: Δμ in units of the root mean of both variances (Cohen's d).
      samples: (private, public).
    """

    p_value: float
    statistic: float
    freedom: float
    effect: float
    interval: tuple[float, float]
    standardised: float
    samples: tuple[int, int]


def welch_test(private: Any, public: Any, confidence: float = 0.95) -> WelchTest:
    """Welch's t-test, unequal variances, with the alternative that public scores are larger.

    Args:
      private, public: scores (m,), one a sample; the samples are independent of one another and of
        the regressor.
      confidence: of the interval.

    Raises:
      InputError: fewer than two scores on a side, NaN, or no variance on either side (saturated
        scores: then a permutation test is what remains).
    """
    from scipy.special import stdtr
    from scipy.stats import ttest_ind

    private, public = _scores(private, "private"), _scores(public, "public")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie in (0, 1), got {confidence}")
    if min(len(private), len(public)) < 2:
        raise InputError(
            f"a t-test needs two scores on each side, got {len(private)} and {len(public)}"
        )
    if _flat(private[None], public[None])[0]:
        raise InputError(
            "the scores have no variance on either side (the regressor is saturated); stop it "
            "earlier, or use permutation_test"
        )
    with warnings.catch_warnings():
        # SciPy warns of nearly equal scores, of which `_flat` has seen whether they are too near
        warnings.simplefilter("ignore", RuntimeWarning)
        found: Any = ttest_ind(public, private, equal_var=False)
    interval = found.confidence_interval(confidence)
    effect = float(public.mean() - private.mean())
    pooled = float(np.sqrt((private.var(ddof=1) + public.var(ddof=1)) / 2))
    return WelchTest(
        float(stdtr(found.df, -found.statistic)),  # one side of the two that `found.pvalue` counts
        float(found.statistic),
        float(found.df),
        effect,
        (float(interval.low), float(interval.high)),
        effect / pooled,
        (len(private), len(public)),
    )


def _flat(private: np.ndarray, public: np.ndarray) -> np.ndarray:
    """(R, m), (R, n) -> (R,): whether the standard error of Δμ is rounding and nothing else."""
    error = np.sqrt(sum(part.var(1, ddof=1) / part.shape[1] for part in (private, public)))
    size = np.maximum(np.abs(private).max(1), np.abs(public).max(1))
    return error <= 1e-12 * np.maximum(1.0, size)


def two_sided(test: WelchTest) -> float:
    """P(|T| ≥ |t|): the p-value of the same test where a difference in any direction counts."""
    from scipy.stats import t

    return min(1.0, 2 * float(t.sf(abs(test.statistic), test.freedom)))


def permutation_test(
    private: Any, public: Any, permutations: int = 9999, seed: int = 0, *, studentised: bool = False
) -> float:
    """p = (1 + #{Δμ of relabelled scores ≥ Δμ}) / (1 + permutations).

    Exact under the null hypothesis that private and public scores have one *distribution*. It does
    not test equal means alone: where the two sides differ in spread and in number it accuses too
    often (the larger spread on the smaller side) or too seldom. With `studentised` the statistic is
    Welch's t: as exact for one distribution, and right for large samples with equal means and
    unequal spread. Where there are no more different relabellings than `permutations`, all of them
    are taken, and p is the share of those that reach the observed statistic.

    Args:
      private, public: scores, one a sample.
      permutations: random relabellings.
      seed: of them.
      studentised: compare Welch's t instead of Δμ.

    Raises:
      InputError: an empty side (with `studentised`, fewer than two scores on a side), NaN, fewer
        than 19 permutations (with which p cannot fall to 0.05).

    Source: Janssen, Studentized permutation tests for non-i.i.d. hypotheses, Statistics and
    Probability Letters 1997.
    """
    from scipy.stats import permutation_test as relabelled

    private, public = _scores(private, "private"), _scores(public, "public")
    if permutations < 19:
        raise InputError(f"{permutations} permutations cannot give p <= 0.05; take at least 19")
    if studentised and min(len(private), len(public)) < 2:
        sizes = f"{len(private)} and {len(public)}"
        raise InputError(f"Welch's t needs two scores on each side, got {sizes}")
    # SciPy counts as equal what differs by 2e-14 of the observed statistic. Sums of scores that are
    # not negative lose no more to another order of summation, and rounding does it for t:
    # relabellings that are equal are ties
    least = min(private.min(), public.min())
    statistic = _rounded_t if studentised else _public_sum
    found = relabelled(
        (private - least, public - least),
        statistic,
        vectorized=True,
        n_resamples=permutations,
        batch=max(1, 2**21 // (len(private) + len(public))),
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _public_sum(private: np.ndarray, public: np.ndarray, axis: int = -1) -> np.ndarray:
    """Equivalent to Δμ for given sizes and a given total."""
    return public.sum(axis)


def _rounded_t(private: np.ndarray, public: np.ndarray, axis: int = -1) -> np.ndarray:
    effect = public.mean(axis) - private.mean(axis)
    error = np.sqrt(sum(part.var(axis, ddof=1) / part.shape[axis] for part in (private, public)))
    return np.round(np.clip(effect / np.maximum(error, 1e-12), -1e12, 1e12), 9)


def conformal_p_value(observed: float, null: Any) -> float:
    """p = (1 + #{null ≥ observed}) / (n + 1), over the same statistic of n independent models.

    Valid whatever the distribution, if suspect and null models are exchangeable when the suspect is
    innocent: same task and recipe, trained on data disjoint from the private and the public
    samples, tested on the same samples.

    Raises:
      InputError: fewer than 20 null values, NaN.
    """
    null = _scores(null, "null")
    if len(null) < MINIMUM_NULL:
        raise InputError(
            f"{len(null)} independent models give no p-value below {1 / (len(null) + 1):.3f}; at "
            f"least {MINIMUM_NULL} are needed"
        )
    if not np.isfinite(observed):
        raise InputError(f"the observed statistic must be finite, got {observed}")
    return float((1 + (null >= observed).sum()) / (len(null) + 1))


def holm(p_values: Any) -> np.ndarray:
    """Holm's adjusted p-values: the least level at which each of several verdicts accuses.

    The i-th smallest of n becomes max_{j ≤ i} min(1, (n − j + 1)·p_(j)). Accusing where that is at
    most alpha, the probability that anybody is accused wrongly is at most alpha, whatever the
    dependence of the verdicts. All that were looked at belong to the family.

    Args:
      p_values: (n,), in [0, 1].

    Returns:
      (n,), in the order given.

    Raises:
      InputError: values outside [0, 1], NaN, or none.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of
    Statistics 1979.
    """
    values = _p_values(p_values)
    order = np.argsort(values, kind="stable")
    steps = np.minimum(1.0, np.arange(len(values), 0, -1) * values[order])
    adjusted = np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def calibrate(distances: Any, references: Any) -> np.ndarray:
    """Difficulty calibration: each distance minus its mean under reference models.

    Private and public samples are fixed, so a chance difference in how hard they are is common to
    all suspects, and a test without calibration accuses innocent ones together. References must not
    be the suspect, nor among the null models of `conformal_p_value`.

    Args:
      distances: (N, T, P) of one model, or scores (N,).
      references: (M, N, T, P) or (M, N), the same of M independent models, M >= 1.

    Raises:
      InputError: shapes that do not belong together, no reference, NaN.

    Source: Watson, Guo, Cormode, Sablayrolles, ICLR 2022 (difficulty calibration in membership
    inference).
    """
    values, others = np.asarray(distances, np.float64), np.asarray(references, np.float64)
    if others.ndim != values.ndim + 1 or others.shape[1:] != values.shape or not others.size:
        raise InputError(
            f"references must be (M, *{values.shape}) with M >= 1, got shape {others.shape}"
        )
    if not (np.isfinite(values).all() and np.isfinite(others).all()):
        raise InputError("distances and references must be finite")
    return values - others.mean(0)


class SampleCurve(NamedTuple):
    """How the p-value falls with the number of revealed samples.

    Attributes:
      samples: (R,) m private and m public samples.
      median, low, high: (R,) median, 10 % and 90 % quantile of p over random choices of m + m
        samples. They describe how one test with m samples would turn out; none of them is a
        p-value.
      power: (R,) fraction of choices with p < alpha.
      alpha: of `power`.
      draws: choices for each m.
    """

    samples: np.ndarray
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    power: np.ndarray
    alpha: float
    draws: int


def p_value_curve(
    private: Any,
    public: Any,
    sizes: Sequence[int] | None = None,
    *,
    draws: int = 200,
    alpha: float = 0.05,
    seed: int = 0,
) -> SampleCurve:
    """p-values of Welch tests on random choices of m + m of the tested samples.

    Args:
      private, public: scores, one a sample.
      sizes: values of m; by default 2, 3, 5, 10, ... up to all.
      draws: random choices, without replacement, for each m.
      alpha: level of `SampleCurve.power`.
      seed: of the choices.

    Raises:
      InputError: sizes below 2 or above the number of samples, no draws, NaN.
    """
    private, public = _scores(private, "private"), _scores(public, "public")
    most = min(len(private), len(public))
    if sizes is None:
        sizes = [
            m
            for m in (2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 1000)
            if m < most
        ] + [most]
    if min(sizes) < 2 or max(sizes) > most:
        raise InputError(f"sizes must lie in [2, {most}], got {list(sizes)}")
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    rng = np.random.default_rng(seed)
    rows = []
    for m in sizes:
        chosen = [_choose(rng, part, m, draws) for part in (private, public)]
        p = _welch_p_values(*chosen)
        rows.append([np.median(p), *np.quantile(p, (0.1, 0.9)), np.mean(p < alpha)])
    median, low, high, power = np.transpose(rows)
    return SampleCurve(np.asarray(sizes), median, low, high, power, alpha, draws)


def _choose(rng: np.random.Generator, values: np.ndarray, m: int, draws: int) -> np.ndarray:
    """(draws, m), without replacement within a draw."""
    return np.stack([values[rng.permutation(len(values))[:m]] for _ in range(draws)])


def _welch_p_values(private: np.ndarray, public: np.ndarray) -> np.ndarray:
    """Row by row: (R, m), (R, m) -> (R,). Rows without any variance give 1, whatever their means."""
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of rows without variance, answered below
        found: Any = ttest_ind(public, private, axis=1, equal_var=False, alternative="greater")
    return np.where(_flat(private, public), 1.0, found.pvalue)


def twice_the_median(p_values: Any) -> float:
    """min(1, 2·median): a p-value again, for any dependence among those that are combined.

    Source: Rüschendorf 1982; Meinshausen, Meier, Bühlmann, JASA 2009.
    """
    return min(1.0, 2 * float(np.median(_p_values(p_values))))


def released_harmonic_mean(p_values: Any) -> float:
    """n / Σ 1/p, which the released analysis prints as the p-value of repeated draws. It is not a
    p-value.

    For comparison with published tables only: a true null falls below 0.05 more often than in 5% of
    cases.
    """
    return float(1 / np.mean(1 / _p_values(p_values)))


def _p_values(values: Any) -> np.ndarray:
    values = _scores(values, "p-values")
    if values.min() < 0 or values.max() > 1:
        raise InputError(
            f"p-values must lie in [0, 1], got {values.min():.4g} to {values.max():.4g}"
        )
    return np.maximum(values, np.finfo(np.float64).tiny)


def _scores(values: Any, what: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise InputError(f"{what} scores must be (m,) with m >= 1, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise InputError(
            f"{what} scores contain NaN or infinity in {int((~np.isfinite(values)).sum())} places"
        )
    return values


__all__ = [
    "MINIMUM_NULL",
    "SampleCurve",
    "WelchTest",
    "calibrate",
    "conformal_p_value",
    "holm",
    "p_value_curve",
    "permutation_test",
    "released_harmonic_mean",
    "twice_the_median",
    "two_sided",
    "welch_test",
]
