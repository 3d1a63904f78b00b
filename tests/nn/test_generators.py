"""Generators and the discriminator: sizes, parameters, PyTorch at equal weights, and what compiled programs contain."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dfke_jax.core.errors import InputError
from dfke_jax.nn.conv import convolution
from dfke_jax.nn.discriminators import DCGANDiscriminator
from dfke_jax.nn.generators import DCGANGenerator, DFMEGenerator, draw_latents, squash

KEY = jax.random.key(41)
BOTH = pytest.mark.parametrize("kind", [DFMEGenerator, DCGANGenerator])
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the slow forms are the CPU backend's")


def variables_of(module, *shape):
    return jax.eval_shape(lambda: module.init(KEY, jnp.zeros(shape), train=True))


def count(module, *shape):
    return sum(leaf.size for leaf in jax.tree.leaves(variables_of(module, *shape)["params"]))


@pytest.mark.parametrize(("size", "base"), [(28, 7), (32, 8)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("width", [16, 64])
def test_parameters_of_the_dfme_generator(size, base, channels, width):
    module = DFMEGenerator((size, size, channels), width, 256)
    dense = (256 + 1) * 2 * width * base**2 + 2 * 2 * width
    convolutions = 9 * (2 * width) ** 2 + 2 * 2 * width + 9 * 2 * width * width + 2 * width + 9 * width * channels
    assert count(module, 2, 256) == dense + convolutions


def test_published_sizes():
    assert count(DFMEGenerator(), 2, 256) == 2_328_896
    dcgan = 100 * 256 * 16 + 2 * 256 + 9 * 256 * 128 + 2 * 128 + 9 * 128 * 64 + 2 * 64 + 9 * 64 * 3 + 3
    assert count(DCGANGenerator(), 2, 100) == dcgan
    judge = 16 * 3 * 64 + 64 + 16 * 64 * 128 + 2 * 128 + 16 * 128 * 256 + 2 * 256 + 16 * 256 + 1
    assert count(DCGANDiscriminator(), 2, 32, 32, 3) == judge


@BOTH
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (12, 16, 3)])
def test_images_are_in_the_box_and_batches_use_their_own_statistics(kind, shape):
    module = kind(shape, 2, 10)
    z = draw_latents(KEY, (3,), module)
    assert z.shape == (3, 10)
    variables = jax.jit(module.init)(KEY, z)
    images = jax.jit(lambda z: module.apply(variables, z))(z)
    assert images.shape == (3, *shape)
    assert 0 <= images.min() < images.max() <= 1
    before = jax.eval_shape(lambda: module.apply(variables, z, method="pre_activation"))
    assert before.shape == images.shape


@pytest.mark.slow
@BOTH
def test_an_image_is_its_pre_activation_squashed(kind):
    module = kind((8, 8, 1), 2, 5)
    z = draw_latents(KEY, (6,), module)
    variables = jax.jit(module.init)(KEY, z)

    @jax.jit
    def apply(z):
        plain, _ = module.apply(variables, z, train=True, mutable=["batch_stats"])
        return plain, *module.apply(variables, z, train=True, mutable=["batch_stats"], method="pre_activation")

    image, before, stats = apply(z)
    np.testing.assert_allclose(image, (np.tanh(before) + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(squash(before, (-1.0, 3.0)), 1 + 2 * np.tanh(before), atol=1e-6)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(stats))
    if kind is DFMEGenerator:
        np.testing.assert_allclose([before.mean(), before.std()], [0, 1], atol=1e-2)


@pytest.mark.parametrize("train", [False, True])
def test_the_dfme_generator_against_pytorch(train):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    module = DFMEGenerator((28, 28, 3), 4, 6)
    variables = variables_of(module, 1, 6)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(lambda leaf: np.abs(rng.normal(0.5, 0.2, leaf.shape)).astype(np.float32), variables)
    z = rng.normal(size=(5, 6)).astype(np.float32)

    def tensor(array):
        return torch.tensor(np.asarray(array))

    def norm(x, name):
        params, stats = variables["params"].get(name, {}), variables["batch_stats"][name]
        scale, bias = (tensor(params[part]) if part in params else None for part in ("scale", "bias"))
        return functional.batch_norm(x, tensor(stats["mean"]), tensor(stats["var"]), scale, bias, training=train)

    def convolve(x, name):
        return functional.conv2d(x, tensor(variables["params"][name]["kernel"]).permute(3, 2, 0, 1), padding=1)

    dense = variables["params"]["dense"]
    x = tensor(z) @ tensor(dense["kernel"]) + tensor(dense["bias"])
    x = norm(x.reshape(5, 7, 7, 8).permute(0, 3, 1, 2), "dense_norm")
    for name in ("conv1", "conv2"):
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        x = functional.leaky_relu(norm(convolve(x, name), f"{name}_norm"), 0.2)
    expected = (torch.tanh(norm(convolve(x, "conv3"), "image_norm")) + 1) / 2
    found, _ = jax.jit(lambda v: module.apply(v, z, train=train, mutable=["batch_stats"]))(variables)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).numpy(), atol=2e-4)


def test_the_discriminator_judges_samples_alone_without_normalisation():
    module = DCGANDiscriminator(4, batch_norm=False)
    images = jax.random.uniform(KEY, (3, 8, 8, 1))
    variables = jax.jit(module.init)(KEY, images)
    judge = jax.jit(lambda images: module.apply(variables, images, train=True))
    judged = judge(images)
    assert judged.shape == (3,)
    np.testing.assert_allclose(judge(images[:1]), judged[:1], atol=1e-6)
    assert "batch_stats" not in variables
    assert "batch_stats" in variables_of(DCGANDiscriminator(4), 3, 8, 8, 1)


def test_bad_input():
    with pytest.raises(InputError, match="height and width that four divides"):
        DFMEGenerator((30, 30, 1), 2, 5).init(KEY, jnp.zeros((1, 5)))
    with pytest.raises(InputError, match=r"latents must be \(B, 5\), got shape \(1, 6\)"):
        DCGANGenerator((8, 8, 1), 2, 5).init(KEY, jnp.zeros((1, 6)))
    with pytest.raises(InputError, match="at least 8×8"):
        DCGANDiscriminator().init(KEY, jnp.zeros((1, 4, 4, 1)))


def training(kind):
    """A program of three generator steps in a scan."""
    module = kind((28, 28, 1) if kind is DFMEGenerator else (32, 32, 1), 16, 20)
    judge = DCGANDiscriminator(16)
    variables = variables_of(module, 4, 20)
    judges = jax.eval_shape(lambda: judge.init(KEY, jnp.zeros((4, *module.shape))))

    def program(variables, judges, z):
        def loss(params):
            images, state = module.apply({**variables, "params": params}, z, train=True, mutable=["batch_stats"])
            return judge.apply(judges, images, train=False).sum(), state

        def step(variables, _):
            gradient, state = jax.grad(loss, has_aux=True)(variables["params"])
            return {**state, "params": jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradient)}, None

        return lax.scan(step, variables, length=3)[0]

    return program, (variables, judges, jax.ShapeDtypeStruct((4, 20), jnp.float32))


def slow_forms(program):
    function, operands = program
    text = jax.jit(function).lower(*operands).compile().as_text()
    assert "while" in text, "the scan was compiled away, so nothing can be learned from this program"
    lines = [line.strip() for line in text.splitlines() if "dim_labels=" in line]
    grouped = re.compile(r"(?:feature|batch)_group_count=(?!1\b)\d+")
    assert lines
    return [line for line in lines if "dim_labels=b01f_01io->b01f" not in line or grouped.search(line)]


@on_cpu
@BOTH
def test_compiled_programs_have_fast_convolutions_only(kind):
    assert slow_forms(training(kind)) == []
    with convolution("lax"):
        assert slow_forms(training(kind)), "the test above could not fail"
