"""DeGAN and amalgamation: one iteration of each written out by hand, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core.errors import InputError
from dfke_jax.distillation import DeGANSettings, DFKASettings, Teachers, degan, degan_images, dfka
from dfke_jax.distillation.degan import degan_cost
from dfke_jax.distillation.dfka import dfka_cost, task_accuracies
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.discriminators import DCGANDiscriminator
from dfke_jax.nn.generators import DCGANGenerator, DFMEGenerator
from dfke_jax.nn.heads import Heads
from dfke_jax.nn.mlp import MLP

SHAPE = (8, 8, 1)
KEY = jax.random.key(5)
PROXY = jax.random.uniform(jax.random.key(6), (7, *SHAPE))


def network(seed, classes=3):
    return Classifier.create(MLP(classes, (6,)), jax.random.key(seed), SHAPE)


def adam(before, after, gradient, rate):
    """Adam's first step is −rate·sign of the gradient, where that is not tiny."""
    for a, b, g in zip(*map(jax.tree.leaves, (before, after, gradient)), strict=True):
        large = np.abs(g) > 1e-4
        np.testing.assert_allclose((b - a)[large], -rate * np.sign(g)[large], atol=2e-2 * rate)
    assert any((np.abs(leaf) > 1e-4).any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_degan_deceives_the_discriminator_and_covers_the_classes(monkeypatch):
    settings = DeGANSettings(batch_size=40, latent=3, width=2, entropy=0.3, diversity=2.0)
    teacher, rate = network(0), 2e-4
    method = degan(teacher, PROXY, settings)
    before = jax.jit(method.init)(KEY)
    after, metrics = jax.jit(method.step)(KEY, before)
    latent_key, row_key = jax.random.split(KEY)
    z = jax.random.normal(latent_key, (40, 3))
    generator, judge = DCGANGenerator(SHAPE, 2, 3), DCGANDiscriminator(2)

    def made(params):
        return generator.apply(
            {**before.generator.variables, "params": params}, z, train=True, mutable=["batch_stats"]
        )[0]

    def real(variables, x):
        """The logit of "given"."""
        return judge.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    def generator_loss(params):
        x = made(params)
        p = jax.nn.softmax(teacher(x))
        uncertain = -jnp.mean(jnp.sum(p * jnp.log(p), -1))
        mean = p.mean(0)
        adversarial = -jnp.mean(jnp.log(jax.nn.sigmoid(real(before.discriminator.variables, x))))
        return adversarial + 0.3 * uncertain + 2.0 * jnp.sum(mean * jnp.log(mean))

    params = before.generator.variables["params"]
    value, gradient = jax.value_and_grad(generator_loss)(params)
    np.testing.assert_allclose(metrics["generator_loss"], value, rtol=1e-5)
    adam(params, after.generator.variables["params"], gradient, rate)

    fake, given = made(params), PROXY[jax.random.randint(row_key, (40,), 0, 7)]

    def judge_loss(params):
        variables = {**before.discriminator.variables, "params": params}
        sure = lambda x: jax.nn.sigmoid(real(variables, x))
        return -jnp.mean(jnp.log(sure(given))) - jnp.mean(jnp.log(1 - sure(fake)))

    params = before.discriminator.variables["params"]
    value, gradient = jax.value_and_grad(judge_loss)(params)
    np.testing.assert_allclose(metrics["discriminator_loss"], value, rtol=1e-5)
    adam(params, after.discriminator.variables["params"], gradient, rate)

    images = degan_images(after, settings, SHAPE, KEY, 11, 4)
    assert images.shape == (11, *SHAPE)
    alone = generator.apply(after.generator.variables, jax.random.normal(KEY, (3, 4, 3))[1], train=False)
    np.testing.assert_allclose(images[4:8], alone, atol=1e-5)


@pytest.mark.slow
def test_a_rate_of_zero_leaves_degans_generator_as_it_was():
    method = degan(network(0), PROXY, DeGANSettings(batch_size=30, latent=2, width=2, generator_rate=0.0))
    before = method.init(KEY)
    after, _ = jax.jit(method.step)(KEY, before)
    jax.tree.map(
        np.testing.assert_array_equal, before.generator.variables["params"], after.generator.variables["params"]
    )


def test_what_degan_refuses_and_costs():
    with pytest.raises(InputError, match=r"proxy images must be \(N, 8, 8, 1\)"):
        degan(network(0), PROXY[:, :4], DeGANSettings())
    with pytest.raises(InputError, match="diversity must not be negative"):
        DeGANSettings(diversity=-1.0)
    with pytest.warns(UserWarning, match="DeGAN balances the mean answer"):
        degan(network(0), PROXY, DeGANSettings(batch_size=4))
    assert degan_cost(DeGANSettings(diversity=0.0))[:3] == (2048, 2048, 0)


@pytest.mark.slow
def test_amalgamation_sums_over_teachers_and_heads():
    teachers = (network(0, 3), network(1, 2))
    student = Classifier.create(Heads(MLP(5, (6,)), (3, 2)), jax.random.key(2), SHAPE)
    plain = {"student_optimizer": "sgd", "generator_optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    settings = DFKASettings(**plain, batch_size=40, latent=3, width=2, student_rate=0.1, generator_rate=0.05)
    method = dfka(teachers, student, settings)
    before = jax.jit(method.init)(KEY)
    after, metrics = jax.jit(method.step)(KEY, before)
    z = jax.random.normal(jax.random.split(KEY, 3)[0], (40, 3))
    module = DFMEGenerator(SHAPE, 2, 3)

    def made(params):
        variables = {**before.generator.variables, "params": params}
        x, _ = module.apply(variables, z, train=True, mutable=["batch_stats"], method="pre_activation")
        return (jnp.tanh(x) + 1) / 2

    def generator_loss(params):
        x, total = made(params), 0.0
        for teacher in teachers:
            p = jax.nn.softmax(teacher(x))
            mean = p.mean(0)
            total += -jnp.mean(jnp.log(p.max(-1))) - 0.1 * jnp.mean(jnp.abs(teacher.features(x)))
            total += 5.0 * jnp.sum(mean * jnp.log10(mean))
        return total

    params = before.generator.variables["params"]
    value, gradient = jax.value_and_grad(generator_loss)(params)
    np.testing.assert_allclose(metrics["generator_loss"], value, rtol=1e-5)
    moved(params, after.generator.variables["params"], gradient, 0.05)

    images = made(params)

    def student_loss(params):
        logits, total = student.module.network.apply({"params": params["network"]}, images), 0.0
        for teacher, part in zip(teachers, (logits[:, :3], logits[:, 3:]), strict=True):
            p = jax.nn.softmax(teacher(images))
            total += jnp.mean(jnp.sum(p * (jnp.log(p) - jax.nn.log_softmax(part)), -1))
        return total

    own = before.student.variables["params"]
    value, gradient = jax.value_and_grad(student_loss)(own)
    np.testing.assert_allclose(metrics["student_loss"], value, rtol=1e-4)
    moved(own, after.student.variables["params"], gradient, 0.1)
    assert {"generator_loss/task0", "class_entropy/task1"} <= set(metrics)
    assert dfka_cost(settings, 2)[:3] == (40, 80, 80)
    together = Teachers(members=teachers)(images)
    np.testing.assert_allclose(together["task1"], teachers[1](images), atol=1e-6)


def moved(before, after, gradient, rate):
    for a, b, g in zip(*map(jax.tree.leaves, (before, after, gradient)), strict=True):
        np.testing.assert_allclose((a - b) / rate, g, rtol=2e-3, atol=5e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-3


def test_accuracies_by_task():
    answers = [np.eye(2)[[0, 1, 1, 0]], np.eye(3)[[2, 2, 0, 1]]]
    assert task_accuracies(answers, np.array([0, 0, 2, 3]), (2, 3)) == [0.5, 1.0]


def test_what_amalgamation_refuses():
    student = Classifier.create(Heads(MLP(5, (6,)), (3, 2)), jax.random.key(2), SHAPE)
    settings = DFKASettings(batch_size=40, schedule="constant")
    with pytest.raises(InputError, match="at least one teacher"):
        dfka((), student, settings)
    with pytest.raises(InputError, match="must agree on classes and images"):
        dfka((network(0, 3), network(1, 3)), student, settings)
    other = Classifier.create(MLP(2, (6,)), jax.random.key(3), (4, 4, 1))
    with pytest.raises(InputError, match="teachers must take the same images"):
        dfka((network(0, 3), other), student, settings)
