"""What an ownership claim rests on: counts, and how often chance does as well. NumPy and SciPy, float64."""

from typing import Any, NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError


class Evidence(NamedTuple):
    """A count and its exact one-sided binomial test.

    Attributes:
      successes, trials: matching bits, or answers as the mark has them, of how many.
      null_rate: probability of one success without the mark.
      p_value: P(Bin(trials, null_rate) ≥ successes).
    """

    successes: int
    trials: int
    null_rate: float
    p_value: float

    @property
    def rate(self) -> float:
        """successes / trials; 0 without trials."""
        return self.successes / self.trials if self.trials else 0.0


def binomial_evidence(successes: int, trials: int, null_rate: float) -> Evidence:
    """P(X ≥ s) for X ~ Bin(n, q), as the regularised incomplete beta function I_q(s, n − s + 1).

    Args:
      successes: s, 0 to n. trials: n; 0 is no evidence, with p = 1. null_rate: q in [0, 1].

    Raises:
      InputError: for numbers outside their range.
    """
    from scipy.special import betainc

    if trials < 0 or not 0 <= successes <= trials or int(successes) != successes or int(trials) != trials:
        raise InputError(f"successes must be whole and lie in [0, trials], got {successes} of {trials}")
    if not 0 <= null_rate <= 1:
        raise InputError(f"null_rate must lie in [0, 1], got {null_rate}")
    p = 1.0 if successes == 0 else float(betainc(successes, trials - successes + 1, null_rate))
    return Evidence(int(successes), int(trials), float(null_rate), p)


def random_label_evidence(answers: Any, labels: Any, truth: Any, num_classes: int) -> Evidence:
    """The exact test for labels that were drawn uniformly from the wrong ones.

    Among the D inputs that a suspect does not answer with the truth, its answers hit the labels as often as Bin(D, 1/(K − 1))
    if it knows nothing of the draw, whatever else it does: no model of innocent suspects is needed.

    Args:
      answers: (T,) the suspect's. labels: (T,) the mark's, each ≠ truth. truth: (T,) what the labels were drawn against.
      num_classes: K ≥ 3 (of two classes one is wrong and nothing is drawn).

    Returns:
      Evidence over the D inputs.

    Raises:
      InputError: for lengths that differ, labels that are the truth, or fewer than three classes.
    """
    answers, labels, truth = (np.asarray(part) for part in (answers, labels, truth))
    if not answers.shape == labels.shape == truth.shape or answers.ndim != 1:
        raise InputError(
            f"answers, labels and truth must all be (T,), got {answers.shape}, {labels.shape}, {truth.shape}"
        )
    if num_classes < 3:
        raise InputError(f"{num_classes} classes leave no wrong label to draw; at least 3 are needed")
    if (labels == truth).any():
        raise InputError(f"{int((labels == truth).sum())} labels are the truth; they prove nothing")
    differ = answers != truth
    return binomial_evidence(int((answers == labels)[differ].sum()), int(differ.sum()), 1 / (num_classes - 1))


def measured_rate(null_successes: Any, trials: int) -> float:
    """(1 + Σ_i s_i) / (1 + M·n): successes of M independent models in n trials each; never zero.

    Trials of one model are not independent (triggers of one kind fall into one class together), so a binomial test with
    this rate is as good as the false alarms that are measured beside it.

    Raises:
      InputError: for no model, or counts outside [0, n].
    """
    counts = np.asarray(null_successes)
    if counts.ndim != 1 or not len(counts) or trials < 1 or counts.min() < 0 or counts.max() > trials:
        raise InputError(f"counts of at least one independent model must be (M,) in [0, {trials}], got {counts}")
    return float((1 + counts.sum()) / (1 + len(counts) * trials))


def rank_p_value(observed: float, null: Any) -> float:
    """(1 + #{null ≥ observed}) / (M + 1): exact if suspect and M independent models are exchangeable without a mark.

    Raises:
      InputError: for no independent model, or NaN.
    """
    null = np.asarray(null, np.float64)
    if null.ndim != 1 or not len(null) or not np.isfinite(null).all() or not np.isfinite(observed):
        raise InputError(
            f"the statistics of at least one independent model must be finite (M,), got {null} for {observed}"
        )
    return float((1 + (null >= observed).sum()) / (len(null) + 1))


def fisher(p_values: Any) -> float:
    """P(χ²_{2n} ≥ −2 Σ log p) over n independent p-values.

    Raises:
      InputError: for no p-values, or some outside [0, 1].

    Source: Fisher, Statistical Methods for Research Workers, 1925.
    """
    from scipy.special import gammaincc

    values = np.asarray(p_values, np.float64)
    if values.ndim != 1 or not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"p-values must be (n,) in [0, 1] with n >= 1, got {values}")
    return float(gammaincc(len(values), -np.log(np.maximum(values, np.finfo(np.float64).tiny)).sum()))


def answered(suspect: Any, images: Any, num_classes: int | None = None) -> np.ndarray:
    """(T,) int labels from a suspect: a `Classifier`, an oracle, or any function images -> scores (T, K) or labels (T,).

    Raises:
      InputError: for answers of another shape, NaN, or labels outside [0, K).
    """
    images = np.asarray(images, np.float32)
    values = np.asarray(getattr(suspect, "predict", suspect)(images))
    if values.shape[:1] != images.shape[:1] or values.ndim not in (1, 2):
        raise InputError(
            f"a suspect answers {len(images)} images with scores (T, K) or labels (T,), got {values.shape}"
        )
    if values.ndim == 2:
        if not np.isfinite(values).all():
            raise InputError("the suspect answers NaN or infinity")
        values = values.argmax(1)
    if not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"labels must be integers, got {values.dtype}")
    if num_classes is not None and (values.min() < 0 or values.max() >= num_classes):
        raise InputError(f"the suspect's labels run from {values.min()} to {values.max()}, not 0 to {num_classes - 1}")
    return values.astype(np.int64)


__all__ = [
    "Evidence",
    "answered",
    "binomial_evidence",
    "fisher",
    "measured_rate",
    "random_label_evidence",
    "rank_p_value",
]
