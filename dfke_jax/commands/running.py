"""``dfke run RECIPE``: every field of a recipe's configuration is an option, parsed by tyro."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dfke_jax.commands.common import OK, USAGE, complain, console, enable_compilation_cache

if TYPE_CHECKING:
    from dfke_jax.experiments.bench.registry import Recipe


def split(rest: list[str]) -> tuple[str, list[str], bool]:
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
        complain(f"the recipe comes first: dfke run RECIPE {shlex.join(rest)}")
        raise SystemExit(USAGE)
    return rest[0], rest[1:], "--debug" in rest


def execute(name: str, rest: list[str]) -> int:
    """Runs a recipe, prints its table and draws its report."""
    from dfke_jax.core.mesh import split_cpu
    from dfke_jax.experiments.bench.registry import recipe as find

    recipe = find(name)
    try:
        options = _parse_run(recipe, rest)
    except ValueError as error:  # a setting out of range; InputError is one
        complain(f"error: {error}")
        return USAGE
    config = options.settings
    out = options.out or Path("runs") / f"{recipe.name}-{slug(config.dataset)}"
    _refuse_finished(out, options.resume)
    split_cpu(options.devices)
    enable_compilation_cache()

    from dfke_jax.experiments.bench.run import run_recipe

    result = run_recipe(
        recipe, config, out=out, data_dir=options.data_dir, resume=options.resume, progress=not options.quiet
    )

    from dfke_jax import report

    page = report.render(out)  # before anything is printed: a terminal may be gone by now
    screen = console()
    screen.print(report.table(result))
    for sentence in report.verdict(result):
        screen.print(sentence, markup=False)
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
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                Options,
                default=Options(settings=default),
                args=list(rest),
                prog=f"dfke run {recipe.name}",
                description=about,
            )
    except SystemExit as stop:
        if stop.code == USAGE:
            complain(f"error: {_unboxed(said.getvalue())} (see dfke run {recipe.name} --help)")
        raise


def _unboxed(text: str) -> str:
    """What tyro says of a wrong option, in one line: the text of its box above the first rule."""
    lines = [line.strip("╭╮╰╯│ \t") for line in text.splitlines()]
    body = lines[1:] if lines and lines[0].startswith("─") else lines  # the first has the title
    above = itertools.takewhile(lambda line: not line.startswith("─"), body)
    return " ".join(line for line in above if line)


def slug(dataset: str) -> str:
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
