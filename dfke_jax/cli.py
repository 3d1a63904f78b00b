"""The command line: a table of the commands in `dfke_jax.commands`, and what becomes of their
errors.

Two levels: argparse picks the command; what follows ``dfke run RECIPE`` is parsed by tyro from the
recipe's own configuration, so that every field is an option. JAX is imported only by the commands
that need it.
"""

import argparse
import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType

from dfke_jax._version import __version__
from dfke_jax.commands import (
    dataset_inference,
    doctor,
    exporting,
    listing,
    reporting,
    reproducing,
    running,
    serving,
    watermark,
)
from dfke_jax.commands.common import (
    FAILED,
    INTERRUPTED,
    OK,
    USAGE,
    Parser,
    complain,
    degrade_text,
)

_EXAMPLES = """\
examples:
  dfke doctor                                     what this machine can do
  dfke list                                       every recipe
  dfke run RECIPE --help                          every option of a recipe, with its default
  dfke run RECIPE --dataset mnist --data-dir DIR  run it, then write its report
  dfke report runs/RECIPE-mnist                   draw the report again
  dfke serve digits --reveal label --quota 1000   an endpoint to attack
  dfke export DIR --to onnx --out net.onnx        take a model away
  dfke watermark verify SECRET PUBLIC SUSPECT     is this network mine?
  dfke dataset-inference --help                   was a model made from your data?
"""


_COMMANDS: dict[str, tuple[str, ModuleType | None]] = {
    "list": ("List recipes, data sets and networks.", listing),
    # parsed apart, see `main`; it stands here for the overview
    "run": ("Run a recipe; dfke run RECIPE --help shows its options.", None),
    "reproduce": ("Repeat the experiments that the documentation reports.", reproducing),
    "report": ("Draw the report of a finished run, or of every run in a directory.", reporting),
    "serve": ("Serve a classifier over HTTP, to be attacked.", serving),
    "export": ("Write a model as safetensors, StableHLO, ONNX or PyTorch.", exporting),
    "dataset-inference": ("Test whether a model was made from your data.", dataset_inference),
    "watermark": ("Mark a network by a backdoor, and verify such a mark.", watermark),
    "doctor": ("Say what this machine can do, what is missing and what would help.", doctor),
}
"""What each command is called, says of itself, and is: a module with ``add_options`` and
``execute``.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: arguments without the program's name; those of the process by default.

    Returns:
      The exit code: 0, 1 (it failed, and said why), 2 (the command was wrong) or 130 (interrupted);
        of a
      verdict 0 (shown), 3 (not shown) or 4 (the claim was refused before anything was asked).
    """
    degrade_text()
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
    parser = Parser(
        prog="dfke",
        description="Data-free knowledge extraction in JAX.",
        epilog=_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dfke {__version__}")
    shared = Parser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    for name, (summary, module) in _COMMANDS.items():
        made = commands.add_parser(
            name,
            help=summary,
            description=summary,
            parents=[shared],
            formatter_class=formatter,
            allow_abbrev=False,
        )
        if module is not None:
            module.add_options(made)
        made.set_defaults(action=module.execute if module is not None else lambda _: USAGE)
    return parser


def _guarded(action: Callable[[], int], argv: Sequence[str], debug: bool) -> int:
    """Runs a command and turns what can go wrong into one message and an exit code."""
    try:
        return action()
    except SystemExit as stop:
        return _code(stop)
    except BrokenPipeError:
        with contextlib.suppress(
            OSError, ValueError
        ):  # the reader has left: nothing more can be said
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
        return (
            USAGE
            if isinstance(error, UnknownNameError) and error.args[0].startswith("unknown recipe")
            else FAILED
        )


def _code(stop: SystemExit) -> int:
    if stop.code is None:
        return OK
    if isinstance(stop.code, int):
        return stop.code
    complain(str(stop.code))
    return FAILED


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["main"]
