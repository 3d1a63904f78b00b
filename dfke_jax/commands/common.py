"""What commands share: exit codes, messages, tables, options, and the cache of compiled programs."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

OK, FAILED, USAGE, NOT_SHOWN, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Exit codes. Of a verdict, `OK` is the claim shown, `NOT_SHOWN` that it is not, and `REFUSED` that
what it rests on (a key, its commitments) does not hold, so that nothing was asked."""


def degrade_text() -> None:
    """Prints what the terminal's encoding does not have as an escape, where it would be an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def enable_compilation_cache() -> Path | None:
    """Keeps compiled programs on disk, so that the second run of anything starts at once.

    The directory is ``programs-<version of jaxlib>`` in DFKE_CACHE_DIR or ``~/.cache/dfke_jax``. A
    directory that is already set (JAX_COMPILATION_CACHE_DIR) is left as it is.

    Returns:
      The directory, or None where none can be written: a cache is a convenience, and no reason to
        stop.
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


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where the real data sets are (default: DFKE_DATA_DIR)",
    )


def whole(least: int = 0, most: float = math.inf) -> Callable[[str], int]:
    """An argparse type: whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            upto = f"from {least} to {most}" if most < math.inf else f"of at least {least}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {upto}")
        return value

    return parse


def number(
    *, above: float = -math.inf, least: float = -math.inf, below: float = math.inf
) -> Callable[[str], float]:
    """An argparse type: finite numbers above one, at least one and below one."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and above < value < below and value >= least):
            bounds = (("above", above), ("at least", least), ("below", below))
            said = " and ".join(
                f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound)
            )
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number{said and ' '}{said}")
        return value

    return parse


positive = whole(1)
share = number(above=0, below=1)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command in one line; ``--help`` has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def complain(message: str) -> None:
    print(f"dfke: {message}", file=sys.stderr)


def console():
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def table(*columns: str, **style: Any):
    from rich import box
    from rich.table import Table

    return Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, **style)
