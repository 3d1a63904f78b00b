"""What results of watermark removal look like: the matrix of attacks, and what is left against an attack's strength."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dfke_jax.core.errors import InputError
from dfke_jax.display.drawing import COLOURS, GRID, INK, MUTED, SEEDS, new_figure, short, tidy
from dfke_jax.display.numbers import mean_sd, spread
from dfke_jax.display.tables import Table
from dfke_jax.experiments.bench.result import Arm, Result
from dfke_jax.experiments.bench.views import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEPT = "trigger_accuracy"
_MARKERS = "osD^v"


def attacked(result: Result) -> dict[str, dict[str, Arm]]:
    """Attack -> mark -> arm; the unattacked marks are under ``none``. Empty where no mark was attacked."""
    found = _by_attack(result, "method")
    return found if len(found) > 1 else {}


def unmarked(result: Result) -> dict[str, dict[str, Arm]]:
    """Attack -> mark -> the same attack on the network without a mark, asked that mark's triggers; of clones alone."""
    return _by_attack(result, "control")


def _by_attack(result: Result, role: str) -> dict[str, dict[str, Arm]]:
    found: dict[str, dict[str, Arm]] = {}
    for arm in result.arms:
        if arm.role == role and {"mark", "attack"} <= arm.factors.keys() and arm.metrics.get(KEPT):
            found.setdefault(str(arm.factors["attack"]), {})[str(arm.factors["mark"])] = arm
    return found


def _without_mark(result: Result) -> list[Arm]:
    """Networks that were neither marked nor attacked, and asked triggers."""
    return [arm for arm in result.arms if "attack" not in arm.factors and arm.metrics.get(KEPT)]


def removal_matrix(result: Result) -> "Figure":
    """One row per attack: clean accuracy on the left, trigger accuracy on the right, a mark per scheme; hollow ones are clones
    of the network without a mark."""
    table = attacked(result)
    if not table:
        raise InputError("there is no attack on a mark to draw")
    schemes = list(dict.fromkeys(scheme for arms in table.values() for scheme in arms))
    innocent = unmarked(result)
    height = max(0.34, 0.17 * len(schemes))
    attacks = list(table)
    figure = new_figure((8.6, height * len(table) + 1.1), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, kind, title in ((left, "accuracy", "clean accuracy in %"), (right, KEPT, "trigger accuracy in %")):
        for row in range(len(table)):
            axes.axhline(row, color=GRID, linewidth=0.7, zorder=0)
        for place, scheme in enumerate(schemes):
            offset = 0.44 * ((place + 0.5) / len(schemes) - 0.5)
            colour, marker = SEEDS[place % len(SEEDS)], _MARKERS[place % len(_MARKERS)]
            for row, arms in enumerate(table.values()):
                if scheme not in arms:
                    continue
                values = _measured(arms[scheme], kind)
                if (without := innocent.get(attacks[row], {}).get(scheme)) is not None:
                    place_of = [mean_sd(_measured(without, kind))[0]], [row + offset]
                    axes.plot(*place_of, marker, color=colour, markerfacecolor="white", markersize=5, linestyle="none")
                mean, sd = mean_sd(values)
                axes.errorbar([mean], [row + offset], xerr=[sd or 0], color=colour, linewidth=1.2)
                label = short(scheme) if row == 0 else None
                axes.plot([mean], [row + offset], marker, color=colour, markersize=5, linestyle="none", label=label)
                axes.text(
                    1.02,
                    row + offset,
                    spread(values, 1),
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    fontsize=6.5,
                    color=colour,
                )
        axes.set_xlabel(title, fontsize=8, color=MUTED)
        tidy(axes)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    right.set_xlim(-3, 103)
    for arm in _without_mark(result):
        if arm.role == "control":
            right.axvline(mean_sd(arm.metrics[KEPT])[0], color=COLOURS["control"], linewidth=1, linestyle=(0, (4, 3)))
    left.set_yticks(range(len(table)), attacks, fontsize=8, color=INK)
    left.set_ylim(len(table) - 0.5, -0.5)
    handles, labels = left.get_legend_handles_labels()
    if innocent:
        from matplotlib.lines import Line2D

        handles.append(Line2D([], [], marker="o", color=MUTED, markerfacecolor="white", markersize=5, linestyle="none"))
        labels.append("clone of the network without a mark")
    figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8)
    return figure


