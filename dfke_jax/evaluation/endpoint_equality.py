"""Whether two endpoints draw their texts from the same model.

With k(x, y) = (1/L) Σ_l 1[x_l = y_l] on texts of L tokens, the squared maximum mean discrepancy of
two samples x_1..x_n and y_1..y_m behind the same prompt is

    MMD² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean_{ij} k(x_i, y_j),

averaged over prompts. If both are drawn from one model, texts of a prompt may change places: the
p-value is the share of such permutations whose statistic is at least as large.

Source: Gao, Liang, Guestrin, "Model Equality Testing: Which Model Is This API Serving?", ICLR 2025;
Gretton et al., "A Kernel Two-Sample Test", JMLR 2012.
"""

from typing import Any, NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError


class Equality(NamedTuple):
    """The outcome of a test.

    Attributes:
      statistic: MMD², unbiased; around zero for equal models.
      p_value: (1 + permutations with at least this statistic)/(1 + permutations).
      by_prompt: (P,), the statistic of each prompt.
    """

    statistic: float
    p_value: float
    by_prompt: np.ndarray

    def differs(self, level: float = 0.05) -> bool:
        """Whether equality is rejected at this level."""
        return self.p_value <= level


def same_endpoint(
    first: Any, second: Any, rng: np.random.Generator, *, permutations: int = 199
) -> Equality:
    """Tests whether two samples of texts come from one model.

    Args:
      first: (P, n, L) tokens, n texts behind each of P prompts. second: (P, m, L), behind the same
        prompts.
      rng: of the permutations.
      permutations: how many; the smallest p-value is 1/(1 + permutations).

    Raises:
      InputError: for other shapes, or fewer than two texts a prompt.
    """
    first, second = np.asarray(first), np.asarray(second)
    if (
        first.ndim != 3
        or second.ndim != 3
        or (first.shape[0], first.shape[2]) != (second.shape[0], second.shape[2])
    ):
        raise InputError(
            f"samples must be (P, n, L) and (P, m, L), got shapes {first.shape} and {second.shape}"
        )
    n, m = first.shape[1], second.shape[1]
    if min(n, m) < 2 or min(first.shape) < 1 or permutations < 1:
        raise InputError("two texts a prompt and one permutation at least are needed")
    statistics = np.zeros((len(first), permutations + 1))
    groups = np.zeros((permutations + 1, n + m))
    for prompt, texts in enumerate(zip(first, second, strict=True)):
        kernel = agreement_kernel(np.concatenate(texts))
        np.fill_diagonal(kernel, 0)
        groups[0] = np.arange(n + m) < n
        for one in groups[1:]:
            one[:] = 0
            one[rng.permutation(n + m)[:n]] = 1
        statistics[prompt] = _discrepancies(kernel, groups, n, m)
    means = statistics.mean(0)
    slack = 1e-12 * max(
        float(np.abs(means).max()), 1e-300
    )  # equal statistics count, in whatever order they were summed
    p_value = (1 + int((means[1:] >= means[0] - slack).sum())) / (1 + permutations)
    return Equality(float(means[0]), p_value, statistics[:, 0])


def agreement_kernel(texts: Any) -> np.ndarray:
    """k (N, N) of texts (N, L): the share of places with the same token."""
    texts = np.asarray(texts)
    count, length = texts.shape
    kernel = np.zeros((count, count))
    for place in range(length):
        _, tokens = np.unique(texts[:, place], return_inverse=True)
        hot = np.eye(int(tokens.max()) + 1, dtype=np.float32)[tokens]
        kernel += hot @ hot.T
    return kernel / length


def _discrepancies(kernel: np.ndarray, groups: np.ndarray, n: int, m: int) -> np.ndarray:
    """MMD² (G,) of the groups (G, N) that texts are divided into, 1 for the first."""
    product = groups @ kernel
    within = (product * groups).sum(1)
    rows = product.sum(1)
    total = kernel.sum()
    across = rows - within
    other = total - within - 2 * across
    return within / (n * (n - 1)) + other / (m * (m - 1)) - 2 * across / (n * m)


__all__ = ["Equality", "agreement_kernel", "same_endpoint"]
