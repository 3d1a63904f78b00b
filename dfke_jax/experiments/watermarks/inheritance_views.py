"""What results of watermarks under extraction look like: what a copy inherits, over seeds and as a table."""

import statistics
from typing import TYPE_CHECKING

from dfke_jax.core.errors import InputError
from dfke_jax.display.drawing import COLOURS, GRID, INK, MUTED, new_figure, tidy
from dfke_jax.display.numbers import mean_sd, spread
from dfke_jax.display.tables import Table
from dfke_jax.experiments.bench.result import Arm, Result
from dfke_jax.experiments.bench.views import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUCCESS = "watermark_success"


def marked(result: Result) -> list[Arm]:
    """Arms of which it is known how many triggers they answer with the target class."""
    return [arm for arm in result.arms if arm.metrics.get(SUCCESS)]


def success(result: Result) -> "Figure":
    """Success on the triggers: a row per network, a dot per seed, a line at the mean, a tick at the highest false rate."""
    rows = marked(result)
    if not rows:
        raise InputError("there is no success on triggers to draw")
    figure = new_figure((7.6, 0.42 * len(rows) + 1.1), layout="constrained")
    axes = figure.add_subplot()
    for row, arm in enumerate(rows):
        colour, rates = COLOURS.get(arm.role, MUTED), arm.metrics[SUCCESS]
        mean, _ = mean_sd(rates)
        axes.axhline(row, color=GRID, linewidth=0.7, zorder=0)
        axes.plot(rates, [row] * len(rates), "o", color=colour, markersize=5, alpha=0.6, markeredgewidth=0)
        axes.plot([mean, mean], [row - 0.28, row + 0.28], color=colour, linewidth=2)
        if false := arm.metrics.get("highest_false_rate"):
            axes.plot(max(false), row, "|", color=INK, markersize=9, markeredgewidth=1)
    axes.set_yticks(range(len(rows)), [arm.label for arm in rows], fontsize=8, color=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.set_xlabel(
        "triggers answered with the target class in %; black: most of any clean network", fontsize=8, color=MUTED
    )
    tidy(axes)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def inheritance_table(result: Result) -> Table:
    """A row per network: accuracy, success on the triggers and that of every seed, what of it is beyond the
    mean false rate of clean networks on the same triggers (seed by seed), the highest false rate of any, and the median of the
    triggers that a claim asks; below it what was published."""
    rows = []
    for arm in marked(result):
        metrics = arm.metrics
        queries, false = metrics.get("queries", []), metrics.get("highest_false_rate", [])
        beyond = [a - b for a, b in zip(metrics[SUCCESS], metrics.get("false_rate", []), strict=False)]
        cells = (
            f"**{arm.label}**" if arm.role == "method" else arm.label,
            spread(arm.accuracy, 2),
            spread(metrics[SUCCESS], 1),
            ", ".join(f"{rate:.1f}" for rate in metrics[SUCCESS]),
            spread(beyond, 1) if beyond else "–",
            f"{max(false):.1f}" if false else "–",
            f"{statistics.median(queries):,.0f}" if queries else "–",
        )
        rows.append(cells)
    head = (
        "network", "clean %", "triggers %", "by seed", "beyond clean networks", "most of a clean network %",
        "triggers for a claim (median)",
    )  # fmt: skip
    published = [
        f"Published for the copies ({figure.source}, {figure.provenance}): {figure.note}."
        for figure in result.published_here
        if figure.note
    ]
    return Table(head, rows, notes=published)


SUCCESSES = View(
    "success",
    "Success on the triggers",
    holds=lambda result: bool(marked(result)),
    table=inheritance_table,
    figure=success,
    caption="A dot per seed, a line at the mean.",
)

__all__ = ["SUCCESSES", "inheritance_table", "marked", "success"]
