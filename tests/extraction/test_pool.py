"""What pool attacks share, and what all of them promise."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.loop import _chunk
from dfke_jax.extraction import (
    ActiveThiefSettings,
    BanditSettings,
    CloneTraining,
    DissectorSettings,
    JacobianSettings,
    PoolAttackSettings,
    active_thief,
    adaptive_knockoff,
    copycat,
    dissector,
    jacobian_augmentation,
    knockoff,
    random_attack,
)
from dfke_jax.extraction.pool import (
    _flattened,
    agreement_with,
    empty_table,
    in_batches,
    label,
    new_clone,
    prequential,
    read_targets,
    train_clone,
    without_temperature,
)
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import trained
from dfke_jax.oracle import Reveal

SHAPE = (4, 4, 1)
KEY = jax.random.key(31)
POOL = jax.random.uniform(jax.random.key(32), (24, *SHAPE))
GROUPS = jnp.arange(24) % 4
SOFT = Reveal()
TINY = CloneTraining(steps=4, batch_size=3, learning_rate=0.1, momentum=0.9, decay_at=(0.5,), checks=2)


@functools.cache
def network(seed):
    return Classifier.create(MLP(3, (8,)), jax.random.key(seed), SHAPE)


def answer(reveal, victim, rows):
    return reveal.value.of_logits(victim(rows))


def oracle(reveal, seed=7):
    return Partial(answer, core.Static(reveal), network(seed))


def thief(selector, reveal=SOFT):
    settings = ActiveThiefSettings(12, 4, 0.25, TINY, selector=selector, deepfool_steps=3, scoring_batch=10)
    return active_thief(network(0), POOL, reveal, settings)


POOL_SETTINGS = PoolAttackSettings(12, 4, 0.25, TINY)
BANDIT = BanditSettings(12, 4, 0.0, TINY, window=5, learner_steps=2)
ATTACKS = {
    "random": lambda reveal: random_attack(network(0), POOL, reveal, POOL_SETTINGS, train_every=1),
    "knockoff": lambda reveal: knockoff(network(0), POOL, reveal, POOL_SETTINGS),
    "bandit": lambda reveal: adaptive_knockoff(network(0), POOL, GROUPS, 4, reveal, BANDIT),
    "entropy": lambda reveal: thief("entropy", reveal),
    "dfal and k-center": lambda reveal: thief("dfal_k_center", reveal),
    "Jacobian augmentation": lambda reveal: jacobian_augmentation(
        network(0), POOL[:3], reveal, JacobianSettings(3, 2, 0.1, True, TINY)
    ),
    "dissector": lambda reveal: dissector(
        network(0), POOL, reveal, DissectorSettings(12, 4, 0.0, TINY, variants=3, pseudo_rows=5)
    ),
    "copycat": lambda reveal: copycat(network(0), POOL, reveal, POOL_SETTINGS),
}
ROUNDS = {"Jacobian augmentation": 4}
# what these have of their own is tested in their own files
AT_LENGTH = {"random", "dfal and k-center", "Jacobian augmentation", "dissector", "copycat"}
every_attack = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in AT_LENGTH)) for n in ATTACKS]
)


@functools.cache
def finished(name):
    return core.run(core.against(ATTACKS[name](SOFT), oracle(SOFT)), KEY, ROUNDS.get(name, 3), chunk=1)


def raw(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@every_attack
def test_the_state_keeps_its_structure_shapes_and_types(name):
    attack, state = ATTACKS[name](SOFT), finished(name).state
    before = jax.eval_shape(attack.init, KEY)
    assert jax.tree.structure(before) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
    assert all(isinstance(function, Partial) for function in attack)
    _, rows = jax.eval_shape(attack.ask, KEY, before)
    assert rows.shape == (3 if name == "Jacobian augmentation" else 4, *SHAPE)
    assert rows.dtype == jnp.float32


@every_attack
def test_metrics_are_finite_and_count_every_row(name):
    metrics = finished(name).metrics
    size = 3 if name == "Jacobian augmentation" else 4
    np.testing.assert_array_equal(metrics["asked"], size * np.arange(1, len(metrics["asked"]) + 1))
    assert {value.dtype for value in metrics.values()} == {np.dtype(np.float32)}
    assert ((metrics["agreement"] >= 0) & (metrics["agreement"] <= 1)).all()


@every_attack
def test_fused_equals_a_victim_on_the_host(name):
    """The scanned program against ask and tell compiled apart, which a NumPy oracle separates."""
    fused = finished(name)
    victim, attack, asked = network(7), ATTACKS[name](SOFT), []

    def answers(rows):
        assert isinstance(rows, np.ndarray)
        asked.append(rows)
        return np.asarray(jax.nn.softmax(victim(jnp.asarray(rows))))

    apart = core.run(core.against(attack, answers, host=True), KEY, ROUNDS.get(name, 3))
    assert jax.tree.structure(apart.state) == jax.tree.structure(fused.state)
    for a, b in zip(raw(apart.state), raw(fused.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(apart.metrics["loss"], fused.metrics["loss"], rtol=1e-4)
    rows = np.concatenate(asked)
    assert len(np.unique(rows, axis=0)) == len(rows), "no row is paid for twice"
    assert (rows >= 0).all()
    assert (rows <= 1).all()


@every_attack
def test_the_same_key_gives_the_same_bits_and_another_key_others(name):
    first, steps = finished(name), ROUNDS.get(name, 3)
    method = core.against(ATTACKS[name](SOFT), oracle(SOFT))
    again = core.run(method, KEY, steps, chunk=1)
    assert all(np.array_equal(a, b) for a, b in zip(raw(first.state), raw(again.state), strict=True))
    other = core.run(method, jax.random.key(99), steps, chunk=1)
    assert not np.array_equal(raw(first.state.clone.variables)[-1], raw(other.state.clone.variables)[-1])


@every_attack
def test_another_victim_runs_the_same_program_and_nothing_is_baked_in(name):
    finished(name)
    compiled = _chunk._cache_size()
    other = core.run(core.against(ATTACKS[name](SOFT), oracle(SOFT, 8)), KEY, ROUNDS.get(name, 3), chunk=1)
    assert _chunk._cache_size() == compiled
    assert not np.array_equal(raw(other.state.clone.variables)[-1], raw(finished(name).state.clone.variables)[-1])


@pytest.mark.slow
@pytest.mark.parametrize("reveal", [Reveal("logits"), Reveal("label"), Reveal("top_k", k=1)])
def test_every_kind_of_answer_is_learnt_from(reveal):
    run = core.run(core.against(ATTACKS["random"](reveal), oracle(reveal)), KEY, 3, chunk=1)
    learnt = run.state.labelled.learnt
    np.testing.assert_allclose(learnt.targets.sum(-1), 1, rtol=1e-5)
    labels = np.asarray(network(7)(POOL[learnt.indices])).argmax(-1)
    np.testing.assert_array_equal(np.asarray(learnt.targets).argmax(-1), labels)


def test_random_order_covers_the_pool_without_repetition():
    settings = PoolAttackSettings(24, 4, 0.25, TINY)
    run = core.run(core.against(random_attack(network(0), POOL, SOFT, settings), oracle(SOFT)), KEY, 6)
    learnt, held = run.state.labelled
    assert (int(learnt.filled), int(held.filled)) == (18, 6)
    indices = np.concatenate([learnt.indices, held.indices])
    np.testing.assert_array_equal(np.sort(indices), np.arange(24))
    truth = np.asarray(jax.nn.softmax(network(7)(POOL)))
    np.testing.assert_allclose(np.concatenate([learnt.targets, held.targets]), truth[indices], rtol=1e-5)


def test_nothing_is_written_beyond_the_budget():
    method = core.against(knockoff(network(0), POOL, SOFT, POOL_SETTINGS), oracle(SOFT))
    more = core.run(method, KEY, 4, chunk=1).state.labelled
    for table, same in zip(more, core.run(method, KEY, 3, chunk=1).state.labelled, strict=True):
        for a, b in zip(table, same, strict=True):
            np.testing.assert_array_equal(a, b)


def test_knockoff_trains_when_the_budget_is_spent_and_not_before():
    method = core.against(knockoff(network(0), POOL, SOFT, POOL_SETTINGS), oracle(SOFT))
    start = jax.jit(method.init)(jax.random.fold_in(KEY, 2**32 - 1))
    early = core.run(method, KEY, 2, chunk=1).state
    assert all(np.array_equal(a, b) for a, b in zip(raw(start.clone), raw(early.clone), strict=True))
    late = core.run(method, KEY, 3, chunk=1).state
    assert not np.array_equal(raw(start.clone.variables)[-1], raw(late.clone.variables)[-1])


def test_labels_fill_the_tables_from_the_front():
    settings = PoolAttackSettings(10, 5, 0.4, TINY)
    labelled = empty_table(settings, 3)
    targets = jax.nn.softmax(jax.random.normal(KEY, (10, 3)))
    for step in range(2):
        rows = jnp.arange(5) + 5 * step
        labelled = label(jax.random.fold_in(KEY, step), labelled, rows + 100, targets[rows], 2)
        assert int(labelled.asked) == 5 * (step + 1)
    for table, count in zip(labelled, (6, 4), strict=True):
        assert table.indices.shape == (count,)
        np.testing.assert_array_equal(table.targets, targets[np.asarray(table.indices) - 100])
    assert set(np.asarray(labelled.held.indices[:2])) < set(range(100, 105)), "two of each step are held out"


@pytest.mark.parametrize("batch", [1, 7, 24, 100])
def test_batches_are_put_together_again(batch):
    pool = np.asarray(POOL * 255).astype(np.uint8)
    made = in_batches(lambda rows: (rows.sum((1, 2, 3)), rows[:, 0, 0]), jnp.asarray(pool), batch)
    np.testing.assert_allclose(made[0], (pool / 255).sum((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(made[1], pool[:, 0, 0] / 255, rtol=1e-5)


def test_agreement_counts_only_the_filled_rows():
    classifier = lambda rows: rows[:, 0, 0, :1] * jnp.asarray([[1.0, 0.0]]) + jnp.asarray([[0.0, 0.5]])
    images = jnp.asarray([0.9, 0.1, 0.9, 0.9]).reshape(4, 1, 1, 1)
    targets = jax.nn.one_hot(jnp.asarray([0, 1, 1, 0]), 2)
    for rows, expected in ((0, 0), (1, 1), (3, 2 / 3), (4, 3 / 4)):
        assert float(agreement_with(classifier, images, targets, jnp.asarray(rows))) == pytest.approx(expected)


def test_one_update_is_momentum_descent_with_decay():
    """Two updates of a linear clone on one repeated row, by hand; the rate falls after the first."""
    clone = Classifier.create(MLP(3, ()), KEY, SHAPE)
    settings = CloneTraining(2, 2, "sgd", 0.1, 0.9, 0.01, (0.5,), 0.1)
    start = new_clone(clone, settings, KEY)
    target = jnp.asarray([[0.2, 0.3, 0.5]])
    state = train_clone(KEY, clone, POOL[:1], target, jnp.asarray(1), settings, start=start, fresh=False)
    kernel, bias = (np.asarray(start.variables["params"]["head"][name], np.float64) for name in ("kernel", "bias"))
    x, velocity = np.asarray(POOL[0], np.float64).ravel(), [0.0, 0.0]
    for rate in (0.1, 0.01):
        scores = np.exp(x @ kernel + bias)
        error = scores / scores.sum() - np.asarray(target[0])
        slopes = [np.outer(x, error) + 0.01 * kernel, error + 0.01 * bias]
        velocity = [0.9 * v + slope for v, slope in zip(velocity, slopes, strict=True)]
        kernel, bias = kernel - rate * velocity[0], bias - rate * velocity[1]
    np.testing.assert_allclose(state.variables["params"]["head"]["kernel"], kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.variables["params"]["head"]["bias"], bias, rtol=1e-4, atol=1e-6)


def test_the_kept_clone_agrees_best_with_what_was_held_out():
    """Against every iterate of the same training: the lengths are prefixes of one sequence of updates."""
    clone, count = network(0), jnp.asarray(12)
    targets = jax.nn.softmax(4 * jax.random.normal(jax.random.key(5), (24, 3)))
    held = (POOL[12:], targets[12:], count)
    settings = CloneTraining(12, 3, "sgd", 3.0, 0.9, 0.0, (), checks=12)
    start = new_clone(clone, settings, KEY)

    @jax.jit
    def learn(length, held=None):
        return train_clone(
            KEY, clone, POOL[:12], targets[:12], count, settings, start=start, steps=length, held=held
        ).variables

    iterates = [learn(i) for i in range(1, 13)]
    scores = [float(agreement_with(trained(clone, start._replace(variables=v)), *held)) for v in iterates]
    best = 11 - int(np.argmax(scores[::-1]))
    assert scores[best] > scores[-1], "the last iterate is not the best here, or the test says nothing"
    chosen = learn(None, held)
    for a, b in zip(raw(chosen), raw(iterates[best]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_training_that_is_not_due_changes_nothing():
    clone = network(0)
    start = new_clone(clone, TINY, KEY)
    targets = jnp.ones((24, 3)) / 3
    same = train_clone(KEY, clone, POOL, targets, jnp.asarray(24), TINY, start=start, due=jnp.asarray(False))
    assert all(np.array_equal(a, b) for a, b in zip(raw(start), raw(same), strict=True))


def test_hard_targets_are_one_hot_whatever_is_answered():
    np.testing.assert_array_equal(read_targets(np.array([[0.2, 0.8], [0.6, 0.4]]), SOFT, 2, True), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(read_targets(np.array([1, 0]), Reveal("label"), 2), [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"steps": 10, "checks": 3}, "multiple of checks"),
        ({"momentum": 1.0}, "momentum"),
        ({"learning_rate": 0.0}, "positive"),
        ({"decay_at": (1.5,)}, "fractions"),
    ],
)
def test_trainings_that_mean_nothing(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CloneTraining(), **change)


def test_settings_and_pools_that_do_not_fit():
    with pytest.raises(UnknownNameError, match="adm"):
        CloneTraining(optimizer="adm")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="multiple of rows_per_step"):
        PoolAttackSettings(10, 4)
    with pytest.raises(InputError, match="leave rows"):
        PoolAttackSettings(10, 2, 0.9)
    with pytest.raises(InputError, match="as many images, got 24"):
        knockoff(network(0), POOL, SOFT, PoolAttackSettings(28, 4))
    with pytest.raises(InputError, match="4×4×1"):
        knockoff(network(0), POOL[:, :3], SOFT, POOL_SETTINGS)
    with pytest.raises(InputError, match="uint8 or floating, got int32"):
        knockoff(network(0), POOL.astype(jnp.int32), SOFT, POOL_SETTINGS)
    with pytest.raises(InputError, match="train_every"):
        knockoff(network(0), POOL, SOFT, POOL_SETTINGS, train_every=0)


def test_equal_settings_share_one_optimiser():
    assert CloneTraining().rule is CloneTraining().rule


@every_attack
def test_a_checkpoint_continues_with_the_same_bits(name, tmp_path):
    """A run that stops before its last step and is taken up again ends in the same bits."""
    method, whole, steps = core.against(ATTACKS[name](SOFT), oracle(SOFT)), finished(name), ROUNDS.get(name, 3)
    checkpoints = core.Checkpoints(tmp_path)
    core.run(method, KEY, steps - 1, chunk=1, checkpoints=checkpoints)
    resumed = core.run(method, KEY, steps, chunk=1, checkpoints=checkpoints, resume=True)
    assert all(np.array_equal(a, b) for a, b in zip(raw(resumed.state), raw(whole.state), strict=True))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "knockoff")) for name in ATTACKS]
)
def test_a_population_of_one_is_the_single_run(name):
    method = core.population(core.against(ATTACKS[name](SOFT), oracle(SOFT)), strategy="map")
    one = core.run(method, KEY[None], ROUNDS.get(name, 3), chunk=1)
    for a, b in zip(raw(one.state), raw(finished(name).state), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=2e-5)


VECTORISED = ("bandit", "dfal and k-center", "Jacobian augmentation")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in VECTORISED)) for name in ATTACKS]
)
def test_vmap_over_keys_equals_single_runs(name):
    steps = ROUNDS.get(name, 3)
    method, keys = core.against(ATTACKS[name](SOFT), oracle(SOFT)), jnp.stack([KEY, jax.random.key(5)])

    def whole(method, key):
        body = lambda state, step: method.step(jax.random.fold_in(key, step), state)
        return jax.lax.scan(body, method.init(jax.random.fold_in(key, 2**32 - 1)), jnp.arange(steps))

    states, metrics = jax.jit(jax.vmap(whole, (None, 0)))(method, keys)
    for a, b in zip(raw(states), raw(finished(name).state), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(metrics["loss"][0], finished(name).metrics["loss"], rtol=1e-4)


def test_budgets_are_paid_in_whole_steps():
    assert PoolAttackSettings(12, 4).with_budget(30) == PoolAttackSettings(28, 4)
    thief = ActiveThiefSettings(20, 2).with_budget(57)
    assert (thief.rounds, thief.rows_per_step, thief.budget) == (10, 5, 50)
    seeds = JacobianSettings(7, 3).with_budget(100)
    assert (seeds.rows_per_step, seeds.rounds, seeds.budget) == (12, 8, 96)
    for settings, least in (
        (PoolAttackSettings(12, 4), 4),
        (ActiveThiefSettings(20, 2), 10),
        (JacobianSettings(7, 3), 8),
    ):
        assert settings.with_budget(least).budget == least
        with pytest.raises(InputError, match="does not pay for one iteration"):
            settings.with_budget(least - 1)


def test_the_flattened_loss_is_distillation_at_its_temperature():
    """τ² KL(σ(t/τ) ‖ σ(s/τ)) but for the entropy of the targets, from probabilities alone; in float64."""
    rng = np.random.default_rng(0)
    teacher, student, heat = 6 * rng.normal(size=(5, 4)), rng.normal(size=(5, 4)), 3.0
    softmax = lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)
    expected = -(heat**2) * (softmax(teacher / heat) * np.log(softmax(student / heat))).sum(1)
    found = _flattened(jnp.asarray(student, jnp.float32), jnp.asarray(softmax(teacher), jnp.float32), temperature=heat)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.isfinite(_flattened(jnp.ones((1, 3)), jnp.asarray([[1.0, 0.0, 0.0]]), temperature=20.0)).all()


def test_labels_are_learnt_without_temperature():
    warm = dataclasses.replace(POOL_SETTINGS, clone=dataclasses.replace(TINY, temperature=5.0))
    assert without_temperature(warm, SOFT) is warm
    assert without_temperature(warm, Reveal("label")) == without_temperature(warm, SOFT, hard=True) == POOL_SETTINGS
    with pytest.raises(InputError, match="temperature"):
        CloneTraining(temperature=0.5)


def test_rounds_before_the_last_may_be_shorter():
    """Three rounds of four rows with two updates each but the last, told from the optimiser's count."""
    clone = dataclasses.replace(TINY, optimizer="adam", checks=1)
    short = ActiveThiefSettings(12, 4, 0.0, clone, selector="random", round_steps=2)
    method = core.against(active_thief(network(0), POOL, SOFT, short), oracle(SOFT))
    for steps, updates in ((1, 2), (2, 2), (3, 4)):
        state = core.run(method, KEY, steps, chunk=1).state
        counts = [int(leaf) for leaf in jax.tree.leaves(state.clone.optimizer_state) if leaf.dtype == jnp.int32]
        assert counts
        assert set(counts) == {updates}
    with pytest.raises(InputError, match="multiple of the clone's 2 checks"):
        ActiveThiefSettings(12, 4, 0.25, TINY, round_steps=3)


