"""DeepInversion lowers the statistics prior; its adaptive form begins as the plain one and brings a student along."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.distillation import InversionSettings, adaptive_deep_inversion, deep_inversion
from dfke_jax.nn.losses import jensen_shannon
from dfke_jax.nn.training import trained
from dfke_jax.synthesis import normalisation_statistics

KEY = jax.random.key(12)


def statistics(teacher, images, form):
    return float(normalisation_statistics(teacher.logits_and_moments(images)[1], form))


@pytest.mark.parametrize("form", ["norm", "squared", "kl"])
def test_the_statistics_prior_falls(bn_teacher, form):
    settings = InversionSettings(steps=40, form=form, jitter=0, learning_rate=0.02)
    made = core.run(deep_inversion(bn_teacher, settings, 9, 9), KEY, 1).state
    control = core.run(deep_inversion(bn_teacher, settings, 9, 9, control=True), KEY, 1).state
    assert statistics(bn_teacher, made.images, form) < 0.5 * statistics(bn_teacher, control.images, form)
    np.testing.assert_array_equal(made.labels, np.arange(9) % 3)
    assert made.images.min() >= 0
    assert made.images.max() <= 1


def test_the_prior_is_what_lowers_it(bn_teacher):
    images = {}
    for weight in (0.0, 10.0):
        settings = InversionSettings(steps=40, statistics=weight, jitter=0, learning_rate=0.02)
        images[weight] = core.run(deep_inversion(bn_teacher, settings, 9, 9), KEY, 1).state.images
    assert statistics(bn_teacher, images[10.0], "norm") < 0.5 * statistics(bn_teacher, images[0.0], "norm")


def test_the_first_normalisation_layer_has_a_weight_of_its_own(bn_teacher):
    """Images match the statistics of that layer better when it weighs more; the authors' ImageNet recipe has 10."""

    def misfit(weight):
        settings = InversionSettings(steps=40, jitter=0, learning_rate=0.02, first_layer=weight)
        images = core.run(deep_inversion(bn_teacher, settings, 9, 9), KEY, 1).state.images
        return normalisation_statistics(bn_teacher.logits_and_moments(images)[1][:1], "norm")

    assert misfit(10.0) < misfit(1.0) < misfit(0.0)
    with pytest.raises(core.InputError, match="first_layer must not be negative"):
        InversionSettings(first_layer=-1.0)


def test_the_dream_prior_needs_no_normalisation(teacher):
    settings = InversionSettings(steps=40, statistics=0.0, l2=1e-3, jitter=0)
    made = core.run(deep_inversion(teacher, settings, 6, 6), KEY, 1)
    answers = teacher.predict(made.state.images).argmax(1)
    assert (answers == np.arange(6) % 3).mean() >= 5 / 6


def test_without_normalisation_the_prior_is_refused(teacher, student):
    settings = InversionSettings(steps=1)
    message = "DeepInversion needs a teacher with batch normalisation and MLP has none; use lenet5_bn"
    with pytest.raises(core.InputError, match=message):
        deep_inversion(teacher, settings, 6, 3)
    with pytest.raises(core.InputError, match=message):
        adaptive_deep_inversion(teacher, student, settings, 6, 3)


def test_the_control_is_the_start_of_the_run_with_the_same_key(bn_teacher):
    settings = InversionSettings(steps=1, learning_rate=1e-9)
    made = core.run(deep_inversion(bn_teacher, settings, 6, 3), KEY, 2).state
    control = core.run(deep_inversion(bn_teacher, settings, 6, 3, control=True), KEY, 2).state
    np.testing.assert_allclose(made.images, control.images, atol=1e-6)
    np.testing.assert_array_equal(made.labels, control.labels)


SETTINGS = InversionSettings(steps=6, learning_rate=0.02, jitter=0)


def test_the_first_adaptive_batch_is_a_plain_one(bn_teacher, student):
    plain = deep_inversion(bn_teacher, SETTINGS, 6, 3)
    adaptive = adaptive_deep_inversion(bn_teacher, student, SETTINGS, 6, 3, student_steps=2, student_batch=4)
    start = adaptive.init(KEY)
    first, _ = jax.jit(adaptive.step)(KEY, start)
    synthesis_key, _ = jax.random.split(KEY)
    expected, _ = jax.jit(plain.step)(synthesis_key, plain.init(KEY))
    np.testing.assert_allclose(first.pool.images, expected.images, atol=1e-5)
    np.testing.assert_array_equal(first.pool.labels, expected.labels)

    second, _ = jax.jit(adaptive.step)(KEY, first)
    again, _ = jax.jit(plain.step)(synthesis_key, expected)
    np.testing.assert_array_equal(second.pool.images[:3], first.pool.images[:3])
    assert np.abs(second.pool.images[3:] - again.images[3:]).max() > 1e-4, "from now on the student competes"
    assert second.pool.filled == 6


def test_the_student_learns_between_batches(bn_teacher, student):
    method = adaptive_deep_inversion(
        bn_teacher, student, SETTINGS, 12, 3, student_steps=30, student_batch=6, learning_rate=0.01
    )
    state = method.init(KEY)
    before = jax.tree.map(np.array, state.student.variables)
    result = core.run(method, KEY, 4, chunk=4, state=state)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, result.state.student.variables)
    assert all(change > 0 for change in jax.tree.leaves(moved))

    def divergence(variables):
        images = result.state.pool.images
        opponent = student.replace(variables=variables)
        return float(jensen_shannon(bn_teacher(images), opponent(images), 3.0).mean())

    assert divergence(result.state.student.variables) < divergence(before)
    assert trained(student, result.state.student)(result.state.pool.images).shape == (12, 3)


def test_competition_divides_teacher_and_student(bn_teacher, student):
    found = {}
    for competition in (0.0, 100.0):
        settings = InversionSettings(steps=30, learning_rate=0.02, jitter=0, competition=competition)
        method = adaptive_deep_inversion(bn_teacher, student, settings, 6, 3, student_steps=1, student_batch=3)
        state, _ = jax.jit(method.step)(KEY, method.init(KEY))
        opponent = trained(student, state.student)
        state, _ = jax.jit(method.step)(KEY, state)
        images = state.pool.images[3:]
        found[competition] = float(jensen_shannon(bn_teacher(images), opponent(images), 3.0).mean())
    assert found[100.0] > found[0.0]


def test_settings_are_checked(bn_teacher):
    with pytest.raises(core.InputError, match="at least one step, got 0"):
        InversionSettings(steps=0)
    run = lambda **changes: core.run(deep_inversion(bn_teacher, InversionSettings(steps=1, **changes), 3, 3), KEY, 1)
    with pytest.raises(core.UnknownNameError, match="unknown form of the statistics prior 'square'"):
        run(form="square")
    with pytest.raises(core.UnknownNameError, match="unknown parametrisation 'clipped'"):
        run(parametrisation="clipped")
    with pytest.raises(core.InputError, match="positive multiple"):
        deep_inversion(bn_teacher, InversionSettings(), 7, 3)
    assert jnp.isfinite(run(parametrisation="free").state.images).all()
