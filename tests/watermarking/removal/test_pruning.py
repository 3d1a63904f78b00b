"""Pruning: which weights and units fall, against NumPy, and that they never come back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.nn import registry
from dfke_jax.nn.classifier import Classifier
from dfke_jax.watermarking.removal import (
    dormant_pruning,
    magnitude_masks,
    magnitude_pruning,
    masked,
    prunable_layers,
    unit_activity,
    unit_masks,
)
from dfke_jax.watermarking.removal.common import count_of

KEY = jax.random.key(6)


def by_hand(kernels, fraction):
    """Sorts (magnitude, position) and strikes the first ⌊fraction · n⌋, one after another."""
    ranked = sorted((abs(float(w)), place) for place, w in enumerate(np.concatenate([k.ravel() for k in kernels])))
    fallen = {place for _, place in ranked[: int(fraction * len(ranked))]}
    total, masks = 0, []
    for kernel in kernels:
        masks.append(np.array([total + i not in fallen for i in range(kernel.size)]).reshape(kernel.shape))
        total += kernel.size
    return masks


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.7, 1.0])
def test_magnitude_masks_against_sorting_by_hand(fraction):
    random = np.random.default_rng(0)
    # Rounded, so that magnitudes tie.
    params = {
        name: {"kernel": np.round(random.normal(size=shape), 1).astype(np.float32), "bias": np.zeros(shape[-1])}
        for name, shape in (("a_conv", (2, 2, 1, 3)), ("dense", (12, 5)), ("head", (5, 3)))
    }
    kernels = [params[name]["kernel"] for name in params]
    found = magnitude_masks(params, fraction, "global")
    for name, mask in zip(params, by_hand(kernels, fraction), strict=True):
        np.testing.assert_array_equal(found[name]["kernel"], mask)
        assert found[name]["bias"].all()
    found = magnitude_masks(params, fraction, "layer")
    for name in params:
        np.testing.assert_array_equal(found[name]["kernel"], by_hand([params[name]["kernel"]], fraction)[0])


def test_a_fraction_is_that_of_decimal_numbers():
    assert [count_of(share, 100) for share in (0.0, 0.29, 0.57, 0.999, 1.0)] == [0, 29, 57, 99, 100]


def test_magnitude_pruning_sets_that_share_of_kernels_to_zero(marked):
    removed = magnitude_pruning(KEY, marked.network, marked.images, marked.labels, fraction=0.6)
    kernels = [layer["kernel"] for layer in removed.classifier.variables["params"].values() if "kernel" in layer]
    zero, size = sum(int((kernel == 0).sum()) for kernel in kernels), sum(kernel.size for kernel in kernels)
    assert zero == int(0.6 * size)
    assert removed.settings == {"fraction": 0.6, "scope": "global"}


def test_activity_against_numpy(marked):
    network = marked.network
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), network.variables["params"])
    running = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), network.variables["batch_stats"])
    x = np.asarray(marked.images[:70], np.float64).reshape(70, -1)
    for layer in ("dense1", "dense2"):
        norm, stored = params[f"{layer}_norm"], running[f"{layer}_norm"]
        x = x @ params[layer]["kernel"] + params[layer]["bias"]
        x = (x - stored["mean"]) / np.sqrt(stored["var"] + 1e-5) * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0)
        np.testing.assert_allclose(
            unit_activity(network, marked.images[:70], layer, batch_size=35), x.mean(0), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(
        unit_activity(network, marked.images[:70], batch_size=70), x.mean(0), rtol=1e-4, atol=1e-5
    )


def test_dormant_units_are_found_and_cut_off(marked):
    """Units that are made silent by a large negative offset are those that fall."""
    dead = [3, 5, 11]
    params = marked.network.variables["params"]
    offset = params["dense2_norm"]["bias"].at[jnp.array(dead)].set(-100.0)
    params = {**params, "dense2_norm": {**params["dense2_norm"], "bias": offset}}
    network = marked.network.replace(variables={**marked.network.variables, "params": params})
    removed = dormant_pruning(KEY, network, marked.images, marked.labels, fraction=3 / 16)
    assert removed.details["pruned"] == dead
    rows = np.asarray(removed.classifier.variables["params"]["head"]["kernel"])
    np.testing.assert_array_equal(np.flatnonzero((rows == 0).all(1)), dead)
    np.testing.assert_allclose(
        removed.classifier.predict(marked.test_images), network.predict(marked.test_images), rtol=1e-5, atol=1e-5
    )
    assert removed.classifier.predict(marked.test_images).argmax(1).tolist() != [0] * len(marked.test_images)


def positive(name, shape):
    """A registered network whose variables are all 0.3: no unit is silent."""
    module = registry.build(name)
    variables = jax.eval_shape(module.init, KEY, jnp.zeros((1, *shape)))
    variables = {group: variables[group] for group in ("params", "batch_stats")}
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.3), variables)
    return Classifier(module, variables, input_shape=shape)


def test_pruned_units_of_a_convolution_put_out_zero():
    network = positive("lenet5_bn", (32, 32, 1))
    assert prunable_layers(network) == ("features", "conv1", "conv2", "dense1", "dense2")
    assert prunable_layers(positive("resnet8", (8, 8, 3))) == ("features",)
    pruned = jnp.arange(16) % 3 == 0
    cut = masked(network, unit_masks(network, pruned, "conv2"))
    values = jax.jit(Classifier.activations)(cut, jax.random.uniform(KEY, (2, 32, 32, 1)))["conv2"]
    np.testing.assert_array_equal(np.asarray(jnp.abs(values).max((0, 1, 2)) == 0), pruned)


def test_what_was_pruned_stays_zero_through_training(marked, matrix):
    removed = matrix["fine_pruning"].removed
    units = removed.details["pruned"]
    assert len(units) == 16
    others = np.setdiff1d(np.arange(32), units)
    params = removed.classifier.variables["params"]
    for leaf in (params["dense1"]["kernel"], params["dense1"]["bias"], params["dense1_norm"]["scale"]):
        assert (np.asarray(leaf)[..., units] == 0).all()
        assert (np.asarray(leaf)[..., others] != 0).any()
    before = marked.network.variables["params"]["dense1"]["kernel"]
    assert not np.array_equal(params["dense1"]["kernel"][:, others], before[:, others]), "the rest is trained"


def test_bad_input(marked):
    network, images, labels = marked.network, marked.images[:4], marked.labels[:4]
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="fraction must lie in"):
            magnitude_pruning(KEY, network, images, labels, fraction=fraction)
    with pytest.raises(UnknownNameError, match="global"):
        magnitude_masks(network.variables["params"], 0.5, "globl")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownNameError, match="dense1"):
        unit_activity(network, images, "dens1")
    with pytest.raises(InputError, match="has 16 units"):
        unit_masks(network, jnp.ones(5, bool))
    with pytest.raises(InputError, match="has 32 units"):
        unit_masks(network, jnp.ones(16, bool), "dense1")