def removal_table(result: Result) -> Table:
    """A row per attack: clean and trigger accuracy of every mark; first, networks without a mark. Below a clone stands
    that of the network without a mark."""
    table, innocent = attacked(result), unmarked(result)
    schemes = list(dict.fromkeys(scheme for arms in table.values() for scheme in arms))
    head = ["attack", *(f"{scheme}: {what} %" for scheme in schemes for what in ("clean", "triggers"))]
    rows = []
    for arm in _without_mark(result):
        if arm.role in ("control", "anchor"):
            both = [spread(arm.accuracy, 2), spread(arm.metrics[KEPT], 1)]
            rows.append([arm.label, *both * len(schemes)])
    for attack, arms in table.items():
        without = innocent.get(attack, {})
        for first, of in ((attack, arms), (f"{attack}, network without a mark", without)):
            cells = [first]
            for scheme in schemes:
                found = of.get(scheme)
                cells += ["–", "–"] if found is None else [spread(found.accuracy, 2), spread(found.metrics[KEPT], 1)]
            rows += [cells] if of else []
    return Table(head, rows)


def graded(result: Result) -> dict[str, dict[str, Arm]]:
    """Those of `attacked` that were looked at in several strengths."""
    return {attack: arms for attack, arms in attacked(result).items() if any(map(_strengths, arms.values()))}


_STRENGTH = {"steps": "training steps", "share": "share pruned", "bits": "bits"}
"""What an attack's strength may be: factor of a series -> in words."""


def _strengths(arm: Arm) -> str:
    """What the strength of the attack is; empty where it was tried in one alone."""
    return next((over for over in _STRENGTH if arm.over(over, KEPT)), "")


def removal_curves(result: Result) -> "Figure":
    """One panel per attack: trigger accuracy (solid) and clean accuracy (dashed) against training steps, pruned share or bits."""
    panels = graded(result)
    if not panels:
        raise InputError("there is no attack of several strengths to draw")
    schemes = list(dict.fromkeys(scheme for arms in panels.values() for scheme in arms))
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure((3.0 * columns, 1.95 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (attack, arms) in zip(grid.flat, panels.items(), strict=False):
        for scheme, arm in arms.items():
            colour = SEEDS[schemes.index(scheme) % len(SEEDS)]
            for kind, style in ((KEPT, "-"), ("accuracy", "--")):
                strengths, means, deviations = curve(arm, kind)
                if not strengths:
                    continue
                axes.plot(strengths, means, style, color=colour, linewidth=1.3, marker="o", markersize=2.5)
                low = [mean - sd for mean, sd in zip(means, deviations, strict=True)]
                high = [mean + sd for mean, sd in zip(means, deviations, strict=True)]
                axes.fill_between(strengths, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(short(attack), fontsize=9, color=INK, loc="left")
        axes.set_ylim(-3, 103)
        tidy(axes)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        over = next(filter(None, map(_strengths, arms.values())))
        axes.set_xlabel(_STRENGTH[over], fontsize=7.5, color=MUTED)
        if over == "bits":
            axes.invert_xaxis()
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=SEEDS[i % len(SEEDS)], linewidth=1.6) for i in range(len(schemes))]
    handles += [Line2D([], [], color=MUTED, linestyle=style, linewidth=1.3) for style in ("-", "--")]
    names = [short(scheme) for scheme in schemes]
    figure.legend(
        handles,
        [*names, "trigger accuracy", "clean accuracy"],
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=8,
        labelcolor=MUTED,
    )
    return figure


def curve(arm: Arm, kind: str) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
    """Strengths, means and deviations over seeds of ``accuracy`` or ``trigger_accuracy``, by rising strength."""
    series = arm.over(_strengths(arm), kind)
    if series is None:
        return [], [], []
    pairs = [mean_sd(series.at(x)) for x in series.x]
    return list(series.x), [mean for mean, _ in pairs], [sd or 0.0 for _, sd in pairs]


def _measured(arm: Arm, kind: str) -> list[float]:
    return arm.accuracy if kind == "accuracy" else arm.metrics[KEPT]


MATRIX = View(
    "matrix",
    "What is left of the marks",
    holds=lambda result: bool(attacked(result)),
    table=removal_table,
    figure=removal_matrix,
    caption="Bars: standard deviation over seeds. Dashed: the network without a mark; hollow: its clones.",
    leads=True,
)
STRENGTH = View(
    "strength",
    "Against the strength of the attack",
    holds=lambda result: bool(graded(result)),
    figure=removal_curves,
)

__all__ = [
    "MATRIX",
    "STRENGTH",
    "attacked",
    "curve",
    "graded",
    "removal_curves",
    "removal_matrix",
    "removal_table",
    "unmarked",
]
