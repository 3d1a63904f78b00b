"""The bandit: its rewards and updates against loops in NumPy, and what it draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.extraction import BanditSettings, CloneTraining, adaptive_knockoff
from dfke_jax.extraction.knockoff import REWARDS, draw, new_bandit, policy, update_bandit
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import Reveal

KEY = jax.random.key(41)


def naive(preferences, policies, groups, answers, losses, window, used):
    """The published update, one action at a time, with lists for the window."""
    preferences, counts, past = preferences.copy(), np.zeros(len(preferences), int), []
    for group, answer, loss, shares in zip(groups, answers, losses, policies, strict=True):
        recent = past[-window:]
        ordered = np.sort(answer)[::-1]
        typical = np.mean([entry[1] for entry in recent], 0) if recent else np.zeros_like(answer)
        reward = [ordered[0] - ordered[1], sum(max(0, a - b) for a, b in zip(answer, typical, strict=True)), loss]
        gains = []
        for j in range(3):
            values = [entry[0][j] for entry in recent] + [reward[j]]
            low, high = min(values), max(values)
            if high - low <= 1e-12:
                gains.append(0)
                continue
            scaled = [(value - low) / (high - low) for value in values]
            gains.append(scaled[-1] - np.mean(scaled[:-1]))
        gain = np.mean([gains[REWARDS.index(name)] for name in used]) if recent else 0
        counts[group] += 1
        for z in range(len(preferences)):
            if z == group:
                preferences[z] += gain / counts[group] * (1 - shares[z])
            else:
                preferences[z] -= gain / counts[group] * shares[z]
        past.append((reward, answer))
    return preferences, counts


@pytest.mark.parametrize("used", [REWARDS, ("certainty",), ("loss", "diversity")])
def test_updates_are_those_of_the_loop(used):
    """Three steps of 6 actions, so that a window of 7 wraps around; the policy is fixed within a step."""
    rng = np.random.default_rng(0)
    bandit, preferences = new_bandit(4, 7, 5), np.zeros(4)
    policies, groups = [], rng.integers(0, 4, 18)
    answers = rng.dirichlet(np.ones(5), 18).astype(np.float32)
    losses = rng.exponential(size=18).astype(np.float32)
    for step in range(3):
        rows = slice(6 * step, 6 * step + 6)
        shares = np.exp(bandit.preferences) / np.exp(bandit.preferences).sum()
        policies += [shares] * 6
        bandit = update_bandit(
            bandit, jnp.asarray(shares), jnp.asarray(groups[rows]), answers[rows], jnp.asarray(losses[rows]), used
        )
        expected, counts = naive(
            preferences, policies, groups[: rows.stop], answers[: rows.stop], losses[: rows.stop], 7, used
        )
        np.testing.assert_allclose(bandit.preferences, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(bandit.counts, counts)
    assert np.abs(bandit.preferences).max() > 0.05
    assert int(bandit.seen) == 18


def test_equal_rewards_move_nothing():
    answers = jnp.tile(jnp.asarray([[0.7, 0.3]]), (5, 1))
    bandit = update_bandit(new_bandit(2, 4, 2), jnp.full(2, 0.5), jnp.zeros(5, jnp.int32), answers, jnp.ones(5),
                           ("certainty", "loss"))  # fmt: skip
    np.testing.assert_array_equal(bandit.preferences, 0)


@pytest.mark.slow
def test_a_group_that_pays_is_preferred():
    """Group 1 always has the larger loss; its share must grow from one half to almost all."""
    bandit, rng = new_bandit(2, 50, 2), np.random.default_rng(1)
    for _ in range(30):
        shares = np.asarray(jax.nn.softmax(bandit.preferences))
        groups = rng.choice(2, 8, p=shares / shares.sum())
        losses = jnp.asarray(groups + 0.1 * rng.random(8), jnp.float32)
        bandit = update_bandit(
            bandit, jnp.asarray(shares), jnp.asarray(groups), jnp.full((8, 2), 0.5), losses, ("loss",)
        )
    assert jax.nn.softmax(bandit.preferences)[1] > 0.75


def test_first_draws_follow_the_policy_and_then_are_uniform_in_the_group():
    groups = jnp.asarray([0] * 5 + [1] * 2 + [2] * 3)
    asked = jnp.zeros(10, bool).at[jnp.asarray([0, 9])].set(True)
    log_policy = policy(jnp.asarray([0.0, 1.0, 0.5]), groups, asked)
    shares = np.exp([0.0, 1.0, 0.5]) / np.exp([0.0, 1.0, 0.5]).sum()
    np.testing.assert_allclose(np.exp(log_policy), shares, rtol=1e-5)
    trials = 20_000
    first = jax.vmap(lambda key: draw(key, log_policy, groups, asked, 1)[0])(jax.random.split(KEY, trials))
    expected = shares[np.asarray(groups)] / np.array([4, 2, 2])[np.asarray(groups)] * ~np.asarray(asked)
    spread = np.sqrt(expected * (1 - expected) / trials)
    assert (np.abs(np.bincount(first, minlength=10) / trials - expected) <= 4.5 * spread).all()


def test_exhausted_groups_leave_the_policy():
    groups, asked = jnp.asarray([0, 0, 1, 1, 1]), jnp.asarray([True, True, False, False, True])
    log_policy = policy(jnp.asarray([9.0, 0.0]), groups, asked)
    np.testing.assert_allclose(np.exp(log_policy), [0, 1])
    assert set(np.asarray(draw(KEY, log_policy, groups, asked, 2))) == {2, 3}


@pytest.fixture(scope="module")
def net():
    return Classifier.create(MLP(3, (8,)), jax.random.key(0), (4, 4, 1))


def answer(victim, rows):
    return jax.nn.softmax(victim(rows))


@pytest.mark.slow
def test_the_whole_pool_is_asked_once_through_all_groups(net):
    pool = jax.random.uniform(KEY, (24, 4, 4, 1))
    training = CloneTraining(steps=2, batch_size=4, decay_at=())
    settings = BanditSettings(24, 4, 0.0, training, window=6, learner_steps=1)
    groups = jnp.asarray(np.repeat([0, 1, 2], [3, 7, 14]))
    attack = adaptive_knockoff(net, pool, groups, 3, Reveal(), settings)
    run = core.run(core.against(attack, Partial(answer, net)), KEY, 6)
    np.testing.assert_array_equal(np.sort(run.state.labelled.learnt.indices), np.arange(24))
    np.testing.assert_array_equal(run.state.bandit.counts, [3, 7, 14])
    assert run.state.asked.all()
    assert run.metrics["entropy"][0] == pytest.approx(np.log(3), rel=1e-5)


def test_settings_that_mean_nothing(net):
    pool = jnp.zeros((24, 4, 4, 1))
    with pytest.raises(UnknownNameError, match="certainty"):
        BanditSettings(rewards=("certain",))
    with pytest.raises(InputError, match="distinct"):
        BanditSettings(rewards=("loss", "loss"))
    with pytest.raises(InputError, match="window"):
        BanditSettings(window=0)
    with pytest.raises(InputError, match=r"groups must be integers \(24,\)"):
        adaptive_knockoff(net, pool, jnp.zeros(23, jnp.int32), 2, Reveal(), BanditSettings(20, 10))


def test_the_ends_of_what_the_bandit_accepts():
    BanditSettings(window=1, learner_steps=0, rewards=("loss",))
    for changes in ({"window": 0}, {"learner_steps": -1}):
        with pytest.raises(InputError, match="window must be at least 1 and learner_steps not negative"):
            BanditSettings(**changes)
    with pytest.raises(InputError, match="distinct and at least one"):
        BanditSettings(rewards=())
