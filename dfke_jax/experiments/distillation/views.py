"""What results of distillation look like besides accuracies: how steady students are and whose boundaries they have;
all methods side by side.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dfke_jax.display.drawing import COLOURS, GRID, INK, MARKS, MUTED, SEEDS, new_figure, round_limits, short, tidy
from dfke_jax.display.numbers import mean_sd, signed, spread
from dfke_jax.display.tables import Table
from dfke_jax.experiments.bench.result import Arm, Result
from dfke_jax.experiments.bench.views import Together, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {
    "tail_mean": "accuracy, last tenth",
    "tail_variance": "its variance",
    "transition_error": "transition error",
}


def steady_arms(result: Result) -> list[Arm]:
    """The arms whose students were measured over the last tenth of their training."""
    return [arm for arm in result.arms if "tail_mean" in arm.metrics]


def steadiness_table(result: Result) -> Table:
    """Of every such arm the mean and variance over the last tenth, and the transition error, over seeds."""
    arms = steady_arms(result)
    rows = [
        [arm.label, *(spread(arm.metrics[name]) if name in arm.metrics else "" for name in COLUMNS)] for arm in arms
    ]
    notes = (
        "Accuracy and variance (in squared per cent) are of up to 2,000 test images, at equal distances over the last "
        "tenth of the steps. Transition error: mean difference, in points, of teacher and student in the probability of "
        "the class that a path across the student's boundaries leads to.",
    )
    return Table(["arm", *COLUMNS.values()], rows, notes=notes, roles=[arm.role for arm in arms])


STEADINESS = View(
    name="steadiness",
    title="Steadiness and boundaries",
    holds=lambda result: bool(steady_arms(result)),
    table=steadiness_table,
    subject=False,
)


class Entry(NamedTuple):
    """A student among those of all methods.

    Attributes:
      experiment, result: that it is from. arm: the student. control: its matched control, if it has one.
    """

    experiment: str
    result: Result
    arm: Arm
    control: Arm | None = None

    @property
    def place(self) -> str:
        """``noise``, ``method`` or ``real``: which end of the table it belongs to."""
        return "noise" if self.arm.name in UNMADE else "real" if self.arm.name == REAL else "method"

    @property
    def accuracy(self) -> float:
        """The mean over seeds."""
        return mean_sd(self.arm.accuracy)[0]


UNMADE = {
    "noise": "noise",
    "uniform_noise": "noise",
    "smooth_noise": "smooth_noise",
    "balanced_shapes": "balanced_shapes",
    "shapes_balanced": "balanced_shapes",
}
REAL = "real_data"
"""Arms that are the two ends: what images give that nobody optimised (one name for each kind), and what the real ones give."""
SIDE_COLUMNS = (
    "data set", "experiment", "student", "networks", "seeds", "teacher %", "student %", "control %", "over control",
    "agreement %", "published %", "images", "teacher's rows", "seconds a seed",
)  # fmt: skip


def entries(results: Mapping[str, Result]) -> list[Entry]:
    """The students of all results by data set: images that nobody optimised first, then methods by rising accuracy, then real data.

    Many results have the same ends. They stand there once for every pair of networks, of the result with most seeds.
    """
    found: dict[str, dict[tuple, Entry]] = {}
    for name, result in results.items():
        controls = {method.name: control for method, control in result.pairs()}
        for arm in result.arms:
            end = arm.name in UNMADE or arm.name == REAL
            if not arm.accuracy or not (end or arm.role == "method"):
                continue
            mark = (UNMADE.get(arm.name, arm.name), _networks(result)) if end else (name, arm.name)
            entry, ours = (
                Entry(name, result, arm, None if end else controls.get(arm.name)),
                found.setdefault(result.dataset, {}),
            )
            if mark not in ours or len(arm.accuracy) > len(ours[mark].arm.accuracy):
                ours[mark] = entry
    order = {"noise": 0, "method": 1, "real": 2}
    return [
        entry
        for one in found.values()
        for entry in sorted(one.values(), key=lambda entry: (order[entry.place], entry.accuracy))
    ]


def _networks(result: Result) -> str:
    return f"{result.config.get('teacher', '')} → {result.config.get('student', '')}"


def side_by_side_table(results: Mapping[str, Result]) -> Table:
    """A row for every method, between noise and real data."""
    shown = entries(results)
    notes = (
        "Accuracy on the test set, last iterate, mean ± standard deviation over seeds, each with its own teacher. The control "
        "is the same pipeline without the method's own step; *over control* is the gain, seed by seed. The teacher's rows are "
        "the images that passed through it, for its answer or its gradient. Seconds are those of the student's own stages without "
        "compiling, on two cores that other work shared: they tell an order of magnitude. Published figures are of other networks or budgets where the experiment's page says so. Methods with "
        "few real images or images of another data set stand here too; their rows say so.",
    )
    return Table(SIDE_COLUMNS, [_side_cells(entry) for entry in shown], left=(0, 1, 2, 3), notes=notes)


def _side_cells(entry: Entry) -> list[str]:
    result, arm, control = entry.result, entry.arm, entry.control
    end = entry.place != "method"
    teachers = [one for one in result.arms if one.role == "teacher"]
    gained = [a - b for a, b in zip(arm.accuracy, control.accuracy, strict=False)] if control else []
    figures = {f"{figure.value:g}" for figure in result.published_here if figure.arm == arm.name}
    rows, images, seconds = arm.budget.get("teacher_rows"), _images(arm), result.taken_by(arm)
    return [
        result.dataset,
        "" if end else f"[{entry.experiment}]({entry.experiment}.md)",
        arm.label if end else f"**{arm.label}**",
        _networks(result),
        str(len(arm.accuracy)),
        spread(teachers[0].accuracy) if teachers else "–",
        spread(arm.accuracy),
        spread(control.accuracy) if control else "–",
        _gain(gained),
        spread(arm.agreement),
        "; ".join(sorted(figures)) or "–",
        f"{images:,}" if images else "–",
        f"{rows:,}" if rows else "–",
        "–" if seconds is None else f"{seconds:,.0f}",
    ]


def _gain(gained: Sequence[float]) -> str:
    if not gained:
        return "–"
    mean, sd = mean_sd(list(gained))
    return signed(mean) + (f" ± {sd:.2f}" if sd is not None else "")


def _images(arm: Arm) -> int:
    return arm.budget.get("synthetic_samples", 0) or arm.budget.get("real_samples", 0)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (cost, accuracy) those that no cheaper or equally dear one surpasses, by rising cost."""
    found: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or accuracy > found[-1][1]:
            found.append((cost, accuracy))
    return found


