"""A language model's last layer: its width, its image, and itself up to an invertible map.

Logits are z = W x, W (V, h): however many prompts are asked, they lie in the h dimensions of the
image of W. Rows Z (n, V) of n > h prompts, centred over the tokens (log-probabilities are logits
up to a number per row), have h singular values, and what lies behind is rounding. The size is
where they fall off,

    ĥ = argmax_l log σ_l − log σ_{l+1},

among those l whose σ_{l+1} rounding explains, and it is certain where σ_ĥ is more than that. Noise
of standard deviation s in n × V numbers has no singular value above s (√n + √V), nearly; where it
is the difference of two numbers, one of them common to m tokens, s (√(n (1 + m)) + √(2 V))
(Chevet's inequality). Otherwise there is no answer (`LastLayer.refusal`).

The layer is U_ĥ S_ĥ of the singular value decomposition, which is W (less its mean over the
tokens) times an invertible matrix. Once its image is known, a further prompt's full output takes h
tokens (`complete_outputs`), and an output that lies outside is another model's
(`LastLayer.signature`).

Source: Carlini et al., "Stealing Part of a Production Language Model", ICML 2024, sections 4 and 6;
Finlayson et al. 2024. Deviations: rows are centred; the certificate and the refusal are ours.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.linalg

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.extraction.token_reveals import TokenReading

_ABOVE, _BELOW = 1.4, 1.05


@dataclasses.dataclass(frozen=True, eq=False)
class LastLayer:
    """What was found of a last layer.

    Attributes:
      size: ĥ, the rank of centred outputs; None where it is not certain. Of layer-normalised states
        without a shift it is one less than the width.
      refusal: why it is not; empty where it is.
      gap: log σ_ĥ − log σ_{ĥ+1}, in nats. level: the largest singular value that rounding explains.
      singular_values: (min(n, V),).
      layer: (V, ĥ), the last layer up to an invertible map; of columns of mean zero. Without a
        size, (V, 0).
      tokens: (V,), the ids of its rows: all, or those that were asked.
    """

    size: int | None
    refusal: str
    gap: float
    level: float
    singular_values: np.ndarray
    layer: np.ndarray
    tokens: np.ndarray

    @property
    def image(self) -> np.ndarray:
        """An orthonormal basis (V, ĥ) of where outputs lie."""
        return np.linalg.qr(self.layer)[0]

    def aligned(self, weights: Any) -> tuple[np.ndarray, float]:
        """(the layer mapped onto weights (V, h), root mean square of what is left).

        Weights are centred over the tokens first; the map is that of least squares.
        """
        weights = np.asarray(weights, np.float64)[self.tokens]
        centred = weights - weights.mean(0)
        mapped = self.layer @ np.linalg.lstsq(self.layer, centred, rcond=None)[0]
        return mapped, float(np.sqrt(np.mean((mapped - centred) ** 2)))

    def signature(self, outputs: Any) -> np.ndarray:
        """‖(I − P) q‖/‖q‖ of centred outputs q (B, V), P the projection onto the image.

        Near zero for outputs of this layer, near √(1 − h/V) for those of another.
        """
        outputs = np.asarray(outputs, np.float64)[:, self.tokens]
        outputs = outputs - outputs.mean(1, keepdims=True)
        left = outputs - outputs @ self.image @ self.image.T
        return np.linalg.norm(left, axis=1) / np.linalg.norm(outputs, axis=1)


def last_layer(
    reading: TokenReading, prompts: int | Any, *, tokens: int | None = None
) -> HostAttack:
    """Width, image and layer of a language model from n prompts.

    Args:
      reading: the endpoint.
      prompts: n, drawn at random; or (n, L) ids. More than the width.
      tokens: how many are asked, drawn at random with the reference; all by default. The size is
        that of the full layer where they are more than it.

    Returns:
      A `HostAttack`; it finds a `LastLayer`, with ``reading.cost(n, tokens − 1)`` rows.

    Raises:
      InputError: for fewer than two prompts or tokens.

    Source: as of this module.
    """
    questions = reading.questions
    count = questions.vocabulary if tokens is None else tokens
    if not 2 <= count <= questions.vocabulary:
        raise InputError(f"tokens must be from 2 to {questions.vocabulary}, got {count}")
    if (prompts if isinstance(prompts, int) else len(prompts)) < 2:
        raise InputError("two prompts at least are needed, and more than the width of the model")

    def solve(rng: np.random.Generator, ask: Ask) -> Solution:
        asked = (
            draw_prompts(reading, prompts, rng) if isinstance(prompts, int) else np.asarray(prompts)
        )
        others = np.delete(np.arange(questions.vocabulary), reading.reference)
        chosen = np.sort(rng.permutation(others)[: count - 1])
        with ask.phase("logits"):
            differences = reading.read(ask, asked, chosen)
        where = np.concatenate([[reading.reference], chosen])
        order = np.argsort(where)
        vectors = np.concatenate([np.zeros((len(asked), 1)), differences], 1)[:, order]
        return Solution(decomposed(vectors, reading, where[order]))

    return HostAttack(solve)


def draw_prompts(reading: TokenReading, count: int, rng: np.random.Generator) -> np.ndarray:
    """Prompts (count, context) of tokens drawn evenly."""
    questions = reading.questions
    return rng.integers(0, questions.vocabulary, (count, questions.context))


def decomposed(vectors: np.ndarray, reading: TokenReading, tokens: np.ndarray) -> LastLayer:
    """`LastLayer` of outputs (n, V) that are known up to a number per row."""
    centred = vectors - vectors.mean(1, keepdims=True)
    left, sizes, _ = np.linalg.svd(centred.T, full_matrices=False)
    level = _level(vectors, reading)
    if not sizes[0] > 0:
        raise InputError(
            "the outputs are the same for all tokens of every prompt: there is no last layer to "
            "find"
        )
    safe = np.maximum(sizes, 1e-17 * sizes[0])
    falls = np.log(safe[:-1]) - np.log(safe[1:])
    # centring leaves one dimension less than there are tokens: what is zero for that says nothing
    noise = (sizes[1:] <= _BELOW * level) & (np.arange(1, len(sizes)) < vectors.shape[1] - 1)
    size = int(np.argmax(np.where(noise, falls, -1.0))) + 1 if noise.any() else len(sizes)
    refusal = ""
    if not noise.any():
        refusal = (
            f"all {len(sizes)} singular values lie above the rounding, {level:.2g}: the model "
            f"is as wide as that or wider; more "
            "prompts and tokens are needed"
        )
    elif sizes[size - 1] < _ABOVE * level:
        refusal = (
            f"singular values fall from {sizes[size - 1]:.2g} to {sizes[size]:.2g} behind "
            f"number {size}, and rounding explains up "
            f"to {level:.2g}: there are at least {int((sizes > _ABOVE * level).sum())} "
            f"dimensions, and no certain number; ask "
            "more prompts"
        )
    gap = float(falls[size - 1]) if size <= len(falls) else 0.0
    layer = (
        left[:, : 0 if refusal else size]
        * sizes[: 0 if refusal else size]
        / math.sqrt(len(vectors))
    )
    return LastLayer(None if refusal else size, refusal, gap, level, sizes, layer, tokens)


def _level(vectors: np.ndarray, reading: TokenReading) -> float:
    """The largest singular value that rounding makes.

    A difference carries the rounding of its token, and that of the reference, which is common to
    all tokens of one question; and what sums in the endpoint's precision are wrong by.
    """
    n, count = vectors.shape
    s = math.hypot(reading.unit / math.sqrt(12), reading.relative * float(np.abs(vectors).max()))
    if reading.reveal.kind in (
        "token",
        "logits",
    ):  # of logits the reference is common to all, and goes with the mean
        return s * (math.sqrt(n) + math.sqrt(count))
    if reading.reveal.kind == "top_k" and reading.reveal.k == 1:
        # Δ = −log(exp(−y) − 1) moves by twice what y does where that is −log 2, and more elsewhere
        return (
            (2.0 if reading.reveal.decimals is not None else 8.0)
            * s
            * (math.sqrt(n) + math.sqrt(count))
        )
    return s * (math.sqrt(n * (1 + reading.tokens_at_once)) + math.sqrt(2 * count))


def complete_outputs(
    reading: TokenReading, found: LastLayer, prompts: Any, *, spare: int = 0
) -> HostAttack:
    """Full outputs of further prompts from few tokens, once the image is known.

    z_i − z_r = (u_i − u_r)'a of the tokens with the best conditioned rows of the image U gives a,
    and z = U a.

    Args:
      reading: the endpoint. found: its last layer, of a certain size.
      prompts: (n, L) ids.
      spare: tokens beyond ĥ, over which rounding averages.

    Returns:
      A `HostAttack`; it finds outputs (n, V) of mean zero, of the tokens of `found`, with
      ``reading.cost(n, ĥ + spare)`` rows.

    Raises:
      InputError: for a last layer without a size, or too many spare tokens.
    """
    if found.size is None:
        raise InputError(f"the size of the last layer is not known: {found.refusal}")
    prompts, count = np.asarray(prompts), found.size + spare
    place = int(np.flatnonzero(found.tokens == reading.reference)[0])
    relative = found.image - found.image[place]
    if spare < 0 or count > len(found.tokens) - 1:
        raise InputError(
            f"spare must be from 0 to {len(found.tokens) - 1 - found.size}, got {spare}"
        )
    order = _best_rows(np.delete(relative, place, 0), count)
    order = order + (order >= place)

    def solve(rng: np.random.Generator, ask: Ask) -> Solution:
        with ask.phase("outputs"):
            differences = reading.read(ask, prompts, found.tokens[order])
        places = np.linalg.lstsq(relative[order], differences.T, rcond=None)[0]
        return Solution((found.image @ places).T)

    return HostAttack(solve)


def _best_rows(matrix: np.ndarray, count: int) -> np.ndarray:
    """So many rows of a matrix (m, h) that determine its range well: by pivoted QR."""
    left, chosen = np.arange(len(matrix)), np.zeros(0, int)
    while len(chosen) < count:
        pivots = scipy.linalg.qr(matrix[left].T, mode="r", pivoting=True)[1]  # type: ignore[misc]
        taken = left[pivots[: min(matrix.shape[1], count - len(chosen))]]
        chosen, left = np.concatenate([chosen, taken]), np.setdiff1d(left, taken)
    return chosen


__all__ = ["LastLayer", "complete_outputs", "decomposed", "draw_prompts", "last_layer"]
