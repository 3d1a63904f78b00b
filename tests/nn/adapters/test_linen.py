"""Linen modules of anybody's: the same function, and the statistics that their layers are given."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.distillation import InversionSettings, deep_inversion
from dfke_jax.nn import Classifier
from dfke_jax.nn.adapters import from_linen
from dfke_jax.nn.mlp import MLP

SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).random((5, *SHAPE), np.float32)


class Own(nn.Module):
    """A user's: dense, normalised by Flax, told of training by another name, one layer checkpointed."""

    @nn.compact
    def __call__(self, x, is_training):
        x = nn.Dense(8, name="zebra")(x.reshape(x.shape[0], -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not is_training, epsilon=1e-5, name="zebra_norm")(x))
        x = nn.remat(nn.Dense)(6, name="ant")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not is_training, epsilon=1e-5, name="ant_norm")(x))
        return nn.Dense(3, name="last")(x)


@pytest.fixture(scope="module")
def own():
    module = Own()
    variables = module.init(jax.random.key(0), IMAGES, is_training=False)
    _, changed = module.apply(variables, 3 * IMAGES, is_training=True, mutable=["batch_stats"])
    return module, {**variables, **changed}


def test_what_a_module_shows_is_what_its_layers_compute(own):
    module, variables = own
    made = from_linen(module, variables, SHAPE)
    seen = jax.jit(lambda made, images: made.observe(images, activations=True, moments=True))(made, IMAGES)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    stored = variables["batch_stats"]
    x, entered = IMAGES.reshape(5, -1).astype(np.float64), []
    for name in ("zebra", "ant"):
        x = x @ params[name]["kernel"] + params[name]["bias"]
        np.testing.assert_allclose(seen.activations[name], x, atol=1e-5)
        entered.append(x)
        norm = {key: np.asarray(value, np.float64) for key, value in stored[f"{name}_norm"].items()}
        x = np.maximum((x - norm["mean"]) / np.sqrt(norm["var"] + 1e-5), 0)  # scale 1, bias 0
    np.testing.assert_allclose(seen.activations["features"], x, atol=1e-5)
    np.testing.assert_allclose(seen.logits, x @ params["last"]["kernel"] + params["last"]["bias"], atol=1e-5)
    np.testing.assert_allclose(made.predict(IMAGES), seen.logits, atol=1e-6)
    np.testing.assert_array_equal(made.head_kernel, variables["params"]["last"]["kernel"])
    assert len(seen.moments) == 2
    for found, x, name in zip(seen.moments, entered, ("zebra_norm", "ant_norm"), strict=True):  # by call, not by name
        np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-5)
        np.testing.assert_allclose(found.var, x.var(0), atol=1e-5)
        np.testing.assert_array_equal(found.running_mean, stored[name]["mean"])
        np.testing.assert_array_equal(found.running_var, stored[name]["var"])
    assert made.missing == ()


@pytest.mark.slow
def test_deep_inversion_of_a_users_module_is_that_of_the_same_network_of_this_package():
    ours = Classifier.create(MLP(3, (8,), batch_norm=True), jax.random.key(1), SHAPE)

    class Theirs(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8, name="dense1")(x.reshape(x.shape[0], -1))
            x = nn.BatchNorm(use_running_average=True, epsilon=1e-5, name="dense1_norm")(x)
            return nn.Dense(3, name="head")(nn.relu(x))

    settings = InversionSettings(steps=4, statistics=1.0, jitter=1)
    theirs = from_linen(Theirs(), ours.variables, SHAPE)
    one, other = (
        core.run(deep_inversion(teacher, settings, 6, 6), jax.random.key(2), 1).state.images
        for teacher in (ours, theirs)
    )
    np.testing.assert_allclose(one, other, atol=1e-4)
    plain = dataclasses.replace(settings, statistics=0.0)
    without = core.run(deep_inversion(ours, plain, 6, 6), jax.random.key(2), 1).state.images
    assert np.abs(one - without).max() > 1e-2  # the statistics did something


class Odd(nn.Module):
    """Without an argument for training, without normalisation; what it ends in is chosen."""

    end: str

    @nn.compact
    def __call__(self, x):
        z = nn.Dense(3)(x.reshape(x.shape[0], -1))
        if self.end == "cosine":
            return 5 * z / jnp.linalg.norm(z, axis=1, keepdims=True)
        return {"logits": lambda z: z, "softmax": nn.softmax, "nan": lambda z: z / 0, "vector": lambda z: z[:, 0]}[
            self.end
        ](z)


def opened(end, **options):
    module = Odd(end)
    return from_linen(module, module.init(jax.random.key(0), IMAGES), SHAPE, **options)


def test_a_softmax_at_the_end_is_found_and_undone():
    with pytest.raises(InputError, match="Odd answers probabilities where logits were declared"):
        opened("softmax")
    with pytest.raises(InputError, match="Odd answers no probabilities where probabilities were declared"):
        opened("logits", gives="probabilities")
    one, other = opened("logits"), opened("softmax", gives="probabilities")
    np.testing.assert_allclose(other(IMAGES), jax.nn.log_softmax(one(IMAGES)), atol=1e-5)
    assert other.missing == one.missing == (("moments", "it has no batch normalisation with running statistics"),)


def test_a_last_layer_is_shown_only_where_the_answers_are_its_output():
    made = opened("cosine")
    assert made.lacks("head") == made.lacks("features") == "its answers are not the output of its last dense layer"
    with pytest.raises(InputError, match="Odd shows no dense last layer: its answers are not"):
        made.head_kernel
    with pytest.raises(InputError, match="Odd shows no statistics of normalisation inputs"):
        made.observe(IMAGES, moments=True)


def test_hidden_layers_can_be_renamed(own):
    made = from_linen(*own, SHAPE, layers={"conv1": "zebra"})
    assert set(jax.eval_shape(made.activations, IMAGES)) == {"conv1", "features", "logits"}
    made.check_layers(["conv1"])
    with pytest.raises(UnknownNameError, match="layer of Own 'conv2'; nearest: conv1"):
        made.check_layers(["conv2"])
    with pytest.raises(UnknownNameError, match="layer of Own 'zebr'; nearest: zebra"):
        from_linen(*own, SHAPE, layers={"conv1": "zebr"})


@pytest.mark.parametrize(("end", "message"), [("nan", "NaN or infinity"), ("vector", r"shape \(2, K\), got \(2,\)")])
def test_what_is_no_classifier_is_refused(end, message):
    with pytest.raises(InputError, match=message):
        opened(end)
    with pytest.raises(InputError, match="have 'params', these nothing"):
        from_linen(Odd("logits"), {}, SHAPE)


def test_normalisation_inside_a_scan_is_said_to_be_missing():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.BatchNorm(use_running_average=True)(x), None

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x.reshape(x.shape[0], -1)
            x, _ = nn.scan(Block, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=2)()(x, None)
            return nn.Dense(3)(nn.BatchNorm(use_running_average=True)(x))

    module = Deep()
    made = from_linen(module, module.init(jax.random.key(0), IMAGES), SHAPE)
    assert made.lacks("moments") == "only 1 of its 2 normalisation layers could be followed"
