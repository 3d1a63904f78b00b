"""What every attack on the host promises, checked over a table of all of them.

A new attack adds one line to `ATTACKS`: how it is made, a victim, what that reveals, and the rows that it asks.
"""

import dataclasses

import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.data import Schema
from dfke_jax.extraction import (
    Questions,
    ReluSearch,
    TreeSettings,
    binned_regression,
    coupled_halfspace,
    find_paths,
    kernel_equations,
    linear_regression,
    logistic_regression,
    lowd_meek,
    one_versus_rest,
    relu_network,
    softmax_regression,
)
from dfke_jax.oracle import Ledger, Metered, Reveal

RNG = np.random.default_rng(8)
WEIGHTS = RNG.normal(size=(6, 3))


def linear(rows):
    return rows @ WEIGHTS


def softmax(rows):
    odds = np.exp(rows @ WEIGHTS)
    return odds / odds.sum(1, keepdims=True)


def logistic(rows):
    p = 1 / (1 + np.exp(-rows @ WEIGHTS[:, :1]))
    return np.concatenate([1 - p, p], 1)


def relu(rows):
    return np.maximum(rows @ WEIGHTS + 0.1, 0) @ WEIGHTS[:3, :2]


def kernels(rows):
    odds = np.exp(np.exp(-0.2 * ((rows[:, None] - np.tanh(WEIGHTS.T)) ** 2).sum(-1)) @ WEIGHTS[:3])
    return odds / odds.sum(1, keepdims=True)


def rounded(rows):
    return np.round(softmax(rows), 4)


def sided(rows):
    return (rows @ WEIGHTS[:, 0] > 0.2).astype(np.int32)


def walked(rows):
    """A tree of three leaves: its leaf, and what it predicts there."""
    leaf = np.where(rows[:, 0] <= 0.25, 1.0, np.where(rows[:, 4] <= -0.5, 2.0, 3.0))
    return np.stack([leaf, leaf**2], 1)


SCHEMA = Schema.of_numbers(6)
ATTACKS = {
    "linear": (lambda: linear_regression(Questions(6)), linear, Reveal("logits"), 7),
    "linear, checked": (lambda: linear_regression(Questions(6, 20)), linear, Reveal("logits"), 20),
    "logistic": (lambda: logistic_regression(Questions(6, 8)), logistic, Reveal(), 8),
    "softmax": (lambda: softmax_regression(Questions(6)), softmax, Reveal(), 7),
    "softmax, rounded": (
        lambda: softmax_regression(Questions(6, 30), Reveal(decimals=4)),
        rounded,
        Reveal(decimals=4),
        30,
    ),
    "tree": (lambda: find_paths(SCHEMA, TreeSettings(2.0**-8)), walked, Reveal("logits"), 39),
    "Lowd-Meek": (lambda: lowd_meek(SCHEMA), sided, Reveal("label"), 205),
    "coupled halfspace": (lambda: coupled_halfspace(SCHEMA), sided, Reveal("label"), 135),
    "one versus rest": (lambda: one_versus_rest(SCHEMA), softmax, Reveal(), 21),
    "kernels": (lambda: kernel_equations(SCHEMA, 3, 0.2), kernels, Reveal(), 82),
    "hidden bins": (lambda: binned_regression(SCHEMA), softmax, Reveal(), 54),
    "ReLU network": (lambda: relu_network(ReluSearch(6, check_rows=4)), relu, Reveal("logits"), 161),
}
every_attack = pytest.mark.parametrize("name", ATTACKS)


class KilledError(Exception):
    """The process ends here."""


def steal(name, seed, ledger, asked=None, *, kill_after=None):
    """(solution, rows that the victim was asked, entered in `asked`) of an attack through a ledger, three rows a time."""
    make, victim, reveal, _ = ATTACKS[name]
    asked = [] if asked is None else asked

    def answer(rows):
        if kill_after is not None and len(asked) + len(rows) > kill_after:
            raise KilledError
        asked.extend(row.tobytes() for row in rows)
        return victim(rows)

    oracle = Metered(answer, ledger, "victim", reveal, batch=3, repeatable=True, samples=0)
    return core.run_host(make(), oracle, seed), asked


def numbers(found):
    """What was found, as bytes."""
    fields = dataclasses.asdict(found) if dataclasses.is_dataclass(found) else found._asdict()
    fields |= fields.get("parameters", {})
    return {name: value.tobytes() for name, value in fields.items() if isinstance(value, np.ndarray)}


@every_attack
def test_the_same_seed_gives_the_same_bits_and_another_seed_other_questions(name):
    (first, asked), (again, repeated) = (steal(name, 3, Ledger()) for _ in range(2))
    assert asked == repeated
    assert numbers(first.found) == numbers(again.found)
    assert numbers(first.found)
    assert not set(asked) & set(steal(name, 4, Ledger())[1])


@every_attack
def test_it_asks_what_it_says_and_every_row_once(name):
    with Ledger() as ledger:
        solution, asked = steal(name, 3, ledger)
        assert solution.complete
        assert len(asked) == len(set(asked)) == solution.queries == ledger.counts()["rows"] == ATTACKS[name][3]


@every_attack
@pytest.mark.parametrize("short", [1, 4])
def test_a_budget_is_respected_and_ends_it_in_order(name, short):
    rows = ATTACKS[name][3] - short
    with Ledger(budget=rows) as ledger:
        solution, asked = steal(name, 3, ledger)
        assert not solution.complete
        assert len(asked) == solution.queries == ledger.counts()["rows"] <= rows
    with Ledger(budget=rows + short) as ledger:
        assert steal(name, 3, ledger)[0].complete


@every_attack
def test_killed_anywhere_it_is_resumed_to_the_same_bits_and_no_row_is_paid_twice(name, tmp_path):
    whole, expected = steal(name, 3, Ledger())
    paid, path = [], tmp_path / "ledger"
    for kill_after in (0, 4, len(expected) // 2 + 2):
        with Ledger(path, budget=len(expected)) as ledger, pytest.raises(KilledError):
            steal(name, 3, ledger, paid, kill_after=kill_after)
    with Ledger(path, budget=len(expected)) as ledger:
        solution, _ = steal(name, 3, ledger, paid)
        counts = ledger.counts()
        assert paid == expected
        assert (counts["rows"], counts["unknown_rows"]) == (len(expected), 0)
        assert numbers(solution.found) == numbers(whole.found)
        assert numbers(steal(name, 3, ledger, paid)[0].found) == numbers(whole.found)
        assert paid == expected, "all of it was answered from the ledger"
