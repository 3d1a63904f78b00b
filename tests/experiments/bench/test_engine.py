"""The engine over recipes: seeds in their turn or apart, taken up again, and what it refuses of a recipe."""

import dataclasses
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import tiny

from dfke_jax import core
from dfke_jax.core.errors import UnknownNameError
from dfke_jax.experiments import Arm, Recipe, Result, merge, recipe, run_recipe
from dfke_jax.experiments.bench.settings import SupervisedSettings

SETTINGS = SupervisedSettings(seeds=3, teacher="mlp_small", teacher_steps=5, teacher_batch=8)
DRAW = core.method(lambda key: jnp.zeros(()), lambda key, n: (n + jax.random.uniform(key), {"n": n}))


def arms(config):
    return [Arm("teacher", f"Teacher ({config.teacher})", "teacher"), Arm("draw", "A number", "method")]


def prepare(bench):
    bench.notes.append("What all seeds share.")
    return 10.0


def measure(run):
    run.record("teacher", run.teacher, budget=run.bench.supervised_budget)
    drawn = run.stage("drawing", "draw", DRAW, 2)
    noise = run.once("noise", lambda: np.random.default_rng(run.seed).normal(size=3))
    run.enter("draw", {"drawn": drawn, "shared": run.shared})
    run.enter("draw", {"noise": float(noise.sum())}, accuracy=50.0 + run.seed, budget={"numbers": 3})
    run.note("Said by every seed.", f"Said by seed {run.seed}.")


def small(**changes):
    made = {"arms": arms, "measure": measure, "prepare": prepare, **changes}
    return Recipe("small", "Small", "", "", SupervisedSettings, **made)


def ran(entry, out, **options):
    return run_recipe(entry, SETTINGS, out=out, progress=False, devices=1, **options)


@pytest.mark.slow
def test_seeds_in_their_turn_are_the_seeds_apart(tmp_path):
    whole = ran(small(), tmp_path / "whole")
    teacher, draw = whole.arms
    assert (teacher.label, len(teacher.accuracy), teacher.agreement) == ("Teacher (mlp_small)", 3, [])
    assert draw.accuracy == [50.0, 51.0, 52.0]
    assert draw.metrics["shared"] == [10.0] * 3
    assert len(set(draw.metrics["drawn"])) == len(set(draw.metrics["noise"])) == 3
    assert draw.metrics["noise"][2] == float(np.random.default_rng(2).normal(size=3).sum())
    assert draw.budget == {"numbers": 3}
    said = ["What all seeds share.", "Said by every seed.", *(f"Said by seed {seed}." for seed in range(3))]
    assert whole.notes[:-1] == said
    parts = [ran(small(), tmp_path / f"part{seed}", seeds=[seed]) for seed in (2, 0, 1)]
    assert merge(parts).arms == whole.arms
    assert set(merge(parts).notes) == set(whole.notes)


class Writer(list):
    """In the place of TensorBoard's."""

    def __init__(self, directory):
        OPENED.append(self)
        self.closed = False

    def add_scalar(self, name, value, step):
        self.append((name, step))

    def close(self):
        self.closed = True


OPENED: list[Writer] = []


def test_metrics_of_the_stages_reach_a_tracker_that_is_asked_for(tmp_path, monkeypatch):
    OPENED.clear()
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    ran(small(), tmp_path / "run", track=("tensorboard",))
    (writer,) = OPENED
    assert writer.closed
    assert set(writer) == {(f"seed{seed}/draw/n", step) for seed in range(3) for step in (1, 2)}
    assert (tmp_path / "run" / "metrics.jsonl").exists()

    def fails(run):
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        ran(small(measure=fails), tmp_path / "failed", track=("tensorboard",))
    assert OPENED[1].closed


