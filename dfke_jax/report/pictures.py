"""Figures for a page: SVG within it, a file of its own beside it, and the numbers that it shows."""

import base64
import csv
import io
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from dfke_jax.core.checkpoint import write_whole
from dfke_jax.core.errors import InputError

LARGEST = 1_000_000
"""Characters of an SVG; what would be longer (a hundred thousand points) is a PNG."""
_EMBEDDED = 200_000
_SETTINGS: Any = {"svg.fonttype": "path", "svg.hashsalt": "dfke_jax"}
# letters as outlines: matplotlib places lines of a text by the widths of its own font, which readers may not have


class Data(NamedTuple):
    """Where the numbers of a figure are.

    Attributes:
      href: the numbers themselves, or a file beside the page. name: of the file.
    """

    href: str
    name: str


class Picture(NamedTuple):
    """A figure in a page.

    Attributes:
      title, caption: in words. body: an ``svg`` or ``img`` element. kind: its style. data: its numbers; None where
        they are in no file.
    """

    title: str
    caption: str
    body: Markup
    kind: str
    data: Data | None


class Pictures:
    """Draws the figures of a run into its directory.

    Attributes:
      directory: of the run; files go to ``figures`` in it. problems: what could not be drawn, in words.
    """

    def __init__(self, directory: Path):
        self.directory, self.folder = directory, directory / "figures"
        self.problems: list[str] = []
        self.folder.mkdir(exist_ok=True)

    def draw(
        self,
        name: str,
        title: str,
        caption: str,
        make: Callable[[], Any],
        kind: str = "plain",
        data: Sequence[Sequence[object]] | str | None = None,
    ) -> Picture | None:
        """Draws one and writes ``NAME.svg``, and its numbers beside it as ``NAME.csv``.

        Args:
          name: of the files. title, caption: in words. make: gives the figure. kind: its style.
          data: rows of its table, the first of them its head; or the name of a file of the run that holds them.

        Returns:
          None where it could not be drawn.
        """
        import matplotlib

        try:
            with warnings.catch_warnings(), matplotlib.rc_context(_SETTINGS):
                warnings.simplefilter("ignore")  # a glyph that the font lacks is no reason to fail
                figure = make()
                body = self._vector(figure, name, title) or self._raster(figure, name, title)
        except (InputError, ValueError, TypeError, IndexError) as error:
            self.problems.append(f"The figure “{title}” could not be drawn: {error}")
            return None
        return Picture(title, caption, body, kind, self._data(name, data))

    def _vector(self, figure: Any, name: str, title: str) -> Markup | None:
        """The figure as an element; None where it would be too long."""
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        if len(text.getvalue()) > LARGEST:
            return None
        write_whole(self.folder / f"{name}.svg", text.getvalue())
        return within_page(text.getvalue(), name, title)

    def _raster(self, figure: Any, name: str, title: str) -> Markup:
        path = self.folder / f"{name}.png"
        figure.savefig(path)
        image = base64.b64encode(path.read_bytes()).decode()
        return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(title, image)

    def _data(self, name: str, data: Sequence[Sequence[object]] | str | None) -> Data | None:
        if data is None or isinstance(data, str):
            return Data(data, data) if data else None
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(data)
        write_whole(self.folder / f"{name}.csv", text.getvalue())
        if len(text.getvalue()) > _EMBEDDED:
            return Data(f"figures/{name}.csv", f"{name}.csv")
        content = base64.b64encode(text.getvalue().encode()).decode()
        return Data(f"data:text/csv;charset=utf-8;base64,{content}", f"{name}.csv")


def within_page(svg: str, name: str, title: str) -> Markup:
    """An SVG file as an element of a page that may hold others: its names are its own, and its style ends with it.

    Args:
      svg: as matplotlib writes it. name: goes before every name in it. title: for those who do not see it.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("*{stroke-linejoin", "figure svg *{stroke-linejoin")
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', svg))
    own = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    rename = lambda match: f' id="{own}-{match[1]}"' if match[1] in used else ""
    svg = re.sub(r' id="([^"]*)"', rename, svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{own}-", svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))


__all__ = ["LARGEST", "Data", "Picture", "Pictures", "within_page"]
