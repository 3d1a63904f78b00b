"""What results of extraction look like: accuracy against queries, and a table of defences."""

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.display.drawing import (
    COLOURS,
    GRID,
    INK,
    MARKS,
    MUTED,
    SEEDS,
    abbreviated,
    new_figure,
    nowhere,
    round_limits,
    short,
    tidy,
)
from dfke_jax.display.numbers import mean_sd, spread
from dfke_jax.display.tables import Table
from dfke_jax.experiments.bench.result import Arm, Result
from dfke_jax.experiments.bench.views import Together, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """What was reached with a number of rows.

    Attributes:
      budget: that was given. rows: that were asked. accuracy: per seed, in per cent. arm: where it stands; None for a
        published figure.
    """

    budget: int
    rows: int
    accuracy: list[float]
    arm: Arm | None = None


class Line(NamedTuple):
    """One attack over its budgets, in increasing order; `progress` is what its largest run had on the way."""

    label: str
    method: list[Point]
    control: list[Point]
    published: list[Point]
    progress: list[Point]


def query_lines(result: Result) -> list[Line]:
    """The attacks of a result, each over the budgets that it was run with; empty for other recipes.

    Arms are those with the factors ``attack`` and ``queries`` that say how many rows they asked.
    """
    lines: dict[str, Line] = {}
    for arm in result.arms:
        if not {"attack", "queries"} <= arm.factors.keys() or "victim_rows" not in arm.budget or not arm.accuracy:
            continue
        attack, budget = str(arm.factors["attack"]), int(arm.factors["queries"])
        line = lines.setdefault(attack, Line(attack, [], [], [], []))
        point = Point(budget, arm.budget["victim_rows"], arm.accuracy, arm)
        (line.control if arm.role == "control" else line.method).append(point)
    for figure in result.published_here:
        attack, budget = figure.factors.get("attack"), int(figure.factors.get("queries", 0))
        if attack in lines:
            lines[str(attack)].published.append(Point(budget, budget, [figure.value]))
    for line in lines.values():
        for points in line[1:]:
            points.sort()
        line.progress.extend(_progress(line.method[-1].arm) if line.method else ())
    return list(lines.values())


def _progress(arm: Arm | None) -> list[Point]:
    found = arm and arm.over("queries", "accuracy")
    return [Point(int(rows), int(rows), found.at(rows)) for rows in found.x] if found else []


QUERY_COLUMNS = (
    "budget",
    "rows asked",
    "accuracy %",
    "fidelity %",
    "total variation",
    "transfer %",
    "control %",
    "published %",
)


def query_cells(line: Line) -> list[list[str]]:
    """One row per budget of an attack, in the columns `QUERY_COLUMNS`: mean ± sd over seeds."""
    controls = {point.budget: spread(point.accuracy) for point in line.control}
    published = {point.budget: f"{point.accuracy[0]:g}" for point in line.published}
    rows = []
    for point in line.method:
        assert point.arm is not None
        metrics = point.arm.metrics
        rows.append(
            [
                f"{point.budget:,}",
                f"{point.rows:,}",
                spread(point.accuracy),
                spread(point.arm.agreement),
                spread(metrics.get("total_variation", []), 3),
                spread(metrics.get("transfer", []), 1),
                controls.get(point.budget, "–"),
                published.get(point.budget, "–"),
            ]
        )
    return rows


def query_table(result: Result) -> Table:
    """A row per attack and budget: what was asked, what the clone reached, its control."""
    rows = [(line.label, *cells) for line in query_lines(result) for cells in query_cells(line)]
    return Table(("attack", *QUERY_COLUMNS), rows, notes=(_QUERY_WORDS,))


def queries_table(results: Sequence[Result]) -> Table:
    """The same of several results, with their data sets."""
    rows = [(result.dataset, *row) for result in results for row in query_table(result).rows]
    return Table(("data set", "attack", *QUERY_COLUMNS), rows, left=(0, 1))


