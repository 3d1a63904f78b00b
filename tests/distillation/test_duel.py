"""Generator against student: one iteration written out by hand, schedules, and what the methods refuse."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Static
from dfke_jax.distillation import DAFLSettings, DFADSettings, DFQSettings, ZSKTSettings, dafl, dfad, dfq, zskt
from dfke_jax.distillation.dafl import dafl_cost
from dfke_jax.distillation.dfad import dfad_cost
from dfke_jax.distillation.dfq import _gain
from dfke_jax.distillation.duel import Schedule, Seen, student_of
from dfke_jax.distillation.zskt import shared_maps, zskt_cost
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.generators import DFMEGenerator
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.observation import Moments, Observed
from dfke_jax.nn.two_conv import TwoConv

SHAPE, K = (8, 8, 1), 3
KEY = jax.random.key(81)
NORMAL = Preprocessing(mean=(0.4,), std=(0.2,))
# plain descent, so that one update shows the gradient
PLAIN = {
    "batch_size": 6, "latent": 5, "width": 2, "schedule": "constant", "student_optimizer": "sgd", "momentum": 0.0,
    "weight_decay": 0.0, "generator_optimizer": "sgd", "student_rate": 0.1, "generator_rate": 0.05,
}  # fmt: skip


def network(seed, units=(7,), batch_norm=False):
    return Classifier.create(MLP(K, units, batch_norm=batch_norm), jax.random.key(seed), SHAPE, NORMAL)


TEACHER, STUDENT = network(0, (12,)), network(1)


def one_step(method):
    before = jax.jit(method.init)(KEY)
    after, metrics = jax.jit(method.step)(jax.random.fold_in(KEY, 1), before)
    return before, after, metrics


def step_keys():
    return jax.random.split(jax.random.fold_in(KEY, 1), 3)


def made(generator_params, state, z, output):
    module = DFMEGenerator(SHAPE, 2, 5)
    variables = {**state.generator.variables, "params": generator_params}
    x, _ = module.apply(variables, z, train=True, mutable=["batch_stats"], method="pre_activation")
    return {"box": (jnp.tanh(x) + 1) / 2, "normalised": 0.4 + 0.2 * x, "normalised_tanh": 0.4 + 0.2 * jnp.tanh(x)}[
        output
    ]


def log_softmax(z):
    return z - jax.scipy.special.logsumexp(z, -1, keepdims=True)


def kl(t, s):
    return jnp.sum(jnp.exp(log_softmax(t)) * (log_softmax(t) - log_softmax(s)), -1)


def student_logits(params, images):
    return STUDENT.module.apply({"params": params}, (images - 0.4) / 0.2)


def moved(after, before, gradient, rate):
    """Whether parameters moved by −rate times a gradient found otherwise."""
    found = jax.tree.map(lambda a, b: (b - a) / rate, after, before)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=3e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-3


@pytest.mark.parametrize("output", ["box", "normalised", "normalised_tanh"])
def test_dafl_moves_both_players_from_one_batch(output):
    settings = DAFLSettings(**PLAIN, output=output, one_hot=0.7, activation=0.3, entropy=2.0)
    before, after, metrics = one_step(dafl(TEACHER, STUDENT, settings))
    z = jax.random.normal(step_keys()[0], (6, 5))

    @jax.grad
    def generator(params):
        x = made(params, before, z, output)
        logits, features = TEACHER(x), TEACHER.features(x)
        p = jax.nn.softmax(logits)
        one_hot = -jnp.mean(jnp.take_along_axis(log_softmax(logits), logits.argmax(-1)[:, None], 1))
        mean = p.mean(0)
        return 0.7 * one_hot - 0.3 * jnp.mean(jnp.abs(features)) + 2.0 * jnp.sum(mean * jnp.log10(mean))

    params = before.generator.variables["params"]
    moved(after.generator.variables["params"], params, generator(params), 0.05)
    x = made(params, before, z, output)
    own = before.student.variables["params"]
    gradient = jax.grad(lambda params: jnp.mean(kl(TEACHER(x), student_logits(params, x))))(own)
    moved(after.student.variables["params"], own, gradient, 0.1)
    mean = np.asarray(jax.nn.softmax(TEACHER(x))).mean(0)
    np.testing.assert_allclose(metrics["class_entropy"], -(mean * np.log(mean)).sum() / np.log(3), rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy"], (mean * np.log10(mean)).sum(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["l1", "log_l1"])
def test_dfad_is_n_updates_of_the_student_and_then_one_of_the_generator(form):
    settings = DFADSettings(**PLAIN, student_steps=2, form=form)
    before, after, metrics = one_step(dfad(TEACHER, STUDENT, settings))
    latent_key, fresh_key, _ = step_keys()
    start = before.generator.variables["params"]
    own = before.student.variables["params"]
    apart = lambda params, x: jnp.mean(jnp.abs(TEACHER(x) - student_logits(params, x)))
    losses = []
    for i in range(2):
        x = made(start, before, jax.random.normal(jax.random.fold_in(fresh_key, i), (6, 5)), "box")
        loss, gradient = jax.value_and_grad(apart)(own, x)
        losses.append(loss)
        own = jax.tree.map(lambda p, g: p - 0.1 * g, own, gradient)
    for a, b in zip(jax.tree.leaves(after.student.variables["params"]), jax.tree.leaves(own), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["student_loss"], np.mean(losses), rtol=1e-4)
    z = jax.random.normal(latent_key, (6, 5))
    outer = {"l1": lambda value: value, "log_l1": lambda value: jnp.log(1 + value)}[form]
    value, gradient = jax.value_and_grad(lambda params: -outer(apart(own, made(params, before, z, "box"))))(start)
    moved(after.generator.variables["params"], start, gradient, 0.05)
    np.testing.assert_allclose(metrics["generator_loss"], value, rtol=1e-4)


def test_dfq_weighs_disagreement_statistics_sureness_and_balance():
    """The gain alone, of answers and moments that are given."""
    rng = np.random.default_rng(5)
    t, s = rng.normal(size=(2, 6, K)).astype(np.float32)
    mean, stored_mean = rng.normal(size=(2, 4)).astype(np.float32)
    var, stored_var = rng.uniform(0.5, 2.0, size=(2, 4)).astype(np.float32)
    moments = (Moments(mean, var, stored_mean, stored_var),)
    seen = Seen(None, Observed(t, {}, moments, {}), Observed(s, {}, (), {}))
    value, terms = _gain(Static(("kl", True)), (0.6, 0.3, 0.4, 1.5), seen)
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (t, s))
    expected = {
        "adversarial": -(p * np.log(p / q)).sum(1).mean(),
        "one_hot": -np.log(p.max(1)).mean(),
        "balance": (p.mean(0) * np.log(p.mean(0))).sum(),
        "statistics": (
            0.5 * np.log(stored_var / var) + (var + np.square(mean - stored_mean)) / (2 * stored_var) - 0.5
        ).sum(),
    }
    for name, term in expected.items():
        np.testing.assert_allclose(terms[name], term, rtol=1e-4)
    weights = {"adversarial": 0.6, "statistics": 0.3, "one_hot": 0.4, "balance": 1.5}
    whole = sum(weight * expected[name] for name, weight in weights.items())
    np.testing.assert_allclose(value, whole, rtol=1e-4)
    with pytest.raises(InputError, match=r"dfq needs statistics .* MLP shows none: it has no batch"):
        dfq(TEACHER, STUDENT, DFQSettings(**PLAIN))


@pytest.mark.slow
def test_the_generator_of_dfq_descends_its_gain():
    teacher = network(3, (7,), batch_norm=True)
    settings = DFQSettings(
        **{**PLAIN, "student_rate": 1e-9}, student_steps=1, adversarial=0.6, statistics=0.3, one_hot=0.4, balance=1.5
    )
    before, after, metrics = one_step(dfq(teacher, STUDENT, settings))
    z = jax.random.normal(step_keys()[0], (6, 5))
    module = DFMEGenerator(SHAPE, 2, 5, normalised_output=False)
    dense, stored = teacher.variables["params"]["dense1"], teacher.variables["batch_stats"]["dense1_norm"]

    @jax.value_and_grad
    def generator(params):
        x, _ = module.apply({"params": params}, z, train=True, mutable=["batch_stats"], method="pre_activation")
        x = jax.nn.sigmoid(2 * x)
        rows = NORMAL(x).reshape(6, -1) @ dense["kernel"] + dense["bias"][None]
        m, v = rows.mean(0), rows.var(0)
        gaussians = jnp.sum(
            0.5 * (jnp.log(stored["var"] / v) + (v + jnp.square(m - stored["mean"])) / stored["var"] - 1)
        )
        t = teacher(x)
        p = jnp.exp(log_softmax(t)).mean(0)
        apart = jnp.mean(kl(t, student_logits(before.student.variables["params"], x)))
        return -0.6 * apart + 0.3 * gaussians - 0.4 * jnp.mean(log_softmax(t).max(-1)) + 1.5 * jnp.sum(p * jnp.log(p))

    params = before.generator.variables["params"]
    value, gradient = generator(params)
    np.testing.assert_allclose(metrics["generator_loss"], value, rtol=1e-3)
    moved(after.generator.variables["params"], params, gradient, 0.05)


def conv(seed, width):
    return Classifier.create(TwoConv(K, (width, width), 8), jax.random.key(seed), (28, 28, 1))


def test_zskt_learns_from_the_latents_that_the_generator_has_just_moved_on():
    settings = ZSKTSettings(**PLAIN, student_steps=2, attention=0.0, clip=0.0)
    before, after, metrics = one_step(zskt(TEACHER, STUDENT, settings))
    z = jax.random.normal(step_keys()[0], (6, 5))
    own, start = before.student.variables["params"], before.generator.variables["params"]
    apart = lambda params, x: jnp.mean(kl(TEACHER(x), student_logits(params, x))) / K
    gradient = jax.grad(lambda params: -apart(own, made(params, before, z, "box")))(start)
    moved(after.generator.variables["params"], start, gradient, 0.05)
    x = made(after.generator.variables["params"], before, z, "box")
    losses = []
    for _ in range(2):
        loss, gradient = jax.value_and_grad(apart)(own, x)
        losses.append(loss)
        own = jax.tree.map(lambda p, g: p - 0.1 * g, own, gradient)
    for a, b in zip(jax.tree.leaves(after.student.variables["params"]), jax.tree.leaves(own), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["student_loss"], np.mean(losses), rtol=1e-3)


def test_the_attention_term_of_zskt_is_the_mean_over_pixels():
    from dfke_jax.core.method import Static
    from dfke_jax.distillation.zskt import _student_loss
    from dfke_jax.nn.observation import Observed

    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 4, 5, 6, 3)).astype(np.float32)
    b = b[..., :2]
    logits = rng.normal(size=(2, 4, K)).astype(np.float32)
    seen = [Observed(z, {"conv1": maps}, (), {}) for z, maps in zip(logits, (a, b), strict=True)]
    found = _student_loss(Static(("conv1",)), 250.0, *seen)
    attention = [np.square(maps).mean(-1).reshape(4, -1) for maps in (a, b)]
    q = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in attention]
    expected = np.asarray(kl(logits[1], logits[0])) / K + 250 * np.square(q[0] - q[1]).mean(1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_students_statistics_are_those_of_its_own_updates(mode):
    """While the generator moves, the student normalises by the batch or by running statistics; neither is kept."""
    student = network(2, (7,), batch_norm=True)
    settings = DFADSettings(**PLAIN, student_steps=1, student_mode=mode)
    before, after, metrics = one_step(dfad(TEACHER, student, settings))
    _, fresh_key, _ = step_keys()
    start = before.generator.variables["params"]
    x = made(start, before, jax.random.normal(jax.random.fold_in(fresh_key, 0), (6, 5)), "box")
    _, updated = student.module.apply(before.student.variables, NORMAL(x), train=True, mutable=["batch_stats"])
    for a, b in zip(
        jax.tree.leaves(after.student.variables["batch_stats"]), jax.tree.leaves(updated["batch_stats"]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    z = made(start, before, jax.random.normal(step_keys()[0], (6, 5)), "box")
    if mode == "train":
        logits, _ = student.module.apply(after.student.variables, NORMAL(z), train=True, mutable=["batch_stats"])
    else:
        logits = student_of(student, after)(z)
    np.testing.assert_allclose(metrics["generator_loss"], -jnp.mean(jnp.abs(TEACHER(z) - logits)), rtol=1e-3)


@pytest.mark.parametrize("make", [dafl, dfad, zskt])
def test_a_rate_of_zero_leaves_the_generator_as_it_was_drawn(make):
    kind = {dafl: DAFLSettings, dfad: DFADSettings, zskt: ZSKTSettings}[make]
    extra = {"attention": 0.0} if make is zskt else {}
    settings = dataclasses.replace(kind(**PLAIN, **extra), generator_rate=0.0, generator_optimizer="adam")
    before, after, _ = one_step(make(TEACHER, STUDENT, settings))
    for a, b in zip(
        jax.tree.leaves(before.generator.variables["params"]), jax.tree.leaves(after.generator.variables["params"]),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(a, b)


def test_a_teacher_that_answers_one_class_gives_no_nan_and_is_named():
    """Released DAFL multiplies zero by log zero there."""
    sure = dataclasses.replace(TEACHER, variables=jax.tree.map(lambda leaf: leaf * 0, TEACHER.variables))
    sure.variables["params"]["head"]["bias"] = jnp.array([0.0, 500.0, 0.0])
    method = dafl(sure, STUDENT, DAFLSettings(**PLAIN))
    run = core.run(method, KEY, 2, chunk=2)
    assert np.isfinite(run.metrics["generator_loss"]).all()
    np.testing.assert_allclose(run.metrics["class_entropy"], 0, atol=1e-6)
    np.testing.assert_array_equal(run.metrics["class_share/1"], 1)
    with pytest.raises(
        core.CollapseError, match=r"puts 100% of the generator's images into class 1, .* 2 steps up to step 1"
    ):
        core.run(method, KEY, 2, chunk=2, guard=core.Guard("raise", patience=2))


class TwoHeads(nn.Module):
    """Two tasks of 3 and 2 classes on one trunk."""

    units: int = 7

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(nn.Dense(self.units)(x.reshape(x.shape[0], -1)))
        return {"kind": nn.Dense(3)(x), "size": nn.Dense(2)(x)}


def test_a_student_learns_every_head_of_its_teacher():
    teacher, student = (Classifier.create(TwoHeads(n), jax.random.key(n), SHAPE, NORMAL) for n in (9, 4))
    settings = DFADSettings(**PLAIN, student_steps=1)
    before, after, metrics = one_step(dfad(teacher, student, settings))
    start, own = before.generator.variables["params"], before.student.variables["params"]
    x = made(start, before, jax.random.normal(jax.random.fold_in(step_keys()[1], 0), (6, 5)), "box")
    answers = lambda network, params: network.module.apply({"params": params}, NORMAL(x))
    truth = answers(teacher, teacher.variables["params"])
    loss = lambda params: sum(jnp.mean(jnp.abs(answers(student, params)[head] - truth[head])) for head in truth)
    moved(after.student.variables["params"], own, jax.grad(loss)(own), 0.1)
    assert {"class_entropy/kind", "largest_class/size", "class_share/size/1"} < set(metrics)
    with pytest.raises(InputError, match=r"3 classes \(kind\) and 2 classes \(size\) of .* the student 3 classes of"):
        dfad(teacher, STUDENT, settings)


class OwnGenerator(nn.Module):
    """A dense layer, the smallest generator that the engine takes."""

    latent: int = 5

    def __call__(self, z, *, train=False):
        return self.pre_activation(z, train=train)

    @nn.compact
    def pre_activation(self, z, *, train=False):
        return nn.Dense(64, name="pixels")(z).reshape(-1, *SHAPE)


OWN = {"batch_size": 30, "latent": 5, "schedule": "constant", "generator_rate": 0.1}


def test_a_generator_of_ones_own_is_taken():
    """Its parameters are the state's, and they move; a teacher that answers one class alone is named here too."""
    variables = jax.tree.map(jnp.zeros_like, TEACHER.variables)
    head = max(variables["params"], key=lambda name: variables["params"][name]["kernel"].shape[-1] == K)
    variables["params"][head]["bias"] = jnp.asarray([0.0, 0.0, 50.0])
    settings = DFADSettings(**OWN, student_steps=1)
    method = dfad(TEACHER.replace(variables=variables), STUDENT, settings, generator=OwnGenerator())
    begun = jax.jit(method.init)(KEY)
    with pytest.warns(UserWarning, match="class 2"):
        found = core.run(method, KEY, 12, state=begun, guard=core.Guard(patience=10))
    before, after = begun.generator.variables["params"], found.state.generator.variables["params"]
    assert set(after) == {"pixels"}
    assert not np.allclose(after["pixels"]["kernel"], before["pixels"]["kernel"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found.state, found.metrics)))


