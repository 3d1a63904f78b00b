"""Quantisation, filters, retraining, overwriting, transfer, adversarial images; and the matrix of all attacks."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.evaluation import fgsm
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.watermarking.removal import (
    REMOVALS,
    TrainingSettings,
    adversarial_fine_tuning,
    filtered,
    half_precision,
    input_filter,
    made_elsewhere,
    neural_cleanse,
    noise_averaging,
    overwriting,
    quantisation,
    quantised,
    removal,
    removal_matrix,
    retraining,
    transfer_learning,
)

KEY = jax.random.key(8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "where", "draws"),
    [
        (overwriting, "overwriting", "abstract_triggers"),
        (transfer_learning, "transfer_learning", "fresh_head"),
        (adversarial_fine_tuning, "adversarial", "pgd"),
        (neural_cleanse, "neural_cleanse", "reverse_triggers"),
    ],
)
def test_what_an_attack_draws_besides_does_not_share_a_key_with_its_training(marked, monkeypatch, attack, where, draws):
    """Step t has the key fold_in(key, t), and split(key, n)[i] is fold_in(key, i)."""

    class StopError(Exception):
        pass

    def drawn(key, *arguments, **options):
        keys.append(key)
        raise StopError

    keys, permutation = [], jax.random.permutation
    monkeypatch.setattr(jax.random, "permutation", lambda key, x: (keys.append(key), permutation(key, x))[1])
    monkeypatch.setattr(importlib.import_module(f"dfke_jax.watermarking.removal.{where}"), draws, drawn)
    with pytest.raises(StopError):
        attack(KEY, marked.network, marked.images, marked.labels)
    steps = jax.vmap(lambda t: jax.random.fold_in(KEY, t))(jnp.arange(5000, dtype=jnp.uint32))
    np.testing.assert_array_equal(jax.random.key_data(jax.random.split(KEY, 5000)), jax.random.key_data(steps))
    taken = {tuple(row) for row in jax.random.key_data(steps).tolist()}
    below = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(5)))(steps).reshape(-1)
    taken |= {tuple(row) for row in jax.random.key_data(below).tolist()}
    assert keys
    assert not taken & {tuple(jax.random.key_data(key).tolist()) for key in keys}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_quantisation_error_is_at_most_half_a_step(bits, per_channel):
    weights = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32) * np.arange(7, dtype=np.float32)
    found = np.asarray(quantised(jnp.asarray(weights), bits, per_channel))
    largest = np.abs(weights).max((0, 1) if per_channel else None, keepdims=True)
    step = np.broadcast_to(largest / (2 ** (bits - 1) - 1), weights.shape)
    assert (np.abs(found - weights) <= step / 2 * (1 + 1e-5)).all()
    if bits < 8:
        assert (np.abs(found - weights) > step / 4).any(), "the bound is not far from what happens"
    whole = found / np.where(step > 0, step, 1)
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-3)
    assert np.abs(whole).max() == pytest.approx(2 ** (bits - 1) - 1, rel=1e-5)
    np.testing.assert_array_equal(found[..., 0], 0)
    np.testing.assert_allclose(quantised(jnp.asarray(found), bits, per_channel), found, rtol=1e-5, atol=1e-6)


def test_quantisation_touches_kernels_alone(marked):
    removed = quantisation(KEY, marked.network, marked.images, marked.labels, bits=3)
    for name, layer in removed.classifier.variables["params"].items():
        for part, leaf in layer.items():
            same = np.array_equal(leaf, marked.network.variables["params"][name][part])
            assert same == (part != "kernel"), (name, part)


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision_keeps_that_many_binary_digits(marked, dtype, digits):
    removed = half_precision(KEY, marked.network, marked.images, marked.labels, dtype=dtype)
    for before, after in zip(*(jax.tree.leaves(c.variables["params"]) for c in (marked.network, removed.classifier)), strict=True):  # fmt: skip
        mantissa, exponent = np.frexp(np.asarray(before, np.float64))
        usual = exponent > -13  # below lie float16's subnormal numbers
        expected = np.ldexp(np.round(np.ldexp(mantissa, digits)), exponent - digits)
        np.testing.assert_array_equal(np.asarray(after)[usual], expected[usual])


def test_filters_against_scipy():
    images = np.random.default_rng(0).random((3, 7, 6, 2)).astype(np.float32)
    for window in (1, 3, 5):
        size = (1, window, window, 1)
        np.testing.assert_array_equal(
            filtered(images, "median", window), ndimage.median_filter(images, size, mode="nearest")
        )
        expected = ndimage.uniform_filter(images, size, mode="nearest")
        np.testing.assert_allclose(filtered(images, "mean", window), expected, rtol=1e-5, atol=1e-6)


def test_filtered_suspect_is_the_network_of_filtered_images(marked):
    arguments = (marked.images, marked.labels)
    once = input_filter(KEY, marked.network, *arguments, kind="median").classifier
    twice = input_filter(KEY, once, *arguments, kind="mean").classifier
    images = marked.test_images[:20]
    middle = np.asarray(filtered(jnp.asarray(images), "median"))
    np.testing.assert_allclose(once.predict(images), marked.network.predict(middle), rtol=1e-5, atol=1e-5)
    middle = np.asarray(filtered(filtered(jnp.asarray(images), "median"), "mean"))
    np.testing.assert_allclose(twice.predict(images), marked.network.predict(middle), rtol=1e-4, atol=1e-4)


def test_noise_averaging_against_a_loop(marked):
    suspect = noise_averaging(KEY, marked.network, marked.images, marked.labels, deviation=0.3, draws=3).classifier
    images = marked.test_images[:10]
    probabilities = []
    for noise in np.asarray(suspect.noise):
        logits = marked.network.predict(np.clip(images + noise, 0, 1)).astype(np.float64)
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        probabilities.append(exponentials / exponentials.sum(1, keepdims=True))
    found = suspect.predict(images, batch_size=4)
    np.testing.assert_allclose(np.exp(found), np.mean(probabilities, 0), rtol=1e-3, atol=1e-5)
    assert np.asarray(suspect.noise).std() == pytest.approx(0.3, rel=0.2)


@pytest.mark.parametrize("answers", ["soft", "hard"])
def test_retraining_learns_the_task_and_not_the_mark(matrix, answers):
    row = matrix[f"{answers}_retraining"]
    assert row.after.accuracy > 90
    assert row.after.trigger_accuracy < 50


def test_a_living_teacher_and_another_student(marked):
    student = Classifier.create(MLP(10, (8,)), KEY, (8, 8, 1))
    settings = TrainingSettings(6, 16, 1e-2, "adam", augment=jax.tree_util.Partial(lambda key, x: x))
    table = TrainingSettings(6, 16, 1e-2, "adam")
    found = [
        retraining(KEY, marked.network, marked.images, marked.labels, answers="hard", student=student, settings=how)
        for how in (settings, table)
    ]
    assert found[0].classifier.module.units == (8,)
    np.testing.assert_allclose(*(f.classifier.predict(marked.test_images[:9]) for f in found), rtol=1e-4, atol=1e-4)


def test_overwriting_leaves_the_attackers_mark(matrix):
    assert matrix["overwriting"].removed.details["own_mark"] > 90
    assert matrix["overwriting"].after.accuracy > 90


def test_transfer_puts_the_private_layer_back(marked, matrix):
    removed = matrix["transfer_learning"].removed
    assert removed.classifier.predict(marked.test_images).shape[1] == 12
    assert removed.for_verification.predict(marked.test_images).shape[1] == 10
    new, old, private = (c.variables["params"] for c in (removed.classifier, removed.for_verification, marked.network))
    np.testing.assert_array_equal(old["head"]["kernel"], private["head"]["kernel"])
    np.testing.assert_array_equal(old["dense1"]["kernel"], new["dense1"]["kernel"])
    assert not np.array_equal(old["dense1"]["kernel"], private["dense1"]["kernel"])


def test_adversarial_fine_tuning_hardens(marked, matrix):
    def robust(network):
        images, labels = jnp.asarray(marked.test_images), jnp.asarray(marked.test_labels)
        attacked = np.asarray(fgsm(network, images, labels, 0.15))
        return (network.predict(attacked).argmax(1) == marked.test_labels).mean()

    assert robust(matrix["adversarial_fine_tuning"].removed.classifier) > robust(marked.network) + 0.1


def test_matrix_has_every_attack_and_traces_those_that_train(matrix):
    assert set(matrix) == {*REMOVALS, "nothing"}
    for name, row in matrix.items():
        assert row.scheme == "abstract"
        assert row.before.trigger_accuracy == 100
        trains = "watch" in inspect.signature(REMOVALS.get(name, made_elsewhere)).parameters
        assert (row.removed.trace.get("steps") == [0, 150, 300]) == trains, name
        if trains:
            assert row.removed.trace["trigger_accuracy"][-1] == row.after.trigger_accuracy
    assert matrix["nothing"].after == matrix["nothing"].before


def test_an_attack_does_the_same_whatever_stands_beside_it(matrix, marked):
    (row,) = removal_matrix(
        jax.random.key(5),
        {"other": (marked.network, marked.triggers)},
        {"noise_averaging": noise_averaging},
        marked.images,
        marked.labels,
        marked.test_images,
        marked.test_labels,
    )
    assert row.after == matrix["noise_averaging"].after
    np.testing.assert_array_equal(row.removed.classifier.noise, matrix["noise_averaging"].removed.classifier.noise)


def test_bad_input(marked):
    good = (KEY, marked.network, marked.images[:8], marked.labels[:8])
    for call, message in (
        (lambda: quantisation(*good, bits=1), "from 2 to 16"),
        (lambda: input_filter(*good, window=2), "must be odd"),
        (lambda: noise_averaging(*good, draws=0), "at least 1"),
        (lambda: retraining(*good, temperature=0.0), "temperature"),
        (lambda: retraining(*good, student=Classifier.create(MLP(3, ()), KEY, (8, 8, 1))), "to 3 classes"),
        (lambda: adversarial_fine_tuning(*good, samples=0), "samples"),
        (lambda: transfer_learning(*good, num_classes=2), r"labels must lie in \[0, 2\)"),
        (lambda: overwriting(*good, companions_per_batch=101), "101 companions"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    for call in (
        lambda: removal("ftla"),
        lambda: half_precision(*good, dtype="float8"),
        lambda: filtered(jnp.zeros((1, 2, 2, 1)), "max"),  # pyright: ignore[reportArgumentType]
        lambda: retraining(*good, answers="both"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(UnknownNameError):
            call()
    huge = jax.tree.map(lambda leaf: leaf + 1e5, marked.network.variables)
    with pytest.raises(InputError, match="beyond the range of float16"):
        half_precision(KEY, marked.network.replace(variables=huge), *good[2:], dtype="float16")
