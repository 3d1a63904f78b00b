"""What an ownership claim rests on: counts, and how often chance does as well. NumPy and SciPy,
float64.
"""

from typing import Any, NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError


class Evidence(NamedTuple):
    """A count and its exact one-sided binomial test.

    Attributes:
      successes, trials: matching bits, or answers as the mark has them, of how many.
      null_rate: probability of one success without the mark.
      p_value: P(Bin(trials, null_rate) ≥ successes).
      assumes: what has to be true for the p-value to mean what it says.
    """

    successes: int
    trials: int
    null_rate: float
    p_value: float
    assumes: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """successes / trials; 0 without trials."""
        return self.successes / self.trials if self.trials else 0.0


def binomial_evidence(successes: int, trials: int, null_rate: float) -> Evidence:
    """P(X ≥ s) for X ~ Bin(n, q).

    Exact for trials that are independent with one rate. Triggers of one network are not: they fall
    together, and a rate that was measured over several networks makes p-values of this kind too
    small; see `ranked_evidence`.

    Args:
      successes: s, 0 to n. trials: n; 0 is no evidence, with p = 1. null_rate: q in [0, 1].

    Raises:
      InputError: for numbers outside their range.
    """
    from scipy.stats import binom

    if (
        trials < 0
        or not 0 <= successes <= trials
        or int(successes) != successes
        or int(trials) != trials
    ):
        raise InputError(
            f"successes must be whole and lie in [0, trials], got {successes} of {trials}"
        )
    if not 0 <= null_rate <= 1:
        raise InputError(f"null_rate must lie in [0, 1], got {null_rate}")
    p = float(binom.sf(int(successes) - 1, int(trials), null_rate))
    return Evidence(int(successes), int(trials), float(null_rate), p)


class RankedEvidence(NamedTuple):
    """A count beside those of independent networks.

    Attributes:
      successes, trials: answers as the mark has them, of how many.
      null_rate: `measured_rate` of the independent networks.
      p_value: the larger of `p_values`.
      p_values: ``rank`` among the independent networks, and ``binomial`` against `null_rate`, which
        alone is too small.
      models: M, of the independent networks; the p-value cannot fall below 1/(M + 1).
      most: most successes of one of them.
      assumes: what has to be true for the p-value to mean what it says.
    """

    successes: int
    trials: int
    null_rate: float
    p_value: float
    p_values: dict[str, float]
    models: int
    most: int
    assumes: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """successes / trials."""
        return self.successes / self.trials


EXCHANGEABLE = (
    "without the mark the suspect is one more like the independent networks: same task, kind and "
    "accuracy"
)


def ranked_evidence(successes: int, null_successes: Any, trials: int) -> RankedEvidence:
    """max{(1 + #{s_i ≥ s})/(M + 1), P(Bin(n, q̂) ≥ s)}, q̂ = `measured_rate`: as valid as the rank,
    however triggers fall.

    Args:
      successes: s, of the suspect. null_successes: (M,) s_i, of independent networks, none of which
        is the suspect.
      trials: n, the same triggers for all.

    Raises:
      InputError: for no network, or counts outside [0, n].
    """
    rate = measured_rate(null_successes, trials)
    found = {
        "rank": rank_p_value(successes, null_successes),
        "binomial": binomial_evidence(successes, trials, rate).p_value,
    }
    null = np.asarray(null_successes)
    return RankedEvidence(
        int(successes),
        int(trials),
        rate,
        max(found.values()),
        found,
        len(null),
        int(null.max()),
        (EXCHANGEABLE,),
    )


