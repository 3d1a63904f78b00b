"""The confidence regressor: from a sample's distances to how private it looks. NumPy, float64."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from dfke_jax.core.errors import InputError, UnknownNameError

Layout = Literal["per_image", "released"]
LAYOUTS = ("per_image", "released")


def features(distances: Any, layout: Layout = "per_image", *, ordered: bool = False) -> np.ndarray:
    """One row of features for each sample.

    Args:
      distances: (N, T, P): T targets or starts, P norms.
      layout: ``per_image``: row i holds the T·P distances of sample i. ``released``: what the
        released analysis computes, ``distances.T.reshape(N, T·P)``; a row then mixes T·P
        consecutive samples of one target and norm, so rows are neither independent nor one sample
        each. It is there to replicate published numbers; tests on it are invalid (a simulation
        finds most independent models accused).
      ordered: sort over the T axis first. The released code does it with MinGD on CIFAR-10; starts
        of a walk are exchangeable, so sorting loses nothing there either.

    Returns:
      (N, T·P) float64.

    Raises:
      InputError: another shape, no samples, NaN or infinity. UnknownNameError: another layout.
    """
    values = _distances(distances)
    if layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    if ordered:
        values = np.sort(values, axis=1)
    return (values.T if layout == "released" else values).reshape(len(values), -1)


def _distances(distances: Any, what: str = "distances") -> np.ndarray:
    values = np.asarray(distances, np.float64)
    if values.ndim != 3 or not values.size:
        raise InputError(
            f"{what} must be (N, T, P) with at least one sample, got shape {values.shape}"
        )
    if not np.isfinite(values).all():
        raise InputError(
            f"{what} contain NaN or infinity in {int((~np.isfinite(values)).any((1, 2)).sum())} "
            "samples"
        )
    return values


@dataclasses.dataclass(frozen=True)
class RegressorSettings:
    """How the regressor is trained. Widths, rate and steps are the released ones.

    Attributes:
      hidden: width of the hidden layer.
      steps: full-batch gradient steps, at most.
      learning_rate: of gradient descent.
      ridge: weight of ½‖W‖² of both layers (released: none).
      held_out: fraction of the samples that decides when to stop; 0 for no early stopping
        (released).
      ordered: see `features`.
      seed: of the weights and the held-out split.
    """

    hidden: int = 100
    steps: int = 1000
    learning_rate: float = 0.1
    ridge: float = 1e-3
    held_out: float = 0.2
    ordered: bool = True
    seed: int = 0

    def __post_init__(self):
        if self.hidden < 1 or self.steps < 1:
            raise InputError(
                f"hidden and steps must be at least 1, got {self.hidden} and {self.steps}"
            )
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be positive, got {self.learning_rate}")
        if not self.ridge >= 0:
            raise InputError(f"ridge must not be negative, got {self.ridge}")
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out must lie in [0, 1), got {self.held_out}")


RELEASED = RegressorSettings(ridge=0.0, held_out=0.0, ordered=False)
"""As the released code trains it."""


@dataclasses.dataclass(frozen=True)
class ConfidenceRegressor:
    """g(d) = tanh(w₂·ReLU(W₁·z + b₁) + b₂) with z = (d − mean)/std: −1 for private, +1 for public.

    Attributes:
      mean, std: (P,) of the victim's private samples, over samples and targets; used for suspects
        as they are.
      weights: (W₁ (T·P, hidden), b₁ (hidden,), w₂ (hidden,), b₂ ()).
      settings: that it was trained with.
      steps: gradient steps behind the weights that were kept.
      samples: N private (and as many public) samples that it has seen.
    """

    mean: np.ndarray
    std: np.ndarray
    weights: tuple[np.ndarray, ...]
    settings: RegressorSettings
    steps: int
    samples: int

    def __call__(self, distances: Any) -> np.ndarray:
        """Scores of samples (N, T, P) -> (N,), in [−1, 1]; larger looks more public."""
        values = _distances(distances)
        expected = len(self.weights[0])
        if values.shape[2] != len(self.mean) or values.shape[1] * values.shape[2] != expected:
            raise InputError(
                f"the regressor was trained on {expected // len(self.mean)} targets in "
                f"{len(self.mean)} norms, got distances of shape {values.shape}"
            )
        rows = features((values - self.mean) / self.std, ordered=self.settings.ordered)
        return _forward(self.weights, rows)[0]


def fit_regressor(
    private: Any, public: Any, settings: RegressorSettings | None = None
) -> ConfidenceRegressor:
    """Trains on the victim's distances of private and public samples; minimises mean(b·g) with b =
    1 private, −1 public.

    Args:
      private, public: (N, T, P) distances under the victim, of equally many samples; none of them
        may be tested later.
      settings: see `RegressorSettings`.

    Returns:
      A `ConfidenceRegressor`; with early stopping, the weights of the step whose held-out loss was
      lowest.

    Raises:
      InputError: different shapes, fewer than two samples, NaN.

    Source: Maini, Yaghini, Papernot, ICLR 2021, section 4.2 (confidence regressor), as released.
    Deviations: a row is one image (see `held_out_scores`); a small ridge and early stopping on
    held-out images, which `RELEASED` switches off.
    """
    settings = settings or RegressorSettings()
    private, public = (
        _distances(private, "private distances"),
        _distances(public, "public distances"),
    )
    if private.shape != public.shape:
        raise InputError(
            f"private and public distances must have one shape, got {private.shape} and "
            f"{public.shape}"
        )
    count = len(private)
    held = round(settings.held_out * count)
    if count - held < 2:
        raise InputError(
            f"{count} private samples leave {count - held} to train on; at least 2 are needed"
        )
    mean = private.mean((0, 1))
    std = private.std((0, 1))
    std = np.where(std > 0, std, 1.0)
    rng = np.random.default_rng(settings.seed)
    sides = [
        features((part - mean) / std, ordered=settings.ordered)[rng.permutation(count)]
        for part in (private, public)
    ]
    rows = np.concatenate([side[held:] for side in sides])
    signs = np.repeat([1.0, -1.0], count - held)
    held_rows = np.concatenate([side[:held] for side in sides])
    held_signs = np.repeat([1.0, -1.0], held)

    inputs = rows.shape[1]
    bound, bound2 = inputs**-0.5, settings.hidden**-0.5
    weights = (
        rng.uniform(-bound, bound, (inputs, settings.hidden)),
        rng.uniform(-bound, bound, settings.hidden),
        rng.uniform(-bound2, bound2, settings.hidden),
        rng.uniform(-bound2, bound2, ()),
    )
    best, best_loss, best_step = weights, np.inf, 0
    for step in range(settings.steps + 1):
        if held:
            loss = float(np.mean(held_signs * _forward(weights, held_rows)[0]))
            if loss < best_loss:
                best, best_loss, best_step = weights, loss, step
        if step < settings.steps:
            gradient = _gradient(weights, rows, signs, settings.ridge)
            weights = tuple(
                w - settings.learning_rate * g for w, g in zip(weights, gradient, strict=True)
            )
    if not held:
        best, best_step = weights, settings.steps
    return ConfidenceRegressor(mean, std, best, settings, best_step, count)


def _forward(weights: tuple, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) and hidden activations (N, hidden)."""
    w1, b1, w2, b2 = weights
    hidden = np.maximum(rows @ w1 + b1, 0)
    return np.tanh(hidden @ w2 + b2), hidden


