"""Extraction, then learning: an extracted network is fitted to all answers that were paid for.

    min over (W, b, A, S, c) of  mean over rows of ‖relu(x W + b) A + x S + c − f(x)‖²

Weights that differences of answers left inexact (float32, rounding, noise) begin close to the
victim's, where a few hundred steps of L-BFGS suffice; from a random start the same budget learns a
network that agrees on some of the rows. Neurons that were missed are learnt besides: `widened` adds
some at random, which say nothing at first, and the fit moves them to where the answers differ.

Source: Jagielski et al., USENIX Security 2020, section 5 (the hybrid strategies). Deviations: all
layers are fitted at once, in float64, to the answers that the extraction has asked and to further
ones.
"""

import dataclasses
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import scipy.optimize

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.extraction.relu_networks import relu_network
from dfke_jax.extraction.relu_parts import ReluNetwork
from dfke_jax.extraction.relu_search import ReluSearch


def refined(network: ReluNetwork, rows: Any, answers: Any, *, steps: int = 500) -> ReluNetwork:
    """The network, fitted to answers from where it stands.

    Args:
      network: where it begins.
      rows: (N, ...). answers: (N, K), as the network answers.
      steps: of L-BFGS at most.

    Raises:
      InputError: for answers of another shape.
    """
    rows = np.asarray(rows, np.float64).reshape(len(rows), -1)
    answers = np.asarray(answers, np.float64)
    if answers.shape != (len(rows), len(network.constant)) or not len(rows):
        raise InputError(
            f"{len(rows)} rows need answers ({len(rows)}, {len(network.constant)}), got "
            f"{answers.shape}"
        )
    parts = [network.weights, network.bias, network.output, network.constant]
    if network.skip is not None:
        parts.append(network.skip)
    shapes, sizes = [part.shape for part in parts], np.cumsum([part.size for part in parts])[:-1]
    scale = float(np.mean(answers**2)) or 1.0

    def unpacked(flat: np.ndarray) -> list[np.ndarray]:
        return [
            part.reshape(shape) for part, shape in zip(np.split(flat, sizes), shapes, strict=True)
        ]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias, output, constant, *skip = unpacked(flat)
        before = rows @ weights + bias
        hidden = np.maximum(before, 0)
        apart = hidden @ output + constant + sum(rows @ part for part in skip) - answers
        back = 2 * apart / (apart.size * scale)
        inner = (back @ output.T) * (before > 0)
        gradients = [
            rows.T @ inner,
            inner.sum(0),
            hidden.T @ back,
            back.sum(0),
            *(rows.T @ back for _ in skip),
        ]
        return float((apart**2).mean() / scale), np.concatenate(
            [part.ravel() for part in gradients]
        )

    start = np.concatenate([part.ravel() for part in parts])
    settings = {"maxiter": steps, "maxfun": 4 * steps, "maxcor": 20, "ftol": 1e-16, "gtol": 1e-12}
    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=settings)
    weights, bias, output, constant, *skip = unpacked(found.x)
    fitted = ReluNetwork(weights, bias, output, skip[0] if skip else None, constant)
    return dataclasses.replace(fitted, residual=float(np.abs(fitted(rows) - answers).max()))


def widened(network: ReluNetwork, neurons: int, rows: Any, rng: np.random.Generator) -> ReluNetwork:
    """The network with more neurons, which change nothing yet: their outputs are zero.

    Args:
      network: what was extracted.
      neurons: how many more, at least 1. Their normals are uniform on the sphere, each with a
        hyperplane through one of the rows.
      rows: (N, ...) of which those are. rng: draws both.

    Raises:
      InputError: for no neurons or rows.
    """
    rows = np.asarray(rows, np.float64).reshape(len(rows), -1)
    if neurons < 1 or not len(rows):
        raise InputError(f"neurons and rows must be at least 1, got {neurons} and {len(rows)}")
    normals = rng.normal(size=(rows.shape[1], neurons))
    normals /= np.linalg.norm(normals, axis=0)
    through = rows[rng.integers(len(rows), size=neurons)]
    return dataclasses.replace(
        network,
        weights=np.concatenate([network.weights, normals], 1),
        bias=np.concatenate([network.bias, -(through * normals.T).sum(1)]),
        output=np.concatenate([network.output, np.zeros((neurons, network.output.shape[1]))]),
    )


class _Keeping:
    """An `Ask` that remembers what was kept."""

    def __init__(self, ask: Ask):
        self.ask, self.kept = ask, None

    def __call__(self, rows: np.ndarray) -> Any:
        return self.ask(rows)

    def keep(self, found: Any) -> None:
        self.kept = found
        self.ask.keep(found)

    def phase(self, name: str) -> AbstractContextManager:
        return self.ask.phase(name)


def hybrid(
    search: ReluSearch, further: int = 1024, *, steps: int = 500, missing: int = 0
) -> HostAttack:
    """`relu_network` where answers are inexact, and learning from there.

    Args:
      search: where it is asked; ``precision="float32"`` takes what answers in float32 allow.
      further: rows in the box that are asked besides, for the fit; phase ``learning``.
      steps: of the fit.
      missing: neurons that are added (`widened`) where what was extracted does not stand the check;
        0 refuses, as `relu_network` does. How close the fit came is the result's ``residual``.

    Returns:
      A `HostAttack`; it finds a `ReluNetwork`. Without a budget for the rows of the fit it finds
      what was extracted.

    Raises: as `relu_network`; with ``missing``, only where nothing was extracted.
    """
    if further < 1 or steps < 1 or missing < 0:
        raise InputError(
            f"further rows and steps must be at least 1 and missing not negative, got {further}, "
            f"{steps} and {missing}"
        )

    def solve(rng: np.random.Generator, ask: Ask) -> Solution:
        keeping, whole = _Keeping(ask), True
        try:
            network = relu_network(search).solve(rng, keeping).found
        except InputError:
            if not missing or keeping.kept is None:
                raise
            network, whole = keeping.kept, False
        ask.keep(network)
        low, high = search.ends()
        near = low + rng.random((further, search.features)) * (high - low)
        near[: further // 2] = search.interior(rng, further // 2)
        near = near.astype(search.precision).astype(np.float64)
        with ask.phase("learning"):
            answers = search.values(ask)(near)
        if not whole:
            network = widened(network, missing, near, rng)
        return Solution(refined(network, near, answers, steps=steps))

    return HostAttack(solve)


__all__ = ["hybrid", "refined", "widened"]
