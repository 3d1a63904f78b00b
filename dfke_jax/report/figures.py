"""Figures of a run, each a `matplotlib.figure.Figure`; nothing touches pyplot's global state.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; no figure relies on colour alone.
"""

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.experiments.result import Result
from dfke_jax.report import threats
from dfke_jax.report.extraction import Line, defence_table, query_lines
from dfke_jax.report.words import mean_sd, published_here, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "method": "#0072B2",
    "control": "#D55E00",
    "baseline": "#8C8C8C",
    "anchor": "#009E73",
    "teacher": "#222222",
}
SEEDS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")
MARKS = ("o", "s", "^", "v", "P", "X", "*")
INK, MUTED, GRID = "#222222", "#666666", "#E4E4E4"
COLUMNS, ROWS, PANELS = 10, 20, 24
DPI = 160
_SEED = re.compile(r"seed(\d+)/(.+)")
_MEMBER = re.compile(r"(.+)/(\d+)")


def sample_grid(
    images: np.ndarray, labels: np.ndarray | None = None, class_names: Sequence[str] | None = None
) -> "Figure":
    """Images in rows by class, up to ten a row and twenty classes.

    Args:
      images: (N, H, W, C) uint8, or floats in [0, 1]; one channel is shown as grey, of many the first three.
      labels: (N,) integers; None puts the images in rows as they come.
      class_names: K names; the label itself where there is none.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise InputError(f"a grid needs images of shape (N, H, W, C) with N at least 1, got {images.shape}")
    if images.dtype == np.uint8:
        images = images / 255
    images = np.clip(np.nan_to_num(images.astype(float)), 0, 1)
    if images.shape[-1] < 3:
        images = np.repeat(images[..., :1], 3, -1)
    images = images[..., :3]
    if labels is None or len(labels) != len(images):
        count = min(len(images), COLUMNS * ROWS)
        rows = [np.arange(start, min(start + COLUMNS, count)) for start in range(0, count, COLUMNS)]
        titles = [""] * len(rows)
    else:
        labels = np.asarray(labels)
        present = np.unique(labels)[:ROWS]
        rows = [np.flatnonzero(labels == label)[:COLUMNS] for label in present]
        titles = [_name(int(label), class_names) for label in present]
    height, width = images.shape[1:3]
    gap = max(1, round(height / 12))
    columns = max(map(len, rows))
    canvas = np.ones((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for row, members in enumerate(rows):
        for column, index in enumerate(members):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = images[index]
    margin = 0.09 * max(map(len, titles)) + 0.15 if any(titles) else 0.08
    cell = 0.56
    size = (columns * cell + margin + 0.08, len(rows) * cell * height / width + 0.16)
    figure = _figure(size)
    axes = figure.add_axes((margin / size[0], 0.08 / size[1], 1 - (margin + 0.08) / size[0], 1 - 0.16 / size[1]))
    axes.imshow(canvas, interpolation="nearest", aspect="equal")
    axes.set_frame_on(False)
    axes.set_xticks([])
    axes.set_yticks([row * (height + gap) + (height - 1) / 2 for row in range(len(rows))], titles)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    return figure


def similarity_map(matrix: np.ndarray, class_names: Sequence[str] | None = None) -> "Figure":
    """Class similarity as a heat map, with its values for at most twelve classes.

    Args:
      matrix: (K, K); negative values switch to a diverging scale around zero.
      class_names: K names; numbers where they are absent.
    """
    matrix = np.asarray(matrix, float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise InputError(f"a similarity map needs a matrix (K, K), got {matrix.shape}")
    classes = len(matrix)
    names = [_name(index, class_names) for index in range(classes)]
    finite = matrix[np.isfinite(matrix)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    signs = low < 0
    bound = max(abs(low), abs(high)) or 1.0
    limits = (-bound, bound) if signs else (low, high if high > low else low + 1)
    side = min(9.0, max(3.4, 0.5 * classes)) if classes <= 12 else min(9.0, 3.4 + 0.09 * classes)
    figure = _figure((side + 1.3, side + 0.4), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(matrix, cmap="RdBu_r" if signs else "Blues", vmin=limits[0], vmax=limits[1])
    if classes <= 40:
        long = max(map(len, names)) > 3
        style = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if long else {}
        axes.set_xticks(range(classes), names, **style)
        axes.set_yticks(range(classes), names)
    axes.tick_params(length=0, labelsize=9 if classes <= 20 else 6, labelcolor=INK)
    axes.spines[:].set_visible(False)
    if classes <= 12:
        for row, column in np.ndindex(matrix.shape):
            value = matrix[row, column]
            share = (value - limits[0]) / (limits[1] - limits[0])
            dark = abs(share - 0.5) > 0.32 if signs else share > 0.62
            text = f"{value:.2f}".replace("-", "−")
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color="white" if dark else INK)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, aspect=28, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, labelcolor=MUTED, length=2, color=MUTED)
    return figure


def curves(metrics: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> "Figure":
    """One panel per stage and metric, one thin line per seed.

    Args:
      metrics: name -> (steps, values), as `dfke_jax.core.tracking.read` returns them; ``seed0/student/loss``
        is the line of seed 0 in the panel ``student/loss``. A scale is logarithmic where positive values span
        a factor of 30.
    """
    panels: dict[str, list[tuple[int, Sequence[float], Sequence[float]]]] = {}
    for name, (steps, values) in metrics.items():
        match = _SEED.fullmatch(name)
        seed, rest = (int(match[1]), match[2]) if match else (0, name)
        if member := _MEMBER.fullmatch(rest):
            rest, seed = member[1], seed if match and int(match[1]) else int(member[2])
        if len(values):
            panels.setdefault(rest, []).append((seed, steps, values))
    if not panels:
        raise InputError("there are no curves to draw")
    left_out = max(0, len(panels) - PANELS)
    shown = dict(list(panels.items())[:PANELS])
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = _figure((3.3 * columns, 2.15 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    seeds: dict[int, object] = {}
    for axes, (title, lines) in zip(grid.flat, shown.items(), strict=False):
        for seed, steps, values in sorted(lines, key=lambda line: line[0]):
            mark = "o" if len(values) == 1 else None
            colour = SEEDS[seed % len(SEEDS)]
            (line,) = axes.plot(steps, values, color=colour, linewidth=1.1, alpha=0.85, marker=mark, markersize=3)
            seeds.setdefault(seed, line)
        everything = np.concatenate([np.asarray(values, float) for _, _, values in lines])
        if everything.min() > 0 and everything.max() / everything.min() > 30:
            axes.set_yscale("log")
        axes.set_title(_short(title), fontsize=9, color=INK, loc="left")
        _tidy(axes)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.xaxis.set_major_locator(_max_n(4))
        axes.xaxis.set_major_formatter(_steps(max(max(steps) for _, steps, _ in lines)))
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=8, color=MUTED)
    if 1 < len(seeds) <= 10:
        order = sorted(seeds)
        figure.legend(
            [seeds[seed] for seed in order],  # pyright: ignore[reportArgumentType]
            [f"seed {seed}" for seed in order],
            loc="outside lower center",
            ncols=len(order),
            frameon=False,
            fontsize=8,
            labelcolor=MUTED,
        )
    if left_out:
        figure.suptitle(f"the first {PANELS} of {PANELS + left_out} metrics", fontsize=8, color=MUTED)
    return figure


def arms(result: Result) -> "Figure":
    """Accuracy of every arm: mean, standard deviation, each seed, the teacher, published figures."""
    rows = [arm for arm in result.arms if arm.accuracy and arm.role != "teacher"]
    teachers = [arm for arm in result.arms if arm.accuracy and arm.role == "teacher"]
    if not rows:
        rows, teachers = teachers, []
    if not rows:
        raise InputError("there is no accuracy to draw")
    published = [figure for figure in published_here(result) if figure.arm in {arm.name for arm in rows}]
    values = [v for arm in (*rows, *teachers) for v in arm.accuracy] + [figure.value for figure in published]
    low, high = _limits(values)
    size = (7.6, 0.52 * len(rows) + 1.25)
    figure = _figure(size, layout="constrained")
    axes = figure.add_subplot()
    for row, arm in enumerate(rows):
        colour = COLOURS.get(arm.role, MUTED)
        mean, sd = mean_sd(arm.accuracy)
        axes.axhline(row, color=GRID, linewidth=0.7, zorder=0)
        if len(arm.accuracy) > 1:
            offsets = row + 0.2 + np.zeros(len(arm.accuracy))
            axes.plot(
                arm.accuracy,
                offsets,
                "o",
                color=colour,
                alpha=0.55,
                markersize=3.6,
                markeredgewidth=0,
                zorder=2,
            )
        if sd:
            axes.plot(
                [mean - sd, mean + sd],
                [row, row],
                color=colour,
                linewidth=1.8,
                solid_capstyle="butt",
                zorder=3,
            )
        axes.plot([mean], [row], "o", color=colour, markersize=8, markeredgecolor="white", zorder=4)
        heavy = "bold" if arm.role == "method" else "normal"
        axes.text(
            1.015,
            row,
            spread(arm.accuracy),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            color=colour if arm.role != "baseline" else MUTED,
            fontweight=heavy,
        )
        for entry in (entry for entry in published if entry.arm == arm.name):
            axes.plot(
                [entry.value],
                [row],
                "D",
                markerfacecolor="none",
                markeredgecolor=INK,
                markersize=6.5,
                zorder=5,
            )
            right = entry.value > low + 0.8 * (high - low)
            axes.annotate(
                f"published {entry.value:g}",
                (entry.value, row),
                xytext=(7 if not right else -4, 8),
                textcoords="offset points",
                ha="right" if right else "left",
                va="center",
                fontsize=7.5,
                color=INK,
                zorder=6,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )
    for arm in teachers:
        mean, _ = mean_sd(arm.accuracy)
        axes.axvline(mean, color=COLOURS["teacher"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{_short(arm.label)}: {mean:.2f}",
            (mean, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right" if mean > low + 0.75 * (high - low) else "center",
            va="bottom",
            fontsize=8,
            color=COLOURS["teacher"],
        )
    axes.set_ylim(len(rows) - 0.45, -0.62)
    axes.set_xlim(low, high)
    note = f"; the axis begins at {low:g}" if low > 0 else ""
    axes.set_xlabel(f"test accuracy in %{note} · large dot: mean, bar: sd, small dots: seeds", fontsize=8, color=MUTED)
    _tidy(axes)
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    axes.set_yticks(range(len(rows)), [f"{_short(arm.label)}\n{arm.role}" for arm in rows])
    for tick, arm in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(MUTED if arm.role == "baseline" else COLOURS.get(arm.role, INK))
    axes.spines["left"].set_visible(False)
    return figure


def _abbreviated(count: float) -> str:
    if count >= 1_000_000:
        return f"{count / 1_000_000:g}M"
    return f"{count / 1000:g}k" if count >= 1000 else f"{count:g}"


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
    figure = _figure((7.2, 4.4), layout="constrained")
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
                label=_short(label) if label else None,
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
    axes.set_xticks(ticks, [_abbreviated(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(_nowhere())
    axes.set_ylim(*_limits(values))
    axes.set_xlabel(
        "rows asked · solid: attack, dashed: its control, diamonds: published, dotted: the victim; bars: sd over seeds",
        fontsize=8,
        color=MUTED,
    )
    axes.set_ylabel("test accuracy in %", fontsize=8, color=MUTED)
    _tidy(axes)
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
    table = defence_table(result)
    if not table.cells:
        raise InputError("there is no attack behind a defence to draw")
    rows, columns = list(table.defences), list(table.attacks)
    values = np.full((len(rows), len(columns)), np.nan)
    for (defence, attack), cell in table.cells.items():
        values[rows.index(defence), columns.index(attack)] = mean_sd(cell.fidelity)[0]
    figure = _figure((4.4 + 1.1 * len(columns), 0.42 * len(rows) + 1.1), layout="constrained")
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
    titles = [*map(_short, columns), "answers'\naccuracy %", "answers'\nL1 distance"]
    axes.set_xlim(-0.5, len(titles) - 0.5)
    axes.set_xticks(range(len(titles)), titles)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("shaded: fidelity of the clone to the victim in %; mean ± sd over seeds", fontsize=8, color=MUTED)
    return figure


MARKS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "*")
SMALLEST = 1e-30


def p_value_curves(result: Result) -> "Figure":
    """Dataset inference: p-value against revealed samples, one line a model, both axes logarithmic.

    p-values below 1e-30 are drawn there.
    """
    found = threats.p_curves(result)
    if not found:
        raise InputError("there are no p-values against revealed samples to draw")
    figure = _figure((7.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    _p_lines(axes, result, found)
    axes.set_xscale("log")
    axes.set_xlabel("private samples revealed, and as many public ones", fontsize=8, color=MUTED)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7.5, labelcolor=INK)
    return figure


def p_value_limits(result: Result) -> "Figure":
    """Dataset inference: p-value against the overlap of public samples, and against fine-tuning on a new task."""
    panels = [
        (threats.limits(result, "overlap"), "% of public samples that the victim was trained on"),
        (threats.limits(result, "after"), "steps of fine-tuning on a new task"),
    ]
    panels = [panel for panel in panels if panel[0]]
    if not panels:
        raise InputError("there are no limits to draw")
    figure = _figure((3.9 * len(panels), 3.6), layout="constrained")
    for axes, (found, label) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        _p_lines(axes, result, found)
        if max(points[-1] for points, _ in found.values()) > 1000:
            axes.set_xscale("symlog", linthresh=100)
        axes.set_xlabel(label, fontsize=8, color=MUTED)
        axes.legend(frameon=False, fontsize=7, labelcolor=INK)
    return figure


def _p_lines(axes, result: Result, found: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    by_name = {arm.name: arm for arm in result.arms}
    methods = [name for name in found if by_name[name].role == "method"]
    for name, (points, values) in found.items():
        arm = by_name[name]
        place = methods.index(name) if name in methods else 0
        colour = COLOURS[arm.role] if name not in methods else SEEDS[place % len(SEEDS)]
        axes.plot(
            points,
            np.maximum(values, SMALLEST),
            label=_short(arm.label, 40),
            color=colour,
            linewidth=2.2 if name not in methods else 1.2,
            linestyle="--" if arm.role == "control" else "-",
            marker=None if name not in methods else MARKS[place % len(MARKS)],
            markersize=3.5,
        )
    level = threats.alpha(result)
    axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        f"alpha {level:g}", (1, level), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
        ha="right", fontsize=7.5, color=INK,
    )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylabel("Welch p-value, median", fontsize=8, color=MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    _tidy(axes)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Axis limits on round numbers around the values, from zero if they already reach low."""
    low, high = min(values), max(values)
    reach = max(high - low, 1.0)
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 1e9) if reach / step <= 6)
    bottom = max(0.0, math.floor((low - 0.08 * reach) / step) * step)
    if bottom < 25:
        bottom = 0.0
    return bottom, min(100.0 + 0.02 * (100 - bottom), math.ceil((high + 0.04 * reach) / step) * step)


def _figure(size: tuple[float, float], layout: Any = None) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#B5B5B5")
    axes.tick_params(labelsize=8, color="#B5B5B5", labelcolor=MUTED, which="both", length=3)
    axes.set_axisbelow(True)


def _max_n(count: int):
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, integer=True)


def _nowhere():
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _steps(last: float):
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: _abbreviated(value) if last >= 10_000 else f"{value:g}")


def _name(index: int, names: Sequence[str] | None) -> str:
    return _short(str(names[index]) if names is not None and 0 <= index < len(names) else str(index), 16)


def _short(text: str, length: int = 34) -> str:
    """Cut to a length that fits, without what matplotlib would take for mathematics."""
    return (text if len(text) <= length else f"{text[: length - 1]}…").replace("$", r"\$")


__all__ = ["arms", "curves", "defences", "p_value_curves", "p_value_limits", "queries", "sample_grid", "similarity_map"]
