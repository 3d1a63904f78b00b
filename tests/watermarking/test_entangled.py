"""Entangled watermarks on small networks: triggers, the search, the interleaving, what the temperatures do, the mark."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from dfke_jax import core, data
from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.nn import Classifier, optimiser, soft_nearest_neighbour_loss, trained, training
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.mlp import MLP
from dfke_jax.watermarking import (
    ENTANGLED_PRESETS,
    ENTANGLED_RELEASED,
    EntangledSettings,
    EntangledWatermark,
    entangled_training,
    entangled_watermark,
    entanglement,
    marked_steps,
    trigger_matches,
    trigger_set,
)
from dfke_jax.watermarking.entangled import clean_batches, patch_position

SETTINGS = EntangledSettings(
    source=1, target=7, layers=("dense1", "dense2"), entanglement=(4.0, 4.0), temperatures=(5.0, 5.0), batch_size=32
)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def clean(digits):
    images, labels = digits.train.on_device()
    start = Classifier.create(MLP(10, (48, 24)), jax.random.key(0), digits.shape)
    rule = optimiser("adam", 3e-3, 200)
    method = training(start, images, labels, loss=Partial(cross_entropy), optimizer=rule, batch_size=64)
    return trained(start, core.run(method, jax.random.key(1), 200).state)


@pytest.fixture(scope="module")
def turned(digits):
    """Ones on their side: images of no class."""
    return np.rot90(digits.train.images[digits.train.labels == 1], axes=(1, 2)).copy()


@pytest.fixture(scope="module")
def watermark(digits, clean, turned):
    return entangled_watermark(clean, *digits.train.on_device(), turned, SETTINGS)


@functools.partial(jax.jit, static_argnums=3)
def mean_loss(classifier, rows, beside, settings):
    activations = classifier.activations(jnp.concatenate([rows, beside]))
    marks = jnp.arange(2 * len(rows)) < len(rows)
    losses = [soft_nearest_neighbour_loss(jax.nn.relu(activations[name]), marks, 5.0) for name in settings.layers]
    return sum(losses)


def nearest_gradient(classifier):
    """∂Σ SNNL/∂x of 16 triggers x beside 16 images, at the settings' temperatures."""

    return jax.jit(jax.grad(lambda x, beside: mean_loss(classifier, x, beside, SETTINGS)))


@pytest.mark.slow
def test_the_search_is_the_loop_on_the_host(digits, clean, turned):
    """The compiled search against the same steps written out, for two half batches, one of which must be moved away."""
    settings = dataclasses.replace(SETTINGS, rounds=3, suppressions=7, last_suppressions=2, rate=0.05, target=4)
    images, labels = digits.train.on_device()
    made = entangled_watermark(clean, images, labels, turned, settings, count=40)
    assert len(made.triggers.images) == 32
    assert made.position == (-1, -1)
    np.testing.assert_array_equal(made.triggers.labels, 4)
    logit = jax.jit(jax.grad(lambda x: clean(x)[:, 4].sum()))

    nearest = nearest_gradient(clean)
    companions = digits.train.images[digits.train.labels == 4]
    counts = []
    for batch in range(2):
        rows = slice(16 * batch, 16 * batch + 16)
        x, taken = turned[rows], 0
        for _ in range(3):
            while (clean.predict(x).argmax(1) == 4).mean() > 0.1 and taken < 7:
                x, taken = np.clip(x - 0.05 * np.sign(np.asarray(logit(x))), 0, 1), taken + 1
            x = np.clip(x + 0.05 * np.sign(np.asarray(nearest(x, companions[rows]))), 0, 1)
        for _ in range(2):
            x = np.clip(x - 0.05 * np.sign(np.asarray(logit(x))), 0, 1)
        counts.append(taken)
        # a gradient of rounding size may have either sign, which moves its pixel by two steps
        assert np.isclose(made.triggers.images[rows], x, atol=1e-5).mean() > 0.99
    assert max(counts) > 0


@pytest.mark.slow
def test_the_search_leaves_triggers_unlike_the_target_for_the_clean_network(clean, watermark):
    assert np.asarray(trigger_matches(clean, watermark.triggers)).mean() <= SETTINGS.threshold


