"""Activation records: the draws have the recorded mean and covariance, and images follow the draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.distillation import RecordSettings, from_records, record_activations
from dfke_jax.distillation.activation_records import LayerRecord, _gaussian, draw

KEY = jax.random.key(10)
DRAWS = 6000


def activations(teacher, images, name):
    return np.asarray(teacher.activations(jnp.asarray(images))[name], np.float64).reshape(len(images), -1)


def assert_moments(sample, mean, cov):
    """Within five standard errors of a Gaussian's sample mean and covariance."""
    count, sd = len(sample), np.sqrt(np.diag(cov))
    np.testing.assert_array_less(np.abs(sample.mean(0) - mean), 5 * sd / np.sqrt(count) + 1e-6)
    error = np.sqrt((np.outer(sd, sd) ** 2 + cov**2) / count)
    np.testing.assert_array_less(np.abs(np.cov(sample.T) - cov), 5 * error + 1e-5)


@pytest.mark.parametrize("name", ["dense1", "logits"])
def test_small_layers_keep_the_whole_covariance(teacher, real, name):
    images, labels = real
    record = record_activations(teacher, images, labels)[name]
    sample = np.asarray(draw(KEY, record, DRAWS))
    for k in range(3):
        of_class = activations(teacher, images[labels == k], name)
        cov = np.cov(of_class.T)
        factor = np.asarray(record.factor[k], np.float64)
        np.testing.assert_array_equal(factor, np.tril(factor))
        np.testing.assert_allclose(factor @ factor.T, cov, atol=1e-4 * np.trace(cov))
        assert_moments(sample[:, k], of_class.mean(0), cov)
        squared = np.abs(cov @ cov - cov)
        sd = np.sqrt(np.diag(cov))
        assert (squared > 10 * np.sqrt((np.outer(sd, sd) ** 2 + cov**2) / DRAWS)).any(), "Σ² would be noticed"
    np.testing.assert_array_equal(record.rest, 0)


def test_wide_layers_keep_directions_and_what_is_left_over(teacher, real):
    images, labels = real
    record = record_activations(teacher, images, labels, layers=["dense1"], full_rank_limit=4, rank=3)["dense1"]
    assert record.factor.shape == (3, 16, 3)
    sample = np.asarray(draw(KEY, record, DRAWS))
    for k in range(3):
        of_class = activations(teacher, images[labels == k], "dense1")
        cov = np.cov(of_class.T)
        values, vectors = np.linalg.eigh(cov)
        leading = (vectors[:, -3:] * values[-3:]) @ vectors[:, -3:].T
        factor = np.asarray(record.factor[k], np.float64)
        np.testing.assert_allclose(factor @ factor.T, leading, atol=1e-4 * np.trace(cov))
        model = leading + np.diag(np.diag(cov - leading))
        np.testing.assert_allclose(np.square(record.rest[k]), np.diag(cov - leading), atol=1e-4 * np.trace(cov))
        np.testing.assert_allclose(np.diag(model), np.diag(cov), rtol=1e-6)
        assert_moments(sample[:, k], of_class.mean(0), model)


def test_more_directions_than_images(teacher, real):
    images, labels = np.concatenate([real[0][:6]]), real[1][:6]
    record = record_activations(teacher, images, labels, layers=["dense1"], full_rank_limit=4, rank=6)["dense1"]
    assert record.factor.shape == (3, 16, 6)
    factor = np.asarray(record.factor[0], np.float64)
    cov = np.cov(activations(teacher, images[labels == 0], "dense1").T)
    np.testing.assert_allclose(factor @ factor.T, cov, atol=1e-4 * np.trace(cov))
    assert np.isfinite(draw(KEY, record, 4)).all()


def test_the_most_images_per_class(teacher, real):
    images, labels = real
    few = record_activations(teacher, images, labels, layers=["logits"], per_class=5)["logits"]
    first = np.concatenate([np.flatnonzero(labels == k)[:5] for k in range(3)])
    same = record_activations(teacher, images[first], labels[first], layers=["logits"])["logits"]
    np.testing.assert_allclose(few.mean, same.mean, atol=1e-6)
    np.testing.assert_allclose(few.factor, same.factor, atol=1e-6)


