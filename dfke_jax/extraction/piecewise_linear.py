"""Lines through a piecewise linear function: where its slope changes, and by how much.

On a line x(t) = u + t v a two-layer ReLU network is linear but for one critical point a neuron,
t_i = −(w_i'u + b_i)/(w_i'v). A bracket [t1, t2] with the values and slopes at its ends either is
linear, or predicts where its only critical point would be,

    t̂ = t1 + ⟨f2 − f1 − (t2 − t1) m2, m1 − m2⟩ / ‖m1 − m2‖²,

which two questions on both sides of it confirm; otherwise it is divided. All brackets of all lines
are dealt with at once, level by level, so that an endpoint sees a few large requests.

Source: Jagielski, Carlini, Berthelot, Kurakin, Papernot, "High Accuracy and High Fidelity
Extraction of Neural Networks", USENIX Security 2020, section 4. Deviations: a point is confirmed on
both sides, since two jumps of opposite sign pass the paper's question at t̂ itself, which lies on
the line of one end then; outputs of any number;
lines to infinity, t = R tan(π(s − 1/2)), on which every neuron has its critical point; tolerances
from the measured rounding of answers; breadth first.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dfke_jax.core.errors import InputError

Values = Callable[[np.ndarray], np.ndarray]
"""Rows (N, D) -> outputs (N, K), both float64."""

_SURE = 6.0
_TRIES = 6
_FARTHEST = 1 - 2e-5
_NARROWEST = 1e-11
_STEP = 2.0**-6
_DOUBLE = 1e-11
_FLOOR = 2.0**-49


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """x(t) = u + t v for t in [low, high].

    Attributes:
      start: u (D,). direction: v (D,), of length 1.
      low, high: ends of t. scale: R, the length within which most happens; brackets are halved in
        s, t = R tan(π(s − 1/2)).
    """

    start: np.ndarray
    direction: np.ndarray
    low: float
    high: float
    scale: float

    def rows(self, t: np.ndarray) -> np.ndarray:
        """x(t) of t (N,) -> (N, D)."""
        return self.start + t[:, None] * self.direction

    @classmethod
    def unlimited(
        cls, start: np.ndarray, direction: np.ndarray, scale: float, reach: float | None = None
    ) -> "Line":
        """A line beyond which less than one point in 30,000 lies; or to ±`reach`."""
        end = scale * np.tan(np.pi / 2 * _FARTHEST) if reach is None else reach
        return cls(start, direction, -end, end, scale)

    @classmethod
    def chord(
        cls, first: np.ndarray, second: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> "Line":
        """The line through two points, as far as a box goes; its start is the middle."""
        direction = (second - first) / np.linalg.norm(second - first)
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.stack([(low - first) / direction, (high - first) / direction])
        ends = np.where(np.isfinite(ends), ends, np.array([[-np.inf], [np.inf]]))
        entry, leave = np.minimum(*ends).max(), np.maximum(*ends).min()
        half = (leave - entry) / 2 * (1 - 1e-9)  # rounding must not carry its ends out of the box
        return cls(first + (entry + leave) / 2 * direction, direction, -half, half, half)


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """A line's critical points, in order, and the linear pieces between them.

    Attributes:
      line: where.
      places: t (n,). jumps: (n, K), by how much the slope changes there.
      clear: (n,), False for a place where more than one point lies, which were not told apart.
      slopes: (n + 1, K), of the pieces. middles: (n + 1,), a t inside each. room: (n + 1,), how far
        from there the piece reaches on both sides. values: (n + 1, K), at the middles.
    """

    line: Line
    places: np.ndarray
    jumps: np.ndarray
    clear: np.ndarray
    slopes: np.ndarray
    middles: np.ndarray
    room: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How exact answers are.

    Attributes:
      relative: their error in units of the size that they have.
      size: of answers within R of the start of a line; t away it is size (1 + |t|/R).
    """

    relative: float
    size: float

    def at(self, t: np.ndarray, scale: float) -> np.ndarray:
        """The error of answers at t (N,)."""
        return self.relative * self.size * (1 + np.abs(t) / scale)