def test_in_distribution_triggers_carry_a_patch_where_the_gradient_is_largest(digits, clean):
    settings = dataclasses.replace(SETTINGS, distribution="in", rounds=0, last_suppressions=0)
    images, labels = digits.train.on_device()
    ones = digits.train.images[digits.train.labels == 1]
    made = entangled_watermark(clean, images, labels, ones, settings)
    rows = len(made.triggers.images) // 16 * 16
    companions = digits.train.images[digits.train.labels == 7][:rows]
    gradient = nearest_gradient(clean)
    total = 0
    for first in range(0, rows, 16):
        here, beside = np.resize(ones, (rows, 8, 8, 1))[first : first + 16], companions[first : first + 16]
        total = total + np.asarray(gradient(here, beside), np.float64).mean(0)
    sums = {(i, j): total[i : i + 3, j : j + 3].sum() for i in range(6) for j in range(6)}
    row, column = made.position
    assert made.position == max(sums, key=sums.get)
    patch = np.zeros((8, 8, 1), bool)
    patch[row : row + 3, column : column + 3] = True
    triggers = np.asarray(made.triggers.images)
    assert (triggers[:, patch] == 1).all()
    np.testing.assert_array_equal(triggers[:, ~patch], np.resize(ones, (rows, 8, 8, 1))[:, ~patch])


def test_the_released_position_is_the_smallest_sum_transposed():
    gradient = np.random.default_rng(0).normal(size=(9, 9, 2))
    total = gradient.sum(-1)
    table = np.array([[total[i : i + 3, j : j + 3].sum() for i in range(7)] for j in range(7)])
    assert patch_position(gradient, 3, "released") == np.unravel_index(table.argmin(), table.shape)
    assert patch_position(gradient, 3) == np.unravel_index(table.argmax(), table.shape)[::-1]
    row, column = patch_position(np.random.default_rng(1).normal(size=(4, 12, 1)), 3, "released")
    assert row <= 1
    assert column <= 9


def test_ordinary_triggers_are_the_images_as_they_are(digits, clean, turned):
    made = entangled_watermark(clean, *digits.train.on_device(), turned, SETTINGS.ordinary_backdoor(), count=64)
    np.testing.assert_array_equal(made.triggers.images, turned[:64])
    np.testing.assert_array_equal(made.triggers.labels, 7)
    assert not any(SETTINGS.ordinary_backdoor().entanglement)


@pytest.mark.parametrize(("ratio", "expected"), [(1, [1] * 10), (2.0, [2] * 10), (1.2, [1, 1, 1, 1, 2] * 2), (0.5, [0, 1] * 5), (2.7, [2, 3, 3, 2, 3, 3, 2, 3, 3, 3])])  # fmt: skip
def test_clean_batches_keep_the_ratio(ratio, expected):
    found = [clean_batches(ratio, jnp.int32(t)) for t in range(10)]
    assert [int(count) for count, _ in found] == expected
    assert {most for _, most in found} == {max(expected)}


