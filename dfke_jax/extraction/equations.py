"""Equation solving: linear, logistic and softmax models, exactly, from as many answers as they have
unknowns a class.

What such a model answers is an invertible function of affine functions of the row, z(x) = W'x + b.
Undone, every answer is one linear equation in W and b for each class, with the same matrix, so that
D + 1 rows determine all K classes at once. No training takes place; what is found is the model up
to the rounding of its answers.

| model | answers | z | rows |
|---|---|---|---|
| `linear_regression` | y_k = w_k'x + b_k | y_k | D + 1 |
| `logistic_regression` | p = 1/(1 + exp(−w'x − b)) | log p − log(1 − p) | D + 1 |
| `softmax_regression` | p_k = exp(w_k'x + b_k) / Σ_j exp(w_j'x + b_j) | log p_k − log p_r | D + 1 |

r is a class of reference.

The ledger counts three phases: ``equations``, the first D + 1 rows; ``nearer``, those that are
asked again because they saturate; ``further``, those beyond. Rows beyond D + 1 (`Questions.rows`)
check what was found, since D + 1 answers fit any function, and average the rounding of answers.

Source: Tramèr, Zhang, Juels, Reiter, Ristenpart, "Stealing Machine Learning Models via Prediction
APIs", USENIX Security 2016, sections 4.1 and 6.4. Deviations: softmax models are solved in closed
form from D + 1 rows, where the paper minimises the cross-entropy over K (D + 1); rows are the
corners of regular simplices where the paper draws them uniformly; equations of rounded answers are
weighted; residuals are compared with what rounding can explain.
"""

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import scipy.optimize
import scipy.special
from threadpoolctl import threadpool_limits

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.oracle.reveal import Reveal, check_answers

Link = Literal["identity", "logistic", "softmax"]
_HALVINGS = 12
_GRID = 2.0**30
_DEGENERATE = 1e-10


