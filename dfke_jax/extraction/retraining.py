"""Retraining on labels: a model of the victim's kind, fitted to rows that were chosen one round after another.

| strategy | rows of a round |
|---|---|
| ``uniform`` | uniform in the table's ranges, all in one round |
| ``line_search`` | on segments between rows that were answered differently, nearer and nearer to where the label changes |
| ``adaptive`` | three quarters where the clone changes its mind, on such segments, and a quarter uniform |

``adaptive`` asks where the clone is least sure, of all rows between two that the victim told apart;
``uniform`` is its control: the same fit without choosing.

Source: Tramèr et al., USENIX Security 2016, section 6 (uniform, line-search and adaptive
retraining). Deviations: candidates of adaptive rounds lie on the clone's boundary and not in a pool
of uniform rows, of which hardly any comes near it in many dimensions; the first rows may be those
of the attacker's own (`known`), since uniform ones may all have one label.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from dfke_jax.core.errors import BudgetError, InputError, UnknownNameError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.data.schema import Schema
from dfke_jax.extraction.labels import asking_labels, bisected

Strategy = Literal["uniform", "line_search", "adaptive"]
STRATEGIES = ("uniform", "line_search", "adaptive")


class Clone(Protocol):
    """What is fitted: any classifier of scikit-learn's form."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Any:
        """Fits rows (N, D) and labels (N,)."""

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Rows (N, D) -> labels (N,)."""
        ...


def linear_clone() -> Clone:
    """A linear classifier of large margin; of several classes, one against the rest."""
    from sklearn.svm import LinearSVC

    return LinearSVC(C=1e4, dual=False, max_iter=2000)  # type: ignore


def softmax_clone() -> Clone:
    """A softmax classifier, nearly without regularisation."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1e3, max_iter=1000)  # type: ignore


def rbf_clone(gamma: float = 1.0) -> Clone:
    """A support vector machine with the kernel exp(−γ ‖x − x'‖²)."""
    from sklearn.svm import SVC

    return SVC(kernel="rbf", C=1e4, gamma=gamma)  # type: ignore


def mlp_clone(hidden: int = 20) -> Clone:
    """A network with one hidden layer."""
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(  # type: ignore
        (hidden,), activation="tanh", alpha=1e-3, solver="lbfgs", max_iter=1000, random_state=0
    )


CLONES: dict[str, Callable[[], Clone]] = {
    "linear": linear_clone,
    "softmax": softmax_clone,
    "rbf": rbf_clone,
    "mlp": mlp_clone,
}


@dataclasses.dataclass(frozen=True)
class RetrainingSettings:
    """How labels are bought.

    Attributes:
      rows: in all.
      strategy: see the table above.
      rounds: into which `rows` are divided; of ``uniform`` one.
      share: of a round's rows, those that are chosen; the others are uniform.

    Raises:
      UnknownNameError: for another strategy.
      InputError: for numbers outside their range.
    """

    rows: int
    strategy: Strategy = "adaptive"
    rounds: int = 10
    share: float = 0.75

    def __post_init__(self):
        if self.strategy not in STRATEGIES:
            raise UnknownNameError("strategy", self.strategy, STRATEGIES)
        if self.rounds < 1 or self.rows < self.rounds or not 0 <= self.share <= 1:
            raise InputError(
                f"rows must be at least rounds, those at least 1, and share in [0, 1]: got {self.rows}, "
                f"{self.rounds}, {self.share}"
            )


def retraining(
    schema: Schema,
    settings: RetrainingSettings,
    clone: Callable[[], Clone] = linear_clone,
    *,
    known: np.ndarray | None = None,
) -> HostAttack:
    """A clone of any kind from labels.

    Args:
      schema: of the rows.
      settings: how rows are chosen.
      clone: makes an unfitted classifier; of those that have a width to be chosen, several may be
        run and compared by the labels that they were not fitted to.
      known: rows (N, D) of the attacker's own, asked first and counted among the rows; their labels
        need not be known.

    Returns:
      A `HostAttack` for labels (B,) or scores (B, K), of which the label is read; it finds what
      `clone` made, fitted to all rows. Rows: exactly `settings.rows`. The ledger counts ``first``
      and ``chosen``.

    Raises, at once or while it runs:
      InputError: for known rows of another shape or more than `rows`; or where all labels are equal
        after the first round.
    """
    if known is not None and len(known := schema.checked(known)) > settings.rows:
        raise InputError(f"{len(known)} rows are known and {settings.rows} are to be asked")
    return HostAttack(_Retraining(schema, settings, clone, known).solve)


