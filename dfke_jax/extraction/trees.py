"""Decision and regression trees, leaf by leaf, from whatever tells the leaves apart.

A leaf of a tree is a box: an interval of every number and a set of levels of every category. From a
point inside, the ends of its intervals are found by bisection, and just beyond each end lies another
leaf, whose own box is found next, until no new identity turns up. The search goes breadth-first, so
that a remote victim sees batches.

Where leaves share identities (a service that answers a class and its confidence), path finding
misses what lies behind a face with the same answer on both sides. Then a tree is made of all points
that were asked, and held against new ones, uniform and in every leaf of its own; where it is wrong,
a threshold is missing between that point and the nearest that it took it for, and is found by
bisection.

Source: Tramèr, Zhang, Juels, Reiter, Ristenpart, "Stealing Machine Learning Models via Prediction
APIs", USENIX Security 2016, section 4.2, algorithms 1 and 2. Deviations: only the nearest threshold
on either side is searched, not all along the line, since every other one is the nearest of a leaf
beyond; features that do not bound a leaf are excluded several at a time, since a box stays a box;
thresholds that were met in another leaf are tried first; values are those that the victim can tell
apart (whole numbers, float32), or a grid; shared identities are repaired by validation, which the
paper leaves out.
"""

import dataclasses
from typing import Any

import numpy as np

from dfke_jax.core.errors import BudgetError, InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.data.schema import Schema
from dfke_jax.extraction.tree_model import ExtractedTree, TreeBuilder
from dfke_jax.extraction.tree_search import (
    Box,
    Grid,
    Identities,
    Search,
    boundary,
    differing,
    moved,
    side_by_side,
    tree_of_boxes,
)

_REPAIRED_AT_ONCE = 64
_LARGEST_GROUP = 64


@dataclasses.dataclass(frozen=True)
class TreeSettings:
    """How trees are searched.

    Attributes:
      epsilon: of numbers that are not whole, the share of their range to which thresholds are found;
        0 for the last bit of float32. A threshold is wrong by a quarter of it on average.
      identified: whether the first number of an answer is the leaf's identity (`tree_victim`).
        Otherwise the whole answer is taken for it, which leaves may share.
      at_once: leaves that are explored side by side. More make fewer and larger batches, and a few
        more rows, since thresholds are not yet known that others are about to find.
      checks: rows, drawn uniformly, of each round of validation, and one more in every leaf found;
        only where leaves share identities.
      rounds: of validation at most; it ends with the first one without an error. 0 leaves path
        finding alone.

    Raises:
      InputError: for numbers outside these ranges.
    """

    epsilon: float = 2.0**-14
    identified: bool = True
    at_once: int = 4
    checks: int = 1000
    rounds: int = 30

    def __post_init__(self):
        if self.at_once < 1 or self.checks < 1 or self.rounds < 0:
            raise InputError(
                f"at_once and checks are at least 1 and rounds at least 0, got {self.at_once}, "
                f"{self.checks}, {self.rounds}"
            )


def find_paths(schema: Schema, settings: TreeSettings | None = None) -> HostAttack:
    """A decision or regression tree by its leaves' boxes.

    Args:
      schema: of its rows. Categories are asked one level at a time, numbers within their range.
      settings: how it is searched.

    Returns:
      A `HostAttack` for answers (B, 1 + K), identity and prediction, or without identities (B, K)
      or labels (B,); it finds an `ExtractedTree`. A constant model is a tree of one leaf. The
      ledger counts the phases ``paths`` and ``validation``.

    Raises, at once or while it runs:
      InputError: for an epsilon outside [0, 0.5], or answers that are none of a tree.
    """
    settings = settings or TreeSettings()
    return HostAttack(_Paths(schema, Grid(schema, settings.epsilon), settings).solve)


@dataclasses.dataclass(frozen=True)
class _Paths:
    schema: Schema
    grid: Grid
    settings: TreeSettings

    def solve(self, rng: np.random.Generator, ask: Ask) -> Solution:
        run = _Run(self.grid, self.settings, Identities(ask, self.grid, self.settings.identified))
        try:
            with ask.phase("paths"):
                boxes = run.paths(self.grid.uniform(rng, 1)[0])
            if self.settings.identified:
                tree = tree_of_boxes(
                    self.grid,
                    [box for _, box in boxes],
                    np.stack([run.ids.answers[identity] for identity, _ in boxes]),
                    True,
                )
                if run.explains(tree):
                    return Solution(tree)
            with ask.phase("validation"):  # identities are shared, whatever was said
                return Solution(run.validated(rng))
        except BudgetError:
            return Solution(run.of_points() if run.ids.points else None, complete=False)