@pytest.mark.slow
@pytest.mark.parametrize(("every", "expected"), [(1, {1, 2, 3, 4, 5}), (2, {2, 4, 5}), (3, {3, 5}), (None, {5})])
def test_a_random_attack_trains_when_it_is_due(every, expected):
    """After every so many steps, and in any case when the budget is spent."""
    settings = PoolAttackSettings(20, 4, 0.25, TINY)
    method = core.against(random_attack(network(0), POOL, SOFT, settings, train_every=every), oracle(SOFT))
    state, trained_at = jax.jit(method.init)(KEY), set()
    step = jax.jit(method.step)
    for number in range(1, 6):
        after, metrics = step(jax.random.fold_in(KEY, number), state)
        assert metrics["asked"] == 4 * number
        if any(not np.array_equal(a, b) for a, b in zip(raw(state.clone), raw(after.clone), strict=True)):
            trained_at.add(number)
        state = after
    assert trained_at == expected


def test_a_random_attack_trains_at_least_every_so_many_steps():
    with pytest.raises(core.InputError, match="train_every must be at least 1, got 0"):
        random_attack(network(0), POOL, SOFT, POOL_SETTINGS, train_every=0)


def test_the_ends_of_what_trainings_and_pools_accept():
    CloneTraining(
        steps=1, batch_size=1, checks=1, learning_rate=1e-6, weight_decay=0.0, momentum=0.0, decay_at=(0.01, 0.99)
    )
    for changes, message in (
        ({"batch_size": 0}, "at least 1"),
        ({"checks": 0}, "at least 1"),
        ({"weight_decay": -1e-9}, "weight_decay not negative"),
        ({"momentum": -1e-9}, "momentum"),
        ({"decay_factor": 0.0}, "must be positive"),
        ({"decay_at": (0.5, 0.0)}, "fractions"),
        ({"decay_at": (1.0,)}, "fractions"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(CloneTraining(), **changes)
    assert PoolAttackSettings(1, 1).held_per_step == 0
    assert PoolAttackSettings(8, 4, 0.75).held_per_step == 3
    assert PoolAttackSettings(8, 4, 0.125).held_per_step == 0
    for arguments, message in (
        ((0, 1), "positive multiple"),
        ((4, 0), "positive multiple"),
        ((8, 4, -0.1), "validation must lie"),
        ((8, 4, 1.0), "validation must lie"),
        ((8, 4, 0.9), "leave rows"),
    ):
        with pytest.raises(InputError, match=message):
            PoolAttackSettings(*arguments)
    knockoff(network(0), POOL, SOFT, PoolAttackSettings(24, 4, 0.0, TINY))  # as many rows as the pool has


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_rates_of_a_training_fall_where_they_should(optimizer):
    """The length of each update under a gradient of 1 on a weight of 0; Adam's is the rate itself."""
    settings = CloneTraining(10, 1, optimizer, 0.5, 0.0, 0.0, (0.26, 0.7), 0.1)
    weight, moves = jnp.zeros(()), []
    state = settings.rule.init(weight)
    for _ in range(10):
        update, state = settings.rule.update(jnp.ones(()), state, weight)
        moves.append(-float(update))
    np.testing.assert_allclose(moves, [0.5] * 3 + [0.05] * 4 + [0.005] * 3, rtol=1e-4)


def test_a_training_without_held_out_rows_keeps_its_last_iterate():
    """Batches are drawn from the rows that count, are augmented, and the steps given are taken."""
    settings = CloneTraining(4, 2, "sgd", 0.1, 0.0, 0.0, (), checks=4)
    start = new_clone(network(0), settings, KEY)
    targets = jax.nn.softmax(jax.random.normal(KEY, (24, 3)))
    spoilt = POOL.at[5:].set(jnp.nan)  # rows that do not count
    darker = Partial(lambda key, images: images / 2)
    options = {"start": start, "steps": 3, "augment": darker}
    state = train_clone(KEY, network(0), spoilt, targets, jnp.asarray(5), settings, **options)
    half = train_clone(KEY, network(0), POOL / 2, targets, jnp.asarray(5), settings, start=start, steps=3)
    init_key, step_key = jax.random.split(KEY)
    for a, b in zip(raw(state.variables), raw(half.variables), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=1e-6)
    module, variables = network(0).module, new_clone(network(0), settings, init_key).variables
    for i in range(3):
        rows = jax.random.randint(jax.random.split(jax.random.fold_in(step_key, i), 3)[0], (2,), 0, 5)

        def loss(params, rows=rows):
            logits = module.apply({"params": params}, POOL[rows] / 2)
            return -jnp.mean(jnp.sum(targets[rows] * jax.nn.log_softmax(logits), -1))

        slopes = jax.grad(loss)(variables["params"])
        variables = {"params": jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], slopes)}
    for a, b in zip(raw(state.variables), raw(variables), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_a_clone_foresees():
    """Mean soft cross-entropy and agreement of rows that it has not learnt."""
    linear = lambda rows: rows.reshape(len(rows), -1)[:, :3]
    rows = np.random.default_rng(1).uniform(size=(6, 2, 2, 1)).astype(np.float32)
    targets = np.random.default_rng(2).dirichlet(np.ones(3), 6).astype(np.float32)
    logits = rows.reshape(6, 4)[:, :3].astype(np.float64)
    log_q = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    found = prequential(linear, jnp.asarray(rows), jnp.asarray(targets))
    assert found["loss"] == pytest.approx(-(targets * log_q).sum(1).mean(), rel=1e-5)
    assert found["agreement"] == pytest.approx((logits.argmax(1) == targets.argmax(1)).mean())
