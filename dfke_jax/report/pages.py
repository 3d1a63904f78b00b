"""Figures in hand-written pages: where each comes from, whether it still says what its file says, and their correction.

Beside ``docs/PAGE.md`` stands ``docs/sources/PAGE.toml``, and beside ``docs/notes/PAGE.md`` ``docs/sources/notes/PAGE.toml``; a page
without figures needs none. Pages under ``docs/results`` are made from the files as a whole and are not looked at here. An entry ``measured`` repeats a piece of the page with an expression in
braces in the place of every figure; the expression is evaluated on kept results. An entry ``other`` names figures that no result file
holds (published ones, settings, mathematics, trials without a file) and says why. A figure of the page that is in neither is an
error, so that none can be added without its source.

::

    [[measured]]
    files = { z = "zskd-mnist" }
    text = "3,000 impressions of 200 steps | {s(z.data_impressions)} | {s(z.data_impressions_control)} |"

    [[measured]]
    files = { r = "watermark-removal-mnist" }
    after = "### As a table"        # where in the page to begin to look; its beginning by default
    each = [["FTLL", "ftll"], ["FTAL", "ftal"]]   # the entry, once for each, with $1, $2, ... in its place
    text = "| $1 | {s(r['from_scratch.$2'], 1)} |"

    [[other]]
    why = "published"
    text = ["98.77, recalled"]      # every figure in these pieces of the page

    [[other]]
    why = "trials on held-back images without result files"
    section = "### How the settings were chosen"  # to the next heading of its level or above, or from one text to another:
    to = "### Sequences"
    figures = 87                    # as many as are in it that no other entry explains

In expressions, ``FILE.ARM`` (or ``FILE["ARM"]``) is an arm's accuracy, seed by seed, ``FILE.ARM.METRIC`` one of its metrics,
``FILE.ARM.TEST`` its p-values by a test, ``FILE.ARM.over(WHAT, NAME, X)`` a point of a series, ``FILE.ARM.budget``, and `Seeds` can be subtracted, added and compared with numbers; `FORMATS` writes them down. They are evaluated as
Python: files of sources are code, as trusted as any other of the repository.
"""

import dataclasses
import functools
import itertools
import os
import re
import string
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binom

from dfke_jax.core.checkpoint import write_whole
from dfke_jax.core.errors import InputError
from dfke_jax.display.numbers import decimal, mean_sd, signed, spread
from dfke_jax.experiments.bench.result import Arm, Result


class Seeds(tuple):
    """A number for every seed, with arithmetic seed by seed."""

    def __sub__(self, other: "Sequence[float] | float") -> "Seeds":
        return Seeds(a - b for a, b in zip(self, _like(other, self), strict=True))

    def __add__(self, other: "Sequence[float] | float") -> "Seeds":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Seeds(a + b for a, b in zip(self, _like(other, self), strict=True))

    def __lt__(self, other: Any) -> "Seeds":
        return Seeds(a < b for a, b in zip(self, _like(other, self), strict=True))

    def __ge__(self, other: Any) -> "Seeds":
        return Seeds(a >= b for a, b in zip(self, _like(other, self), strict=True))


def _like(other: "Sequence[float] | float", seeds: Seeds) -> Sequence[float]:
    return [other] * len(seeds) if isinstance(other, int | float) else other


class Figures(Seeds):
    """The accuracy of an arm; its agreement, metrics, p-values (by their test) and budget are attributes."""

    arm: Arm

    def __getattr__(self, name: str) -> Any:
        if name == "agreement":
            return Seeds(self.arm.agreement)
        if name == "budget":
            return self.arm.budget
        known = self.arm.metrics | self.arm.p_values
        if name in known:
            return Seeds(known[name])
        raise InputError(f"the arm {self.arm.name} has no metric {name!r}; it has {', '.join(known)}")

    def false_positives(self, test: str) -> Seeds:
        """Per cent of innocent models that a test accuses."""
        return Seeds(self.arm.false_positives[test])

    def over(self, what: str, name: str, x: float) -> Seeds:
        """A series' figure where what was varied had the value x."""
        series = self.arm.over(what, name)
        if series is None:
            raise InputError(f"the arm {self.arm.name} has no {name} over {what}")
        return Seeds(series.at(x))

    def __getitem__(self, name: Any) -> Any:
        return getattr(self, name) if isinstance(name, str) else super().__getitem__(name)


