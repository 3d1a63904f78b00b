"""Trees from rows that leave features out, node by node from the root down.

Asked with no feature at all, a tree answers its root. A feature changes that answer if and only if
the root looks at it; given that one, the answer is a node further down, and so on. What is known of
a part of the tree is a box of the features given so far; where a feature already given is looked at
again, the box is cut in two at that threshold.

Source: Tramèr et al., USENIX Security 2016, section 4.2, "top-down approach". Deviations: features
are tested several at a time, by halves; thresholds that were met in other parts are tried first;
splits on features already given, which the authors' code tests again, are found as the boundaries
of a box.
"""

import dataclasses
from typing import Any

import numpy as np

from dfke_jax.core.errors import BudgetError, InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.data.schema import Schema
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
from dfke_jax.extraction.trees import TreeSettings

_ABSENT = -1


def top_down(schema: Schema, settings: TreeSettings | None = None) -> HostAttack:
    """A tree from a victim that takes incomplete rows and answers the node at which it stops.

    Args:
      schema: of its rows.
      settings: `epsilon` and `at_once` are read; identities are those of nodes, and unique.

    Returns:
      A `HostAttack` that asks rows (B, 2, D), values and by 1 and 0 which are given, and is
      answered (B, 1 + K): the node's identity and what it predicts (``tree_victim(...,
      incomplete=True)``). It finds an `ExtractedTree`. The ledger counts the phase ``top down``.

    Raises, at once or while it runs:
      InputError: for an epsilon outside [0, 0.5], answers of another form, or nodes that are not
        told apart.
    """
    settings = settings or TreeSettings()
    return HostAttack(_TopDown(Grid(schema, settings.epsilon), settings).solve)


class _IncompleteGrid(Grid):
    """A grid whose codes may be absent (−1), as rows (n, 2, D)."""

    def __init__(self, grid: Grid):
        self.__dict__.update(grid.__dict__)

    def rows(self, codes: np.ndarray) -> np.ndarray:
        """Rows (n, 2, D) in float32."""
        values = super().rows(np.maximum(codes, 0))
        given = np.zeros_like(values)
        for place, column in enumerate(self.schema.columns):
            given[:, list(column.places)] = (codes[:, place] != _ABSENT)[:, None]
        return np.stack([values * given, given], 1)


@dataclasses.dataclass
class _Part:
    """A box of the features given so far (newest last), and a row inside."""

    row: np.ndarray
    box: Box
    given: list[int]
    identity: int


@dataclasses.dataclass(frozen=True)
class _TopDown:
    grid: Grid
    settings: TreeSettings

    def solve(self, rng: np.random.Generator, ask: Ask) -> Solution:
        ids = Identities(ask, _IncompleteGrid(self.grid), True)
        thresholds: list[list[int]] = [[] for _ in self.grid.sizes]
        middle = self.grid.uniform(rng, 1)[0]
        leaves: dict[int, Box] = {}
        try:
            with ask.phase("top down"):
                empty = np.full(len(self.grid.sizes), _ABSENT, np.int64)
                parts = [_Part(empty, Box.whole(self.grid), [], int(ids(empty[None])[0]))]
                while parts:
                    wave, parts = parts[: self.settings.at_once], parts[self.settings.at_once :]
                    searches = [self._part(part, middle, thresholds) for part in wave]
                    for part, below in zip(wave, ids.run(side_by_side(searches)), strict=True):
                        parts += below
                        if not below:  # of a leaf that an earlier cut went through, the whole
                            known = leaves.get(part.identity)
                            leaves[part.identity] = (
                                part.box if known is None else _around(known, part.box)
                            )
        except BudgetError:
            return Solution(self._tree(leaves, ids) if leaves else None, complete=False)
        return Solution(self._tree(leaves, ids))

    def _tree(self, leaves: dict[int, Box], ids: Identities) -> Any:
        answers = np.stack([ids.answers[identity] for identity in leaves])
        return tree_of_boxes(self.grid, list(leaves.values()), answers, True)

    def _part(self, part: _Part, middle: np.ndarray, thresholds: list[list[int]]) -> Search:
        """What a part is made of: two parts, or one with a feature more; none if it is a leaf."""
        for column in reversed(part.given):  # the newest first: its node is the lowest
            cut = yield from self._cut(part, column, thresholds)
            if cut:
                return cut
        absent = [c for c in range(len(middle)) if c not in part.given]
        if not absent:
            return []
        moves = [(c, int(middle[c])) for c in absent]
        found = yield from differing(part.row, part.identity, moves, len(moves))
        if not found:
            return []
        if len(found) > 1:
            raise InputError(
                f"{len(found)} features change the node in which a row ends, and a node looks at one: "
                "the endpoint does not stop where a feature is left out, or gives nodes equal identities"
            )
        row = moved(part.row, found[0])
        identity = int((yield row[None])[0])
        return [_Part(row, part.box, [*part.given, found[0][0]], identity)]

    def _cut(self, part: _Part, column: int, thresholds: list[list[int]]) -> Search:
        """Two parts, where within the box the node changes along a column; none where it does not."""
        here = int(part.row[column])
        if self.grid.categorical[column]:
            levels = np.flatnonzero(part.box.levels[column])
            rows = np.repeat(part.row[None], len(levels), 0)
            rows[:, column] = levels
            found = yield rows
            same = np.zeros(len(part.box.levels[column]), bool)
            same[levels[found == part.identity]] = True
            if (found == part.identity).all():
                return []
            inside, outside = part.box.copy(), part.box.copy()
            inside.levels[column], outside.levels[column] = same, part.box.levels[column] & ~same
            other = int(levels[found != part.identity][0])
            there = int(found[found != part.identity][0])
            return [
                _part_of(part, column, here, inside, part.identity),
                _part_of(part, column, other, outside, there),
            ]
        ends = [int(end[column]) for end in (part.box.low, part.box.high) if end[column] != here]
        if not ends:
            return []
        found = yield np.stack([moved(part.row, (column, end)) for end in ends])
        out = [end for end, identity in zip(ends, found, strict=True) if identity != part.identity]
        if not out:
            return []
        near, far, there = yield from boundary(
            part.row, part.identity, column, out[0], tuple(thresholds[column])
        )
        code = min(near, far)
        if code not in thresholds[column]:
            thresholds[column] = sorted([*thresholds[column], code])
        inside, outside = part.box.copy(), part.box.copy()
        if far > near:
            inside.high[column], outside.low[column] = near, far
        else:
            inside.low[column], outside.high[column] = near, far
        return [
            _part_of(part, column, here, inside, part.identity),
            _part_of(part, column, far, outside, there),
        ]


def _part_of(part: _Part, column: int, code: int, box: Box, identity: int) -> _Part:
    """The same part in a smaller box, with a row inside."""
    return _Part(moved(part.row, (column, code)), box, part.given, identity)


def _around(first: Box, second: Box) -> Box:
    """The smallest box with both inside."""
    levels = {c: of | second.levels[c] for c, of in first.levels.items()}
    return Box(np.minimum(first.low, second.low), np.maximum(first.high, second.high), levels)


__all__ = ["top_down"]
