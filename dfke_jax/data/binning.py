"""Numbers cut into bins and categories one-hot: what services make of a table before a linear model sees it."""

import dataclasses
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.data.schema import Schema


@dataclasses.dataclass(frozen=True, eq=False)
class Binning:
    """From encoded rows (N, D) to features (N, M).

    A column of numbers with E edges becomes E + 1 features, of which the one of its bin is 1 (a
    value equal to an edge lies below it); one without edges stays a number; a category stays
    one-hot.

    Attributes:
      schema: of the rows.
      edges: a column each: ascending numbers; None of categories, and of numbers that stay.

    Raises:
      InputError: for another number of columns, edges of a category, or edges that do not ascend.
    """

    schema: Schema
    edges: tuple[np.ndarray | None, ...]

    def __post_init__(self):
        if len(self.edges) != len(self.schema.columns):
            raise InputError(f"{len(self.schema.columns)} columns, and edges of {len(self.edges)}")
        for column, cuts in zip(self.schema.columns, self.edges, strict=True):
            if cuts is None:
                continue
            if column.categorical:
                raise InputError(f"column {column.name!r} is a category and has no edges")
            if np.ndim(cuts) != 1 or not np.all(np.diff(cuts) > 0):
                raise InputError(f"column {column.name!r}: edges must be numbers that ascend")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Features of every column."""
        return tuple(
            len(column.places) if cuts is None else len(cuts) + 1
            for column, cuts in zip(self.schema.columns, self.edges, strict=True)
        )

    @property
    def width(self) -> int:
        """M."""
        return sum(self.sizes)

    def __call__(self, rows: Any) -> np.ndarray:
        """Rows (N, D) -> features (N, M), float64."""
        rows = self.schema.checked(rows)
        parts = []
        for column, cuts in zip(self.schema.columns, self.edges, strict=True):
            values = rows[:, list(column.places)].astype(np.float64)
            if cuts is not None:
                values = np.eye(len(cuts) + 1)[np.searchsorted(cuts, values[:, 0], side="left")]
            parts.append(values)
        return np.concatenate(parts, 1)


def quantile_binning(schema: Schema, rows: Any, bins: int) -> Binning:
    """Every column of numbers in bins of about equally many of the given rows.

    Args:
      schema: of the rows (N, D).
      bins: at most; quantiles that coincide are one edge. Edges lie half way between two values.

    Raises:
      InputError: for fewer than two bins, or rows of another width.
    """
    if bins < 2:
        raise InputError(f"bins must be at least 2, got {bins}")
    rows = schema.checked(rows)
    edges: list[np.ndarray | None] = []
    for column in schema.columns:
        if column.categorical:
            edges.append(None)
            continue
        values = np.asarray(rows[:, column.places[0]], np.float64)
        chosen = np.unique(np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf"))
        distinct = np.unique(values)
        place = np.searchsorted(distinct, chosen[chosen < distinct[-1]])
        edges.append((distinct[place] + distinct[place + 1]) / 2)
    return Binning(schema, tuple(edges))


__all__ = ["Binning", "quantile_binning"]
