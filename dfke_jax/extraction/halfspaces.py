"""Halfspaces by query synthesis: two dimensions at a time, each by a bisection of an angle.

Rows are written with one coordinate more, z = (x, 1), so that the boundary goes through the origin;
any z but those with z_0 = 0 is a row, x = z/z_0, whose label turns over where z_0 < 0. Of orthogonal
u and v the label of cos(α) u + sin(α) v changes at right angles to the projection of w on their
plane: log2(1/ε) labels find its direction. D + 1 axes, turned at random, are coupled in pairs, then the pairs, ...:
D couplings in log2(D + 1) rounds, all of a round side by side, O(D log(1/ε)) rows in all.

Source: Chandrasekaran, Chaudhuri, Giacomelli, Jha, Yan, "Exploring Connections Between Active
Learning and Model Extraction", USENIX Security 2020, section 4; the algorithm is dimension coupling
(Chen, Hassani, Krause, "Near-Optimal Active Learning of Halfspaces via Query Synthesis in the Noisy
Setting", AAAI 2017). Deviations: without noise; axes are coupled as a tree, not one after another.
"""

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.data.schema import Schema
from dfke_jax.extraction.labels import asking_labels, two_sides
from dfke_jax.extraction.lowd_meek import Halfspace

_LEAST = 1e-9


def coupled_halfspace(schema: Schema, *, precision: float = 2.0**-16) -> HostAttack:
    """A binary linear classifier from labels, by dimension coupling.

    Args:
      schema: of its rows; every place is taken for a number, and asked far beyond its range.
      precision: of an angle, in radians of π/2.

    Returns:
      A `HostAttack` for labels (B,) or scores (B, K); it finds a `Halfspace`. Rows: 32 or a few more
      to see two labels, then D + 1 signs and D ⌈log2(1/precision)⌉. The ledger counts ``sides``,
      ``signs`` and ``angles``.

    Raises, at once or while it runs:
      InputError: for a precision outside (0, 0.5); one label alone, or more than two; or a halfspace
        that contradicts the rows first asked: the model is not linear, or the endpoint clips rows.
    """
    if not 0 < precision < 0.5:
        raise InputError(f"precision must lie in (0, 0.5), got {precision}")

    def solve(rng: np.random.Generator, ask: Ask) -> Solution:
        labels = asking_labels(ask)
        with ask.phase("sides"):
            rows, found = two_sides(labels, schema, rng, True)
        both = int(found.min()), int(found.max())
        low, high = schema.box
        middle, half = (low + high) / 2, (high - low) / 2

        def signs(points: np.ndarray) -> np.ndarray:
            """±1 of homogeneous points (n, D + 1)."""
            last = np.where(np.abs(points[:, -1:]) < _LEAST, _LEAST, points[:, -1:])
            asked = middle + half * points[:, :-1] / last
            return np.where(labels(asked) == both[1], 1.0, -1.0) * np.sign(last[:, 0])

        axes = np.linalg.qr(rng.normal(size=(schema.width + 1, schema.width + 1)))[0]
        with ask.phase("signs"):
            vectors = list(axes * signs(axes)[:, None])
        steps = int(np.ceil(-np.log2(precision)))
        with ask.phase("angles"):
            while len(vectors) > 1:
                first, second = np.stack(vectors[0:-1:2]), np.stack(vectors[1::2])
                # both have a positive share of w: its angle lies in (0, π/2), the change at α + π/2
                low_angle, high_angle = np.zeros(len(first)), np.full(len(first), np.pi / 2)
                for _ in range(steps):
                    angle = (low_angle + high_angle) / 2
                    across = -np.sin(angle)[:, None] * first + np.cos(angle)[:, None] * second
                    beyond = signs(across) > 0
                    low_angle, high_angle = (
                        np.where(beyond, angle, low_angle),
                        np.where(beyond, high_angle, angle),
                    )
                angle = (low_angle + high_angle)[:, None] / 2
                vectors = [
                    *(np.cos(angle) * first + np.sin(angle) * second),
                    *vectors[len(first) * 2 :],
                ]
        weights = vectors[0][:-1] / half
        halfspace = Halfspace(weights, float(vectors[0][-1] - weights @ middle), both)
        wrong = float((halfspace.predict(rows) != found).mean())
        if wrong > 0.1:
            raise InputError(
                f"the halfspace contradicts {wrong:.0%} of the first {len(rows)} rows: the model is not linear, or "
                "the endpoint clips rows"
            )
        return Solution(halfspace)

    return HostAttack(solve)


__all__ = ["coupled_halfspace"]