def measure_rounding(values: Values, line: Line, *, single: bool = False) -> Rounding:
    """The rounding of answers, from second differences at nine places of a line; 27 rows.

    Args:
      values: what is asked. line: where.
      single: whether float32 is to be accepted.

    Raises:
      InputError: for an endpoint that answers the same everywhere, quantises or clips its rows, or
        computes or answers in float32 where that is not to be accepted.
    """
    reach = np.linspace(-0.9, 0.9, 9)
    places = np.clip(line.scale * np.tan(np.pi / 2 * reach * 0.9), line.low * 0.9, line.high * 0.9)
    places[[0, -1]] = 0.97 * line.low, 0.97 * line.high
    step = (1e-3 if single else 1e-6) * (line.scale + np.abs(places)) * 0.5
    t = places[:, None] + step[:, None] * np.array([-1.0, 0.0, 1.0])
    answers = values(line.rows(t.ravel())).reshape(9, 3, -1)
    inner = answers[:, 1]
    alike = (
        1e-12 * np.abs(answers).max()
    )  # a row's last bits depend on its place in a product of matrices
    if (np.abs(answers - answers[:1, :1]) <= alike).all():
        raise InputError(
            "the answers are equal everywhere on a line: the model is constant, or rows are not "
            "looked at"
        )
    still = (
        np.abs(answers - answers[:, :1]) <= 1e-12 * np.abs(answers).max((1, 2), keepdims=True)
    ).all((1, 2))
    if still[[0, -1]].all() and not still[1:-1].all():
        raise InputError(
            "the answers no longer change far from the middle of the box: the endpoint clips "
            "its rows, or has another "
            "model; stay in the box that it takes (inside=True)"
        )
    if still[1:-1].all():
        raise InputError(
            "small steps change nothing: the endpoint quantises its rows, or rounds its answers"
        )
    slope = np.abs(inner[1:] - inner[:-1]).max(1) / np.diff(places)
    size = max(float(np.abs(inner[3:6]).max()), float(slope.max()) * line.scale)
    differences = np.abs(answers[:, 0] - 2 * inner + answers[:, 2]).max(1) / 2
    relative = differences / (size * (1 + np.abs(places) / line.scale))
    rounding = Rounding(max(4 * float(np.median(relative)), _FLOOR), size)
    if rounding.relative > _DOUBLE and not single:
        raise InputError(
            f"the answers jump by {rounding.relative:.1g} of their size between neighbouring "
            f"rows: the endpoint computes or "
            "answers in float32, or adds noise. Weights are differences of answers: use "
            "transport='float64' and a victim in "
            "float64, or precision='float32' and less exact weights"
        )
    return rounding


def find_pieces(
    values: Values, lines: list[Line], rounding: Rounding, *, most: int
) -> list[Pieces]:
    """The critical points of lines, and what lies between them.

    Args:
      values: what is asked; once a level, of all lines.
      lines, rounding: where, and how exact its answers are.
      most: critical points of a line.

    Raises:
      InputError: where there are more, as in a function that is not piecewise linear.
    """
    found = _search(values, lines, rounding, most)
    return _measured(values, lines, found, rounding)


@dataclasses.dataclass(eq=False)
class _Brackets:
    """Open brackets: line (n,); t, error (n, 2); values f, slopes m (n, 2, K)."""

    line: np.ndarray
    t: np.ndarray
    f: np.ndarray
    m: np.ndarray
    error: np.ndarray
    tries: np.ndarray
    split: np.ndarray

    def take(self, chosen: np.ndarray) -> "_Brackets":
        return _Brackets(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))

    @staticmethod
    def joined(parts: list["_Brackets"]) -> "_Brackets":
        names = [field.name for field in dataclasses.fields(_Brackets)]
        return _Brackets(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in names)
        )


def _rows(lines: list[Line], line: np.ndarray, t: np.ndarray) -> np.ndarray:
    """x(t) of t (n, ...) on lines (n,) -> (n · ..., D)."""
    starts, ways = (
        np.stack([one.start for one in lines]),
        np.stack([one.direction for one in lines]),
    )
    t = t.reshape(len(line), -1)
    return (starts[line, None] + t[..., None] * ways[line, None]).reshape(-1, starts.shape[1])


def _opened(values: Values, lines: list[Line], rounding: Rounding) -> _Brackets:
    step = np.array([1e-2 * (one.high - one.low) / 2 for one in lines])
    ends = np.array([[one.low, one.high] for one in lines])
    t = np.stack([ends[:, 0], ends[:, 0] + step, ends[:, 1] - step, ends[:, 1]], 1)
    f = values(_rows(lines, np.arange(len(lines)), t)).reshape(len(lines), 4, -1)
    slopes = np.stack([f[:, 1] - f[:, 0], f[:, 3] - f[:, 2]], 1) / step[:, None, None]
    noise = np.stack([rounding.at(end, one.scale) for end, one in zip(ends, lines, strict=True)])
    blank = np.zeros(len(lines), int)
    return _Brackets(
        np.arange(len(lines)), ends, f[:, [0, 3]], slopes, noise / step[:, None], blank, blank > 0
    )


