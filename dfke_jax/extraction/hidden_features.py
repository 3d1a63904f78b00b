"""Linear models on features that the service keeps to itself: bins of numbers and one-hot categories, found by search.

A row goes in as it is; the service cuts its numbers into bins, encodes its categories, and a
logistic or softmax model answers. Along one column, all others held, the answer is then a step
function. Its steps are found by bisection, all columns side by side; between two steps the answer
is one equation for the weight of that bin. What is found is the binning and the model:

    z_k(x) = log p_k(x) − mean_j log p_j(x) = b_k + Σ_c w_{c, bin_c(x_c), k}.

A column along which z is affine is taken as a number that stays, of two unknowns. The searches are
at once the equations: no row is asked for the weights alone.

Source: Tramèr, Zhang, Juels, Reiter, Ristenpart, "Stealing Machine Learning Models via Prediction
APIs", USENIX Security 2016, section 5.2 (Amazon). Deviations: features are not left out, which other
services do not allow, but held at a row's values; columns are searched side by side; columns of whole
numbers are searched to the value; several classes.
"""

import dataclasses
import itertools
from typing import Any, Literal

import numpy as np
import scipy.special

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.data.binning import Binning
from dfke_jax.data.schema import Schema
from dfke_jax.extraction.tree_search import Grid
from dfke_jax.oracle.reveal import Reveal, check_answers

_STARTS = 8
_AFFINE = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class BinnedModel:
    """A linear model on features of bins, as it was found.

    Attributes:
      binning: of its rows; where a column has no weight at all it has no edges either.
      weights: (M, K), float64; of every column zero where the row is that was held.
      bias: (K,).
    """

    binning: Binning
    weights: np.ndarray
    bias: np.ndarray

    def scores(self, rows: Any) -> np.ndarray:
        """z (B, K) of rows (B, D)."""
        return self.binning(rows) @ self.weights + self.bias

    def __call__(self, rows: Any) -> np.ndarray:
        """Probabilities (B, K)."""
        return scipy.special.softmax(self.scores(rows), 1)

    def predict(self, rows: Any) -> np.ndarray:
        """Classes (B,)."""
        return self.scores(rows).argmax(1)


def binned_regression(
    schema: Schema,
    *,
    epsilon: float = 2.0**-10,
    probes: int = 5,
    most_bins: int = 200,
    checks: int = 16,
    precision: Literal["float64", "float32"] = "float64",
) -> HostAttack:
    """A logistic or softmax model behind an encoding that is not known.

    Args:
      schema: of the rows as they are sent.
      epsilon: of numbers that are not whole, the share of their range to which edges are found.
      probes: values of every column of numbers at which the search begins, at least 3, the ends
        included. A bin between two others of equal weight is seen if a probe lies in it.
      most_bins: of one column; more end in an error.
      checks: uniform rows at the end, to see whether the columns add up.
      precision: in which rows are sent. Values are those of float32 in either. Of answers in float32
        weights are found to four digits or so, and steps of the answer below 3e-5 are not seen.

    Returns:
      A `HostAttack` for unrounded probabilities (B, K); it finds a `BinnedModel`. Rows: 8 to choose
      where to stand, `probes` a column of numbers, log2 of the probes' distance over epsilon an edge,
      one a further level of a category, and `checks`. The ledger counts ``start``, ``probes``,
      ``edges`` and ``checks``.

    Raises, at once or while it runs:
      InputError: for numbers outside their range, answers that are no probabilities, or zero; a
        model that is constant; a column with more bins than `most_bins`, along which the model is
        neither a step function nor affine; or columns that do not add up: features are crossed, or
        the model is none of these.
    """
    if precision not in ("float64", "float32"):
        raise InputError(f"precision must be 'float64' or 'float32', not {precision!r}")
    if probes < 3 or most_bins < 2 or checks < 0:
        raise InputError(
            f"probes is at least 3, most_bins at least 2 and checks at least 0, got {probes}, "
            f"{most_bins}, {checks}"
        )
    grid = Grid(schema, epsilon)
    return HostAttack(_Binned(grid, probes, most_bins, checks, precision).solve)