@dataclasses.dataclass(frozen=True, eq=False)
class AffineModel:
    """A model of affine scores, as it was found.

    Attributes:
      weights: W (D, K), in float64; (D, 1) of a logistic model. Of a softmax model, which
        determines them up to one vector that is added to all classes, those of mean zero over the
        classes.
      bias: b (K,), likewise.
      link: from scores to answers.
      residual: the largest difference of z between the answers and the model; None where D + 1 rows
        left nothing to compare, and nothing is known of how well the model fits.
    """

    weights: np.ndarray
    bias: np.ndarray
    link: Link
    residual: float | None = None

    def scores(self, rows: Any) -> np.ndarray:
        """z = x W + b of rows (B, ...) -> (B, K)."""
        rows = np.asarray(rows, np.float64)
        return rows.reshape(len(rows), -1) @ self.weights + self.bias

    def __call__(self, rows: Any) -> np.ndarray:
        """What the victim answers: numbers (B, K), or probabilities (B, K), of a logistic model (B,
        2).
        """
        scores = self.scores(rows)
        if self.link == "logistic":
            scores = np.concatenate([np.zeros_like(scores), scores], 1)
        return scores if self.link == "identity" else scipy.special.softmax(scores, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """Where and how often a victim is asked.

    The first D + 1 rows are the corners of a regular simplex around the middle of the box, turned
    at random and as large as fits: the columns of [1 X] are orthogonal, and its condition number is
    a few units. Next is a random corner of the box, where an endpoint that
    clips rows gives itself away, and then further simplices. Coordinates are multiples of 2^-30 of
    the box's half width, so that other libraries of linear algebra ask the same rows.

    Attributes:
      shape: of a row: (D,), (H, W, C) or such; D for (D,).
      rows: how many are asked in all, at least D + 1, which is the default. From D + 2 on the model
        is checked.
      box: (low, high), numbers, or arrays of the shape of a row where features have ranges of their
        own.
      points: (N, ...) to be asked instead, where rows must have a form of their own; `rows` is N
        then.
      precision: ``float64``; ``float32`` sends such rows and makes do with such answers, at a
        hundred million times the rounding: about seven digits, less the condition of the equations.

    Raises:
      InputError: for fewer rows than D + 1, a box without width, or points that do not determine an
        affine function.
    """

    shape: tuple[int, ...] | int
    rows: int | None = None
    box: tuple[Any, Any] = (0.0, 1.0)
    points: Any = None
    precision: Literal["float64", "float32"] = "float64"

    def __post_init__(self):
        if not self.row_shape or any(size < 1 for size in self.row_shape):
            raise InputError(f"shape must be (D,), (H, W, C) or such, or D, got {self.shape}")
        if self.precision not in ("float64", "float32"):
            raise InputError(f"precision must be 'float64' or 'float32', not {self.precision!r}")
        low, high = self._ends()
        flat = np.flatnonzero(~(high > low) | ~np.isfinite(high - low))
        if len(flat):
            raise InputError(
                f"box: features {flat[:5].tolist()} have no range, from {low[flat[:5]]} to "
                f"{high[flat[:5]]}"
            )
        if self.points is not None:
            points = np.asarray(self.points, np.float64)
            if points.shape[1:] != self.row_shape or not np.isfinite(points).all():
                raise InputError(
                    f"points must be finite numbers (N, {', '.join(map(str, self.row_shape))})"
                )
            if self.rows not in (None, len(points)):
                raise InputError(
                    f"{len(points)} points are given and {self.rows} rows are to be asked"
                )
        if self.count < self.features + 1:
            raise InputError(
                f"{self.features} features and a constant need at least {self.features + 1} rows, "
                f"got {self.count}"
            )
        if self.points is not None:
            self.matrix(self.first(np.random.default_rng(0)))

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of a row."""
        return (self.shape,) if isinstance(self.shape, int) else tuple(self.shape)

    @property
    def features(self) -> int:
        """D."""
        return math.prod(self.row_shape)

    @property
    def count(self) -> int:
        """Rows in all, if none of them saturates."""
        if self.rows is not None:
            return self.rows
        return self.features + 1 if self.points is None else len(self.points)

    def first(self, rng: np.random.Generator) -> np.ndarray:
        """Rows (N, ...) that determine the model: D + 1, or all points."""
        return self._sent(
            _simplex(rng, self.features) if self.points is None else self._unit(self.points)
        )

    def further(self, rng: np.random.Generator) -> np.ndarray:
        """Rows (count − D − 1, ...) that check and average; none where points are given."""
        left = 0 if self.points is not None else self.count - self.features - 1
        corner = rng.integers(0, 2, size=(min(left, 1), self.features)) * 2.0 - 1
        blocks = [
            _simplex(rng, self.features)
            for _ in range(math.ceil((left - len(corner)) / (self.features + 1)))
        ]
        return self._sent(np.concatenate([corner, *blocks])[:left])

    def nearer(self, rows: np.ndarray) -> np.ndarray:
        """Rows half as far from the middle of the box."""
        return self._sent(self._unit(rows) / 2)

    def matrix(self, rows: np.ndarray) -> np.ndarray:
        """[1 u] (N, D + 1) of rows as they were sent, u their place in the box, from −1 to 1.

        Raises:
          InputError: where its columns are dependent.
        """
        unit = self._unit(rows)
        matrix = np.concatenate([np.ones((len(unit), 1)), unit], 1)
        sizes = np.linalg.svd(matrix, compute_uv=False)
        rank = int((sizes > _DEGENERATE * sizes[0]).sum())
        if rank < matrix.shape[1]:
            raise InputError(
                f"these rows do not determine an affine function: they span {rank} of "
                f"{matrix.shape[1]} dimensions"
            )
        return matrix

    def unscaled(self, solved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(W (D, K), b (K,)) on rows, from the solution (D + 1, K) on `matrix`."""
        low, high = self._ends()
        weights = solved[1:] / ((high - low) / 2)[:, None]
        return weights, solved[0] - (low + high) / 2 @ weights

    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
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

    def _unit(self, rows: Any) -> np.ndarray:
        low, high = self._ends()
        rows = np.asarray(rows, np.float64).reshape(len(rows), -1)
        return (rows - (low + high) / 2) / ((high - low) / 2)

    def _sent(self, unit: np.ndarray) -> np.ndarray:
        low, high = self._ends()
        unit = np.round(unit * _GRID) / _GRID
        rows = (low + high) / 2 + unit * ((high - low) / 2)
        if self.points is None:
            rows = np.clip(rows, low, high)
        return rows.reshape(-1, *self.row_shape).astype(self.precision)


def _simplex(rng: np.random.Generator, features: int) -> np.ndarray:
    """The corners (D + 1, D) of a regular simplex around 0, turned at random, of largest coordinate
    1.

    Their coordinates are D orthogonal columns that are orthogonal to the ones, too.
    """
    columns = np.concatenate(
        [np.ones((features + 1, 1)), rng.normal(size=(features + 1, features))], 1
    )
    corners = np.linalg.qr(columns)[0][:, 1:]
    return corners / np.abs(corners).max()


def linear_regression(questions: Questions, *, decimals: int | None = None) -> HostAttack:
    """The weights of a linear model y = W'x + b from D + 1 rows, by solving [1 X] (b, W) = Y.

    Args:
      questions: where it is asked.
      decimals: to which its answers are rounded; None for none.

    Returns:
      A `HostAttack` for answers (B,) or (B, K); it finds an `AffineModel`.

    Raises, while it runs:
      InputError: for answers that are labels, not finite, all equal, of less than the precision
        that was asked for, or, from D + 2 rows on, not affine in the row: an endpoint that clips or
        quantises rows, rounds answers or adds noise, or another model.

    Source: Tramèr et al. 2016, section 4.1.
    """
    return _attack(questions, Reveal("logits", decimals=decimals), "identity")


def logistic_regression(questions: Questions, reveal: Reveal | None = None) -> HostAttack:
    """The weights of a binary logistic model from D + 1 rows: log p − log(1 − p) = w'x + b.

    Where a row's p is so near 0 or 1 that log p or log(1 − p) has lost half its digits (p(1 − p) <
    1.5e-8), the row is asked again at half the distance from the middle of the box, and counted
    again.

    Args:
      questions: where it is asked.
      reveal: what is answered: probabilities, by default unrounded, or logits.

    Returns:
      A `HostAttack` for answers (B, 2), of the classes 0 and 1, or (B,) or (B, 1), p of class 1; it
      finds an `AffineModel` with weights (D, 1): how class 1 exceeds class 0.

    Raises, at once or while it runs: as `softmax_regression`.

    Source: Tramèr et al. 2016, section 4.1.
    """
    return _attack(questions, reveal or Reveal(), "logistic")


def softmax_regression(questions: Questions, reveal: Reveal | None = None) -> HostAttack:
    """The weights of a softmax model of K classes from D + 1 rows: log p_k − log p_r = (w_k −
    w_r)'x + b_k − b_r.

    r is the class whose probabilities lose least in the logarithm. A row with a probability of zero
    is asked again at half the distance from the middle of the box, and counted again.

    Of rounded answers an equation knows its right side to δ = −log(1 − h/p_k) − log(1 − h/p_r), h
    half a unit of the last decimal; it is weighted by 1/δ, and left out where a probability came
    back as zero. From there on the cross-entropy −Σ_k p_k log p̂_k of all rows is minimised
    (L-BFGS), which uses those as well. Ask several times D + 1 rows then. Of a class that comes
    back as zero nearly everywhere little is known but that: its weights are not determined, and may
    become large.

    Args:
      questions: where it is asked.
      reveal: what is answered: probabilities, by default unrounded, or logits.

    Returns:
      A `HostAttack` for answers (B, K); it finds an `AffineModel`.

    Raises, at once:
      InputError: for labels or the largest k probabilities, which hide what the equations are made
        of.

    Raises, while it runs:
      InputError: for answers that are labels, no probabilities, not finite, all equal, of less than
        the precision that was asked for, still zero next to the middle of the box, or, from D + 2
        rows on, not those of such a model: the difference is more than rounding explains. An
        endpoint may clip or quantise rows, round or change answers, or have another model.

    Source: Tramèr et al. 2016, section 4.1, which minimises the cross-entropy over K (D + 1) rows;
    the closed form, the weights and the bound on residuals are ours.
    """
    return _attack(questions, reveal or Reveal(), "softmax")


def _attack(questions: Questions, reveal: Reveal, link: Link) -> HostAttack:
    if reveal.kind in ("label", "top_k"):
        raise InputError(
            f"equations are made of all probabilities or logits, and {reveal.kind!r} hides them; "
            "use an attack that learns from what is left"
        )
    equations = _Equations(questions, reveal, link)
    return HostAttack(equations.solve)


@dataclasses.dataclass(frozen=True, eq=False)
class _Equations:
    """The attack of all three models; they differ in what is undone of an answer."""

    questions: Questions
    reveal: Reveal
    link: Link

    def solve(self, rng: np.random.Generator, ask: Ask) -> Solution:
        with _one_thread():
            rows, further = self.questions.first(rng), self.questions.further(rng)
        with ask.phase("equations"):
            answers = self._asked(ask, rows)
        rows, answers = self._unsaturated(rows, answers, ask)
        if (answers == answers[:1]).all():
            raise InputError(
                f"all {len(rows)} answers are equal: the model is constant in this box, or the "
                "endpoint does not look at rows"
            )
        if len(further):
            ask.keep(self._solved(rows, answers))
            with ask.phase("further"):
                more = self._asked(ask, further)
            more = self._unsaturated(further, more, ask)
            rows, answers = np.concatenate([rows, more[0]]), np.concatenate([answers, more[1]])
        return Solution(self._solved(rows, answers))

    # ---- answers

    @property
    def _eps(self) -> float:
        return float(np.finfo(self.questions.precision).eps)

    @property
    def _takes_logs(self) -> bool:
        return self.link != "identity" and self.reveal.kind == "probabilities"

    def _asked(self, ask: Ask, rows: np.ndarray) -> np.ndarray:
        """Answers (N, K) in float64, checked."""
        answers = np.asarray(ask(rows))
        if answers.dtype.kind not in "f":
            raise InputError(
                f"equations are made of real numbers, and the answers are {answers.dtype}: labels?"
            )
        if answers.ndim == 1:
            answers = answers[:, None]
        if answers.ndim != 2 or len(answers) != len(rows):
            raise InputError(f"asked {len(rows)} rows, got answers of shape {answers.shape}")
        self._check_precision(answers)
        answers = answers.astype(np.float64)
        if self.link == "logistic" and answers.shape[1] == 1 and self._takes_logs:
            answers = np.concatenate([1 - answers, answers], 1)
        if self.link == "logistic" and answers.shape[1] > 2:
            raise InputError(
                f"a binary model answers two classes, not {answers.shape[1]}; use "
                "softmax_regression"
            )
        if self.link == "softmax" and answers.shape[1] < 2:
            raise InputError(
                "a softmax model answers two classes or more; use logistic_regression or "
                "linear_regression"
            )
        check_answers(answers, len(rows), answers.shape[1], self.reveal)
        return answers

    def _check_precision(self, answers: np.ndarray) -> None:
        if self.questions.precision == "float32" or self.reveal.decimals is not None:
            return
        odd = answers[answers != np.round(answers)]  # zero and one look alike in any precision
        if len(answers) > 1 and (answers == answers[:1]).all():
            odd = odd[:0]  # and what is constant is told apart elsewhere
        if answers.dtype.itemsize < 8 or (len(odd) and np.array_equal(odd, odd.astype(np.float32))):
            raise InputError(
                "the answers have no more than float32's seven digits"
                f"{'' if answers.dtype.itemsize < 8 else ', as float64'}: use an oracle with "
                "transport='float64' (an endpoint with dtype='float64'), or "
                "Questions(precision='float32') and less exact weights"
            )

    def _unsaturated(
        self, rows: np.ndarray, answers: np.ndarray, ask: Ask
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same with other rows in the place of those whose logarithms say nothing."""
        if not self._takes_logs or self.reveal.decimals is not None:
            return rows, answers
        # 1 − p has rounding of the size of one, a softmax of several classes only of its own size
        least = (
            math.sqrt(self._eps)
            if answers.shape[1] == 2
            else float(np.finfo(self.questions.precision).tiny)
        )
        for _ in range(_HALVINGS):
            lost = (answers < least).any(1)
            if not lost.any() or self.questions.points is not None:
                break
            rows, answers = rows.copy(), answers.copy()
            rows[lost] = self.questions.nearer(rows[lost])
            with ask.phase("nearer"):
                answers[lost] = self._asked(ask, rows[lost])
        zero = (answers <= 0).any(1)
        if zero.any():
            raise InputError(
                f"{int(zero.sum())} of {len(rows)} rows are answered with a probability of zero, "
                "whose logarithm says nothing; ask in a smaller box, or around another middle, or "
                "say to how many decimals answers are rounded"
            )
        return rows, answers

    # ---- equations

    def _undone(self, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, int | None]:
        """z (N, J), how far rounding may have moved it, and the class of reference.

        Where nothing is known of it, it may have been moved infinitely far.
        """
        half = 0.0 if self.reveal.decimals is None else 0.5 * 10.0**-self.reveal.decimals
        if self._takes_logs:
            if self.reveal.decimals is None and answers.shape[1] == 2:
                half = self._eps  # one of the two may be computed as 1 − the other
            known = answers > half
            shown = np.where(known, answers, 1.0)
            values, moved = np.log(shown), np.where(known, -np.log1p(-half / shown), np.inf)
        else:
            values, moved = answers, np.full(answers.shape, half)
        place = None
        if self.link != "identity" and answers.shape[1] > 1:
            place = 0 if self.link == "logistic" else _clearest(moved)
            values, moved = (
                np.delete(part, place, 1)
                for part in (values - values[:, [place]], moved + moved[:, [place]])
            )
        # what a victim's own sum of D + 1 products, and an exponential, may be wrong by
        size = np.abs(values[np.isfinite(moved)]).max(initial=0)
        own = 8 * self._eps * (self.questions.features + 1) * (1 + size)
        return values, moved + own, place

    def _solved(self, rows: np.ndarray, answers: np.ndarray) -> AffineModel:
        with _one_thread():
            return self._solved_alone(rows, answers)

    def _solved_alone(self, rows: np.ndarray, answers: np.ndarray) -> AffineModel:
        matrix = self.questions.matrix(rows)
        values, moved, place = self._undone(answers)
        solved, residual = np.zeros((matrix.shape[1], values.shape[1])), 0.0
        for column in range(values.shape[1]):
            found = _least_squares(matrix, values[:, column], moved[:, column])
            # too many of its probabilities were rounded to zero: left to the cross-entropy
            if found is None:
                continue
            solved[:, column], differences, explained = found
            residual = max(residual, float(differences.max()))
            if len(matrix) > matrix.shape[1] and (differences > explained).any():
                worst = int((differences / explained).argmax())
                size = float(np.abs(values[:, column]).max())
                raise InputError(
                    self._not_affine(float(differences[worst]), float(explained[worst]), size)
                )
        if place is not None:
            solved = np.insert(solved, place, 0.0, axis=1)
            if self._takes_logs and self.reveal.decimals is not None:
                solved = _least_cross_entropy(
                    matrix, answers, solved, 1e-3 * 10.0**-self.reveal.decimals
                )
            solved = (
                solved[:, 1:] - solved[:, :1]
                if self.link == "logistic"
                else solved - solved.mean(1, keepdims=True)
            )
        weights, bias = self.questions.unscaled(solved)
        return AffineModel(
            weights, bias, self.link, residual if len(matrix) > matrix.shape[1] else None
        )

    def _not_affine(self, difference: float, explained: float, size: float) -> str:
        what = {"identity": "a linear", "logistic": "a logistic", "softmax": "a softmax"}[self.link]
        single = ""
        if self.questions.precision == "float64" and difference < 1e-5 * max(size, 1.0):
            single = (
                ". So small a difference is made by rows or products in float32: use "
                "transport='float64' throughout"
            )
        return (
            f"the answers are not those of {what} model: one differs by {difference:.2g} from the "
            f"nearest such model, and rounding explains {explained:.2g}. The endpoint clips or "
            f"quantises rows, rounds or changes answers, or has another model{single}"
        )


def _one_thread() -> threadpool_limits:
    """Linear algebra in one thread: matrices are small, and sums are taken in one order."""
    return threadpool_limits(1, user_api="blas")


def _clearest(moved: np.ndarray) -> int:
    """The class (of (N, K)) whose logarithms are known in most rows, and of such that where they
    are known best.
    """
    unknown = ~np.isfinite(moved)
    return int(np.lexsort((np.where(unknown, 0, moved).sum(0), unknown.sum(0)))[0])


def _least_squares(
    matrix: np.ndarray, values: np.ndarray, moved: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The solution of ``matrix @ solution = values``, each equation weighted by 1/moved.

    Returns:
      The solution (D + 1,), the size of the residuals (n,) of the n equations that say something,
      and how large moves of the values within `moved` can make them: |I − A A⁺| moved, A⁺ the
      weighted pseudo-inverse. None where those equations do not determine a solution.
    """
    known = np.isfinite(moved)
    matrix, values, moved = matrix[known], values[known], moved[known]
    if len(matrix) < matrix.shape[1]:
        return None
    weights = (moved.min() / moved) if len(matrix) > matrix.shape[1] else np.ones(len(matrix))
    left, sizes, right = np.linalg.svd(matrix * weights[:, None], full_matrices=False)
    if sizes[-1] <= _DEGENERATE * sizes[0]:
        return None
    inverse = (right.T / sizes) @ (left.T * weights)
    solution = inverse @ values
    solution = solution + inverse @ (values - matrix @ solution)  # once more, for the last digits
    explained = np.abs(np.eye(len(matrix)) - matrix @ inverse) @ moved + moved.min()
    return solution, np.abs(values - matrix @ solution), explained


def _least_cross_entropy(
    matrix: np.ndarray, answers: np.ndarray, start: np.ndarray, tolerance: float
) -> np.ndarray:
    """argmin over θ (D + 1, K) of −Σ_ik y_ik log softmax(matrix θ)_ik, y the answers, each row
    divided by its sum.

    It ends where no partial derivative, of which each is a sum of differences of probabilities,
    exceeds `tolerance`.
    """
    targets = answers / answers.sum(1, keepdims=True)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        scores = matrix @ flat.reshape(start.shape)
        logs = scores - scipy.special.logsumexp(scores, axis=1, keepdims=True)
        gradient = matrix.T @ (np.exp(logs) - targets)
        return -float((targets * logs).sum()), gradient.ravel()

    settings = {"maxiter": 2000, "maxfun": 4000, "maxcor": 30, "ftol": 1e-15, "gtol": tolerance}
    found = scipy.optimize.minimize(
        loss, start.ravel(), jac=True, method="L-BFGS-B", options=settings
    )
    return found.x.reshape(start.shape)


__all__ = [
    "AffineModel",
    "Questions",
    "linear_regression",
    "logistic_regression",
    "softmax_regression",
]
