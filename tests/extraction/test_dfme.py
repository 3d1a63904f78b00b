"""Zeroth-order extraction against exact gradients and a loop written out in the published order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import InputError
from dfke_jax.extraction import SMALL_DFME, DFMESettings, MAZESettings, clone_of, dfme, maze, steps_for
from dfke_jax.oracle import Reveal

KEY = jax.random.key(61)
CLEAR = jax.random.key(24)
# as many orthogonal directions as dimensions, so that the estimate is the gradient
EXACT = DFMESettings(
    batch_size=4, clone_batches=2, latent=5, width=2, schedule="constant", epsilon=2e-3, directions=64,
    orthogonal=True, central=True, generator_optimizer="sgd", clone_rate=0.05, generator_rate=0.02, momentum=0.9,
    weight_decay=0.01,
)  # fmt: skip


def logits_of(p):
    return jnp.log(p) - jnp.log(p).mean(-1, keepdims=True)


def to_the_kink(game, state, key):
    """How far the generator's units, in the batch of its own step, are from where leaky ReLU bends."""
    names = ("conv1_norm", "conv2_norm")
    _, kept = game.generator.apply(
        state.generator.variables,
        game.draws(key).generator_z,
        train=True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, _: module.name in names,
        method="pre_activation",
    )
    phases = [kept["intermediates"][name]["__call__"][0] for name in names]
    return min(float(jnp.abs(found.image()).min()) for found in phases)


@pytest.mark.slow
def test_the_same_on_one_and_on_four_devices(classifier, oracles, four):
    """Two steps of everything that is split over a mesh: generator, answers in pieces, clone and their gradients.

    Both begin every step at the same state. Devices add in another order, which moves a unit by about 1e-6; one that
    crosses the bend of its leaky ReLU thereby changes its own gradient by four fifths (about one draw in thirty, and
    1e-4 to 1e-3 of parameters then). Draws are such that no unit comes near.
    """
    settings = dataclasses.replace(EXACT, batch_size=16, width=9, directions=1, orthogonal=False, epsilon=0.1, chunk=6)
    attack = dfme(classifier(1), settings)
    method = core.against(attack, oracles["probabilities"](classifier(0)))
    mesh = core.device_mesh(devices=four)
    state = jax.jit(method.init)(CLEAR)
    for i in range(2):
        key = jax.random.fold_in(CLEAR, i)
        assert to_the_kink(attack.init.args[0], state, key) > 2e-5
        alone, _ = jax.jit(method.step)(key, state)
        with jax.set_mesh(mesh):
            spread = core.replicate((method, key, state), mesh)
            split, _ = jax.jit(lambda method, key, state: method.step(key, state))(*spread)
        for player in ("clone", "generator"):
            found, expected = getattr(split, player).variables, getattr(alone, player).variables
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, expected)
        state = alone


def test_two_iterations_are_those_of_the_published_loop(classifier, oracles):
    """n_S steps of S on fresh batches of G, then one step of G against that S, by autodiff through V and by hand."""
    victim, start = classifier(0), classifier(1)
    oracle = oracles["probabilities"](victim)
    attack = dfme(start, EXACT)
    game = attack.init.args[0]
    method = core.against(attack, oracle)
    state = first = jax.jit(method.init)(KEY)
    step = jax.jit(method.step)
    reported = []
    for i in range(2):
        state, metrics = step(jax.random.fold_in(KEY, i), state)
        reported.append(metrics)

    def images(params, stats, z):
        x, _ = game.generator.apply({"params": params, **stats}, z, train=True, mutable=["batch_stats"])
        return x

    def distance(clone, x):
        return jnp.mean(jnp.abs(logits_of(oracle(x)) - start.module.apply({"params": clone}, x)))

    @jax.jit
    def clone_update(clone, momentum, x):
        loss, gradient = jax.value_and_grad(distance)(clone, x)
        momentum = jax.tree.map(lambda m, g, p: 0.9 * m + g + 0.01 * p, momentum, gradient, clone)
        return jax.tree.map(lambda p, m: p - 0.05 * m, clone, momentum), momentum, loss

    @jax.jit
    def generator_update(params, momentum, stats, clone, z):
        loss, gradient = jax.value_and_grad(lambda params: -distance(clone, images(params, stats, z)))(params)
        momentum = jax.tree.map(lambda m, g, p: 0.9 * m + g + 0.01 * p, momentum, gradient, params)
        return jax.tree.map(lambda p, m: p - 0.02 * m, params, momentum), momentum, -loss

    clone, generator = first.clone.variables["params"], first.generator.variables["params"]
    stats = {"batch_stats": first.generator.variables["batch_stats"]}
    clone_momentum, generator_momentum = (jax.tree.map(jnp.zeros_like, tree) for tree in (clone, generator))
    image = jax.jit(images)
    for i in range(2):
        drawn = game.draws(jax.random.fold_in(KEY, i))
        losses = []
        for z in drawn.clone_z:
            clone, clone_momentum, loss = clone_update(clone, clone_momentum, image(generator, stats, z))
            losses.append(loss)
        generator, generator_momentum, disagreement = generator_update(
            generator, generator_momentum, stats, clone, drawn.generator_z
        )
        np.testing.assert_allclose(reported[i]["loss"], np.mean(losses), rtol=3e-3)
        # what is reported is the mean over the perturbed points
        np.testing.assert_allclose(reported[i]["disagreement"], disagreement, rtol=1e-2)
    for found, expected, before in (
        (state.clone.variables["params"], clone, first.clone.variables["params"]),
        (state.generator.variables["params"], generator, first.generator.variables["params"]),
    ):
        found, expected, before = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (found, expected, before)
        )
        moved = np.linalg.norm(expected - before)
        assert moved > 1e-2
        assert np.linalg.norm(found - expected) < 0.03 * moved


