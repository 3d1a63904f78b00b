"""Seconds of networks from the cache and of interrupted runs."""

import dataclasses
import json

import pytest

from dfke_jax.experiments import recipe, run_recipe
from dfke_jax.experiments.bench import timing
from dfke_jax.experiments.bench.merge import merge
from dfke_jax.experiments.bench.result import Result
from dfke_jax.experiments.bench.timing import CACHED, Account
from dfke_jax.report.words import taken

TINY = {"dataset": "digits", "seeds": 1, "teacher": "mlp_small", "student": "mlp_small", "teacher_steps": 10,
        "teacher_batch": 16, "distillation_steps": 4, "distillation_batch": 8}  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def train(account, place, clock, seconds, had, waited=0.0):
    with account.network(place, had=had, waited=waited) as trained:
        for part in seconds:
            clock(part)
            trained(part)
        account.seconds["anchors"] = account.seconds.get("anchors", 0.0) + sum(seconds)


def test_a_network_from_the_cache_costs_what_its_training_took(tmp_path, clock):
    place, one, two = tmp_path / "net", tmp_path / "one", tmp_path / "two"
    for path in (place, one, two):
        path.mkdir()
    account = Account(one)
    train(account, place, clock, [3.0, 4.0], had=False)
    clock(1.0)
    assert account.closed() == {"compile": 0.0, "anchors": 7.0, CACHED: 0.0, "total": 8.0}
    account = Account(two)  # another run finds it
    clock(2.0)
    train(account, place, clock, [], had=True)
    assert account.closed() == {"compile": 0.0, "anchors": 7.0, CACHED: 7.0, "total": 9.0}
    train(account, place, clock, [], had=True)  # and asks again
    assert account.closed()["total"] == 9.0
    again = Account(two)  # and goes on after it was killed
    train(again, place, clock, [], had=True)
    assert again.closed() == {"compile": 0.0, "anchors": 7.0, CACHED: 7.0, "total": 9.0}


def test_an_interrupted_run_counts_its_parts(tmp_path, clock):
    account = Account(tmp_path)
    clock(5.0)
    account.write(synthesis=4.0)  # killed in the middle of a stage
    clock(100.0)
    account = Account(tmp_path)
    clock(2.0)
    account.seconds["synthesis"] += 2.0
    account.write()
    assert account.closed() == {"compile": 0.0, "synthesis": 6.0, CACHED: 0.0, "total": 7.0}


def test_a_network_trained_by_two_runs_is_counted_once_in_each(tmp_path, clock):
    place, one, two = tmp_path / "net", tmp_path / "one", tmp_path / "two"
    for path in (place, one, two):
        path.mkdir()
    train(Account(one), place, clock, [3.0], had=False)  # and is stopped
    account = Account(two)
    train(account, place, clock, [4.0], had=True)
    assert account.closed() == {"compile": 0.0, "anchors": 7.0, CACHED: 3.0, "total": 7.0}
    first = Account(one)
    train(first, place, clock, [], had=True)
    assert first.closed() == {"compile": 0.0, "anchors": 7.0, CACHED: 4.0, "total": 7.0}


def test_waiting_for_another_process_is_not_counted_twice(tmp_path, clock):
    place, one, two = tmp_path / "net", tmp_path / "one", tmp_path / "two"
    for path in (place, one, two):
        path.mkdir()
    account = Account(two)
    train(Account(one), place, clock, [6.0], had=False)  # meanwhile the other waits
    train(account, place, clock, [], had=True, waited=6.0)
    assert account.closed()["total"] == 6.0


def test_a_cache_without_times_makes_the_total_a_lower_bound(tmp_path, clock):
    account = Account(tmp_path)
    place = tmp_path / "net"
    place.mkdir()
    train(account, place, clock, [2.0], had=True)
    assert CACHED not in account.closed()
    known = Result("r", "t", "d", {}, [0], [], [], {CACHED: 0.0, "total": 61.0}, {})
    assert taken(known) == "1 min 01 s"
    assert taken(dataclasses.replace(known, seconds={"total": 61.0})) == "≥ 1 min 01 s"
    config = {"seed": 0, "seeds": 2}
    parts = [dataclasses.replace(known, config=config), dataclasses.replace(known, config=config, seeds=[1])]
    assert merge(parts).seconds == {CACHED: 0.0, "total": 122.0}
    parts[1].seconds = {"total": 61.0}
    assert merge(parts).seconds == {"total": 122.0}


@pytest.mark.slow
def test_runs_keep_their_times(tmp_path, monkeypatch):
    monkeypatch.setenv("DFKE_CACHE_DIR", str(tmp_path / "cache"))
    config = dataclasses.replace(recipe("anchors").settings("digits"), **TINY)
    first = run_recipe(recipe("anchors"), config, out=tmp_path / "one", progress=False)
    second = run_recipe(recipe("anchors"), config, out=tmp_path / "two", progress=False)
    spent = sum(json.loads(path.read_text())["seconds"] for path in (tmp_path / "cache").rglob("seconds.json"))
    assert first.seconds[CACHED] == 0.0
    assert 0.0 < second.seconds[CACHED] <= spent  # less what it waited for locks, which its total has
    assert second.seconds["anchors"] >= second.seconds[CACHED]
    assert second.seconds["total"] > second.seconds[CACHED]
    resumed = run_recipe(recipe("anchors"), config, out=tmp_path / "two", progress=False, resume=True)
    assert resumed.seconds[CACHED] == second.seconds[CACHED]
    assert resumed.seconds["total"] > second.seconds["total"]
