"""Defences of an endpoint: pure transforms of what it answers, in the order in which they are
listed.

Every defence is a small pytree, ``defence(rows, probabilities) -> probabilities`` with rows (B, H,
W, C) and probabilities (B, K); its numbers are leaves, so that a sweep over them runs one program.
None draws fresh randomness: the same row gets the same answer, whether it is asked locally,
remotely or replayed from a ledger.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Predict
from dfke_jax.oracle.reveal import keep_largest
from dfke_jax.oracle.row_keys import row_keys

TINY = 1e-30


class Defence:
    """What all defences have in common.

    Attributes:
      name: in the registry and in results.
      keeps_total: whether answers still sum to one.
      resolution: the smallest difference between two answers that the defence lets through; 0 for
        any. Finite differences below it are lost.
    """

    name: ClassVar[str] = ""

    def __call__(self, rows: Array, probabilities: Array) -> Array:
        raise NotImplementedError

    @property
    def keeps_total(self) -> bool:
        return getattr(self, "renormalise", True)

    @property
    def resolution(self) -> float:
        return 0.0

    def describe(self) -> dict[str, Any]:
        """Name and numbers, for results; models by the name of their type."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"name": self.name, **{name: _plain(value) for name, value in values.items()}}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) or (hasattr(value, "shape") and value.shape == ()):
        return float(value)
    return type(getattr(value, "module", value)).__name__


def _require(value: Any, holds: Callable[[Any], bool], message: str) -> None:
    """Checks a number, and lets tracers and stacks of numbers pass: those have no one value to
    check.
    """
    if isinstance(value, int | float) and not holds(value):
        raise InputError(f"{message}, got {value}")


def normalised(values: Array) -> Array:
    """(B, K) -> rows that sum to one; a row of zeros becomes uniform."""
    total = values.sum(-1, keepdims=True)
    return jnp.where(total > 0, values / jnp.where(total > 0, total, 1), 1 / values.shape[-1])


@flax.struct.dataclass
class Rounding(Defence):
    """p' = round(p, decimals), then divided by its sum.

    Attributes:
      decimals: at least 0.
      renormalise: False leaves the rounded numbers as they are, as real endpoints do; they may miss
        one by K/2 units.

    Source: Tramèr et al., USENIX Security 2016, section 7.
    """

    decimals: int = flax.struct.field(pytree_node=False, default=2)
    renormalise: bool = flax.struct.field(pytree_node=False, default=True)
    name: ClassVar[str] = "rounding"

    def __post_init__(self):
        _require(
            self.decimals,
            lambda d: d >= 0 and d == int(d),
            "decimals of rounding must be a whole number >= 0",
        )

    @property
    def resolution(self) -> float:
        return 10.0**-self.decimals

    def __call__(self, rows: Array, probabilities: Array) -> Array:
        rounded = jnp.round(probabilities, self.decimals)
        return normalised(rounded) if self.renormalise else rounded


@flax.struct.dataclass
class Temperature(Defence):
    """p' = softmax(log p / τ): flatter answers for τ > 1, sharper ones below; the order of classes
    stays.

    Attributes:
      temperature: τ > 0.
    """

    temperature: Any = 2.0
    name: ClassVar[str] = "temperature"

    def __post_init__(self):
        _require(self.temperature, lambda t: t > 0, "temperature must be positive")

    def __call__(self, rows: Array, probabilities: Array) -> Array:
        return jax.nn.softmax(jnp.log(jnp.maximum(probabilities, TINY)) / self.temperature)


@flax.struct.dataclass
class GaussianNoise(Defence):
    """p' = max(p + N(0, scale²), 0), then divided by its sum; the noise is a function of the row
    and the seed.

    Asking the same row again brings the same noise. It does not stop averaging: rows that differ by
    less than the victim notices (4e-4 in one pixel) draw noise of their own. An endpoint that
    quantises its rows (transport ``uint8``) makes such a move at least a grey level.

    Attributes:
      scale: standard deviation, at least 0.
      seed: whole number, the endpoint's secret.
    """

    scale: Any = 0.05
    seed: Any = 0
    name: ClassVar[str] = "gaussian_noise"

    def __post_init__(self):
        _require(self.scale, lambda s: s >= 0, "scale of the noise must be at least 0")

    @property
    def resolution(self) -> float:
        return float(self.scale)

    def __call__(self, rows: Array, probabilities: Array) -> Array:
        draw = lambda key: jax.random.normal(key, probabilities.shape[1:], probabilities.dtype)
        noise = jax.vmap(draw)(row_keys(self.seed, rows))
        return normalised(jnp.maximum(probabilities + self.scale * noise, 0))


@flax.struct.dataclass
class TopK(Defence):
    """Keeps the k largest probabilities and zeroes the others; ties at the k-th place fall to the
    lower index.

    Attributes:
      k: at least 1.
      renormalise: divide what is kept by its sum.

    Source: Orekondy, Schiele and Fritz, CVPR 2019 (Knockoff Nets), section 5, where what is kept is
    left as it is.
    """

    k: int = flax.struct.field(pytree_node=False, default=3)
    renormalise: bool = flax.struct.field(pytree_node=False, default=True)
    name: ClassVar[str] = "top_k"

    def __post_init__(self):
        _require(self.k, lambda k: k >= 1 and k == int(k), "k of top_k must be a whole number >= 1")

    def __call__(self, rows: Array, probabilities: Array) -> Array:
        kept = keep_largest(probabilities, self.k)
        return normalised(kept) if self.renormalise else kept