class _Run:
    """One search: what was asked, and the thresholds that were found, by column."""

    def __init__(self, grid: Grid, settings: TreeSettings, ids: Identities):
        self.grid, self.settings, self.ids = grid, settings, ids
        self.thresholds: list[list[int]] = [[] for _ in grid.sizes]
        self.faces, self.tested = 1, 5  # how often a move leads out, at first guessed

    # ---- path finding

    def paths(self, start: np.ndarray) -> list[tuple[int, Box]]:
        """(identity, box) of all leaves that a walk from leaf to leaf reaches."""
        boxes: list[tuple[int, Box]] = []
        first = int(self.ids(start[None])[0])
        waiting: list[tuple[np.ndarray, int, tuple[int, int, bool] | None]] = [(start, first, None)]
        while waiting:
            wave = []
            while waiting and len(wave) < self.settings.at_once:
                entry = waiting.pop(0)
                if not self._visited(entry, boxes, wave):
                    wave.append(entry)
            found = self.ids.run(side_by_side([self._explored(*entry) for entry in wave]))
            for (_, identity, _), (box, beyond) in zip(wave, found, strict=True):
                boxes.append((identity, box))
                waiting += beyond
        return boxes

    def _visited(self, entry: Any, boxes: list[tuple[int, Box]], wave: list) -> bool:
        code, identity, _ = entry
        if any(identity == other for _, other, _ in wave) and self.settings.identified:
            return True
        same = (box for other, box in boxes if other == identity)
        if self.settings.identified:
            return next(same, None) is not None
        return any(box.contains(code[None])[0] for box in same)

    def _explored(
        self, start: np.ndarray, identity: int, crossed: tuple[int, int, bool] | None
    ) -> Search:
        """The box around `start`, and a point beyond each of its faces."""
        box = Box.whole(self.grid)
        if crossed is not None:  # the face through which this leaf was entered
            column, code, up = crossed
            (box.low if up else box.high)[column] = code
        numbers = np.flatnonzero(~self.grid.categorical)
        moves = [(int(c), int(box.low[c])) for c in numbers if box.low[c] < start[c]]
        moves += [(int(c), int(box.high[c])) for c in numbers if box.high[c] > start[c]]
        if crossed is not None:
            moves = [move for move in moves if move != crossed[:2]]
        for c in box.levels:
            moves += [(c, level) for level in range(self.grid.sizes[c]) if level != start[c]]
        share = self.faces / self.tested
        size = int(np.clip(round(0.7 / share), 1, _LARGEST_GROUP)) if share < 0.5 else 1
        out = yield from differing(start, identity, moves, size)
        self.tested, self.faces = self.tested + len(moves), self.faces + len(out)
        beyond: list[tuple[np.ndarray, int, tuple[int, int, bool] | None]] = []
        searches = []
        for column, end in out:
            if self.grid.categorical[column]:
                box.levels[column][end] = False
                searches.append(_level(start, column, end))
            else:
                searches.append(
                    boundary(start, identity, column, end, tuple(self.thresholds[column]))
                )
        for (column, _), (near, far, there) in zip(
            out, (yield from side_by_side(searches)), strict=True
        ):
            entered = None
            if not self.grid.categorical[column]:
                up = far > near
                (box.high if up else box.low)[column] = near
                self._met(column, min(near, far))
                entered = (column, far, up)
            beyond.append((moved(start, (column, far)), there, entered))
        return box, beyond

    def _met(self, column: int, threshold: int) -> None:
        if threshold not in self.thresholds[column]:
            self.thresholds[column] = sorted([*self.thresholds[column], threshold])

    def explains(self, tree: ExtractedTree) -> bool:
        """Whether a tree gives every point that was asked the identity that it was answered with."""
        leaves = tree.apply(self.grid.rows(np.stack(self.ids.points)))
        identities = np.array([self.ids.numbers[np.asarray(a[:1]).tobytes()] for a in tree.answers])
        return bool((identities[leaves] == np.array(self.ids.found)).all())

    # ---- shared identities

    def validated(self, rng: np.random.Generator) -> ExtractedTree:
        """A tree of all points, that new points do not contradict."""
        tree = self._consistent()
        for _ in range(self.settings.rounds):
            codes = np.concatenate(
                [self.grid.uniform(rng, self.settings.checks), _one_a_leaf(rng, self.grid, tree)]
            )
            found = self.ids(codes)
            wrong = np.flatnonzero(self._taken_for(tree, codes) != found)
            if not len(wrong):
                break
            self._repair(tree, codes[wrong[:_REPAIRED_AT_ONCE]], found[wrong[:_REPAIRED_AT_ONCE]])
            tree = self._consistent()
        return tree

    def _consistent(self) -> ExtractedTree:
        """A tree that explains all points, with further thresholds where those known do not suffice."""
        tree = self.of_points()
        while True:
            points, found = np.stack(self.ids.points), np.array(self.ids.found)
            wrong = np.flatnonzero(self._taken_for(tree, points) != found)
            if not len(wrong):
                return tree
            self._repair(tree, points[wrong[:_REPAIRED_AT_ONCE]], found[wrong[:_REPAIRED_AT_ONCE]])
            tree = self.of_points()

    def _taken_for(self, tree: ExtractedTree, codes: np.ndarray) -> np.ndarray:
        key = (lambda a: np.atleast_1d(a)[:1]) if self.settings.identified else (lambda a: a)
        identities = np.array(
            [self.ids.numbers[np.asarray(key(a)).tobytes()] for a in tree.answers]
        )
        return identities[tree.apply(self.grid.rows(codes))]

    def _repair(self, tree: ExtractedTree, codes: np.ndarray, found: np.ndarray) -> None:
        """Thresholds between points and the nearest with the identity that they were taken for."""
        points, identities = np.stack(self.ids.points), np.array(self.ids.found)
        nodes = tree.nodes(self.grid.rows(points))
        searches = []
        for code, identity, node in zip(
            codes, found, tree.nodes(self.grid.rows(codes)), strict=True
        ):
            others = points[(nodes == node) & (identities != identity)]
            if len(others):
                nearest = others[(others != code).sum(1).argmin()]
                searches.append(_between(code, int(identity), nearest, self.grid.categorical))
        for column, threshold in self.ids.run(side_by_side(searches)):
            if threshold is not None:
                self._met(column, threshold)

    def of_points(self) -> ExtractedTree:
        """The tree of least entropy over all points that were asked, with the thresholds known."""
        from sklearn.tree import DecisionTreeClassifier

        points, found = np.stack(self.ids.points), np.array(self.ids.found)
        parts, means = [], []
        for column, size in enumerate(self.grid.sizes):
            if self.grid.categorical[column]:
                parts += [points[:, column] == level for level in range(size)]
                means += [(column, level) for level in range(size)]
            else:  # between which thresholds
                parts.append(
                    np.searchsorted(self.thresholds[column], points[:, column], side="left")
                )
                means.append((column, None))
        fitted = DecisionTreeClassifier(criterion="entropy", random_state=0)
        nodes = fitted.fit(np.stack(parts, 1).astype(np.float32), found).tree_
        builder = TreeBuilder(self.grid.schema)
        for node in range(nodes.node_count):
            column, level = means[nodes.feature[node]] if nodes.feature[node] >= 0 else (-1, None)
            if column < 0:
                builder.add(leaf=int(fitted.classes_[nodes.value[node, 0].argmax()]))
            elif level is None:
                code = self.thresholds[column][int(nodes.threshold[node])]
                builder.add(column, self.grid.threshold(column, code))
            else:  # a level that is 0 goes left
                builder.add(column, members=np.arange(self.grid.sizes[column]) != level)
            builder.below(node, int(nodes.children_left[node]), int(nodes.children_right[node]))
        return builder.tree(np.stack(self.ids.answers), self.settings.identified)


