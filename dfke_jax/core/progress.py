"""The progress bar of a run: times are never lost, whatever the terminal's width."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

_TIMES, _RATE, _TITLE = 2 * len("0:00:00"), len("123,456 images/s"), 16


class Columns(NamedTuple):
    """How wide the parts of a bar are that give way; 0 for one that is left out.

    Attributes:
      title, bar, rate, metrics: in characters.
    """

    title: int
    bar: int
    rate: int
    metrics: int


def columns(width: int, title: int, steps: int) -> Columns:
    """How a terminal's width is shared out: counts and times first, then title, bar, rate and
    metrics.

    Args:
      width: of the terminal. title: length of the title. steps: in all.

    Returns:
      Widths that, with counts, times and a space before each part but the first, fit the terminal
      where it has at least 45 columns.
    """
    left = width - (2 * len(str(steps)) + 1) - _TIMES - 3
    wished = max(_TITLE, min(title, left - 9))  # a bar of 8 is worth the end of a title
    found = {"title": min(wished, max(left, 1)), "bar": 0, "rate": 0, "metrics": 0}
    left -= found["title"]
    for name, least, most in (("bar", 8, 24), ("rate", _RATE, _RATE), ("metrics", 16, 48)):
        if left > least:
            found[name] = min(left - 1, most)
            left -= found[name] + 1
    return Columns(**found)


@contextlib.contextmanager
def progress_bar(
    title: str | bool | None,
    steps: int,
    start: int = 0,
    rows_per_step: int = 1,
    unit: str = "steps",
) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """A bar for so many steps; within the block it is advanced by ``advance(steps, metrics)``.

    Args:
      title: what stands before it; None or False for no bar, True for the unit.
      steps: in all. start: those that are done.
      rows_per_step, unit: the rate is in `unit` a second, `rows_per_step` of them a step.
    """
    if title is None or title is False:
        yield lambda length, metrics: None
        return
    title = unit if title is True else title
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    console = Console()
    wide = columns(console.width, len(title), steps)

    def text(name: str, width: int) -> TextColumn:
        cut = Column(no_wrap=True, overflow="ellipsis", max_width=width)
        return TextColumn(f"{{task.{name}}}", markup=False, table_column=cut)

    shown = [
        text("description", wide.title),
        BarColumn(wide.bar) if wide.bar else None,
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        text("fields[rate]", wide.rate) if wide.rate else None,
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        text("fields[metrics]", wide.metrics) if wide.metrics else None,
    ]
    parts = [column for column in shown if column is not None]
    with Progress(*parts, console=console, refresh_per_second=4) as bar:
        task = bar.add_task(title, total=steps, completed=start, rate="", metrics="")
        clock = [time.perf_counter()]

        def advance(length: int, metrics: Mapping[str, Any]) -> None:
            now = time.perf_counter()
            rate = length * rows_per_step / max(now - clock[0], 1e-9)
            clock[0] = now
            means = " ".join(
                f"{name} {float(np.mean(value)):.4g}" for name, value in list(metrics.items())[:2]
            )
            bar.update(task, advance=length, rate=f"{rate:,.0f} {unit}/s", metrics=means)

        yield advance


__all__ = ["Columns", "columns", "progress_bar"]
