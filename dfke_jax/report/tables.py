"""The arms of results as tables: Rich for the terminal, Markdown for the documentation."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dfke_jax.core.errors import InputError
from dfke_jax.experiments.bench.result import Arm, Result
from dfke_jax.report import inheritance, removal, threats
from dfke_jax.report.extraction import defence_table, defences, defences_table, queries, queries_table, query_lines
from dfke_jax.report.figures import arms
from dfke_jax.report.markdown import github_table
from dfke_jax.report.words import (
    RULE,
    comparisons,
    gains,
    mean_sd,
    signed,
    spread,
    taken,
    verdict,
)

if TYPE_CHECKING:
    import rich.table
    from matplotlib.figure import Figure

_STYLE = {"method": "bold", "control": "", "baseline": "dim", "anchor": "", "teacher": ""}


def table(result: Result) -> "rich.table.Table":
    """One row per arm of a result, for the terminal; of dataset inference with its p-values."""
    if tested := threats.threats(result):
        return threats.table(tested, f"{result.title} · {result.dataset}")
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    title = escape(f"{result.title} · {result.dataset}")
    paired = result.pairs()
    caption = "gain: points of accuracy over the matched control" if paired else None
    view = Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    view.add_column("arm")
    view.add_column("role", no_wrap=True)
    for name in ("accuracy %", "gain", "agreement", "published"):
        view.add_column(name, justify="right", no_wrap=True)
    mean = {
        method.name: signed(mean_sd(gains(method, control))[0]) for method, control in paired if gains(method, control)
    }
    for arm in result.arms:
        figures = ", ".join(f"{c.figure.value:g}" for c in comparisons(result) if c.arm is arm)
        agreement = f"{mean_sd(arm.agreement)[0]:.2f}" if arm.agreement else "–"
        cells = (spread(arm.accuracy), mean.get(arm.name, ""), agreement, figures)
        view.add_row(escape(arm.label), arm.role, *cells, style=_STYLE.get(arm.role, ""))
    return view


def markdown_table(results: Sequence[Result], names: Sequence[str] | None = None) -> str:
    """A GitHub table with one row per arm of every result.

    Args:
      results: what to show.
      names: of the experiments; their recipes' names by default.
    """
    head = (
        "data set",
        "recipe" if names is None else "experiment",
        "arm",
        "accuracy % (n)",
        "over control",
        "published %",
        "source",
        "time",
    )
    rows = []
    for result, name in zip(results, names or [result.recipe for result in results], strict=True):
        over = _gains(result)
        for index, arm in enumerate(result.arms):
            figures = [c for c in comparisons(result) if c.arm is arm]
            cells = (
                result.dataset,
                name,
                f"**{arm.label}**" if arm.role == "method" else arm.label,
                _counted(arm),
                over.get(arm.name, ""),
                "; ".join(f"{c.figure.value:g}, {c.words}" for c in figures),
                "; ".join(f"{c.figure.source} ({c.figure.provenance})" for c in figures),
                taken(result) if index == 0 and result.seconds else "",
            )
            rows.append(cells)
    return github_table(head, rows, left=(0, 1, 2, 6))


def results_page(directory: str | os.PathLike) -> Path:
    """Writes ``README.md`` and ``figures/`` beside the result files of a directory, from them alone.

    Args:
      directory: holds ``NAME.json`` files, each a `result.json`.

    Returns:
      The page's path.
    """
    directory = Path(directory)

    def save(figure: "Figure", name: str) -> None:
        (directory / "figures").mkdir(exist_ok=True)
        figure.savefig(directory / "figures" / f"{name}.png", dpi=100)

    text = results_text(directory, save)
    page = directory / "README.md"
    page.write_text(text)
    return page


def results_text(directory: str | os.PathLike, save: "Callable[[Figure, str], None] | None" = None) -> str:
    """The text of `results_page`.

    Args:
      directory: as there.
      save: takes every figure and its name; without it nothing is drawn.
    """
    directory = Path(directory)
    paths = sorted(directory.glob("*.json"))
    results = [Result.read(path) for path in paths]
    if not results:
        raise InputError(f"there are no result files in {directory}")

    def picture(name: str, draw: "Callable[..., Figure]", shown: Result | list[Result]) -> None:
        if save is not None:
            save(draw(shown), name)

    notes = [
        "# Results",
        "",
        "Made from the `.json` files in this directory by `dfke reproduce`; each file holds its configuration, seeds, budgets,",
        "environment and code revision. Accuracy is that of the last iterate on the test set, mean ± standard deviation over (n)",
        "seeds; every seed has its own teacher. *Over control* is the gain over the same pipeline without the method's own step,",
        f"seed by seed. {RULE} Which settings were chosen on test data says `docs/design.md`. Times were taken on a",
        "machine that other work shared. They hold the training of networks that were found in the cache, and all parts of an",
        "interrupted run; after ≥ stand those of files from before that was recorded, in which both count as nothing.",
        "",
        "",
    ]
    pictures = []
    for path, result in zip(paths, results, strict=True):
        attacked = bool(removal.attacked(result))
        view = defences if defence_table(result).cells else removal.removal_matrix if attacked else arms
        picture(path.stem, view, result)
        if defence_table(result).cells:
            said = defences_table(result)
        elif inheritance.marked(result):
            said = inheritance.inheritance_table(result)
        elif attacked:
            said = removal.removal_table(result)
        else:
            said = " ".join(verdict(result))
        pictures += ["", f"## {path.stem}", "", said, "", f"![{path.stem}](figures/{path.stem}.png)"]
        if tested := threats.threats(result):
            pictures += ["", threats.markdown(tested)]
        for name, holds, draw in (
            ("p-values", threats.p_curves(result), threats.p_value_curves),
            ("limits", threats.limits(result, "overlap"), threats.p_value_limits),
            ("strength", removal.graded(result), removal.removal_curves),
            ("success", inheritance.marked(result), inheritance.success),
        ):
            if holds:
                picture(f"{path.stem}-{name}", draw, result)
                pictures += ["", f"![{path.stem}, {name}](figures/{path.stem}-{name}.png)"]
    for dataset in dict.fromkeys(result.dataset for result in results):
        stolen = [result for result in results if result.dataset == dataset and query_lines(result)]
        if stolen:
            name = f"queries-{dataset.split('/')[-1]}"
            picture(name, queries, stolen)
            title = f"Extraction from {dataset}: accuracy against queries"
            pictures += ["", f"## {title}", "", queries_table(stolen), f"![{title}](figures/{name}.png)"]
    table = markdown_table(results, [path.stem for path in paths])
    return "\n".join(notes) + table + "\n".join(pictures) + "\n"


def _gains(result: Result) -> dict[str, str]:
    found = {}
    for method, control in result.pairs():
        if differences := gains(method, control):
            mean, sd = mean_sd(differences)
            found[method.name] = signed(mean) + (f" ± {sd:.2f}" if sd is not None else "")
    return found


def _counted(arm: Arm) -> str:
    return f"{spread(arm.accuracy)} ({len(arm.accuracy)})" if arm.accuracy else "–"


__all__ = ["markdown_table", "results_page", "results_text", "table"]
