"""Fine-tuning attacks: what they train, what they leave alone, and behind which output layer the mark is looked for."""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.nn import registry
from dfke_jax.nn.classifier import Classifier
from dfke_jax.watermarking.removal import (
    TrainingSettings,
    Watch,
    fine_tune,
    fine_tuned,
    fine_tuning,
)
from dfke_jax.watermarking.removal.fine_tuning import Still, _by_layer

KEY = jax.random.key(5)
SETTINGS = TrainingSettings(steps=300, batch_size=32, learning_rate=0.02, momentum=0.0, weight_decay=1e-3)


def flat(classifier):
    leaves = jax.tree_util.tree_leaves_with_path(classifier.variables)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def head(classifier):
    return {name: np.asarray(leaf) for name, leaf in classifier.variables["params"]["head"].items()}


def softmax_regression(features, labels, weights, bias):
    """The head's training by hand, in float64: rows as the loop draws them, plain SGD with decay."""
    key = jax.random.fold_in(KEY, zlib.crc32(b"ftll") & 0x7FFFFFFF)
    keys = jax.vmap(lambda step: jax.random.split(jax.random.fold_in(key, step), 3)[0])(jnp.arange(SETTINGS.steps))
    draw = jax.vmap(lambda key: jax.random.randint(key, (SETTINGS.batch_size,), 0, len(features)))
    for rows in np.asarray(draw(keys)):
        x, y = features[rows], labels[rows]
        logits = x @ weights + bias
        error = np.exp(logits - logits.max(1, keepdims=True))
        error = (error / error.sum(1, keepdims=True) - np.eye(10)[y]) / len(rows)
        weights = weights - SETTINGS.learning_rate * (x.T @ error + SETTINGS.weight_decay * weights)
        bias = bias - SETTINGS.learning_rate * (error.sum(0) + SETTINGS.weight_decay * bias)
    return weights, bias


def test_ftll_is_softmax_regression_on_frozen_features(marked, matrix):
    network = marked.network
    features = np.asarray(jax.jit(Classifier.features)(network, marked.images), np.float64)
    start = {name: leaf.astype(np.float64) for name, leaf in head(network).items()}
    weights, bias = softmax_regression(features, np.asarray(marked.labels), start["kernel"], start["bias"])
    found = head(matrix["ftll"].removed.classifier)
    np.testing.assert_allclose(found["kernel"], weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["bias"], bias, rtol=1e-4, atol=1e-5)
    assert np.abs(weights - start["kernel"]).max() > 3e-3, "thirty times what the comparison tolerates"


def test_last_layer_attacks_leave_every_other_bit_alone_and_the_others_do_not(marked, matrix):
    before = flat(marked.network)
    assert any("batch_stats" in name for name in before)
    for attack in ("ftll", "rtll"):
        after = flat(matrix[attack].removed.classifier)
        changed = {name for name in before if not np.array_equal(before[name], after[name])}
        assert changed == {"['params']['head']['kernel']", "['params']['head']['bias']"}
    for attack in ("ftal", "rtal", "high_rate_fine_tuning", "adversarial_fine_tuning"):
        after = flat(matrix[attack].removed.classifier)
        assert not any(np.array_equal(before[name], after[name]) for name in before)


def test_statistics_may_move_as_in_the_released_code(marked):
    settings = TrainingSettings(steps=2, batch_size=16)
    method = fine_tuning(marked.network, marked.images, marked.labels, "ftll", settings, move_statistics=True)
    state = core.run(method, KEY, 2).state
    before, after = flat(marked.network), flat(fine_tuned(marked.network, state, "ftll", settings).classifier)
    for name in before:
        assert np.array_equal(before[name], after[name]) == ("batch_stats" not in name and "head" not in name), name


def test_private_layer_is_plugged_back_in_for_verification(marked, matrix):
    removed = matrix["rtal"].removed
    private = head(marked.network)
    for name, leaf in head(removed.for_verification).items():
        np.testing.assert_array_equal(leaf, private[name])
        assert not np.array_equal(leaf, head(removed.classifier)[name])
    features = np.asarray(jax.jit(Classifier.features)(removed.classifier, marked.triggers.images), np.float64)
    found = removed.for_verification.predict(marked.triggers.images)
    np.testing.assert_allclose(found, features @ private["kernel"] + private["bias"], rtol=1e-4, atol=1e-4)
    kept = matrix["ftal"].removed
    assert kept.for_verification is kept.classifier


