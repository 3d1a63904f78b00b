"""Two-layer ReLU networks from gradients: what an endpoint that explains itself gives away.

Between two pieces of a line the gradient jumps by w_i a_i', and one question reads it whole:
O(h log h) questions, however many features there are, where answers alone take D + 1 for a
gradient. Divided by bisection until it is this narrow, as published, a bracket costs
log2(range/ε) questions a neuron; predicted from the values and slopes at its ends, and confirmed on
both sides, about five.

Source: Milli, Schmidt, Dragan, Hardt, "Model Reconstruction from Model Explanations", FAT* 2019,
sections 3 and 4. Deviations: outputs of any number; the affine skip in the place of the paper's
sign recovery; prediction (`predicted`) is ours.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.extraction.piecewise_linear import Line
from dfke_jax.extraction.relu_parts import Neurons, ReluNetwork, assembled
from dfke_jax.extraction.relu_search import ReluSearch

_ALIKE = 1e-9
_WIDTH = 1e-9
_LINES = 3


class _End(NamedTuple):
    """One end of a bracket: t, value (K,), gradient (D, K)."""

    t: float
    value: np.ndarray
    gradient: np.ndarray


def gradient_network(search: ReluSearch, *, predicted: bool = True) -> HostAttack:
    """A two-layer ReLU network from values and gradients.

    Args:
      search: where it is asked. Answers are pairs: (logits (B, K), ∂logits/∂x (B, K, ...)), or of
        an endpoint that explains probabilities, `oracle.Explained` with all classes' gradients,
        with ``gives="probabilities"``.
      predicted: whether points are predicted; False divides as published.

    Returns:
      A `HostAttack`; it finds a `ReluNetwork`. The phase ``gradients`` counts all but the check.
      Where the budget ends before, it has the neurons found so far, and the gradient nearest to
      the box.

    Raises, while it runs:
      InputError: for answers without gradients, or a model that is no two-layer ReLU network.

    Source: as of this module.
    """
    return HostAttack(_Gradients(search, predicted).solve)


@dataclasses.dataclass(frozen=True, eq=False)
class _Gradients:
    search: ReluSearch
    predicted: bool

    def solve(self, rng: np.random.Generator, ask: Ask) -> Solution:
        search = self.search
        low, high = search.ends()
        for _ in range(_LINES):
            start, way = search.interior(rng, 1)[0], rng.normal(size=search.features)
            line = Line.unlimited(start, way / np.linalg.norm(way), search.scale)
            if search.gives == "probabilities":
                line = dataclasses.replace(line, low=-20 * search.scale, high=20 * search.scale)
            with ask.phase("gradients"):
                neurons, first = self._along(ask, line)
            rows = low + rng.random((search.check_rows, search.features)) * (high - low)
            with ask.phase("check"):
                answers, _ = self._ask(ask, rows)
            network = assembled(
                neurons, (line.rows(np.array([first.t]))[0], first.gradient, 0.0), rows, answers
            )
            ask.keep(network)
            if (network.residual or 0.0) <= search.tolerance * max(
                float(np.abs(answers).max()), 1e-300
            ):
                return Solution(network)
        raise InputError(
            f"the answers are not those of a two-layer ReLU network: they differ by "
            f"{network.residual:.2g} from the nearest "
            "that was found"
        )

    def _ask(self, ask: Ask, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(outputs (N, K), gradients (N, D, K)), centred over the classes where of logarithms."""
        search = self.search
        answers: Any = ask(rows.reshape(-1, *search.row_shape))
        if not isinstance(answers, tuple) or len(answers) != 2:
            raise InputError(
                "gradients are asked, and the answers have none: an endpoint that explains is "
                "needed"
            )
        values, gradients = (np.asarray(part) for part in answers)
        gradients = np.asarray(gradients, np.float64).reshape(len(rows), -1, search.features)
        if values.ndim != 2 or gradients.shape[1] != values.shape[1]:
            raise InputError(
                f"gradients of all {values.shape[-1]} outputs are needed, got those of "
                f"{gradients.shape[1]}"
            )
        if search.gives == "probabilities":
            gradients = gradients / values[..., None]
        outputs = search.read(values)
        if search.gives != "logits":
            gradients = gradients - gradients.mean(1, keepdims=True)
        return outputs, gradients.swapaxes(1, 2)

    def _along(self, ask: Ask, line: Line) -> tuple[Neurons, _End]:
        """The neurons of a line, and its first end."""

        def ends(t: list[float]) -> list[_End]:
            values, gradients = self._ask(ask, line.rows(np.array(t)))
            return [_End(*parts) for parts in zip(t, values, gradients, strict=True)]

        first, last = ends([line.low, line.high])
        neurons = Neurons.none(self.search.features, first.gradient.shape[1])
        opened, nearest = [(first, last, False)], first
        scale = max(float(np.abs(first.gradient).max()), float(np.abs(last.gradient).max()), 1e-300)
        while opened:
            bent = [
                one
                for one in opened
                if np.abs(one[0].gradient - one[1].gradient).max() > _ALIKE * scale
            ]
            opened = []
            for left, right, divide in bent:
                if right.t - left.t > self._narrow * (line.scale + abs(left.t)):
                    opened.append((left, right, divide))
                else:
                    _add(neurons, line, left, right)
            if len(opened) > 2 * self.search.most_neurons:
                raise InputError(
                    "the gradient changes everywhere: the model is no ReLU network of two layers"
                )
            if not opened:
                break
            places = [self._places(line, *bracket) for bracket in opened]
            answered = iter(ends([t for two in places for t in two]))
            following = []
            for (left, right, _), two in zip(opened, places, strict=True):
                found = [next(answered) for _ in two]
                nearest = min(nearest, *found, key=lambda end: abs(end.t))
                scale = max(scale, *(float(np.abs(end.gradient).max()) for end in found))
                if len(found) == 1:
                    following += [(left, found[0], False), (found[0], right, False)]
                    continue
                before, after = found
                same = max(
                    np.abs(before.gradient - left.gradient).max(),
                    np.abs(after.gradient - right.gradient).max(),
                )
                if same <= _ALIKE * scale:
                    _add(neurons, line, before, after)
                else:
                    following.append((left, right, True))
            opened = following
            ask.keep(_so_far(neurons, line, nearest))
        return neurons, first

    @property
    def _narrow(self) -> float:
        return 1e-12 if self.predicted else _WIDTH

    def _places(self, line: Line, left: _End, right: _End, divide: bool) -> list[float]:
        """Two places around the only critical point, or one that divides the bracket."""
        s = np.arctan(np.array([left.t, right.t]) / line.scale)
        middle = float(line.scale * np.tan(s.mean()))
        if not left.t < middle < right.t:
            middle = (left.t + right.t) / 2
        width = right.t - left.t
        slopes = line.direction @ left.gradient, line.direction @ right.gradient
        bend = slopes[0] - slopes[1]
        if divide or not self.predicted or not (bend**2).sum() > 0:
            return [middle]
        shift = float(
            ((right.value - left.value - width * slopes[1]) * bend).sum() / (bend**2).sum()
        )
        left_over = right.value - left.value - slopes[0] * shift - slopes[1] * (width - shift)
        size = np.abs(left.value).max() + np.abs(right.value).max() + np.abs(slopes).max() * width
        if not 0 < shift < width or np.abs(left_over).max() > 1e-10 * size:
            return [middle]
        beside = min(
            1e-8 * (line.scale + abs(left.t + shift)) + 1e-11 * width,
            0.25 * shift,
            0.25 * (width - shift),
        )
        return [left.t + shift - beside, left.t + shift + beside]


def _so_far(neurons: Neurons, line: Line, end: _End) -> ReluNetwork:
    """The network of some neurons that has an end's value and gradient."""
    point = line.rows(np.array([end.t]))
    return assembled(neurons, (point[0], end.gradient, 0.0), point, end.value[None])


def _add(neurons: Neurons, line: Line, before: _End, after: _End) -> None:
    """The neuron between two ends: the first singular vectors of the gradient's jump."""
    left, sizes, right = np.linalg.svd(after.gradient - before.gradient, full_matrices=False)
    normal, output = left[:, 0], sizes[0] * right[0]
    if normal @ line.direction < 0:
        normal, output = -normal, -output
    # where the lines of both pieces meet, which is exact however far apart the ends are
    slopes = line.direction @ before.gradient, line.direction @ after.gradient
    bend = slopes[1] - slopes[0]
    gap = before.value - after.value - slopes[0] * before.t + slopes[1] * after.t
    t = float((gap * bend).sum() / (bend**2).sum())
    t = min(max(t, before.t), after.t)
    neurons.add(normal[None], -(line.rows(np.array([t])) @ normal), output[None])


__all__ = ["gradient_network"]
