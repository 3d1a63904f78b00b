"""Runs the documented experiments, one after another or a process a seed, and keeps their results."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dfke_jax.core.errors import InputError, ReproductionError, UnknownNameError
from dfke_jax.experiments.bench.merge import merge
from dfke_jax.experiments.bench.registry import recipe
from dfke_jax.experiments.bench.result import Result
from dfke_jax.experiments.bench.run import as_written, run_recipe
from dfke_jax.experiments.bench.settings import Settings
from dfke_jax.experiments.documented import EXPERIMENTS


def main(
    names: Sequence[str] = (),
    *,
    out: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    progress: bool = True,
    jobs: int | None = None,
) -> list[Result]:
    """Runs experiments and keeps their results; what is done is not repeated.

    Args:
      names: of `EXPERIMENTS`; all by default.
      out: directory that receives ``NAME.json``. Everything else goes to ``runs/reproduce/NAME``.
      data_dir: where data sets are found.
      progress: whether progress bars are shown.
      jobs: by default one experiment runs after another, in this process. With a number, every seed of every experiment runs
        in a process of its own, so many at a time, each on one device and with its share of the cores, and results are put
        together as seeds come in; the figures are those of one device. What a process prints goes to ``runs/reproduce/NAME/seedK/log.txt``.

    Raises:
      InputError: `jobs` below one.
      ReproductionError: with `jobs`, when processes failed; the others were waited for and their results are there.
    """
    for name in names:
        if name not in EXPERIMENTS:
            raise UnknownNameError("experiment", name, EXPERIMENTS)
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs must be at least 1, got {jobs}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    chosen = list(names or EXPERIMENTS)
    if jobs is not None:
        return _side_by_side(chosen, out, data_dir, jobs)
    return [run_experiment(name, out, data_dir=data_dir, progress=progress) for name in chosen]


def run_experiment(
    name: str,
    out: Path,
    *,
    data_dir: str | os.PathLike | None = None,
    progress: bool = True,
    seed: int | None = None,
) -> Result:
    """Runs one experiment, or one seed of it.

    Args:
      name: of `EXPERIMENTS`. out, data_dir, progress: as for `main`. A finished run is read, not repeated; remove its
        directory to have it anew.
      seed: the only one to run; its result stays in ``runs/reproduce/NAME/seedK``.
    """
    experiment = EXPERIMENTS[name]
    work, config = _work(name, seed), experiment.config()
    seeds = None if seed is None else [seed]
    result = _finished(work, config, seeds) or run_recipe(
        recipe(experiment.recipe), config, out=work, data_dir=data_dir, resume=True, progress=progress, seeds=seeds
    )
    if seed is None:
        shutil.copy(work / "result.json", out / f"{name}.json")
    return result


def _finished(work: Path, config: Settings, seeds: list[int] | None) -> Result | None:
    """The result that a directory holds already, if it is of these settings and seeds."""
    if not (work / "result.json").exists():
        return None
    found = Result.read(work)
    wanted = list(_seeds(config)) if seeds is None else seeds
    return found if (found.config, found.seeds) == (as_written(config), wanted) else None


def _work(name: str, seed: int | None = None) -> Path:
    whole = Path("runs") / "reproduce" / name
    return whole if seed is None else whole / f"seed{seed}"


def _seeds(config: Settings) -> range:
    return range(config.seed, config.seed + config.seeds)


class _Job(NamedTuple):
    name: str
    seed: int
    place: int
    process: subprocess.Popen


def _side_by_side(names: list[str], out: Path, data_dir: str | os.PathLike | None, jobs: int) -> list[Result]:
    """A process for every seed; those of the first experiments begin first."""
    waiting = [(name, seed) for name in names for seed in _seeds(EXPERIMENTS[name].config())]
    left = {name: sum(other == name for other, _ in waiting) for name in names}
    running: list[_Job] = []
    shares = _shares(jobs)
    failed: dict[str, list[str]] = {}
    results: dict[str, Result] = {}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                place = min(set(range(jobs)) - {job.place for job in running})
                running.append(_start(*waiting.pop(0), out, data_dir, place, shares[place]))
            time.sleep(0.2)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                left[job.name] -= 1
                title = f"{job.name}, seed {job.seed}"
                if job.process.returncode:
                    failed.setdefault(job.name, []).append(f"{title} (see {_work(job.name, job.seed) / 'log.txt'})")
                print(f"{'failed' if job.process.returncode else 'done  '} {title}", flush=True)
                if not left[job.name] and job.name not in failed:
                    results[job.name] = _together(job.name, out)
    finally:
        signal.signal(signal.SIGTERM, before)
        for job in running:  # interrupted: each saves what it has
            job.process.terminate()
        for job in running:
            job.process.wait()
    if failed:
        texts = [text for group in failed.values() for text in group]
        raise ReproductionError(f"{len(texts)} of the processes failed: {'; '.join(texts)}")
    return [results[name] for name in names]


def _shares(jobs: int) -> list[set[int]]:
    """The cores of each of so many places; empty where the system does not tell.

    Threads of several processes on the same cores wait for one another after every operation.
    """
    if not hasattr(os, "sched_setaffinity"):
        return [set()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[place::jobs]) or {cores[place % len(cores)]} for place in range(jobs)]


def _start(name: str, seed: int, out: Path, data_dir: str | os.PathLike | None, place: int, cores: set[int]) -> _Job:
    command = [sys.executable, "-m", "dfke_jax.cli", "reproduce", name, "--seed", str(seed)]
    command += ["--out", str(out), "--devices", "1"]
    command += [] if data_dir is None else ["--data-dir", str(data_dir)]
    work = _work(name, seed)
    work.mkdir(parents=True, exist_ok=True)
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}  # one GPU has to do for all of them
    with (work / "log.txt").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if cores:
        os.sched_setaffinity(process.pid, cores)  # long before it starts its threads
    return _Job(name, seed, place, process)


def _together(name: str, out: Path) -> Result:
    """The result of an experiment whose seeds are all there."""
    result = merge([Result.read(_work(name, seed)) for seed in _seeds(EXPERIMENTS[name].config())])
    shutil.copy(result.write(_work(name)), out / f"{name}.json")
    return result


__all__ = ["EXPERIMENTS", "main", "run_experiment"]
