"""DeepInversion lowers the statistics prior; its adaptive form begins as the plain one and brings a student along."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from dfke_jax import core
from dfke_jax.data.augment import identity
from dfke_jax.distillation import (
    InversionSettings,
    adaptive_deep_inversion,
    deep_inversion,
    knowledge_distillation,
)
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.losses import jensen_shannon
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import trained
from dfke_jax.synthesis import normalisation_statistics

KEY = jax.random.key(12)


def statistics(teacher, images, form):
    return float(normalisation_statistics(teacher.observe(images, moments=True).moments, form))


@pytest.mark.slow
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
        return normalisation_statistics(bn_teacher.observe(images, moments=True).moments[:1], "norm")

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
    message = "deep_inversion needs statistics of what enters batch normalisation, and MLP shows none: it has no batch"
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


# The method written out in float64, for a network of one hidden layer on images of three channels.

COLOUR = (3, 4, 3)
PREPARED = Preprocessing(mean=(0.2, 0.5, 0.7), std=(0.15, 0.3, 0.6), box=(-0.25, 1.5))


@pytest.fixture(scope="module")
def coloured():
    """A network with statistics, scales and biases of its own, and channels of unlike deviations."""
    made = Classifier.create(MLP(3, (8,), batch_norm=True), jax.random.key(21), COLOUR, PREPARED)
    rng = np.random.default_rng(22)
    drawn = lambda low, high, size: jnp.asarray(rng.uniform(low, high, size), jnp.float32)
    stored = {"dense1_norm": {"mean": drawn(-1, 1, 8), "var": drawn(0.5, 3, 8)}}
    params = {**made.variables["params"], "dense1_norm": {"scale": drawn(0.5, 2, 8), "bias": drawn(-1, 1, 8)}}
    return made.replace(variables={"params": params, "batch_stats": stored})


def of_network(classifier, x):
    """Logits, and the batch's mean and biased variance of the normalisation layer's input, from NumPy."""
    params, stored = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), part) for part in (
        classifier.variables["params"], classifier.variables["batch_stats"]["dense1_norm"]))  # fmt: skip
    z = ((x - np.array(PREPARED.mean)) / np.array(PREPARED.std)).reshape(len(x), -1)
    hidden = z @ params["dense1"]["kernel"] + params["dense1"]["bias"]
    norm = params["dense1_norm"]
    through = norm["scale"] * (hidden - stored["mean"]) / np.sqrt(stored["var"] + 1e-5) + norm["bias"]
    logits = np.maximum(through, 0) @ params["head"]["kernel"] + params["head"]["bias"]
    return logits, (hidden.mean(0) - stored["mean"], hidden.var(0) - stored["var"])


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def written_out(settings, teacher, x, student=None):
    """mean CE + α_f R_BN + α_tv TV + α_2 ‖·‖₂ [+ α_c mean(1 − JS in units of log 2)], the labels 0, 1, 2, 0, ..."""
    logits, gaps = of_network(teacher, x)
    loss = -np.log(softmax(logits)[np.arange(len(x)), np.arange(len(x)) % 3]).mean()
    loss += settings.statistics * sum(np.linalg.norm(gap) for gap in gaps)
    z = (x - np.array(PREPARED.mean)) / np.array(PREPARED.std)
    pairs = ((z[:, 1:], z[:, :-1]), (z[:, :, 1:], z[:, :, :-1]),
             (z[:, 1:, 1:], z[:, :-1, :-1]), (z[:, 1:, :-1], z[:, :-1, 1:]))  # fmt: skip
    loss += settings.total_variation * sum(np.linalg.norm(a - b) for a, b in pairs)
    loss += settings.l2 * np.linalg.norm(z)
    if student is not None:
        tau = settings.competition_temperature
        p, q = softmax(logits / tau), softmax(of_network(student, x)[0] / tau)
        loss += settings.competition * (1 - jensenshannon(p, q, base=2, axis=1) ** 2).mean()
    return loss


FULL = InversionSettings(
    steps=3, statistics=2.0, total_variation=0.03, l2=0.05, learning_rate=0.7, jitter=1, competition=3.0,
    start="uniform",
)  # fmt: skip


@pytest.mark.parametrize(("statistics", "box"), [(2.0, "clip"), (0.0, "free")])
def test_every_term_against_the_method_written_out(coloured, statistics, box):
    settings = dataclasses.replace(FULL, parametrisation=box, statistics=statistics)
    made = core.run(deep_inversion(coloured, settings, 6, 6), KEY, 1)
    x = np.asarray(core.run(deep_inversion(coloured, settings, 6, 6, control=True), KEY, 1).state.images, np.float64)
    noise_key = jax.random.split(jax.random.fold_in(KEY, 0))[1]
    first, second = np.zeros_like(x), np.zeros_like(x)
    for step in range(settings.steps):
        jitter_key = jax.random.split(jax.random.fold_in(noise_key, step))[1]
        roll = tuple(np.asarray(jax.random.randint(jitter_key, (2,), -1, 2)))
        loss = lambda x, roll=roll: written_out(settings, coloured, np.roll(x, roll, (1, 2)))
        seen, slope = loss(x), slopes(loss, x)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        direction = first / (1 - 0.9 ** (step + 1)) / np.sqrt(second / (1 - 0.999 ** (step + 1)))
        x = x - settings.learning_rate * np.array(PREPARED.std) * direction
        x = np.clip(x, -0.25, 1.5) if box == "clip" else x
    assert (x.min() == -0.25 and x.max() == 1.5) == (box == "clip"), "the box was reached"
    np.testing.assert_allclose(made.metrics["loss"][0], seen, rtol=1e-5)
    np.testing.assert_allclose(made.state.images, x, atol=2e-4)


def slopes(function, x, reach=1e-6):
    """The gradient by central differences."""
    out = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[place] += reach
        behind[place] -= reach
        out[place] = (function(ahead) - function(behind)) / (2 * reach)
    return out


@pytest.mark.slow
def test_competition_is_weighed_from_the_second_batch_on(coloured):
    opponent = Classifier.create(MLP(3, (8,), batch_norm=True), jax.random.key(23), COLOUR, PREPARED)
    settings = dataclasses.replace(FULL, steps=1, jitter=0)
    method = adaptive_deep_inversion(coloured, opponent, settings, 12, 6, student_steps=1, student_batch=6)
    start = method.init(KEY)
    # A student with running statistics and answers of its own, so that the divergence is neither 0 nor 1.
    variables = jax.tree.map(lambda leaf: 1.5 * leaf + 0.3, start.student.variables)
    start = start._replace(student=start.student._replace(variables=variables))
    for filled, student in ((0, None), (6, opponent.replace(variables=variables))):
        state = start._replace(pool=start.pool._replace(filled=jnp.int32(filled)))
        made, metrics = jax.jit(method.step)(KEY, state)
        plain = deep_inversion(coloured, settings, 6, 6, control=True)
        x = plain.step(jax.random.split(KEY)[0], plain.init(KEY))[0].images
        expected = written_out(settings, coloured, np.asarray(x, np.float64), student)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
        assert made.pool.filled == filled + 6


@pytest.mark.slow
def test_the_student_learns_from_filled_rows_only(coloured):
    student = Classifier.create(MLP(3, (8,), batch_norm=True), jax.random.key(23), COLOUR, PREPARED)
    options = {"temperature": 2.0, "learning_rate": 0.01}
    settings = dataclasses.replace(FULL, steps=1)
    method = adaptive_deep_inversion(coloured, student, settings, 18, 6, student_steps=3, student_batch=5, **options)
    state = method.init(KEY)
    state = state._replace(pool=state.pool._replace(images=jnp.full_like(state.pool.images, jnp.nan)))
    made, metrics = jax.jit(method.step)(KEY, state)
    assert np.isnan(made.pool.images[6:]).all(), "nothing was written there"
    # The same three steps on the first batch alone, where there are no other rows.
    alone = knowledge_distillation(
        student, coloured, made.pool.images[:6], batch_size=5, optimizer="adam", steps=0, augment=identity(), **options
    )
    expected, losses, step = state.student, [], jax.jit(alone.step)
    for i in range(3):
        expected, each = step(jax.random.fold_in(jax.random.split(KEY)[1], i), expected)
        losses.append(each["loss"])
    np.testing.assert_allclose(metrics["student_loss"], losses[-1], rtol=1e-4)
    # The bias before a normalisation has a gradient of 0 but for rounding, which Adam makes a step of full length.
    for part in (("dense1", "kernel"), ("dense1_norm",), ("head",)):
        got, wanted = (
            functools.reduce(dict.get, part, v["params"]) for v in (made.student.variables, expected.variables)
        )
        chex.assert_trees_all_close(got, wanted, atol=1e-4)


@pytest.mark.slow
def test_later_batches_go_on_with_the_labels(coloured):
    student = Classifier.create(MLP(3, (8,), batch_norm=True), jax.random.key(23), COLOUR, PREPARED)
    settings = dataclasses.replace(FULL, steps=1)
    method = adaptive_deep_inversion(coloured, student, settings, 12, 4, student_steps=1, student_batch=4)
    state = core.run(method, KEY, 3).state
    np.testing.assert_array_equal(state.pool.labels, np.arange(12) % 3)


def test_a_dream_of_a_network_with_statistics_is_allowed(coloured, student):
    dream = InversionSettings(steps=1, statistics=0.0)
    assert isinstance(deep_inversion(coloured, dream, 6, 3), core.Method)
    assert isinstance(adaptive_deep_inversion(coloured, student, dream, 6, 3), core.Method)
