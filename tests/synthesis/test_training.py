"""Training a classifier: the step against NumPy, what is drawn, and what stays as it is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from dfke_jax.core import InputError, UnknownNameError, run
from dfke_jax.data import identity
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.layers import flatten, head
from dfke_jax.nn.losses import cross_entropy, logit_l2
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import Training, on_images, optimiser, trained, training

SHAPE = (3, 3, 1)
IMAGES = jax.random.uniform(jax.random.key(1), (10, *SHAPE))
LABELS = jnp.arange(10) % 3
LOSS = Partial(cross_entropy)


class Linear(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, *, train=False):
        return head(self.num_classes)(flatten(x))


@pytest.fixture(scope="module")
def linear():
    return Classifier.create(Linear(), jax.random.key(0), SHAPE)


def test_a_step_of_sgd_on_a_linear_model(linear):
    method = training(linear, IMAGES, LABELS, loss=LOSS, optimizer=optax.sgd(0.3), batch_size=6)
    state = method.init(jax.random.key(2))
    kernel, bias = (np.asarray(state.variables["params"]["head"][name], float) for name in ("kernel", "bias"))
    key = jax.random.key(3)
    after, metrics = method.step(key, state)

    rows = np.asarray(jax.random.randint(jax.random.split(key, 3)[0], (6,), 0, 10))
    x, y = np.asarray(IMAGES, float)[rows].reshape(6, 9), np.asarray(LABELS)[rows]
    logits = x @ kernel + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    assert metrics["loss"] == pytest.approx(-np.log(p[np.arange(6), y]).mean(), rel=1e-5)
    error = (p - np.eye(3)[y]) / 6
    found = after.variables["params"]["head"]
    np.testing.assert_allclose(found["kernel"], kernel - 0.3 * x.T @ error, atol=1e-6)
    np.testing.assert_allclose(found["bias"], bias - 0.3 * error.sum(0), atol=1e-6)


def test_training_learns_and_gives_back_a_classifier(linear):
    method = training(linear, IMAGES, LABELS, loss=LOSS, optimizer=optimiser("adam", 0.1), batch_size=10)
    result = run(method, jax.random.key(4), 150, chunk=150)
    assert result.metrics["loss"][-10:].mean() < 0.3 * result.metrics["loss"][0]
    network = trained(linear, result.state)
    assert (network.predict(IMAGES).argmax(1) == np.asarray(LABELS)).mean() >= 0.9
    assert network.module is linear.module


def test_the_teacher_answers_and_is_not_updated(linear):
    teacher = Classifier.create(MLP(3, (5,), batch_norm=True), jax.random.key(5), SHAPE)
    before = jax.tree.map(np.array, teacher.variables)
    method = training(
        linear, IMAGES, None, loss=Partial(logit_l2), optimizer=optax.sgd(0.5), batch_size=8, teacher=teacher
    )
    result = run(method, jax.random.key(6), 120, chunk=120)
    assert result.metrics["loss"][-20:].mean() < 0.3 * result.metrics["loss"][0]
    jax.tree.map(np.testing.assert_array_equal, teacher.variables, before)


def test_no_gradient_reaches_the_teacher(linear):
    teacher = Classifier.create(MLP(3, (5,)), jax.random.key(5), SHAPE)

    def loss_after(teacher):
        method = training(
            linear, IMAGES, None, loss=Partial(logit_l2), optimizer=optax.sgd(0.5), batch_size=8, teacher=teacher
        )
        return method.step(jax.random.key(0), method.init(jax.random.key(1)))[1]["loss"]

    slope = jax.grad(loss_after)(teacher)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(slope))


def test_any_function_serves_as_a_teacher(linear):
    answers = lambda images: jnp.stack([images.sum((1, 2, 3))] * 3, 1)
    options = {"loss": Partial(logit_l2), "optimizer": optax.sgd(0.1), "batch_size": 4}
    live = training(linear, IMAGES, None, teacher=answers, **options)
    table = training(linear, IMAGES, answers(IMAGES), **options)
    first, second = (run(method, jax.random.key(7), 3, chunk=3) for method in (live, table))
    np.testing.assert_allclose(first.metrics["loss"], second.metrics["loss"], rtol=1e-5)


def test_rows_are_drawn_from_a_table():
    counts = np.bincount(drawn(jnp.asarray([7, 2, 2, 9]), 3), minlength=10)
    assert set(np.flatnonzero(counts)) == {2, 7, 9}
    assert 150 < counts[2] < 250, "it stands twice"


def drawn(rows, seed):
    """The row numbers of one batch, read from images that hold their own number."""
    images = jnp.broadcast_to(jnp.arange(10.0)[:, None, None, None] / 10, (10, *SHAPE))
    seen = []

    def look(key, batch):
        seen.append(np.asarray(batch[:, 0, 0, 0]))
        return batch

    method = training(
        Classifier.create(Linear(), jax.random.key(0), SHAPE), images, LABELS,
        loss=LOSS, optimizer=optax.sgd(0.0), batch_size=400, augment=Partial(look), rows=rows,
    )  # fmt: skip
    method.step(jax.random.key(seed), method.init(jax.random.key(0)))
    return np.rint(seen[0] * 10).astype(int)


def test_rows_are_drawn_with_replacement_from_all_or_the_first_few():
    counts = np.bincount(drawn(None, 0), minlength=10)
    assert (counts > 10).all()
    assert (counts < 90).all(), "forty each"
    few = drawn(jnp.int32(4), 1)
    assert set(few) == {0, 1, 2, 3}


def test_moving_to_a_pool_that_grows(linear):
    teacher = Classifier.create(MLP(3, (5,)), jax.random.key(5), SHAPE)
    options = {"loss": Partial(logit_l2), "optimizer": optax.sgd(0.5), "batch_size": 8, "teacher": teacher}
    other = IMAGES[:5] * 0.5
    moved = on_images(training(linear, IMAGES, None, **options), other, jnp.int32(3))
    direct = training(linear, other[:3], None, **options)
    state = direct.init(jax.random.key(0))
    first, second = moved.step(jax.random.key(1), state), direct.step(jax.random.key(1), state)
    assert isinstance(first[0], Training)
    np.testing.assert_allclose(first[1]["loss"], second[1]["loss"], rtol=1e-6)
    with pytest.raises(InputError, match="only a training with a teacher"):
        on_images(
            training(linear, IMAGES, LABELS, loss=LOSS, optimizer=optax.sgd(0.1), batch_size=2), other, jnp.int32(3)
        )


def test_normalisation_statistics_are_learnt():
    network = Classifier.create(MLP(3, (5,), batch_norm=True), jax.random.key(0), SHAPE)
    method = training(network, IMAGES, LABELS, loss=LOSS, optimizer=optax.sgd(0.0), batch_size=8)
    before = method.init(jax.random.key(1))
    after, _ = method.step(jax.random.key(2), before)
    jax.tree.map(np.testing.assert_array_equal, before.variables["params"], after.variables["params"])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before.variables["batch_stats"],
                         after.variables["batch_stats"])  # fmt: skip
    assert all(change > 1e-4 for change in jax.tree.leaves(moved))


def test_bytes_are_read_as_pixels(linear):
    pixels = (np.asarray(IMAGES) * 255).round().astype(np.uint8)
    options = {"loss": LOSS, "optimizer": optax.sgd(0.1), "batch_size": 4}
    first = training(linear, jnp.asarray(pixels), LABELS, **options)
    second = training(linear, jnp.asarray(pixels / np.float32(255)), LABELS, **options)
    state = first.init(jax.random.key(0))
    assert first.step(jax.random.key(1), state)[1]["loss"] == pytest.approx(
        float(second.step(jax.random.key(1), state)[1]["loss"]), rel=1e-6
    )


def test_the_same_optimiser_is_the_same_object():
    assert optimiser("adam", 0.01) is optimiser(name="adam", learning_rate=0.01)
    assert optimiser("sgd", 0.1, 100) is optimiser("sgd", 0.1, steps=100)
    assert optimiser("adam", 0.01) is not optimiser("adam", 0.02)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_rate_falls_along_a_cosine(name):
    rule = optimiser(name, 0.1, 10, momentum=0.0)
    params = jnp.zeros(())
    state, sizes = rule.init(params), []
    for _ in range(11):
        update, state = rule.update(jnp.ones(()), state, params)
        sizes.append(-float(update))
    np.testing.assert_allclose(sizes, 0.05 * (1 + np.cos(np.pi * np.arange(11) / 10)), atol=1e-6)


def test_weight_decay():
    params = jnp.full((), 2.0)
    for name, expected in (("sgd", -0.1 * 0.5 * 2), ("adamw", -0.1 * 0.5 * 2)):
        rule = optimiser(name, 0.1, momentum=0.0, weight_decay=0.5)
        update, _ = rule.update(jnp.zeros(()), rule.init(params), params)
        assert update == pytest.approx(expected, rel=1e-5)


def test_refusals(linear):
    options = {"loss": LOSS, "optimizer": optax.sgd(0.1)}
    with pytest.raises(UnknownNameError, match="unknown optimiser 'adm'; nearest: adam"):
        optimiser("adm")
    for targets, teacher in ((None, None), (LABELS, linear)):
        with pytest.raises(InputError, match="either targets or a teacher"):
            training(linear, IMAGES, targets, teacher=teacher, batch_size=2, **options)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        training(linear, IMAGES, LABELS, batch_size=0, **options)
    with pytest.raises(InputError, match=r"augment: identity is a bare function.*identity\(\), not identity"):
        training(linear, IMAGES, LABELS, batch_size=2, augment=identity, **options)


def test_companions_and_penalty_enter_a_step(linear):
    """A step with rows beside the batch and a penalty, against NumPy."""
    beside, marks = jax.random.uniform(jax.random.key(7), (4, *SHAPE)), jnp.asarray([2, 0, 1, 2])
    penalty = Partial(lambda weight, params: weight * jnp.sum(params["head"]["kernel"] ** 2), jnp.asarray(0.1))
    method = training(
        linear, IMAGES, LABELS, loss=LOSS, optimizer=optax.sgd(0.3), batch_size=6,
        companions=(beside, marks), companions_per_batch=3, penalty=penalty, fine_tune=True,
    )  # fmt: skip
    state = method.init(jax.random.key(2))
    kernel = np.asarray(linear.variables["params"]["head"]["kernel"], float)
    np.testing.assert_array_equal(state.variables["params"]["head"]["kernel"], kernel)  # fine-tuning: its own variables
    key = jax.random.key(3)
    after, metrics = method.step(key, state)

    rows = np.asarray(jax.random.randint(jax.random.split(key, 3)[0], (6,), 0, 10))
    chosen = np.asarray(jax.random.choice(jax.random.fold_in(key, 3), 4, (3,), replace=False))
    assert len(set(chosen)) == 3
    x = np.concatenate([np.asarray(IMAGES, float)[rows], np.asarray(beside, float)[chosen]]).reshape(9, 9)
    y = np.concatenate([np.asarray(LABELS)[rows], np.asarray(marks)[chosen]])
    logits = x @ kernel
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    assert metrics["loss"] == pytest.approx(-np.log(p[np.arange(9), y]).mean(), rel=1e-5)
    assert metrics["penalty"] == pytest.approx(0.1 * (kernel**2).sum(), rel=1e-5)
    gradient = x.T @ ((p - np.eye(3)[y]) / 9) + 0.2 * kernel
    np.testing.assert_allclose(after.variables["params"]["head"]["kernel"], kernel - 0.3 * gradient, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"companions": (IMAGES[:, :2], LABELS)}, r"companions of shape \(2, 3, 1\)"),
        ({"companions": (IMAGES, LABELS), "companions_per_batch": 11}, "11 companions per batch of 10"),
        ({"companions": (IMAGES, LABELS), "targets": None, "teacher": lambda x: x}, "targets of their own"),
    ],
)
def test_companions_that_do_not_fit_are_refused(linear, changes, message):
    with pytest.raises(InputError, match=message):
        training(
            linear, **{"images": IMAGES, "targets": LABELS, "loss": LOSS, "optimizer": optax.sgd(0.3), "batch_size": 6} | changes
        )  # fmt: skip


def _up_the_loss(size, key, network, images, labels):
    slope = jax.grad(lambda x: jnp.sum(cross_entropy(network(x), labels)))(images)
    return images + size * jnp.sign(slope)


def test_an_adversary_moves_the_batch_before_the_network_learns_it(linear):
    """One step of SGD on x + ε·sign(∇_x loss), written out for a linear model."""
    method = training(
        linear, IMAGES, LABELS, loss=LOSS, optimizer=optax.sgd(0.3), batch_size=6, adversary=Partial(_up_the_loss, 0.1)
    )
    state = method.init(jax.random.key(2))
    kernel, bias = (np.asarray(state.variables["params"]["head"][name], float) for name in ("kernel", "bias"))
    key = jax.random.key(3)
    after, metrics = method.step(key, state)

    def error_of(x, y):
        logits = x @ kernel + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return p, p - np.eye(3)[y]

    rows = np.asarray(jax.random.randint(jax.random.split(key, 3)[0], (6,), 0, 10))
    x, y = np.asarray(IMAGES, float)[rows].reshape(6, 9), np.asarray(LABELS)[rows]
    x = x + 0.1 * np.sign(error_of(x, y)[1] @ kernel.T)
    p, error = error_of(x, y)
    assert metrics["loss"] == pytest.approx(-np.log(p[np.arange(6), y]).mean(), rel=1e-5)
    found = after.variables["params"]["head"]
    np.testing.assert_allclose(found["kernel"], kernel - 0.05 * x.T @ error, atol=1e-6)
    np.testing.assert_allclose(found["bias"], bias - 0.05 * error.sum(0), atol=1e-6)
