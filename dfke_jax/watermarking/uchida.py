"""Uchida's watermark: bits in the mean of a layer's kernels, put there by a regulariser and read
from the weights.
"""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Array, Key, PyTree
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import Penalty
from dfke_jax.watermarking.commitments import MarkCommitment, mark_assumptions
from dfke_jax.watermarking.evidence import Evidence, binomial_evidence


@flax.struct.dataclass
class UchidaMark:
    """What the owner keeps.

    Attributes:
      matrix: X, (T, M), secret.
      bits: b, (T,) int32, 0 or 1.
      layer: name of the layer, ``/`` between the names of nested modules.
    """

    matrix: Array
    bits: Array
    layer: str = flax.struct.field(pytree_node=False)


def capacities(classifier: Classifier) -> dict[str, int]:
    """M by layer: how many numbers the mean over output channels of its kernel has; T ≤ M bits fit.

    Convolutions, or the hidden dense layers of a network that has none; sorted by name.
    """
    kernels = dict(sorted(_kernels(classifier.variables["params"])))
    convolutions = {name: kernel for name, kernel in kernels.items() if np.ndim(kernel) == 4}
    chosen = convolutions or {name: kernel for name, kernel in kernels.items() if name != "head"}
    return {name: int(np.prod(np.shape(kernel)[:-1])) for name, kernel in chosen.items()}


def uchida_mark(
    key: Key,
    classifier: Classifier,
    num_bits: int = 64,
    *,
    layer: str | None = None,
    bits: Any = None,
) -> UchidaMark:
    """Draws the secret: X ~ N(0, 1) and, unless a message is given, fair bits.

    Args:
      key: of the draw.
      classifier: gives the shapes.
      num_bits: T, between 1 and the layer's M.
      layer: one of `capacities`; the middle one by default.
      bits: (T,) message of zeros and ones in the place of drawn bits.

    Raises:
      UnknownNameError: for a layer that does not exist.
      InputError: for more bits than the layer carries, or a message that is none.

    Source: Uchida, Nagai, Sakazawa and Satoh, Embedding Watermarks into Deep Neural Networks, ICMR
    2017, section 3.
    """
    room = capacities(classifier)
    if layer is None:
        layer = list(room)[len(room) // 2]
    if layer not in room:
        raise UnknownNameError("layer", layer, room)
    if bits is not None:
        bits = np.asarray(bits)
        if bits.ndim != 1 or not np.isin(bits, (0, 1)).all() or not len(bits):
            raise InputError(f"a message is (T,) zeros and ones, got shape {bits.shape}")
        num_bits = len(bits)
    if not 1 <= num_bits <= room[layer]:
        others = ", ".join(f"{name} ({size})" for name, size in room.items())
        raise InputError(
            f"layer {layer!r} has M = {room[layer]} numbers and carries at most as many bits, not "
            f"{num_bits}; take fewer bits or another layer: {others}"
        )
    matrix_key, bits_key = jax.random.split(key)
    drawn = jax.random.bernoulli(bits_key, shape=(num_bits,)) if bits is None else jnp.asarray(bits)
    return UchidaMark(
        jax.random.normal(matrix_key, (num_bits, room[layer])), drawn.astype(jnp.int32), layer
    )


def uchida_penalty(mark: UchidaMark, weight: float = 0.01) -> Penalty:
    """λ · Σ_t H(b_t, σ(X_t w)), w the mean of the kernel over output channels, flattened: for
    ``training(penalty=...)``.

    The cross-entropy is summed over the bits: averaged, the mark would weaken with its length.

    Args:
      mark: of `uchida_mark`.
      weight: λ > 0.

    Raises:
      InputError: for a weight that is not positive.

    Source: Uchida et al. 2017, equations 3 to 5.
    """
    if not weight > 0:
        raise InputError(f"weight must be positive, got {weight}")
    return Partial(_penalty, mark, float(weight))


def _penalty(mark: UchidaMark, weight: Array, params: PyTree) -> Array:
    scores = _scores(mark, params)
    return weight * jnp.sum(jax.nn.softplus(scores) - mark.bits * scores)


def _scores(mark: UchidaMark, params: PyTree) -> Array:
    """X w, (T,)."""
    kernel = params
    for name in mark.layer.split("/"):
        kernel = kernel[name]
    mean = jnp.mean(kernel["kernel"].astype(jnp.float32), -1).reshape(-1)
    return jnp.matmul(mark.matrix, mean, precision="highest")


def extract_bits(classifier: Classifier, mark: UchidaMark) -> np.ndarray:
    """b̂ = 1[X w > 0], (T,) int.

    Raises:
      InputError: for a suspect without this layer in this shape, from which nothing can be read.
    """
    room = dict(_kernels(classifier.variables["params"]))
    shape = np.shape(room[mark.layer])[:-1] if mark.layer in room else None
    if shape is None or int(np.prod(shape)) != mark.matrix.shape[1]:
        raise InputError(
            f"the mark lies in {mark.matrix.shape[1]} numbers of layer {mark.layer!r}; the suspect "
            f"has {'no such layer' if shape is None else f'{int(np.prod(shape))} there'}"
        )
    return np.asarray(_scores(mark, classifier.variables["params"]) > 0).astype(int)


def bit_error_rate(classifier: Classifier, mark: UchidaMark) -> float:
    """Fraction of bits that are read wrongly: 0 of a marked network, about ½ of any other."""
    return float(np.mean(extract_bits(classifier, mark) != np.asarray(mark.bits)))


def verify_uchida(
    classifier: Classifier, mark: UchidaMark, *, commitment: MarkCommitment | None = None
) -> Evidence:
    """Matching bits against Bin(T, ½).

    The null is exact for a suspect that is independent of the mark: the rows of X are independent
    and symmetric, so every read bit is a fair coin of its own whatever the weights are. A mark that
    was made after the suspect is not: with bits set to what an innocent network gives every one of
    them matches. A commitment that was published before rules it out.

    Args:
      classifier: the suspect. mark: of `uchida_mark`.
      commitment: of `commit_mark`, published before; the verdict names it as missing otherwise.

    Raises:
      InputError: as `extract_bits`, or a mark that does not open the commitment.
    """
    assumes = mark_assumptions(mark, commitment)
    matches = int((extract_bits(classifier, mark) == np.asarray(mark.bits)).sum())
    return binomial_evidence(matches, len(mark.bits), 0.5)._replace(assumes=assumes)


def _kernels(params: Mapping, prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in params.items():
        if isinstance(value, Mapping):
            if "kernel" in value:
                found.append((prefix + name, value["kernel"]))
            found += _kernels(value, f"{prefix}{name}/")
    return found


__all__ = [
    "UchidaMark",
    "bit_error_rate",
    "capacities",
    "extract_bits",
    "uchida_mark",
    "uchida_penalty",
    "verify_uchida",
]