def test_bytes_and_floats_are_recorded_alike(teacher, real):
    pixels = (real[0] * 255).round().astype(np.uint8)
    first = record_activations(teacher, pixels, real[1], layers=["logits"])["logits"]
    second = record_activations(teacher, pixels / np.float32(255), real[1], layers=["logits"])["logits"]
    np.testing.assert_allclose(first.mean, second.mean, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["top", "all", ("dense1",)])
def test_images_come_to_respond_as_recorded(teacher, real, layers):
    record = record_activations(teacher, *real)
    settings = RecordSettings(layers=layers, steps=150, learning_rate=0.03, start="uniform")
    made = core.run(from_records(teacher, record, settings, 12, 6), KEY, 2)
    control = core.run(from_records(teacher, record, settings, 12, 6, control=True), KEY, 2).state
    np.testing.assert_array_equal(made.state.labels, np.arange(12) % 3)
    name = "dense1" if layers == ("dense1",) else "logits"

    seen = lambda x: np.maximum(x, 0) if name == "dense1" else x  # hidden layers are compared behind their ReLU

    def distance(images):
        typical = np.asarray(record[name].mean)[np.arange(12) % 3]
        return np.square(seen(activations(teacher, images, name)) - seen(typical)).mean()

    assert distance(made.state.images) < 0.6 * distance(control.images)
    assert made.state.images.min() >= 0
    assert made.state.images.max() <= 1


def test_the_control_is_the_start_of_the_run_with_the_same_key(teacher, real):
    record = record_activations(teacher, *real)
    settings = RecordSettings(steps=1, learning_rate=1e-9)
    made = core.run(from_records(teacher, record, settings, 6, 3), KEY, 2).state
    control = core.run(from_records(teacher, record, settings, 6, 3, control=True), KEY, 2).state
    np.testing.assert_allclose(made.images, control.images, atol=1e-6)
    np.testing.assert_array_equal(made.labels, control.labels)


def spoil(images, kind):
    images = images.copy()
    if kind == "outside":
        images[3, 0, 0, 0] = 1.5
    if kind == "nan":
        images[3, 0, 0, 0] = np.nan
    if kind == "size":
        images = images[:, :5]
    if kind == "channels":
        images = images.repeat(3, 3)
    return images


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("outside", r"images must lie in \[0.0, 1.0\], got values from 0.* to 1.5"),
        ("nan", "images contain NaN or infinity in 1 of 60 rows"),
        ("size", r"H×W×C = 6×6×1, got shape \(60, 5, 6, 1\)"),
        ("channels", r"H×W×C = 6×6×1, got shape \(60, 6, 6, 3\)"),
    ],
)
def test_bad_images(teacher, real, kind, message):
    with pytest.raises(core.InputError, match=message):
        record_activations(teacher, spoil(real[0], kind), real[1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(60) % 4, r"labels must lie in \[0, 3\), got 0 to 3"),
        (np.arange(60) % 2, "labels have no sample of class 2"),
        (np.array([2] + [0, 1] * 29 + [0]), "class 2 has 1 image; a covariance needs at least two"),
        (np.zeros(5, int), r"labels must have shape \(60,\), got \(5,\)"),
    ],
)
def test_bad_labels(teacher, real, labels, message):
    with pytest.raises(core.InputError, match=message):
        record_activations(teacher, real[0], labels)


def test_unknown_layers_and_sizes(teacher, real):
    with pytest.raises(core.UnknownNameError, match="unknown layer 'dense7'; nearest: dense1"):
        record_activations(teacher, *real, layers=["dense7"])
    record = record_activations(teacher, *real, layers=["dense1"])
    for layers, name in ((("dense2",), "dense2"), ("dense2", "dense2"), ("top", "logits")):
        with pytest.raises(core.UnknownNameError, match=f"unknown recorded layer '{name}'"):
            from_records(teacher, record, RecordSettings(layers=layers), 6, 3)
    with pytest.raises(core.InputError, match="multiple of the 3 classes, got 4"):
        from_records(teacher, record, RecordSettings(layers=("dense1",)), 8, 4)
    with pytest.raises(core.InputError, match="at least one step, got 0"):
        RecordSettings(steps=0)