class Kept:
    """A result file."""

    def __init__(self, result: Result):
        self.result = result
        self.seconds, self.config = result.seconds, result.config

    def __getitem__(self, name: str) -> Figures:
        for arm in self.result.arms:
            if arm.name == name:
                figures = Figures(arm.accuracy)
                figures.arm = arm
                return figures
        raise InputError(f"the result has no arm {name!r}; it has {', '.join(arm.name for arm in self.result.arms)}")

    __getattr__ = __getitem__

    def notes(self, pattern: str) -> Seeds:
        """The numbers that a regular expression's group finds in the result's notes."""
        return Seeds(float(found) for note in self.result.notes for found in re.findall(pattern, note))

    def arms(self, pattern: str) -> list[Figures]:
        """The arms whose names match a regular expression as a whole."""
        return [self[arm.name] for arm in self.result.arms if re.fullmatch(pattern, arm.name)]


def _ten(value: float) -> str:
    digit, power = f"{value:.0e}".split("e")
    return f"{digit}·10{str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


FORMATS: dict[str, Callable[..., str]] = {
    "s": lambda values, digits=2: spread(list(values), digits),
    "mean": lambda values, digits=2: decimal(mean_sd(list(values))[0], digits),
    "sd": lambda values, digits=2: decimal(mean_sd(list(values))[1] or 0.0, digits),
    "gain": lambda values, digits=2: signed(mean_sd(list(values))[0], digits),
    "each": lambda values, digits=2: ", ".join(decimal(value, digits) for value in values),
    "gains": lambda values, digits=2: ", ".join(signed(value, digits) for value in values),
    "low": lambda values, digits=2: decimal(min(values), digits),
    "high": lambda values, digits=2: decimal(max(values), digits),
    "v": lambda value, digits=2: decimal(value, digits),
    "n": lambda value: f"{round(value):,}",
    "counts": lambda values: ", ".join(f"{round(value):,}" for value in values),
    "p": lambda value: f"{value:.0e}".replace("e-0", "e-"),
    "chance": lambda value: (
        f"{value:.0e}".replace("e-0", "e-") if value < 9.5e-4 else f"{value:.{2 + (value < 0.02)}f}".lstrip("0")
    ),
    "share": lambda values, of: " and ".join(
        ", ".join(f"{round(value * of / 100)}" for value in part) for part in (values[:-1], values[-1:])
    ),
    "way": lambda arm: ", ".join(
        f"{decimal(value, 1)} ({round(rows / 1000)})"
        for series in [arm.arm.over("queries", "accuracy")]
        for rows, value in zip(series.x, series.y[0], strict=True)
    ),
    "ten": _ten,
}
"""s: mean ± standard deviation; mean, sd; gain: the mean with its sign; each, gains: seed by seed, without and with signs; low, high; v: a
number; n and counts: whole numbers; p and ten: a p-value as 3e-8 and as 3·10⁻⁸; chance: one as 3e-8, .008 or .30; share: per cent of so many, counted
seed by seed, 2, 2 and 5; way: an arm's accuracy on the way, 13.2 (197) after 197,000 rows."""
_NAMES: dict[str, Any] = {
    "min": min, "max": max, "sum": sum, "len": len, "sorted": sorted, "abs": abs, "zip": zip, "Seeds": Seeds,
    "average": lambda values: mean_sd(list(values))[0],
    "spread_of": lambda values: mean_sd(list(values))[1],
    "tail": lambda matches, triggers, rate: float(binom.sf(matches - 1, triggers, rate)),
}  # fmt: skip
_NUMERIC = r"(?:[-−+±0-9.,()⁻⁰¹²³⁴⁵⁶⁷⁸⁹·%/ ]|(?<=\d)e(?=[-−])|\b(?:of|to|and|none)\b)"
_FIGURE = re.compile(
    r"(?<![\w.])(?:\d[\d,]*)?\.\d+(?:e[-−]?\d+)?%?"  # with a point
    r"|(?<![\w.,])\d[\d,]*(?=\s?%)"  # per cent
    r"|(?<![\w.,])\d+(?=\s±)|(?<=±\s)\d+(?![\w.])"  # with a spread
    r"|(?<![\w.])\d+e[-−]\d+|(?<![\w.])\d+·10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+"  # powers of ten
)
_WHOLE = re.compile(r"\d[\d,]*(?:\.\d+)?")
_CELL = re.compile(r"[\s*−+±0-9.,()–]*\d[\s*−+±0-9.,()–]*")


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something in a page that its sources do not bear out.

    Attributes:
      page: its path below the directory of pages. line: where; 0 for an entry of its sources that leads nowhere. says: what stands there, or what is wrong with the
        entry. right: what the files say; None where nothing is known of it.
    """

    page: str
    line: int
    says: str
    right: str | None

    def __str__(self) -> str:
        if not self.line:
            return f"sources of {self.page}: {self.says}"
        where = f"{self.page}:{self.line}: {self.says!r}"
        return f"{where} has no source" if self.right is None else f"{where}; the files give {self.right!r}"


def check(docs: str | os.PathLike) -> list[Fault]:
    """Compares every figure of every hand-written page with the kept results.

    Args:
      docs: directory of the pages, with ``results/`` and ``sources/``; without the latter nothing is compared.

    Returns:
      Figures that are wrong or that no entry explains, blocks with another number of figures than stated, and entries whose text is not in
      the page, or whose file, arm or metric does not exist; and sources of a page that does not exist.
    """
    docs, faults = Path(docs), []
    for source in sorted((docs / "sources").rglob("*.toml")):
        page = source.relative_to(docs / "sources").with_suffix(".md")
        if not (docs / page).exists():
            faults.append(Fault(page.as_posix(), 0, "there is no such page", None))
    return faults + [fault for page in _pages(docs) for fault in _checked(*page)[0]]


def correct(docs: str | os.PathLike) -> list[Path]:
    """Writes what the kept results say into the pages; returns the pages that changed. Words are the author's."""
    changed = []
    for path, name, entries, results in _pages(docs):
        text = _checked(path, name, entries, results)[1]
        if text != path.read_text():
            changed.append(write_whole(path, text))
    return changed


