"""What the columns of a table mean: numbers with a range, and categories that are one-hot encoded."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table, as it stands in encoded rows.

    Attributes:
      name: of the column.
      places: which of the D numbers of a row it takes: one of a number, one a level of a category.
      low, high: range of a number, in rows.
      step: distance of neighbouring values of a column of whole numbers, in rows; None for others.
      levels: names of a category's values, in the order of `places`; empty for a number.
      units: (low, high) of a number before it was scaled; None where it was not.

    Raises:
      InputError: for contradictions between these.
    """

    name: str
    places: tuple[int, ...]
    low: float = -1.0
    high: float = 1.0
    step: float | None = None
    levels: tuple[str, ...] = ()
    units: tuple[float, float] | None = None

    def __post_init__(self):
        if self.levels and len(self.levels) != len(self.places):
            raise InputError(
                f"column {self.name!r} has {len(self.levels)} levels in {len(self.places)} places"
            )
        if not self.levels:
            if len(self.places) != 1:
                raise InputError(
                    f"column {self.name!r}: a number takes one place, not {self.places}"
                )
            if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
                raise InputError(f"column {self.name!r} has no range: [{self.low}, {self.high}]")
            if self.step is not None and not self.step > 0:
                raise InputError(f"column {self.name!r}: steps must be positive, got {self.step}")

    @property
    def categorical(self) -> bool:
        """Whether it is a category."""
        return bool(self.levels)

    def unscaled(self, value: float) -> float:
        """A number of a row in the units that it had before it was scaled."""
        if self.units is None or self.high == self.low:
            return float(value)
        low, high = self.units
        return float(low + (value - self.low) / (self.high - self.low) * (high - low))

    def grid(self) -> np.ndarray | None:
        """All values of a column of whole numbers, ascending; None for others."""
        if self.step is None:
            return None
        count = round((self.high - self.low) / self.step) + 1
        return np.linspace(self.low, self.high, count) if count > 1 else np.array([self.low])


@dataclasses.dataclass(frozen=True)
class Schema:
    """The columns of encoded rows (N, D).

    Attributes:
      columns: in the order in which they are named; their places together are 0, ..., D − 1.

    Raises:
      InputError: where a place is taken twice or by no column, or no columns are given.
    """

    columns: tuple[Column, ...]

    def __post_init__(self):
        object.__setattr__(self, "columns", tuple(self.columns))
        places = sorted(place for column in self.columns for place in column.places)
        if not places or places != list(range(len(places))):
            raise InputError(
                f"columns must take the places 0 to D − 1, each of them once; they take {places[:20]}"
            )

    @staticmethod
    def of_numbers(
        features: int | Sequence[str],
        low: Any = -1.0,
        high: Any = 1.0,
        *,
        step: float | None = None,
    ) -> "Schema":
        """Numbers alone.

        Args:
          features: D, or D names.
          low, high: their ranges, numbers or (D,).
          step: as of `Column`, of all of them.
        """
        whole = isinstance(features, int | np.integer)
        names = [f"x{i}" for i in range(int(features))] if whole else list(features)  # type: ignore[arg-type]
        low, high = (
            np.broadcast_to(np.asarray(end, np.float64), (len(names),)) for end in (low, high)
        )
        return Schema(
            tuple(
                Column(name, (i,), float(low[i]), float(high[i]), step)
                for i, name in enumerate(names)
            )
        )

    @property
    def width(self) -> int:
        """D, numbers of a row."""
        return sum(len(column.places) for column in self.columns)

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), each (D,); 0 and 1 of one-hot places."""
        low, high = np.zeros(self.width), np.ones(self.width)
        for column in self.columns:
            if not column.categorical:
                low[column.places[0]], high[column.places[0]] = column.low, column.high
        return low, high

    @property
    def names(self) -> tuple[str, ...]:
        """Of the D places: the column's, of a category ``column=level``."""
        found = [""] * self.width
        for column in self.columns:
            for i, place in enumerate(column.places):
                found[place] = f"{column.name}={column.levels[i]}" if column.levels else column.name
        return tuple(found)

    def uniform(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Rows (count, D) in float64, every column drawn uniformly from what it may be.

        Columns of whole numbers are drawn from those, and categories from their levels.
        """
        rows = np.zeros((count, self.width))
        for column in self.columns:
            grid = column.grid()
            if column.categorical:
                chosen = rng.integers(len(column.places), size=count)
                rows[np.arange(count), np.asarray(column.places)[chosen]] = 1
            elif grid is not None:
                rows[:, column.places[0]] = grid[rng.integers(len(grid), size=count)]
            else:
                rows[:, column.places[0]] = rng.uniform(column.low, column.high, count)
        return rows

    def codes(self, rows: Any) -> np.ndarray:
        """Rows (N, D) -> (N, C), a number a column: its value, or the index of a category's level.

        Raises:
          InputError: for rows of another width, or none.
        """
        rows = self.checked(rows)
        found = [
            rows[:, column.places].argmax(1) if column.categorical else rows[:, column.places[0]]
            for column in self.columns
        ]
        return np.stack(found, 1).astype(np.float64)

    def rows(self, codes: Any) -> np.ndarray:
        """The inverse of `codes`: (N, C) -> (N, D), in float64."""
        codes = np.asarray(codes, np.float64)
        rows = np.zeros((len(codes), self.width))
        for i, column in enumerate(self.columns):
            if column.categorical:
                places = np.asarray(column.places)[codes[:, i].astype(int)]
                rows[np.arange(len(codes)), places] = 1
            else:
                rows[:, column.places[0]] = codes[:, i]
        return rows

    def checked(self, rows: Any) -> np.ndarray:
        """Rows (N, D) as numbers.

        Raises:
          InputError: for another shape, or what are no numbers.
        """
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.shape[1] != self.width or rows.dtype.kind not in "biuf":
            raise InputError(
                f"rows must be numbers (N, {self.width}), got shape {rows.shape} of {rows.dtype}"
            )
        return rows


__all__ = ["Column", "Schema"]
