"""What attacks on trees are made of: a grid of values, questions asked once, searches side by side, boxes."""

import dataclasses
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask
from dfke_jax.data.schema import Schema
from dfke_jax.extraction.tree_model import ExtractedTree, TreeBuilder

Search = Generator[np.ndarray, np.ndarray, Any]
"""Yields codes (n, C) that it wants to know the identities of, is sent those (n,), returns what it found."""
_MOST_VALUES = 2**40


class Grid:
    """The values that each column is asked at, by whole numbers from 0 on: the codes of a row.

    Levels of a category; all values of a column of whole numbers; of other numbers multiples of
    `epsilon` times the range, or with epsilon = 0 every float32 of the range.
    """

    def __init__(self, schema: Schema, epsilon: float):
        if not 0 <= epsilon <= 0.5:
            raise InputError(f"epsilon is a share of a column's range, in [0, 0.5], got {epsilon}")
        self.schema = schema
        self.steps = 0 if epsilon == 0 else round(1 / epsilon)
        self.categorical = np.array([column.categorical for column in schema.columns])
        self.sizes = np.array([self._size(place) for place in range(len(schema.columns))], np.int64)
        if self.sizes.max() > _MOST_VALUES:
            raise InputError(
                "epsilon is too small for a column's range; use epsilon=0 for every float32"
            )

    def _size(self, place: int) -> int:
        column = self.schema.columns[place]
        grid = column.grid()
        if column.categorical:
            return len(column.levels)
        if grid is not None:
            return len(grid)
        if column.low == column.high:
            return 1
        return (
            self.steps + 1 if self.steps else int(_ordinal(column.high) - _ordinal(column.low)) + 1
        )

    def values(self, place: int, codes: np.ndarray) -> np.ndarray:
        """Numbers of column `place`, float32 as they are sent; of a category the codes."""
        column = self.schema.columns[place]
        if column.categorical:
            return codes.astype(np.float64)
        grid = column.grid()
        if grid is not None:
            return grid[codes].astype(np.float32)
        if not self.steps:
            return _float_of(_ordinal(column.low) + codes)
        return (column.low + codes * ((column.high - column.low) / max(self.steps, 1))).astype(
            np.float32
        )

    def codes_of(self, rows: np.ndarray) -> np.ndarray:
        """The nearest codes (n, C) of rows (n, D)."""
        codes = self.schema.codes(rows)
        for place, column in enumerate(self.schema.columns):
            if column.categorical:
                continue
            if column.step is not None or self.steps:
                step = column.step or (column.high - column.low) / self.steps
                codes[:, place] = np.round((codes[:, place] - column.low) / (step or 1.0))
            else:
                codes[:, place] = _ordinal(codes[:, place]) - _ordinal(column.low)
        return np.clip(codes, 0, self.sizes - 1).astype(np.int64)

    def uniform(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Codes (count, C) of rows drawn uniformly."""
        return self.codes_of(self.schema.uniform(rng, count))

    def rows(self, codes: np.ndarray) -> np.ndarray:
        """Rows (n, D) in float32."""
        columns = [self.values(place, codes[:, place]) for place in range(codes.shape[1])]
        return self.schema.rows(np.stack(columns, 1)).astype(np.float32)

    def threshold(self, place: int, code: int) -> float:
        """Half way between a code and the next."""
        below, above = self.values(place, np.array([code, code + 1])).astype(np.float64)
        return float((below + above) / 2)


def _ordinal(values: Any) -> np.ndarray:
    """Whole numbers in the order of float32s, neighbours one apart."""
    bits = (np.asarray(values, np.float32) + np.float32(0)).view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def _float_of(ordinals: np.ndarray) -> np.ndarray:
    bits = np.where(ordinals >= 0, ordinals, -ordinals | 0x80000000)
    return bits.astype(np.uint32).view(np.float32)


class Identities:
    """The identity of what is answered at a point, every point asked once.

    Attributes:
      points: codes (C,) of everything that was asked, in order. found: their identities, numbers
        from 0 on. answers: of each identity what the victim answered, where it was first met.
    """

    def __init__(self, ask: Ask, grid: Grid, identified: bool):
        self.ask, self.grid, self.identified = ask, grid, identified
        self.known: dict[bytes, int] = {}
        self.numbers: dict[bytes, int] = {}
        self.answers: list[np.ndarray] = []
        self.points: list[np.ndarray] = []
        self.found: list[int] = []

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Codes (n, C) -> identities (n,)."""
        codes = np.asarray(codes, np.int64)
        keys = [code.tobytes() for code in codes]
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self.known}
        places = sorted(new.values())
        if places:
            answers = np.asarray(self.ask(self.grid.rows(codes[places])))
            check_answered(answers, len(places), self.identified)
            for place, answer in zip(places, answers, strict=True):
                identity = np.atleast_1d(answer)[:1] if self.identified else answer
                number = self.numbers.setdefault(np.asarray(identity).tobytes(), len(self.answers))
                if number == len(self.answers):
                    self.answers.append(answer)
                self.known[keys[place]] = number
                self.points.append(codes[place])
                self.found.append(number)
        return np.array([self.known[key] for key in keys])

    def run(self, search: Search) -> Any:
        """Drives a search to its end."""
        try:
            wanted = next(search)
            while True:
                wanted = search.send(self(wanted))
        except StopIteration as end:
            return end.value