def crowded(path: str | os.PathLike, most: int = 3) -> list[tuple[int, int]]:
    """Paragraphs with too many figures to read as one: (line, how many).

    Args:
      path: of a page. A paragraph is what stands between blank lines, or one item of a list; tables and code are none.
      most: figures that one may hold; a mean with its spread is one.
    """
    blank = lambda match: re.sub(r"[^\n]", " ", match.group())
    text = Path(path).read_text()
    prose = re.sub(r"^```.*?^```|^\|[^\n]*\|$", blank, text, flags=re.MULTILINE | re.DOTALL)
    found = []
    for paragraph in re.finditer(r"^ *\S.*(?:\n(?! *(?:[-*]|\d+\.) ) *\S.*)*", prose, re.MULTILINE):
        spans = _figures(paragraph.group())
        between = [paragraph.group()[a[1] : b[0]] for a, b in itertools.pairwise(spans)]
        count = len(spans) - sum(piece.strip() == "±" for piece in between)
        if count > most:
            found.append((_line(text, paragraph.start()), count))
    return found


def _pages(docs: str | os.PathLike) -> Iterator[tuple[Path, str, dict, Path]]:
    """Every hand-written page: where it is, its name, the entries of its sources and the directory of results."""
    docs = Path(docs)
    if not (docs / "sources").is_dir():
        return
    for path in sorted(docs.rglob("*.md")):
        name = path.relative_to(docs)
        if name.parts[0] != "results":
            source = docs / "sources" / name.with_suffix(".toml")
            entries = tomllib.loads(source.read_text()) if source.exists() else {}
            yield path, name.as_posix(), entries, docs / "results"


@functools.lru_cache(maxsize=256)
def _kept(path: Path, changed: float) -> Kept:
    return Kept(Result.read(path))


def _checked(path: Path, name: str, entries: dict, results: Path) -> tuple[list[Fault], str]:
    """The faults of a page, and its text with the figures corrected."""
    text = path.read_text()
    faults: list[Fault] = []
    explained: list[tuple[int, int]] = []
    wrong: list[tuple[int, int, str]] = []
    for template, entry in _templates(entries):
        try:
            names = {alias: _file(results, file) for alias, file in entry["files"].items()}
            found = _found(text, template, entry.get("after", ""), names)
        except InputError as error:
            faults.append(Fault(name, 0, str(error), None))
            continue
        explained += [(start, end) for start, end, _ in found]
        wrong += [span for span in found if " ".join(text[span[0] : span[1]].split()) != span[2]]
    figures = [span for span in _figures(text) if not any(a < span[1] and span[0] < b for a, b in explained)]
    blocks = []
    for entry in entries.get("other", []):
        try:
            if "section" in entry:
                blocks.append((entry, *_section(text, entry["section"], entry.get("to"))))
                continue
            for piece in [entry["text"]] if isinstance(entry["text"], str) else entry["text"]:
                spans = _places(text, piece)
                figures = [f for f in figures if not any(a <= f[0] and f[1] <= b for a, b in spans)]
        except InputError as error:
            faults.append(Fault(name, 0, str(error), None))
    faults += [Fault(name, _line(text, a), text[a:b], value) for a, b, value in wrong]
    for entry, start, end in blocks:
        inside = [f for f in figures if start <= f[0] < end]
        figures = [f for f in figures if f not in inside]
        if len(inside) != entry["figures"]:
            says = f"{entry['figures']} figures in {entry['section']}"
            faults.append(Fault(name, _line(text, start), says, str(len(inside))))
    faults += [Fault(name, _line(text, a), text[a:b], None) for a, b in figures]
    for start, end, value in sorted(wrong, reverse=True):
        text = text[:start] + value + text[end:]
    return faults, text