@dataclasses.dataclass(frozen=True)
class _Binned:
    grid: Grid
    probes: int
    most_bins: int
    checks: int
    precision: str

    def solve(self, rng: np.random.Generator, ask: Ask) -> Solution:
        columns = range(len(self.grid.sizes))
        with ask.phase("start"):
            starts = self.grid.uniform(rng, _STARTS)
            answers = self._asked(ask, starts)
        place = int(answers.min(1).argmax())  # where no probability is so small that it says little
        base, here = starts[place], answers[place]
        known: list[dict[int, np.ndarray]] = [{int(base[c]): here} for c in columns]
        wanted = [(c, code) for c in columns for code in self._first(c) if code not in known[c]]
        with ask.phase("probes"):
            self._learn(ask, base, known, wanted)
        affine = [self._affine(c, known[c]) for c in columns]
        with ask.phase("edges"):
            while wanted := [
                (c, (low + high) // 2)
                for c in columns
                if not self.grid.categorical[c] and not affine[c]
                for low, high in _steps(known[c], self._same)
                if high - low > 1
            ]:
                self._learn(ask, base, known, wanted)
                for c in columns:
                    if not affine[c] and len(_steps(known[c], self._same)) >= self.most_bins:
                        raise InputError(
                            f"column {self.grid.schema.columns[c].name!r} has {self.most_bins} bins "
                            "or more: along it the model is neither a step function nor affine"
                        )
        if all(len(of) < 2 or not _steps(of, self._same) for of in known):
            raise InputError(
                "all answers are equal: the model is constant, or the endpoint does not look at rows"
            )
        found = self._model(base, here, known, affine)
        if self.checks:
            with ask.phase("checks"):
                self._check(found, self.grid.uniform(rng, self.checks), ask)
        return Solution(found)

    def _first(self, c: int) -> list[int]:
        size = int(self.grid.sizes[c])
        if self.grid.categorical[c]:
            return list(range(size))
        return sorted({int(code) for code in np.linspace(0, size - 1, self.probes).round()})

    def _asked(self, ask: Ask, codes: np.ndarray) -> np.ndarray:
        answers = np.asarray(ask(self.grid.rows(codes).astype(self.precision)))
        if answers.ndim != 2 or answers.dtype.kind != "f" or answers.shape[1] < 2:
            raise InputError(
                f"probabilities (B, K) were expected, got shape {answers.shape} of {answers.dtype}"
            )
        check_answers(answers, len(codes), answers.shape[1], Reveal())
        if (answers <= 0).any():
            raise InputError(
                "a probability of zero says nothing of its logarithm: answers are rounded, or saturate"
            )
        return answers

    def _learn(
        self, ask: Ask, base: np.ndarray, known: list, wanted: list[tuple[int, int]]
    ) -> None:
        if not wanted:
            return
        codes = np.repeat(base[None], len(wanted), 0)
        codes[np.arange(len(wanted)), [c for c, _ in wanted]] = [code for _, code in wanted]
        for (c, code), answer in zip(wanted, self._asked(ask, codes), strict=True):
            known[c][code] = answer

    @staticmethod
    def _same(first: np.ndarray, second: np.ndarray) -> bool:
        """Up to the rounding of sums, which batches of other sizes take in another order."""
        return bool(np.abs(first - second).max() < 256 * np.finfo(first.dtype).eps)

    def _affine(self, c: int, known: dict[int, np.ndarray]) -> bool:
        """Whether z is affine, and not constant, over the values that are known of a column."""
        codes = np.array(sorted(known))
        if self.grid.categorical[c] or len(codes) < 3:
            return False
        values = self.grid.values(c, codes).astype(np.float64)
        z = np.stack([_centred(known[code]) for code in codes])
        # of different steps all differences would have to be in proportion by chance
        if not all(self._same(known[a], known[b]) for a, b in itertools.pairwise(codes)):
            line = np.stack([values, np.ones_like(values)], 1)
            rest = z - line @ np.linalg.lstsq(line, z, rcond=None)[0]
            slack = max(_AFFINE, 1e4 * np.finfo(known[codes[0]].dtype).eps)
            return bool(np.abs(rest).max() < slack * np.ptp(z, 0).max())
        return False

    def _model(self, base: np.ndarray, here: np.ndarray, known: list, affine: list) -> BinnedModel:
        edges: list[np.ndarray | None] = []
        weights: list[np.ndarray] = []
        bias = _centred(here)
        for c, of in enumerate(known):
            codes = np.array(sorted(of))
            moved = np.stack([_centred(of[code]) for code in codes]) - _centred(here)
            if self.grid.categorical[c]:
                edges.append(None)
                weights.append(moved)
            elif affine[c]:
                values = self.grid.values(c, codes).astype(np.float64)
                slope = (moved[-1] - moved[0]) / (values[-1] - values[0])
                edges.append(None)
                weights.append(slope[None])
                bias = bias - slope * float(self.grid.values(c, base[c : c + 1])[0])
            else:
                steps = _steps(of, self._same)
                edges.append(np.array([self.grid.threshold(c, low) for low, _ in steps]))
                ends = [low for low, _ in steps] + [int(codes[-1])]  # of every bin one known value
                weights.append(np.stack([_centred(of[code]) - _centred(here) for code in ends]))
        return BinnedModel(Binning(self.grid.schema, tuple(edges)), np.concatenate(weights), bias)

    def _check(self, found: BinnedModel, codes: np.ndarray, ask: Ask) -> None:
        answers = self._asked(ask, codes)
        apart = np.abs(found(self.grid.rows(codes)) - answers).max(1)
        slack = max(1e-6, 1e4 * float(np.finfo(answers.dtype).eps))
        # these rows are of the grid on which edges were searched: none of them lies within an edge
        if (apart > slack).any():
            raise InputError(
                f"columns do not add up: {int((apart > slack).sum())} of {len(codes)} answers are off, "
                f"by {apart.max():.2g} at most; features are crossed, or the model is not linear in them"
            )


def _centred(answer: np.ndarray) -> np.ndarray:
    logs = np.log(answer.astype(np.float64))
    return logs - logs.mean()


def _steps(known: dict[int, np.ndarray], same: Any) -> list[tuple[int, int]]:
    """Neighbouring known codes with different answers, ascending."""
    codes = sorted(known)
    return [
        (low, high) for low, high in itertools.pairwise(codes) if not same(known[low], known[high])
    ]


__all__ = ["BinnedModel", "binned_regression"]
