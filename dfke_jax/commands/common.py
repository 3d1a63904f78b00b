"""What commands share: exit codes, messages, tables, options, and the cache of compiled programs."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


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


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where the real data sets are (default: DFKE_DATA_DIR)",
    )


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def complain(message: str) -> None:
    print(f"dfke: {message}", file=sys.stderr)


def console():
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def table(*columns: str, **style: Any):
    from rich import box
    from rich.table import Table

    return Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, **style)