def _search(
    values: Values, lines: list[Line], rounding: Rounding, most: int
) -> list[list[tuple[float, bool]]]:
    """(t, whether it is one point) of each line."""
    found: list[list[tuple[float, bool]]] = [[] for _ in lines]
    scales = np.array([one.scale for one in lines])
    opened = _opened(values, lines, rounding)
    while len(opened.line):
        scale = scales[opened.line]
        width = np.diff(opened.t, axis=1)[:, 0]
        noise = rounding.relative * rounding.size * (1 + np.abs(opened.t).max(1) / scale)
        slack = _SURE * (2 * noise + opened.error.sum(1) * width)
        bend = opened.m[:, 0] - opened.m[:, 1]
        rise = opened.f[:, 1] - opened.f[:, 0]
        straight = (np.abs(bend).max(1) <= _SURE * opened.error.sum(1)) & (
            np.abs(rise - opened.m[:, 0] * width[:, None]).max(1) <= slack
        )
        narrow = ~straight & (
            (width <= _NARROWEST * (scale + np.abs(opened.t).max(1))) | (opened.tries > _TRIES)
        )
        for one, (low, high) in zip(opened.line[narrow], opened.t[narrow], strict=True):
            found[one].append(((low + high) / 2, False))
        opened = opened.take(~straight & ~narrow)
        if np.bincount(opened.line, minlength=1).max(initial=0) > 2 * most:
            raise InputError(
                f"more than {most} changes of slope on one line: the model is no ReLU network "
                f"of two layers, its answers are "
                "rounded or noisy, or it has more neurons than most_neurons"
            )
        if not len(opened.line):
            break
        opened = _level(values, lines, scales, rounding, opened, found)
    return found


def _level(
    values: Values,
    lines: list[Line],
    scales: np.ndarray,
    rounding: Rounding,
    opened: _Brackets,
    found: list[list[tuple[float, bool]]],
) -> _Brackets:
    """Asks once about all open brackets; those that are open afterwards."""
    (low, high), scale = opened.t.T, scales[opened.line]
    width, bend = high - low, opened.m[:, 0] - opened.m[:, 1]
    rise = opened.f[:, 1] - opened.f[:, 0]
    error = opened.error.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = ((rise - width[:, None] * opened.m[:, 1]) * bend).sum(1) / (bend**2).sum(1)
    shift = np.where(np.isfinite(shift), shift, -1.0)
    left = rise - opened.m[:, 0] * shift[:, None] - opened.m[:, 1] * (width - shift)[:, None]
    noise = rounding.relative * rounding.size * (1 + np.abs(opened.t).max(1) / scale)
    slack = _SURE * (2 * noise + error * width)
    single = ~opened.split & (np.abs(left).max(1) <= slack) & (shift > 0) & (shift < width)

    # where to divide the others: the middle in s, a little beside it at every further try
    s = np.arctan(opened.t / scale[:, None]) / np.pi
    share = (
        0.5
        + np.array([0.0, 0.09, -0.12, 0.21, -0.23, 0.31, -0.33])[np.minimum(opened.tries, _TRIES)]
    )
    middle = scale * np.tan(np.pi * (s[:, 0] + share * (s[:, 1] - s[:, 0])))
    middle = np.clip(middle, low + 0.02 * width, high - 0.02 * width)
    step = _STEP * 8.0**-opened.tries * np.minimum(middle - low, high - middle)
    # as near as a change of slope can be told: what is farther away looks like one point from there
    with np.errstate(divide="ignore"):
        beside = np.minimum(
            32 * slack / np.abs(bend).max(1), _STEP * np.minimum(shift, width - shift)
        )

    t = [((low + shift)[:, None] + beside[:, None] * np.array([-1, 1]))[single].ravel()]
    t += [(middle[:, None] + step[:, None] * np.array([-1, 0, 1]))[~single].ravel()]
    of = np.concatenate([np.repeat(opened.line[single], 2), np.repeat(opened.line[~single], 3)])
    answers = values(_rows(lines, of, np.concatenate(t)))

    first, rest = opened.take(single), opened.take(~single)
    seen = answers[: 2 * len(first.line)]
    before = first.f[:, 0] + first.m[:, 0] * (shift - beside)[single, None]
    after = first.f[:, 1] - first.m[:, 1] * (width - shift - beside)[single, None]
    apart = np.abs(
        seen.reshape(len(before), 2, answers.shape[1]) - np.stack([before, after], 1)
    ).max((1, 2))
    one = apart <= slack[single]
    for line, place in zip(first.line[one], (low + shift)[single][one], strict=True):
        found[line].append((float(place), True))
    first = first.take(~one)
    first.split[:] = True

    seen = answers[len(seen) :].reshape(len(rest.line), 3, answers.shape[1])
    (middle, step, noise, scale) = (part[~single] for part in (middle, step, noise, scale))
    near = rounding.relative * rounding.size * (1 + np.abs(middle) / scale)
    even = np.abs(seen[:, 0] - 2 * seen[:, 1] + seen[:, 2]).max(1) <= _SURE * near
    slopes, errors = (seen[:, 2] - seen[:, 0]) / (2 * step[:, None]), near / step
    halves = []
    for side in (0, 1):
        half = rest.take(even)
        half.t, half.f, half.m, half.error = (
            half.t.copy(),
            half.f.copy(),
            half.m.copy(),
            half.error.copy(),
        )
        half.t[:, 1 - side], half.f[:, 1 - side] = middle[even], seen[even, 1]
        half.m[:, 1 - side], half.error[:, 1 - side] = slopes[even], errors[even]
        half.tries, half.split = np.zeros_like(half.tries), np.zeros_like(half.split)
        halves.append(half)
    again = rest.take(~even)
    again.tries = again.tries + 1
    return _Brackets.joined([first, *halves, again])


