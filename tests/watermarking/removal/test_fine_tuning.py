"""Fine-tuning attacks: what they train, what they leave alone, and behind which output layer the mark is looked for."""

import dataclasses

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
    fine_tuned,
    fine_tuning,
    ftal,
    ftll,
    high_rate_fine_tuning,
    rtal,
    rtll,
    standing,
)
from dfke_jax.watermarking.removal.fine_tuning import Still, _by_layer

KEY = jax.random.key(5)
SETTINGS = TrainingSettings(steps=4, batch_size=16, learning_rate=0.05, momentum=0.0, weight_decay=0.01)


def flat(classifier):
    leaves = jax.tree_util.tree_leaves_with_path(classifier.variables)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def head(classifier):
    return {name: np.asarray(leaf) for name, leaf in classifier.variables["params"]["head"].items()}


def softmax_regression(features, labels, weights, bias):
    """The head's training by hand, in float64: rows as the loop draws them, plain SGD with decay."""
    for step in range(SETTINGS.steps):
        drawn = jax.random.split(jax.random.fold_in(KEY, step), 3)[0]
        rows = np.asarray(jax.random.randint(drawn, (SETTINGS.batch_size,), 0, len(features)))
        x, y = features[rows], labels[rows]
        logits = x @ weights + bias
        error = np.exp(logits - logits.max(1, keepdims=True))
        error = (error / error.sum(1, keepdims=True) - np.eye(10)[y]) / len(rows)
        weights = weights - SETTINGS.learning_rate * (x.T @ error + SETTINGS.weight_decay * weights)
        bias = bias - SETTINGS.learning_rate * (error.sum(0) + SETTINGS.weight_decay * bias)
    return weights, bias


def test_ftll_is_softmax_regression_on_frozen_features(marked):
    network = marked.network
    removed = ftll(KEY, network, marked.images, marked.labels, settings=SETTINGS)
    features = np.asarray(jax.jit(Classifier.features)(network, marked.images), np.float64)
    start = {name: leaf.astype(np.float64) for name, leaf in head(network).items()}
    weights, bias = softmax_regression(features, np.asarray(marked.labels), start["kernel"], start["bias"])
    np.testing.assert_allclose(head(removed.classifier)["kernel"], weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(head(removed.classifier)["bias"], bias, rtol=1e-5, atol=1e-6)
    assert np.abs(weights - start["kernel"]).max() > 1e-3


def test_last_layer_attacks_leave_every_other_bit_alone_and_the_others_do_not(marked):
    arguments = (KEY, marked.network, marked.images, marked.labels)
    before = flat(marked.network)
    assert any("batch_stats" in name for name in before)
    for attack in (ftll, rtll):
        after = flat(attack(*arguments, settings=SETTINGS).classifier)
        changed = {name for name in before if not np.array_equal(before[name], after[name])}
        assert changed == {"['params']['head']['kernel']", "['params']['head']['bias']"}
    for attack in (ftal, rtal):
        after = flat(attack(*arguments, settings=SETTINGS).classifier)
        assert not any(np.array_equal(before[name], after[name]) for name in before)


def test_statistics_may_move_as_in_the_released_code(marked):
    method = fine_tuning(marked.network, marked.images, marked.labels, "ftll", SETTINGS, move_statistics=True)
    state = core.run(method, KEY, SETTINGS.steps).state
    before, after = flat(marked.network), flat(fine_tuned(marked.network, state, "ftll", SETTINGS).classifier)
    for name in before:
        assert np.array_equal(before[name], after[name]) == ("batch_stats" not in name and "head" not in name), name


def test_private_layer_is_plugged_back_in_for_verification(marked):
    removed = rtal(KEY, marked.network, marked.images, marked.labels, settings=SETTINGS)
    private = head(marked.network)
    for name, leaf in head(removed.for_verification).items():
        np.testing.assert_array_equal(leaf, private[name])
        assert not np.array_equal(leaf, head(removed.classifier)[name])
    features = np.asarray(jax.jit(Classifier.features)(removed.classifier, marked.triggers.images), np.float64)
    found = removed.for_verification.predict(marked.triggers.images)
    np.testing.assert_allclose(found, features @ private["kernel"] + private["bias"], rtol=1e-4, atol=1e-4)
    kept = ftal(KEY, marked.network, marked.images, marked.labels, settings=SETTINGS)
    assert kept.for_verification is kept.classifier


def test_fresh_layer_follows_the_key_and_is_drawn_like_a_new_one(marked):
    method = fine_tuning(marked.network, marked.images, marked.labels, "rtll", SETTINGS)
    first, second = (np.asarray(method.init(jax.random.key(i)).variables["params"]["head"]["kernel"]) for i in (0, 1))
    assert not np.array_equal(first, second)
    many = np.stack([method.init(jax.random.key(i)).variables["params"]["head"]["kernel"] for i in range(20)])
    assert many.std() == pytest.approx(1 / np.sqrt(16), rel=0.06)  # 3,200 draws: 5 standard errors


def test_watching_changes_nothing_and_ends_at_the_outcome(marked):
    arguments = (KEY, marked.network, marked.images, marked.labels)
    measure = lambda removed: standing(removed, marked.triggers, marked.test_images, marked.test_labels)._asdict()
    watched = rtal(*arguments, settings=SETTINGS, watch=Watch(measure, 3))
    alone = rtal(*arguments, settings=SETTINGS)
    first, second = flat(watched.classifier), flat(alone.classifier)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert watched.trace["steps"] == [0, 2, 4]
    assert watched.trace["accuracy"][-1] == measure(alone)["accuracy"]
    assert watched.trace["accuracy"][0] < 50, "a fresh output layer knows nothing"
    assert watched.trace["trigger_accuracy"][0] == 100, "behind the private layer the mark is untouched"


def test_mark_survives_light_fine_tuning_and_a_high_rate_wears_it_down(marked):
    arguments = (KEY, marked.network, marked.images, marked.labels)
    light = ftll(*arguments, settings=dataclasses.replace(SETTINGS, learning_rate=1e-3))
    heavy = high_rate_fine_tuning(*arguments, settings=TrainingSettings(steps=300, learning_rate=0.3, cosine=True))
    before, after = (standing(r, marked.triggers, marked.test_images, marked.test_labels) for r in (light, heavy))
    assert before.trigger_accuracy == 100
    assert before.accuracy > 90
    assert after.trigger_accuracy < 80
    assert after.accuracy > 90
    assert heavy.attack == "high_rate_fine_tuning"


@pytest.mark.parametrize("name", ["lenet5_bn", "alexnet", "vgg11", "resnet8", "wrn_16_1", "hinton_mlp_half"])
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
        ftal(KEY, *good, watch=Watch(lambda _: {}, 0))
    for changes in ({"steps": 0}, {"learning_rate": 0.0}, {"momentum": 1.0}, {"weight_decay": -1.0}):
        with pytest.raises(InputError):
            TrainingSettings(**changes)