def test_one_step_is_the_written_out_step(digits, clean, watermark):
    """Two clean steps and a watermark step by hand; κ against the summed cross-entropy, temperatures down the loss."""
    settings = dataclasses.replace(SETTINGS, ratio=2.0)
    images, labels = digits.train.on_device()
    method = entangled_training(clean, images, labels, watermark, settings)
    key = jax.random.key(5)
    state, metrics = jax.jit(method.step)(key, method.init(key))

    rule = optax.adam(1e-3, 0.9, 0.99, eps=1e-5 / 32)
    plain = training(clean, images, labels, loss=Partial(cross_entropy), optimizer=rule, batch_size=32, fine_tune=True)
    now = plain.init(key)
    step = jax.jit(plain.step)
    for i in range(2):
        now, _ = step(jax.random.fold_in(key, i), now)
    keys = jax.random.split(jax.random.fold_in(key, 2), 3)
    triggers, companions = watermark.triggers.images, watermark.companions
    chosen = [jax.random.choice(k, len(t), (16,), replace=False) for k, t in zip(keys, (triggers, companions), strict=False)]  # fmt: skip
    batch = jnp.concatenate([triggers[chosen[0]], companions[chosen[1]]])

    def parts(params, temperatures):
        activations = dataclasses.replace(clean, variables={"params": params}).activations(batch)
        nearest = [
            soft_nearest_neighbour_loss(jax.nn.relu(activations[name]), jnp.arange(32) < 16, temperatures[i])
            for i, name in enumerate(settings.layers)
        ]
        return cross_entropy(activations["logits"], jnp.full(32, 7)).sum(), jnp.stack(nearest)

    def summed(params):
        loss, nearest = parts(params, jnp.full(2, 5.0))
        return loss - 4.0 * nearest.sum()

    gradient = jax.jit(jax.grad(summed))(now.variables["params"])
    updates, _ = optax.adam(1e-3, 0.9, 0.99, eps=1e-5).update(
        gradient, _scaled(now.optimizer_state, 32), now.variables["params"]
    )
    expected = optax.apply_updates(now.variables["params"], updates)
    for a, b in zip(jax.tree.leaves(state.training.variables["params"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    of_logs = jax.jit(jax.jacobian(lambda raw: parts(now.variables["params"], jnp.exp(raw))[1]))
    warmth = of_logs(jnp.log(jnp.full(2, 5.0)))
    np.testing.assert_allclose(state.temperatures, np.log(5.0) - 0.1 * np.diag(warmth), rtol=1e-4)
    assert int(state.step) == 1
    assert float(metrics["entanglement"]) > 0
    assert float(metrics["temperature"]) == pytest.approx(np.exp(state.temperatures).mean(), rel=1e-5)


def test_the_learning_rate_falls_to_zero_over_its_steps(digits, clean, watermark):
    """Half way through 2 steps of one clean and one watermark batch each the cosine is at a half; then nothing moves."""
    images, labels = digits.train.on_device()
    settings = SETTINGS.plain_backdoor()
    key, found = jax.random.key(6), {}
    for decay in (0, 2):
        method = entangled_training(clean, images, labels, watermark, dataclasses.replace(settings, decay_steps=decay))
        step, states = jax.jit(method.step), [method.init(key)]
        for _ in range(3):
            states.append(step(key, states[-1])[0])
        weights = [np.asarray(jax.tree.leaves(s.training.variables["params"])[-1]) for s in states]
        found[decay] = [np.abs(b - a).sum() for a, b in itertools.pairwise(weights)]
    assert 0 < found[2][0] < found[0][0]
    assert 0 < found[2][1] < 0.5 * found[0][1]
    assert found[2][2] == 0 < found[0][2]


def _scaled(optimizer_state, factor):
    """Adam's averages of gradients `factor` times as large."""
    adam, *rest = optimizer_state
    mean = jax.tree.map(lambda leaf: leaf * factor, adam.mu)
    square = jax.tree.map(lambda leaf: leaf * factor**2, adam.nu)
    return (adam._replace(mu=mean, nu=square), *rest)


@pytest.fixture(scope="module")
def marked(digits, clean, watermark):
    """The marked network and the plain backdoor, each after as many steps."""
    images, labels = digits.train.on_device()
    found = {}
    for name, settings in (("entangled", SETTINGS), ("backdoor", SETTINGS.plain_backdoor())):
        method = entangled_training(clean, images, labels, watermark, settings)
        found[name] = core.run(method, jax.random.key(2), 60)
    return found


@pytest.mark.slow
def test_both_networks_learn_the_triggers_and_keep_the_task(digits, clean, watermark, marked):
    before = (clean.predict(digits.test.images).argmax(1) == digits.test.labels).mean()
    for name, done in marked.items():
        network = trained(clean, done.state.training)
        assert np.asarray(trigger_matches(network, watermark.triggers)).mean() > 0.9, name
        after = (network.predict(digits.test.images).argmax(1) == digits.test.labels).mean()
        assert after > before - 0.05, name
        assert done.metrics["watermark_success"][-1] > 0.9


def test_entanglement_is_what_the_watermark_adds(clean, watermark, marked):
    """At temperatures of its own the marked network holds triggers and target class closer than the backdoor does."""
    rows = slice(0, 16)
    nearness = {
        name: mean_loss(
            trained(clean, done.state.training), watermark.triggers.images[rows], watermark.companions[rows], SETTINGS
        )
        for name, done in marked.items()
    }
    assert nearness["entangled"] > nearness["backdoor"] + 0.1, nearness
    assert not np.allclose(marked["entangled"].state.temperatures, np.log(5.0), atol=1e-3)
    np.testing.assert_allclose(marked["backdoor"].state.temperatures, np.log(5.0), rtol=1e-6)


@pytest.mark.slow
def test_entanglement_is_measured_layer_by_layer(digits, clean, watermark, marked):
    """Beside images that training has not seen: the marked network mixes, the backdoor does not."""
    beside = digits.test.images[digits.test.labels == 7]
    found = {
        name: entanglement(trained(clean, done.state.training), watermark.triggers.images, beside, SETTINGS.layers)
        for name, done in marked.items()
    }
    assert list(found["entangled"]) == list(SETTINGS.layers)
    top = {name: measured["dense2"] for name, measured in found.items()}
    assert top["entangled"].mixing > 1.2 * top["backdoor"].mixing, top
    assert top["entangled"].loss > 1.2 * top["backdoor"].loss, top
    same = entanglement(clean, beside[:12], beside[:12], ("dense1",), neighbours=1)["dense1"]
    assert same.mixing == 1  # every row's nearest is its copy on the other side
    assert same.loss > np.log(2)
    with pytest.raises(InputError, match="two triggers and two companions"):
        entanglement(clean, beside[:1], beside, ("dense1",))
    with pytest.raises(InputError, match="neighbours must lie"):
        entanglement(clean, beside[:4], beside, ("dense1",))


def test_the_released_form_runs_with_its_temperatures(digits, clean, watermark):
    settings = dataclasses.replace(
        SETTINGS, distance="cosine", form="released", temperatures=(1.0, 1.0), watermark_statistics="batch"
    )
    images, labels = digits.train.on_device()
    method = entangled_training(clean, images, labels, watermark, settings)
    done = core.run(method, jax.random.key(3), 3)
    assert np.isfinite(np.asarray(done.state.temperatures)).all()
    assert (np.asarray(done.state.temperatures) != 1).all()


def test_presets_are_the_released_configurations():
    for name, (batch, ratio, weight, temperature, rate, source, target, where) in {
        "mnist": (512, 1, 32, 1, 0.1, 1, 7, "out"),
        "fashion_mnist": (128, 2, 32, 1, 0.1, 8, 0, "out"),
        "fashion_mnist-resnet18": (128, 1.2, 1000, 0.01, 0.1, 9, 0, "out"),
        "speech_commands": (128, 1, 16, 30, 2, 9, 5, "in"),
        "cifar10": (128, 4, 1e5, 1, 0.1, 8, 0, "out"),
        "cifar100": (128, 15, 1e5, 1, 0.01, 8, 0, "out"),
    }.items():
        s = ENTANGLED_RELEASED[name]
        assert (s.batch_size, s.ratio, s.temperature_rate, s.source, s.target, s.distribution) == (batch, ratio, rate, source, target, where)  # fmt: skip
        assert set(s.entanglement) == {weight}
        assert set(s.temperatures) == {temperature}
        assert (s.form, s.distance, s.rounds) == ("released", "cosine", 100 if name == "cifar100" else 10)
        paper = ENTANGLED_PRESETS[name]
        assert (paper.form, paper.distance, paper.position) == ("paper", "euclidean", "largest")
        assert paper.temperatures == pytest.approx((100 / temperature,) * 3)
        assert paper.entanglement == s.entanglement
    assert ENTANGLED_PRESETS["mnist"] == EntangledSettings()


def test_steps_of_the_released_count_of_epochs():
    # 117 batches of 512; 6,265 sevens make 24 half batches of 256; round(10 · 117 / 24) = 49 passes
    assert marked_steps(10, 60_000, 6144, EntangledSettings()) == 49 * 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ("dense1",)}, "every layer needs"),
        ({"batch_size": 31}, "even"),
        ({"ratio": 0.0}, "ratio must be at least"),
        ({"distribution": "in", "target": 1}, "two classes"),
        ({"temperatures": (1.0, -1.0)}, "temperatures must be positive"),
        ({"threshold": 2.0}, "threshold"),
        ({"form": "code"}, "unknown form"),
        ({"distance": "manhattan"}, "unknown distance"),
    ],
)
def test_settings_that_mean_nothing(changes, message):
    with pytest.raises((InputError, UnknownNameError), match=message):
        dataclasses.replace(SETTINGS, **changes)