def _measured(
    values: Values, lines: list[Line], found: list[list[tuple[float, bool]]], rounding: Rounding
) -> list[Pieces]:
    """Slopes, jumps and places once more, from two rows far apart in every piece."""
    sorted_, asked = [], []
    for line, points in zip(lines, found, strict=True):
        points.sort()
        t = np.array([place for place, _ in points])
        span = (
            np.maximum(line.scale, np.abs(t[[0, -1]])) / 2 if len(t) else np.full(2, line.scale / 2)
        )
        first, last = (t[0], t[-1]) if len(t) else (0.0, 0.0)
        ends = np.concatenate(
            [[max(line.low, first - span[0])], t, [min(line.high, last + span[1])]]
        )
        sorted_.append((t, np.array([clear for _, clear in points], bool), ends))
        width = np.diff(ends)
        asked.append(np.stack([ends[:-1] + 0.2 * width, ends[:-1] + 0.8 * width], 1))
    rows = np.concatenate([line.rows(t.ravel()) for line, t in zip(lines, asked, strict=True)])
    answers, pieces, begin = values(rows), [], 0
    for line, (t, clear, ends), two in zip(lines, sorted_, asked, strict=True):
        f = answers[begin : begin + two.size].reshape(len(two), 2, -1)
        begin += two.size
        slopes = (f[:, 1] - f[:, 0]) / np.diff(two, axis=1)
        middles, mean = two.mean(1), f.mean(1)
        jumps = np.diff(slopes, axis=0)
        # where the lines of two neighbouring pieces meet
        gap = (
            mean[1:] - mean[:-1] + slopes[:-1] * middles[:-1, None] - slopes[1:] * middles[1:, None]
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            meet = -(gap * jumps).sum(1) / (jumps**2).sum(1)
        places = np.where(clear & (meet > two[:-1, 1]) & (meet < two[1:, 0]), meet, t)
        noise = rounding.at(middles, line.scale) / np.diff(two, axis=1)[:, 0]
        real = np.abs(jumps).max(1) > _SURE * (noise[1:] + noise[:-1])
        whole = Pieces(line, places, jumps, clear, slopes, middles, 0.5 * np.diff(ends), mean)
        pieces.append(whole if real.all() else _without(whole, ~real))
    return pieces


def _without(pieces: Pieces, dropped: np.ndarray) -> Pieces:
    """The same without some points (n,); of the pieces beside them the longest stays."""
    run = np.concatenate([[0], np.cumsum(~dropped)])
    longest = [
        max(np.flatnonzero(run == i), key=lambda piece: pieces.room[piece])
        for i in range(run[-1] + 1)
    ]
    slopes, kept = pieces.slopes[longest], ~dropped
    return Pieces(
        pieces.line,
        pieces.places[kept],
        np.diff(slopes, axis=0),
        pieces.clear[kept],
        slopes,
        pieces.middles[longest],
        pieces.room[longest],
        pieces.values[longest],
    )


__all__ = ["Line", "Pieces", "Rounding", "find_pieces", "measure_rounding"]
