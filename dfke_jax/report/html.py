"""One page per run: self-contained HTML with its figures inside, written next to `result.json`."""

import dataclasses
import html
import json
import os
from pathlib import Path
from typing import Any

from dfke_jax.core.checkpoint import write_whole
from dfke_jax.core.errors import InputError
from dfke_jax.display import numbers
from dfke_jax.display.tables import Table
from dfke_jax.experiments.bench.result import Result
from dfke_jax.experiments.bench.views import View
from dfke_jax.report import words
from dfke_jax.report.pictures import Picture, Pictures
from dfke_jax.report.repeating import command
from dfke_jax.report.views import views_of

_ROLES = {
    "method": "the method",
    "control": "the same pipeline with the method's own step switched off",
    "baseline": "noise or unrelated images",
    "anchor": "real data",
    "teacher": "the network whose knowledge is extracted",
}


@dataclasses.dataclass(frozen=True)
class _Section:
    """A view: its heading, its table and its figure, as far as it has them."""

    title: str
    table: Table | None
    picture: Picture | None


def load(directory: str | os.PathLike) -> Result:
    """The result in a run's directory.

    Raises:
      InputError: there is none, or its `result.json` is damaged or of another schema.
    """
    path = Path(directory) / "result.json"
    if not path.is_file():
        raise InputError(f"there is no result.json in {directory}; name the --out directory of a finished run")
    try:
        result = Result.read(path)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON ({error}); the run that wrote it has to be repeated") from error
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a result of this package: {type(error).__name__}: {error}") from error
    return result


def render(directory: str | os.PathLike) -> Path:
    """Draws the figures of a run into ``figures/`` and writes ``report.html``.

    The page carries everything inside itself: no script, no request to anywhere. Figures are SVG within it and files in
    ``figures/``, the same bytes for the same run; each links to its numbers. Pieces that the run did not
    leave (samples, similarities, metrics) are left out; pieces that cannot be read are named in its notes.

    Args:
      directory: what `dfke run` was told to write to; it must hold a `result.json`.

    Returns:
      The path of the page.

    Raises:
      InputError: without a readable `result.json`, or when the directory cannot be written to.
    """
    directory = Path(directory)
    result = load(directory)
    try:
        drawing = Pictures(directory)
        accuracies = _accuracies(drawing, result)
        sections = [_section(drawing, view, result) for view in views_of(result)]
        pictures = _run_pictures(drawing, result)
        page = _template("report.html.jinja").render(
            result=result,
            sentences=words.verdict(result),
            rule=words.RULE,
            provenance=words.PROVENANCE,
            roles=_ROLES,
            comparisons=words.comparisons(result),
            elsewhere=[
                figure
                for figure in result.published
                if not any(figure is comparison.figure for comparison in words.comparisons(result))
            ],
            accuracies=accuracies,
            sections=sections,
            spoken=any(view.sentences for view in views_of(result)),
            pairs=[(m, c, words.gains(m, c)) for m, c in result.pairs() if words.gains(m, c)],
            budgets=_budgets(result),
            config=result.config,
            seconds={name: words.duration(value) for name, value in result.seconds.items()},
            total=words.taken(result) if result.seconds else "",
            environment=_flat(result.environment),
            pictures=pictures,
            command=command(result),
            notes=[*result.notes, *drawing.problems],
        )
        return write_whole(directory / "report.html", page)
    except OSError as error:
        raise InputError(f"cannot write the report into {directory}: {error.strerror or error}") from error