def test_fresh_layer_follows_the_key_and_is_drawn_like_a_new_one(marked):
    method = fine_tuning(marked.network, marked.images, marked.labels, "rtll", SETTINGS)
    first, second = (np.asarray(method.init(jax.random.key(i)).variables["params"]["head"]["kernel"]) for i in (0, 1))
    assert not np.array_equal(first, second)
    many = np.stack([method.init(jax.random.key(i)).variables["params"]["head"]["kernel"] for i in range(20)])
    assert many.std() == pytest.approx(1 / np.sqrt(16), rel=0.06)  # 3,200 draws: 5 standard errors


def test_watching_changes_nothing_and_begins_at_the_fresh_layer(marked, matrix):
    watched = matrix["rtal"].removed
    key = jax.random.fold_in(KEY, zlib.crc32(b"rtal") & 0x7FFFFFFF)
    alone = fine_tune("rtal", key, marked.network, marked.images, marked.labels, settings=SETTINGS)
    first, second = flat(watched.classifier), flat(alone.classifier)
    for name in first:  # chunks of another length are another program, whose rounding may differ
        np.testing.assert_allclose(first[name], second[name], rtol=1e-4, atol=1e-5)
    assert watched.trace["steps"] == [0, 150, 300]
    assert watched.trace["accuracy"][0] < 50, "a fresh output layer knows nothing"
    assert watched.trace["trigger_accuracy"][0] == 100, "behind the private layer the mark is untouched"
    assert watched.trace["accuracy"][-1] > 90


def test_mark_survives_light_fine_tuning_and_a_high_rate_wears_it_down(matrix):
    light, heavy = matrix["ftll"].after, matrix["high_rate_fine_tuning"].after
    assert light.trigger_accuracy > 90
    assert light.accuracy > 90
    assert heavy.trigger_accuracy < 80
    assert heavy.accuracy > 90


@pytest.mark.parametrize("name", ["lenet5_bn", "vgg11", "resnet8", "wrn_16_1"])
def test_networks_have_one_last_layer_and_the_same_variables_when_still(name):
    info = registry.describe(name)
    shapes = lambda module: jax.eval_shape(module.init, KEY, jnp.zeros((1, *info.input_shape)))
    module = info.constructor(10)
    plain = shapes(module)
    assert shapes(Still(module)) == plain
    labels = jax.tree_util.tree_leaves_with_path(_by_layer(plain["params"]))
    trained = [jax.tree_util.keystr(path) for path, label in labels if label == "train"]
    assert sorted(trained) == ["['head']['bias']", "['head']['kernel']"]


def test_still_network_has_no_dropout_and_leaves_statistics():
    module = registry.build("alexnet", 10)
    x = jnp.zeros((2, 32, 32, 3))
    variables = {name: jax.eval_shape(module.init, KEY, x)[name] for name in ("params", "batch_stats")}
    apply = lambda variables: Still(module).apply(variables, x, train=True, mutable=["batch_stats"])
    _, updated = jax.eval_shape(apply, variables)  # dropout would ask for a key
    assert updated["batch_stats"] == variables["batch_stats"]
    with pytest.raises(Exception, match="dropout"):
        jax.eval_shape(lambda v: module.apply(v, x, train=True, mutable=["batch_stats"]), variables)


class Headless(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(10, name="last")(x.reshape(len(x), -1))


def test_bad_input_is_refused_before_work(marked):
    good = (marked.network, marked.images[:8], marked.labels[:8])
    with pytest.raises(UnknownNameError, match="ftal"):
        fine_tuning(*good, "ftla")
    with pytest.raises(InputError, match="labels must lie in"):
        fine_tuning(*good[:2], good[2] + 10, "ftal")
    with pytest.raises(InputError, match="H×W×C = 8×8×1"):
        fine_tuning(good[0], jnp.zeros((8, 4, 4, 1)), good[2], "ftal")
    with pytest.raises(InputError, match="give a Classifier, not a function"):
        fine_tuning(lambda x: x, *good[1:], "ftal")
    with pytest.raises(InputError, match="no dense layer called 'head'"):
        fine_tuning(Classifier.create(Headless(), KEY, (8, 8, 1)), *good[1:], "ftal")
    with pytest.raises(InputError, match="at least one point"):
        fine_tune("ftal", KEY, *good, watch=Watch(lambda _: {}, 0))
    for changes in ({"steps": 0}, {"learning_rate": 0.0}, {"momentum": 1.0}, {"weight_decay": -1.0}):
        with pytest.raises(InputError):
            TrainingSettings(**changes)