_QUERY_WORDS = (
    "Rows asked are counted by the ledger. Fidelity: share of test images on which clone and victim agree. Transfer: share "
    "of the victim's right answers that FGSM examples made on the clone turn wrong."
)


class Cell(NamedTuple):
    """One attack behind one defence, everything per seed.

    Attributes:
      fidelity: of the clone to the victim, in per cent. accuracy: of the clone. answers_accuracy, answers_l1: of the
        defended answers; see `dfke_jax.experiments.extraction.defences.utility`.
    """

    fidelity: list[float]
    accuracy: list[float]
    answers_accuracy: list[float]
    answers_l1: list[float]


class Defended(NamedTuple):
    """Defences and attacks by their labels, in the order of the result, and a cell for every pair that was run."""

    defences: tuple[str, ...]
    attacks: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]


def defended(result: Result) -> Defended:
    """The cells of a result of the recipe of defences; empty for others."""
    cells = {}
    for arm in result.arms:
        if "defence" in arm.factors and arm.accuracy:
            cells[str(arm.factors["defence"]), str(arm.factors["attack"])] = Cell(
                arm.agreement, arm.accuracy, arm.metrics.get("answers_accuracy", []), arm.metrics.get("answers_l1", [])
            )
    return Defended(
        tuple(dict.fromkeys(defence for defence, _ in cells)),
        tuple(dict.fromkeys(attack for _, attack in cells)),
        cells,
    )


def defences_table(result: Result) -> Table:
    """A row per defence: fidelity of every attack's clone, and what the defence costs honest users."""
    table = defended(result)
    head = ["defence", *(f"{attack}: fidelity %" for attack in table.attacks), "answers' accuracy %", "L1 distance"]
    rows = []
    for defence in table.defences:
        cells = [table.cells.get((defence, attack)) for attack in table.attacks]
        own = next(cell for cell in cells if cell is not None)
        words = [defence, *("–" if cell is None else spread(cell.fidelity) for cell in cells)]
        words += [spread(own.answers_accuracy), spread(own.answers_l1, 3)]
        rows.append(words)
    return Table(head, rows)


def _told_apart(found: Sequence[tuple[Line, Result]]) -> list[Line]:
    """The lines; of those with one label, each says how large its batches were, where that is known."""
    labels = collections.Counter(line.label for line, _ in found)
    sizes = [result.config.get("attack", {}).get("batch_size") for _, result in found]
    return [
        line._replace(label=f"{line.label}, batches of {size}") if labels[line.label] > 1 and size else line
        for (line, _), size in zip(found, sizes, strict=True)
    ]


