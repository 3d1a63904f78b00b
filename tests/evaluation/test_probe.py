"""The linear probe against least squares on a padded table."""

import numpy as np
import pytest

from dfke_jax.core import InputError
from dfke_jax.evaluation import linear_probe


def draw(seed, count=200):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    rows = np.eye(3)[labels] @ np.array([[1, 0, 0, 5.0], [0, 1, 0, 5.0], [0, 0, 1, 5.0]]) + 0.6 * rng.normal(
        size=(count, 4)
    )
    return rows * [1, 10, 0.1, 1], labels


def test_the_probe_is_ridge_regression_on_standardised_columns():
    (rows, labels), (tested, truth) = draw(0), draw(1)
    z, z_tested = ((part - rows.mean(0)) / rows.std(0) for part in (rows, tested))
    wanted = np.eye(3)[labels]
    for ridge in (1e-4, 0.3):
        # least squares with a row √(λN) for each weight
        padded = np.concatenate([z, np.sqrt(ridge * 200) * np.eye(4)])
        weights = np.linalg.lstsq(padded, np.concatenate([wanted - wanted.mean(0), np.zeros((4, 3))]))[0]
        right = np.mean((z_tested @ weights + wanted.mean(0)).argmax(1) == truth)
        assert linear_probe(rows, labels, tested, truth, ridge=ridge) == pytest.approx(right)
    assert linear_probe(rows, labels, tested, truth) > 0.7
    rng = np.random.default_rng(2)
    assert linear_probe(rng.normal(size=rows.shape), labels, rng.normal(size=tested.shape), truth) < 0.5
    constant = np.concatenate([rows, np.ones((200, 1))], 1), np.concatenate([tested, np.ones((200, 1))], 1)
    assert linear_probe(constant[0], labels, constant[1], truth, ridge=0.0) > 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"tested": p["tested"][:, :3]}, r"must be \(N, D\) and \(T, D\)"),
        (lambda p: {"representations": p["representations"] * np.nan}, "NaN"),
        (lambda p: {"labels": p["labels"][:5]}, r"labels must have shape \(200,\)"),
        (lambda p: {"tested_labels": p["tested_labels"].astype(float)}, "tested_labels must be integers"),
        (lambda p: {"ridge": -1.0}, "ridge must not be negative"),
    ],
)
def test_bad_input(change, message):
    parts = dict(zip(("representations", "labels", "tested", "tested_labels"), (*draw(0), *draw(1)), strict=True))
    with pytest.raises(InputError, match=message):
        linear_probe(**{**parts, **change(parts)})
