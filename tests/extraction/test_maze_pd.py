"""The critic's penalty and step against closed forms and PyTorch, and what the critic does to the generator."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import InputError
from dfke_jax.extraction import MAZEPDSettings, MAZESettings, maze, maze_pd
from dfke_jax.extraction.common import scheduled
from dfke_jax.extraction.maze_pd import critic_step
from dfke_jax.nn.classifier import Preprocessing
from dfke_jax.nn.discriminators import between, gradient_penalty
from dfke_jax.nn.training import Training
from dfke_jax.oracle import Reveal

KEY = jax.random.key(71)
GAME = {"batch_size": 8, "clone_batches": 2, "latent": 4, "width": 2, "schedule": "constant", "directions": 2}
SMALL = MAZEPDSettings(**GAME, replay_batches=0, critic_width=2)
# the left half is bright and the right half dark
SEEDS = jnp.broadcast_to(jnp.where(jnp.arange(8) < 4, 0.9, 0.1).reshape(1, 1, 8, 1), (6, 8, 8, 1))
ANSWERS = jnp.full((6, 3), 1 / 3)


def test_the_penalty_of_a_linear_critic():
    """(‖w‖ − 1)², with gradient 2 (‖w‖ − 1) w/‖w‖; a critic that is flat is at the minimum of nothing, and costs 1."""
    w, points = jax.random.normal(KEY, (8, 8, 1)), jax.random.uniform(KEY, (5, 8, 8, 1))
    penalty = lambda w: gradient_penalty(lambda x: jnp.sum(x * w[None], (1, 2, 3)), points)
    value, gradient = jax.value_and_grad(penalty)(w)
    norm = np.linalg.norm(w)
    np.testing.assert_allclose(value, (norm - 1) ** 2, rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * (norm - 1) / norm * w, rtol=1e-4)
    value, gradient = jax.value_and_grad(penalty)(jnp.zeros((8, 8, 1)))
    assert value == 1
    assert not gradient.any()


def test_points_lie_on_the_lines_between():
    first, second = jax.random.uniform(KEY, (2, 50, 8, 8, 1))
    share = np.asarray((between(KEY, first, second) - second) / (first - second)).reshape(50, -1)
    np.testing.assert_allclose(share, np.broadcast_to(np.median(share, 1, keepdims=True), share.shape), atol=1e-2)
    spread = np.sort(np.median(share, 1))
    assert spread[0] < 0.1 < 0.9 < spread[-1]


def test_a_step_of_the_critic_is_pytorchs(classifier):
    """Double backward through its convolutions, momentum and decay, at equal weights."""
    torch = pytest.importorskip("torch")
    settings = dataclasses.replace(SMALL, critic_rate=0.05, penalty=3.0)
    given, made = jax.random.uniform(KEY, (2, 8, 8, 8, 1))
    params = settings.critic.init(KEY, given)["params"]
    params = jax.tree.map(lambda leaf: 10 * leaf, params)  # steep enough for the penalty to matter
    critic = Training({"params": params}, settings.critic_rule.init(params))
    after, metrics = jax.jit(critic_step, static_argnums=0)(settings, critic, given, made, KEY)

    order = [(f"conv{i}", part) for i in (1, 2, 3) for part in ("kernel", "bias")]
    order += [("head", "kernel"), ("head", "bias")]
    listed = lambda tree: [np.asarray(tree[layer][part]) for layer, part in order]
    theirs = [torch.tensor(leaf, requires_grad=True) for leaf in listed(params)]
    optimizer = torch.optim.SGD(theirs, 0.05, momentum=0.9, weight_decay=5e-4)

    def score(images):
        x = 2 * images.permute(0, 3, 1, 2) - 1
        for kernel, bias in zip(theirs[0:6:2], theirs[1:6:2], strict=True):
            x = torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride=2, padding=1)
            x = torch.nn.functional.leaky_relu(x, 0.2)
        return (x.permute(0, 2, 3, 1).flatten(1) @ theirs[6] + theirs[7])[:, 0]

    points = torch.tensor(np.asarray(between(KEY, made, given)), requires_grad=True)
    (slopes,) = torch.autograd.grad(score(points).sum(), points, create_graph=True)
    penalty = ((slopes.flatten(1).norm(dim=1) - 1) ** 2).mean()
    gap = score(torch.tensor(np.asarray(given))).mean() - score(torch.tensor(np.asarray(made))).mean()
    (3.0 * penalty - gap).backward()
    optimizer.step()
    np.testing.assert_allclose(metrics["penalty"], penalty.item(), rtol=1e-4)
    np.testing.assert_allclose(metrics["critic"], gap.item(), rtol=1e-3, atol=1e-5)
    ours, before = listed(after.variables["params"]), listed(params)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other.detach(), rtol=1e-4, atol=1e-5)
    assert max(np.abs(a - b).max() for a, b in zip(ours, before, strict=True)) > 1e-2


@pytest.mark.slow
def test_without_weight_it_is_maze(classifier, oracles):
    """The control: clone and generator go through the very states of MAZE, whatever the critic does."""
    oracle = oracles["probabilities"](classifier(0))
    plain = maze(classifier(1), MAZESettings(**GAME, replay_batches=0))
    control = maze_pd(classifier(1), SEEDS, ANSWERS, dataclasses.replace(SMALL, critic_weight=0.0))
    expected, found = (core.run(core.against(attack, oracle), KEY, 3, chunk=3).state for attack in (plain, control))
    for part in ("clone", "generator"):
        for a, b in zip(jax.tree.leaves(getattr(found, part)), jax.tree.leaves(getattr(expected, part)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_the_critics_part_of_the_generators_step_is_exact(classifier):
    """Victim and clone are constant, so that differences vanish and α·D(G(z)) alone moves the generator."""
    settings = dataclasses.replace(SMALL, critic_weight=2.0, generator_rate=50.0, weight_decay=0.0, clone_rate=1e-30)
    attack = maze_pd(classifier(1), SEEDS, ANSWERS, settings)
    game = attack.init.args[0]
    state = jax.jit(attack.init)(KEY)
    state = state._replace(clone=jax.tree.map(jnp.zeros_like, state.clone))
    _, rows = jax.jit(attack.ask)(KEY, state)
    after, metrics = jax.jit(attack.tell)(KEY, state, rows, jnp.full((len(rows), 3), 1 / 3))
    assert metrics["flat"] == 1

    @jax.jit
    def gain(params):
        x, _ = game.maker.pre_activations({**state.generator.variables, "params": params}, game.draws(KEY).generator_z)
        return 2.0 * jnp.mean(settings.critic.apply(after.critic.variables, game.maker.shown(x)))

    before = state.generator.variables["params"]
    expected = jax.tree.map(lambda p, g: p + 50.0 * g, before, jax.jit(jax.grad(gain))(before))
    found = after.generator.variables["params"]
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (found, before)), strict=True)) > 1e-3
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_the_critic_draws_the_generator_to_the_seeds(classifier, oracles):
    settings = dataclasses.replace(
        SMALL, generator_optimizer="adam", generator_rate=1e-2, critic_optimizer="adam", critic_rate=5e-3,
        critic_width=4, replay_batches=1, replay_capacity=40, clone_rate=1e-3, critic_weight=100.0,
    )  # fmt: skip
    attack = maze_pd(classifier(1), SEEDS, ANSWERS, settings, num_classes=3)
    ask = jax.jit(attack.ask)

    def sides(state):
        rows = np.asarray(ask(KEY, state)[1])
        return rows[:, :, :4].mean() - rows[:, :, 4:].mean()

    method = core.against(attack, oracles["probabilities"](classifier(0)))
    begun = sides(jax.jit(attack.init)(KEY))
    run = core.run(method, KEY, 40, chunk=40)
    assert sides(run.state) > 0.3 > abs(begun)
    assert all(np.isfinite(values).all() for values in run.metrics.values())


def test_seeds_are_the_first_rows_of_the_ring(classifier):
    settings = dataclasses.replace(SMALL, replay_batches=1, replay_capacity=40)
    state = jax.jit(maze_pd(classifier(1), SEEDS, ANSWERS, settings).init)(KEY)
    assert int(state.replay.written) == 6
    np.testing.assert_allclose(state.replay.images[:6] / 255, SEEDS, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(state.replay.targets[:6], ANSWERS, atol=1e-3)


def test_bad_input(classifier):
    clone = classifier(1)
    with pytest.raises(InputError, match="need as many answers"):
        maze_pd(clone, SEEDS, ANSWERS[:5], SMALL)
    with pytest.raises(InputError, match=r"seeds are \(2, 9, 8, 1\)"):
        maze_pd(clone, jnp.zeros((2, 9, 8, 1)), ANSWERS[:2], SMALL)
    with pytest.raises(InputError, match="must hold the 60 seeds"):
        maze_pd(
            clone, jnp.tile(SEEDS, (10, 1, 1, 1)), jnp.tile(ANSWERS, (10, 1)),
            dataclasses.replace(SMALL, replay_batches=1, replay_capacity=30),
        )  # fmt: skip
    with pytest.raises(InputError, match="labels do not have"):
        maze_pd(clone, SEEDS, jnp.zeros(6, jnp.int32), SMALL, Reveal("label"))
    with pytest.raises(InputError, match="must not be negative"):
        MAZEPDSettings(critic_weight=-1)
    with pytest.raises(core.UnknownNameError, match="lion"):
        MAZEPDSettings(critic_optimizer="lion")


def test_the_ends_of_what_is_accepted(classifier):
    settings = dataclasses.replace(SMALL, critic_weight=0.0, penalty=0.0, critic_width=1, critic_rate=0.5)
    maze_pd(classifier(1), SEEDS[:1], ANSWERS[:1], dataclasses.replace(settings, replay_batches=1, replay_capacity=24))
    maze_pd(
        classifier(1), jnp.tile(SEEDS, (5, 1, 1, 1)), jnp.tile(ANSWERS, (5, 1)),
        dataclasses.replace(settings, replay_batches=1, replay_capacity=30),
    )  # fmt: skip
    for changes in ({"penalty": -1e-9}, {"critic_weight": -1e-9}, {"critic_rate": 0.0}, {"critic_width": 0}):
        with pytest.raises(InputError, match="must not be negative, critic_rate must be positive"):
            dataclasses.replace(SMALL, **changes)
    for seeds, answers in ((SEEDS[:0], ANSWERS[:0]), (SEEDS[..., 0], ANSWERS), (SEEDS[:, :7], ANSWERS)):
        with pytest.raises(InputError, match="seeds are"):
            maze_pd(classifier(1), seeds, answers, SMALL)
    wide = classifier(1).replace(preprocessing=Preprocessing(box=(0.0, 2.0)))
    low = classifier(1).replace(preprocessing=Preprocessing(box=(-1.0, 1.0)))
    behind = dataclasses.replace(SMALL, post_transform=True)
    narrow = classifier(1).replace(preprocessing=Preprocessing(mean=(0.5,), std=(0.2,)))
    for clone, changed in ((wide, SMALL), (low, SMALL), (narrow, behind)):
        with pytest.raises(InputError, match=r"box must be \(0, 1\) and post_transform False"):
            maze_pd(clone, SEEDS, ANSWERS, changed)


def test_the_critics_schedule_spans_its_own_steps():
    """One step beside each of the clone's on fresh batches; no normalisation inside."""
    settings = dataclasses.replace(SMALL, steps=7, schedule="cosine", clone_batches=3)
    rest = (settings.drops, settings.drop_factor, settings.momentum, settings.weight_decay)
    assert settings.critic_rule is scheduled("sgd", 1e-4, 21, "cosine", *rest)
    assert not settings.critic.batch_norm