def check_answered(answers: np.ndarray, count: int, identified: bool) -> None:
    """Whether answers can be those of a tree.

    Raises:
      InputError: when they cannot.
    """
    if answers.ndim not in (1, 2) or len(answers) != count or answers.dtype.kind not in "iuf":
        raise InputError(
            f"asked {count} rows, got answers of shape {answers.shape} of {answers.dtype}"
        )
    if identified and (answers.ndim != 2 or answers.shape[1] < 2):
        raise InputError(
            f"an identity and a prediction are (B, 1 + K), got answers of shape {answers.shape}; "
            "identified=False takes whole answers for identities"
        )


def side_by_side(searches: Iterable[Search]) -> Search:
    """Several searches as one, which asks for what all of them want next together."""
    searches = list(searches)
    results: list[Any] = [None] * len(searches)
    wanted: dict[int, np.ndarray] = {}

    def advance(place: int, sent: np.ndarray | None) -> None:
        try:
            search = searches[place]
            wanted[place] = next(search) if sent is None else search.send(sent)
        except StopIteration as end:
            wanted.pop(place, None)
            results[place] = end.value

    for place in range(len(searches)):
        advance(place, None)
    while wanted:
        places = sorted(wanted)
        ends = np.cumsum([len(wanted[place]) for place in places])
        answers = np.split((yield np.concatenate([wanted[place] for place in places])), ends[:-1])
        for place, sent in zip(places, answers, strict=True):
            advance(place, sent)
    return results


def moved(start: np.ndarray, *moves: tuple[int, int]) -> np.ndarray:
    """`start` (C,) with (column, code) put in."""
    code = start.copy()
    for column, value in moves:
        code[column] = value
    return code


def boundary(
    start: np.ndarray, identity: int, column: int, end: int, thresholds: Sequence[int]
) -> Search:
    """Where, from `start` to `end` along a column, another identity than `identity` begins.

    Thresholds that were met elsewhere are tried first: one that holds here costs two rows.

    Args:
      thresholds: codes j, ascending, of thresholds between j and j + 1.

    Returns:
      (last code with the identity, first without it, the identity there). It is one such place; of a
      leaf, which is a box, the only one.
    """
    up = end > start[column]
    near, far, there = int(start[column]), int(end), None
    if up:
        tried = [int(j) for j in thresholds if near <= j < far]
        inner, outer = tried, [j + 1 for j in tried]
    else:
        tried = [int(j) for j in reversed(thresholds) if far <= j < near]
        inner, outer = [j + 1 for j in tried], tried
    last, first = -1, len(tried)
    while first - last > 1:
        middle = (last + first) // 2
        found = (yield moved(start, (column, inner[middle]))[None])[0]
        if found == identity:
            last = middle
        else:
            first, there = middle, found
    if first < len(tried):
        far = inner[first]
    if last >= 0:
        near = inner[last]
        if outer[last] != far:
            found = (yield moved(start, (column, outer[last]))[None])[0]
            if found == identity:
                near = outer[last]
            else:
                far, there = outer[last], found
    while abs(far - near) > 1:
        middle = (near + far) // 2
        found = (yield moved(start, (column, middle))[None])[0]
        if found == identity:
            near = middle
        else:
            far, there = middle, found
    if there is None:
        there = (yield moved(start, (column, far))[None])[0]
    return near, far, int(there)


