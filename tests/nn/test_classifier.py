"""The classifier as a value: preprocessing, logits, features, moments, stacks, and what it refuses."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core.errors import InputError
from dfke_jax.nn import Classifier, Preprocessing, as_float, build, check_images, check_labels
from dfke_jax.nn.layers import BatchNorm
from dfke_jax.nn.mlp import MLP

PAD = Preprocessing(size=(32, 32), mean=(0.1307,), std=(0.3081,))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def filled(module, input_shape, preprocessing=None, seed=5):
    """A classifier with plain random numbers for variables, which is much quicker than initialising it."""
    preprocessing = preprocessing or Preprocessing()
    shapes = jax.eval_shape(lambda: Classifier.create(module, jax.random.key(0), input_shape, preprocessing))
    rng = np.random.default_rng(seed)

    def fill(leaf):
        if leaf.ndim == 1:  # biases, scales and statistics, which differ from layer to layer
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return (rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)

    return jax.tree.map(lambda leaf: jnp.asarray(fill(leaf)), shapes)


# Preprocessing


def test_padding_centres_on_the_lower_bound():
    images = draw(2, 28, 27, 1)
    fitted = Preprocessing(size=(32, 32), box=(-1.0, 1.0))(images)
    expected = np.full((2, 32, 32, 1), -1, np.float32)
    expected[:, 2:30, 2:29] = images
    np.testing.assert_array_equal(fitted, expected)


def test_resizing_and_normalising_by_channel():
    images = draw(2, 4, 4, 3)
    preprocessing = Preprocessing((8, 8), "nearest", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    large = images.repeat(2, 1).repeat(2, 2)
    expected = np.stack([(large[..., c] - (0.1, 0.2, 0.3)[c]) / (1, 2, 4)[c] for c in range(3)], -1)
    np.testing.assert_allclose(preprocessing(images), expected, atol=1e-6)

    ramp = np.tile(np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1), (1, 4, 1, 1))
    resized = np.asarray(Preprocessing((4, 8), "bilinear")(ramp))[0, 0, :, 0]
    np.testing.assert_allclose(resized, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-6)


def test_nothing_to_do_is_the_identity():
    images = draw(1, 28, 28, 1)
    assert Preprocessing()(images) is images
    np.testing.assert_array_equal(Preprocessing((28, 28))(images), images)
    np.testing.assert_allclose(Preprocessing(mean=(0.5,))(images), images - 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "crop"}, "fit must be pad, bilinear or nearest, not 'crop'"),
        ({"std": (1.0, 0.0)}, "std must be positive"),
        ({"box": (1.0, 1.0)}, "low < high"),
    ],
)
def test_preprocessing_refuses(options, message):
    with pytest.raises(InputError, match=message):
        Preprocessing(**options)


def test_preprocessing_refuses_images():
    with pytest.raises(InputError, match=r"must be \(B, H, W, C\)"):
        Preprocessing()(draw(28, 28, 1))
    with pytest.raises(InputError, match="mean has 3 values for images of 1 channels"):
        Preprocessing(mean=(0.1, 0.2, 0.3))(draw(1, 8, 8, 1))
    with pytest.raises(InputError, match="std has 2 values for images of 3 channels"):
        Preprocessing(std=(0.1, 0.2))(draw(1, 8, 8, 3))
    with pytest.raises(InputError, match="cannot pad a 33×20 image to 32×32; use fit='bilinear'"):
        Preprocessing((32, 32))(draw(1, 33, 20, 1))


# Logits and what lies before them


@pytest.fixture(scope="module")
def lenet():
    return filled(build("lenet5"), (28, 28, 1), PAD)


def test_create_draws_parameters_by_key():
    module = MLP(3, (4,), batch_norm=True)
    first, again, other = (Classifier.create(module, jax.random.key(seed), (4, 4, 1), PAD) for seed in (0, 0, 1))
    assert set(first.variables) == {"params", "batch_stats"}
    assert first.head_kernel.shape == (4, 3)
    assert first.variables["params"]["dense1"]["kernel"].shape == (32 * 32, 4)  # of what preprocessing makes
    np.testing.assert_array_equal(first.head_kernel, again.head_kernel)
    assert not np.allclose(first.head_kernel, other.head_kernel)
    assert first.has_normalisation


class Scaled(nn.Module):
    """A module of somebody's own that holds an array, and cannot be hashed."""

    scale: np.ndarray

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(x.reshape(len(x), -1) * self.scale[0])