def queries(results: Sequence[Result]) -> "Figure":
    """Accuracy against queries, logarithmic: mean and standard deviation over seeds of every attack.

    Solid lines are attacks, dashed ones of the same colour their controls, open diamonds published figures at the budget that
    they belong to, dotted lines the victims; thin lines without marks what the largest run of an attack had on the way.

    Args:
      results: of extraction recipes on one data set; arms that asked at a single budget are drawn as points.

    Raises:
      InputError: when no arm says how many rows it asked at which budget.
    """
    lines = _told_apart([(line, result) for result in results for line in query_lines(result)])
    if not lines:
        raise InputError("there is no accuracy at any number of queries to draw")
    figure = new_figure((7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    values: list[float] = []
    for index, line in enumerate(lines):
        colour, mark = SEEDS[index % len(SEEDS)], MARKS[index % len(MARKS)]
        for points, style, label in ((line.method, "-", line.label), (line.control, (0, (4, 3)), None)):
            if not points:
                continue
            rows = [point.rows for point in points]
            means = [mean_sd(point.accuracy)[0] for point in points]
            axes.errorbar(
                rows,
                means,
                [mean_sd(point.accuracy)[1] or 0.0 for point in points],
                color=colour,
                linestyle=style,
                linewidth=1.7 if label else 1.1,
                marker=mark,
                markersize=5.5 if label else 4,
                markerfacecolor=colour if label else "white",
                capsize=2,
                elinewidth=1,
                label=short(label) if label else None,
                zorder=4 if label else 3,
            )
            values += [v for point in points for v in point.accuracy]
        if line.progress:
            rows = [point.rows for point in line.progress]
            axes.plot(
                rows, [mean_sd(point.accuracy)[0] for point in line.progress], color=colour, linewidth=0.9, zorder=2
            )
            values += [v for point in line.progress for v in point.accuracy]
        for point in line.published:
            axes.plot(
                [point.rows], [point.accuracy[0]], "D", markerfacecolor="none", markeredgecolor=colour, markersize=7
            )
            values.append(point.accuracy[0])
    for level in sorted({round(mean_sd(a.accuracy)[0], 2) for r in results for a in r.arms if a.role == "teacher"}):
        axes.axhline(level, color=COLOURS["teacher"], linewidth=1, linestyle=":", zorder=1)
        values.append(level)
    axes.set_xscale("log")
    ticks = sorted({point.budget for line in lines for point in (*line.method, *line.published)})
    axes.set_xticks(ticks, [abbreviated(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(nowhere())
    axes.set_ylim(*round_limits(values))
    axes.set_xlabel(
        "rows asked · solid: attack, dashed: its control, diamonds: published, dotted: the victim; bars: sd over seeds",
        fontsize=8,
        color=MUTED,
    )
    axes.set_ylabel("test accuracy in %", fontsize=8, color=MUTED)
    tidy(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    return figure


def defences(result: Result) -> "Figure":
    """Fidelity of the clone of every attack behind every defence as a heat map, beside what the defence costs honest users.

    Args:
      result: of the recipe of defences.

    Raises:
      InputError: when no arm stands behind a defence.
    """
    table = defended(result)
    if not table.cells:
        raise InputError("there is no attack behind a defence to draw")
    rows, columns = list(table.defences), list(table.attacks)
    values = np.full((len(rows), len(columns)), np.nan)
    for (defence, attack), cell in table.cells.items():
        values[rows.index(defence), columns.index(attack)] = mean_sd(cell.fidelity)[0]
    figure = new_figure((4.4 + 1.1 * len(columns), 0.42 * len(rows) + 1.1), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(np.ma.masked_invalid(values), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(values.shape):
        cell = table.cells.get((rows[row], columns[column]))
        dark = cell is not None and values[row, column] > 62
        text = spread(cell.fidelity, 1) if cell else "–"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
    for row, defence in enumerate(rows):
        cell = next(cell for (name, _), cell in table.cells.items() if name == defence)
        for place, text in enumerate((spread(cell.answers_accuracy, 1), spread(cell.answers_l1, 2)), len(columns)):
            axes.text(place, row, text, ha="center", va="center", fontsize=8, color=INK)
    titles = [*map(short, columns), "answers'\naccuracy %", "answers'\nL1 distance"]
    axes.set_xlim(-0.5, len(titles) - 0.5)
    axes.set_xticks(range(len(titles)), titles)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [short(name) for name in rows])
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("shaded: fidelity of the clone to the victim in %; mean ± sd over seeds", fontsize=8, color=MUTED)
    return figure


QUERIES = View(
    "queries",
    "Accuracy against queries",
    holds=lambda result: bool(query_lines(result)),
    table=query_table,
    figure=lambda result: queries([result]),
    subject=False,
    together=Together(
        "Extraction from",
        "accuracy against queries",
        lambda results: queries_table(list(results.values())),
        lambda results: queries(list(results.values())),
    ),
)
DEFENCES = View(
    "defences",
    "Attacks behind defences",
    holds=lambda result: bool(defended(result).cells),
    table=defences_table,
    figure=defences,
    leads=True,
)

__all__ = [
    "DEFENCES",
    "QUERIES",
    "Cell",
    "Defended",
    "Line",
    "Point",
    "defences",
    "defences_table",
    "defended",
    "queries",
    "queries_table",
    "query_cells",
    "query_lines",
    "query_table",
]
