"""Two-layer ReLU networks, exactly: f(x) = A1 relu(A0 x + b0) + b1 from its answers alone.

On a line every neuron has one critical point, where the slope jumps by |w_i'v| a_i. Between two
neighbouring pieces of the line the whole gradient ∇f (D, K) jumps by the rank-one matrix ±w_i a_i';
over several critical points by the sum of theirs. Since all a_i are known from the slopes on the
line, the jump of the gradient over up to K points is solved for all of their normals at once,

    ∇f_after − ∇f_before = Σ_i n_i â_i',   n_i'v = 1,   so that   N = (∇f_after − ∇f_before) Â⁺,

and one finite-difference gradient, D + 1 rows, serves K/2 neurons; what K leaves over shows whether
a difference was taken across a neuron. With scalar outputs a gradient serves one. Orientation costs
nothing: relu(−z) = relu(z) − z, so that a neuron taken the wrong way round changes an affine term
alone (`affine skip`), which the gradient of any piece determines. Which way round each was, and
thereby the network itself, is read from that term, if it can be: h ≤ D K, and no neuron missing.

| phase | rows |
|---|---|
| ``rounding`` | 27, and 46 where probabilities limit how far a line goes |
| ``kinks`` | about 9 a neuron and line, and such 46; the second line confirms the first |
| ``gradients`` | (D + 1) (2h/K + 1), or (D + 1) (h + 1) of a scalar output, and those repeated that fail |
| ``check`` | `check_rows`, eight times as many inside the box |

Source: Jagielski et al., USENIX Security 2020, section 4; Milli, Schmidt, Dragan, Hardt, "Model
Reconstruction from Model Explanations", FAT* 2019 (jumps of gradients). Deviations: gradients shared
between neurons, the affine skip, confirmation by a second line, and vector outputs are ours.
"""

import dataclasses

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask, HostAttack, Solution
from dfke_jax.extraction.piecewise_linear import (
    Line,
    Pieces,
    Rounding,
    Values,
    find_pieces,
    measure_rounding,
)
from dfke_jax.extraction.relu_parts import Neurons, ReluNetwork, assembled
from dfke_jax.extraction.relu_search import ReluSearch

_CHUNK = 8192
_LEAST_PROBABILITY = 1e-280
_CONDITION = 0.05
_ROUNDS, _FEW_ROUNDS = 40, 10


def relu_network(search: ReluSearch) -> HostAttack:
    """The weights of a two-layer ReLU network, up to the order and scale of its neurons.

    Args:
      search: where it is asked, and what it answers.

    Returns:
      A `HostAttack`; it finds a `ReluNetwork`.

    Raises, while it runs:
      InputError: for an endpoint that answers in float32, clips or quantises rows where they leave
      the
        box, rounds, or answers labels; a model that is constant or no ReLU network of two layers.

    Source: as of this module.
    """
    return HostAttack(_Extraction(search).solve)


