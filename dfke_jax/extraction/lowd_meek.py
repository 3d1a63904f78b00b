"""Linear and polynomial classifiers from labels alone, by line searches to the boundary.

From a row p near the boundary, the label flips after t_i along axis i. On the boundary the score is
zero, w·p + b + w_i t_i = 0, so that with the score at p as the unit w_i = −1/t_i: two or more
searches of one number find all there is. All axes are searched side by side.

A polynomial classifier is linear in monomials φ(x), whose axes cannot be walked, since most points
there belong to no row. There, points of the boundary itself are found by bisection between rows of
different labels; each is one equation (φ(x), 1)·(w, b) = 0, and as many as there are unknowns
determine the classifier.

Source: Lowd, Meek, "Adversarial Learning", KDD 2005, section 3 (linear); Tramèr et al., USENIX
Security 2016, section 6 (polynomial kernels). Deviations: the score at p is the unit, where the
paper walks from a sign witness; axes go side by side; the polynomial form takes boundary points
where the paper inverts φ; what was found is tried out near its boundary.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from dfke_jax.core.errors import BudgetError, InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.data.schema import Schema
from dfke_jax.extraction.labels import asking_labels, bisected, two_sides

_APPROACH = 8
_AGREEMENT = 0.9


@dataclasses.dataclass(frozen=True, eq=False)
class Halfspace:
    """A binary classifier of the sign of w·φ(x) + b.

    Attributes:
      weights: w (M,), in float64. bias: b.
      labels: (label where it is negative, label where it is positive).
      exponents: (M, D), of the monomials φ(x)_m = Π_i x_i^exponents[m, i]; None for φ(x) = x.
    """

    weights: np.ndarray
    bias: float
    labels: tuple[int, int] = (0, 1)
    exponents: np.ndarray | None = None

    def scores(self, rows: Any) -> np.ndarray:
        """w·φ(x) + b of rows (N, D) -> (N,)."""
        rows = np.asarray(rows, np.float64)
        features = rows if self.exponents is None else monomials(rows, self.exponents)
        return features @ self.weights + self.bias

    def predict(self, rows: Any) -> np.ndarray:
        """Labels (N,)."""
        return np.where(self.scores(rows) > 0, self.labels[1], self.labels[0])


def monomials(rows: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Rows (N, D), exponents (M, D) -> (N, M)."""
    return np.stack([np.prod(rows**powers, 1) for powers in exponents], 1)


def lowd_meek(
    schema: Schema, *, degree: int = 1, precision: float = 2.0**-14, checks: int = 32
) -> HostAttack:
    """A binary linear or polynomial classifier from labels.

    Args:
      schema: of its rows; every place of an encoded row is taken for a number. A linear victim is
        asked beyond its box where its boundary lies there, one of higher degree inside alone.
      degree: of the polynomial in the row, 1 for a linear classifier.
      precision: of line searches: relative to t_i, or to the distance of the rows between which they
        go.
      checks: rows at the end, close to the boundary that was found on either side, to see whether it
        is there; of a linear victim half as many more, far from the box.

    Returns:
      A `HostAttack` for labels (B,) or scores (B, K), of which the label is read; it finds a
      `Halfspace`. Rows: at most D (2 (D_e + 1) + log2(1/precision)) and a few; D_e, doublings until
      an axis meets the boundary, is small near it. The ledger counts the phases ``sides``,
      ``boundary``, ``axes`` and ``checks``.

    Raises, at once or while it runs:
      InputError: for numbers outside their range; one label alone, or more than two; or a boundary
        that is not where it was found: the model is of another kind, answers change from time to
        time, or the endpoint clips rows.
    """
    if degree < 1 or not 0 < precision < 0.5 or checks < 0:
        raise InputError(
            f"degree is at least 1, precision in (0, 0.5) and checks at least 0, got {degree}, {precision}, {checks}"
        )
    return HostAttack(_LowdMeek(schema, degree, precision, checks).solve)


