"""``dfke run RECIPE``: every field of a recipe's configuration is an option, parsed by tyro."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dfke_jax.commands.common import OK, USAGE, complain, console, enable_compilation_cache

if TYPE_CHECKING:
    from dfke_jax.experiments.bench.registry import Recipe


_ALIASES = {"--victim": "--teacher", "--budget": "--budgets"}
"""What an attack's user would call the teacher, and one budget, where the recipe has no option of that name."""


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
        recipe,
        config,
        out=out,
        data_dir=options.data_dir,
        resume=options.resume,
        progress=not options.quiet,
        track=options.track,
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

    own = {f"--{field.name}" for field in dataclasses.fields(recipe.config)}
    aliases = {alias: name for alias, name in _ALIASES.items() if alias not in own}
    rest = [
        aliases.get(text.split("=")[0], text.split("=")[0]) + text[len(text.split("=")[0]) :]
        for text in rest
    ]
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--dataset")
    peek.add_argument("--config")
    try:
        given = peek.parse_known_args(rest)[0]
    except argparse.ArgumentError:
        # an option without a value: tyro says so
        given = argparse.Namespace(dataset=None, config=None)
    written = read_config(Path(given.config), recipe.name) if given.config else {}
    default = with_written(recipe.settings(given.dataset or written.get("dataset")), written)

    @dataclasses.dataclass(frozen=True)
    class Options:
        settings: Annotated[type(default), tyro.conf.arg(name="")]  # pyright: ignore[reportInvalidTypeForm]
        """What the recipe does, and with how much."""
        data_dir: Path | None = None
        """Directory of the real data sets; DFKE_DATA_DIR if it is not given."""
        out: Path | None = None
        """Where the result, samples, checkpoints and report go; runs/RECIPE-DATASET by default."""
        config: Path | None = None
        """A run's config.json: its settings are the defaults here."""
        resume: tyro.conf.FlagCreatePairsOff[bool] = False
        """Continue the run that this directory holds."""
        quiet: tyro.conf.FlagCreatePairsOff[bool] = False
        """No progress bars."""
        track: tuple[Literal["tensorboard", "wandb"], ...] = ()
        """Where the metrics of the stages go besides metrics.jsonl: tensorboard, wandb."""
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


def read_config(path: Path, recipe: str) -> dict[str, Any]:
    """The settings in a run's ``config.json``.

    Raises:
      InputError: for a file that cannot be read, or is of another recipe.
    """
    from dfke_jax.core.errors import InputError

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        whose, settings = found["recipe"], dict(found["config"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"--config {path} is no config.json of a run: {error}") from error
    if whose != recipe:
        raise InputError(f"--config {path} is of the recipe {whose!r}, not {recipe!r}")
    return settings


def with_written(settings: Any, written: dict[str, Any], within: str = "") -> Any:
    """Settings with the values that JSON holds of others of their kind; lists become tuples.

    Raises:
      InputError: for names that they do not have, and values out of range.
    """
    from dfke_jax.core.errors import InputError

    fields = {field.name: field for field in dataclasses.fields(settings)}
    changes = {}
    for name, value in written.items():
        if name not in fields:
            raise InputError(f"--config: there is no setting {within}{name}")
        if not fields[name].init:  # it follows from the others
            continue
        old = getattr(settings, name)
        if isinstance(old, dict) and isinstance(value, dict):
            parts = {
                key: _like(old.get(key), part, f"{within}{name}.{key}.")
                for key, part in value.items()
            }
            changes[name] = {**old, **parts}
        else:
            changes[name] = _like(old, value, f"{within}{name}.")
    return dataclasses.replace(settings, **changes)


def _like(old: Any, value: Any, within: str) -> Any:
    return with_written(old, value, within) if dataclasses.is_dataclass(old) else _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _unboxed(text: str) -> str:
    """What tyro says of a wrong option, in one line: the text of its box above the first rule."""
    lines = [line.strip("╭╮╰╯│ \t") for line in text.splitlines()]
    body = lines[1:] if lines and lines[0].startswith("─") else lines  # the first has the title
    above = itertools.takewhile(lambda line: not line.startswith("─"), body)
    return " ".join(line for line in above if line)


def slug(dataset: str) -> str:
    """A data set's name in a directory's: ``emnist/letters`` is emnist-letters, ``mine.npz`` and
    ``mine.csv:COLUMN`` are mine.
    """
    from dfke_jax.data.csv_files import file_of, is_csv

    if is_csv(dataset):
        dataset = Path(file_of(dataset)).name.split(".csv")[0]
    name = Path(dataset).stem if dataset.endswith(".npz") else dataset
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.") or "data"


def _refuse_finished(out: Path, resume: bool) -> None:
    from dfke_jax.core.errors import InputError

    if not resume and (out / "result.json").exists():
        raise InputError(
            f"{out} already holds a finished run (result.json) and nothing is overwritten; choose "
            "another --out, or --resume to complete it with the same settings"
        )
