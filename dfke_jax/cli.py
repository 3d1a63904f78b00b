"""The command line: ``dfke list``, ``run``, ``reproduce``, ``report``, ``serve``, ``watermark``, ``dataset-inference``, ``doctor``.

Two levels: argparse picks the command; what follows ``dfke run RECIPE`` is parsed by tyro from the recipe's
own configuration, so that every field is an option. JAX is imported only by the commands that need it.
"""

import argparse
import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dfke_jax import judging, serving
from dfke_jax._version import __version__
from dfke_jax.commands import listing, reproducing, running, watermark
from dfke_jax.commands.common import (
    FAILED,
    INTERRUPTED,
    OK,
    USAGE,
    add_data_dir,
    complain,
    console,
    enable_compilation_cache,
    table,
)

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
            name, rest, debug = running.split(argv[1:])
            action = lambda: running.execute(name, rest)
        else:
            options = _parser().parse_args(argv)
            debug = options.debug
            action = lambda: options.action(options)
    except SystemExit as stop:
        return _code(stop)
    return _guarded(action, argv, debug)


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

    listing.add_options(command("list", "List recipes, data sets and networks.", listing.execute))

    # `run` is parsed apart (see `main`); it stands here for the overview.
    command("run", "Run a recipe; dfke run RECIPE --help shows its options.", lambda _: USAGE)

    reproducing.add_options(
        command("reproduce", "Repeat the experiments that the documentation reports.", reproducing.execute)
    )

    page = command("report", "Draw the report of a finished run, or of every run in a directory.", _report)
    page.add_argument("directory", type=Path, metavar="DIR", help="directory of a run, or of several")

    serving.add_options(command("serve", "Serve a classifier over HTTP, to be attacked.", _serve))

    judging.add_options(command("dataset-inference", "Test whether a model was made from your data.", _judge))
    watermark.add_options(command("watermark", "Mark a network by a backdoor, and verify such a mark.", _watermark))

    doctor = command("doctor", "Say what this machine can do, what is missing and what would help.", _doctor)
    add_data_dir(doctor)
    return parser


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
            complain(f"interrupted: {said}")
            if argv[:1] == ["run"]:
                again = [*argv, *(["--resume"] if "--resume" not in argv else [])]
                complain(f"to go on: {shlex.join(['dfke', *again])}")
            return INTERRUPTED
        if not isinstance(error, DfkeError):
            if debug:
                return FAILED
            raise
        if not debug:
            complain(f"error: {error}")
        return USAGE if isinstance(error, UnknownNameError) and error.args[0].startswith("unknown recipe") else FAILED


def _code(stop: SystemExit) -> int:
    if stop.code is None:
        return OK
    if isinstance(stop.code, int):
        return stop.code
    complain(str(stop.code))
    return FAILED


def _report(options: argparse.Namespace) -> int:
    from dfke_jax import report

    page, results = report.render_all(options.directory)
    screen = console()
    for result in results:
        screen.print(report.table(result))
        for sentence in report.verdict(result):
            screen.print(sentence, markup=False)
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
    view = table(show_header=False)
    view.add_column(no_wrap=True, style="bold")
    view.add_column(overflow="fold")
    for name, text in judging.fields(verdict):
        view.add_row(name.replace("_", " "), escape(text))
    screen = console()
    screen.print(view)
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
    screen = console()
    for group in dict.fromkeys(finding.group for finding in findings):
        view = table(title=group, title_justify="left", title_style="bold", show_header=False)
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
        screen.print(view)
    able = sound(findings)
    screen.print("The main job can run." if able else "[bold red]The main job cannot run:[/] see what is broken above.")
    return OK if able else FAILED


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["enable_compilation_cache", "main"]