def _level(start: np.ndarray, column: int, level: int) -> Search:
    found = yield moved(start, (column, level))[None]
    return int(start[column]), level, int(found[0])


def _between(
    first: np.ndarray, identity: int, second: np.ndarray, categorical: np.ndarray
) -> Search:
    """A column in which, on the way from `first` to `second`, the identity changes, and the threshold."""
    columns = np.flatnonzero(first != second)
    same, other = 0, len(columns)  # columns already moved: with the identity, and without
    on_the_way = lambda count: np.where(
        np.isin(np.arange(len(first)), columns[:count]), second, first
    )
    while other - same > 1:
        middle = (same + other) // 2
        found = (yield on_the_way(middle)[None])[0]
        same, other = (middle, other) if found == identity else (same, middle)
    column = int(columns[same])
    if categorical[column]:
        return column, None
    near, far, _ = yield from boundary(on_the_way(same), identity, column, int(second[column]), ())
    return column, min(near, far)


def _one_a_leaf(rng: np.random.Generator, grid: Grid, tree: ExtractedTree) -> np.ndarray:
    """Codes (n, C) of one uniform point in every leaf of a tree, as far as the grid has one."""
    drawn = []
    pending = [(0, Box.whole(grid))]
    while pending:
        node, box = pending.pop()
        column = int(tree.column[node])
        if column < 0:
            code = box.low + (rng.random(len(box.low)) * (box.high - box.low + 1)).astype(np.int64)
            for c, levels in box.levels.items():
                code[c] = rng.choice(np.flatnonzero(levels)) if levels.any() else -1
            if (box.low <= box.high).all() and (code >= 0).all():
                drawn.append(code)
            continue
        left, right = box.copy(), box.copy()
        if grid.categorical[column]:
            left.levels[column] &= tree.members[node][: grid.sizes[column]]
            right.levels[column] &= ~tree.members[node][: grid.sizes[column]]
        else:
            values = grid.values(column, np.arange(box.low[column], box.high[column] + 1))
            left.high[column] = box.low[column] + (values <= tree.threshold[node]).sum() - 1
            right.low[column] = left.high[column] + 1
        pending += [(int(tree.left[node]), left), (int(tree.right[node]), right)]
    return np.stack(drawn) if drawn else np.zeros((0, len(grid.sizes)), np.int64)


__all__ = ["TreeSettings", "find_paths"]
