"""Tables, and as GitHub reads them."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """A table as text.

    Attributes:
      head: of the columns. rows: as many cells each.
      left: columns that begin at the left; the others end at the right.
      notes: what is to be said below it.
      roles: of the arms that the rows show, in their order; empty where rows are no arms.
      narrow: shorter heads, for a terminal; `head` where there are none.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Collection[int] = (0,)
    notes: Sequence[str] = ()
    roles: Sequence[str] = ()
    narrow: Sequence[str] = ()

    def markdown(self) -> str:
        """The table in Markdown with its notes, a line feed at its end."""
        return github_table(self.head, self.rows, left=self.left) + "".join(
            f"\n{note}\n" for note in self.notes
        )


def github_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[int] = (0,)
) -> str:
    """A table in Markdown, with a line feed at its end; columns `left` begin at the left, the others end at the right."""
    ruler = "".join("---|" if column in left else "--:|" for column in range(len(head)))
    return "".join(f"{line}\n" for line in (_line(head), f"|{ruler}", *map(_line, rows)))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"


__all__ = ["Table", "github_table"]