def test_a_module_that_cannot_be_hashed_is_drawn_as_any_other():
    module, key = Scaled(np.array([2.0], np.float32)), jax.random.key(3)
    with pytest.raises(TypeError, match="hash"):
        hash(module)
    made = Classifier.create(module, key, (4, 4, 1))
    expected = module.init(key, jnp.zeros((1, 4, 4, 1)))["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(made.variables["params"]["Dense_0"]["kernel"], expected, rtol=1e-6)


def test_logits_are_the_module_applied(lenet):
    images = draw(3, 28, 28, 1)
    expected = lenet.module.apply(lenet.variables, PAD(images))
    np.testing.assert_array_equal(lenet(images), expected)
    np.testing.assert_array_equal(lenet.logits(images), expected)
    assert lenet.num_classes == 10
    assert lenet.input_shape == (28, 28, 1)
    assert not lenet.has_normalisation
    assert set(lenet.variables) == {"params"}


def test_half_precision_networks_give_float32_logits():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(3, name="head", dtype=jnp.bfloat16)(x.reshape(len(x), -1))

    classifier = Classifier.create(Half(), jax.random.key(0), (4, 4, 1))
    assert classifier(draw(2, 4, 4, 1)).dtype == jnp.float32


@pytest.mark.parametrize("name", ["lenet5", "mlp_small", "resnet8", "wrn_10_1"])
def test_features_times_the_last_layer(name):
    shape = (32, 32, 1) if name == "lenet5" else (8, 8, 3)
    classifier = filled(build(name, 4), shape)
    images = draw(3, *shape)
    features = jax.jit(Classifier.features)(classifier, images)
    logits = features @ classifier.head_kernel + classifier.variables["params"]["head"]["bias"].reshape(1, -1)
    np.testing.assert_allclose(jax.jit(Classifier.logits)(classifier, images), logits, atol=1e-4)
    assert features.shape == (3, classifier.head_kernel.shape[0])
    assert classifier.num_classes == 4


def test_activations_of_every_layer(lenet):
    images = draw(2, 28, 28, 1)
    activations = jax.jit(Classifier.activations)(lenet, images)
    assert set(activations) == {"conv1", "conv2", "dense1", "dense2", "features", "logits"}
    assert activations["conv1"].shape == (2, 28, 28, 6)
    assert float(activations["conv1"].min()) < 0  # before the ReLU
    np.testing.assert_allclose(activations["features"], np.maximum(activations["dense2"], 0), atol=1e-5)
    np.testing.assert_allclose(activations["logits"], lenet(images), atol=1e-5)


def test_a_network_without_a_head_is_named():
    classifier = Classifier.create(BatchNorm(), jax.random.key(0), (4, 4, 1))
    with pytest.raises(InputError, match="BatchNorm has no dense layer called 'head'"):
        _ = classifier.num_classes


# Statistics of what enters normalisation layers


def inputs_of_norms(classifier, images):
    """Paths and inputs of every BatchNorm, in the order of calls, caught from outside."""
    paths = []

    @jax.jit
    def run(classifier, images):
        caught = []

        def watch(next_call, args, kwargs, context):
            if isinstance(context.module, BatchNorm):
                paths.append(context.module.path)
                caught.append(args[0])
            return next_call(*args, **kwargs)

        with nn.intercept_methods(watch):
            classifier(images)
        return caught

    inputs = run(classifier, images)
    return list(zip(paths, (np.asarray(x, np.float64) for x in inputs), strict=True))


NETWORKS = {
    "lenet5_bn": (lambda: build("lenet5_bn"), (32, 32, 1), 4),
    "alexnet_half": (lambda: build("alexnet_half"), (32, 32, 3), 7),
    "mlp": (lambda: MLP(10, (16, 8), batch_norm=True), (8, 8, 1), 2),
    "resnet8": (lambda: build("resnet8"), (8, 8, 3), 9),
    "wrn_10_1": (lambda: build("wrn_10_1"), (8, 8, 3), 7),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_moments_of_what_enters_normalisation(name):
    make, shape, layers = NETWORKS[name]
    classifier = filled(make(), shape)
    images = draw(4, *shape)
    logits, _, moments, _ = jax.jit(lambda classifier, images: classifier.observe(images, moments=True))(
        classifier, images
    )
    np.testing.assert_allclose(logits, jax.jit(Classifier.logits)(classifier, images), atol=1e-5)
    caught = inputs_of_norms(classifier, images)
    assert len(moments) == len(caught) == layers
    for (path, x), found in zip(caught, moments, strict=True):
        axes = tuple(range(x.ndim - 1))
        np.testing.assert_allclose(found.mean, x.mean(axes), atol=1e-4)
        np.testing.assert_allclose(found.var, x.var(axes), atol=1e-4, rtol=1e-3)
        stored = classifier.variables["batch_stats"]
        for part in path:
            stored = stored[part]
        np.testing.assert_array_equal(found.running_mean, stored["mean"])
        np.testing.assert_array_equal(found.running_var, stored["var"])


def test_the_order_of_moments_is_the_same_inside_and_outside_of_compiled_programs():
    class Unsorted(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            x = BatchNorm(name="zebra")(x, train=train)
            x = BatchNorm(name="ant")(3 * x + 1, train=train)
            return nn.Dense(2, name="head")(x.mean((1, 2)))

    classifier = Classifier.create(Unsorted(), jax.random.key(0), (4, 4, 1))
    images = draw(2, 4, 4, 1)
    moments = lambda classifier, images: classifier.observe(images, moments=True).moments
    outside, inside = moments(classifier, images), jax.jit(moments)(classifier, images)
    for one, other in zip(outside, inside, strict=True):
        np.testing.assert_allclose(one.mean, other.mean, atol=1e-6)


def test_moments_need_normalisation(lenet):
    with pytest.raises(InputError, match=r"LeNet5 has no batch normalisation.*use a network with it"):
        lenet.observe(draw(2, 28, 28, 1), moments=True)


# Classifiers as arguments of compiled programs


def test_a_stack_under_vmap():
    shape = (8, 8, 3)
    images = draw(3, *shape)
    one_by_one = [filled(build("resnet8"), shape, seed=seed) for seed in range(3)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    logits = jax.jit(lambda stack: jax.vmap(lambda classifier: classifier(images))(stack))(stack)
    assert logits.shape == (3, 3, 10)
    single = jax.jit(Classifier.logits)
    for row, classifier in zip(logits, one_by_one, strict=True):
        np.testing.assert_allclose(row, single(classifier, images), atol=1e-4)
    assert not np.allclose(logits[0], logits[1], atol=1e-3)


def test_gradients_flow_to_images_and_variables(lenet):
    images = draw(2, 28, 28, 1)
    to_images, to_classifier = jax.jit(jax.grad(lambda images, classifier: (classifier(images) ** 2).sum(), (0, 1)))(
        images, lenet
    )
    assert to_images.shape == images.shape
    assert float(jnp.abs(to_images).max()) > 0
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(to_classifier))


# Any number of images


def test_predict_pads_the_last_batch(lenet):
    images = draw(7, 28, 28, 1)
    expected = np.asarray(lenet(images))
    for batch_size in (3, 7, 500):
        logits = lenet.predict(images, batch_size)
        assert isinstance(logits, np.ndarray)
        assert logits.shape == (7, 10)
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_predict_takes_bytes(lenet):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1)).astype(np.uint8)
    np.testing.assert_allclose(lenet.predict(images), lenet(images.astype(np.float32) / 255), atol=1e-4)
    with pytest.raises(InputError, match=r"must lie in \[0.0, 1.0\], got values from 0 to 255"):
        lenet.predict(np.asarray([0, 255], np.float32).repeat(784).reshape(2, 28, 28, 1))


def test_bytes_are_the_pixels_that_predict_sees(lenet):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1)).astype(np.uint8)
    pixels = jnp.asarray(images, jnp.float32) / 255
    for form in (images, jnp.asarray(images)):
        np.testing.assert_allclose(lenet(form), lenet.predict(images), atol=1e-5)
        np.testing.assert_allclose(lenet.features(form), lenet.features(pixels), atol=1e-5)
    narrow = Preprocessing(mean=(0.5,), std=(0.25,))
    np.testing.assert_allclose(narrow(jnp.asarray(images)), (pixels - 0.5) / 0.25, atol=1e-6)
    assert narrow(jnp.asarray(pixels, jnp.bfloat16)).dtype == jnp.bfloat16, "floats are left as they are"
    with pytest.raises(InputError, match="must be uint8 or floating, got int32"):
        lenet(jnp.asarray(images, jnp.int32))