@dataclasses.dataclass(frozen=True, eq=False)
class _Retraining:
    schema: Schema
    settings: RetrainingSettings
    clone: Callable[[], Clone]
    known: np.ndarray | None

    def solve(self, rng: np.random.Generator, ask: Ask) -> Solution:
        settings, labels = self.settings, asking_labels(ask)
        rounds = 1 if settings.strategy == "uniform" else settings.rounds
        each = np.full(rounds, settings.rows // rounds)
        each[: settings.rows % rounds] += 1
        start = (
            np.zeros((0, self.schema.width))
            if self.known is None
            else self.known.astype(np.float64)
        )
        each[0] = max(int(each[0]), len(start))
        rows = np.concatenate([start, self.schema.uniform(rng, int(each[0]) - len(start))])
        left = settings.rows - len(rows)
        with ask.phase("first"):
            found = labels(rows)
        if len(np.unique(found)) < 2:
            raise InputError(
                f"all {len(rows)} rows of the first round have the label {int(found[0])}: the model is constant "
                "there, or the endpoint does not look at rows; give rows of other classes (known=...)"
            )
        brackets = None
        for number in range(1, rounds):
            size = left // (rounds - number)
            left -= size
            if not size:
                continue
            clone = self._fitted(rows, found)
            ask.keep(clone)
            chosen = round(settings.share * size) if settings.strategy == "adaptive" else size
            if settings.strategy == "adaptive":
                asked = self._undecided(rng, clone, rows, found, chosen)
            else:
                brackets = _brackets(rng, rows, found, size) if brackets is None else brackets
                asked = (brackets[0] + brackets[1])[:size] / 2
            asked = np.concatenate([asked, self.schema.uniform(rng, size - len(asked))])
            try:
                with ask.phase("chosen"):
                    answered = labels(asked)
            except BudgetError:
                return Solution(clone, complete=False)
            if settings.strategy == "line_search" and brackets is not None:
                brackets = _narrowed(brackets, asked, answered)
            rows, found = np.concatenate([rows, asked]), np.concatenate([found, answered])
        return Solution(self._fitted(rows, found))

    def _fitted(self, rows: np.ndarray, found: np.ndarray) -> Clone:
        from sklearn.exceptions import ConvergenceWarning

        made = self.clone()
        with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # labels that are separable have no best fit
            made.fit(rows, found)
        return made

    def _undecided(self, rng: Any, clone: Clone, rows: Any, found: Any, count: int) -> np.ndarray:
        """Where the clone changes its mind between rows that the victim answered differently."""
        first, second, _ = _brackets(rng, rows, found, count)
        predicted = [np.asarray(clone.predict(side)) for side in (first, second)]
        told_apart = predicted[0] != predicted[1]
        near, far = bisected(
            clone.predict, first[told_apart], second[told_apart], predicted[0][told_apart], 20
        )
        middle = (first + second) / 2  # where it does not tell them apart
        middle[told_apart] = (near + far) / 2
        return middle


_Brackets = tuple[np.ndarray, np.ndarray, np.ndarray]


def _brackets(rng: Any, rows: np.ndarray, found: np.ndarray, count: int) -> _Brackets:
    """`count` pairs of rows with different labels, every label as often as the others; the label of the first."""
    classes = np.unique(found)
    first = np.array(
        [rng.choice(np.flatnonzero(found == label)) for label in rng.choice(classes, count)]
    )
    second = np.array([rng.choice(np.flatnonzero(found != found[one])) for one in first])
    return rows[first], rows[second], found[first]


def _narrowed(brackets: _Brackets, asked: np.ndarray, answered: np.ndarray) -> _Brackets:
    near, far, label = (side.copy() for side in brackets)
    count = min(len(near), len(asked))
    same = (answered[:count] == label[:count])[:, None]
    near[:count], far[:count] = (
        np.where(same, asked[:count], near[:count]),
        np.where(same, far[:count], asked[:count]),
    )
    return near, far, label


__all__ = [
    "CLONES",
    "STRATEGIES",
    "Clone",
    "RetrainingSettings",
    "linear_clone",
    "mlp_clone",
    "rbf_clone",
    "retraining",
    "softmax_clone",
]
