"""The stages before DFMS alternates, and what they hand on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.core.errors import InputError
from dfke_jax.data.augment import flip
from dfke_jax.extraction import (
    FIRST_CLONE,
    Adversaries,
    CloneTraining,
    DFMSSettings,
    PoolAttackSettings,
    adversarial_pretraining,
    dfms,
    diversity_tuning,
    first_samples,
    knockoff,
)
from dfke_jax.nn.training import trained
from dfke_jax.oracle import Reveal

KEY = jax.random.key(81)
SETTINGS = DFMSSettings(
    batch_size=16, latent=4, width=2, schedule="constant", clone_optimizer="adam", clone_rate=1e-2, diversity=2.0,
    tuning_diversity=30.0, generator_rate=5e-3,
)  # fmt: skip
PROXY = jax.random.randint(KEY, (30, 8, 8, 1), 0, 256).astype(jnp.uint8)


@pytest.fixture(scope="module")
def begun():
    return jax.jit(adversarial_pretraining(PROXY, SETTINGS).init)(KEY)


@pytest.fixture(scope="module")
def pool(begun):
    return first_samples(KEY, begun, PROXY, 40, SETTINGS)


@pytest.fixture(scope="module")
def first(classifier, oracles, pool):
    """The clone of stage 1."""
    settings = PoolAttackSettings(
        budget=40,
        rows_per_step=20,
        clone=CloneTraining(steps=60, batch_size=16, optimizer="adam", learning_rate=1e-2, decay_at=()),
    )
    attack = knockoff(classifier(1), pool, Reveal("label"), settings)
    return core.run(core.against(attack, oracles["labels"](classifier(0))), KEY, settings.rounds).state.clone


@pytest.mark.slow
def test_the_first_pool_is_half_proxy_and_half_made(begun, pool):
    assert (pool.shape, pool.dtype) == ((40, 8, 8, 1), jnp.float32)
    given = {row.tobytes() for row in np.asarray(PROXY)}
    levels = np.asarray(jnp.round(pool * 255).astype(jnp.uint8))
    found = [row.tobytes() for row in levels]
    assert set(found[:20]) <= given
    assert len(set(found[:20])) == 20, "without replacement"
    assert not set(found[20:]) & given
    from dfke_jax.nn.generators import DCGANGenerator

    module = DCGANGenerator((8, 8, 1), 2, 4)
    z = jax.random.normal(jax.random.split(jax.random.fold_in(KEY, 1), 1)[0], (20, 4))
    made = module.apply(begun.generator.variables, z)
    np.testing.assert_allclose(pool[20:], made, atol=1e-5, err_msg="in evaluation mode")


def test_published_numbers():
    assert FIRST_CLONE.budget == 50_000
    assert FIRST_CLONE.clone.steps * FIRST_CLONE.clone.batch_size == 200 * FIRST_CLONE.budget
    assert (DFMSSettings().diversity, DFMSSettings().tuning_diversity) == (500, 10)


@pytest.mark.slow
def test_stage_after_stage(classifier, oracles, begun, first):
    """Labels -> clone -> a generator that reaches its classes -> alternation, which begins at both."""
    victim, clone = classifier(0), trained(classifier(1), first)
    agreed = jnp.argmax(clone(jnp.float32(PROXY / 255)), -1) == oracles["labels"](victim)(jnp.float32(PROXY / 255))
    assert agreed.mean() > 0.6, "three classes"
    tuning = diversity_tuning(clone, PROXY, SETTINGS, begun)
    run = core.run(tuning, KEY, 40, chunk=40)
    assert isinstance(run.state, Adversaries)
    assert set(run.metrics) == {"generator_loss", "discriminator_loss", "entropy"}
    # two classes cannot have more than log 2
    assert run.metrics["entropy"][-5:].mean() > np.log(2) > run.metrics["entropy"][0]
    assert run.state.generator.optimizer_state[0].count == 40
    attack = dfms(classifier(1), PROXY, SETTINGS, start=run.state, first=first, augment=flip())
    state = jax.jit(attack.init)(KEY)
    for found, expected in (
        (state.clone.variables, first.variables),
        (state.generator.variables, run.state.generator.variables),
        (state.discriminator.variables, run.state.discriminator.variables),
    ):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    done = core.run(core.against(attack, oracles["labels"](victim)), KEY, 2, chunk=2)
    assert all(np.isfinite(values).all() for values in done.metrics.values())


@pytest.mark.slow
def test_the_clone_stands_still_while_the_generator_is_tuned(classifier, begun):
    """One step against the gradient of the same loss written out."""
    from dfke_jax.nn.discriminators import DCGANDiscriminator
    from dfke_jax.nn.generators import DCGANGenerator

    clone = classifier(2)
    tuning = diversity_tuning(clone, PROXY, dataclasses.replace(SETTINGS, tuning_diversity=7.0), begun)
    after, metrics = jax.jit(tuning.step)(KEY, begun)
    z = jax.random.normal(jax.random.split(KEY)[0], (16, 4))

    @jax.jit
    def loss(params):
        variables = {**begun.generator.variables, "params": params}
        images, _ = DCGANGenerator((8, 8, 1), 2, 4).apply(variables, z, train=True, mutable=["batch_stats"])
        logits, _ = DCGANDiscriminator(2).apply(
            begun.discriminator.variables, images, train=True, mutable=["batch_stats"]
        )
        share = jax.nn.softmax(clone(images)).mean(0)
        return -jnp.log(jax.nn.sigmoid(logits)).mean() + 7.0 * jnp.sum(share * jnp.log(share)), share

    gradient, share = jax.jit(jax.grad(loss, has_aux=True))(begun.generator.variables["params"])
    np.testing.assert_allclose(metrics["entropy"], -np.sum(share * np.log(share)), rtol=1e-4)
    moments = after.generator.optimizer_state[0].mu  # of Adam after one step: (1 − β_1)·gradient
    for a, b in zip(jax.tree.leaves(moments), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, 0.5 * b, rtol=1e-3, atol=1e-6)


def test_what_is_asked_is_augmented_and_what_is_judged_is_not(classifier):
    dark = Partial(lambda key, images: images * 0.1)
    plain, changed = (dfms(classifier(1), PROXY, SETTINGS, augment=augment) for augment in (None, dark))
    state = jax.jit(plain.init)(KEY)
    rows, darker = (jax.jit(attack.ask)(KEY, state)[1] for attack in (plain, changed))
    np.testing.assert_allclose(darker, 0.1 * rows, rtol=1e-5)


def test_bad_input(classifier, begun):
    with pytest.raises(InputError, match="25 of 50 samples are to be proxy images and there are 5"):
        first_samples(KEY, begun, PROXY[:5], 50, SETTINGS)
    with pytest.raises(InputError, match=r"proxy lie in \[0, 1\]"):
        first_samples(KEY, begun, PROXY, 5, SETTINGS, proxy=1.5)
    with pytest.raises(InputError, match=r"proxy images are \(9, 9, 1\)"):
        diversity_tuning(classifier(1), jnp.zeros((3, 9, 9, 1)), SETTINGS, begun)
    with pytest.raises(InputError, match="must not be negative"):
        DFMSSettings(tuning_diversity=-1)
    with pytest.raises(InputError, match="post_transform must be False"):
        dfms(classifier(1), PROXY, dataclasses.replace(SETTINGS, post_transform=True))


def test_the_ends_of_what_is_accepted():
    assert DFMSSettings(diversity=0.0, tuning_diversity=0.0, adam_decay=0.0).adam_decay == 0
    for changes in ({"diversity": -0.1}, {"tuning_diversity": -0.1}, {"adam_decay": -0.1}, {"adam_decay": 1.0}):
        with pytest.raises(InputError, match="must not be negative and adam_decay must lie"):
            DFMSSettings(**changes)
