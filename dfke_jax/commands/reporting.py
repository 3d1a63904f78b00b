"""``dfke report``: the page of a finished run, or of every run in a directory."""

import argparse
from pathlib import Path

from dfke_jax.commands.common import OK, console


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is reported."""
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="directory of a run, or of several"
    )


def execute(options: argparse.Namespace) -> int:
    """Draws the report and prints its tables and verdicts."""
    from dfke_jax import report

    page, results = report.render_all(options.directory)
    screen = console()
    for result in results:
        screen.print(report.table(result))
        for sentence in report.verdict(result):
            screen.print(sentence, markup=False)
    print(f"\nreport  {page}")
    return OK


__all__ = ["add_options", "execute"]
