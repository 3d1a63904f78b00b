"""PyTorch models as white boxes: against PyTorch itself, and against the same weights in this package."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core import InputError
from dfke_jax.distillation import ImpressionSettings, InversionSettings, data_impressions, deep_inversion
from dfke_jax.nn import Classifier, Preprocessing, build
from dfke_jax.nn.adapters import from_torch
from dfke_jax.synthesis.synthesiser import Synthesis

torch = pytest.importorskip("torch")
torch_networks = pytest.importorskip("torch_networks")
nn = torch.nn

SHAPE = (8, 8, 3)
PREPARED = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
RNG = np.random.default_rng(0)
IMAGES = RNG.random((3, *SHAPE), np.float32)


def filled(path, leaf):
    """Weights of a scale that keeps activations near one, statistics far from 0 and 1."""
    name = path[-1].key
    if name in ("var", "scale"):
        return jnp.asarray(RNG.uniform(0.5, 1.5, leaf.shape), jnp.float32)
    if name in ("bias", "mean"):
        return jnp.asarray(RNG.normal(0, 0.2, leaf.shape), jnp.float32)
    return jnp.asarray(RNG.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), jnp.float32)


@pytest.fixture(scope="module")
def pair():
    """A ResNet-8 of this package, and PyTorch's of the same weights."""
    module = build("resnet8")
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False))
    variables = jax.tree.map_with_path(filled, shapes)
    theirs = torch_networks.with_weights_of(torch_networks.ResNet8(), variables)
    return Classifier(module, variables, PREPARED, SHAPE), theirs


@pytest.fixture(scope="module")
def white(pair):
    return from_torch(pair[1], SHAPE, preprocessing=PREPARED)


def test_logits_statistics_and_layers_are_those_that_pytorch_has(pair, white):
    _, theirs = pair
    entered, left = {}, {}

    def hook(path, layer):
        def keep(layer, given, found):
            entered[path], left[path] = given[0], found.clone()

        return layer.register_forward_hook(keep)

    kinds = nn.BatchNorm2d | nn.Conv2d | nn.Linear
    hooks = [hook(path, layer) for path, layer in theirs.named_modules() if isinstance(layer, kinds)]
    ready = (IMAGES - np.array(PREPARED.mean)) / np.array(PREPARED.std)
    with torch.no_grad():
        expected = theirs(torch.tensor(ready, dtype=torch.float32).permute(0, 3, 1, 2)).numpy()
    for hooked in hooks:
        hooked.remove()
    seen = jax.jit(lambda white, images: white.observe(images, activations=True, moments=True))(white, IMAGES)
    np.testing.assert_allclose(seen.logits, expected, atol=1e-5)
    norms = [path for path, layer in theirs.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(seen.moments) == len(norms) == 9
    for moments, path in zip(seen.moments, (path for path in entered if path in norms), strict=True):
        x, layer = entered[path].numpy().astype(np.float64), theirs.get_submodule(path)
        np.testing.assert_allclose(moments.mean, x.mean((0, 2, 3)), atol=1e-5)
        np.testing.assert_allclose(moments.var, x.var((0, 2, 3)), atol=1e-5, rtol=1e-5)
        np.testing.assert_array_equal(moments.running_mean, layer.running_mean.numpy())
        np.testing.assert_array_equal(moments.running_var, layer.running_var.numpy())
    assert set(seen.activations) == {*left, "features"}
    for path, maps in left.items():
        theirs_ = maps.permute(0, 2, 3, 1) if maps.ndim == 4 else maps
        np.testing.assert_allclose(seen.activations[path], theirs_.numpy(), atol=1e-5)
    np.testing.assert_allclose(seen.activations["features"], entered["head"].numpy(), atol=1e-5)
    np.testing.assert_array_equal(white.head_kernel, theirs.head.weight.detach().numpy().T)
    assert white.missing == ()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["deep_inversion", "deep_inversion_first_layer", "data_impressions"])
