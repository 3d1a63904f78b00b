"""Endpoint equality: the statistic against its definition, and how often the test is right."""

import numpy as np
import pytest

from dfke_jax.core.errors import InputError
from dfke_jax.evaluation import agreement_kernel, same_endpoint


def naive(first, second):
    """MMD² of one prompt's texts, written out."""

    def k(x, y):
        return np.mean([a == b for a, b in zip(x, y, strict=True)])

    n, m = len(first), len(second)
    own = sum(k(first[i], first[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k(second[i], second[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(k(x, y) for x in first for y in second) / (n * m)


def test_the_statistic_is_the_definition():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, (3, 5, 6)), rng.integers(0, 3, (3, 7, 6))
    outcome = same_endpoint(first, second, rng, permutations=20)
    expected = [naive(*texts) for texts in zip(first, second, strict=True)]
    np.testing.assert_allclose(outcome.by_prompt, expected, atol=1e-12)
    assert outcome.statistic == pytest.approx(np.mean(expected))
    texts = rng.integers(0, 2, (4, 3))
    kernel = agreement_kernel(texts)
    assert kernel[1, 2] == pytest.approx((texts[1] == texts[2]).mean())


def test_equal_models_are_told_apart_as_often_as_the_level_says_and_others_nearly_always():
    rng = np.random.default_rng(1)
    table = rng.dirichlet(np.ones(6), (4, 5))  # of each prompt and place
    other = 0.5 * table + 0.5 * rng.dirichlet(np.ones(6), (4, 5))

    def texts(of, count):
        return np.stack([np.stack([rng.choice(6, count, p=place) for place in prompt], 1) for prompt in of])

    equal = [same_endpoint(texts(table, 12), texts(table, 12), rng, permutations=39).differs() for _ in range(120)]
    assert np.mean(equal) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 120)
    unlike = [same_endpoint(texts(table, 30), texts(other, 30), rng, permutations=39).differs() for _ in range(20)]
    assert np.mean(unlike) >= 0.9
    same = np.ones((2, 3, 4), int)
    assert same_endpoint(same, same, rng, permutations=9).p_value == 1


def test_samples_that_cannot_be_compared():
    rng = np.random.default_rng(0)
    for first, second in (((2, 3, 4), (2, 3, 5)), ((2, 1, 4), (2, 3, 4)), ((2, 3), (2, 3))):
        with pytest.raises(InputError):
            same_endpoint(np.zeros(first), np.zeros(second), rng)
