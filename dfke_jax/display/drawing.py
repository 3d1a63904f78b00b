"""What figures share: colours, marks, sizes, axes; nothing touches pyplot's global state.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; no figure relies on colour alone.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
MARKS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "*")
INK, MUTED, GRID = "#222222", "#666666", "#E4E4E4"
DPI = 160


def abbreviated(count: float) -> str:
    if count >= 1_000_000:
        return f"{count / 1_000_000:g}M"
    return f"{count / 1000:g}k" if count >= 1000 else f"{count:g}"


def round_limits(values: Sequence[float]) -> tuple[float, float]:
    """Axis limits on round numbers around the values, from zero if they already reach low."""
    low, high = min(values), max(values)
    reach = max(high - low, 1.0)
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 1e9) if reach / step <= 6)
    bottom = max(0.0, math.floor((low - 0.08 * reach) / step) * step)
    if bottom < 25:
        bottom = 0.0
    return bottom, min(
        100.0 + 0.02 * (100 - bottom), math.ceil((high + 0.04 * reach) / step) * step
    )


def new_figure(size: tuple[float, float], layout: Any = None) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#B5B5B5")
    axes.tick_params(labelsize=8, color="#B5B5B5", labelcolor=MUTED, which="both", length=3)
    axes.set_axisbelow(True)


def at_most(count: int):
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, integer=True)


def nowhere():
    from matplotlib.ticker import NullLocator

    return NullLocator()


def counted(last: float):
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: abbreviated(value) if last >= 10_000 else f"{value:g}")


def short(text: str, length: int = 34) -> str:
    """Cut to a length that fits, without what matplotlib would take for mathematics."""
    return (text if len(text) <= length else f"{text[: length - 1]}…").replace("$", r"\$")


__all__ = [
    "COLOURS",
    "DPI",
    "GRID",
    "INK",
    "MARKS",
    "MUTED",
    "SEEDS",
    "abbreviated",
    "at_most",
    "counted",
    "new_figure",
    "nowhere",
    "round_limits",
    "short",
    "tidy",
]