@dataclasses.dataclass(frozen=True)
class _LowdMeek:
    schema: Schema
    degree: int
    precision: float
    checks: int

    def solve(self, rng: np.random.Generator, ask: Ask) -> Solution:
        labels = asking_labels(ask)
        with ask.phase("sides"):
            rows, found = two_sides(labels, self.schema, rng, self.degree == 1)
        positive = int(found.max())
        if self.degree == 1:
            halfspace = self._linear(rng, ask, labels, rows, found, positive)
        else:
            halfspace = self._polynomial(rng, ask, labels, rows, found, positive)
        ask.keep(halfspace)
        try:
            with ask.phase("checks"):
                self._check(rng, labels, halfspace, rows, found)
        except BudgetError:
            return Solution(halfspace, complete=False)
        return Solution(halfspace)

    # ---- linear

    def _linear(
        self, rng: Any, ask: Ask, labels: Any, rows: Any, found: Any, positive: int
    ) -> Halfspace:
        first, second = rows[found != positive][:1], rows[found == positive][:1]
        with ask.phase("boundary"):
            near, _ = bisected(labels, first, second, found[found != positive][:1], _APPROACH)
        point, span = near[0], float(np.abs(second - first).max())
        # 16 times the last bracket: far enough that the score is not lost in rounding
        point = point + (first - second)[0] / np.linalg.norm(first - second) * span * 2.0 ** (
            4 - _APPROACH
        )
        low, high = self.schema.box
        with ask.phase("axes"):
            label = int(labels(point[None])[0])
            reached = self._axes(labels, point, label, (high - low) / 2)
        weights = np.divide(-1.0, reached, out=np.zeros_like(reached), where=np.isfinite(reached))
        if not weights.any():
            raise InputError(
                "no axis meets the boundary: the model is not linear, or the endpoint clips rows"
            )
        sign = 1.0 if label == positive else -1.0
        bias = 1.0 - weights @ point
        return Halfspace(sign * weights, float(sign * bias), _both(found))

    def _axes(self, labels: Any, point: np.ndarray, label: int, scale: np.ndarray) -> np.ndarray:
        """t (D,), signed, at which the label flips along each axis; infinite where it never does."""
        features = len(point)
        step = np.full((features, 2), 2.0**-6) * scale[:, None] * np.array([1.0, -1.0])
        before = np.zeros((features, 2))
        flips = np.zeros((features, 2), bool)
        for _ in range(_DOUBLINGS):
            axes, sides = np.nonzero(~np.any(flips, axis=1, keepdims=True) & np.ones((1, 2), bool))
            if not len(axes):
                break
            asked = np.repeat(point[None], len(axes), 0)
            asked[np.arange(len(axes)), axes] += step[axes, sides]
            changed = labels(asked) != label
            flips[axes[changed], sides[changed]] = True
            on = axes[~changed], sides[~changed]
            before[on], step[on] = step[on], step[on] * 4
        axes = np.flatnonzero(flips.any(1))
        side = flips[axes].argmax(1)
        inner, outer = before[axes, side], step[axes, side]
        while len(axes) and (wide := np.abs(outer - inner) > self.precision * np.abs(outer)).any():
            middle = (inner + outer) / 2
            asked = np.repeat(point[None], int(wide.sum()), 0)
            asked[np.arange(len(asked)), axes[wide]] += middle[wide]
            same = np.zeros(len(axes), bool)
            same[wide] = labels(asked) == label
            other = wide & ~same
            inner[same], outer[other] = middle[same], middle[other]
        reached = np.full(features, np.inf)
        reached[axes] = (inner + outer) / 2
        return reached

    # ---- polynomial

    def _polynomial(
        self, rng: Any, ask: Ask, labels: Any, rows: Any, found: Any, positive: int
    ) -> Halfspace:
        exponents = np.array(
            [
                p
                for p in itertools.product(range(self.degree + 1), repeat=self.schema.width)
                if 0 < sum(p) <= self.degree
            ]
        )
        needed = len(exponents) + max(4, len(exponents) // 2)
        with ask.phase("sides"):
            while min((found == positive).sum(), (found != positive).sum()) < min(4, needed):
                more = self.schema.uniform(rng, 32)
                rows, found = np.concatenate([rows, more]), np.concatenate([found, labels(more)])
                if len(rows) > 64 * needed:
                    break
        ones, others = rows[found == positive], rows[found != positive]
        pairs = np.array(list(itertools.product(range(len(ones)), range(len(others)))))
        pairs = pairs[rng.permutation(len(pairs))[:needed]]
        if len(pairs) < len(exponents):
            raise InputError(
                f"{len(ones)} and {len(others)} rows of two classes make {len(pairs)} boundary points, and "
                f"{len(exponents)} unknowns need as many"
            )
        steps = int(np.ceil(-np.log2(self.precision)))
        with ask.phase("boundary"):
            near, far = bisected(
                labels, ones[pairs[:, 0]], others[pairs[:, 1]], np.full(len(pairs), positive), steps
            )
        matrix = np.concatenate(
            [monomials((near + far) / 2, exponents), np.ones((len(pairs), 1))], 1
        )
        solved = np.linalg.svd(matrix)[2][-1]
        halfspace = Halfspace(solved[:-1], float(solved[-1]), _both(found), exponents)
        if (halfspace.predict(rows) != found).mean() > 0.5:
            halfspace = dataclasses.replace(
                halfspace, weights=-halfspace.weights, bias=-halfspace.bias
            )
        return halfspace

    # ---- both

    def _check(self, rng: Any, labels: Any, halfspace: Halfspace, rows: Any, found: Any) -> None:
        """Rows a thousandth of a box from the boundary on either side; of a linear victim others in a larger box."""
        if not self.checks:
            return
        ones, others = rows[found == halfspace.labels[1]], rows[found == halfspace.labels[0]]
        count = (self.checks + 1) // 2
        first, second = (
            ones[rng.integers(len(ones), size=count)],
            others[rng.integers(len(others), size=count)],
        )
        near, far = bisected(halfspace.predict, first, second, halfspace.predict(first), 30)
        slope = (first - second) / np.linalg.norm(first - second, axis=1, keepdims=True)
        width = float(np.max(np.subtract(*self.schema.box[::-1])))
        asked = [near + slope * width * 2e-3, far - slope * width * 2e-3]
        if self.degree == 1:  # and beyond the box, where an endpoint that clips gives itself away
            low, high = self.schema.box
            asked.append(low + (high - low) * rng.uniform(-3, 4, size=(count, self.schema.width)))
        asked = np.concatenate(asked)
        agreed = float((labels(asked) == halfspace.predict(asked)).mean())
        if agreed < _AGREEMENT:
            raise InputError(
                f"of {len(asked)} rows around the boundary that was found {agreed:.0%} are answered by it: the model "
                f"is no polynomial of degree {self.degree}, answers change from time to time, or the endpoint clips "
                "or rounds rows"
            )


_DOUBLINGS = 16


def _both(found: np.ndarray) -> tuple[int, int]:
    return int(found.min()), int(found.max())


__all__ = ["Halfspace", "lowd_meek", "monomials"]
