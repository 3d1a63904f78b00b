"""The density of an encoder's representations: a Gaussian mixture in whitened principal components.
NumPy, float64.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import answers_on_host
from dfke_jax.dataset_inference.case import answered, check_looks
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.contrastive import representation

Covariance = Literal["full", "tied", "diag", "spherical"]
COVARIANCES = ("full", "tied", "diag", "spherical")
Alternative = Literal["likelier", "either"]
ALTERNATIVES = ("likelier", "either")
_NO_DIRECTION = 1e-4
"""Share of the largest deviation below which a principal direction holds rounding and nothing else.
"""


@dataclasses.dataclass(frozen=True)
class DensitySettings:
    """How the density is fitted and a verdict on an encoder is reached.

    Attributes:
      components: Gaussians of the mixture, at most as many as fitting rows. The paper takes 10 for
        CIFAR-10 and SVHN and 50 for ImageNet.
      covariance: of each Gaussian: ``full``, one for all (``tied``), ``diag`` (the released code)
        or ``spherical``.
      dimensions: principal components that are kept, at most; None keeps all that carry anything.
      normalise: representations are scaled to length 1 before anything else, as in the released
        code.
      regularisation: added to every variance, in units of the whitened components, whose variance
        is 1.
      restarts: of the fit from other k-means starts; the likeliest is kept.
      iterations: most steps of expectation and maximisation.
      alternative: what speaks for theft: private rows ``likelier`` than public ones (the paper), or
        ``either``, a difference in any direction. Contrastive training can also drive apart what it
        is trained on. Fix it before looking.
      fit: share of the private rows that fit the density; they are never tested.
      alpha: p-values below it accuse.
      looks: verdicts that will be looked at in all, fixed beforehand; each accuses below `level` =
        alpha / looks (see `InferenceSettings.looks`).
      minimum: fewest rows to fit with, and of each kind to test with.
      permutations: of the permutation test.
      seed: of the split, the fit and the permutations. Fix it before looking: a choice among splits
        is a choice among p-values.
    """

    components: int = 10
    covariance: Covariance = "diag"
    dimensions: int | None = 32
    normalise: bool = True
    regularisation: float = 1e-3
    restarts: int = 1
    iterations: int = 200
    alternative: Alternative = "likelier"
    fit: float = 0.5
    alpha: float = 0.05
    looks: int = 1
    minimum: int = 10
    permutations: int = 9999
    seed: int = 0

    def __post_init__(self):
        if self.covariance not in COVARIANCES:
            raise UnknownNameError("covariance", self.covariance, COVARIANCES)
        if self.alternative not in ALTERNATIVES:
            raise UnknownNameError("alternative", self.alternative, ALTERNATIVES)
        for name in ("components", "restarts", "iterations"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dimensions is not None and self.dimensions < 1:
            raise InputError(f"dimensions must be at least 1 or None, got {self.dimensions}")
        if not self.regularisation > 0:
            raise InputError(f"regularisation must be positive, got {self.regularisation}")
        for name in ("alpha", "fit"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} must lie in (0, 1), got {getattr(self, name)}")
        check_looks(self.looks)
        if self.minimum < 2:
            raise InputError(f"minimum must be at least 2, got {self.minimum}")

    @property
    def level(self) -> float:
        """alpha / looks."""
        return self.alpha / self.looks


@dataclasses.dataclass(frozen=True, eq=False)
class Density:
    """A fitted density; calling it gives the log-likelihood of representations.

    Attributes:
      mean: (D,) of the fitting rows.
      axes: (D, d), from centred representations to whitened principal components.
      mixture: scikit-learn's ``GaussianMixture`` over those.
      normalise: as in the settings.
      rows: how many fitted it.
    """

    mean: np.ndarray
    axes: np.ndarray
    mixture: Any
    normalise: bool
    rows: int

    @property
    def dimensions(self) -> int:
        """d: components that are kept."""
        return self.axes.shape[1]

    @property
    def converged(self) -> bool:
        """Whether the fit ended before its last step."""
        return bool(self.mixture.converged_)

    def __call__(self, representations: Any) -> np.ndarray:
        """(N, D) -> (N,): log p(w)/d in nats a dimension, w the whitened components of each row.

        Densities of w and of the components before whitening differ by a constant, which no
        comparison of rows sees.

        Raises:
          InputError: another width than the fitting rows', or NaN.
        """
        rows = _checked(representations, "representations")
        if rows.shape[1] != len(self.mean):
            raise InputError(
                f"the density was fitted on {len(self.mean)} dimensions, got {rows.shape[1]}"
            )
        return (
            self.mixture.score_samples((_scaled(rows, self.normalise) - self.mean) @ self.axes)
            / self.dimensions
        )


def fit_density(representations: Any, settings: DensitySettings | None = None) -> Density:
    """A Gaussian mixture over the whitened principal components of representations.

    Mean, directions and scales come from these rows alone, so that rows which are tested later have
    no part in them.

    Args:
      representations: (N, D), those that will not be tested.
      settings: see `DensitySettings`.

    Raises:
      InputError: NaN, fewer rows than Gaussians or than `minimum`, or representations that are all
        the same.

    Source: Dziedzic et al., NeurIPS 2022. Deviation: the paper fits the mixture to the
    representations themselves; with fewer rows than dimensions that has nothing to hold on to, and
    here principal components are kept.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    settings = settings or DensitySettings()
    rows = _checked(representations, "fitting representations")
    needed = max(settings.minimum, settings.components)
    if len(rows) < needed:
        raise InputError(
            f"{len(rows)} rows cannot fit a mixture of {settings.components} Gaussians: at least "
            f"{needed} are needed, or fewer components"
        )
    rows = _scaled(rows, settings.normalise)
    mean = rows.mean(0)
    _, deviations, directions = np.linalg.svd(rows - mean, full_matrices=False)
    deviations = deviations / np.sqrt(len(rows))
    if deviations[0] <= 1e-6 * np.sqrt(np.mean(np.square(rows))):
        raise InputError(
            f"the representations of all {len(rows)} rows are the same: the encoder has collapsed "
            "and has no density"
        )
    kept = min(
        int((deviations > _NO_DIRECTION * deviations[0]).sum()),
        settings.dimensions or len(deviations),
    )
    axes = directions[:kept].T / deviations[:kept]
    mixture = GaussianMixture(
        settings.components,
        covariance_type=settings.covariance,
        reg_covar=settings.regularisation,
        n_init=settings.restarts,
        max_iter=settings.iterations,
        random_state=settings.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # said by `Density.converged`, and fewer places than Gaussians
        mixture.fit((rows - mean) @ axes)
    return Density(mean, axes, mixture, settings.normalise, len(rows))


def representations(
    encoder: Callable, images: np.ndarray, *, host: bool | None = None
) -> np.ndarray:
    """(N, H, W, C) -> (N, D) float64: what an encoder makes of images.

    Args:
      encoder: a `Classifier`, whose `features` are taken; or any traceable function of images; or
        with `host` any function of NumPy rows.
      images: in the box.
      host: the encoder answers on the host.

    Raises:
      InputError: answers that are not (N, D), or NaN.
    """
    if isinstance(encoder, Classifier):
        encoder = representation(encoder)
    found = _checked(answered(encoder, images, answers_on_host(encoder, host)), "representations")
    if len(found) != len(images):
        raise InputError(f"the encoder gave {len(found)} representations for {len(images)} images")
    return found


def _checked(rows: Any, what: str) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or not rows.size:
        raise InputError(f"{what} must be (N, D), a vector for each image, got shape {rows.shape}")
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows)).any(1).sum())
        raise InputError(f"{what} contain NaN or infinity in {bad} of {len(rows)} rows")
    return rows


def _scaled(rows: np.ndarray, normalise: bool) -> np.ndarray:
    if not normalise:
        return rows
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


__all__ = [
    "ALTERNATIVES",
    "COVARIANCES",
    "Alternative",
    "Covariance",
    "Density",
    "DensitySettings",
    "fit_density",
    "representations",
]