@dataclasses.dataclass(frozen=True, eq=False)
class _Extraction:
    """The attack: lines, gradients, and what they make together."""

    search: ReluSearch

    def solve(self, rng: np.random.Generator, ask: Ask) -> Solution:
        search, values = self.search, self.search.values(ask)
        with ask.phase("rounding"):
            line = self._limited(search.draw_lines(rng, [])[0], ask)
            rounding = measure_rounding(values, line, single=search.precision == "float32")
        neurons: Neurons | None = None
        gradients: list[np.ndarray] = []
        affine: tuple[np.ndarray, np.ndarray, float] | None = None  # point, gradient and its error
        network, between, quiet, strange = None, None, 0, 0
        for number in range(_ROUNDS if search.inside else _FEW_ROUNDS):
            with ask.phase("kinks"):
                drawn = search.draw_lines(rng, gradients, between)
                lines = [self._limited(line, ask) for line in drawn]
                found = find_pieces(values, lines, rounding, most=search.most_neurons)
            if neurons is None:
                neurons = Neurons.none(search.features, found[0].slopes.shape[1])
            new = 0
            for pieces in found:
                known, contradicted = self._matched(neurons, pieces, rounding)
                if contradicted.any():
                    neurons.keep(~contradicted)
                    known, _ = self._matched(neurons, pieces, rounding)
                unknown = pieces.clear & ~known
                new += int(unknown.sum()) + int(contradicted.sum())
                if unknown.any() or affine is None:
                    with ask.phase("gradients"):
                        gradient = self._solve_line(values, neurons, pieces, unknown, rounding)
                    if gradient is not None:
                        gradients.append(gradient[1])
                        affine = gradient if affine is None or gradient[2] < affine[2] else affine
            if number and not search.inside and search.gives != "probabilities":
                strange += new > max(2, sum(len(pieces.places) for pieces in found) // 2)
            if strange > 1 or len(neurons.biases) > search.most_neurons:
                break
            quiet = 0 if new else quiet + 1
            if quiet < self._quiet or affine is None:
                continue
            with ask.phase("check"):
                rows = self._check_rows(rng)
                answers = values(rows)
            network = assembled(neurons, affine, rows, answers)
            ask.keep(network)
            allowed = self._allowed(rounding, answers)
            if network.residual is not None and network.residual <= allowed:
                return Solution(network)
            between, quiet = _straddling(network, rows, answers, allowed), 0
        if network is None:
            raise InputError(
                "what one line shows another does not confirm: the model is no ReLU network of "
                "two layers, or has more neurons "
                "than most_neurons"
            )
        raise InputError(
            f"the answers are not those of a two-layer ReLU network: they differ by "
            f"{network.residual:.2g} from the nearest "
            f"that was found, of {len(network.bias)} neurons. The endpoint changes rows or "
            f"answers, or has another model"
        )

    def _allowed(self, rounding: Rounding, answers: np.ndarray) -> float:
        tolerance = (
            self.search.tolerance
            if self.search.precision == "float64"
            else max(self.search.tolerance, 0.05)
        )
        return tolerance * max(rounding.size, float(np.abs(answers).max()))

    @property
    def _quiet(self) -> int:
        """Rounds without a new neuron after which no more are expected."""
        if self.search.inside:
            return 8
        return 4 if self.search.gives == "probabilities" else 1

    def _limited(self, line: Line, ask: Ask) -> Line:
        """The line as far as no probability on it comes back as zero; 46 rows."""
        search = self.search
        if search.gives != "probabilities" or search.inside:
            return line
        t = search.scale * 1.6 ** np.arange(-1, 22)
        rows = (
            line.rows(np.concatenate([-t[::-1], t]))
            .reshape(-1, *search.row_shape)
            .astype(search.precision)
        )
        answers = np.asarray(ask(rows))
        if answers.ndim != 2:
            raise InputError(
                f"probabilities are of two classes or more, and the answers have shape "
                f"{answers.shape}"
            )
        floor = _LEAST_PROBABILITY if search.precision == "float64" else 1e-30
        gone = np.asarray(np.any(answers < floor, axis=1))
        small = np.flatnonzero(gone[: len(t)][::-1] | gone[len(t) :])
        reach = (
            float(t[small[0] - 1])
            if len(small) and small[0]
            else float(t[-1 if not len(small) else 0])
        )
        return dataclasses.replace(line, low=-reach, high=reach)

    def _check_rows(self, rng: np.random.Generator) -> np.ndarray:
        search = self.search
        low, high = search.ends()
        count = search.check_rows * (8 if search.inside else 1)
        rows = low + rng.random((count, search.features)) * (high - low)
        half = count // 2
        if search.inside:
            rows[:half] = search.interior(rng, half)
        elif search.gives != "probabilities":  # farther out, where every neuron divides
            rows[:half] += 2 * (high - low) * rng.normal(size=(half, search.features))
        return rows.astype(search.precision).astype(np.float64)

    def _matched(
        self, neurons: Neurons, pieces: Pieces, rounding: Rounding
    ) -> tuple[np.ndarray, np.ndarray]:
        """(points (n,) of known neurons, neurons (h,) whose point should be there and is not)."""
        line, double = pieces.line, self.search.precision == "float64"
        near, alike = (1e-5, 1e-3) if double else (1e-2, 0.2)
        known, missed = np.zeros(len(pieces.places), bool), np.zeros(len(neurons.biases), bool)
        if not len(missed):
            return known, missed
        across = neurons.normals @ line.direction
        with np.errstate(divide="ignore", invalid="ignore"):
            t = -(neurons.normals @ line.start + neurons.biases) / across
        jumps = np.abs(across)[:, None] * neurons.outputs
        size = np.linalg.norm(jumps, axis=1)
        strongest = max(float(np.abs(pieces.slopes).max()), rounding.size / line.scale)
        expected = (
            np.isfinite(t)
            & (t > 0.98 * line.low)
            & (t < 0.98 * line.high)
            & (size > 1e-5 * strongest)
        )
        for i in np.flatnonzero(np.isfinite(t)):
            apart = np.abs(pieces.places - t[i]) / (line.scale + np.abs(t[i]))
            fits = pieces.clear & (apart < near)
            fits &= np.linalg.norm(pieces.jumps - jumps[i], axis=1) <= alike * size[i]
            known |= fits
            missed[i] = expected[i] and not fits.any() and not (apart[~pieces.clear] < 1e-3).any()
        return known, missed

    def _solve_line(
        self,
        values: Values,
        neurons: Neurons,
        pieces: Pieces,
        unknown: np.ndarray,
        rounding: Rounding,
    ) -> tuple[np.ndarray, np.ndarray, float] | None:
        """Adds the neurons of unknown points; (point, gradient (D, K), error) of the best piece."""
        group = self.search.neurons_per_jump or max(1, pieces.slopes.shape[1] // 2)
        blocks = _blocks(pieces, unknown, group)
        wanted = sorted({end for block in blocks for end in block})
        wanted = wanted or [int(np.argmin(np.abs(pieces.middles)))]
        points, gradients, errors = self._gradients(values, pieces, wanted, rounding)
        place = {piece: i for i, piece in enumerate(wanted)}
        for first, last in blocks:
            before, after = place[first], place[last]
            if not np.isfinite(errors[[before, after]]).all():
                continue
            outputs = pieces.jumps[first:last]
            jump = gradients[after] - gradients[before]
            normals = (jump @ np.linalg.pinv(outputs)).T
            left = np.abs(jump - normals.T @ outputs).max()
            loose = 1e-5 if self.search.precision == "float64" else 0.1
            if left > loose * np.abs(jump).max() + 30 * errors[[before, after]].sum():
                continue
            length = np.linalg.norm(normals, axis=1)
            normals = normals / length[:, None]
            at = pieces.line.rows(pieces.places[first:last])
            neurons.add(normals, -(normals * at).sum(1), outputs * length[:, None])
        best = int(np.argmin(errors))
        return (
            (points[best], gradients[best], float(errors[best]))
            if np.isfinite(errors[best])
            else None
        )

    def _gradients(
        self, values: Values, pieces: Pieces, wanted: list[int], rounding: Rounding
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(points (n, D), gradients (n, D, K), errors (n,), infinite of what failed) of pieces.

        A gradient must agree with the slope of its piece along the line; where it does not, a
        difference was taken across a neuron, and all are taken again, sixteen times as near.
        """
        search, line = self.search, pieces.line
        double = search.precision == "float64"
        points = line.rows(pieces.middles[wanted]).astype(search.precision).astype(np.float64)
        gradients = np.zeros((len(wanted), search.features, pieces.slopes.shape[1]))
        errors = np.full(len(wanted), np.inf)
        share, most = (2.0**-6, 2.0**-12) if double else (2.0**-2, 2.0**-5)
        steps = np.minimum(share * pieces.room[wanted], most * line.scale)
        slack, size = 1e-7 if double else 2e-2, np.abs(pieces.slopes).max()
        middles = values(points)
        left = np.arange(len(wanted))
        at_once = max(1, _CHUNK // search.features)
        for _ in range(4 if double else 1):
            failed = []
            for start in range(0, len(left), at_once):
                part = left[start : start + at_once]
                moved = [self._moved(points[i], float(steps[i])) for i in part]
                answers = values(np.concatenate(moved)).reshape(len(part), search.features, -1)
                for i, rows, seen in zip(part, moved, answers, strict=True):
                    gradient = (seen - middles[i]) / (np.diagonal(rows) - points[i])[:, None]
                    error = float(rounding.at(pieces.middles[wanted[i]], line.scale) / steps[i])
                    apart = np.abs(line.direction @ gradient - pieces.slopes[wanted[i]]).max()
                    if apart <= slack * size + 8 * error:
                        gradients[i], errors[i] = gradient, error
                    else:
                        failed.append(i)
            left = np.array(failed, int)
            steps[left] /= 16
        return points, gradients, errors

    def _moved(self, point: np.ndarray, step: float) -> np.ndarray:
        """The point moved along every axis by itself (D, D), and not out of its box."""
        steps: float | np.ndarray = step
        if self.search.inside:
            _, high = self.search.ends()
            steps = np.where(point + step > high, -step, step)
        moved = np.tile(point.astype(self.search.precision), (len(point), 1))
        moved.reshape(-1)[:: len(point) + 1] += steps
        return moved


def _straddling(
    network: ReluNetwork, rows: np.ndarray, answers: np.ndarray, allowed: float
) -> np.ndarray | None:
    """Up to four pairs (n, 2, D) of rows on both sides of neurons that were missed, None if none.

    A network without some neuron, but with the right gradient somewhere, is right on one side of
    that neuron and wrong on the other: a line from a wrong row to a right one crosses it.
    """
    apart = np.abs(network(rows) - answers).max(1)
    wrong, right = np.flatnonzero(apart > allowed), np.flatnonzero(apart <= allowed)
    if not len(wrong) or not len(right):
        return None
    wrong = wrong[np.argsort(-apart[wrong])][:4]
    return np.stack([rows[wrong], rows[np.resize(right, len(wrong))]], 1)


def _blocks(pieces: Pieces, unknown: np.ndarray, most: int) -> list[tuple[int, int]]:
    """(first piece, last piece) over whose points [first, last) gradients are compared.

    Points of a block are unknown, at most so many, and the directions of their jumps differ enough
    to be told apart. Of the places where a block may end that with most room is taken.
    """
    blocks, first = [], 0
    while first < len(unknown):
        if not unknown[first]:
            first += 1
            continue
        ends = []
        for last in range(first + 1, min(first + most, len(unknown)) + 1):
            if not unknown[last - 1]:
                break
            jumps = pieces.jumps[first:last]
            sizes = np.linalg.svd(
                jumps / np.linalg.norm(jumps, axis=1, keepdims=True), compute_uv=False
            )
            if last > first + 1 and sizes[-1] < _CONDITION:
                break
            ends.append(last)
        late = ends[len(ends) // 2 :] if len(ends) > 1 else ends
        last = max(late, key=lambda end: pieces.room[end])
        blocks.append((first, last))
        first = last
    return blocks


__all__ = ["relu_network"]