def test_a_tracker_without_its_library_is_told_before_anything_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(core.InputError, match="pip install wandb"):
        ran(small(), tmp_path / "run", track=("wandb",))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_progress_bars_say_which_seed_and_stage_this_is(tmp_path, monkeypatch):
    titles = []

    def watched(*arguments, progress, **options):
        titles.append(progress)
        return core.run(*arguments, **options)

    monkeypatch.setattr("dfke_jax.experiments.bench.workbench.run", watched)
    settings = dataclasses.replace(SETTINGS, teacher_steps=6)  # no teachers of other tests
    run_recipe(small(), settings, out=tmp_path / "run", devices=1)
    assert titles == [
        "seed 1/3, stage 1: teacher",
        "seed 1/3, stage 2: draw",
        "seed 2/3, stage 1/2: teacher",
        "seed 2/3, stage 2/2: draw",
        "seed 3/3, stage 1/2: teacher",
        "seed 3/3, stage 2/2: draw",
    ]


def test_a_run_that_was_stopped_measures_no_seed_again(tmp_path):
    measured = []

    def stopped(run):
        measured.append(run.seed)
        if measured.count(1) == 1:
            raise KeyboardInterrupt
        measure(run)

    with pytest.raises(KeyboardInterrupt):
        ran(small(measure=stopped), tmp_path / "run")
    found = ran(small(measure=stopped), tmp_path / "run", resume=True)
    assert measured == [0, 1, 1, 2]
    whole = ran(small(), tmp_path / "whole")
    assert (found.arms, found.notes) == (whole.arms, whole.notes)


def test_arms_that_are_others_now_are_not_filled_with_old_figures(tmp_path):
    ran(small(), tmp_path / "run")
    renamed = small(arms=lambda config: [*arms(config)[:1], Arm("draw", "Another number", "method")])
    with pytest.raises(core.CheckpointError, match="another configuration"):
        ran(renamed, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"arms": lambda config: [*arms(config), *arms(config)]}, ValueError, "two arms of small have one name"),
        ({"measure": lambda run: run.enter("teacher", {"x": 1.0})}, ValueError, "nothing for draw at seed 0"),
        ({"measure": lambda run: run.enter("drawn", {"x": 1.0})}, UnknownNameError, "nearest: draw"),
        ({"measure": lambda run: [run.enter("draw", accuracy=1.0) for _ in "ab"]}, ValueError, "recorded before"),
        ({"measure": lambda run: [run.enter("draw", {"x": 1.0}) for _ in "ab"]}, ValueError, "x of draw was entered"),
    ],
)
def test_what_a_recipe_must_not_do(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        ran(small(**changes), tmp_path / "run")


_PART = """
import pickle, sys
import jax
jax.config.update("jax_num_cpu_devices", 1)
from dfke_jax.experiments import recipe, run_recipe
name, settings, seed, out = pickle.load(sys.stdin.buffer)
run_recipe(recipe(name), settings, out=out, progress=False, devices=1, seeds=[seed])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zskd", "dafl", "knockoff"])
def test_seeds_in_processes_of_their_own_give_the_figures_of_one_process(name, tmp_path):
    import pickle

    from dfke_jax.distillation import DAFLSettings
    from dfke_jax.extraction import CloneTraining, PoolAttackSettings

    learnt = CloneTraining(steps=4, batch_size=8, optimizer="adam", decay_at=())
    changes = {
        "zskd": {"samples": 40, "synthesis_batch": 20},
        "dafl": {"iterations": 3, "method": DAFLSettings(batch_size=8, latent=4, width=2)},
        "knockoff": {"budgets": (45,), "attack": PoolAttackSettings(rows_per_step=10, clone=learnt)},
    }
    settings = tiny(name, changes[name])
    whole = run_recipe(recipe(name), settings, out=tmp_path / "whole", progress=False, devices=1)
    environment = {**os.environ, "DFKE_CACHE_DIR": str(tmp_path / "cache")}
    for seed in range(2):
        given = pickle.dumps((name, settings, seed, tmp_path / f"seed{seed}"))
        subprocess.run([sys.executable, "-c", _PART], input=given, check=True, env=environment)
    parts = [Result.read(tmp_path / f"seed{seed}") for seed in range(2)]
    assert merge(parts).arms == whole.arms
    assert dataclasses.replace(merge(parts), seconds={}).metrics == whole.metrics
