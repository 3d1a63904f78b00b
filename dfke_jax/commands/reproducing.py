"""``dfke reproduce``: the experiments that the documentation reports."""

import argparse
from pathlib import Path

from dfke_jax.commands.common import (
    OK,
    add_data_dir,
    console,
    enable_compilation_cache,
    positive,
    table,
    whole,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which experiments, and how they are spread over the machine."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="experiments; all of them by default"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/results"),
        help="where results go (default: %(default)s)",
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="run nothing: only write the page of results, and the figures of hand-written pages, "
        "from the result files",
    )
    parser.add_argument("--list", action="store_true", dest="listing", help="only list them")
    parser.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="run every seed in a process of its own, N at a time, and put them together",
    )
    parser.add_argument(
        "--seed",
        type=whole(),
        metavar="K",
        help="run this seed of one experiment alone, into runs/reproduce/NAME/seedK",
    )
    parser.add_argument(
        "--devices",
        type=positive,
        metavar="N",
        help="split the CPU into so many devices; by default one per core, up to four",
    )
    add_data_dir(parser)


def execute(options: argparse.Namespace) -> int:
    """Lists experiments, or runs them; writes the page of results and the figures of other pages."""
    from dfke_jax.core.errors import InputError, UnknownNameError
    from dfke_jax.core.mesh import split_cpu

    if not options.listing and not options.jobs:  # with jobs, devices belong to the processes
        split_cpu(options.devices)
        enable_compilation_cache()
    from dfke_jax.experiments import reproduce

    for name in options.names:
        if name not in reproduce.EXPERIMENTS:
            raise UnknownNameError("experiment", name, reproduce.EXPERIMENTS)
    if options.listing:
        from rich.markup import escape

        view = table()
        view.add_column("experiment", no_wrap=True, style="bold")
        view.add_column("what it shows")
        view.add_column("time")
        for name in options.names or reproduce.EXPERIMENTS:
            entry = reproduce.EXPERIMENTS[name]
            view.add_row(escape(name), escape(entry.description), escape(str(entry.time)))
        console().print(view)
        return OK
    if options.page:
        if options.names or options.jobs or options.seed is not None:
            raise InputError("--page runs nothing and goes with --out alone")
        return _write_pages(options.out)
    if options.seed is not None:
        if len(options.names) != 1 or options.jobs:
            raise InputError("--seed goes with the name of one experiment, and without --jobs")
        reproduce.run_experiment(
            options.names[0], options.out, data_dir=options.data_dir, seed=options.seed
        )
        return OK
    reproduce.main(options.names, out=options.out, data_dir=options.data_dir, jobs=options.jobs)
    return _write_pages(options.out)


def _write_pages(out: Path) -> int:
    from dfke_jax import report

    print(f"\ntable  {report.results_page(out)}")
    for path in report.pages.correct(out.parent):
        print(f"page   {path}: figures corrected; see whether its words still hold")
    for fault in report.pages.check(out.parent):
        print(f"       {fault}")
    return OK
