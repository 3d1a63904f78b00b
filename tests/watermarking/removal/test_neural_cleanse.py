"""Neural Cleanse: the index in closed form, the schedule against a loop, and a planted patch that has to be found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core import InputError
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import optimiser, trained, training
from dfke_jax.watermarking.removal import (
    CleanseSettings,
    TrainingSettings,
    anomaly_index,
    neural_cleanse,
    neural_cleanse_patching,
    outliers,
    reverse_triggers,
)
from dfke_jax.watermarking.removal.common import LOSS
from dfke_jax.watermarking.removal.neural_cleanse import CostSchedule, next_costs

KEY = jax.random.key(7)
TARGET = 3
SETTINGS = CleanseSettings(rounds=60, batches=10, batch_size=32)


def test_index_in_closed_form():
    # Median 10, deviations 9 2 1 0 1 2 30, whose median is 2.
    norms = [1.0, 8.0, 9.0, 10.0, 11.0, 12.0, 40.0]
    np.testing.assert_allclose(anomaly_index(norms), np.array([9, 2, 1, 0, 1, 2, 30]) / (1.4826 * 2), rtol=1e-12)
    assert outliers(norms) == (0,), "large masks are no backdoors"
    np.testing.assert_array_equal(anomaly_index([5.0, 5.0, 5.0, 2.0]), [0, 0, 0, np.inf])
    assert outliers([9.0, 3.0, 10.0, 11.0, 1.0, 10.0, 9.5, 10.5, 10.2, 9.8, 10.1]) == (4, 1)


def test_index_of_normal_norms_is_a_standard_score():
    norms = np.random.default_rng(0).normal(50, 4, 200_001)
    np.testing.assert_allclose(anomaly_index(norms), np.abs(norms - 50) / 4, rtol=0.02, atol=0.02)


def test_costs_against_a_loop():
    settings = CleanseSettings(cost=0.5, patience=3, multiplier=2.0)
    success = np.random.default_rng(1).random((80, 6)) < np.array([0.0, 0.2, 0.5, 0.8, 0.95, 1.0])
    zeros = [jnp.zeros(6, jnp.int32) for _ in range(3)]
    state, found = CostSchedule(jnp.zeros(6), *zeros), []
    for row in success:
        state = next_costs(settings, state, jnp.asarray(row))
        found.append(np.asarray(state.cost))
    for k in range(6):
        cost, run_of, sign, expected = 0.0, 0, True, []
        for worked in success[:, k]:
            run_of = run_of + 1 if worked == sign else 1
            sign = bool(worked)
            if run_of == 3:
                run_of = 0
                started = cost > 0
                cost = (cost * 2 if worked else cost / 2**1.5) if started else 0.5 * worked
            expected.append(cost)
        np.testing.assert_allclose(np.array(found)[:, k], expected, rtol=1e-5)
    assert len(np.unique(np.array(found)[:, 4])) > 4


def stamped(images):
    images = np.array(images)
    images[:, :2, :2] = 1.0
    return images


RANDOM = np.random.default_rng(0)
LABELS = np.arange(1200) % 10
# Ten random templates, so that no class is nearer to the others than the rest.
TEMPLATES = RANDOM.uniform(0.2, 0.8, (10, 8, 8, 1))
IMAGES = np.clip(TEMPLATES[LABELS] + RANDOM.normal(0, 0.15, (1200, 8, 8, 1)), 0, 1).astype(np.float32)
OTHERS = LABELS != TARGET


@pytest.fixture(scope="module")
def networks():
    """One network with a backdoor, a patch in the corner for class 3, and one without."""
    network = Classifier.create(MLP(10, (24,)), jax.random.key(0), (8, 8, 1))
    made = []
    for rows, classes in ((stamped(IMAGES[:300]), np.full(300, TARGET)), (IMAGES[:300], LABELS[:300])):
        images, labels = jnp.asarray(np.concatenate([IMAGES, rows])), jnp.asarray(np.concatenate([LABELS, classes]))
        rule = optimiser("adam", 3e-3)
        method = training(network, images, labels, loss=LOSS, optimizer=rule, batch_size=64)
        made.append(trained(network, core.run(method, jax.random.key(0), 600).state))
    return made


def success(network):
    """Share of stamped images of other classes that are put into the target class."""
    return float((network.predict(stamped(IMAGES[OTHERS])).argmax(1) == TARGET).mean())


def accuracy(network):
    return float((network.predict(IMAGES).argmax(1) == LABELS).mean())


@pytest.fixture(scope="module")
def found(networks):
    """What the search finds in each of them."""
    return [reverse_triggers(jax.random.key(1), network, IMAGES, SETTINGS) for network in networks]


@pytest.mark.slow
def test_planted_patch_is_found_and_a_clean_network_is_not_accused(networks, found):
    guilty, innocent = found
    assert success(networks[0]) > 0.95
    assert success(networks[1]) < 0.1
    assert guilty.flagged[0] == TARGET
    assert guilty.anomaly[TARGET] > 4
    assert guilty.found.all()
    mask = guilty.masks[TARGET][..., 0]
    assert mask[:2, :2].sum() > 0.7 * mask.sum(), "the mask lies where the patch was"
    assert (networks[0].predict(guilty.stamp(IMAGES, TARGET)).argmax(1) == TARGET).mean() > 0.95
    np.testing.assert_allclose(guilty.norms, guilty.masks.sum((1, 2, 3)), rtol=1e-5)
    assert innocent.flagged == ()
    assert innocent.found.all()


@pytest.mark.slow
def test_unlearning_and_patching_close_the_door(networks, found):
    backdoored, clean = networks
    arguments = (jnp.asarray(IMAGES), jnp.asarray(LABELS))
    training_ = TrainingSettings(steps=60, batch_size=64, learning_rate=0.02)
    removed = neural_cleanse(KEY, backdoored, *arguments, cleanse=SETTINGS, settings=training_)
    assert removed.details["targets"][0] == TARGET
    assert success(removed.classifier) < 0.2
    assert accuracy(removed.classifier) > 0.95
    patched = neural_cleanse_patching(KEY, backdoored, *arguments, found=found[0], fraction=0.2)
    assert success(patched.classifier) < success(backdoored) - 0.3
    # The units that fall are those that the true patch excites most, or nearly.
    features = jax.jit(Classifier.features)
    excited = (features(backdoored, stamped(IMAGES)) - features(backdoored, IMAGES)).mean(0)
    most = np.argsort(-np.asarray(excited))[: int(0.2 * 24)]
    assert len(patched.details["pruned"]) == len(most)
    assert len(set(most.tolist()) & set(patched.details["pruned"])) >= len(most) - 1
    for attack in (neural_cleanse, neural_cleanse_patching):
        untouched = attack(KEY, clean, *arguments, found=found[1], only_flagged=True)
        assert untouched.classifier is clean
        assert untouched.details["targets"] == []


def test_bad_input(marked):
    for bad in ([1.0, 2.0], [1.0, np.nan, 2.0], np.ones((3, 3))):
        with pytest.raises(InputError, match="at least three finite"):
            anomaly_index(bad)
    for changes in ({"rounds": 0}, {"multiplier": 1.0}, {"threshold": 0.0}, {"cost": 0.0}):
        with pytest.raises(InputError):
            CleanseSettings(**changes)
    with pytest.raises(InputError, match="fraction must lie in"):
        neural_cleanse(KEY, marked.network, marked.images, marked.labels, share=2.0)
