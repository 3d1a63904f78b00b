"""Models that no closed form gives: the least cross-entropy over as many answers as they have unknowns, in float64.

| model | answers | unknowns k |
|---|---|---|
| `one_versus_rest` | p_k = σ(z_k) / Σ_j σ(z_j), z = W'x + b | K (D + 1) |
| `hidden_layer` | softmax(V'h + c), h = tanh(W'x + b), h units | h (D + 1) + K (h + 1) |
| `kernel_regression` | softmax(Σ_r α_r exp(−γ ‖x − x_r‖²) + β), s representers x_r | s (D + K) + K |

The representers of a kernel model are rows that it was trained on: extraction gives them away. Of
unrounded answers `kernel_equations` solves such a model, from far fewer rows and without a search.

Minimised is Σ_i KL(y_i ‖ p̂_i), y the answers, by L-BFGS on the host with gradients from JAX, all in
float64; it is zero at the victim. Of networks whose answers are not rounded it is the square error of
log p. Of the last two it is not convex, and may end elsewhere.

Source: Tramèr, Zhang, Juels, Reiter, Ristenpart, "Stealing Machine Learning Models via Prediction
APIs", USENIX Security 2016, sections 4.1.2 and 4.1.3. Deviations: L-BFGS throughout, where the
paper descends the gradient of networks and kernels; no regularisation; models that are affine in
the row are searched on uncorrelated features; networks by variable projection, with more units than
the victim has.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from threadpoolctl import threadpool_limits

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.core.types import Array
from dfke_jax.data.schema import Schema
from dfke_jax.oracle.reveal import Reveal, check_answers

Parameters = dict[str, np.ndarray]
_FOUND = 1e-9
_DECAY = 1e-12
Logs = Callable[[dict[str, Array], Array], Array]


def one_versus_rest_logs(parameters: dict[str, Array], rows: Array) -> Array:
    """log p (B, K) of parameters ``weights`` (D, K) and ``bias`` (K,)."""
    return _normalised(jax.nn.log_sigmoid(rows @ parameters["weights"] + parameters["bias"][None]))


def hidden_layer_logs(parameters: dict[str, Array], rows: Array) -> Array:
    """log p (B, K) of ``weights`` (D, h), ``bias`` (h,), ``last_weights`` (h, K) and ``last_bias`` (K,)."""
    hidden = jnp.tanh(rows @ parameters["weights"] + parameters["bias"][None])
    return _normalised(hidden @ parameters["last_weights"] + parameters["last_bias"][None])


def kernel_logs(parameters: dict[str, Array], rows: Array) -> Array:
    """log p (B, K) of ``representers`` (s, D), ``alpha`` (s, K), ``beta`` (K,) and ``gamma``."""
    apart = (rows**2).sum(1)[:, None] + (parameters["representers"] ** 2).sum(1)[None]
    kernel = jnp.exp(-parameters["gamma"] * (apart - 2 * rows @ parameters["representers"].T))
    return _normalised(kernel @ parameters["alpha"] + parameters["beta"][None])


def _normalised(scores: Array) -> Array:
    return scores - jax.scipy.special.logsumexp(scores, axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True, eq=False)
class FittedModel:
    """A model that was found by its answers, or that answers.

    Attributes:
      parameters: arrays by name, float64, as of the function.
      logs: (parameters, rows (B, D)) -> log p (B, K).
      divergence: mean KL(y ‖ p̂) over the rows it was fitted to, in nats; None of a victim.
    """

    parameters: Parameters
    logs: Logs
    divergence: float | None = None

    def __call__(self, rows: Any) -> np.ndarray:
        """Probabilities (B, K) of rows (B, D), float64."""
        rows = np.asarray(rows, np.float64)
        with jax.enable_x64(True):
            parts = [rows[start : start + 4096] for start in range(0, len(rows), 4096)]
            parameters = {name: jnp.asarray(value) for name, value in self.parameters.items()}
            return np.concatenate(
                [np.exp(np.asarray(_answered(self.logs, parameters, part))) for part in parts]
            )

    def predict(self, rows: Any) -> np.ndarray:
        """Classes (B,)."""
        return self(rows).argmax(1)


def one_versus_rest(
    schema: Schema, *, rows: int | None = None, reveal: Reveal | None = None
) -> HostAttack:
    """K logistic models whose answers are divided by their sum.

    Args:
      schema: of the rows, which are drawn uniformly.
      rows: how many are asked; K (D + 1) by default, found by the first answer.
      reveal: what is answered: probabilities.

    Returns:
      A `HostAttack` for answers (B, K); it finds a `FittedModel`.

    Raises, at once or while it runs:
      InputError: for labels or other answers than probabilities, float32 answers that were not
        announced, or a model that is constant.
    """

    def start(rng: np.random.Generator, classes: int) -> Parameters:
        return {
            "weights": 1e-2 * rng.normal(size=(schema.width, classes)),
            "bias": np.zeros(classes),
        }

    return _attack(schema, rows, reveal, one_versus_rest_logs, start, (), 3000)


def hidden_layer(
    schema: Schema,
    hidden: int,
    *,
    rows: int | None = None,
    reveal: Reveal | None = None,
    iterations: int = 1000,
    starts: int = 1,
    spare: int | None = None,
) -> HostAttack:
    """A network with one hidden layer of tanh units.

    Of unrounded answers log p_k less its mean over the classes is known, and linear in the hidden
    layer: V and c follow from W and b by least squares, and only those two are searched (variable
    projection). The copy has more units than the victim, with which the search ends in poor minima
    far less often. Of rounded answers the cross-entropy is minimised over everything.

    Args:
      schema: of the rows, which are drawn uniformly.
      hidden: h.
      rows: how many are asked; 5 k by default.
      reveal: what is answered: probabilities.
      iterations: of L-BFGS at most.
      starts: of the search at most, of which the one of least divergence is kept; they ask nothing.
      spare: units that the copy has beyond h; h by default.

    Returns, Raises: as `one_versus_rest`.

    Source: Golub, Pereyra, "The Differentiation of Pseudo-Inverses and Nonlinear Least Squares
    Problems Whose Variables Separate", SIAM J. Numerical Analysis 1973 (variable projection).
    """
    spare = hidden if spare is None else spare
    if hidden < 1 or spare < 0:
        raise InputError(
            f"hidden must be at least 1 and spare at least 0, got {hidden} and {spare}"
        )
    units = hidden + spare

    def start(rng: np.random.Generator, classes: int) -> Parameters:
        return {
            "weights": rng.normal(size=(schema.width, units)) / np.sqrt(schema.width),
            "bias": np.zeros(units),
            "last_weights": rng.normal(size=(units, classes)) / np.sqrt(units),
            "last_bias": np.zeros(classes),
        }

    def needed(classes: int) -> int:
        return 5 * (hidden * (schema.width + 1) + classes * (hidden + 1))

    return _attack(
        schema,
        rows,
        reveal,
        hidden_layer_logs,
        start,
        (),
        iterations,
        needed=needed,
        starts=starts,
    )


def kernel_regression(
    schema: Schema,
    representers: int,
    gamma: float,
    *,
    rows: int | None = None,
    reveal: Reveal | None = None,
    iterations: int = 2000,
    starts: int = 1,
) -> HostAttack:
    """A kernel logistic regression, and with it the rows that it was trained on.

    Args:
      schema: of the rows, which are drawn uniformly.
      representers: s, or more than there are.
      gamma: of the kernel, as the service states it.
      rows: how many are asked; 5 k by default.
      reveal: what is answered: probabilities.
      iterations: of L-BFGS at most.
      starts: of the search at most, of which the one of least divergence is kept; they ask nothing.

    Returns:
      A `HostAttack` for answers (B, K); it finds a `FittedModel` whose parameter ``representers``
      (s, D) are the rows given away, in no order (`evaluation.matched_rows`).

    Raises: as `one_versus_rest`.
    """
    if representers < 1 or not gamma > 0:
        raise InputError(
            f"representers must be at least 1 and gamma positive, got {representers}, {gamma}"
        )

    def start(rng: np.random.Generator, classes: int) -> Parameters:
        return {
            "representers": schema.uniform(rng, representers),
            "alpha": 1e-1 * rng.normal(size=(representers, classes)),
            "beta": np.zeros(classes),
            "gamma": np.asarray(gamma, np.float64),
        }

    return _attack(
        schema, rows, reveal, kernel_logs, start, ("gamma",), iterations, factor=5, starts=starts
    )


def _attack(
    schema: Schema,
    count: int | None,
    reveal: Reveal | None,
    logs: Logs,
    start: Callable[[np.random.Generator, int], Parameters],
    fixed: tuple[str, ...],
    iterations: int,
    *,
    factor: int = 1,
    needed: Callable[[int], int] | None = None,
    starts: int = 1,
) -> HostAttack:
    reveal = reveal or Reveal()
    if reveal.kind != "probabilities":
        raise InputError(f"a cross-entropy is taken of all probabilities, not of {reveal.kind!r}")
    if (count is not None and count < 2) or starts < 1:
        raise InputError(f"rows must be at least 2 and starts at least 1, got {count} and {starts}")

    def solve(rng: np.random.Generator, ask: Ask) -> Solution:
        with ask.phase("equations"):
            rows = schema.uniform(rng, count or 2)
            answers = _checked(ask(rows), len(rows), reveal)
            first = start(rng, answers.shape[1])
            if count is None:
                unknowns = sum(np.size(of) for name, of in first.items() if name not in fixed)
                all_rows = needed(answers.shape[1]) if needed else factor * unknowns
                rows = np.concatenate([rows, schema.uniform(rng, all_rows - len(rows))])
                answers = np.concatenate([answers, _checked(ask(rows[2:]), all_rows - 2, reveal)])
        if (answers == answers[:1]).all():
            raise InputError(
                f"all {len(rows)} answers are equal: the model is constant in this box, or the endpoint does "
                "not look at rows"
            )
        best = _fitted(rows, answers, logs, first, fixed, iterations)
        for _ in range(starts - 1):
            if best.divergence is not None and best.divergence < _FOUND:
                break
            other = _fitted(rows, answers, logs, start(rng, answers.shape[1]), fixed, iterations)
            best = min(best, other, key=lambda model: model.divergence or 0.0)
        return Solution(best)

    return HostAttack(solve)


def _checked(answers: Any, rows: int, reveal: Reveal) -> np.ndarray:
    answers = np.asarray(answers)
    if answers.ndim != 2 or answers.dtype.kind != "f":
        raise InputError(
            f"probabilities (B, K) were expected, got shape {answers.shape} of {answers.dtype}"
        )
    check_answers(answers, rows, answers.shape[1], reveal)
    return answers.astype(np.float64)


def _fitted(
    rows: np.ndarray,
    answers: np.ndarray,
    logs: Logs,
    first: Parameters,
    fixed: tuple[str, ...],
    iterations: int,
) -> FittedModel:
    """The least Σ_i KL(y_i ‖ p̂_i) that L-BFGS finds from `first`."""
    if (
        "weights" in first
    ):  # affine in the row: the same search on uncorrelated features of one scale
        features, back = _whitened(rows)
        first = {**first, "weights": np.asarray(first["weights"])[: features.shape[1]]}
        if logs is hidden_layer_logs and (answers > 0).all():
            return back(_least_projected(features, answers, first, iterations))
        return back(_least(features, answers, logs, first, fixed, iterations))
    return _least(rows, answers, logs, first, fixed, iterations)


def _whitened(rows: np.ndarray) -> tuple[np.ndarray, Callable[[FittedModel], FittedModel]]:
    """Features (N, r) of mean zero and covariance one, r the rank of rows (N, D), and the way back to rows.

    Directions in which the rows do not vary, as of one-hot places, get no weight.
    """
    mean = rows.mean(0)
    sizes, right = np.linalg.svd((rows - mean), full_matrices=False)[1:]
    kept = sizes > 1e-9 * sizes[0]
    scale = right[kept].T / sizes[kept] * np.sqrt(len(rows))

    def back(model: FittedModel) -> FittedModel:
        weights = scale @ model.parameters["weights"]
        bias = model.parameters["bias"] - mean @ weights
        return dataclasses.replace(
            model, parameters={**model.parameters, "weights": weights, "bias": bias}
        )

    return (rows - mean) @ scale, back


def _least(
    rows: np.ndarray,
    answers: np.ndarray,
    logs: Logs,
    first: Parameters,
    fixed: tuple[str, ...],
    iterations: int,
) -> FittedModel:
    targets = answers / answers.sum(1, keepdims=True)
    entropy = float(
        np.where(targets > 0, targets * np.log(np.where(targets > 0, targets, 1)), 0).sum()
    )
    kept = {name: of for name, of in first.items() if name in fixed}
    moving = {name: of for name, of in first.items() if name not in fixed}
    ends = np.cumsum([of.size for of in moving.values()])[:-1]

    def unravelled(flat: np.ndarray) -> Parameters:
        parts = np.split(flat, ends)
        return {
            name: part.reshape(of.shape)
            for (name, of), part in zip(moving.items(), parts, strict=True)
        }

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _cross_entropy(logs, unravelled(flat), kept, rows, targets)
        gradient = np.concatenate([np.asarray(slope[name]).ravel() for name in moving])
        return float(value) + entropy, gradient

    with jax.enable_x64(True), threadpool_limits(1, user_api="blas"):
        rows, targets = jnp.asarray(rows), jnp.asarray(targets)  # type: ignore[assignment] # once on the device
        settings = {
            "maxiter": iterations,
            "maxfun": 2 * iterations,
            "maxcor": 50,
            "ftol": 0.0,
            "gtol": 1e-9,
        }
        start = np.concatenate([of.ravel() for of in moving.values()])
        found = scipy.optimize.minimize(
            loss, start, jac=True, method="L-BFGS-B", options=settings
        ).x
        value = loss(found)[0]
    return FittedModel({**unravelled(found), **kept}, logs, max(value, 0.0) / len(answers))


def _least_projected(
    rows: np.ndarray, answers: np.ndarray, first: Parameters, iterations: int
) -> FittedModel:
    """The least mean ‖z − V'h − c‖² over the hidden layer, V and c always the best ones; z = log p, centred."""
    shape = first["weights"].shape
    targets = np.log(answers)
    targets -= targets.mean(1, keepdims=True)

    def parts(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return flat[: -shape[1]].reshape(shape), flat[-shape[1] :]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, slopes = _projected(*parts(flat), features, wanted)[0]
        return float(value), np.concatenate([np.asarray(slope).ravel() for slope in slopes])

    with jax.enable_x64(True), threadpool_limits(1, user_api="blas"):
        features, wanted = jnp.asarray(rows), jnp.asarray(targets)
        settings = {
            "maxiter": iterations,
            "maxfun": 2 * iterations,
            "maxcor": 50,
            "ftol": 0.0,
            "gtol": 1e-12,
        }
        start = np.concatenate([first["weights"].ravel(), first["bias"]])
        found = scipy.optimize.minimize(
            loss, start, jac=True, method="L-BFGS-B", options=settings
        ).x
        weights, bias = parts(found)
        last = np.asarray(_projected(weights, bias, features, wanted)[1])
    parameters = {
        "weights": weights,
        "bias": bias,
        "last_weights": last[:-1],
        "last_bias": last[-1],
    }
    model = FittedModel(parameters, hidden_layer_logs)
    shown = answers / answers.sum(1, keepdims=True)
    apart = (shown * (np.log(shown) - np.log(np.maximum(model(rows), 1e-300)))).sum(1).mean()
    return dataclasses.replace(model, divergence=max(float(apart), 0.0))


@jax.jit
def _projected(
    weights: Array, bias: Array, rows: Array, targets: Array
) -> tuple[tuple[Array, tuple[Array, Array]], Array]:
    """((loss, its gradient in W and b), V and c (h + 1, K)): the derivative of the minimum is the partial one at it."""

    def value(hidden_layer: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden = jnp.tanh(rows @ hidden_layer[0] + hidden_layer[1][None])
        hidden = jnp.concatenate([hidden, jnp.ones((len(hidden), 1), hidden.dtype)], 1)
        gram = hidden.T @ hidden
        # units that are alike leave V undetermined; a trace of decay chooses the small one
        gram = gram + _DECAY * jnp.trace(gram) / len(gram) * jnp.eye(len(gram), dtype=gram.dtype)
        last = jax.scipy.linalg.solve(gram, hidden.T @ targets, assume_a="pos")
        last = jax.lax.stop_gradient(last)
        return ((hidden @ last - targets) ** 2).sum() / len(rows), last

    (loss, last), slopes = jax.value_and_grad(value, has_aux=True)((weights, bias))
    return (loss, slopes), last


def _value(moving: Any, kept: Any, rows: Array, targets: Array, logs: Logs) -> Array:
    return -(targets * logs({**moving, **kept}, rows)).sum()


@jax.jit(static_argnums=0)
def _answered(logs: Logs, parameters: Any, rows: Array) -> Array:
    return logs(parameters, rows)


@jax.jit(static_argnums=0)
def _cross_entropy(
    logs: Logs, moving: Any, kept: Any, rows: Array, targets: Array
) -> tuple[Array, Any]:
    return jax.value_and_grad(_value)(moving, kept, rows, targets, logs)


__all__ = [
    "FittedModel",
    "hidden_layer",
    "hidden_layer_logs",
    "kernel_logs",
    "kernel_regression",
    "one_versus_rest",
    "one_versus_rest_logs",
]
