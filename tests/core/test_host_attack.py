"""Attacks in direct style: one seed, a budget, interruptions, and a ledger that is not paid twice."""

import contextlib
import os
import signal

import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import BudgetError


def climb(rng, ask):
    """Five questions, each a step from the best place so far; the answer decides."""
    place, best = rng.uniform(size=3), -np.inf
    for _ in range(5):
        rows = place[None] + 0.1 * rng.normal(size=(4, 3))
        values = ask(rows)
        if values.max() > best:
            place, best = rows[values.argmax()], values.max()
        ask.keep(place)
    return core.Solution(place)


def hill(rows):
    return -np.square(rows - 0.3).sum(1)


def purse(rows, budget):
    """An oracle that says no once its budget is spent."""
    left = [budget]

    def oracle(asked):
        if len(asked) > left[0]:
            raise BudgetError(len(asked), budget - left[0], budget)
        left[0] -= len(asked)
        return rows(asked)

    return oracle


CLIMB = core.HostAttack(climb)


def test_the_same_seed_asks_and_finds_the_same():
    first, again = core.run_host(CLIMB, hill, 3), core.run_host(CLIMB, hill, np.int64(3))
    assert first.complete
    assert first.queries == 20
    np.testing.assert_array_equal(first.found, again.found)
    assert not np.array_equal(first.found, core.run_host(CLIMB, hill, 4).found)


def test_a_spent_budget_ends_in_what_was_kept():
    steps = []

    def watched(rows):
        steps.append(len(rows))
        return hill(rows)

    solution = core.run_host(CLIMB, purse(watched, 11), 3)
    assert not solution.complete
    assert solution.queries == sum(steps) == 8
    shorter = lambda rng, ask: climb(rng, _Ends(ask, 2))
    with pytest.raises(StopIteration) as stopped:
        core.run_host(core.HostAttack(shorter), hill, 3)
    np.testing.assert_array_equal(solution.found, stopped.value.value)
    assert core.run_host(CLIMB, purse(hill, 3), 3) == core.Solution(None, False, 0)


def test_phases_reach_an_oracle_that_knows_them_and_no_other():
    class Phased:
        seen, now = [], None

        def __call__(self, rows):
            self.seen.append(self.now)
            return hill(rows)

        @contextlib.contextmanager
        def phase(self, name):
            self.now = name
            yield
            self.now = None

    def parts(rng, ask):
        with ask.phase("first"):
            ask(np.zeros((1, 3)))
        ask(np.ones((1, 3)))
        return core.Solution(None)

    oracle = Phased()
    assert core.run_host(core.HostAttack(parts), oracle, 0).queries == 2
    assert oracle.seen == ["first", None]
    assert core.run_host(core.HostAttack(parts), hill, 0).queries == 2


class _Ends:
    """Ends an attack by hand after so many questions, with what it had kept."""

    def __init__(self, ask, questions):
        self.ask, self.left, self.kept = ask, questions, None

    def __call__(self, rows):
        if not self.left:
            raise StopIteration(self.kept)
        self.left -= 1
        return self.ask(rows)

    def keep(self, found):
        self.kept = found


def test_an_attack_may_make_do_with_a_budget_itself():
    def modest(rng, ask):
        try:
            return core.Solution(ask(rng.uniform(size=(9, 3))))
        except BudgetError:
            return core.Solution(ask(rng.uniform(size=(2, 3))), complete=False)

    solution = core.run_host(core.HostAttack(modest), purse(hill, 4), 0)
    assert solution.found.shape == (2,)
    assert (solution.complete, solution.queries) == (False, 2)


@pytest.mark.parametrize("question", [1, 5])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_lets_the_question_be_answered(number, question):
    asked = []

    def oracle(rows):
        asked.append(len(rows))
        if len(asked) == question:
            os.kill(os.getpid(), number)
        return hill(rows)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(core.Interrupted, match=f"after {4 * question} rows.*same seed and ledger"):
        core.run_host(CLIMB, oracle, 3)
    assert len(asked) == question
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("seed", [-1, 0.5, True, None])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(core.InputError, match="whole number"):
        core.run_host(CLIMB, hill, seed)


@pytest.mark.parametrize("rows", [np.zeros((0, 3)), np.float64(1), np.array([["a"]]), np.zeros((2, 2), complex)])
def test_what_is_asked_is_an_array_of_numbers(rows):
    with pytest.raises(core.InputError, match=r"numbers \(B, \.\.\.\)"):
        core.run_host(core.HostAttack(lambda rng, ask: core.Solution(ask(rows))), hill, 0)
