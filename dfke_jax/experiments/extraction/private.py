"""Binary logistic models with differential privacy: noise on the parameters, and noise on the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from optax.contrib import differentially_private_aggregate
from scipy.stats import norm

from dfke_jax.core.errors import InputError
from dfke_jax.extraction import AffineModel


def _unit_rows(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Rows with a constant feature, divided by a bound on their length that does not depend on the data.

    Rows of the box [−1, 1]^D have a length of at most √D; one more for the constant.
    """
    bound = float(np.sqrt(rows.shape[1] + 1))
    return np.concatenate([rows, np.ones((len(rows), 1))], 1) / bound, bound


def private_parameters(
    rows: np.ndarray, targets: np.ndarray, epsilon: float, *, regularisation: float, rng: np.random.Generator
) -> AffineModel:
    """Output perturbation: the regularised minimiser plus noise b of density ∝ exp(−nλε‖b‖/2). ε-differentially private.

    Minimised is mean log(1 + exp(−y w'x)) + λ‖w‖²/2 over ‖x‖ ≤ 1, whose minimiser one row moves by at most
    2/(nλ).

    Args:
      rows: (n, D) in [−1, 1]. targets: (n,) of 0 and 1. epsilon: ε. regularisation: λ.

    Raises:
      InputError: for ε or λ that are not positive.

    Source: Chaudhuri, Monteleoni, Sarwate, "Differentially Private Empirical Risk Minimization", JMLR
    2011, algorithm 1.
    """
    if not min(epsilon, regularisation) > 0:
        raise InputError(f"epsilon and regularisation must be positive, got {epsilon}, {regularisation}")
    unit, bound = _unit_rows(rows)
    signs = np.where(targets > 0, 1.0, -1.0)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (unit @ w)
        slope = -(unit.T @ (signs / (1 + np.exp(margins)))) / len(unit)
        return np.logaddexp(0, -margins).mean() + regularisation / 2 * w @ w, slope + regularisation * w

    start = np.zeros(unit.shape[1])
    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "gtol": 1e-9}).x
    direction = rng.normal(size=len(found))
    size = rng.gamma(len(found), 2 / (len(unit) * regularisation * epsilon))
    w = (found + size * direction / np.linalg.norm(direction)) / bound
    return AffineModel(w[:-1, None], w[-1:], "logistic")


def gaussian_delta(noise: float, steps: int, epsilon: float) -> float:
    """δ(ε) of `steps` Gaussian mechanisms of noise σ times their sensitivity: Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ), μ = √steps/σ.

    Source: Dong, Roth, Su, "Gaussian Differential Privacy", JRSS-B 2022, corollaries 2.13 and 3.3.
    """
    mu = np.sqrt(steps) / noise
    return float(norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu)))


def noise_for(epsilon: float, delta: float, steps: int) -> float:
    """The least σ for (ε, δ) over so many steps."""
    if not (epsilon > 0 and 0 < delta < 1):
        raise InputError(f"epsilon must be positive and delta in (0, 1), got {epsilon}, {delta}")
    log = scipy.optimize.brentq(lambda log: gaussian_delta(np.exp(log), steps, epsilon) - delta, -3, 15)
    return float(np.exp(np.asarray(log)))


def private_training(
    rows: np.ndarray,
    targets: np.ndarray,
    epsilon: float,
    *,
    delta: float = 1e-5,
    steps: int = 100,
    rate: float = 5.0,
    clip: float = 1.0,
    seed: int = 0,
) -> AffineModel:
    """Gradient descent on all rows, each row's gradient clipped, their sum with Gaussian noise: (ε, δ) for adding or removing a row.

    Args:
      rows, targets, epsilon: as of `private_parameters`. delta: δ. steps: of descent. rate: of steps.
      clip: C, the largest length of a row's gradient; noise has the deviation σC (`noise_for`).

    Source: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1, without
    subsampling, so that the exact account of Gaussian mechanisms holds.
    """
    unit, bound = _unit_rows(rows)
    unit = unit * bound / np.sqrt(rows.shape[1])  # of length about one or more: clipping sees to the rest
    x, signs = jnp.asarray(unit, jnp.float32), jnp.asarray(np.where(targets > 0, 1.0, -1.0), jnp.float32)
    private = differentially_private_aggregate(clip, noise_for(epsilon, delta, steps), seed)
    each = jax.vmap(jax.grad(lambda w, x, sign: jnp.logaddexp(0.0, -sign * (x @ w))), (None, 0, 0))

    @jax.jit
    def trained(w: jax.Array) -> jax.Array:
        def step(carry: tuple, _: None) -> tuple:
            w, state = carry
            update, state = private.update(each(w, x, signs), state)
            return (w - rate * jnp.asarray(update), state), None

        return jax.lax.scan(step, (w, private.init(w)), None, steps)[0][0]

    w = np.asarray(trained(jnp.zeros(x.shape[1])), np.float64) / np.sqrt(rows.shape[1])
    return AffineModel(w[:-1, None], w[-1:], "logistic")


__all__ = ["gaussian_delta", "noise_for", "private_parameters", "private_training"]