def _gradient(weights: tuple, rows: np.ndarray, signs: np.ndarray, ridge: float) -> tuple:
    w1, _, w2, _ = weights
    scores, hidden = _forward(weights, rows)
    back = signs * (1 - scores**2) / len(rows)
    back_hidden = back[:, None] * w2 * (hidden > 0)
    return (
        rows.T @ back_hidden + ridge * w1,
        back_hidden.sum(0),
        hidden.T @ back + ridge * w2,
        back.sum(),
    )


def held_out_scores(
    victim: tuple[Any, Any],
    suspect: tuple[Any, Any],
    train: int,
    settings: RegressorSettings | None = None,
    *,
    layout: Layout = "per_image",
) -> tuple[np.ndarray, np.ndarray]:
    """Trains the regressor on some of the victim's samples and scores the suspect on the others.

    Args:
      victim, suspect: (private, public) distances (N, T, P) under each model, of the same samples
        in the same order.
      train: the first `train` private and public samples train, the rest are scored: disjoint by
        image.
      settings: see `RegressorSettings`.
      layout: ``per_image``. ``released`` replicates the released analysis: rows are formed from all
        N samples by ``distances.T.reshape(N, T·P)`` and split afterwards, so every row mixes T·P
        images and the same images stand on both sides of the split. p-values from its scores are
        invalid.

    Returns:
      Scores (N − train,) of private and of public samples (rows, with ``released``).

    Raises:
      InputError: shapes that differ, or a `train` that leaves nothing to train on or to score.
    """
    return all_held_out_scores(victim, [suspect], train, settings, layout=layout)[0]


def all_held_out_scores(
    victim: tuple[Any, Any],
    suspects: Sequence[tuple[Any, Any]],
    train: int,
    settings: RegressorSettings | None = None,
    *,
    layout: Layout = "per_image",
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`held_out_scores` of several suspects by one regressor, which knows the victim alone and is
    trained once.

    Args, Raises: as for `held_out_scores`; suspects: one pair of (private, public) distances each.

    Returns:
      One pair of scores (N − train,) per suspect.
    """
    parts = [_distances(part) for pair in (victim, *suspects) for part in pair]
    if len({part.shape for part in parts}) != 1:
        raise InputError(
            f"all sets of distances must have one shape, got {[part.shape for part in parts]}"
        )
    if not 2 <= train <= len(parts[0]) - 2:
        raise InputError(
            f"train must lie in [2, {len(parts[0]) - 2}] for {len(parts[0])} samples, got {train}"
        )
    if layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    settings = settings or RegressorSettings()
    if layout == "released":
        mean, std = parts[0].mean((0, 1)), parts[0].std((0, 1))
        parts = [
            features((part - mean) / np.where(std > 0, std, 1.0), "released")[:, :, None]
            for part in parts
        ]
        settings = dataclasses.replace(settings, ordered=False)
    regressor = fit_regressor(parts[0][:train], parts[1][:train], settings)
    scored = [regressor(part[train:]) for part in parts[2:]]
    return list(zip(scored[::2], scored[1::2], strict=True))


def saturation(scores: Any, edge: float = 0.999) -> float:
    """Fraction of scores beyond ±`edge`: where it is large, scores are two-valued and a t-test says
    little.
    """
    return float(np.mean(np.abs(np.asarray(scores)) > edge))


__all__ = [
    "LAYOUTS",
    "RELEASED",
    "ConfidenceRegressor",
    "Layout",
    "RegressorSettings",
    "all_held_out_scores",
    "features",
    "fit_regressor",
    "held_out_scores",
    "saturation",
]
