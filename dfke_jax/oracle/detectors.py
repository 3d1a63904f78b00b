"""Detectors of extraction that an endpoint runs over the queries of one client, on the host."""

import warnings
from typing import Any, NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError

_BLOCK = 4096


class Alarm(NamedTuple):
    """What a detector says.

    Attributes:
      raised: whether it took the client for an attacker.
      query: the number of queries (from 1) at which it first did, or None.
      statistic: the last one, or None before there were enough queries.
    """

    raised: bool
    query: int | None
    statistic: float | None


class _Class:
    """The growing set of one predicted class."""

    def __init__(self, width: int):
        self.members = np.empty((16, width), np.float64)
        self.size = 0
        self.threshold = 0.0
        self.distances: list[float] = []
        self.total = self.squares = 0.0

    def add(self, row: np.ndarray, distance: float) -> None:
        if self.size == len(self.members):
            self.members = np.concatenate([self.members, np.empty_like(self.members)])
        self.members[self.size] = row
        self.size += 1
        self.total += distance
        self.squares += distance**2
        mean = self.total / self.size
        deviation = max(self.squares / self.size - mean**2, 0.0) ** 0.5
        self.threshold = max(self.threshold, mean - deviation)

    def nearest(self, rows: np.ndarray) -> np.ndarray:
        """Distance of every row to the set, inf for an empty one."""
        found = np.full(len(rows), np.inf)
        for start in range(0, self.size, _BLOCK):
            block = self.members[start : min(start + _BLOCK, self.size)]
            np.minimum(found, _apart(rows, block).min(1), out=found)
        return found


class Prada:
    """PRADA: distances between a client's queries, which are nearly normal for natural data and not
    for crafted ones.

    For a query of predicted class c, d is its least L2 distance to the set G_c; it enters G_c if d
    > T_c, and then T_c <- max(T_c, mean − deviation of the distances with which G_c's members
    entered). The first query of a class enters with distance 0 and is not itself a distance. Over
    the distances so far, those more than three deviations from the mean set aside, an alarm is
    raised when more than `least` remain and Shapiro and Wilk's W < δ. An alarm stays raised.

    A batch costs one distance matrix per class, and gives what its queries one at a time would.

    Args:
      delta: δ, between 0 and 1 (the paper: 0.95 for MNIST, 0.87 for GTSRB).
      every: queries between two tests.
      least: distances that a test needs; W is not defined under 3.
      per_class: classes with fewer distances are left out of the test; the released code uses 10,
        the paper has no such rule.

    Attributes:
      queries: how many were seen. history: (queries, W) of every test.

    Source: Juuti, Szyller, Marchal and Asokan, PRADA, EuroS&P 2019, section 5, algorithm 3.
    """

    def __init__(
        self, delta: float = 0.95, *, every: int = 10, least: int = 100, per_class: int = 0
    ):
        if not 0 < delta < 1:
            raise InputError(f"delta must lie between 0 and 1, got {delta}")
        if every < 1 or least < 3 or per_class < 0:
            raise InputError(
                f"every >= 1, least >= 3 and per_class >= 0 are needed, got {every}, {least}, "
                f"{per_class}"
            )
        self.delta, self.every, self.least, self.per_class = delta, every, least, per_class
        self.queries = 0
        self.history: list[tuple[int, float]] = []
        self._classes: dict[int, _Class] = {}
        self._width: int | None = None
        self._raised_at: int | None = None

    def observe(self, rows: Any, labels: Any) -> Alarm:
        """Takes queries in their order.

        Args:
          rows: (B, ...), flattened; of the same width in every call. labels: (B,) predicted
            classes.

        Raises:
          InputError: for rows of another width, NaN, or another number of labels.
        """
        rows = np.asarray(rows, np.float64)
        rows = rows.reshape(len(rows), -1)
        labels = np.asarray(labels)
        if self._width not in (None, rows.shape[1]):
            raise InputError(f"rows have {rows.shape[1]} numbers, those before had {self._width}")
        if labels.shape != (len(rows),) or not np.issubdtype(labels.dtype, np.integer):
            raise InputError(
                f"{len(rows)} rows need as many integer labels, got {labels.dtype} of shape "
                f"{labels.shape}"
            )
        if not np.isfinite(rows).all():
            raise InputError(
                f"{int((~np.isfinite(rows)).any(1).sum())} of {len(rows)} rows contain NaN or "
                "infinity"
            )
        self._width = rows.shape[1]
        found = np.full(len(rows), np.nan)
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            found[own] = self._distances(
                self._classes.setdefault(int(label), _Class(rows.shape[1])), rows[own]
            )
        for label, distance in zip(labels, found, strict=True):
            if not np.isnan(distance):
                self._classes[int(label)].distances.append(distance)
            self.queries += 1
            if self.queries % self.every == 0:
                self._test()
        return self.alarm

    @property
    def alarm(self) -> Alarm:
        statistic = self.history[-1][1] if self.history else None
        return Alarm(self._raised_at is not None, self._raised_at, statistic)

    @staticmethod
    def _distances(group: _Class, rows: np.ndarray) -> np.ndarray:
        """The least distances of a class's new rows, in their order, while the set grows; NaN for a
        first one.
        """
        nearest, among = group.nearest(rows), _apart(rows, rows)
        found = np.full(len(rows), np.nan)
        for i, row in enumerate(rows):
            first = group.size == 0
            if not first:
                found[i] = nearest[i]
            if first or nearest[i] > group.threshold:
                group.add(row, 0.0 if first else nearest[i])
                np.minimum(nearest, among[i], out=nearest)
        return found

    def _test(self) -> None:
        pooled = [
            group.distances
            for group in self._classes.values()
            if len(group.distances) >= self.per_class
        ]
        distances = np.concatenate([np.empty(0), *pooled])
        if len(distances) <= self.least:
            return
        inside = np.abs(distances - distances.mean()) <= 3 * distances.std()
        distances = distances[inside]
        if len(distances) <= self.least:
            return
        from scipy import stats

        if np.ptp(distances) == 0:
            statistic = 1.0  # as scipy has it for a constant sample, without its warning
        else:
            with warnings.catch_warnings():  # above 5,000 the p-value is inexact; W is not
                warnings.simplefilter("ignore", UserWarning)
                statistic = float(stats.shapiro(distances).statistic)
        self.history.append((self.queries, statistic))
        if statistic < self.delta and self._raised_at is None:
            self._raised_at = self.queries


def _apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return cdist(first, second)


__all__ = ["Alarm", "Prada"]