def differing(
    start: np.ndarray, identity: int, moves: Sequence[tuple[int, int]], size: int
) -> Search:
    """Which of the moves (column, code), made alone, lead out of the leaf of `start`.

    A leaf is a product of intervals and sets, so that several moves of different columns, made at
    once, stay inside if and only if each of them does. They are tested in groups of `size`, and a
    group that leads out is halved.

    Returns:
      The moves that do.
    """
    layers: list[list[tuple[int, int]]] = []
    place: dict[int, int] = {}
    for move in moves:  # of one column at most one move a layer
        layer = place[move[0]] = place.get(move[0], -1) + 1
        layers.extend([[]] * (layer == len(layers)))
        layers[layer] = [*layers[layer], move]
    pending = [
        (layer[first : first + size], False)
        for layer in layers
        for first in range(0, len(layer), size)
    ]
    out: list[tuple[int, int]] = []
    while pending:
        out += [group[0] for group, leads in pending if leads and len(group) == 1]
        tests = [(group, leads) for group, leads in pending if not (leads and len(group) == 1)]
        if not tests:
            break
        probes = [group[: (len(group) + 1) // 2] if leads else group for group, leads in tests]
        found = yield np.stack([moved(start, *probe) for probe in probes])
        pending = []
        for (group, _), probe, changed in zip(tests, probes, found != identity, strict=True):
            rest = group[len(probe) :]
            if changed:
                pending.append((probe, True))
            if rest:
                pending.append((rest, not changed))
    return out


@dataclasses.dataclass
class Box:
    """A product of intervals and sets of levels.

    Attributes:
      low, high: (C,) codes of the intervals' ends, both inside; of a category 0 and its last.
      levels: of a category's column, its levels inside.
    """

    low: np.ndarray
    high: np.ndarray
    levels: dict[int, np.ndarray]

    @staticmethod
    def whole(grid: Grid) -> "Box":
        """All of the grid."""
        levels = {int(c): np.ones(grid.sizes[c], bool) for c in np.flatnonzero(grid.categorical)}
        return Box(np.zeros_like(grid.sizes), grid.sizes - 1, levels)

    def contains(self, codes: np.ndarray) -> np.ndarray:
        """Codes (n, C) -> (n,) bool."""
        inside = np.asarray(((codes >= self.low) & (codes <= self.high)).all(1))
        for column, levels in self.levels.items():
            inside &= levels[codes[:, column]]
        return inside

    def copy(self) -> "Box":
        """Of its own arrays."""
        return Box(
            self.low.copy(), self.high.copy(), {c: of.copy() for c, of in self.levels.items()}
        )


def tree_of_boxes(
    grid: Grid, boxes: Sequence[Box], answers: np.ndarray, identified: bool
) -> ExtractedTree:
    """The tree whose leaves are the boxes, which partition the grid; leaf i answers ``answers[i]``.

    At every node the cut is taken that cuts no box and divides them most evenly. There is one in
    every part of a partition that a tree made; in others the cut that cuts fewest.
    """
    builder = TreeBuilder(grid.schema)
    low, high = (np.stack([getattr(box, end) for box in boxes]) for end in ("low", "high"))
    levels = {c: np.stack([box.levels[c] for box in boxes]) for c in boxes[0].levels}

    def build(
        low: np.ndarray, high: np.ndarray, levels: dict[int, np.ndarray], leaf: np.ndarray
    ) -> int:
        if len(leaf) == 1 or (leaf == leaf[0]).all():
            return builder.add(leaf=int(leaf[0]))
        best = _best_cut(low, high, levels, grid.categorical)
        if best is None:  # boxes that no cut separates: identities are not what they were taken for
            return builder.add(leaf=int(leaf[0]))
        column, cut = best
        if isinstance(cut, np.ndarray):
            node = builder.add(column, members=cut)
            parts = []
            for side in (cut, ~cut):
                kept = (levels[column] & side).any(1)
                inner = {c: of[kept] for c, of in levels.items()}
                inner[column] = inner[column] & side
                parts.append(build(low[kept], high[kept], inner, leaf[kept]))
        else:
            node = builder.add(column, grid.threshold(column, cut))
            parts = []
            for left in (True, False):
                kept = low[:, column] <= cut if left else high[:, column] > cut
                lower, upper = low[kept], high[kept]
                if left:
                    upper[:, column] = np.minimum(upper[:, column], cut)
                else:
                    lower[:, column] = np.maximum(lower[:, column], cut + 1)
                parts.append(
                    build(lower, upper, {c: of[kept] for c, of in levels.items()}, leaf[kept])
                )
        builder.below(node, *parts)
        return node

    build(low, high, levels, np.arange(len(boxes)))
    return builder.tree(answers, identified)


def _best_cut(
    low: np.ndarray, high: np.ndarray, levels: dict[int, np.ndarray], categorical: np.ndarray
) -> tuple[int, int | np.ndarray] | None:
    count, best, found = len(low), (np.inf, np.inf), None
    for column in range(low.shape[1]):
        if categorical[column]:
            inside = levels[column]
            cuts = np.unique(inside, axis=0)
            cuts = cuts[~(cuts == inside.any(0)).all(1)]
            for cut in cuts:
                left, right = (inside & cut).any(1), (inside & ~cut).any(1)
                score = (int((left & right).sum()), abs(int(left.sum()) - int(right.sum())))
                if score < best and left.any() and right.any():
                    best, found = score, (column, cut)
            continue
        cuts = np.unique(high[:, column])[:-1]
        if not len(cuts):
            continue
        starts = np.searchsorted(np.sort(low[:, column]), cuts, side="right")
        ends = np.searchsorted(np.sort(high[:, column]), cuts, side="right")
        crossed, uneven = starts - ends, np.abs(starts - (count - ends))
        place = int(np.lexsort((uneven, crossed))[0])
        if (score := (int(crossed[place]), int(uneven[place]))) < best:
            best, found = score, (column, int(cuts[place]))
    return found


__all__ = ["Box", "Grid", "Identities", "Search", "boundary", "check_answered", "differing", "moved", "side_by_side", "tree_of_boxes"]  # fmt: skip
