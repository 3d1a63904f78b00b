"""The dissector: where it erases, which variant it asks, and what it learns from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import InputError
from dfke_jax.extraction import CloneTraining, DissectorSettings, dissector
from dfke_jax.extraction.dissector import attention, erase, erased_mean, surest_variants
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import trained
from dfke_jax.oracle import Reveal

SHAPE = (6, 6, 1)
KEY = jax.random.key(91)
POOL = jax.random.uniform(jax.random.key(92), (20, *SHAPE))
TINY = CloneTraining(steps=3, batch_size=4, decay_at=())
SETTINGS = DissectorSettings(16, 4, 0.0, TINY, variants=4, pseudo_rows=6)


@pytest.fixture(scope="module")
def net():
    return Classifier.create(MLP(3, (8,)), jax.random.key(0), SHAPE)


def test_attention_of_a_linear_classifier_is_the_closed_form():
    """|∂ log p_y/∂x| = |W (e_y − p)|; none at all for a constant classifier, which is attended to evenly."""
    weights = np.random.default_rng(0).normal(size=(36, 3))
    classifier = lambda images: images.reshape(images.shape[0], -1) @ jnp.asarray(weights, jnp.float32)
    labels = np.arange(20) % 3
    made = attention(classifier, POOL, jnp.asarray(labels))
    flat = np.asarray(POOL, np.float64).reshape(20, -1)
    scores = np.exp(flat @ weights)
    sizes = np.abs((np.eye(3)[labels] - scores / scores.sum(1, keepdims=True)) @ weights.T)
    np.testing.assert_allclose(made.reshape(20, -1), sizes / sizes.sum(1, keepdims=True), rtol=1e-3, atol=1e-5)
    constant = attention(lambda images: 0 * images[:, 0, 0, :1] + jnp.ones((1, 3)), POOL, jnp.asarray(labels))
    np.testing.assert_allclose(constant, 1 / 36, rtol=1e-6)


def test_a_rectangle_of_the_right_size_is_erased_around_its_centre():
    images = jnp.full((300, 40, 40, 2), -1.0)
    weights = jnp.zeros((300, 40, 40)).at[:, 20, 15].set(1.0)
    made = np.asarray(erase(KEY, images, weights, (0.05, 0.2), (0.5, 2.0)))
    inside = (made >= 0).all(-1)
    np.testing.assert_array_equal(inside, (made >= 0).any(-1))
    assert inside[:, 20, 15].all()
    assert (made[~inside] == -1).all()
    tall, wide = inside.any(2).sum(1), inside.any(1).sum(1)
    np.testing.assert_array_equal(inside.sum((1, 2)), tall * wide)
    areas, shapes = tall * wide / 1600, tall / wide
    assert areas.min() > 0.03
    assert areas.max() < 0.25
    assert areas.mean() == pytest.approx(0.125, abs=0.012)  # uniform on (0.05, 0.2)
    assert np.log(shapes).mean() == pytest.approx(0, abs=0.1)
    assert 0.4 < shapes.min() < 0.65
    assert 1.55 < shapes.max() < 2.5


def test_centres_follow_the_weights():
    weights = np.random.default_rng(1).dirichlet(np.ones(9)).reshape(3, 3)
    images = jnp.full((9000, 3, 3, 1), -1.0)
    made = erase(KEY, images, jnp.broadcast_to(jnp.asarray(weights, jnp.float32), (9000, 3, 3)), (0.01, 0.02), (1.0, 1.0))  # fmt: skip
    erased = np.asarray(made[..., 0]) >= 0
    assert (erased.sum((1, 2)) == 1).all()
    spread = np.sqrt(weights * (1 - weights) / 9000)
    assert (np.abs(erased.mean(0) - weights) < 4.5 * spread).all()


def test_the_surest_variant_and_the_mean_are_those_of_the_loop(net):
    labels = jnp.argmax(net(POOL), -1)
    weights = jax.jit(attention)(net, POOL, labels)
    erased = jax.jit(erase, static_argnums=(3, 4))
    made = [erased(jax.random.fold_in(KEY, i), POOL, weights, SETTINGS.area, SETTINGS.aspect) for i in range(4)]
    sure = np.stack([np.asarray(jax.nn.softmax(net(images))).max(1) for images in made])
    best = np.asarray(made)[sure.argmax(0), np.arange(20)]
    assert len(set(sure.argmax(0))) > 1
    np.testing.assert_allclose(surest_variants(KEY, net, POOL, labels, SETTINGS), best, atol=1e-6)
    even = jnp.full((20, 6, 6), 1 / 36)
    made = [erased(jax.random.fold_in(KEY, i), POOL, even, SETTINGS.area, SETTINGS.aspect) for i in range(4)]
    mean = np.mean([jax.nn.softmax(net(images)) for images in made], 0)
    np.testing.assert_allclose(erased_mean(KEY, net, POOL, SETTINGS, (0.0, 1.0)), mean, rtol=1e-4)


@pytest.mark.slow
def test_new_images_and_their_erased_variants_take_turns(net):
    victim, asked = Classifier.create(MLP(3, (8,)), jax.random.key(9), SHAPE), []

    def answers(rows):
        asked.append(rows)
        return np.asarray(victim(jnp.asarray(rows))).argmax(-1).astype(np.int32)

    attack = dissector(net, POOL, Reveal("label"), SETTINGS)
    method = core.against(attack, answers, host=True)
    state, before = jax.jit(method.init)(KEY), None
    for step in range(4):
        if step == 3:
            before = state
        state, _ = method.step(jax.random.fold_in(KEY, step), state)
    order = np.asarray(state.order)
    np.testing.assert_array_equal(asked[0], POOL[order[:4]])
    np.testing.assert_array_equal(asked[2], POOL[order[4:8]])
    for new, erased in ((asked[0], asked[1]), (asked[2], asked[3])):
        changed = (new != erased).any(-1)
        assert changed.any((1, 2)).all()
        assert not changed.all((1, 2)).any()
    labels = jnp.argmax(before.targets[8:12], -1)
    erase_key = jax.random.split(jax.random.fold_in(KEY, 3), 4)[0]
    expected = surest_variants(erase_key, trained(net, before.clone), jnp.asarray(asked[2]), labels, SETTINGS)
    np.testing.assert_allclose(asked[3], expected, atol=1e-6)
    np.testing.assert_array_equal(state.images, np.concatenate(asked))
    truth = np.asarray(victim(state.images)).argmax(-1)
    np.testing.assert_array_equal(state.targets, np.eye(3)[truth])


def test_settings_that_mean_nothing(net):
    for change, message in (
        ({"validation": 0.2}, "holds no rows out"),
        ({"variants": 0}, "variants"),
        ({"area": (0.5, 0.2)}, "area"),
    ):
        with pytest.raises(InputError, match=message):
            DissectorSettings(**change)
    with pytest.raises(InputError, match="budget of 24 rows"):
        dissector(net, POOL, Reveal(), DissectorSettings(48, 4, 0.0, TINY))


def test_the_ends_of_what_is_accepted():
    DissectorSettings(variants=1, pseudo_rows=0, pseudo_weight=0.0, area=(0.01, 1.0), aspect=(0.01, 0.01))
    DissectorSettings(area=(0.5, 0.5), aspect=(2.0, 3.0))
    for changes, message in (
        ({"variants": 0}, "variants must be at least 1"),
        ({"pseudo_rows": -1}, "variants must be at least 1"),
        ({"pseudo_weight": -0.1}, "variants must be at least 1"),
        ({"area": (0.0, 0.5)}, "area must be"),
        ({"area": (0.5, 0.4)}, "area must be"),
        ({"area": (0.5, 1.1)}, "area must be"),
        ({"aspect": (0.0, 0.5)}, "area must be"),
        ({"aspect": (0.5, 0.4)}, "area must be"),
    ):
        with pytest.raises(InputError, match=message):
            DissectorSettings(**changes)
