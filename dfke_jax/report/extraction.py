"""Results of extraction as series over queries and as a table of defences, for figures and tables alike."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from dfke_jax.experiments.result import BEHIND, Arm, Result
from dfke_jax.report.markdown import github_table
from dfke_jax.report.words import published_here, spread

_AT = re.compile(r"(.+)_(\d+)")
_ON_THE_WAY = re.compile(r"accuracy_at_(\d+)")


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

    Arms are those named ``{attack}_{budget}`` and ``{attack}_{budget}_control`` that say how many rows they asked.
    """
    lines: dict[str, Line] = {}
    for arm in result.arms:
        name = arm.name.removesuffix("_control")
        match = _AT.fullmatch(name)
        if match is None or BEHIND in arm.name or "victim_rows" not in arm.budget or not arm.accuracy:
            continue
        label = arm.label.removesuffix(f", {int(match[2]):,} queries")
        line = lines.setdefault(match[1], Line(label, [], [], [], []))
        point = Point(int(match[2]), arm.budget["victim_rows"], arm.accuracy, arm)
        (line.control if arm.role == "control" else line.method).append(point)
    for figure in published_here(result):
        match = _AT.fullmatch(figure.arm)
        if match and match[1] in lines:
            lines[match[1]].published.append(Point(int(match[2]), int(match[2]), [figure.value]))
    for line in lines.values():
        for points in line[1:]:
            points.sort()
        line.progress.extend(_progress(line.method[-1].arm) if line.method else ())
    return list(lines.values())


def _progress(arm: Arm | None) -> list[Point]:
    found = {} if arm is None else {_ON_THE_WAY.fullmatch(name): values for name, values in arm.metrics.items()}
    return sorted(Point(int(match[1]), int(match[1]), values) for match, values in found.items() if match)


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


def queries_table(results: Sequence[Result]) -> str:
    """A GitHub table with one row per attack and budget: what was asked, what the clone reached, its control."""
    head = ("data set", "attack", *QUERY_COLUMNS)
    rows = [
        (result.dataset, line.label, *cells)
        for result in results
        for line in query_lines(result)
        for cells in query_cells(line)
    ]
    return github_table(head, rows, left=(0, 1))


class Cell(NamedTuple):
    """One attack behind one defence, everything per seed.

    Attributes:
      fidelity: of the clone to the victim, in per cent. accuracy: of the clone. answers_accuracy, answers_l1: of the
        defended answers; see `dfke_jax.experiments.defences.utility`.
    """

    fidelity: list[float]
    accuracy: list[float]
    answers_accuracy: list[float]
    answers_l1: list[float]


class DefenceTable(NamedTuple):
    """Defences and attacks by their labels, in the order of the result, and a cell for every pair that was run."""

    defences: tuple[str, ...]
    attacks: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]


def defence_table(result: Result) -> DefenceTable:
    """The cells of a result of the recipe of defences; empty for others."""
    cells = {}
    for arm in result.arms:
        if BEHIND in arm.name and arm.accuracy:
            attack, _, defence = arm.label.partition(" behind ")
            cells[defence, attack] = Cell(
                arm.agreement, arm.accuracy, arm.metrics.get("answers_accuracy", []), arm.metrics.get("answers_l1", [])
            )
    return DefenceTable(
        tuple(dict.fromkeys(defence for defence, _ in cells)),
        tuple(dict.fromkeys(attack for _, attack in cells)),
        cells,
    )


def defences_table(result: Result) -> str:
    """A GitHub table with a row per defence: fidelity of every attack's clone, and what the defence costs honest users."""
    table = defence_table(result)
    head = ["defence", *(f"{attack}: fidelity %" for attack in table.attacks), "answers' accuracy %", "L1 distance"]
    rows = []
    for defence in table.defences:
        cells = [table.cells.get((defence, attack)) for attack in table.attacks]
        own = next(cell for cell in cells if cell is not None)
        words = [defence, *("–" if cell is None else spread(cell.fidelity) for cell in cells)]
        words += [spread(own.answers_accuracy), spread(own.answers_l1, 3)]
        rows.append(words)
    return github_table(head, rows)


__all__ = [
    "QUERY_COLUMNS",
    "Cell",
    "DefenceTable",
    "Line",
    "Point",
    "defence_table",
    "defences_table",
    "queries_table",
    "query_cells",
    "query_lines",
]