def test_as_float():
    np.testing.assert_allclose(as_float(jnp.asarray([0, 255], jnp.uint8)), [0.0, 1.0])
    halves = as_float(jnp.asarray([2.5], jnp.float16))
    assert halves.dtype == jnp.float32
    np.testing.assert_array_equal(halves, [2.5])


# Checks of host arrays


def test_good_images_pass():
    assert check_images(draw(2, 4, 4, 1), (4, 4, 1), (0.0, 1.0)) is None
    assert check_images(np.full((2, 4, 4, 1), 255, np.uint8), (4, 4, 1), (0.0, 1.0)) is None
    assert check_images(np.full((2, 4, 4, 1), 1 + 1e-7), (4, 4, 1), (0.0, 1.0)) is None


BAD_IMAGES = {
    "channels": (
        draw(2, 4, 4, 3),
        r"queries must be \(N, H, W, C\) with H×W×C = 4×4×1, got shape \(2, 4, 4, 3\)",
    ),
    "rank": (draw(4, 4, 1), r"got shape \(4, 4, 1\)"),
    "empty": (draw(0, 4, 4, 1), "queries are empty"),
    "integers": (np.zeros((2, 4, 4, 1), np.int32), "must be uint8 or floating, got int32"),
    "nan": (np.stack([np.full((4, 4, 1), np.nan), np.zeros((4, 4, 1))]), "NaN or infinity in 1 of 2 rows"),
    "infinity": (np.full((2, 4, 4, 1), np.inf), "NaN or infinity in 2 of 2 rows"),
    "high": (np.full((1, 4, 4, 1), 1.5), r"must lie in \[0.0, 1.0\], got values from 1.5 to 1.5"),
    "low": (np.full((1, 4, 4, 1), -0.25), "got values from -0.25 to -0.25"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images(case):
    images, message = BAD_IMAGES[case]
    with pytest.raises(InputError, match=message):
        check_images(images, (4, 4, 1), (0.0, 1.0), "queries")


BAD_LABELS = {
    "length": (np.zeros(3, np.int32), r"labels must have shape \(4,\), got \(3,\)"),
    "one-hot": (np.zeros((4, 2), np.int32), r"got \(4, 2\)"),
    "floats": (np.zeros(4, np.float32), "must be integers, got float32"),
    "high": (np.asarray([0, 1, 2, 3]), r"must lie in \[0, 3\), got 0 to 3"),
    "negative": (np.asarray([0, 1, 2, -1]), "got -1 to 2"),
    "empty class": (np.asarray([0, 0, 0, 0]), "no sample of class 1, 2"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels(case):
    labels, message = BAD_LABELS[case]
    with pytest.raises(InputError, match=message):
        check_labels(labels, 4, 3)


def test_good_labels_pass():
    assert check_labels(np.asarray([0, 1, 2, 2]), 4, 3) is None
    assert check_labels(np.asarray([0, 0, 0, 0], np.uint8), 4, 3, every_class=False) is None


def test_importing_the_networks_is_light():
    heavy = ("torch", "tensorflow_datasets", "orbax", "matplotlib", "sklearn")
    code = f"import sys, dfke_jax.nn; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