def side_by_side(results: Mapping[str, Result]) -> "Figure":
    """Accuracy against the teacher's rows and against seconds, a panel for every data set with more than one method.

    Filled marks are methods, hollow ones of the same kind their controls at the same rows; the grey line joins the methods
    that no cheaper one surpasses. What no method of a data set says of its cost has no panel.
    """
    shown = entries(results)
    sets = list(dict.fromkeys(entry.result.dataset for entry in shown))
    sets = [one for one in sets if len(_of(shown, one)) > 1] or sets
    panels = [
        (dataset, words, cost)
        for dataset in sets
        for words, cost in (("rows of the teacher", _rows), ("seconds a seed, on shared cores", _seconds))
        if any(cost(entry) for entry in _of(shown, dataset))
    ]
    labels = list(dict.fromkeys(entry.arm.label for entry in shown if entry.place == "method"))
    looks = {
        label: (SEEDS[place % len(SEEDS)], MARKS[place // len(SEEDS) % len(MARKS)])
        for place, label in enumerate(labels)
    }
    height = -(-max(len(panels), 1) // 2)
    figure = new_figure((10.5, 0.6 + 3.4 * height), layout="constrained")
    for place, (dataset, words, cost) in enumerate(panels, 1):
        axes = figure.add_subplot(height, 2, place)
        _panel(axes, [entry for entry in shown if entry.result.dataset == dataset], cost, looks)
        axes.set_xlabel(words, fontsize=8, color=MUTED)
        axes.set_ylabel(f"{dataset}: test accuracy in %", fontsize=8, color=MUTED)
    marks = [_mark(short(label), *looks[label]) for label in labels]
    figure.legend(
        handles=marks, loc="outside right upper", frameon=False, fontsize=7.5, labelcolor=INK,
        title="filled: method, hollow: its control\ndashed: real data (green), noise (grey)\ndotted: smooth noise, balanced shapes", title_fontsize=7.5,
    )  # fmt: skip
    return figure


def _rows(entry: Entry) -> float | None:
    return entry.arm.budget.get("teacher_rows")


def _seconds(entry: Entry) -> float | None:
    return entry.result.taken_by(entry.arm)


def _panel(
    axes, shown: Sequence[Entry], cost: Callable[[Entry], float | None], looks: dict[str, tuple[str, str]]
) -> None:
    """The methods of one data set with their controls and the front, between the two ends."""
    points, reached = [], []
    for entry in shown:
        if entry.place != "method":
            colour = COLOURS["anchor" if entry.place == "real" else "baseline"]
            plain = entry.place == "real" or UNMADE[entry.arm.name] == "noise"
            axes.axhline(entry.accuracy, color=colour, linewidth=1, linestyle=(0, (4, 3)) if plain else ":", zorder=0)
            reached.append(entry.accuracy)
        elif x := cost(entry):
            colour, mark = looks[entry.arm.label]
            points.append((float(x), entry.accuracy))
            axes.errorbar(
                [x], [entry.accuracy], [mean_sd(entry.arm.accuracy)[1] or 0.0], color=colour, elinewidth=0.8, zorder=3
            )
            axes.plot([x], [entry.accuracy], mark, color=colour, markersize=6.5, markeredgecolor="white", zorder=4)
            if entry.control and entry.control.accuracy:
                reached.append(mean_sd(entry.control.accuracy)[0])
                axes.plot(
                    [x], reached[-1:], mark, color=colour, markersize=4.5, markerfacecolor="none", zorder=2
                )  # fmt: skip
    best = front(points)
    axes.plot([x for x, _ in best], [y for _, y in best], color="#B5B5B5", linewidth=1, zorder=1)
    axes.set_xscale("log")
    axes.set_ylim(*round_limits(reached + [accuracy for _, accuracy in points]))
    tidy(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.6)


def _of(shown: Sequence[Entry], dataset: str) -> list[Entry]:
    return [entry for entry in shown if entry.result.dataset == dataset and entry.place == "method"]


def _mark(label: str, colour: str, mark: str):
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=mark, linestyle="none", markersize=6, label=label)


SIDE_BY_SIDE = View(
    name="distillation",
    title="Distillation without data, side by side",
    holds=lambda result: any(arm.role == "method" and arm.accuracy for arm in result.arms),
    subject=False,
    together=Together(
        "Distillation without data",
        "all methods side by side",
        side_by_side_table,
        side_by_side,
        across=True,
    ),
)

__all__ = [
    "SIDE_BY_SIDE",
    "STEADINESS",
    "Entry",
    "entries",
    "front",
    "side_by_side",
    "side_by_side_table",
    "steadiness_table",
    "steady_arms",
]