def test_draws_are_mean_plus_factor_and_rest_times_noise():
    rng = np.random.default_rng(3)
    mean, factor, rest = rng.normal(size=(2, 4)), rng.normal(size=(2, 4, 3)), rng.uniform(size=(2, 4))
    record = LayerRecord(*(jnp.asarray(part, jnp.float32) for part in (mean, factor, rest)))
    keys = jax.random.split(KEY)
    leading, left = (np.asarray(jax.random.normal(key, (5, 2, size))) for key, size in zip(keys, (3, 4), strict=True))
    expected = np.zeros((5, 2, 4))
    for n in range(5):
        for k in range(2):
            expected[n, k] = mean[k] + factor[k] @ leading[n, k] + rest[k] * left[n, k]
    np.testing.assert_allclose(draw(KEY, record, 5), expected, atol=1e-5)


def test_a_layer_as_wide_as_the_limit_keeps_the_whole_covariance(teacher, real):
    options = {"layers": ["dense1"], "rank": 3}
    assert record_activations(teacher, *real, full_rank_limit=16, **options)["dense1"].factor.shape == (3, 16, 16)
    assert record_activations(teacher, *real, full_rank_limit=15, **options)["dense1"].factor.shape == (3, 16, 3)


def test_the_ridge_under_the_factor():
    """A millionth of the mean variance, and of 1e-12 where nothing varies."""
    flat = np.random.default_rng(4).normal(size=(3, 6))
    _, factor, _ = _gaussian(flat, 6, 2)
    ridge = factor @ factor.T - np.cov(flat.T)
    np.testing.assert_allclose(ridge, 1e-6 * flat.var(0, ddof=1).mean() * np.eye(6), atol=1e-12)
    np.testing.assert_allclose(_gaussian(np.ones((3, 6)), 6, 2)[1], 1e-9 * np.eye(6), rtol=1e-6)


def test_against_the_method_written_out(wide, real):
    teacher, numpy = wide
    record = record_activations(teacher, *real)
    settings = RecordSettings(steps=4, learning_rate=0.3, start="uniform")
    made = core.run(from_records(teacher, record, settings, 6, 6), KEY, 1)
    start = core.run(from_records(teacher, record, settings, 6, 6, control=True), KEY, 1).state.images
    record_key = jax.random.split(jax.random.fold_in(KEY, 0), 3)[1]
    # Row r is the (r div K)-th draw of class r mod K; the layers' keys go by their names' order.
    hidden, logits = (
        np.asarray(draw(jax.random.fold_in(record_key, i), record[name], 2), np.float64).reshape(6, -1)
        for i, name in enumerate(("dense1", "logits"))
    )
    seen = []

    def slope(x, step):
        relu = np.maximum(numpy.hidden(x), 0)
        off_hidden, off_logits = relu - np.maximum(hidden, 0), numpy.logits(x) - logits
        seen.append((np.square(off_hidden).mean(1) + np.square(off_logits).mean(1)).mean())
        return numpy.back(x, 2 * off_logits / 3, 2 * off_hidden / 16 * (relu > 0))

    x = numpy.adam(np.asarray(start, np.float64), slope, 4, 0.3, lambda x: np.clip(x, -0.25, 1.5))
    assert (x == -0.25).any() or (x == 1.5).any(), "the box was reached"
    np.testing.assert_allclose(made.state.images, x, atol=2e-4)
    np.testing.assert_allclose(made.metrics["loss"][0], seen[-1], rtol=1e-4)


def test_a_whole_graph_fourier_basis_asks_for_what_all_layers_ask(teacher, real):
    """Why a spectral objective, done right, is no other one: the basis is orthonormal.

    Units of a layer are the vertices of a graph whose edges are their correlations; eigenvectors of its Laplacian are
    the basis. Distances of spectra are distances of pre-activations, so only the choice of coefficients could make a
    difference, which nothing that was released states.
    """
    found = activations(teacher, real[0], "dense1")
    edges = np.abs(np.corrcoef(found.T))
    np.fill_diagonal(edges, 0)
    _, basis = np.linalg.eigh(np.diag(edges.sum(1)) - edges)
    wanted, got = found[:20], found[20:40]
    spectral = np.square((got - wanted) @ basis).mean(1)
    np.testing.assert_allclose(spectral, np.square(got - wanted).mean(1), rtol=1e-9)
    some = np.square((got - wanted) @ basis[:, :3]).sum(1)
    assert (some < 0.9 * np.square(got - wanted).sum(1)).all(), "a few coefficients do ask for less"
