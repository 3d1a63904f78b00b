"""Rounds into a bank: one round written out by hand, warm-up, a full ring, costs, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.distillation.bank import BankSettings, Made, bank_budget, bank_method, student_in
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.mlp import MLP

SHAPE, K = (4, 4, 1), 3
KEY = jax.random.key(31)
NORMAL = Preprocessing(mean=(0.4,), std=(0.2,))
SMALL = {
    "rounds": 4, "batch_size": 5, "steps": 1, "statistics": 0.0, "student_steps": 1, "student_batch": 6,
    "temperature": 2.0, "student_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant",
}  # fmt: skip


def network(seed, units=(7,)):
    return Classifier.create(MLP(K, units), jax.random.key(seed), SHAPE, NORMAL)


TEACHER, STUDENT = network(0, (9,)), network(1)


@core.record
class Noise:
    """Noise, and as labels the round's number; counts its batches."""

    def begin(self, key, teacher):
        return jnp.zeros((), jnp.int32)

    def make(self, key, teacher, student, number, carried):
        images = jax.random.uniform(key, (5, *SHAPE))
        return Made(images, jnp.full(5, number, jnp.int32), carried + 1, {"mean": jnp.mean(student(images))})


def rounds(count, **changes):
    method = bank_method(TEACHER, STUDENT, BankSettings(**{**SMALL, **changes}), Noise())
    return core.run(method, KEY, count, chunk=count)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.slow
def test_a_round_is_a_batch_into_the_bank_and_a_step_of_the_student():
    method = bank_method(TEACHER, STUDENT, BankSettings(**SMALL), Noise())
    before = jax.jit(method.init)(KEY)
    key = jax.random.fold_in(KEY, 0)
    after, metrics = jax.jit(method.step)(key, before)
    make_key, learn_key = jax.random.split(key)
    made = np.asarray(jax.random.uniform(jax.random.fold_in(make_key, 0), (5, *SHAPE)))
    kept = np.round(made * 255).astype(np.uint8)
    np.testing.assert_array_equal(after.bank.images[:5], kept)
    assert after.bank.images.shape[0] == 20, "room for four rounds"
    draw_key = jax.random.split(jax.random.fold_in(learn_key, 0), 3)[0]
    images = kept[np.asarray(jax.random.randint(draw_key, (6,), 0, 5))] / np.float32(255)
    wanted = log_softmax(np.asarray(TEACHER(jnp.asarray(images))) / 2)

    def loss(params):
        logits = STUDENT.module.apply({"params": params}, (images - 0.4) / 0.2)
        ours = jax.nn.log_softmax(logits / 2)
        return jnp.mean(4 * jnp.sum(np.exp(wanted) * (wanted - ours), -1))

    value, gradient = jax.value_and_grad(loss)(before.student.variables["params"])
    np.testing.assert_allclose(metrics["student_loss"], value, rtol=1e-4)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before.student.variables["params"], gradient)
    for a, b in zip(jax.tree.leaves(after.student.variables["params"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    answered = np.asarray(TEACHER(jnp.asarray(made))).argmax(-1)
    np.testing.assert_allclose(metrics["meant_share"], (answered == 0).mean())
    np.testing.assert_allclose(metrics["largest_share"], np.bincount(answered).max() / 5)
    assert (int(after.carried), int(after.number)) == (1, 1)
    now = student_in(STUDENT, after)
    np.testing.assert_allclose(now(made), STUDENT.module.apply(after.student.variables, (made - 0.4) / 0.2), rtol=1e-5)


def test_the_student_waits_until_the_warm_up_is_over():
    run = rounds(3, warm_up=2)
    np.testing.assert_array_equal(run.metrics["student_loss"][:2], 0)
    assert run.metrics["student_loss"][2] > 0
    started = jax.jit(bank_method(TEACHER, STUDENT, BankSettings(**SMALL), Noise()).init)
    assert int(run.state.number) == 3
    waiting = rounds(2, warm_up=2).state.student.variables
    for a, b in zip(
        jax.tree.leaves(waiting),
        jax.tree.leaves(started(jax.random.fold_in(KEY, 2**32 - 1)).student.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_bank_that_batches_do_not_divide_keeps_the_newest():
    run = rounds(3, capacity=7, batches=2)
    assert int(run.state.carried) == 6, "two batches a round"
    # 30 images were written; the last seven of them are two of the fifth batch and five of the sixth
    assert sorted(np.asarray(run.state.bank.targets).tolist()) == [2] * 7
    assert int(run.state.bank.written) % 7 == 30 % 7


def test_costs_of_rounds_counted_by_hand():
    s = BankSettings(rounds=10, batch_size=8, batches=2, warm_up=3, steps=5, student_steps=4, student_batch=6)
    found = bank_budget(s, 10, passes=2)
    assert found["synthetic_samples"] == 160
    assert found["teacher_gradients"] == 2 * 5 * 160
    assert found["teacher_rows"] == 2 * 5 * 160 + 160 + 7 * 4 * 6
    assert found["student_updates"] == 7 * 4
    assert found["generator_updates"] == 10 * 2 * 5


def test_bad_input():
    bank = lambda **s: bank_method(TEACHER, STUDENT, BankSettings(**{**SMALL, **s}), Noise())
    with pytest.raises(InputError, match="room for 4 images, and a batch has 5"):
        bank(capacity=4)
    with pytest.raises(InputError, match="leaves the student none of 4 rounds"):
        bank(warm_up=4)
    with pytest.raises(InputError, match="student_batch must be at least 1"):
        bank(student_batch=0)
    with pytest.raises(UnknownNameError, match="optimiser"):
        bank(student_optimizer="adan")
    other = Classifier.create(MLP(4, (3,)), KEY, SHAPE)
    with pytest.raises(InputError, match="3 classes of"):
        bank_method(TEACHER, other, BankSettings(**SMALL), Noise())