def test_few_images_a_class_are_warned_of():
    with pytest.warns(UserWarning, match="6 images for 3 classes are few.* Take at least 30"):
        dafl(TEACHER, STUDENT, DAFLSettings(**PLAIN))


def test_costs_of_an_iteration():
    """Samples, and images forward and back through the teacher: the turns of each method, counted by hand."""
    assert dafl_cost(DAFLSettings(batch_size=8))[:3] == (8, 8, 8)
    assert dfad_cost(DFADSettings(batch_size=8, student_steps=5))[:3] == (48, 48, 8)
    assert zskt_cost(ZSKTSettings(batch_size=8, student_steps=10))[:3] == (8, 16, 8)
    assert zskt_cost(ZSKTSettings(batch_size=8)).times(3)["student_updates"] == 30


def test_bad_input():
    with pytest.raises(InputError, match="needs the number of steps it spans"):
        zskt(TEACHER, STUDENT, ZSKTSettings(attention=0.0))
    with pytest.raises(InputError, match=r"share none; attention=0 leaves"):
        zskt(TEACHER, STUDENT, ZSKTSettings(**PLAIN))
    assert shared_maps(conv(0, 4), conv(1, 3)) == ("conv1", "conv2")
    with pytest.raises(InputError, match="share conv1, conv2, and stage9 was asked for"):
        shared_maps(conv(0, 4), conv(1, 3), ("stage9",))
    with pytest.raises(InputError, match="a joint step is one batch"):
        Schedule(2, joint=True)
    with pytest.raises(UnknownNameError, match="mode of the student"):
        DFADSettings(student_mode="trian")
    with pytest.raises(UnknownNameError, match="output of a generator"):
        DAFLSettings(output="picture")
    with pytest.raises(InputError, match="weights must not be negative"):
        DAFLSettings(entropy=-1)
    other = Classifier.create(MLP(4, (3,)), KEY, SHAPE)
    with pytest.raises(InputError, match="3 classes of"):
        dfad(TEACHER, other, DFADSettings(**PLAIN))
