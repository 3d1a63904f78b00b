"""Seeds that run apart and are put together."""

import dataclasses
import subprocess
import sys

import pytest

from dfke_jax.core.checkpoint import alone
from dfke_jax.core.errors import InputError, ReproductionError
from dfke_jax.experiments import Arm, Result, merge, recipe, reproduce, run_recipe
from dfke_jax.experiments.documented import Experiment

CONFIG = {"seed": 2, "seeds": 3, "steps": 7}


def part(*seeds, **changes):
    arms = [
        Arm("teacher", "Teacher", "teacher", [90.0 + seed for seed in seeds], budget={"real_samples": 10}),
        Arm(
            "student",
            "Student",
            "method",
            [80.0 + s for s in seeds],
            [70.0 + s for s in seeds],
            {},
            {"x": [0.5] * len(seeds)},
        ),
    ]
    made = Result(
        "r", "R", "digits", CONFIG, list(seeds), arms, [], {"total": 2.0 * len(seeds)}, {"jax": "1"}, [f"n{seeds[0]}"]
    )
    return dataclasses.replace(made, **changes)


def test_parts_make_the_whole_in_the_order_of_seeds():
    whole = merge([part(4), part(2, 3)])
    assert whole.seeds == [2, 3, 4]
    assert whole.arms[0].accuracy == [92.0, 93.0, 94.0]
    assert (whole.arms[1].agreement, whole.arms[1].metrics) == ([72.0, 73.0, 74.0], {"x": [0.5] * 3})
    assert whole.seconds == {"total": 6.0}
    assert whole.notes == ["n2", "n4"]
    assert whole.stages == {}


def test_seconds_of_stages_are_added_up_where_all_parts_have_them():
    first, second = part(2, 3, stages={"student/duel": 4.0, "other/duel": 1.0}), part(4, stages={"student/duel": 2.0})
    whole = merge([second, first])
    assert whole.stages == {"student/duel": 6.0, "other/duel": 1.0}
    assert whole.taken_by(whole.arms[1]) == 2.0
    assert whole.taken_by(whole.arms[0]) is None
    assert merge([part(4), first]).stages == {}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "nothing to merge"),
        ([part(2), part(4)], r"run has seeds \[2, 3, 4\], and these parts have \[2, 4\]"),
        ([part(2, 3), part(3, 4)], r"these parts have \[2, 3, 3, 4\]"),
        ([part(2, 3), part(4, config={**CONFIG, "steps": 8})], "other settings"),
        ([part(2, 3), part(4, arms=[])], "other arms"),
    ],
)
def test_what_does_not_belong_together_is_refused(parts, message):
    with pytest.raises(InputError, match=message):
        merge(parts)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """An experiment of two seeds that takes no time, in an empty directory."""
    monkeypatch.setenv("DFKE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    changes = {"teacher": "mlp_small", "student": "mlp_small", "teacher_steps": 3, "distillation_steps": 3, "seeds": 2}
    experiment = Experiment("anchors", "digits", "", "", changes)
    monkeypatch.setitem(reproduce.EXPERIMENTS, "small", experiment)
    return experiment.config()


@pytest.mark.slow
def test_seeds_apart_give_the_figures_of_seeds_in_turn(small, tmp_path):
    anchors = recipe("anchors")
    whole = run_recipe(anchors, small, out=tmp_path / "whole", progress=False)
    apart = [run_recipe(anchors, small, out=tmp_path / f"s{s}", progress=False, seeds=[s]) for s in (1, 0)]
    assert merge(apart).metrics == whole.metrics
    with pytest.raises(InputError, match="not all among"):
        run_recipe(anchors, small, out=tmp_path / "other", seeds=[2])


class Child:
    """Stands for a process: it is done at once, and wrote a result unless it failed."""

    def __init__(self, command, *, stdout, env, **_):
        self.returncode, seed = 0, int(command[command.index("--seed") + 1])
        self.pid = f"seed {seed}"
        assert env["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
        assert command[command.index("--devices") + 1] == "1"
        stdout.write(f"seed {seed}\n")
        if seed == Child.fails:
            self.returncode = 1
            return
        config = reproduce.EXPERIMENTS["small"].config()
        result = part(seed, config={**dataclasses.asdict(config)})
        result.write(reproduce._work("small", seed))

    def poll(self):
        return self.returncode


@pytest.mark.slow
def test_a_finished_seed_is_read_and_one_of_other_settings_is_not(small, monkeypatch, tmp_path):
    reproduce.run_experiment("small", tmp_path, progress=False, seed=1)
    whole = Result.read(reproduce._work("small", 1))
    monkeypatch.setattr(reproduce, "run_recipe", lambda *_, **__: "run again")
    assert reproduce.run_experiment("small", tmp_path, progress=False, seed=1) == whole
    assert reproduce.run_experiment("small", tmp_path, progress=False, seed=0) == "run again"
    whole.config["teacher_steps"] += 1
    whole.write(reproduce._work("small", 1))
    assert reproduce.run_experiment("small", tmp_path, progress=False, seed=1) == "run again"


def test_jobs_run_seeds_in_processes_and_say_which_failed(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(reproduce.subprocess, "Popen", Child)
    cores = {}
    monkeypatch.setattr(reproduce.os, "sched_getaffinity", lambda _: {4, 5, 7}, raising=False)
    monkeypatch.setattr(reproduce.os, "sched_setaffinity", cores.__setitem__, raising=False)
    Child.fails = 1
    with pytest.raises(ReproductionError, match=r"1 of the processes failed: small, seed 1 \(see .*log.txt\)"):
        reproduce.main(["small"], out=tmp_path / "results", jobs=2)
    assert not (tmp_path / "results" / "small.json").exists()
    assert cores == {"seed 0": {4, 7}, "seed 1": {5}}
    Child.fails = None
    (result,) = reproduce.main(["small"], out=tmp_path / "results", jobs=1)
    assert cores == {"seed 0": {4, 5, 7}, "seed 1": {4, 5, 7}}
    assert reproduce._shares(4) == [{4}, {5}, {7}, {4}]
    assert result.seeds == [0, 1]
    assert Result.read(tmp_path / "results" / "small.json").arms == result.arms
    assert "done   small, seed 0" in capsys.readouterr().out
    assert (tmp_path / "runs/reproduce/small/seed1/log.txt").read_text() == "seed 1\nseed 1\n"
    with pytest.raises(InputError, match="jobs must be at least 1"):
        reproduce.main(["small"], out=tmp_path, jobs=0)


HOLDER = """
import sys, time
from dfke_jax.core.checkpoint import alone
with alone(sys.argv[1]):
    print("held", flush=True)
    time.sleep(0.5)
    print("free", flush=True)
"""


def test_a_directory_is_held_by_one_process_at_a_time(tmp_path):
    place = tmp_path / "place"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(place)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with alone(place):
            assert other.stdout.readline() == "free\n"
        assert other.wait(60) == 0