def test_images_descend_by_the_gradients_of_the_same_weights_in_this_package(pair, white, method):
    """The loss of both, and its gradient, wherever this package's own run of fifty updates comes by.

    Two images of twenty may have a unit so near the bend of its ReLU that rounding decides its slope, which changes that
    image's gradient by several per cent; the others agree.

    Whole runs are not compared: an update of Adam has the size of its rate whatever the gradient's, so that a pixel whose
    gradient is rounding moves by twice the rate from one arithmetic to another, and what follows is another run.
    """
    make, settings = {
        "data_impressions": (data_impressions, ImpressionSettings(steps=1, learning_rate=0.01, start_mean=(0.5, 0.5))),
    }.get(
        method,
        (
            deep_inversion,
            InversionSettings(steps=1, start="smooth", first_layer=10.0 if method.endswith("layer") else 1.0),
        ),
    )

    @jax.jit
    def loss_and_gradient(synthesis, images, wanted):
        loss = lambda images: jnp.mean(synthesis.loss(jax.random.key(3), images, wanted))
        return jax.value_and_grad(loss)(images)

    rows = jnp.arange(20)
    sides = [synthesis_of(make(teacher, settings, 20, 20)) for teacher in (pair[0], white)]
    labels = sides[0].labels(rows)
    wanted = sides[0].wanted(jax.random.key(2), labels, rows)
    for steps in (0, 1, 5, 20, 50):
        made = make(pair[0], dataclasses.replace(settings, steps=max(steps, 1)), 20, 20, control=not steps)
        images = core.run(made, jax.random.key(1), 1).state.images
        (loss, own), (other_loss, other) = (loss_and_gradient(side, images, wanted) for side in sides)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-4)
        apart, size = (np.linalg.norm(np.asarray(part).reshape(20, -1), axis=1) for part in (own - other, own))
        assert (apart <= 1e-3 * size).sum() >= 18, (steps, apart / size)
    start = core.run(make(white, settings, 20, 20, control=True), jax.random.key(1), 1).state.images
    assert np.abs(np.asarray(images) - np.asarray(start)).mean() > 0.02  # the images are made, not those of the start


def synthesis_of(method):
    """The record behind a method that fills a pool."""
    held = jax.tree.leaves(method.step, is_leaf=lambda node: isinstance(node, Synthesis))
    return next(node for node in held if isinstance(node, Synthesis))


class Many(nn.Module):
    """Layers and operations of all kinds; one tensor of every value that they take goes through all of them."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding="same"), nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Hardswish(), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, padding=1, ceil_mode=True),
            nn.PReLU(), nn.LeakyReLU(0.1), nn.Upsample(scale_factor=2), nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ELU(),
            nn.Softplus(), nn.Mish(), nn.Hardsigmoid(), nn.ReLU6(), nn.AdaptiveAvgPool2d(3), nn.Hardtanh(), nn.SELU(),
            nn.AvgPool2d(2, 1, padding=1, count_include_pad=False), nn.Dropout2d(),
        )  # fmt: skip
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.maps(x).flatten(2).transpose(1, 2))
        x = torch.cat([x, self.attention(x, x, x)[0]], 1)[:, 1:-1]
        a, b = x.chunk(2, 1)
        x = (a * 0.5 + b / 2 - 1).abs().clamp(0, 3) + torch.sqrt(a.square() + 1) + torch.stack([a, b]).sum(0)
        x = x.mean(1) + x.amax(1) + torch.softmax(x, -1).var(1) + torch.sigmoid(x).std(1) + nn.functional.gelu(b)[:, 0]
        return self.last(torch.where(x > 0.5, x, 0.1 * x)).log_softmax(-1)


def test_operations_are_pytorchs():
    """Opening compares the answers with PyTorch's."""
    torch.manual_seed(0)
    made = from_torch(Many(), SHAPE, tolerance=1e-5)
    assert dict(made.missing) == {"moments": "it has no batch normalisation with running statistics"}


class OneByOne(nn.Module):
    """Its code says that there is one image."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 36, 3)

    def forward(self, x):
        return self.last(self.norm(self.conv(x)).reshape(1, -1))


def test_a_model_of_one_image_is_asked_image_by_image():
    torch.manual_seed(1)
    theirs = OneByOne().eval()
    made = from_torch(theirs, SHAPE)
    images = torch.tensor(IMAGES).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = np.concatenate([theirs(image[None]).numpy() for image in images])
        maps = theirs.conv(images).numpy()
    seen = made.observe(IMAGES, moments=True)
    np.testing.assert_allclose(seen.logits, expected, atol=1e-5)
    np.testing.assert_allclose(seen.moments[0].mean, maps.mean((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(seen.moments[0].var, maps.var((0, 2, 3)), atol=1e-5)


def exported(module, rows=2):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, (torch.zeros(rows, 3, 8, 8),))


class Unknown(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x).mean((2, 3))


class Asks(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) * (2 if float(x.sum()) > 0 else 1)


def test_what_cannot_be_read_is_refused():
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))
    for model, message in (
        (exported(small.eval(), 4), "was exported for batches of 4; export it for any batch"),
        (exported(small.train(), 2), "was exported in training mode; call .eval"),
        (Unknown(), "operations that are not known in JAX: special_bessel_j0"),
        (Asks(), "torch.export does not take Asks"),
    ):
        with pytest.raises(InputError, match=message):
            from_torch(model, SHAPE)
    with pytest.raises(InputError, match="layout must be"):
        from_torch(small, SHAPE, layout="CHWN")


def test_the_caller_keeps_its_module_as_it_is():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 3)).double()
    made = from_torch(module, SHAPE)
    assert module.training
    assert module[2].weight.dtype == torch.float64
    assert made.num_classes == 3
    assert dataclasses.replace(made, name="other").forward is made.forward