def render_all(directory: str | os.PathLike) -> tuple[Path, list[Result]]:
    """Renders the run in a directory or, if its sub-directories hold runs, each of them and an index.

    Returns:
      The page to open (``report.html`` or ``index.html``), and the results that it shows.

    Raises:
      InputError: there is no result, or one of them cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"there is no directory {directory}")
    if (directory / "result.json").is_file():
        return render(directory), [load(directory)]
    found = sorted(path.parent for depth in ("*", "*/*") for path in directory.glob(f"{depth}/result.json"))
    if not found:
        raise InputError(f"there is no result.json in {directory}, nor in its sub-directories; a finished run has one")
    results = [load(path) for path in found]
    rows = []
    for path, result in zip(found, results, strict=True):
        page = render(path)
        shown = [arm for arm in result.arms if arm.role == "method"] or result.arms
        link = page.relative_to(directory).as_posix()
        rows.append((link, result, shown, words.verdict(result), words.comparisons(result)))
    page = _template("index.html.jinja").render(rows=rows, rule=words.RULE)
    return write_whole(directory / "index.html", page), results


def _accuracies(drawing: Pictures, result: Result) -> Picture | None:
    from dfke_jax.report import figures

    if not any(arm.accuracy for arm in result.arms):
        return None
    rows = [("arm", "role", "seed", "accuracy %", "agreement %")]
    for arm in result.arms:
        alike = arm.agreement or [""] * len(arm.accuracy)
        rows += [(arm.label, arm.role, *of) for of in zip(result.seeds, arm.accuracy, alike, strict=False)]
    return drawing.draw("arms", "Accuracy of every arm", "", lambda: figures.arms(result), data=rows)


def _section(drawing: Pictures, view: View, result: Result) -> _Section:
    figure, table = view.figure, view.table(result) if view.table else None
    if figure is None:
        return _Section(view.title, table, None)
    data = [table.head, *table.rows] if table else "result.json"
    picture = drawing.draw(view.name, view.title, view.caption, lambda: figure(result), data=data)
    return _Section(view.title, table, picture)


def _run_pictures(drawing: Pictures, result: Result) -> list[Picture]:
    """What every run may have left: samples, similarities of classes, curves of the training."""
    import numpy as np

    from dfke_jax.core import tracking
    from dfke_jax.report import figures

    directory, drawn = drawing.directory, []

    def archive(name: str) -> dict[str, np.ndarray]:
        path = directory / name
        if not path.is_file():
            return {}
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {key: stored[key] for key in stored.files}
        except Exception as error:  # zipfile, zlib and NumPy each have their own
            drawing.problems.append(f"{name} could not be read: {error}")
            return {}

    similarity = archive("similarity.npz")
    names = [str(name) for name in similarity["class_names"]] if "class_names" in similarity else None
    labels = {arm.name: arm.label for arm in result.arms}
    samples = archive("samples.npz")
    given = {name: samples.pop(f"{name}_labels") for name in list(samples) if f"{name}_labels" in samples}
    for name, images in samples.items():
        rows = given.get(name)
        drawn.append(
            drawing.draw(
                f"samples_{_safe(name)}",
                f"Samples: {labels.get(name, name)}",
                "" if rows is None else "One row per class.",
                lambda images=images, rows=rows: figures.sample_grid(images, rows, names),
                "samples",
                "samples.npz",
            )
        )
    if "class_similarity" in similarity:
        drawn.append(
            drawing.draw(
                "class_similarity",
                "Class similarity",
                "How close the teacher holds each pair of classes.",
                lambda: figures.similarity_map(similarity["class_similarity"], names),
                data="similarity.npz",
            )
        )
    if (directory / "metrics.jsonl").is_file():
        try:
            metrics = tracking.read(directory / "metrics.jsonl")
        except (OSError, UnicodeDecodeError, KeyError, AttributeError) as error:
            drawing.problems.append(f"metrics.jsonl could not be read: {error}")
            metrics = {}
        if metrics:
            draw = lambda: figures.curves(metrics)
            drawn.append(drawing.draw("curves", "Curves", "One line per seed.", draw, data="metrics.jsonl"))
    return [picture for picture in drawn if picture]


def _budgets(result: Result) -> tuple[list[str], list[tuple[Any, list[str]]]]:
    columns = list(dict.fromkeys(name for arm in result.arms for name in arm.budget))
    rows = [
        (arm, [numbers.number(arm.budget[name]) if name in arm.budget else "–" for name in columns])
        for arm in result.arms
        if arm.budget
    ]
    return columns, rows


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """One level: the entries of inner dictionaries under their own names; what is unknown is left out."""
    flat = {}
    for name, value in tree.items():
        flat |= {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if value is not None}


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _breakable(name: str) -> str:
    """Lets a browser break long snake_case names, after escaping them."""
    from markupsafe import Markup

    return Markup(html.escape(str(name)).replace("_", "_<wbr>"))


def _template(name: str):
    import jinja2

    loader = jinja2.PackageLoader("dfke_jax.report")
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters.update(spread=numbers.spread, signed=numbers.signed, shown=_shown, breakable=_breakable)
    return page.get_template(name)


__all__ = ["load", "render", "render_all"]
