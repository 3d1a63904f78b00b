"""What a recipe's results look like: views, which the recipe registers and the report lays out."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from dfke_jax.display.tables import Table
from dfke_jax.experiments.bench.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Together(NamedTuple):
    """A view of all results that have it, side by side: of one data set, or of all.

    Attributes:
      title: behind which the data set's name stands with `about`. table, figure: of the results by their experiments' names.
      across: whether the results of all data sets stand on one page.
    """

    title: str
    about: str
    table: Callable[[Mapping[str, Result]], Table]
    figure: Callable[[Mapping[str, Result]], "Figure"]
    across: bool = False


@dataclasses.dataclass(frozen=True)
class View:
    """One table, one figure, or both, that the results of a recipe have besides the arms and their accuracy.

    Attributes:
      name: of the figure's file. title: a heading. caption: beside the figure.
      holds: whether a result has what the view shows.
      table, figure: of a result that has it.
      sentences: what was found in words; they take the place of those on accuracy, and the table that of the arms in
        the terminal.
      subject: whether the experiment is about this, and not about the accuracy of its last method.
      leads: whether the figure stands where that of accuracies would.
      together: the view of several results.
    """

    name: str
    title: str
    holds: Callable[[Result], bool]
    table: Callable[[Result], Table] | None = None
    figure: "Callable[[Result], Figure] | None" = None
    caption: str = ""
    sentences: Callable[[Result], list[str]] | None = None
    subject: bool = True
    leads: bool = False
    together: Together | None = None


__all__ = ["Table", "Together", "View"]
