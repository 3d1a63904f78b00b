"""Model inversion: for every class a row of which the model is sure, by ascent of log p_k; on an extracted model, or by asking.

    x ← clip(x + η g/‖g‖, box),   g = ∇ log p_k(x),   from the middle of the box, until p_k ≥ `confidence`.

On a model that was extracted g is exact and costs nothing. A victim that only answers is asked D + 1
rows a step and class, for forward differences.

Source: Fredrikson, Jha, Ristenpart, "Model Inversion Attacks that Exploit Confidence Information and
Basic Countermeasures", CCS 2015, algorithm 1; Tramèr et al., USENIX Security 2016, section 4.1.4
(inversion of an extracted model). Deviations: the ascent is of log p_k where theirs descends
1 − p_k, which has the same direction; steps have one length; no denoising in between.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import BudgetError, InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.core.types import Array
from dfke_jax.data.schema import Schema
from dfke_jax.extraction.cross_entropy import FittedModel
from dfke_jax.extraction.equations import AffineModel
from dfke_jax.oracle.reveal import Reveal, check_answers


@dataclasses.dataclass(frozen=True)
class InversionSettings:
    """How rows are made.

    Attributes:
      steps: at most. rate: η, the length of a step. confidence: at which a class ends.
      difference: of forward differences, where the victim is asked.

    Raises:
      InputError: for numbers outside their range.
    """

    steps: int = 100
    rate: float = 0.2
    confidence: float = 0.99
    difference: float = 1e-4

    def __post_init__(self):
        if (
            self.steps < 1
            or not 0 < self.confidence <= 1
            or not min(self.rate, self.difference) > 0
        ):
            raise InputError(
                "steps must be at least 1, confidence in (0, 1], rate and difference positive, got "
                f"{self.steps}, {self.confidence}, {self.rate}, {self.difference}"
            )


def log_probabilities(model: AffineModel | FittedModel) -> Callable[[Array], Array]:
    """Rows (B, D) -> log p (B, K) of an extracted model, in JAX.

    Raises:
      InputError: for a linear regression, which has no probabilities.
    """
    if isinstance(model, FittedModel):
        return lambda rows: model.logs(
            {k: jnp.asarray(v) for k, v in model.parameters.items()}, rows
        )
    if model.link == "identity":
        raise InputError("a linear regression has no classes to invert")
    weights, bias = jnp.asarray(model.weights), jnp.asarray(model.bias)
    if model.link == "logistic":  # class 0 has no weights
        weights, bias = jnp.pad(weights, ((0, 0), (1, 0))), jnp.pad(bias, (1, 0))
    return lambda rows: jax.nn.log_softmax(rows @ weights + bias[None])


def inverted(
    logs: Callable[[Array], Array],
    schema: Schema,
    classes: Sequence[int],
    settings: InversionSettings | None = None,
) -> np.ndarray:
    """A row for every class, of a model that can be differentiated.

    Args:
      logs: rows (B, D) -> log p (B, K), in JAX; see `log_probabilities`.
      schema: of the rows; every place is taken for a number.
      classes: K' of them. settings: see there.

    Returns:
      (K', D), float64.
    """
    settings = settings or InversionSettings()
    low, high = schema.box
    own = jnp.asarray(np.asarray(classes, np.int32))

    def chosen(rows: Array) -> Array:
        return jnp.take_along_axis(logs(rows), own[:, None], 1)[:, 0]

    @jax.jit
    def all_steps(rows: Array, low: Array, high: Array) -> Array:
        def step(_: int, rows: Array) -> Array:
            value, slope = chosen(rows), jax.grad(lambda rows: chosen(rows).sum())(rows)
            moved = jnp.clip(rows + settings.rate * _unit(slope, jnp), low[None], high[None])
            return jnp.where((value >= jnp.log(settings.confidence))[:, None], rows, moved)

        return jax.lax.fori_loop(0, settings.steps, step, rows)

    with jax.enable_x64(True):
        start = jnp.asarray(np.repeat(((low + high) / 2)[None], len(own), 0))
        return np.asarray(all_steps(start, jnp.asarray(low), jnp.asarray(high)))


def queried_inversion(
    schema: Schema, classes: Sequence[int], settings: InversionSettings | None = None
) -> HostAttack:
    """The same rows from a victim that only answers.

    Args:
      schema, classes, settings: as of `inverted`.

    Returns:
      A `HostAttack` for probabilities (B, K), unrounded; it finds rows (K', D). Rows asked: D + 1 a
      step and class that is not yet sure. The ledger counts ``inversion``.

    Raises, while it runs:
      InputError: for answers that are no probabilities.
    """
    settings = settings or InversionSettings()
    low, high = schema.box

    def solve(rng: np.random.Generator, ask: Ask) -> Solution:
        own = np.asarray(classes, int)
        rows = np.repeat(((low + high) / 2)[None], len(own), 0)
        open_ = np.arange(len(own))
        # inwards from the upper half, so that no row leaves the box
        width = len(low)
        for _ in range(settings.steps):
            here = rows[open_]
            signs = np.where(here > (low + high) / 2, -1.0, 1.0)
            asked = here[:, None] + np.concatenate(
                [
                    np.zeros((len(here), 1, width)),
                    signs[:, :, None] * np.eye(width)[None] * settings.difference,
                ],
                1,
            )
            try:
                with ask.phase("inversion"):
                    answers = np.asarray(ask(asked.reshape(-1, width)))
            except BudgetError:
                return Solution(rows, complete=False)
            if answers.ndim != 2:
                raise InputError(f"probabilities (B, K) were expected, got shape {answers.shape}")
            check_answers(answers, len(answers), answers.shape[1], Reveal())
            answers = answers.reshape(len(here), width + 1, -1)
            own_logs = np.log(np.maximum(answers[np.arange(len(here)), :, own[open_]], 1e-300))
            slope = (own_logs[:, 1:] - own_logs[:, :1]) / (signs * settings.difference)
            going = own_logs[:, 0] < np.log(settings.confidence)
            moved = np.clip(here + settings.rate * _unit(slope, np), low, high)
            rows[open_[going]] = moved[going]
            open_ = open_[going]
            ask.keep(rows)
            if not len(open_):
                break
        return Solution(rows)

    return HostAttack(solve)


def _unit(slope: Any, of: Any) -> Any:
    """Rows of length one; zero where they are."""
    size = of.sqrt((slope**2).sum(1, keepdims=True))
    return slope / of.where(size > 0, size, 1.0)


__all__ = ["InversionSettings", "inverted", "log_probabilities", "queried_inversion"]
