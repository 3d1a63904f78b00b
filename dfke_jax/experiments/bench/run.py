"""From a recipe and its configuration to a `Result` on disk."""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfke_jax.core.checkpoint import alone, writable_directory, write_whole
from dfke_jax.core.errors import CheckpointError, InputError
from dfke_jax.core.tracking import Tracker, check_trackers, open_tracker
from dfke_jax.experiments.bench.merge import joined
from dfke_jax.experiments.bench.registry import Recipe, recipes
from dfke_jax.experiments.bench.result import Arm, Result, environment
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import Settings
from dfke_jax.experiments.bench.timing import by_stage
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
    track: Sequence[str] = (),
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
      track: names of `dfke_jax.core.tracking.TRACKERS` that receive the metrics of the stages as well.

    Returns:
      The `Result`.

    Raises:
      CheckpointError: `out` holds a run already (without `resume`), or one of other settings (with it), or another
        process is at work in it.
      InputError: a tracker's library is missing; nothing has begun then.
    """
    config = config or recipe.settings()
    assert config is not None
    check_trackers(track)
    out = writable_directory(out)
    with alone(out / "run", wait=False):
        claimed = _claim(out, recipe, config, resume)
        try:
            with contextlib.ExitStack() as stack:
                settings, title = as_written(config), f"{recipe.name} {config.dataset}"
                trackers = [
                    stack.enter_context(contextlib.closing(open_tracker(name, out, title, settings))) for name in track
                ]
                return _run(recipe, config, out, data_dir, progress, devices, seeds, trackers)
        except BaseException:
            if claimed and {path.name for path in out.iterdir()} <= {"config.json", "run.lock"}:
                (out / "config.json").unlink()  # refused before anything was done: the directory is nobody's
            raise


def _run(
    recipe: Recipe,
    config: Settings,
    out: Path,
    data_dir: str | os.PathLike | None,
    progress: bool,
    devices: int | None,
    seeds: Sequence[int] | None,
    trackers: Sequence[Tracker],
) -> Result:
    bench = Workbench(config, out, data_dir=data_dir, progress=progress, devices=devices, only=seeds, trackers=trackers)
    with compute_precision(config.precision), contextlib.closing(bench):
        _check_data(recipe, bench)
        names = bench.dataset.class_names
        if bench.dataset.unequal and names != tuple(map(str, range(len(names)))):
            bench.notes.append(f"Classes by number: {', '.join(f'{k} {name}' for k, name in enumerate(names))}.")
        arms = _over_seeds(recipe, bench)
    result = Result(
        recipe=recipe.name,
        title=recipe.title,
        dataset=config.dataset,
        config=as_written(config),
        seeds=bench.seeds,
        arms=arms,
        published=[figure for figure in recipe.published if figure.concerns(config)],
        seconds=bench.account.closed(),
        environment=environment(),
        notes=list(dict.fromkeys([*bench.notes, f"Data: {bench.dataset.source}"])),
        stages=by_stage(bench.account.stages),
    )
    result.write(out)
    return result


def _over_seeds(recipe: Recipe, bench: Workbench) -> list[Arm]:
    """Every seed in its turn; one that is done is read."""
    arms = list(recipe.arms(bench.config))
    if len({arm.name for arm in arms}) < len(arms):
        raise ValueError(f"two arms of {recipe.name} have one name: {[arm.name for arm in arms]}")
    shared = recipe.prepare(bench) if recipe.prepare else None
    parts = []
    for seed in bench.seeds:
        bench.begin_seed(seed)
        make = functools.partial(_one_seed, recipe, bench, seed, arms, shared)
        found = bench.once("figures", seed, make, *arms)
        bench.notes += found["notes"]
        parts.append([Arm.from_json(arm) for arm in found["arms"]])
    return [joined(same) for same in zip(*parts, strict=True)]


def _one_seed(recipe: Recipe, bench: Workbench, seed: int, arms: Sequence[Arm], shared: Any) -> dict[str, Any]:
    """What a recipe records for one seed."""
    run = Run(bench, seed, arms, shared)
    recipe.measure(run)
    measured = lambda arm: arm.accuracy or arm.agreement or arm.metrics or (run.unmeasured and arm.budget)
    empty = [arm.name for arm in run.arms.values() if not measured(arm)]
    if empty:
        raise ValueError(f"{recipe.name} recorded nothing for {', '.join(empty)} at seed {seed}")
    return {"arms": [dataclasses.asdict(arm) for arm in run.arms.values()], "notes": run.notes}


def _check_data(recipe: Recipe, bench: Workbench) -> None:
    """Raises `InputError` for data that a recipe cannot do with."""
    if bench.dataset.schema is not None and not recipe.tables:
        raise InputError(
            f"{bench.config.dataset} is a table of feature vectors, and {recipe.name} needs images; with tables go "
            f"{', '.join(name for name, other in recipes().items() if other.tables)}"
        )
    if not bench.dataset.labelled and recipe.labels:
        raise InputError(f"{bench.config.dataset} has no labels, and {recipe.name} needs them")


def as_written(config: Any) -> dict[str, Any]:
    """Settings as a result's JSON holds them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _claim(out: Path, recipe: Recipe, config: Settings, resume: bool) -> bool:
    """Marks a directory as this run's, or refuses; whether it was nobody's before."""
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
    new = not path.exists()
    write_whole(path, json.dumps(mine, indent=1) + "\n")
    return new


__all__ = ["as_written", "run_recipe"]