@flax.struct.dataclass
class ConfidenceMask(Defence):
    """Zeroes probabilities below a cutoff; the largest is always kept.

    Attributes:
      cutoff: in [0, 1].
      renormalise: divide what is kept by its sum.

    Deviation: masks elsewhere return all zeros where nothing reaches the cutoff, which is not an
    answer.
    """

    cutoff: Any = 0.25
    renormalise: bool = flax.struct.field(pytree_node=False, default=True)
    name: ClassVar[str] = "confidence_mask"

    def __post_init__(self):
        _require(self.cutoff, lambda c: 0 <= c <= 1, "cutoff must lie in [0, 1]")

    def __call__(self, rows: Array, probabilities: Array) -> Array:
        largest = probabilities.max(-1, keepdims=True)
        kept = jnp.where(
            (probabilities >= self.cutoff) | (probabilities == largest), probabilities, 0
        )
        return normalised(kept) if self.renormalise else kept


@flax.struct.dataclass
class ReverseSigmoid(Defence):
    """p' ∝ clip(p − β(σ(γ·logit p) − ½), 0, 1): many probabilities share one answer, so losses of
    it mislead.

    Both p and 1 − p count as at least 1e-9 in the logit.

    Attributes:
      beta: β, at least 0; 0 leaves the answers.
      gamma: γ > 0.

    Source: Lee, Edwards, Molloy and Su, Defending Against Model Stealing Attacks Using Deceptive
    Perturbations, 2018.
    """

    beta: Any = 1.0
    gamma: Any = 0.1
    name: ClassVar[str] = "reverse_sigmoid"

    def __post_init__(self):
        _require(self.beta, lambda b: b >= 0, "beta of reverse_sigmoid must be at least 0")
        _require(self.gamma, lambda g: g > 0, "gamma of reverse_sigmoid must be positive")

    def __call__(self, rows: Array, probabilities: Array) -> Array:
        # 1 − p as the sum of the others: it keeps its digits where p is nearly one
        others = jnp.matmul(
            probabilities, 1 - jnp.eye(probabilities.shape[-1]), precision="highest"
        )
        logit = jnp.log(jnp.maximum(probabilities, 1e-9)) - jnp.log(jnp.maximum(others, 1e-9))
        moved = probabilities - self.beta * (jax.nn.sigmoid(self.gamma * logit) - 0.5)
        return normalised(jnp.clip(moved, 0, 1))


@flax.struct.dataclass
class AdaptiveMisinformation(Defence):
    """p' = (1 − a)·p + a·softmax f̂(x), a = σ(ν(τ − max p)): rows of low confidence get another
    model's answer.

    Attributes:
      misinformation: f̂, a callable pytree from rows to logits (B, K), trained to be wrong
        (`reverse_cross_entropy`).
      tau: τ in [0, 1], the confidence below which answers are replaced.
      nu: ν > 0, the sharpness of the change; at 10,000 it is a gate.

    Source: Kariyappa and Qureshi, CVPR 2020, section 4.
    """

    misinformation: Predict
    tau: Any = 0.5
    nu: Any = 10_000.0
    name: ClassVar[str] = "adaptive_misinformation"

    def __post_init__(self):
        _require(
            self.tau, lambda t: 0 <= t <= 1, "tau of adaptive_misinformation must lie in [0, 1]"
        )
        _require(self.nu, lambda n: n > 0, "nu of adaptive_misinformation must be positive")

    def share(self, probabilities: Array) -> Array:
        """a, (B,): the part of the answer that is misinformation; its mean over rows is the
        rejection ratio.
        """
        return jax.nn.sigmoid(self.nu * (self.tau - probabilities.max(-1)))

    def __call__(self, rows: Array, probabilities: Array) -> Array:
        share = self.share(probabilities)[:, None]
        wrong = jax.nn.softmax(self.misinformation(rows).astype(jnp.float32))
        return (1 - share) * probabilities + share * wrong


def hellinger(first: Array, second: Array) -> Array:
    """‖√p − √q‖₂ / √2 in [0, 1], per row: how far a defence moved the answers (B, K) -> (B,)."""
    return jnp.linalg.norm(jnp.sqrt(first) - jnp.sqrt(second), axis=-1) / jnp.sqrt(2.0)


def reverse_cross_entropy(logits: Array, labels: Array) -> Array:
    """−log(1 − softmax(z)_y), per sample: small when the label is *not* predicted.

    Args:
      logits: z (B, K), K >= 2. labels: y (B,), integers.

    Returns:
      (B,), in nats, finite for any finite logits.

    Source: Kariyappa and Qureshi, CVPR 2020, section 4.2.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.shape[1] < 2:
        raise InputError(
            f"logits (B, K >= 2) need integer labels (B,), got {logits.shape} and {labels.shape}"
        )
    logits = logits.astype(jnp.float32)
    own = jnp.arange(logits.shape[1])[None] == labels[:, None]
    others = jnp.where(own, -jnp.inf, logits)
    return jax.nn.logsumexp(logits, -1) - jax.nn.logsumexp(others, -1)


__all__ = [
    "AdaptiveMisinformation",
    "ConfidenceMask",
    "Defence",
    "GaussianNoise",
    "ReverseSigmoid",
    "Rounding",
    "Temperature",
    "TopK",
    "hellinger",
    "normalised",
    "reverse_cross_entropy",
]
