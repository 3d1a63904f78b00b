"""What a two-layer ReLU network is made of when it has been found: neurons, and an affine term."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class ReluNetwork:
    """f(x) = relu(x W + b) A + x S + c, as it was found.

    Attributes:
      weights: W (D, h). bias: b (h,). Columns of W have length 1.
      output: A (h, K).
      skip: S (D, K); None of a network that is of two layers to the last bit that could be told.
      constant: c (K,).
      residual: the largest difference of its outputs from the victim's in the rows that check it.
    """

    weights: np.ndarray
    bias: np.ndarray
    output: np.ndarray
    skip: np.ndarray | None
    constant: np.ndarray
    residual: float | None = None

    def __call__(self, rows: Any) -> np.ndarray:
        """Outputs (B, K) of rows (B, ...): logits, or of probabilities, logits of mean zero."""
        rows = np.asarray(rows, np.float64)
        rows = rows.reshape(len(rows), -1)
        outputs = np.maximum(rows @ self.weights + self.bias, 0) @ self.output + self.constant
        return outputs if self.skip is None else outputs + rows @ self.skip


@dataclasses.dataclass(eq=False)
class Neurons:
    """Neurons, either way round: normals (h, D) of length 1, biases (h,), outputs (h, K)."""

    normals: np.ndarray
    biases: np.ndarray
    outputs: np.ndarray

    @classmethod
    def none(cls, features: int, outputs: int) -> "Neurons":
        """No neurons yet."""
        return cls(np.zeros((0, features)), np.zeros(0), np.zeros((0, outputs)))

    def add(self, normals: np.ndarray, biases: np.ndarray, outputs: np.ndarray) -> None:
        self.normals = np.concatenate([self.normals, normals])
        self.biases = np.concatenate([self.biases, biases])
        self.outputs = np.concatenate([self.outputs, outputs])

    def keep(self, chosen: np.ndarray) -> None:
        self.normals, self.biases, self.outputs = (
            self.normals[chosen],
            self.biases[chosen],
            self.outputs[chosen],
        )

    def active(self, rows: np.ndarray) -> np.ndarray:
        """relu(x n + c) (N, h)."""
        return np.maximum(rows @ self.normals.T + self.biases, 0)

    def gradient(self, row: np.ndarray) -> np.ndarray:
        """Of their sum at a row (D,): (D, K)."""
        on = self.normals @ row + self.biases > 0
        return self.normals[on].T @ self.outputs[on]


def assembled(
    neurons: Neurons,
    affine: tuple[np.ndarray, np.ndarray, float],
    rows: np.ndarray,
    answers: np.ndarray,
) -> ReluNetwork:
    """The network of these neurons that has this gradient, and these answers on the average."""
    point, gradient, _ = affine
    skip = gradient - neurons.gradient(point)
    flipped = _orientation(neurons, skip)
    normals, biases, outputs = neurons.normals, neurons.biases, neurons.outputs
    pure = None
    if flipped is not None:
        turned = skip + (normals[flipped].T @ outputs[flipped])
        if np.abs(turned).max(initial=0) <= 1e-6 * max(float(np.abs(gradient).max()), 1e-300):
            sign = np.where(flipped, -1.0, 1.0)
            pure = sign[:, None] * normals, sign * biases
    if pure is not None:
        normals, biases = pure
    found = np.maximum(rows @ normals.T + biases, 0) @ outputs
    if pure is None:
        found = found + rows @ skip
    constant = np.median(answers - found, axis=0)
    residual = float(np.abs(answers - found - constant).max())
    return ReluNetwork(
        normals.T.copy(), biases, outputs, skip if pure is None else None, constant, residual
    )


def _orientation(neurons: Neurons, skip: np.ndarray) -> np.ndarray | None:
    """Which neurons (h,) stand the wrong way round; None where that is not told.

    S = −Σ_i z_i n_i a_i', z_i 0 or 1.

    The normal equations of that are those of the h x h matrix (n_i'n_j)(a_i'a_j).
    """
    if not len(neurons.biases):
        return np.zeros(0, bool)
    size = np.linalg.norm(neurons.outputs, axis=1)
    if (size == 0).any():
        return None
    outputs = neurons.outputs / size[:, None]
    matrix = (neurons.normals @ neurons.normals.T) * (outputs @ outputs.T)
    right = -np.einsum("hd,dk,hk->h", neurons.normals, skip, outputs)
    shares = np.linalg.lstsq(matrix, right, rcond=1e-12)[0] / size
    whole = np.round(shares)
    if np.abs(shares - whole).max() > 0.05 or not np.isin(whole, (0, 1)).all():
        return None
    return whole == 1


__all__ = ["Neurons", "ReluNetwork", "assembled"]
