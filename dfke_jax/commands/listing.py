"""``dfke list``: recipes, data sets and networks."""

import argparse
from pathlib import Path

from dfke_jax.commands.common import OK, add_data_dir, console, table


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is listed."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--methods", action="store_true", help="the recipes (default)")
    which.add_argument("--data", action="store_true", help="the data sets, found or not")
    which.add_argument("--models", action="store_true", help="the networks")
    add_data_dir(parser)


def execute(options: argparse.Namespace) -> int:
    """Prints the table that is asked for."""
    if options.data:
        view = _data_table(options.data_dir)
    elif options.models:
        view = _model_table()
    else:
        view = _recipe_table()
    console().print(view)
    return OK


def _recipe_table():
    from rich.markup import escape

    from dfke_jax.experiments.bench.registry import recipes

    view = table(show_lines=False)
    view.add_column("recipe", no_wrap=True, style="bold")
    view.add_column("what it does, published figures (%), and what it takes", ratio=1)
    for name, entry in recipes().items():
        about = (
            f"[bold]{escape(entry.title)}[/]\n{escape(entry.summary)}\n"
            f"[dim]{escape(entry.paper)}[/]"
        )
        figures = {dataset: [] for dataset in entry.datasets}
        for figure in entry.published:
            figures.setdefault(figure.dataset, []).append(f"{figure.arm} {figure.value:g}")
        for dataset, values in figures.items():
            about += f"\n[cyan]{escape(dataset)}[/]" + (
                f": {escape(', '.join(values))}" if values else ""
            )
        if entry.time:
            about += f"\n[dim]Takes {escape(entry.time)}.[/]"
        view.add_row(name, about)
        view.add_section()
    return view


def _data_table(data_dir: Path | None):
    from rich.markup import escape

    from dfke_jax.data import available

    view = table()
    view.add_column("data set", no_wrap=True, style="bold")
    view.add_column("found", no_wrap=True)
    view.add_column("where, or what would help")
    for name, found, where in available(data_dir):
        view.add_row(escape(name), "[green]yes[/]" if found else "[yellow]no[/]", escape(where))
    return view


def _model_table():
    from rich.markup import escape

    from dfke_jax.nn.registry import describe, names

    view = table()
    view.add_column("network", no_wrap=True, style="bold")
    view.add_column("parameters", justify="right", no_wrap=True)
    view.add_column("input", no_wrap=True)
    view.add_column("batch norm", no_wrap=True)
    view.add_column("source")
    for name in names():
        info = describe(name)
        shape = "×".join(map(str, info.input_shape)) + ("" if info.input_size else " or other")
        norm = "yes" if info.batch_norm else "no"
        view.add_row(name, f"{info.parameters:,}", shape, norm, escape(info.paper))
    return view
