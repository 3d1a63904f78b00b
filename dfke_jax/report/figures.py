"""Figures of any run, each a `matplotlib.figure.Figure`: samples, class similarity, curves, arms."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.display.drawing import (
    COLOURS,
    GRID,
    INK,
    MUTED,
    SEEDS,
    at_most,
    counted,
    new_figure,
    round_limits,
    short,
    tidy,
)
from dfke_jax.display.numbers import decimal, mean_sd, spread
from dfke_jax.experiments.bench.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS, ROWS, PANELS = 10, 20, 24
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
    figure = new_figure(size)
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
    figure = new_figure((side + 1.3, side + 0.4), layout="constrained")
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
            colour = "white" if dark else INK
            axes.text(column, row, decimal(float(value)), ha="center", va="center", fontsize=7.5, color=colour)
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
    figure = new_figure((3.3 * columns, 2.15 * rows + 0.3), layout="constrained")
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
        axes.set_title(short(title), fontsize=9, color=INK, loc="left")
        tidy(axes)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.xaxis.set_major_locator(at_most(4))
        axes.xaxis.set_major_formatter(counted(max(max(steps) for _, steps, _ in lines)))
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
    published = [figure for figure in result.published_here if figure.arm in {arm.name for arm in rows}]
    values = [v for arm in (*rows, *teachers) for v in arm.accuracy] + [figure.value for figure in published]
    low, high = round_limits(values)
    size = (7.6, 0.52 * len(rows) + 1.25 + 0.15 * max(0, len(teachers) - 1))
    figure = new_figure(size, layout="constrained")
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
    for place, arm in enumerate(teachers):
        mean, _ = mean_sd(arm.accuracy)
        axes.axvline(mean, color=COLOURS["teacher"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{short(arm.label)}: {mean:.2f}",
            (mean, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 11 * place),  # one above the other
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
    tidy(axes)
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    axes.set_yticks(range(len(rows)), [f"{short(arm.label)}\n{arm.role}" for arm in rows])
    for tick, arm in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(MUTED if arm.role == "baseline" else COLOURS.get(arm.role, INK))
    axes.spines["left"].set_visible(False)
    return figure


def _name(index: int, names: Sequence[str] | None) -> str:
    return short(str(names[index]) if names is not None and 0 <= index < len(names) else str(index), 16)


__all__ = ["arms", "curves", "sample_grid", "similarity_map"]
