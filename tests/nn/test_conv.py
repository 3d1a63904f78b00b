"""The convolution implementations against `jax.lax`, and the form that compiled programs give them."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dfke_jax.core.errors import InputError
from dfke_jax.nn import build, conv_general_dilated, convolution, upsample_convolve
from dfke_jax.nn.layers import BatchNorm, Conv, PhasedConv, UpsampleConv
from dfke_jax.nn.pooling import max_pool
from dfke_jax.nn.tiles import FeatureMaps, tile_size, tiled_convolution
from dfke_jax.nn.upsample import Phases, convolve_phases, upsample_phases

FAST = ("banded", "taps", "loop_safe")
NHWC = ("NHWC", "HWIO", "NHWC")
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the fast forms are the default on CPU only")


def ours(implementation, strides, padding):
    def apply(x, w):
        with convolution(implementation):
            return conv_general_dilated(x, w, strides, padding, dimension_numbers=NHWC)

    return apply


def reference(strides, padding):
    return lambda x, w: lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=NHWC)


def draw(*shapes):
    rng = np.random.default_rng(sum(map(sum, shapes)))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def value_and_gradients(function):
    """(x, w) -> value, dx, dw of a loss that weighs every output differently."""

    def run(x, w):
        def loss(x, w):
            y = function(x, w)
            weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
            return (weights * y * y).sum(), y

        (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, w)
        return y, *gradients

    return run


def assert_equal(found, expected):
    for ours_, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours_.shape == theirs.shape
        scale = max(1.0, float(np.abs(theirs).max()))
        np.testing.assert_allclose(ours_ / scale, theirs / scale, atol=2e-5)


def compare(functions, expected, *operands):
    """Compiles candidates and reference as one program, to save compilations."""
    found, wanted = jax.jit(lambda *xs: ([f(*xs) for f in functions], expected(*xs)))(*operands)
    for one in found:
        assert_equal(one, wanted)


PADDINGS = ("SAME", "VALID", ((1, 2), (0, 1)))
GRID = itertools.product((1, 2), (1, 3, 4, 5), PADDINGS)
CASES = [
    *((stride, (kernel, kernel), padding, (7, 9)) for stride, kernel, padding in GRID),
    (1, (5, 5), "VALID", (5, 5)),  # one output position
    (1, (3, 5), "SAME", (8, 5)),
    (2, (3, 3), ((1, 1), (1, 1)), (8, 8)),  # as PyTorch pads
    (2, (1, 1), "VALID", (8, 8)),  # rows and columns that no window reads
]


@pytest.mark.parametrize(("stride", "kernel", "padding", "size"), CASES)
def test_value_and_gradients(stride, kernel, padding, size):
    x, w = draw((2, *size, 3), (*kernel, 3, 4))
    strides = (stride, stride)
    candidates = [value_and_gradients(ours(name, strides, padding)) for name in FAST]
    compare(candidates, value_and_gradients(reference(strides, padding)), x, w)


@pytest.mark.parametrize(("kernel", "width", "filters"), [((5, 5), 12, 6), ((3, 3), 9, 24), ((1, 3), 8, 13)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_bands_of_few_columns(kernel, width, filters, padding):
    x, w = draw((2, 7, width, 2), (*kernel, 2, filters))
    banded = value_and_gradients(ours("banded", (1, 1), padding))
    compare([banded], value_and_gradients(reference((1, 1), padding)), x, w)


def test_unequal_strides():
    x, w = draw((2, 7, 9, 2), (3, 3, 2, 3))
    candidates = [value_and_gradients(ours(name, (1, 2), "SAME")) for name in FAST]
    compare(candidates, value_and_gradients(reference((1, 2), "SAME")), x, w)


BATCHED = {"kernels": (None, 0), "images": (0, None), "both": (0, 0)}


@pytest.mark.parametrize("which", BATCHED)
@pytest.mark.parametrize(("stride", "padding"), [(1, "VALID"), (2, ((1, 1), (1, 1)))])
def test_under_vmap(which, stride, padding):
    axes, strides = BATCHED[which], (stride, stride)
    x, w = draw((*(3,) * (axes[0] == 0), 2, 7, 6, 3), (*(3,) * (axes[1] == 0), 3, 3, 3, 4))
    candidates = [jax.vmap(value_and_gradients(ours(name, strides, padding)), axes) for name in FAST]
    compare(candidates, jax.vmap(value_and_gradients(reference(strides, padding)), axes), x, w)


@pytest.mark.parametrize("which", BATCHED)
def test_gradient_of_a_batched_loss(which):
    """Differentiation outside of vmap, which transposes it, rather than vmap of a gradient."""
    axes = BATCHED[which]
    x, w = draw((*(3,) * (axes[0] == 0), 2, 6, 6, 3), (*(3,) * (axes[1] == 0), 3, 3, 3, 4))
    candidates = [value_and_gradients(jax.vmap(ours(name, (1, 1), "SAME"), axes)) for name in FAST]
    compare(candidates, value_and_gradients(jax.vmap(reference((1, 1), "SAME"), axes)), x, w)


def test_nested_vmap_over_other_axes():
    x, w = draw((2, 6, 5, 3, 2), (3, 3, 3, 4, 3))

    def grid(function):
        inner = jax.vmap(value_and_gradients(function), (None, -1), -1)
        return jax.vmap(inner, (-1, None), 0)

    compare([grid(ours(name, (1, 1), "SAME")) for name in FAST], grid(reference((1, 1), "SAME")), x, w)


def test_inside_scan():
    x, w = draw((2, 6, 5, 3), (3, 3, 3, 3))

    def descend(function):
        gradients = value_and_gradients(function)

        def step(carry, _):
            x, w = carry
            y, dx, dw = gradients(x, w)
            return (x - 0.01 * dx, w - 0.01 * dw), y.mean()

        return lambda x, w: lax.scan(step, (x, w), length=4)

    compare([descend(ours(name, (1, 1), "SAME")) for name in FAST], descend(reference((1, 1), "SAME")), x, w)


def primitives(function, *operands):
    return str(jax.make_jaxpr(function)(*operands))


def test_the_context_switches_and_compiled_programs_know():
    x, w = draw((2, 6, 6, 3), (3, 3, 3, 4))
    traced = []

    @jax.jit
    def apply(x, w):
        traced.append(1)
        return conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)

    results = []
    for name in ("auto", "banded", "loop_safe", "lax", "banded"):
        with convolution(name):
            results.append(apply(x, w))
            text = primitives(lambda x, w: conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC), x, w)
            if name == "banded":
                assert "dot_general" in text
                assert "conv_general_dilated" not in text
            if name == "lax":
                assert "custom_v" not in text
                assert "conv_general_dilated" in text
            if name == "loop_safe":
                assert "custom_v" in text
    assert len(traced) == 4
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-4)


def test_contexts_nest():
    x, w = draw((1, 5, 5, 2), (3, 3, 2, 2))
    # A function each time: traces are remembered by function.
    text = lambda: primitives(lambda x, w: conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC), x, w)
    with convolution("lax"):
        outer = text()
        with convolution("banded"):
            assert text() != outer
        assert text() == outer


@on_cpu
def test_auto_chooses_by_size():
    def text(x, w, stride=1):
        with convolution("auto"):
            apply = lambda x, w: conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=NHWC)
            return primitives(apply, jnp.zeros(x), jnp.zeros(w))

    assert "conv_general_dilated" not in text((1, 28, 28, 1), (5, 5, 1, 6))
    assert "conv_general_dilated" in text((1, 28, 28, 1), (5, 5, 1, 6), stride=2)
    assert "conv_general_dilated" in text((1, 16, 16, 64), (3, 3, 64, 64))


def test_second_derivative_under_lax():
    x, w = draw((1, 5, 5, 2), (3, 3, 2, 2))

    def curvature(function):
        return jax.jit(jax.grad(lambda x, w: (jax.grad(lambda x: (function(x, w) ** 3).sum())(x) ** 2).sum(), (0, 1)))

    expected = curvature(reference((2, 2), "SAME"))(x, w)
    assert_equal(curvature(ours("lax", (2, 2), "SAME"))(x, w), expected)
    tangent = jax.jvp(lambda x: ours("lax", (1, 1), "SAME")(x, w), (x,), (x,))[1]
    assert_equal(tangent, reference((1, 1), "SAME")(x, w))


def test_second_derivative_of_banded():
    x, w = draw((1, 5, 5, 2), (3, 3, 2, 2))
    twice = lambda function: jax.jit(jax.hessian(lambda x: (function(x, w) ** 3).sum()))(x)
    assert_equal(twice(ours("banded", (1, 1), "VALID")), twice(reference((1, 1), "VALID")))


@on_cpu
@pytest.mark.parametrize("kind", ["conv", "strided", "pooled", "pool", "upsampled", "phased"])
def test_derivatives_that_fast_forms_lack_name_the_form_that_has_them(kind):
    """Forwards, twice backwards, and forwards over backwards: each is right or refused, and under ``lax`` all are there."""
    x, w, tiled, v = draw((1, 4, 4, 8), (3, 3, 8, 40), (3, 3, 8, 4), (1, 4, 4, 8))
    one = {
        "conv": lambda x: conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC),
        "strided": lambda x: conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=NHWC),
        "pooled": lambda x: pooled(x, tiled),  # in tiles, or under lax as it is
        "pool": max_pool,
        "upsampled": lambda x: upsample_phases(x, w).image(),
        "phased": lambda x: convolve_phases(Phases((x, 2 * x, 3 * x, x)), tiled[..., :1]).image(),
    }[kind]
    loss = lambda x: (one(x) ** 3).sum()
    square = lambda x: (jax.grad(loss)(x) ** 2).sum()
    forwards = lambda x: jax.jvp(loss, (x,), (v,))[1]
    both = lambda x: jax.jvp(jax.grad(loss), (x,), (v,))[1]
    within = lambda x: jax.jvp(jax.jit(loss), (x,), (v,))[1]
    with pytest.raises(InputError, match=r'convolution\("lax"\)'):
        forwards(x)
    refused = []
    for derivative in (forwards, jax.grad(square), both, within):
        try:
            found = jax.jit(derivative)(x)
        except InputError as error:
            refused.append(str(error))
            continue
        assert derivative is not forwards, "no fast form has it"
        with convolution("lax"):  # the same function, by another program
            assert_equal(found, jax.jit(derivative)(x))
    assert refused
    assert all('convolution("lax")' in text for text in refused)


def pooled(x, kernel):
    tile = tile_size(x.shape, kernel.shape)
    if tile:
        return FeatureMaps(tiled_convolution(x, kernel, tile), None, tile).max_pool()
    return max_pool(conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=NHWC))


def test_negative_padding_crops():
    x, w = draw((2, 7, 8, 2), (3, 3, 2, 3))
    for implementation in ("auto", *FAST):
        padding = ((-1, 0), (1, -2))
        found, expected = ours(implementation, (1, 1), padding), reference((1, 1), padding)
        assert_equal(value_and_gradients(found)(x, w), value_and_gradients(expected)(x, w))


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 3, 2, 4), {"feature_group_count": 2}),
        ((3, 3, 4, 4), {"rhs_dilation": (2, 2)}),
        ((3, 3, 4, 4), {"lhs_dilation": (2, 2)}),
        ((4, 3, 3, 4), {"dimension_numbers": ("NHWC", "OHWI", "NHWC")}),
        ((3, 3, 4, 4), {"preferred_element_type": jnp.float32}),
    ],
)
def test_what_is_not_covered_is_passed_on(kernel, options):
    x, w = (jnp.asarray(array, jnp.bfloat16) for array in draw((2, 7, 7, 4), kernel))
    options = {"dimension_numbers": NHWC, "padding": [(1, 1), (1, 1)], **options}
    with convolution("banded"):
        found = conv_general_dilated(x, w, (1, 1), **options)
    expected = lax.conv_general_dilated(x, w, (1, 1), **options)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_no_dimension_numbers_mean_channels_first():
    x, w = draw((1, 2, 5, 5), (3, 2, 3, 3))
    np.testing.assert_array_equal(
        conv_general_dilated(x, w, (1, 1), "SAME"), lax.conv_general_dilated(x, w, (1, 1), "SAME")
    )


def test_errors():
    with pytest.raises(InputError, match="must be one of auto, banded, taps, loop_safe, lax"):
        convolution("fast")
    x, w = draw((1, 3, 3, 1), (5, 5, 1, 1))
    with pytest.raises(InputError, match="5×5 convolution needs an image of at least that size, got 3×3"):
        ours("banded", (1, 1), "VALID")(x, w)
    with pytest.raises(InputError, match="3×3 kernels, got 5×5"):
        upsample_convolve(x, w)


@pytest.mark.parametrize("implementation", ["auto", "loop_safe", "lax"])
@pytest.mark.parametrize("batch", [2, 26])  # gradients in one piece, and in two groups
def test_upsample_convolve(implementation, batch):
    x, w, b = draw((batch, 3, 5, 4), (3, 3, 4, 6), (6,))

    def fused(x, w):
        with convolution(implementation):
            return upsample_convolve(x, w, b)

    def explicit(x, w):
        return reference((1, 1), "SAME")(x.repeat(2, 1).repeat(2, 2), w) + b.reshape(1, 1, 1, -1)

    compare([value_and_gradients(fused)], value_and_gradients(explicit), x, w)


def in_phases(image):
    return Phases(tuple(image[:, p::2, q::2] for p in range(2) for q in range(2)))


def test_phases_are_the_pixels_of_an_image():
    (x,) = draw((2, 6, 4, 3))
    np.testing.assert_array_equal(in_phases(x).image(), x)
    np.testing.assert_array_equal(in_phases(x).map(jnp.negative).image(), -x)


@pytest.mark.parametrize("filters", [1, 2])
@pytest.mark.parametrize("batch", [2, 14])  # gradients in one piece, and in two groups
def test_convolve_phases(filters, batch):
    x, w = draw((batch, 6, 10, 18), (3, 3, 18, filters))
    apart = lambda x, w: convolve_phases(in_phases(x), w).image()
    whole = lambda x, w: convolve_phases(Phases((x,)), w).image()
    compare(
        [value_and_gradients(apart), value_and_gradients(whole)], value_and_gradients(reference((1, 1), "SAME")), x, w
    )


@pytest.mark.parametrize(("channels", "filters"), [(9, 1), (8, 1)])  # taps over the phases, and the image put together
def test_phased_conv_layer(channels, filters):
    (x,) = draw((2, 4, 4, channels))
    layer, plain = PhasedConv(filters), Conv(filters, (3, 3), use_bias=False)
    variables = layer.init(jax.random.key(0), in_phases(x))
    jax.tree.map(np.testing.assert_array_equal, variables, plain.init(jax.random.key(0), x))
    np.testing.assert_allclose(layer.apply(variables, in_phases(x)).image(), plain.apply(variables, x), atol=1e-5)


def test_normalisation_of_phases_is_that_of_the_image():
    (x,) = draw((3, 4, 6, 5))
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x)

    def apply(x):
        return norm.apply(variables, x, train=True, mutable=["batch_stats", "normalisation"])

    (found, reported), (expected, report) = apply(in_phases(3 * x + 1)), apply(3 * x + 1)
    np.testing.assert_allclose(found.image(), expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), reported, report)


def test_upsample_conv_layer():
    (x,) = draw((2, 3, 3, 4))
    layer, plain = UpsampleConv(5), Conv(5, (3, 3), padding="SAME")
    variables = layer.init(jax.random.key(0), x)
    variables = {"params": {**variables["params"], "bias": jnp.arange(5.0)}}
    np.testing.assert_allclose(
        layer.apply(variables, x).image(), plain.apply(variables, x.repeat(2, 1).repeat(2, 2)), atol=1e-5
    )
    assert "bias" not in UpsampleConv(5, use_bias=False).init(jax.random.key(0), x)["params"]


# What compiled programs contain


def training(name, models=None):
    """A program of training steps inside a scan, of one model or a stack of them; and its arguments."""
    module = build(name)
    shape = (32, 32, 1) if name.startswith("lenet") else (16, 16, 3)
    images, labels = jnp.zeros((4, *shape)), jnp.arange(4)

    def step(variables, images):
        def loss(params):
            logits, state = module.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return -jax.nn.log_softmax(logits)[jnp.arange(4), labels].mean(), state

        gradients, state = jax.grad(loss, has_aux=True)(variables["params"])
        return {**state, "params": jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients)}

    if models:
        step = jax.vmap(step, (0, None))

    def program(variables, images):
        return lax.scan(lambda variables, _: (step(variables, images), None), variables, length=3)[0]

    keys = jax.random.split(jax.random.key(0), models) if models else jax.random.key(0)
    init = lambda key: module.init(key, images)
    variables = jax.eval_shape(jax.vmap(init) if models else init, keys)
    return program, (
        {kind: variables[kind] for kind in ("params", "batch_stats") if kind in variables},
        images,
    )


def synthesis(name):
    """A program of gradient steps on the images inside a scan, and its arguments."""
    module = build(name)
    images = jnp.zeros((4, 16, 16, 3))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), images))

    def program(variables, images):
        loss = lambda images: jnp.square(module.apply(variables, images)).sum()
        return lax.scan(lambda x, _: (x - jax.grad(loss)(x), None), images, length=3)[0]

    return program, ({kind: variables[kind] for kind in ("params", "batch_stats")}, images)


PROGRAMS = {
    "lenet5 training": lambda: training("lenet5"),
    "resnet8 synthesis": lambda: synthesis("resnet8"),
    "lenet5 training of three": lambda: training("lenet5", 3),
    "resnet8 training of three": lambda: training("resnet8", 3),
}


def convolutions(program):
    """The convolutions of a compiled program, and those among them that have no fast kernel."""
    function, operands = program
    text = jax.jit(function).lower(*operands).compile().as_text()
    assert "while" in text, "the scan was compiled away, so nothing can be learned from this program"
    lines = [line.strip() for line in text.splitlines() if "dim_labels=" in line]
    grouped = re.compile(r"(?:feature|batch)_group_count=(?!1\b)\d+")
    slow = [line for line in lines if "dim_labels=b01f_01io->b01f" not in line or grouped.search(line)]
    return lines, slow


@on_cpu
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_programs_have_fast_convolutions_only(name):
    lines, slow = convolutions(PROGRAMS[name]())
    assert slow == []
    assert bool(lines) == name.startswith("resnet")  # those of LeNet are matrix products


@on_cpu
@pytest.mark.parametrize("name", PROGRAMS)
def test_plain_convolutions_are_slow_there(name):
    """So that the test above can fail; should this one, XLA has improved and `nn.conv` may be simplified."""
    with convolution("lax"):
        _, slow = convolutions(PROGRAMS[name]())
    assert slow
