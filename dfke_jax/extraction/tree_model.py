"""A tree as it was extracted: read, printed, and asked as scikit-learn's are."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.data.schema import Schema


@dataclasses.dataclass(frozen=True, eq=False)
class ExtractedTree:
    """A binary tree over the columns of a table. Node 0 is the root.

    A row goes left at a node where its number is at most the node's threshold, compared in float32
    as scikit-learn's trees do, or where its category is among the node's members.

    Attributes:
      schema: of the rows.
      column: (n,) of every node the column that it looks at, −1 of a leaf.
      threshold: (n,) of nodes with a number; NaN of others.
      members: (n, most levels) bool, the levels that go left; none of other nodes.
      left, right: (n,) nodes below; −1 of a leaf.
      leaf: (n,) which leaf, −1 of an inner node. A leaf in several pieces, which happens where
        identities are not unique, has the same number in each.
      answers: (L, ...) what the victim answered in each leaf.
      identified: whether the first number of an answer is the leaf's identity, and no prediction.
    """

    schema: Schema
    column: np.ndarray
    threshold: np.ndarray
    members: np.ndarray
    left: np.ndarray
    right: np.ndarray
    leaf: np.ndarray
    answers: np.ndarray
    identified: bool = False

    @property
    def leaves(self) -> int:
        """L."""
        return len(self.answers)

    @property
    def depth(self) -> int:
        """Of the deepest leaf; 0 of a constant."""
        depth = np.zeros(len(self.column), int)
        for node in range(len(self.column)):  # below comes after
            if self.column[node] >= 0:
                depth[[self.left[node], self.right[node]]] = depth[node] + 1
        return int(depth.max())

    @property
    def n_features_in_(self) -> int:
        """D."""
        return self.schema.width

    @property
    def values(self) -> np.ndarray:
        """What a leaf predicts: (L, K) probabilities, (L, 1) numbers, or (L,) labels."""
        return self.answers[:, 1:] if self.identified else self.answers

    @property
    def classes_(self) -> np.ndarray:
        """0, ..., K − 1.

        Raises:
          InputError: for a tree that predicts a number.
        """
        if self.values.ndim == 1:
            return np.arange(int(self.values.max()) + 1)
        if self.values.shape[1] < 2:
            raise InputError("this tree predicts a number and has no classes")
        return np.arange(self.values.shape[1])

    def apply(self, rows: Any) -> np.ndarray:
        """The leaf (N,) that each row (N, D) ends in, from 0 to L − 1."""
        return self.leaf[self.nodes(rows)]

    def nodes(self, rows: Any) -> np.ndarray:
        """The node (N,) that each row (N, D) ends in."""
        rows = self.schema.checked(rows)
        codes = self.schema.codes(rows.astype(np.float32))
        node, everyone = np.zeros(len(rows), int), np.arange(len(rows))
        while (inner := self.column[node] >= 0).any():
            column = np.maximum(self.column[node], 0)
            code = codes[everyone, column]
            number = code <= self.threshold[node]  # False beside NaN
            member = self.members[node, np.clip(code, 0, self.members.shape[1] - 1).astype(int)]
            left = np.where(np.isnan(self.threshold[node]), member, number)
            node = np.where(inner, np.where(left, self.left[node], self.right[node]), node)
        return node

    def predict_proba(self, rows: Any) -> np.ndarray:
        """(N, K).

        Raises:
          InputError: where the victim answered no probabilities.
        """
        if self.values.ndim == 1 or self.values.shape[1] < 2:
            raise InputError("the victim answered no probabilities; use predict")
        return self.values[self.apply(rows)]

    def predict(self, rows: Any) -> np.ndarray:
        """Classes (N,), or numbers (N,) of a regression tree."""
        values = self.values
        if values.ndim == 2:
            values = values.argmax(1) if values.shape[1] > 1 else values[:, 0]
        return values[self.apply(rows)]

    def text(self, class_names: Sequence[str] | None = None, *, digits: int = 4) -> str:
        """The tree in words, a line a node, in the units that the table had before it was scaled.

        Args:
          class_names: K of them; the numbers of the classes by default.
          digits: significant ones of thresholds and values.
        """
        lines: list[str] = []
        pending = [(0, 0, "")]
        while pending:
            node, depth, said = pending.pop()
            start = "|   " * (depth - 1) + "|-- " * bool(depth) + said
            if self.column[node] < 0:
                lines.append(
                    f"{start}{': ' * bool(said)}{self._said(int(self.leaf[node]), class_names, digits)}"
                )
                continue
            if said or not depth:
                lines.extend([start] * bool(said))
            yes, no = self._questions(node, digits)
            pending.append((int(self.right[node]), depth + 1, no))
            pending.append((int(self.left[node]), depth + 1, yes))
        return "\n".join(lines)

    def _questions(self, node: int, digits: int) -> tuple[str, str]:
        column = self.schema.columns[self.column[node]]
        if not column.categorical:
            shown = f"{column.unscaled(self.threshold[node]):.{digits}g}"
            return f"{column.name} <= {shown}", f"{column.name} > {shown}"
        chosen = [
            level for level, among in zip(column.levels, self.members[node], strict=False) if among
        ]
        if len(chosen) == 1:
            return f"{column.name} = {chosen[0]}", f"{column.name} != {chosen[0]}"
        return (
            f"{column.name} in {{{', '.join(chosen)}}}",
            f"{column.name} not in {{{', '.join(chosen)}}}",
        )

    def _said(self, leaf: int, class_names: Sequence[str] | None, digits: int) -> str:
        value = np.atleast_1d(self.values[leaf])
        if self.values.ndim == 2 and len(value) == 1:
            return f"{value[0]:.{digits}g}"
        best = int(value.argmax()) if len(value) > 1 else int(value[0])
        name = str(best) if class_names is None else class_names[best]
        return f"{name} ({value[best]:.{min(digits, 3)}g})" if len(value) > 1 else name


class TreeBuilder:
    """Nodes of a tree as they are added, and the tree that they are."""

    def __init__(self, schema: Schema):
        self.schema = schema
        self.nodes: list[list] = []
        self.most = max((len(column.levels) for column in schema.columns), default=0)

    def add(
        self,
        column: int = -1,
        threshold: float = np.nan,
        members: np.ndarray | None = None,
        leaf: int = -1,
    ) -> int:
        """A node; its number. `members` (levels,) of a category go left."""
        mask = np.zeros(max(self.most, 1), bool)
        if members is not None:
            mask[: len(members)] = members
        self.nodes.append([column, threshold, mask, -1, -1, leaf])
        return len(self.nodes) - 1

    def below(self, node: int, left: int, right: int) -> None:
        """What is below a node."""
        self.nodes[node][3:5] = left, right

    def tree(self, answers: np.ndarray, identified: bool) -> ExtractedTree:
        """The whole of it; leaves are numbered anew, from left to right."""
        column, threshold, members, left, right, leaf = map(np.array, zip(*self.nodes, strict=True))
        used = np.unique(leaf[leaf >= 0])
        leaf = np.where(leaf >= 0, np.searchsorted(used, leaf), -1)
        return ExtractedTree(
            self.schema,
            column,
            threshold.astype(np.float64),
            members,
            left,
            right,
            leaf,
            answers[used],
            identified,
        )


__all__ = ["ExtractedTree", "TreeBuilder"]
