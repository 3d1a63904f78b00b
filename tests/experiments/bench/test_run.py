"""A run's directory is its own, and a run that was stopped ends in the same bits."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from small_runs import TINY, tiny

from dfke_jax.core.errors import CheckpointError
from dfke_jax.experiments import recipe, run_recipe

POOL = {"samples": 40, "synthesis_batch": 20}
_KILLED = """
import os, sys, jax
jax.config.update("jax_num_cpu_devices", 1)
from dfke_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


def untrained(name):
    """A recipe that enters the same accuracy for every arm: its directory is a run's, and nothing is trained."""
    figures = {"accuracy": 50.0, "budget": {"samples": 1}}
    return dataclasses.replace(
        recipe(name), prepare=None, measure=lambda run: [run.enter(arm, **figures) for arm in run.arms]
    )


def test_directory_of_another_run_is_refused(tmp_path):
    run_recipe(untrained("zskd"), tiny("zskd", POOL), out=tmp_path, progress=False, devices=1)
    with pytest.raises(CheckpointError, match="holds a run already"):
        run_recipe(recipe("zskd"), tiny("zskd", POOL), out=tmp_path, progress=False, devices=1)
    with pytest.raises(CheckpointError, match="other settings of samples"):
        run_recipe(
            recipe("zskd"), tiny("zskd", {**POOL, "samples": 60}), out=tmp_path, resume=True, progress=False, devices=1
        )
    with pytest.raises(CheckpointError, match="recipe 'zskd'"):
        run_recipe(
            recipe("data-impressions"),
            tiny("data-impressions", POOL),
            out=tmp_path,
            resume=True,
            progress=False,
            devices=1,
        )


@pytest.mark.slow
def test_finished_run_resumes_to_the_same_metrics_without_work(tmp_path):
    first = run_recipe(
        recipe("data-impressions"), tiny("data-impressions", POOL), out=tmp_path, progress=False, devices=1
    )
    lines = (tmp_path / "metrics.jsonl").read_text()
    again = run_recipe(
        recipe("data-impressions"), tiny("data-impressions", POOL), out=tmp_path, resume=True, progress=False, devices=1
    )
    assert again.metrics == first.metrics
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_unwritable_directory_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        run_recipe(recipe("zskd"), tiny("zskd", POOL), out=tmp_path / "file" / "run", progress=False, devices=1)


def _arguments(out):
    options = {**TINY, **POOL, "seeds": 1, "teacher_steps": 400, "distillation_steps": 800}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ["run", "zskd", "--dataset", "digits", "--out", str(out), "--quiet", "--synthesis.steps", "40", *flags]


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.3, 0.6, 0.9])
def test_killed_run_resumes_to_the_same_bits(tmp_path, moment):
    """kill -9 at a share of the uninterrupted run's time, then --resume: the same metrics, bit for bit."""
    environment = {**os.environ, "DFKE_CACHE_DIR": str(tmp_path / "cache-a"), "JAX_PLATFORMS": "cpu"}

    log = tmp_path / "log"

    def start(out, *more):
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-c", _KILLED, *_arguments(out), *more], env=environment, stdout=file, stderr=file
            )

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0, log.read_text()
    lasted = time.monotonic() - began

    environment["DFKE_CACHE_DIR"] = str(tmp_path / "cache-b")
    cut = start(tmp_path / "cut")
    time.sleep(moment * lasted)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    assert start(tmp_path / "cut", "--resume").wait() == 0, log.read_text()
    read = lambda name: json.loads((tmp_path / name / "result.json").read_text())["metrics"]
    assert read("whole") == read("cut")
