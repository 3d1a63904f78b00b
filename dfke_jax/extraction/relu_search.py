"""Where a two-layer ReLU network is asked, and how its answers are read."""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask
from dfke_jax.extraction.piecewise_linear import Line, Values

Gives = Literal["logits", "log_probabilities", "probabilities"]
_CHUNK = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class ReluSearch:
    """Where a ReLU network is asked, and what is taken for its answers.

    Attributes:
      shape: of a row: (D,), (H, W, C) or such; D for (D,).
      box: (low, high), numbers or arrays of the shape of a row: where lines begin and the result is
        checked.
      inside: whether rows must stay in the box. Neurons that divide no line through it are not
        found then, and more lines are searched.
      gives: what the answers are. Of probabilities, log p_k − mean_j log p_j is piecewise linear.
      neurons_per_jump: of one difference of gradients; half the outputs by default, at least 1.
      most_neurons: more critical points on a line are taken for another kind of model.
      check_rows: on which the result is compared with the victim; eight times as many inside the box.
      tolerance: largest difference there, in units of the size of the answers.
      precision: ``float64``; ``float32`` sends such rows, and makes do with what comes of such
        answers: see `relu_refinement.refined`.

    Raises:
      InputError: for settings that mean nothing.
    """

    shape: tuple[int, ...] | int
    box: tuple[Any, Any] = (0.0, 1.0)
    inside: bool = False
    gives: Gives = "logits"
    neurons_per_jump: int | None = None
    most_neurons: int = 2048
    check_rows: int = 128
    tolerance: float = 1e-6
    precision: Literal["float64", "float32"] = "float64"

    def __post_init__(self):
        if not self.row_shape or any(size < 1 for size in self.row_shape):
            raise InputError(f"shape must be (D,), (H, W, C) or such, or D, got {self.shape}")
        if self.gives not in ("logits", "log_probabilities", "probabilities"):
            raise InputError(
                f"gives must be 'logits', 'log_probabilities' or 'probabilities', not "
                f"{self.gives!r}"
            )
        if self.precision not in ("float64", "float32"):
            raise InputError(f"precision must be 'float64' or 'float32', not {self.precision!r}")
        if self.neurons_per_jump is not None and self.neurons_per_jump < 1:
            raise InputError(f"neurons_per_jump must be at least 1, got {self.neurons_per_jump}")
        if min(self.most_neurons, self.check_rows) < 1 or not self.tolerance > 0:
            raise InputError(
                "most_neurons and check_rows must be at least 1, and tolerance positive"
            )
        low, high = self.ends()
        if not (np.isfinite(high - low).all() and (high > low).all()):
            raise InputError(
                f"box must be (low, high) with low < high in every feature, got {self.box}"
            )

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of a row."""
        return (self.shape,) if isinstance(self.shape, int) else tuple(self.shape)

    @property
    def features(self) -> int:
        """D."""
        return math.prod(self.row_shape)

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The box as (low (D,), high (D,))."""
        try:
            low, high = (
                np.broadcast_to(np.asarray(end, np.float64), self.row_shape).ravel()
                for end in self.box
            )
        except ValueError as error:
            raise InputError(
                f"box must be (low, high), numbers or arrays of shape {self.row_shape}"
            ) from error
        return low, high

    @property
    def scale(self) -> float:
        """R, half the diagonal of the box."""
        low, high = self.ends()
        return float(np.linalg.norm(high - low)) / 2

    def values(self, ask: Ask) -> Values:
        """Rows (N, D) -> outputs (N, K), checked, that are piecewise linear in the row."""

        def values(rows: np.ndarray) -> np.ndarray:
            rows = rows.reshape(len(rows), *self.row_shape).astype(self.precision, copy=False)
            parts = [
                self.read(ask(rows[start : start + _CHUNK]))
                for start in range(0, len(rows), _CHUNK)
            ]
            return np.concatenate(parts)

        return values

    def read(self, answers: Any) -> np.ndarray:
        """Outputs (N, K) of answers.

        Raises:
          InputError: for what are no such answers, or in float32.
        """
        answers = np.asarray(answers)
        if answers.dtype.kind != "f":
            raise InputError(
                f"weights are differences of real numbers, and the answers are {answers.dtype}: "
                f"labels?"
            )
        if answers.ndim == 1:
            answers = answers[:, None]
        if answers.ndim != 2 or not np.isfinite(answers).all():
            raise InputError(f"answers must be finite numbers (N, K), got shape {answers.shape}")
        # where no neuron is active the answer is a constant, whatever its digits
        odd = np.unique(answers[answers != np.round(answers)])
        if self.precision == "float64" and (
            answers.dtype.itemsize < 8
            or (odd.size > 8 + answers.shape[1] and np.array_equal(odd, odd.astype(np.float32)))
        ):
            raise InputError(
                "the answers have no more than float32's seven digits: use an oracle with "
                "transport='float64' (an endpoint "
                "with dtype='float64'), or precision='float32' and less exact weights"
            )
        answers = answers.astype(np.float64)
        if self.gives == "logits":
            return answers
        if answers.shape[1] < 2:
            raise InputError(f"{self.gives} are those of two classes or more, got one column")
        if self.gives == "probabilities":
            if answers.min() <= 0 or np.abs(answers.sum(1) - 1).max() > 1e-6:
                raise InputError(
                    "probabilities must be positive and sum to one; where one is zero its "
                    "logarithm says nothing: "
                    "stay in the box (inside=True)"
                )
            answers = np.log(answers)
        return answers - answers.mean(1, keepdims=True)

    def interior(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Points of the box (count, D), every feature nearer one of its ends."""
        low, high = self.ends()
        upper = rng.random((count, self.features)) < rng.random((count, 1))
        share = np.where(upper, 1 - 0.5 * rng.random(upper.shape), 0.5 * rng.random(upper.shape))
        return low + share * (high - low)

    def draw_lines(
        self,
        rng: np.random.Generator,
        gradients: list[np.ndarray],
        between: np.ndarray | None = None,
    ) -> list[Line]:
        """The lines of a round: one without ends, or eight through the box.

        Of those through the box half lead to corners in which a combination of outputs is largest
        by one of these gradients (D, K): there neurons change that random corners leave alone. The
        first ones go through pairs of rows `between` (n, 2, D), if there are any.
        """
        low, high = self.ends()
        if self.inside:
            points = self.interior(rng, 16).reshape(8, 2, -1)
            for i in range(4 if gradients else 0):
                gradient = gradients[rng.integers(len(gradients))]
                upper = gradient @ rng.normal(size=gradient.shape[1]) > 0
                points[i, 1] = np.where(upper, low + 0.99 * (high - low), low + 0.01 * (high - low))
            if between is not None:
                points[: len(between)] = between[:8]
            return [Line.chord(one, other, low, high) for one, other in points]
        start, way = self.interior(rng, 1)[0], rng.normal(size=self.features)
        reach = None if self.precision == "float64" else 20 * self.scale
        return [Line.unlimited(start, way / np.linalg.norm(way), self.scale, reach)]


__all__ = ["Gives", "ReluSearch"]
