"""Figures of watermark removal: the matrix of attacks, and what is left against the strength of an attack."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dfke_jax.core.errors import InputError
from dfke_jax.experiments.bench.result import Arm, Result
from dfke_jax.report.drawing import COLOURS, GRID, INK, MUTED, SEEDS, new_figure, short, tidy
from dfke_jax.report.markdown import github_table
from dfke_jax.report.words import mean_sd, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEPT = "trigger_accuracy"
_MARKERS = "osD^v"


def attacked(result: Result) -> dict[str, dict[str, Arm]]:
    """Attack -> scheme -> arm, of arms called ``scheme.attack``; the unattacked marks are under ``none``."""
    found: dict[str, dict[str, Arm]] = {}
    for arm in result.arms:
        if arm.role == "method" and arm.metrics.get(KEPT):
            scheme, _, attack = arm.name.partition(".")
            found.setdefault(attack or "none", {})[scheme] = arm
    return found if len(found) > 1 else {}


def unmarked(result: Result) -> dict[str, dict[str, Arm]]:
    """Attack -> scheme -> the same attack on the network without a mark, asked that scheme's triggers; of clones alone."""
    found: dict[str, dict[str, Arm]] = {}
    for arm in result.arms:
        scheme, _, attack = arm.name.removesuffix("_control").partition(".")
        if arm.role == "control" and attack and arm.metrics.get(KEPT):
            found.setdefault(attack, {})[scheme] = arm
    return found


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
                label = short(_label(result, scheme)) if row == 0 else None
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
    for arm in result.arms:
        if arm.role == "control" and "." not in arm.name and arm.metrics.get(KEPT):
            right.axvline(mean_sd(arm.metrics[KEPT])[0], color=COLOURS["control"], linewidth=1, linestyle=(0, (4, 3)))
    left.set_yticks(range(len(table)), [attack.replace("_", " ") for attack in attacks], fontsize=8, color=INK)
    left.set_ylim(len(table) - 0.5, -0.5)
    handles, labels = left.get_legend_handles_labels()
    if innocent:
        from matplotlib.lines import Line2D

        handles.append(Line2D([], [], marker="o", color=MUTED, markerfacecolor="white", markersize=5, linestyle="none"))
        labels.append("clone of the network without a mark")
    figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8)
    return figure


def removal_table(result: Result) -> str:
    """A GitHub table with a row per attack: clean and trigger accuracy of every scheme; first, networks without a mark. Below a
    clone stands that of the network without a mark."""
    table, innocent = attacked(result), unmarked(result)
    schemes = list(dict.fromkeys(scheme for arms in table.values() for scheme in arms))
    names = [_label(result, scheme) for scheme in schemes]
    head = ["attack", *(f"{name}: {what} %" for name in names for what in ("clean", "triggers"))]
    rows = []
    for arm in result.arms:
        if arm.role in ("control", "anchor") and "." not in arm.name and arm.metrics.get(KEPT):
            both = [spread(arm.accuracy, 2), spread(arm.metrics[KEPT], 1)]
            rows.append([arm.label, *both * len(schemes)])
    for attack, arms in table.items():
        name = attack.replace("_", " ")
        for head_cell, of in ((name, arms), (f"{name}, network without a mark", innocent.get(attack, {}))):
            cells = [head_cell]
            for scheme in schemes:
                found = of.get(scheme)
                cells += ["–", "–"] if found is None else [spread(found.accuracy, 2), spread(found.metrics[KEPT], 1)]
            rows += [cells] if of else []
    return github_table(head, rows)


def graded(result: Result) -> dict[str, dict[str, Arm]]:
    """Those of `attacked` that were looked at in several strengths."""
    return {
        attack: arms
        for attack, arms in attacked(result).items()
        if any(name.startswith(f"{KEPT}@") for arm in arms.values() for name in arm.metrics)
    }


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
        axes.set_title(short(attack.replace("_", " ")), fontsize=9, color=INK, loc="left")
        axes.set_ylim(-3, 103)
        tidy(axes)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_xlabel(_strength(attack), fontsize=7.5, color=MUTED)
        if attack == "quantisation":
            axes.invert_xaxis()
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=SEEDS[i % len(SEEDS)], linewidth=1.6) for i in range(len(schemes))]
    handles += [Line2D([], [], color=MUTED, linestyle=style, linewidth=1.3) for style in ("-", "--")]
    names = [short(_label(result, scheme)) for scheme in schemes]
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
    """Strengths, means and deviations over seeds of the metrics ``KIND@STRENGTH``, by rising strength."""
    points = sorted(
        (float(name.partition("@")[2]), *mean_sd(values))
        for name, values in arm.metrics.items()
        if name.startswith(f"{kind}@")
    )
    return [p[0] for p in points], [p[1] for p in points], [p[2] or 0.0 for p in points]


def _measured(arm: Arm, kind: str) -> list[float]:
    return arm.accuracy if kind == "accuracy" else arm.metrics[KEPT]


def _label(result: Result, scheme: str) -> str:
    """The label of a scheme's unattacked arm, else its name."""
    return next((arm.label for arm in result.arms if arm.name == scheme), scheme)


def _strength(attack: str) -> str:
    if attack.endswith("pruning") and attack != "fine_pruning":
        return "share pruned"
    return "bits" if attack == "quantisation" else "training steps"


__all__ = ["attacked", "curve", "graded", "removal_curves", "removal_matrix", "removal_table", "unmarked"]
