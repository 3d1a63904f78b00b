"""The arms of results as tables: Rich for the terminal, Markdown for the documentation."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dfke_jax.core.errors import InputError
from dfke_jax.display.numbers import mean_sd, signed, spread
from dfke_jax.display.tables import Table, github_table
from dfke_jax.experiments.bench.result import Arm, Result
from dfke_jax.experiments.bench.views import Together
from dfke_jax.report.figures import arms
from dfke_jax.report.views import views_of
from dfke_jax.report.words import BALANCED, RULE, comparisons, gains, taken, verdict

if TYPE_CHECKING:
    import rich.table
    from matplotlib.figure import Figure

_ARMS = ("arm", "accuracy % (n)", "over control", "published %", "source", "time")
_STYLE = {"method": "bold", "control": "", "baseline": "dim", "anchor": "", "teacher": ""}


def table(result: Result) -> "rich.table.Table":
    """One row per arm of a result, for the terminal; of a recipe whose views speak for themselves, their table."""
    from rich.markup import escape

    for view in views_of(result):
        if view.sentences and view.table:
            return _as_rich(view.table(result), f"{result.title} · {result.dataset}")
    paired = result.pairs()
    caption = "gain: points of accuracy over the matched control" if any(gains(*pair) for pair in paired) else ""
    view = _empty(f"{result.title} · {result.dataset}", caption)
    view.add_column("arm")
    view.add_column("role", no_wrap=True)
    balanced = ["balanced %"] * any(BALANCED in arm.metrics for arm in result.arms)
    for name in ("accuracy %", *balanced, "gain", "agreement", "published"):
        view.add_column(name, justify="right", no_wrap=True)
    mean = {
        method.name: signed(mean_sd(gains(method, control))[0]) for method, control in paired if gains(method, control)
    }
    for arm in result.arms:
        figures = ", ".join(f"{c.figure.value:g}" for c in comparisons(result) if c.arm is arm)
        agreement = f"{mean_sd(arm.agreement)[0]:.2f}" if arm.agreement else "–"
        even = [spread(arm.metrics.get(BALANCED, []))] * len(balanced)
        cells = (spread(arm.accuracy), *even, mean.get(arm.name, ""), agreement, figures)
        view.add_row(escape(arm.label), arm.role, *cells, style=_STYLE.get(arm.role, ""))
    return view


def _as_rich(table: Table, title: str) -> "rich.table.Table":
    from rich.markup import escape

    view = _empty(title, " ".join(table.notes))
    for place, name in enumerate(table.narrow or table.head):
        left = place in table.left
        view.add_column(name, justify="left" if left else "right", no_wrap=not left)
    for cells, role in zip(table.rows, table.roles or [""] * len(table.rows), strict=True):
        view.add_row(*map(escape, cells), style="bold" if role == "teacher" else "")
    return view


def _empty(title: str, caption: str) -> "rich.table.Table":
    import rich.table
    from rich import box
    from rich.markup import escape

    return rich.table.Table(
        title=escape(title),
        caption=caption or None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def markdown_table(results: Sequence[Result], names: Sequence[str] | None = None) -> str:
    """A GitHub table with one row per arm of every result.

    Args:
      results: what to show.
      names: of the experiments; their recipes' names by default.
    """
    head = ("data set", "recipe" if names is None else "experiment", *_ARMS)
    rows = [
        (result.dataset, name, *cells)
        for result, name in zip(results, names or [result.recipe for result in results], strict=True)
        for cells in _arms(result)
    ]
    return github_table(head, rows, left=(0, 1, 2, 6))


def results_page(directory: str | os.PathLike) -> Path:
    """Writes ``README.md``, a page an experiment and ``figures/`` beside the result files of a directory, from them alone.

    Args:
      directory: holds ``NAME.json`` files, each a `result.json`; its page is ``NAME.md``.

    Returns:
      The path of ``README.md``, the index.
    """
    directory = Path(directory)

    def save(figure: "Figure", name: str) -> None:
        (directory / "figures").mkdir(exist_ok=True)
        figure.savefig(directory / "figures" / f"{name}.png", dpi=100)

    for name, text in results_texts(directory, save).items():
        (directory / name).write_text(text)
    return directory / "README.md"


def results_texts(directory: str | os.PathLike, save: "Callable[[Figure, str], None] | None" = None) -> dict[str, str]:
    """The pages of `results_page`: name of the file -> text.

    Args:
      directory: as there.
      save: takes every figure and its name; without it nothing is drawn.
    """
    directory = Path(directory)
    paths = sorted(directory.glob("*.json"))
    results = {path.stem: Result.read(path) for path in paths}
    if not results:
        raise InputError(f"there are no result files in {directory}")

    def picture(name: str, draw: "Callable[..., Figure]", shown: Result | dict[str, Result]) -> None:
        if save is not None:
            save(draw(shown), name)

    compared = _side_by_side(results)
    for name, (together, _, those) in compared.items():
        picture(name, together.figure, those)
    texts = {"README.md": _index(results, {name: title for name, (_, title, _) in compared.items()})}
    for name, result in results.items():
        texts[f"{name}.md"] = _experiment(name, result, picture)
    for name, (together, title, those) in compared.items():
        lines = [f"# {title}", "", _BACK, "", together.table(those).markdown(), f"![{title}](figures/{name}.png)"]
        texts[f"{name}.md"] = "\n".join(lines) + "\n"
    return texts


def _side_by_side(results: dict[str, Result]) -> dict[str, tuple[Together, str, dict[str, Result]]]:
    """Page -> a view of several results, its title and those results that have it, of one data set or of all."""
    found: dict[str, tuple[Together, str, dict[str, Result]]] = {}
    for dataset in dict.fromkeys(result.dataset for result in results.values()):
        for name, result in results.items():
            for view in views_of(result) if result.dataset == dataset else ():
                if view.together:
                    subject = "" if view.together.across else f" {dataset}"
                    title = f"{view.together.title}{subject}: {view.together.about}"
                    page = view.name if view.together.across else f"{view.name}-{dataset.split('/')[-1]}"
                    found.setdefault(page, (view.together, title, {}))[2][name] = result
    return found


_BACK = "[All results](README.md), and how to read them."


def _index(results: dict[str, Result], compared: dict[str, str]) -> str:
    lines = [
        "# Results",
        "",
        "Made from the `.json` files in this directory by `dfke reproduce`; each file holds its configuration, seeds, budgets,",
        "environment and code revision. Accuracy is that of the last iterate on the test set, mean ± standard deviation over the",
        "seeds; every seed has its own teacher. *Over control* is the gain over the same pipeline without the method's own step,",
        f"seed by seed. {RULE}",
        "",
        "Which settings were chosen on test data is told in the [notes](../notes/test_data.md). Times were taken on a machine that",
        "other work shared. They hold the training of networks that were found in the cache, and all parts of an interrupted run;",
        "after ≥ stand those of files from before that was recorded, in which both count as nothing.",
        "",
        "Of an experiment the last arm of its method stands here (of the largest budget, where it has several), and how many of the",
        "published figures of its methods that could be judged were reproduced. Every arm, and what is not an accuracy (p-values,",
        "triggers, defences), is on the experiment's page.",
        "",
    ]
    rows = []
    for name, result in results.items():
        methods = [arm for arm in result.arms if arm.role == "method" and arm.accuracy]
        of_accuracy = not any(view.subject for view in views_of(result))
        arm = methods[-1] if methods and of_accuracy else None
        judged = [c for c in comparisons(result) if c.arm in methods and not c.figure.differs]
        cells = (
            f"[{name}]({name}.md)",
            result.title,
            result.dataset,
            str(len(result.seeds)),
            "" if arm is None else arm.label,
            "" if arm is None else spread(arm.accuracy),
            "" if arm is None else _gains(result).get(arm.name, ""),
            f"{sum(c.reproduced for c in judged)} of {len(judged)}" if judged else "",
            taken(result) if result.seconds else "",
        )
        rows.append(cells)
    head = ("experiment", "what", "data set", "seeds", "arm", "accuracy %", "over control", "reproduced", "time")
    text = "\n".join(lines) + "\n" + github_table(head, rows, left=(0, 1, 2, 4))
    if compared:
        text += "\n## Side by side\n\n"
        text += "".join(f"- [{title}]({name}.md)\n" for name, title in compared.items())
    return text


def _experiment(name: str, result: Result, picture: "Callable[..., None]") -> str:
    """The page of one experiment: what it is, its tables, figures and notes."""
    views = views_of(result)
    picture(name, next((view.figure for view in views if view.leads and view.figure), arms), result)
    tables = [view.table(result) for view in views if view.subject and view.table and not view.sentences]
    said = "\n".join(table.markdown() for table in tables) or "\n".join(f"- {said}" for said in verdict(result))
    seeds = f"{'seed' if len(result.seeds) == 1 else 'seeds'} {', '.join(map(str, result.seeds))}"
    lines = [
        f"# {name}",
        "",
        f"{result.title}: recipe `{result.recipe}` on {result.dataset}, {seeds}; `dfke reproduce {name}` runs it again.",
        f"The figures come from [{name}.json]({name}.json). {_BACK}",
        "",
        said,
        "",
        github_table(_ARMS, _arms(result), left=(0, 4)),
        f"![{name}](figures/{name}.png)",
    ]
    for view in views:
        if view.sentences and view.table:
            lines += ["", view.table(result).markdown()]
    for view in views:
        if view.figure and view.subject and not view.leads:
            picture(f"{name}-{view.name}", view.figure, result)
            lines += ["", f"![{name}, {view.name}](figures/{name}-{view.name}.png)"]
    if result.notes:
        lines += ["", "## Notes", "", *(f"- {' '.join(note.split())}" for note in result.notes)]
    return "\n".join(lines) + "\n"


def _arms(result: Result) -> list[tuple[str, ...]]:
    """A row an arm, in the columns `_ARMS`; the time stands in the first."""
    over, compared = _gains(result), comparisons(result)
    rows = []
    for index, arm in enumerate(result.arms):
        figures = [c for c in compared if c.arm is arm]
        cells = (
            f"**{arm.label}**" if arm.role == "method" else arm.label,
            _counted(arm),
            over.get(arm.name, ""),
            "; ".join(f"{c.figure.value:g}, {c.words}" for c in figures),
            "; ".join(f"{c.figure.source} ({c.figure.provenance})" for c in figures),
            taken(result) if index == 0 and result.seconds else "",
        )
        rows.append(cells)
    return rows


def _gains(result: Result) -> dict[str, str]:
    found = {}
    for method, control in result.pairs():
        if differences := gains(method, control):
            mean, sd = mean_sd(differences)
            found[method.name] = signed(mean) + (f" ± {sd:.2f}" if sd is not None else "")
    return found


def _counted(arm: Arm) -> str:
    return f"{spread(arm.accuracy)} ({len(arm.accuracy)})" if arm.accuracy else "–"


__all__ = ["markdown_table", "results_page", "results_texts", "table"]
