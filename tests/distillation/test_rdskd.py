"""RDSKD: the released loop written out beside the method, its references, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core.errors import InputError
from dfke_jax.distillation import RDSKDSettings, SamplingSettings, gan_sampling, rdskd, rdskd_generator
from dfke_jax.distillation.rdskd import rdskd_cost
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.generators import DFMEGenerator
from dfke_jax.nn.mlp import MLP

SHAPE, K = (8, 8, 1), 3
KEY = jax.random.key(11)
NORMAL = Preprocessing(mean=(0.4,), std=(0.2,))
SMALL = {"batch_size": 30, "latent": 4, "width": 2}
RATE = 1e-2


def network(seed, units=(9,)):
    return Classifier.create(MLP(K, units), jax.random.key(seed), SHAPE, NORMAL)


def losses(logits, inputs):
    """L_oh, L_ie and L_ds as the released code computes them."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    one_hot = -np.log(p[np.arange(len(p)), logits.argmax(1)]).mean()
    mean, half = p.mean(0), len(p) // 2
    ratio = np.linalg.norm(inputs[half:] - inputs[:half]) / np.linalg.norm(p[half:] - p[:half])
    return one_hot, (mean * np.log(mean)).sum(), 1 / (ratio + 1e-20)


@pytest.mark.slow
def test_three_steps_are_the_released_loop():
    """With a period of two the references are those of the second step from the third on."""
    teacher = network(0)
    settings = RDSKDSettings(**SMALL, generator_rate=RATE, period=2)
    method = rdskd(teacher, settings)
    state = jax.jit(method.init)(KEY)
    step, reference = jax.jit(method.step), np.zeros(2)
    for t in range(3):
        key = jax.random.fold_in(KEY, t)
        before, (state, metrics) = state, step(key, state)
        z = jax.random.normal(key, (30, 4))

        def inputs(params, before=before, z=z):
            x, _ = DFMEGenerator(SHAPE, 2, 4).apply(
                {**before.generator.variables, "params": params}, z, train=True, mutable=["batch_stats"],
                method="pre_activation",
            )  # fmt: skip
            return ((jnp.tanh(x) + 1) / 2 - 0.4) / 0.2

        params = before.generator.variables["params"]
        logits = np.asarray(teacher.module.apply(teacher.variables, inputs(params)), np.float64)
        found = losses(logits, np.asarray(inputs(params), np.float64))
        for name, value in zip(("one_hot", "entropy", "likeness"), found, strict=True):
            np.testing.assert_allclose(metrics[name], value, rtol=2e-4, err_msg=name)
        expected = np.exp(found[0] - reference[0]) + np.exp(found[1] - reference[1]) + found[2]
        np.testing.assert_allclose(metrics["generator_loss"], expected, rtol=2e-4)

        @jax.grad
        def slope(params, inputs=inputs, reference=reference):
            x = inputs(params)
            p = jax.nn.softmax(teacher.module.apply(teacher.variables, x))
            mean, apart = p.mean(0), lambda values: jnp.sqrt(jnp.sum((values[15:] - values[:15]) ** 2))
            sure, balance = -jnp.mean(jnp.log(p.max(1))), jnp.sum(mean * jnp.log(mean))
            return jnp.exp(sure - reference[0]) + jnp.exp(balance - reference[1]) + apart(p) / apart(x)

        if t == 0:  # Adam's first step is −rate·sign of the gradient, where that is not tiny
            after = state.generator.variables["params"]
            for a, b, g in zip(*map(jax.tree.leaves, (params, after, slope(params))), strict=True):
                large = np.abs(g) > 1e-4
                np.testing.assert_allclose((b - a)[large], -RATE * np.sign(g)[large], atol=2e-2 * RATE)
        if t % 2 == 1:
            reference = np.asarray(found[:2])
        np.testing.assert_allclose(state.reference, reference, rtol=2e-4)
    assert state.steps == 3
    assert reference.any()


@pytest.mark.slow
def test_without_damping_and_diversity_two_losses_are_added():
    settings = RDSKDSettings(**SMALL, damped=False, diversity=0.0, generator_rate=0.0)
    method = rdskd(network(0), settings)
    before = method.init(KEY)
    after, metrics = jax.jit(method.step)(KEY, before)
    np.testing.assert_allclose(metrics["generator_loss"], metrics["one_hot"] + metrics["entropy"], rtol=1e-5)
    same = jax.tree.map(np.array_equal, before.generator.variables["params"], after.generator.variables["params"])
    assert all(jax.tree.leaves(same))  # the control


@pytest.mark.slow
def test_a_student_learns_from_its_frozen_generator():
    """The generator normalises by running statistics: an image is the same whatever the batch it is made in."""
    teacher, settings = network(0), RDSKDSettings(**SMALL)
    state, _ = jax.jit(rdskd(teacher, settings).step)(KEY, rdskd(teacher, settings).init(KEY))
    made = rdskd_generator(teacher, settings, state)
    z = jax.random.normal(KEY, (5, 4))
    np.testing.assert_allclose(made(z)[:2], made(z[:2]), atol=1e-5)
    assert made(z).shape == (5, *SHAPE)
    assert made(z).min() >= 0
    assert made(z).max() <= 1
    still = SamplingSettings(batch_size=6, latent=4, latent_steps=0, student_optimizer="sgd", student_rate=0.1)
    student = gan_sampling(made, teacher, network(1), still)
    _, metrics = jax.jit(student.step)(KEY, student.init(KEY))
    assert np.isfinite(metrics["loss"])
    assert metrics["loss"] > 0


@pytest.mark.slow
def test_images_that_are_all_the_same_are_no_nan():
    """A generator of zeros: the released ratio is 0/0 there."""
    method = rdskd(network(0), RDSKDSettings(**SMALL))
    state = method.init(KEY)
    zeros = jax.tree.map(jnp.zeros_like, state.generator.variables["params"])
    dead = state._replace(generator=state.generator._replace(variables={**state.generator.variables, "params": zeros}))
    after, metrics = jax.jit(method.step)(KEY, dead)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, metrics)))


def test_what_it_refuses_and_costs():
    for changes in ({"batch_size": 5}, {"period": 0}, {"diversity": -1.0}):
        with pytest.raises(InputError, match=next(iter(changes))):
            RDSKDSettings(**changes)
    with pytest.warns(UserWarning, match="RDSKD balances the mean answer"):
        rdskd(network(0), RDSKDSettings(batch_size=4))
    assert rdskd_cost(RDSKDSettings())[:3] == (512, 512, 512)
