"""Names, exact parameter counts and shapes of every registered network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.nn import build, describe, names

# Literals, so that a change of either the network or its description shows.
PARAMETERS = {
    "airbench94": 1_971_640,
    "airbench94_half": 497_528,
    "airbench94_quarter": 126_808,
    "alexnet": 1_659_178,
    "alexnet_half": 417_434,
    "hinton_mlp": 2_395_210,
    "hinton_mlp_half": 1_276_810,
    "lenet5": 61_706,
    "lenet5_bn": 62_158,
    "lenet5_half": 35_820,
    "lenet5_half_bn": 36_250,
    "lenet5_half_dafl": 15_738,
    "lstm": 379_274,
    "mlp_small": 235_146,
    "resnet18": 11_173_962,
    "resnet18_half": 2_797_610,
    "resnet34": 21_282_122,
    "resnet8": 78_042,
    "two_conv": 422_154,
    "two_conv_quarter": 103_146,
    "vgg11": 9_231_114,
    "vgg16": 14_728_266,
    "vgg19": 20_040_522,
    "wrn_16_1": 175_066,
    "wrn_16_2": 691_674,
    "wrn_40_1": 563_930,
    "wrn_40_2": 2_243_546,
    "wrn_10_1": 77_850,
    "wrn_28_10": 36_479_194,
}
FEATURES = {
    "airbench94": 256,
    "alexnet": 256,
    "alexnet_half": 128,
    "hinton_mlp": 1200,
    "lenet5": 84,
    "lenet5_half_dafl": 42,
    "lstm": 128,
    "mlp_small": 128,
    "resnet8": 64,
    "resnet18": 512,
    "resnet18_half": 256,
    "two_conv": 128,
    "two_conv_quarter": 128,
    "vgg11": 512,
    "wrn_16_2": 128,
}


def shapes(name, num_classes=10, input_shape=None):
    """Variables, logits and records of a network, as shapes; nothing is computed."""
    module = build(name, num_classes)
    images = jnp.zeros((2, *(input_shape or describe(name).input_shape)))

    def run():
        variables = module.init(jax.random.key(0), images)
        variables = {kind: tree for kind, tree in variables.items() if kind in ("params", "batch_stats")}
        logits, state = module.apply(variables, images, mutable=["activations"])
        return variables, logits, state["activations"]

    return jax.eval_shape(run)


def test_every_registered_network_is_counted():
    assert set(names()) <= set(PARAMETERS)
    assert list(names()) == sorted(names())


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameters_and_shapes(name):
    info = describe(name)
    variables, logits, recorded = shapes(name)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == PARAMETERS[name] == info.parameters
    assert logits.shape == (2, 10)
    assert logits.dtype == jnp.float32
    assert ("batch_stats" in variables) == info.batch_norm
    features = recorded["@features"]
    assert features.shape == (2, variables["params"]["head"]["kernel"].shape[0])
    if name in FEATURES:
        assert features.shape[1] == FEATURES[name]
    assert len(recorded) >= 3
    if info.input_size is not None:
        assert info.input_size == info.input_shape[:2]


@pytest.mark.parametrize(
    "name", ["airbench94", "lenet5_bn", "alexnet", "vgg16", "resnet8", "resnet18", "wrn_16_1", "wrn_64_1"]
)
def test_names_of_normalisation_layers_sort_in_call_order(name):
    """Compiled programs see dictionaries sorted; in call order statistics read from input to output."""
    variables = shapes(name)[0]

    def paths(tree, prefix=()):
        if "mean" in tree and not isinstance(tree["mean"], dict):
            return [prefix]
        return [path for key, branch in tree.items() for path in paths(branch, (*prefix, key))]

    module, info = build(name), describe(name)
    called = []

    def watch(next_call, args, kwargs, context):
        if type(context.module).__name__ == "BatchNorm":
            called.append(context.module.path)
        return next_call(*args, **kwargs)

    with nn.intercept_methods(watch):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *info.input_shape))))
    found = paths(variables["batch_stats"])
    assert found == called
    assert sorted(found) == called


@pytest.mark.parametrize("name", ["lenet5", "alexnet", "vgg11", "resnet8", "wrn_16_1", "mlp_small"])
def test_number_of_classes(name):
    assert shapes(name, num_classes=7)[1].shape == (2, 7)
    with pytest.raises(InputError, match="at least two classes, got 1"):
        build(name, 1)


def test_the_head_refuses_one_class():
    module = type(build("mlp_small"))(num_classes=1)
    with pytest.raises(InputError, match="at least two classes"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1))))


@pytest.mark.parametrize("name", ["lenet5", "alexnet"])
def test_a_wrong_image_size_is_named(name):
    channels = describe(name).input_shape[2]
    with pytest.raises(InputError, match="32×32"):
        shapes(name, input_shape=(28, 28, channels))


@pytest.mark.parametrize(("size", "positions"), [(32, 4), (48, 6), (64, 4)])
def test_vgg_pools_a_fourth_time_only_for_large_images(size, positions):
    recorded = shapes("vgg11", input_shape=(size, size, 3))[2]
    assert recorded["@stage5_conv2"].shape == (2, positions, positions, 512)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match=r"unknown network 'resnet81'; nearest: .*resnet8"):
        build("resnet81")
    with pytest.raises(UnknownNameError, match="wrn_D_K"):
        describe("wrn_16")
    with pytest.raises(UnknownNameError, match="known: airbench94, "):
        describe("?")


@pytest.mark.parametrize("name", ["wrn_17_2", "wrn_4_1", "wrn_12_1"])
def test_depths_that_do_not_exist(name):
    with pytest.raises(InputError, match=r"depth 6n \+ 4"):
        build(name)


def test_a_description_is_immutable():
    with pytest.raises(AttributeError):
        describe("lenet5").parameters = 3
