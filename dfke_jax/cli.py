"""The command line: ``dfke list``, ``run``, ``reproduce``, ``report``, ``serve``, ``watermark``, ``dataset-inference``, ``doctor``.

Two levels: argparse picks the command; what follows ``dfke run RECIPE`` is parsed by tyro from the recipe's
own configuration, so that every field is an option. JAX is imported only by the commands that need it.
"""

import argparse
import contextlib
import dataclasses
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dfke_jax import judging, serving
from dfke_jax._version import __version__
from dfke_jax.commands import watermark

if TYPE_CHECKING:
    from dfke_jax.experiments.registry import Recipe

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_EXAMPLES = """\
examples:
  dfke doctor                                     what this machine can do
  dfke list                                       every recipe
  dfke run RECIPE --help                          every option of a recipe, with its default
  dfke run RECIPE --dataset mnist --data-dir DIR  run it, then write its report
  dfke report runs/RECIPE-mnist                   draw the report again
  dfke serve digits --reveal label --quota 1000   an endpoint to attack
  dfke watermark verify SECRET PUBLIC SUSPECT     is this network mine?
  dfke dataset-inference --help                   was a model made from your data?
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: arguments without the program's name; those of the process by default.

    Returns:
      The exit code: 0, 1 (it failed, and said why), 2 (the command was wrong) or 130 (interrupted).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["run"]:
            name, rest, debug = _split_run(argv[1:])
            action = lambda: _run(name, rest, argv)
        else:
            options = _parser().parse_args(argv)
            debug = options.debug
            action = lambda: options.action(options)
    except SystemExit as stop:
        return _code(stop)
    return _guarded(action, argv, debug)


def enable_compilation_cache() -> Path | None:
    """Keeps compiled programs on disk, so that the second run of anything starts at once.

    The directory is ``programs-<version of jaxlib>`` in DFKE_CACHE_DIR or ``~/.cache/dfke_jax``. A directory
    that is already set (JAX_COMPILATION_CACHE_DIR) is left as it is.

    Returns:
      The directory, or None where none can be written: a cache is a convenience, and no reason to stop.
    """
    import jax
    from jaxlib import version

    configured = getattr(jax.config, "jax_compilation_cache_dir", None)
    if configured:
        return Path(configured)
    from dfke_jax.core.checkpoint import cache_directory

    directory = cache_directory() / f"programs-{version.__version__}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(directory, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return directory


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="dfke",
        description="Data-free knowledge extraction in JAX.",
        epilog=_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dfke {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, summary: str, action: Callable[[argparse.Namespace], int], **more: Any):
        made = commands.add_parser(
            name,
            help=summary,
            description=summary,
            parents=[shared],
            formatter_class=formatter,
            allow_abbrev=False,
            **more,
        )
        made.set_defaults(action=action)
        return made

    listing = command("list", "List recipes, data sets and networks.", _list)
    which = listing.add_mutually_exclusive_group()
    which.add_argument("--methods", action="store_true", help="the recipes (default)")
    which.add_argument("--data", action="store_true", help="the data sets, found or not")
    which.add_argument("--models", action="store_true", help="the networks")
    _add_data_dir(listing)

    # `run` is parsed apart (see `main`); it stands here for the overview.
    command("run", "Run a recipe; dfke run RECIPE --help shows its options.", lambda _: USAGE)

    again = command("reproduce", "Repeat the experiments that the documentation reports.", _reproduce)
    again.add_argument("names", nargs="*", metavar="NAME", help="experiments; all of them by default")
    again.add_argument("--out", type=Path, default=Path("docs/results"), help="where results go (default: %(default)s)")
    again.add_argument("--list", action="store_true", dest="listing", help="only list them")
    again.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="run every seed in a process of its own, N at a time, and put them together",
    )
    again.add_argument(
        "--seed", type=int, metavar="K", help="run this seed of one experiment alone, into runs/reproduce/NAME/seedK"
    )
    again.add_argument(
        "--devices",
        type=_positive,
        metavar="N",
        help="split the CPU into so many devices; by default one per core, up to four",
    )
    _add_data_dir(again)

    page = command("report", "Draw the report of a finished run, or of every run in a directory.", _report)
    page.add_argument("directory", type=Path, metavar="DIR", help="directory of a run, or of several")

    serving.add_options(command("serve", "Serve a classifier over HTTP, to be attacked.", _serve))

    judging.add_options(command("dataset-inference", "Test whether a model was made from your data.", _judge))
    watermark.add_options(command("watermark", "Mark a network by a backdoor, and verify such a mark.", _watermark))

    doctor = command("doctor", "Say what this machine can do, what is missing and what would help.", _doctor)
    _add_data_dir(doctor)
    return parser


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where the real data sets are (default: DFKE_DATA_DIR)",
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _guarded(action: Callable[[], int], argv: Sequence[str], debug: bool) -> int:
    """Runs a command and turns what can go wrong into one message and an exit code."""
    try:
        return action()
    except SystemExit as stop:
        return _code(stop)
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # the reader has left: nothing more can be said
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (Exception, KeyboardInterrupt) as error:
        from dfke_jax.core.errors import DfkeError, Interrupted, UnknownNameError

        if debug:
            traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            said = str(error) if isinstance(error, Interrupted) else "stopped"
            _complain(f"interrupted: {said}")
            if argv[:1] == ["run"]:
                again = [*argv, *(["--resume"] if "--resume" not in argv else [])]
                _complain(f"to go on: {shlex.join(['dfke', *again])}")
            return INTERRUPTED
        if not isinstance(error, DfkeError):
            if debug:
                return FAILED
            raise
        if not debug:
            _complain(f"error: {error}")
        return USAGE if isinstance(error, UnknownNameError) and error.args[0].startswith("unknown recipe") else FAILED


def _code(stop: SystemExit) -> int:
    if stop.code is None:
        return OK
    if isinstance(stop.code, int):
        return stop.code
    _complain(str(stop.code))
    return FAILED


def _complain(message: str) -> None:
    print(f"dfke: {message}", file=sys.stderr)


def _console():
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def _list(options: argparse.Namespace) -> int:
    if options.data:
        view = _data_table(options.data_dir)
    elif options.models:
        view = _model_table()
    else:
        view = _recipe_table()
    _console().print(view)
    return OK


def _table(*columns: str, **style: Any):
    from rich import box
    from rich.table import Table

    return Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, **style)


def _recipe_table():
    from rich.markup import escape

    from dfke_jax.experiments.registry import recipes

    view = _table(show_lines=False)
    view.add_column("recipe", no_wrap=True, style="bold")
    view.add_column("what it does, published figures (%), and what it takes", ratio=1)
    for name, entry in recipes().items():
        about = f"[bold]{escape(entry.title)}[/]\n{escape(entry.summary)}\n[dim]{escape(entry.paper)}[/]"
        figures = {dataset: [] for dataset in entry.datasets}
        for figure in entry.published:
            figures.setdefault(figure.dataset, []).append(f"{figure.arm} {figure.value:g}")
        for dataset, values in figures.items():
            about += f"\n[cyan]{escape(dataset)}[/]" + (f": {escape(', '.join(values))}" if values else "")
        if entry.time:
            about += f"\n[dim]Takes {escape(entry.time)}.[/]"
        view.add_row(name, about)
        view.add_section()
    return view


def _data_table(data_dir: Path | None):
    from rich.markup import escape

    from dfke_jax.data import available

    view = _table()
    view.add_column("data set", no_wrap=True, style="bold")
    view.add_column("found", no_wrap=True)
    view.add_column("where, or what would help")
    for name, found, where in available(data_dir):
        view.add_row(escape(name), "[green]yes[/]" if found else "[yellow]no[/]", escape(where))
    return view


def _model_table():
    from rich.markup import escape

    from dfke_jax.nn.registry import describe, names

    view = _table()
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


def _split_run(rest: list[str]) -> tuple[str, list[str], bool]:
    """The recipe, the arguments after it, and whether tracebacks are wanted."""
    usage = (
        "usage: dfke run RECIPE [options]\n\n"
        "`dfke list` names the recipes; `dfke run RECIPE --help` shows the options of one."
    )
    if not rest:
        print(usage, file=sys.stderr)
        raise SystemExit(USAGE)
    if rest[0] in ("-h", "--help"):
        print(usage)
        raise SystemExit(OK)
    if rest[0].startswith("-"):
        _complain(f"the recipe comes first: dfke run RECIPE {shlex.join(rest)}")
        raise SystemExit(USAGE)
    return rest[0], rest[1:], "--debug" in rest


def _run(name: str, rest: list[str], argv: list[str]) -> int:
    from dfke_jax.core.mesh import split_cpu
    from dfke_jax.experiments.registry import recipe as find

    recipe = find(name)
    try:
        options = _parse_run(recipe, rest)
    except ValueError as error:  # a setting out of range; InputError is one
        _complain(f"error: {error}")
        return USAGE
    config = options.settings
    out = options.out or Path("runs") / f"{recipe.name}-{_slug(config.dataset)}"
    _refuse_finished(out, options.resume)
    split_cpu(options.devices)
    enable_compilation_cache()

    from dfke_jax.experiments.run import run_recipe

    result = run_recipe(
        recipe, config, out=out, data_dir=options.data_dir, resume=options.resume, progress=not options.quiet
    )

    from dfke_jax import report

    console = _console()
    console.print(report.table(result))
    for sentence in report.verdict(result):
        console.print(sentence, markup=False)
    page = report.render(out)
    print(f"\nresult  {out / 'result.json'}\nreport  {page}")
    return OK


def _parse_run(recipe: "Recipe", rest: Sequence[str]):
    """Parses what follows the recipe; the defaults are those of the data set that is asked for."""
    import tyro

    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--dataset")
    try:
        dataset = peek.parse_known_args(rest)[0].dataset
    except argparse.ArgumentError:
        dataset = None  # "--dataset" without a value: tyro says so
    default = recipe.settings(dataset)

    @dataclasses.dataclass(frozen=True)
    class Options:
        settings: Annotated[type(default), tyro.conf.arg(name="")]  # pyright: ignore[reportInvalidTypeForm]
        """What the recipe does, and with how much."""
        data_dir: Path | None = None
        """Directory of the real data sets; DFKE_DATA_DIR if it is not given."""
        out: Path | None = None
        """Where the result, samples, checkpoints and report go; runs/RECIPE-DATASET by default."""
        resume: tyro.conf.FlagCreatePairsOff[bool] = False
        """Continue the run that this directory holds."""
        quiet: tyro.conf.FlagCreatePairsOff[bool] = False
        """No progress bars."""
        devices: int | None = None
        """Split the CPU into so many devices; by default one per core, up to four."""
        debug: tyro.conf.FlagCreatePairsOff[bool] = False
        """Show the traceback of an error."""

    about = f"{recipe.title}\n\n{recipe.summary}\n\n{recipe.paper}"
    if recipe.time:
        about += f"\n\nTakes {recipe.time}."
    about += f"\n\nDefaults below are those for the data set {default.dataset!r}."
    return tyro.cli(
        Options,
        default=Options(settings=default),
        args=list(rest),
        prog=f"dfke run {recipe.name}",
        description=about,
    )


def _slug(dataset: str) -> str:
    """A data set's name in a directory's: ``emnist/letters`` is emnist-letters, ``mine.npz`` is mine."""
    name = Path(dataset).stem if dataset.endswith(".npz") else dataset
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.") or "data"


def _refuse_finished(out: Path, resume: bool) -> None:
    from dfke_jax.core.errors import InputError

    if not resume and (out / "result.json").exists():
        raise InputError(
            f"{out} already holds a finished run (result.json) and nothing is overwritten; choose "
            "another --out, or --resume to complete it with the same settings"
        )


def _reproduce(options: argparse.Namespace) -> int:
    from dfke_jax.core.errors import InputError, UnknownNameError
    from dfke_jax.core.mesh import split_cpu

    if not options.listing and not options.jobs:  # with jobs, devices belong to the processes
        split_cpu(options.devices)
        enable_compilation_cache()
    from dfke_jax import report
    from dfke_jax.experiments import reproduce

    for name in options.names:
        if name not in reproduce.EXPERIMENTS:
            raise UnknownNameError("experiment", name, reproduce.EXPERIMENTS)
    if options.listing:
        from rich.markup import escape

        view = _table()
        view.add_column("experiment", no_wrap=True, style="bold")
        view.add_column("what it shows")
        view.add_column("time")
        for name in options.names or reproduce.EXPERIMENTS:
            entry = reproduce.EXPERIMENTS[name]
            view.add_row(escape(name), escape(entry.description), escape(str(entry.time)))
        _console().print(view)
        return OK
    if options.seed is not None:
        if len(options.names) != 1 or options.jobs:
            raise InputError("--seed goes with the name of one experiment, and without --jobs")
        reproduce.run_experiment(options.names[0], options.out, data_dir=options.data_dir, seed=options.seed)
        return OK
    reproduce.main(options.names, out=options.out, data_dir=options.data_dir, jobs=options.jobs)
    page = report.results_page(options.out)
    print(f"\ntable  {page}")
    return OK


def _report(options: argparse.Namespace) -> int:
    from dfke_jax import report

    page, results = report.render_all(options.directory)
    console = _console()
    for result in results:
        console.print(report.table(result))
        for sentence in report.verdict(result):
            console.print(sentence, markup=False)
    print(f"\nreport  {page}")
    return OK


def _serve(options: argparse.Namespace) -> int:
    enable_compilation_cache()
    serving.serve_model(options)
    return OK


def _judge(options: argparse.Namespace) -> int:
    from rich.markup import escape

    enable_compilation_cache()
    verdict, beside = judging.judge_files(options)
    view = _table(show_header=False)
    view.add_column(no_wrap=True, style="bold")
    view.add_column(overflow="fold")
    for name, text in judging.fields(verdict):
        view.add_row(name.replace("_", " "), escape(text))
    console = _console()
    console.print(view)
    if beside["ledger"]:
        rows = beside["ledger"]
        print(
            f"endpoint  {rows['rows']:,} rows asked in {rows['requests']:,} requests, {rows['cache_hits']:,} known before"
        )
    print(f"result    {options.out}")
    return OK


def _watermark(options: argparse.Namespace) -> int:
    enable_compilation_cache()
    watermark.execute(options)
    return OK


def _doctor(options: argparse.Namespace) -> int:
    from rich.markup import escape

    from dfke_jax.doctor import examine, sound

    with contextlib.suppress(ImportError):
        enable_compilation_cache()
    findings = examine(options.data_dir)
    signs = {"ok": "[green]ok[/]", "missing": "[yellow]–[/]", "broken": "[bold red]broken[/]"}
    console = _console()
    for group in dict.fromkeys(finding.group for finding in findings):
        view = _table(title=group, title_justify="left", title_style="bold", show_header=False)
        view.add_column(no_wrap=True, min_width=20)
        view.add_column(no_wrap=True, min_width=6)
        view.add_column(overflow="fold")
        absent: dict[str, list[str]] = {}
        for finding in (finding for finding in findings if finding.group == group):
            if finding.group == "data" and finding.state == "missing":
                absent.setdefault(finding.detail.replace(repr(finding.name), "NAME"), []).append(finding.name)
            else:
                view.add_row(escape(finding.name), signs[finding.state], escape(finding.detail))
        for remedy, names in absent.items():
            view.add_row("not found", signs["missing"], escape(f"{', '.join(names)}\n{remedy}"))
        console.print(view)
    able = sound(findings)
    console.print(
        "The main job can run." if able else "[bold red]The main job cannot run:[/] see what is broken above."
    )
    return OK if able else FAILED


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["enable_compilation_cache", "main"]