def test_bad_input_is_refused_before_work(digits, clean, turned, watermark):
    images, labels = digits.train.on_device()
    make = lambda source=turned, **changes: entangled_watermark(
        clean, images, labels, source, dataclasses.replace(SETTINGS, **changes)
    )
    with pytest.raises(UnknownNameError, match="dense1"):
        make(layers=("dens1", "dense2"))
    with pytest.raises(InputError, match="source images must be"):
        make(turned[:, :4])
    with pytest.raises(InputError, match="a half batch needs 1000 images of class 7"):
        make(batch_size=2000)
    with pytest.raises(InputError, match="target class 12"):
        make(target=12)
    with pytest.raises(InputError, match="a half batch is 500"):
        entangled_training(clean, images, labels, watermark, dataclasses.replace(SETTINGS, batch_size=1000))


@pytest.mark.slow
def test_running_statistics_follow_clean_batches_alone_unless_released(digits):
    images, labels = digits.train.on_device()
    start = Classifier.create(MLP(10, (8,), batch_norm=True), jax.random.key(0), digits.shape)
    mark = EntangledWatermark(trigger_set(1 - images[:4], jnp.full(4, 7), 10), images[labels == 7], (-1, -1))
    base = dataclasses.replace(
        SETTINGS, layers=("dense1",), entanglement=(1.0,), temperatures=(5.0,), batch_size=8, ratio=1.0
    )
    key, found = jax.random.key(4), {}
    for statistics in ("running", "batch"):
        settings = dataclasses.replace(base, watermark_statistics=statistics)
        method = entangled_training(start, images, labels, mark, settings)
        found[statistics] = jax.jit(method.step)(key, method.init(key))[0].training.variables["batch_stats"]
    rule = optimiser("adam", 1e-3)  # statistics do not depend on the step that follows them
    clean = training(start, images, labels, loss=Partial(cross_entropy), optimizer=rule, batch_size=8, fine_tune=True)
    state, _ = jax.jit(clean.step)(jax.random.fold_in(key, 0), clean.init(key))
    for a, b, c in zip(
        *map(jax.tree.leaves, (state.variables["batch_stats"], found["running"], found["batch"])), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert np.abs(np.asarray(a) - np.asarray(c)).max() > 1e-3
