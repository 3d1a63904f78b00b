"""Decision and regression trees of scikit-learn that say in which leaf a row ended, as services of trees do."""

from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.oracle.victims import HostVictim


def tree_victim(estimator: Any, *, incomplete: bool = False) -> HostVictim:
    """A tree that answers its node and what it predicts there: (B, 1 + K).

    Column 0 is the number of the node in the tree, a whole number from 1 on; the others are the
    shares of the K classes, or the one number that a regression tree predicts. It gives ``logits``
    in the oracle's sense (`HostVictim`): ask it through ``Reveal("logits")``.

    Args:
      estimator: a fitted ``DecisionTreeClassifier`` or ``DecisionTreeRegressor`` of one output.
      incomplete: whether rows may leave features out. Rows are (2, D) then: values, and a 1 where
        they are given, 0 where not. The walk ends at the first node whose feature is left out.

    Raises:
      InputError: for an estimator that is no fitted tree of one output.

    Source: Tramèr et al., USENIX Security 2016, sections 4.2 and 5.1: BigML answers prediction and
    confidence of a leaf, and walks with incomplete rows as far as it can. Scikit-learn's trees do
    not; their nodes are walked here.
    """
    tree = getattr(estimator, "tree_", None)
    name = type(estimator).__name__
    if tree is None or tree.value.shape[1] != 1:
        raise InputError(f"{name} is no fitted tree of one output")
    values = tree.value[:, 0, :]
    if hasattr(estimator, "classes_"):  # counts in some versions, shares in others
        values = values / values.sum(1, keepdims=True)
    nodes = np.concatenate([np.arange(1, len(values) + 1)[:, None], values], 1).astype(np.float64)
    features = int(estimator.n_features_in_)

    def answer(rows: np.ndarray) -> np.ndarray:
        return nodes[np.asarray(estimator.apply(rows))]

    def answer_incomplete(rows: np.ndarray) -> np.ndarray:
        given = rows[:, 1]
        if not np.isin(given, (0, 1)).all():
            raise InputError(
                "the second line of an incomplete row says by 1 and 0 which features are given"
            )
        return nodes[_walked(tree, rows[:, 0].astype(np.float32), given == 1)]

    shape = (2, features) if incomplete else (features,)
    return HostVictim(
        answer_incomplete if incomplete else answer,
        nodes.shape[1],
        shape,
        "logits",
        name,
        repeatable=True,
    )


def _walked(tree: Any, rows: np.ndarray, given: np.ndarray) -> np.ndarray:
    """The node (B,) at which each row's walk ends: a leaf, or one whose feature is not given."""
    place, everyone = np.zeros(len(rows), np.int64), np.arange(len(rows))
    for _ in range(tree.max_depth):
        feature = tree.feature[place]
        goes = (feature >= 0) & given[everyone, np.maximum(feature, 0)]
        if not goes.any():
            break
        left = rows[everyone, np.maximum(feature, 0)] <= tree.threshold[place]
        onward = np.where(left, tree.children_left[place], tree.children_right[place])
        place = np.where(goes, onward, place)
    return place


__all__ = ["tree_victim"]
