"""Tables as GitHub reads them."""

from collections.abc import Collection, Iterable, Sequence


def github_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """A table in Markdown, with a line feed at its end; columns `left` begin at the left, the others end at the right."""
    ruler = "".join("---|" if column in left else "--:|" for column in range(len(head)))
    return "".join(f"{line}\n" for line in (_line(head), f"|{ruler}", *map(_line, rows)))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"


__all__ = ["github_table"]