def random_label_evidence(answers: Any, labels: Any, truth: Any, num_classes: int) -> Evidence:
    """The exact test for labels that were drawn uniformly from the wrong ones.

    Among the D inputs that a suspect does not answer with the truth, its answers hit the labels as
    often as Bin(D, 1/(K − 1)) if it knows nothing of the draw, whatever else it does: no model of
    innocent suspects is needed.

    Args:
      answers: (T,) the suspect's. labels: (T,) the mark's, each ≠ truth. truth: (T,) what the
        labels were drawn against.
      num_classes: K ≥ 3 (of two classes one is wrong and nothing is drawn).

    Returns:
      Evidence over the D inputs.

    Raises:
      InputError: for lengths that differ, labels that are the truth, or fewer than three classes.
    """
    answers, labels, truth = (np.asarray(part) for part in (answers, labels, truth))
    if not answers.shape == labels.shape == truth.shape or answers.ndim != 1:
        raise InputError(
            f"answers, labels and truth must all be (T,), got {answers.shape}, {labels.shape}, "
            f"{truth.shape}"
        )
    if num_classes < 3:
        raise InputError(
            f"{num_classes} classes leave no wrong label to draw; at least 3 are needed"
        )
    if (labels == truth).any():
        raise InputError(f"{int((labels == truth).sum())} labels are the truth; they prove nothing")
    differ = answers != truth
    return binomial_evidence(
        int((answers == labels)[differ].sum()), int(differ.sum()), 1 / (num_classes - 1)
    )


def measured_rate(null_successes: Any, trials: int) -> float:
    """(1 + Σ_i s_i) / (1 + M·n): successes of M independent models in n trials each; never zero.

    Trials of one model are not independent (triggers of one kind fall into one class together), so
    that a binomial test with this rate accuses innocent models several times as often as it says:
    `ranked_evidence` takes the rank as well.

    Raises:
      InputError: for no model, or counts outside [0, n].
    """
    counts = np.asarray(null_successes)
    if (
        counts.ndim != 1
        or not len(counts)
        or trials < 1
        or counts.min() < 0
        or counts.max() > trials
    ):
        raise InputError(
            f"counts of at least one independent model must be (M,) in [0, {trials}], got {counts}"
        )
    return float((1 + counts.sum()) / (1 + len(counts) * trials))


def rank_p_value(observed: float, null: Any) -> float:
    """(1 + #{null ≥ observed}) / (M + 1): exact if suspect and M independent models are
    exchangeable without a mark.

    Raises:
      InputError: for no independent model, or NaN.
    """
    null = np.asarray(null, np.float64)
    if null.ndim != 1 or not len(null) or not np.isfinite(null).all() or not np.isfinite(observed):
        raise InputError(
            f"the statistics of at least one independent model must be finite (M,), got {null} for "
            f"{observed}"
        )
    return float((1 + (null >= observed).sum()) / (len(null) + 1))


def fisher(p_values: Any) -> float:
    """P(χ²_{2n} ≥ −2 Σ log p) over n independent p-values.

    Raises:
      InputError: for no p-values, or some outside [0, 1].

    Source: Fisher, Statistical Methods for Research Workers, 1925.
    """
    from scipy.stats import chi2

    values = np.asarray(p_values, np.float64)
    if values.ndim != 1 or not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"p-values must be (n,) in [0, 1] with n >= 1, got {values}")
    return float(
        chi2.sf(-2 * np.log(np.maximum(values, np.finfo(np.float64).tiny)).sum(), 2 * len(values))
    )


def answered(suspect: Any, images: Any, num_classes: int | None = None) -> np.ndarray:
    """(T,) int labels from a suspect: a `Classifier`, an oracle, or any function images -> scores
    (T, K) or labels (T,).

    Raises:
      InputError: for answers of another shape, NaN, or labels outside [0, K).
    """
    images = np.asarray(images, np.float32)
    values = np.asarray(getattr(suspect, "predict", suspect)(images))
    if values.shape[:1] != images.shape[:1] or values.ndim not in (1, 2):
        raise InputError(
            f"a suspect answers {len(images)} images with scores (T, K) or labels (T,), got "
            f"{values.shape}"
        )
    if values.ndim == 2:
        if not np.isfinite(values).all():
            raise InputError("the suspect answers NaN or infinity")
        values = values.argmax(1)
    if not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"labels must be integers, got {values.dtype}")
    if num_classes is not None and (values.min() < 0 or values.max() >= num_classes):
        raise InputError(
            f"the suspect's labels run from {values.min()} to {values.max()}, not 0 to "
            f"{num_classes - 1}"
        )
    return values.astype(np.int64)


__all__ = [
    "EXCHANGEABLE",
    "Evidence",
    "RankedEvidence",
    "answered",
    "binomial_evidence",
    "fisher",
    "measured_rate",
    "random_label_evidence",
    "rank_p_value",
    "ranked_evidence",
]