@pytest.mark.slow
def test_the_clone_learns_and_the_last_batch_is_not_wasted(classifier, oracles):
    oracle = oracles["probabilities"](classifier(0))
    settings = DFMESettings(
        batch_size=16, clone_batches=2, latent=8, width=2, clone_optimizer="adam", clone_rate=1e-2, schedule="constant"
    )
    final = {}
    for reuse in (False, True):
        attack = dfme(classifier(1), dataclasses.replace(settings, reuse=reuse))
        run = core.run(core.against(attack, oracle), KEY, 40, chunk=40)
        assert run.metrics["loss"][-5:].mean() < 0.4 * run.metrics["loss"][:2].mean()
        assert run.metrics["flat"].mean() < 0.05, "float32 resolves the differences"
        final[reuse] = run
    # two more updates an iteration on the rows of the differences
    counts = [int(final[reuse].state.clone.optimizer_state[0].count) for reuse in (False, True)]
    assert counts == [80, 160]
    clone = clone_of(classifier(1), final[True].state)
    rows = jax.random.uniform(KEY, (50, 8, 8, 1))
    assert clone(rows).shape == (50, 3)


@pytest.mark.slow
def test_answers_that_are_rounded_leave_no_differences(classifier, oracles):
    oracle = oracles["probabilities"](classifier(0))
    settings = DFMESettings(batch_size=8, clone_batches=1, latent=4, width=2, schedule="constant")
    with pytest.warns(UserWarning, match="rounded to 2 decimals"):
        attack = dfme(classifier(1), settings, Reveal(decimals=2))

    def rounded(rows):
        return np.round(np.asarray(oracle(rows)), 2)

    # The clone's own logits still move: the share is of what V and S together show.
    method = core.against(attack, rounded, host=True)
    _, metrics = method.step(KEY, jax.jit(method.init)(KEY))
    assert np.isfinite(metrics["disagreement"])

    def constant(rows):
        return np.tile(np.float32([0.2, 0.3, 0.5]), (len(rows), 1))

    frozen = dfme(classifier(1), dataclasses.replace(settings, clone_rate=1e-30))
    state = jax.jit(frozen.init)(KEY)
    state = state._replace(clone=jax.tree.map(jnp.zeros_like, state.clone))
    quantised = core.against(frozen, constant, host=True)
    _, metrics = quantised.step(KEY, state)
    assert metrics["flat"] == 1, "a constant victim and a constant clone have no differences"


@pytest.mark.slow
def test_maze_learns_from_old_answers(classifier, oracles):
    settings = MAZESettings(
        batch_size=8, clone_batches=2, latent=4, width=2, schedule="constant", directions=2, replay_batches=2,
        replay_capacity=40, clone_rate=0.05,
    )  # fmt: skip
    assert settings.rows_per_step == 8 * (2 + 3)
    run = core.run(core.against(maze(classifier(1), settings), oracles["probabilities"](classifier(0))), KEY, 30)
    assert run.metrics["loss"][-5:].mean() < 0.5 * run.metrics["loss"][0]
    assert run.metrics["replay_loss"][-5:].mean() < 0.5 * run.metrics["replay_loss"][0]
    assert run.state.replay.written == 30 * 16 - (30 * 16 // 40 - 1) * 40


def test_published_budgets():
    settings = DFMESettings()
    assert settings.rows_per_step == 1792
    assert settings.with_budget(20_000_000).steps == 11_160
    assert MAZESettings().rows_per_step == 128 * (11 + 5)
    assert DFMESettings(central=True, directions=3).rows_per_step == 256 * 11
    assert SMALL_DFME.with_budget(10_000).steps == 44
    assert steps_for(1792, 1792) == 1


def test_bad_input(classifier):
    with pytest.raises(InputError, match="a budget of 1791 rows does not pay for one iteration, which asks 1792"):
        DFMESettings().with_budget(1791)
    with pytest.raises(InputError, match=r"multistep schedule needs the number of steps.*with_budget"):
        dfme(classifier(1), DFMESettings(width=2))
    ready = DFMESettings(width=2, steps=3)
    with pytest.raises(InputError, match="labels do not have; use DFMS-HL or DisGUIDE"):
        dfme(classifier(1), ready, Reveal("label"))
    with pytest.raises(InputError, match="answers 4 classes and the clone has 3"):
        dfme(classifier(1), ready, num_classes=4)
    with pytest.raises(InputError, match=r"leave the box \[0.0, 1.0\]"):
        dfme(classifier(1), dataclasses.replace(ready, post_transform=True))
    with pytest.raises(InputError, match="replay_capacity must hold one iteration, 768 rows"):
        MAZESettings(replay_capacity=100)
    with pytest.raises(InputError, match="reuse belongs to DFME"):
        MAZESettings(reuse=True)
    with pytest.raises(InputError, match="chunk must be at least 1"):
        DFMESettings(chunk=0)


def test_what_an_iteration_asks_and_learns():
    """B (n_S + m + 1) rows, 2m for central differences; reused answers are as many updates more."""
    settings = DFMESettings(batch_size=3, clone_batches=2, directions=4, replay_batches=5, chunk=1)
    assert settings.rows_per_step == 3 * (2 + 5)
    assert settings.extra_clone_updates == 5
    assert dataclasses.replace(settings, central=True).rows_per_step == 3 * (2 + 8)
    assert dataclasses.replace(settings, reuse=True).extra_clone_updates == 5 + 5
