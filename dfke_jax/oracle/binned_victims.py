"""Victims that cut numbers into bins and encode categories before their model sees a row."""

from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.data.binning import Binning
from dfke_jax.oracle.victims import HostVictim


def binned_victim(estimator: Any, binning: Binning) -> HostVictim:
    """A model on features that its callers do not know: (B, D) -> probabilities (B, K).

    Args:
      estimator: a fitted scikit-learn classifier of ``binning(rows)``, with ``predict_proba``.
      binning: from rows to its features; kept from whoever asks.

    Raises:
      InputError: for an estimator that is none, or of another number of features.

    Source: Tramèr et al., USENIX Security 2016, section 5.2: Amazon's service trains a logistic
    model on quantile bins and one-hot categories, and says so in general terms alone.
    """
    name = type(estimator).__name__
    if not hasattr(estimator, "predict_proba") or not hasattr(estimator, "classes_"):
        raise InputError(f"{name} is no fitted classifier with probabilities")
    if estimator.n_features_in_ != binning.width:
        raise InputError(
            f"{name} was fitted to {estimator.n_features_in_} features, the binning makes "
            f"{binning.width}"
        )

    def answer(rows: np.ndarray) -> np.ndarray:
        return np.asarray(estimator.predict_proba(binning(rows)))

    shape = (binning.schema.width,)
    return HostVictim(
        answer, len(estimator.classes_), shape, "probabilities", f"binned {name}", repeatable=True
    )


__all__ = ["binned_victim"]
