"""The published way to a two-layer ReLU network's weights: second differences along every axis.

At a critical point of neuron i the second difference along d is |a_i| |w_i'd|. Along the axes it
gives |w_ij|, along e_r + e_j the sign of w_ij relative to w_ir. Which side of the hyperplane is the
active one shows at a point z on all of them, A0 z = −b0, from which f moves only towards the active
side along v_i, A0 v_i = e_i; there is such a point for h ≤ D alone. The last layer is solved by
least squares.

| phase | rows |
|---|---|
| ``rounding``, ``kinks`` | as of `relu_networks`, one line |
| ``axes`` | (2D + 1) a neuron |
| ``signs`` | 2 (D − 1) a neuron, and 2h + 1 for the sides |
| ``last layer`` | 4 (h + 1) |
| ``check`` | `check_rows` |

Source: Jagielski et al., USENIX Security 2020, section 4, algorithm and equations. Deviations: the
reference axis is that of the largest difference (the first pixel of an image may count for
nothing); of several outputs that with the largest jump is read; critical points are searched as in
`piecewise_linear`.
"""

import dataclasses

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.extraction.piecewise_linear import Pieces, Values, find_pieces, measure_rounding
from dfke_jax.extraction.relu_parts import ReluNetwork
from dfke_jax.extraction.relu_search import ReluSearch

_LINES = 8


def second_differences(search: ReluSearch) -> HostAttack:
    """The baseline of `relu_network`: Jagielski's algorithm, without bounds on where it asks.

    Args:
      search: where it is asked; logits in float64, `inside` False.

    Returns:
      A `HostAttack`; it finds a `ReluNetwork` without an affine term.

    Raises, at once:
      InputError: for settings that it cannot keep to.

    Raises, while it runs:
      InputError: for more neurons than features, and what `relu_network` refuses.

    Source: as of this module.
    """
    if search.inside or search.gives != "logits" or search.precision != "float64":
        raise InputError(
            "second differences need logits in float64, and rows anywhere (inside=False)"
        )
    return HostAttack(_SecondDifferences(search).solve)


@dataclasses.dataclass(frozen=True, eq=False)
class _SecondDifferences:
    search: ReluSearch

    def solve(self, rng: np.random.Generator, ask: Ask) -> Solution:
        search, values = self.search, self.search.values(ask)
        with ask.phase("rounding"):
            rounding = measure_rounding(values, search.draw_lines(rng, [])[0])
        for _ in range(_LINES):
            with ask.phase("kinks"):
                pieces = find_pieces(
                    values, search.draw_lines(rng, []), rounding, most=search.most_neurons
                )[0]
            if pieces.clear.all():
                break
        else:
            raise InputError(f"critical points lie too close together on {_LINES} lines")
        if len(pieces.places) > search.features:
            raise InputError(
                f"{len(pieces.places)} neurons of {search.features} features: no point lies on "
                f"all their hyperplanes, and sides "
                "cannot be told; use relu_network"
            )
        points = pieces.line.rows(pieces.places)
        # near enough for no other neuron, far enough for rounding
        steps = np.minimum(
            2.0**-8 * np.minimum(pieces.room[1:], pieces.room[:-1]), 2.0**-12 * search.scale
        )
        neurons = [
            self._normal(values, ask, point, step, pieces, i)
            for i, (point, step) in enumerate(zip(points, steps, strict=True))
        ]
        normals = np.array(neurons).reshape(len(points), search.features)
        biases = -(normals * points).sum(1)
        with ask.phase("signs"):
            sides = self._sides(values, normals, biases)
        normals, biases = sides[:, None] * normals, sides * biases
        return Solution(self._last_layer(values, ask, rng, normals, biases))

    def _normal(
        self, values: Values, ask: Ask, point: np.ndarray, step: float, pieces: Pieces, place: int
    ) -> np.ndarray:
        """The normal (D,) of length 1 at a critical point, either way round."""
        output = int(np.argmax(np.abs(pieces.jumps[place])))
        axes = np.diag(np.full(len(point), step))
        with ask.phase("axes"):
            answers = values(np.concatenate([point[None], point + axes, point - axes]))[:, output]
        middle, (ahead, behind) = answers[0], answers[1:].reshape(2, -1)
        sizes = np.abs(ahead + behind - 2 * middle)
        reference = int(np.argmax(sizes))
        others = np.flatnonzero(np.arange(len(point)) != reference)
        if len(others):
            sums = axes[others] + axes[reference]
            with ask.phase("signs"):
                answers = values(np.concatenate([point + sums, point - sums]))[:, output].reshape(
                    2, -1
                )
            both = np.abs(answers.sum(0) - 2 * middle)
            alike, unlike = (
                sizes[reference] + sizes[others],
                np.abs(sizes[reference] - sizes[others]),
            )
            sizes[others] *= np.where(np.abs(both - alike) < np.abs(both - unlike), 1.0, -1.0)
        return sizes / np.linalg.norm(sizes)

    def _sides(self, values: Values, normals: np.ndarray, biases: np.ndarray) -> np.ndarray:
        """1 where a neuron is active on the side of its normal, −1 where on the other (h,)."""
        inverse = np.linalg.pinv(normals)
        corner = -inverse @ biases
        answers = values(np.concatenate([corner[None], corner + inverse.T, corner - inverse.T]))
        ahead, behind = np.linalg.norm(answers[1:] - answers[0], axis=1).reshape(2, -1)
        return np.where(ahead > behind, 1.0, -1.0)

    def _last_layer(
        self,
        values: Values,
        ask: Ask,
        rng: np.random.Generator,
        normals: np.ndarray,
        biases: np.ndarray,
    ) -> ReluNetwork:
        low, high = self.search.ends()
        count = 4 * (len(biases) + 1)

        # so far out that every neuron divides them: in many dimensions rows about the box may lie on
        # one side of a hyperplane together, and say nothing of what its neuron puts out
        middle = (low + high) / 2
        reach = 2 * float(np.abs(normals @ middle + biases).max(initial=1.0))

        def drawn(count: int) -> np.ndarray:
            rows = low + (high - low) * rng.random((count, len(low)))
            return rows + reach * rng.normal(size=(count, len(low)))

        def hidden(rows: np.ndarray) -> np.ndarray:
            return np.concatenate(
                [np.maximum(rows @ normals.T + biases, 0), np.ones((len(rows), 1))], 1
            )

        rows, checks = drawn(count), drawn(self.search.check_rows)
        with ask.phase("last layer"):
            output = np.linalg.lstsq(hidden(rows), values(rows), rcond=None)[0]
        with ask.phase("check"):
            residual = float(np.abs(values(checks) - hidden(checks) @ output).max())
        return ReluNetwork(normals.T.copy(), biases, output[:-1], None, output[-1], residual)


__all__ = ["second_differences"]
