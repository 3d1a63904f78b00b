"""Data impressions: which targets are drawn, what the released code does differently, and the control."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.distillation import ImpressionSettings, data_impressions
from dfke_jax.synthesis import class_similarity, concentrations, dirichlet_targets, total_variation

module = importlib.import_module("dfke_jax.distillation.data_impressions")
KEY = jax.random.key(8)


@pytest.fixture
def drawn(monkeypatch):
    """Everything asked of `dirichlet_targets`, and what it answered."""
    calls = []
    honest = module.dirichlet_targets

    def spy(key, concentration, labels, scale=1.0):
        targets = honest(key, concentration, labels, scale)
        calls.append({name: np.asarray(value) for name, value in
                      {"alpha": concentration, "labels": labels, "scale": scale, "targets": targets}.items()})  # fmt: skip
        return targets

    monkeypatch.setattr(module, "dirichlet_targets", spy)
    return calls


def entropy(p):
    return -(p * np.log(np.maximum(p, 1e-30))).sum(-1).mean()


@pytest.mark.slow
def test_the_scales_are_used(teacher, drawn):
    settings = ImpressionSettings(steps=1, scales=(1.0, 0.1))
    method = data_impressions(teacher, settings, 600, 600)
    pool, _ = method.step(KEY, method.init(KEY))
    (call,) = drawn
    np.testing.assert_array_equal(call["labels"], np.arange(600) % 3)
    np.testing.assert_array_equal(pool.labels, call["labels"])
    np.testing.assert_allclose(call["scale"], np.where(np.arange(600) // 3 % 2, 0.1, 1.0).astype(np.float32))
    np.testing.assert_allclose(call["alpha"], concentrations(class_similarity(teacher.head_kernel), 1e-4), rtol=1e-6)
    wide, narrow = (call["targets"][call["scale"] == np.float32(scale)] for scale in (1.0, 0.1))
    assert len(wide) == len(narrow) == 300
    assert entropy(narrow) < 0.5 * entropy(wide)


@pytest.mark.slow
def test_released_never_uses_the_small_scale(teacher, drawn):
    settings = ImpressionSettings(steps=1, scales=(1.0, 0.1), released=True)
    method = data_impressions(teacher, settings, 24, 2)
    state = method.init(KEY)
    for step in range(12):
        state, _ = method.step(jax.random.fold_in(KEY, step), state)
    assert len(drawn) == 12
    assert all(call["scale"] == 1.0 for call in drawn)
    # Two batches of every class, first for one scale and then for the other.
    assert [set(call["labels"]) for call in drawn] == [{0}, {0}, {1}, {1}, {2}, {2}] * 2
    np.testing.assert_array_equal(state.labels, np.repeat([0, 0, 1, 1, 2, 2] * 2, 2))


@pytest.mark.parametrize(
    ("batches", "classes", "scales"), [(50, 10, 2), (20, 10, 2), (240, 10, 2), (7, 3, 2), (2, 3, 2), (9, 3, 4)]
)
def test_released_classes_are_equally_frequent(batches, classes, scales):
    """500 samples in batches of 10 are 50 batches, which twenty groups cannot share evenly, but ten classes can."""
    order, first = module._order(batches, classes, scales)
    counts = np.bincount(order, minlength=classes)
    assert counts.sum() == batches
    assert counts.max() - counts.min() <= (batches % classes > 0)
    assert first[0]
    assert (first[1:] | (order[1:] == order[:-1])).all(), "another class begins afresh"
    if batches % (classes * scales) == 0:
        each = batches // (classes * scales)
        np.testing.assert_array_equal(order, np.tile(np.repeat(np.arange(classes), each), scales))
        np.testing.assert_array_equal(first, np.arange(batches) % each == 0)


def test_released_pool_of_five_batches_a_class(teacher):
    settings = ImpressionSettings(steps=1, scales=(1.0, 0.1), released=True)
    pool = core.run(data_impressions(teacher, settings, 30, 2), KEY, 15).state
    np.testing.assert_array_equal(np.bincount(pool.labels), [10, 10, 10])


def rescaled(x):
    return (x - x.min()) / (x.max() - x.min())


def test_released_warms_up_within_a_group_only(teacher):
    settings = ImpressionSettings(steps=2, learning_rate=1e-9, released=True)
    method = data_impressions(teacher, settings, 24, 2)
    pool = core.run(method, KEY, 12, chunk=12).state
    batches = np.asarray(pool.images).reshape(12, 2, 6, 6, 1)
    for group in range(6):
        first, second = batches[2 * group], batches[2 * group + 1]
        np.testing.assert_allclose(first, second, atol=1e-5)
        assert group == 0 or np.abs(first - batches[2 * group - 1]).max() > 0.1, "a new group starts from fresh noise"
        assert (first.min(), first.max()) == (0, pytest.approx(1))
    # Adam goes on counting within a group and begins anew with the next.
    assert pool.carry[1][0].count == 4


def test_paper_batches_start_afresh(teacher):
    settings = ImpressionSettings(steps=1, learning_rate=1e-9, start="uniform")
    pool = core.run(data_impressions(teacher, settings, 6, 3), KEY, 2).state
    first, second = np.asarray(pool.images).reshape(2, 3, 6, 6, 1)
    assert np.abs(first - second).max() > 0.1
    assert pool.carry == ()


def test_impressions_approach_their_targets(teacher):
    loss = {}
    for steps in (1, 60):
        settings = ImpressionSettings(steps=steps, learning_rate=0.05, temperature=2.0, start="uniform")
        run = core.run(data_impressions(teacher, settings, 30, 30), KEY, 1)
        loss[steps] = run.metrics["loss"][0]
        assert run.state.images.min() >= 0
        assert run.state.images.max() <= 1
    assert loss[60] < 0.9 * loss[1]


def test_batch_size_changes_speed_only_for_one_step_of_given_keys(teacher):
    """Samples of a batch are independent: changing one target or start leaves the others as they are."""
    settings = ImpressionSettings(steps=3, learning_rate=0.05)
    targets = jax.nn.softmax(jax.random.normal(KEY, (4, 3)))
    start = jax.random.uniform(KEY, (4, 6, 6, 1))

    def images(start, targets):
        count = len(start)
        synthesis = module._Impressions(teacher=teacher, settings=settings, count=count, batch_size=count)
        return synthesis.optimise(KEY, start, (targets, jnp.zeros(count)), None).images

    np.testing.assert_allclose(images(start, targets)[:2], images(start[:2], targets[:2]), atol=1e-6)


def test_the_image_prior_smooths(teacher):
    plain = ImpressionSettings(steps=40, learning_rate=0.02, start="uniform")
    smooth = ImpressionSettings(steps=40, learning_rate=0.02, start="uniform", total_variation=(0.5, 0.5), l2=1e-3)
    made = [core.run(data_impressions(teacher, settings, 9, 9), KEY, 1).state.images for settings in (plain, smooth)]
    assert total_variation(made[1]).mean() < 0.5 * total_variation(made[0]).mean()


@pytest.mark.parametrize("count", [6, 60, 197, 394, 1000])
def test_weights_of_the_prior_are_spread_evenly_in_the_logarithm(count):
    settings = ImpressionSettings(total_variation=(1e-3, 1e-1))
    weights = np.sort(module._smoothness(settings, jnp.arange(count), count))
    assert weights[0] == pytest.approx(1e-3, rel=1e-4)
    assert weights[-1] == pytest.approx(1e-1, rel=1e-4)
    levels = min(count, 512)
    expected = np.geomspace(1e-3, 1e-1, levels)
    found = np.unique(weights.round(9))
    assert len(found) == len(np.unique(expected.astype(np.float32).round(9)))
    if count <= 512:
        np.testing.assert_allclose(weights, expected, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("released", [False, True])
def test_the_control_is_the_start_of_the_run_with_the_same_key(teacher, released):
    settings = ImpressionSettings(steps=1, learning_rate=1e-9, start="smooth", released=released)
    made = core.run(data_impressions(teacher, settings, 6, 3), KEY, 2).state.images
    control = core.run(data_impressions(teacher, settings, 6, 3, control=True), KEY, 2)
    assert control.metrics == {}
    if released:  # rescaled, and only the first batch of a group begins from a start image
        np.testing.assert_allclose(made[:3], rescaled(control.state.images[:3]), atol=1e-5)
    else:
        np.testing.assert_allclose(made, control.state.images, atol=1e-6)
        np.testing.assert_array_equal(control.state.labels, np.arange(6) % 3)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("at least one step, got 0", {"steps": 0}),
        (r"scales must be positive, got \(\)", {"scales": ()}),
        (r"scales must be positive, got \(1.0, 0.0\)", {"scales": (1.0, 0.0)}),
        ("temperature must be positive, got 0", {"temperature": 0}),
        ("total_variation must be", {"total_variation": (0.0, 1.0)}),
        ("total_variation must be", {"total_variation": (-1.0, 1.0)}),
    ],
)
def test_settings_are_checked(message, changes):
    with pytest.raises(core.InputError, match=message):
        ImpressionSettings(**changes)


def test_other_refusals(teacher):
    with pytest.raises(core.InputError, match="positive multiple of the batch size, got 7 and 3"):
        data_impressions(teacher, ImpressionSettings(), 7, 3)
    with pytest.raises(core.UnknownNameError, match="unknown start distribution 'smoth'"):
        core.run(data_impressions(teacher, ImpressionSettings(steps=1, start="smoth"), 3, 3), KEY, 1)


# The method written out in NumPy, for a network of one hidden layer.


def of_variation(x):
    """The gradient of Σ |differences of neighbours|."""
    slope = np.zeros_like(x)
    down, right = np.sign(np.diff(x, axis=1)), np.sign(np.diff(x, axis=2))
    slope[:, 1:] += down
    slope[:, :-1] -= down
    slope[:, :, 1:] += right
    slope[:, :, :-1] -= right
    return slope


def variation(x):
    return np.abs(np.diff(x, axis=1)).sum((1, 2, 3)) + np.abs(np.diff(x, axis=2)).sum((1, 2, 3))


@pytest.mark.parametrize("prior", [True, False])
def test_against_the_method_written_out(wide, prior):
    teacher, numpy = wide
    settings = ImpressionSettings(
        steps=4, learning_rate=0.2, temperature=1.5, start="uniform", jitter=1,
        total_variation=(0.05, 0.2) if prior else (0.0, 0.0), l2=0.3 if prior else 0.0,
    )  # fmt: skip
    control = core.run(data_impressions(teacher, settings, 12, 6, control=True), KEY, 2).state
    made = core.run(data_impressions(teacher, settings, 12, 6), KEY, 2)
    weights = np.asarray(module._smoothness(settings, jnp.arange(12), 12))
    for batch in range(2):
        rows = slice(6 * batch, 6 * batch + 6)
        _, target_key, noise_key = jax.random.split(jax.random.fold_in(KEY, batch), 3)
        alpha = concentrations(class_similarity(teacher.head_kernel), settings.floor)
        scale = jnp.asarray(np.where(np.arange(12)[rows] // 3 % 2, 0.1, 1.0), jnp.float32)
        y = np.asarray(dirichlet_targets(target_key, alpha, jnp.arange(6) % 3, scale), np.float64)
        w, seen = weights[rows], []

        def slope(x, step, y=y, w=w, seen=seen, noise_key=noise_key):
            jitter_key = jax.random.split(jax.random.fold_in(noise_key, step))[1]
            roll = tuple(np.asarray(jax.random.randint(jitter_key, (2,), -1, 2)))
            x = np.roll(x, roll, (1, 2))
            p = numpy.softmax(numpy.logits(x) / 1.5)
            energy = np.square(x + 0.25)  # from the bottom of the box
            seen.append((-(y * np.log(p)).sum(1) + w * variation(x) + settings.l2 * energy.sum((1, 2, 3))).mean())
            g = numpy.back(x, (p - y) / 1.5) + w[:, None, None, None] * of_variation(x) + 2 * settings.l2 * (x + 0.25)
            return np.roll(g, (-roll[0], -roll[1]), (1, 2))

        start = np.asarray(control.images[rows], np.float64)
        x = numpy.adam(start, slope, 4, 0.2, lambda x: np.clip(x, -0.25, 1.5))
        assert prior or (x == -0.25).any() or (x == 1.5).any(), "the box was reached"
        np.testing.assert_allclose(made.state.images[rows], x, atol=1e-4)
        np.testing.assert_allclose(made.metrics["loss"][batch], seen[-1], rtol=1e-4)


def test_released_against_the_method_written_out(wide):
    """Two batches of a class: the second goes on from the first one's images and moments, with targets of its own."""
    teacher, numpy = wide
    settings = ImpressionSettings(steps=3, learning_rate=0.05, temperature=1.5, scales=(1.0,), released=True)
    made = core.run(data_impressions(teacher, settings, 12, 2), KEY, 2)
    start_key = jax.random.split(jax.random.fold_in(KEY, 0), 3)[0]
    start = np.asarray(jax.random.uniform(start_key, (2, 6, 6, 1)), np.float64)
    alpha = concentrations(class_similarity(teacher.head_kernel), settings.floor)
    seen = []

    def slope(x, step):
        target_key = jax.random.split(jax.random.fold_in(KEY, step // 3), 3)[1]
        y = np.asarray(dirichlet_targets(target_key, alpha, jnp.zeros(2, int), 1.0), np.float64)
        p = numpy.softmax(numpy.logits(x) / 1.5)
        seen.append(-(y * np.log(p)).sum(1).mean())
        return numpy.back(x, (p - y) / 1.5)

    x = numpy.adam(start, slope, 6, 0.05, lambda x: -0.25 + 1.75 * (x - x.min()) / (x.max() - x.min()))
    np.testing.assert_allclose(made.state.images[2:4], x, atol=2e-4)
    np.testing.assert_allclose(made.metrics["loss"], [seen[2], seen[5]], rtol=1e-4)


def test_released_with_fewer_batches_than_groups_gives_each_batch_a_class(teacher):
    settings = ImpressionSettings(steps=1, released=True)
    state = core.run(data_impressions(teacher, settings, 6, 2), KEY, 3).state
    np.testing.assert_array_equal(state.labels, [0, 0, 1, 1, 2, 2])


def test_weights_of_the_prior_for_few_samples():
    settings = ImpressionSettings(total_variation=(1e-3, 1e-1))
    np.testing.assert_allclose(module._smoothness(settings, jnp.arange(2), 2), [1e-3, 1e-1], rtol=1e-5)
    np.testing.assert_allclose(module._smoothness(settings, jnp.arange(1), 1), [1e-3], rtol=1e-5)


def test_temperatures_below_one_are_allowed():
    assert ImpressionSettings(temperature=0.5).temperature == 0.5
