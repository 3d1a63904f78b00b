"""From a recipe and its configuration to a `Result` on disk."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfke_jax.core.checkpoint import alone, writable_directory, write_whole
from dfke_jax.core.errors import CheckpointError, InputError
from dfke_jax.experiments.bench.registry import Recipe
from dfke_jax.experiments.bench.result import Result, environment
from dfke_jax.experiments.bench.settings import Settings
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.nn.precision import compute_precision


def run_recipe(
    recipe: Recipe,
    config: Settings | None = None,
    *,
    out: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool = True,
    devices: int | None = None,
    seeds: Sequence[int] | None = None,
) -> Result:
    """Runs a recipe and writes its `result.json`.

    Args:
      recipe: see `dfke_jax.experiments.recipe`.
      config: its settings; those of its default data set if None.
      out: directory for everything the run leaves. Without `resume` it must not hold another run.
      data_dir: where data sets are found.
      resume: go on with what is in `out`; stages that are done are not repeated.
      progress: whether progress bars are shown.
      devices: how many devices samples and batches are split over; all by default.
      seeds: those of the configuration's that are run here, when several processes share a recipe (see
        `dfke_jax.experiments.merge`); all by default.

    Returns:
      The `Result`.

    Raises:
      CheckpointError: `out` holds a run already (without `resume`), or one of other settings (with it), or another
        process is at work in it.
    """
    config = config or recipe.settings()
    assert config is not None
    if seeds is not None and not recipe.by_seed:
        raise InputError(f"the seeds of {recipe.name} are compared with one another and must run together")
    out = writable_directory(out)
    with alone(out / "run", wait=False):
        _claim(out, recipe, config, resume)
        return _run(recipe, config, out, data_dir, progress, devices, seeds)


def _run(
    recipe: Recipe,
    config: Settings,
    out: Path,
    data_dir: str | os.PathLike | None,
    progress: bool,
    devices: int | None,
    seeds: Sequence[int] | None,
) -> Result:
    bench = Workbench(config, out, data_dir=data_dir, progress=progress, devices=devices, only=seeds)
    with compute_precision(config.precision):
        arms = recipe.execute(config, bench)
    result = Result(
        recipe=recipe.name,
        title=recipe.title,
        dataset=config.dataset,
        config=as_written(config),
        seeds=bench.seeds,
        arms=list(arms),
        published=[figure for figure in recipe.published if figure.dataset == config.dataset],
        seconds=bench.account.closed(),
        environment=environment(),
        notes=[*bench.notes, f"Data: {bench.dataset.source}"],
    )
    result.write(out)
    return result


def as_written(config: Any) -> dict[str, Any]:
    """Settings as a result's JSON holds them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _claim(out: Path, recipe: Recipe, config: Settings, resume: bool) -> None:
    """Marks a directory as this run's, or refuses."""
    mine = {"recipe": recipe.name, "config": as_written(config)}
    path = out / "config.json"
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except json.JSONDecodeError:
            found = None  # cut off while it was written: nothing had begun
        if found is not None and found != mine:
            differing = [
                name for name in {*found.get("config", {}), *mine["config"]}
                if found.get("config", {}).get(name) != mine["config"].get(name)
            ]  # fmt: skip
            what = (
                f"recipe {found.get('recipe')!r}"
                if found.get("recipe") != recipe.name
                else f"other settings of {', '.join(sorted(differing))}"
            )
            raise CheckpointError(f"{out} holds a run of {what}; choose another --out, or repeat that run's settings")
        if found is not None and not resume:
            raise CheckpointError(f"{out} holds a run already; choose another --out, or go on with it by --resume")
    write_whole(path, json.dumps(mine, indent=1) + "\n")


__all__ = ["as_written", "run_recipe"]