def _templates(entries: dict) -> Iterator[tuple[str, dict]]:
    """Every measured entry, once for each of its rows."""
    for entry in entries.get("measured", []):
        for row in entry.get("each", [[]]):
            template = entry["text"]
            for place, value in reversed(list(enumerate(row, 1))):
                template = template.replace(f"${place}", value)
            yield template, entry


def _places(text: str, piece: str, start: int = 0) -> list[tuple[int, int]]:
    found = [match.span() for match in re.compile(_flexible(piece)).finditer(text, start)]
    if not found:
        raise InputError(f"the page does not say {' '.join(piece.split())!r} any more")
    return found


def _file(results: Path, name: str) -> Kept:
    path = results / f"{name}.json"
    if not path.exists():
        raise InputError(f"there is no result file {path}")
    return _kept(path, path.stat().st_mtime)


def _found(text: str, template: str, after: str, names: dict[str, Kept]) -> list[tuple[int, int, str]]:
    """Where a template's figures stand in the page, and what they should be."""
    start = _places(text, after)[0][1] if after else 0
    exact, loose, values = "", "", []
    for literal, field, _, _ in string.Formatter().parse(template):
        exact, loose = exact + _flexible(literal), loose + _flexible(literal)
        if field is not None:
            value = str(eval(field, {"__builtins__": {}, **_NAMES, **FORMATS, **names}))
            values.append(value)
            exact += f"({_flexible(value)})"
            loose += rf"((?=\S){_NUMERIC}{{1,300}}?)(?!\d)(?![.,]\d)"  # ends where a number does
    found = re.compile(exact).search(text, start) or re.compile(loose).search(text, start)
    if found is None:
        raise InputError(f"the page does not say {' '.join(template.split())!r} any more")
    return [(*found.span(i), value) for i, value in enumerate(values, 1)]


def _flexible(literal: str) -> str:
    """A regular expression for a text in which lines may be broken elsewhere."""
    return re.sub(r"(?:\\?\s)+", lambda _: r"\s+", re.escape(literal))


def _section(text: str, begins: str, ends: str | None) -> tuple[int, int]:
    start, after = _places(text, begins)[0]
    if ends:
        return start, _places(text, ends, after)[0][0]
    level = len(begins) - len(begins.lstrip("#"))
    following = re.compile(rf"^#{{1,{level}}} ", re.MULTILINE).search(text, after)
    return start, following.start() if following else len(text)


def _figures(text: str) -> list[tuple[int, int]]:
    """Where figures stand: numbers with a decimal point, per cent, a spread or a power of ten, and table cells of numbers alone."""
    blank = lambda match: re.sub(r"[^\n]", " ", match.group())
    for pattern in (r"^```.*?^```", r"`[^`\n]*`", r"\]\([^)]*\)"):
        text = re.sub(pattern, blank, text, flags=re.MULTILINE | re.DOTALL)
    spans = {match.span() for match in _FIGURE.finditer(text)}
    for line in re.finditer(r"^\|.*\|$", text, re.MULTILINE):
        for cell in re.finditer(r"[^|]+", line.group()):
            if _CELL.fullmatch(cell.group()):
                offset = line.start() + cell.start()
                spans |= {(offset + a, offset + b) for a, b in (m.span() for m in _WHOLE.finditer(cell.group()))}
    ordered = sorted(spans)
    return [
        s
        for i, s in enumerate(ordered)
        if not any(a <= s[0] and s[1] <= b for a, b in ordered[:i] + ordered[i + 1 :] if (a, b) != s)
    ]


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


__all__ = ["FORMATS", "Fault", "Figures", "Kept", "Seeds", "check", "correct", "crowded"]
