"""Networks by name, with the facts that a table of results wants to state about them."""

import dataclasses
import re
from collections.abc import Callable

import flax.linen as nn

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.nn import airbench, alexnet, lenet, mlp, recurrent, resnet, two_conv, vgg, wide_resnet


@dataclasses.dataclass(frozen=True)
class NetworkInfo:
    """What is known of a registered network.

    Attributes:
      constructor: number of classes -> module.
      paper: where the architecture, in this form, comes from.
      input_shape: (H, W, C) that `parameters` refers to.
      parameters: the exact number of parameters at ten classes and `input_shape`.
      input_size: (H, W) that the network needs, or None if it takes any.
      batch_norm: whether it has batch normalisation, which statistics priors need.
      normalisation: mean and standard deviation by channel that its images are normalised with,
        None for images in [0, 1].
    """

    constructor: Callable[[int], nn.Module]
    paper: str
    input_shape: tuple[int, int, int]
    parameters: int
    input_size: tuple[int, int] | None
    batch_norm: bool
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None


_LECUN = "LeCun et al. 1998"
_ZSKD = "Nayak et al. 2019 (ZSKD)"
_DAFL = "Chen et al. 2019 (DAFL)"
_HINTON = "Hinton et al. 2015"
_HE = "He et al. 2016"
_VGG = "Simonyan and Zisserman 2015; Tian et al. 2020 (RepDistiller)"
_WRN = "Zagoruyko and Komodakis 2016"
_EWE = "Jia et al. 2021 (EWE)"
_AIRBENCH = "Jordan 2024 (airbench94)"
_CIFAR = (airbench.MEAN, airbench.STD)
_GREY, _COLOUR, _MNIST = (32, 32, 1), (32, 32, 3), (28, 28, 1)
_SPECTROGRAM = (125, 80, 1)  # time and frequency
_FIXED = (32, 32)
_WRN_NAME = re.compile(r"wrn_([1-9]\d*)_([1-9]\d*)")
_MLP_NAME = re.compile(r"mlp_([1-9]\d*)")


def _wrn(depth: int, width: int) -> NetworkInfo:
    def constructor(num_classes: int = 10) -> wide_resnet.WideResNet:
        return wide_resnet.WideResNet(num_classes, depth, width)

    parameters = wide_resnet.parameter_count(depth, width)
    return NetworkInfo(constructor, _WRN, _COLOUR, parameters, None, True)


def _one_hidden(units: int) -> NetworkInfo:
    def constructor(num_classes: int = 10) -> mlp.MLP:
        return mlp.MLP(num_classes, (units,))

    return NetworkInfo(constructor, "this project", _MNIST, 795 * units + 10, None, False)


_NETWORKS: dict[str, NetworkInfo] = {
    "lenet5": NetworkInfo(lenet.LeNet5, f"{_LECUN}; {_ZSKD}", _GREY, 61_706, _FIXED, False),
    "lenet5_half": NetworkInfo(lenet.lenet5_half, _ZSKD, _GREY, 35_820, _FIXED, False),
    "lenet5_half_dafl": NetworkInfo(lenet.lenet5_half_dafl, _DAFL, _GREY, 15_738, _FIXED, False),
    "lenet5_bn": NetworkInfo(lenet.lenet5_bn, f"{_LECUN}, normalised", _GREY, 62_158, _FIXED, True),
    "lenet5_half_bn": NetworkInfo(
        lenet.lenet5_half_bn, f"{_ZSKD}, normalised", _GREY, 36_250, _FIXED, True
    ),
    "hinton_mlp": NetworkInfo(mlp.hinton_mlp, _HINTON, _MNIST, 2_395_210, None, False),
    "hinton_mlp_half": NetworkInfo(mlp.hinton_mlp_half, _HINTON, _MNIST, 1_276_810, None, False),
    "mlp_small": NetworkInfo(mlp.mlp_small, "this project", _MNIST, 235_146, None, False),
    "two_conv": NetworkInfo(two_conv.TwoConv, _EWE, _MNIST, 422_154, None, False),
    "two_conv_quarter": NetworkInfo(
        two_conv.two_conv_quarter, "this project", _MNIST, 103_146, None, False
    ),
    "lstm": NetworkInfo(recurrent.LSTM, _EWE, _SPECTROGRAM, 379_274, None, False),
    "alexnet": NetworkInfo(alexnet.alexnet, _ZSKD, _COLOUR, 1_659_178, _FIXED, True),
    "alexnet_half": NetworkInfo(alexnet.alexnet_half, _ZSKD, _COLOUR, 417_434, _FIXED, True),
    "airbench94": NetworkInfo(
        airbench.airbench94, _AIRBENCH, _COLOUR, 1_971_640, None, True, _CIFAR
    ),
    "airbench94_half": NetworkInfo(
        airbench.airbench94_half,
        f"{_AIRBENCH}, half the filters",
        _COLOUR,
        497_528,
        None,
        True,
        _CIFAR,
    ),
    "airbench94_quarter": NetworkInfo(
        airbench.airbench94_quarter,
        f"{_AIRBENCH}, a quarter of the filters",
        _COLOUR,
        126_808,
        None,
        True,
        _CIFAR,
    ),
    "vgg11": NetworkInfo(vgg.vgg11, _VGG, _COLOUR, 9_231_114, None, True),
    "vgg16": NetworkInfo(vgg.vgg16, _VGG, _COLOUR, 14_728_266, None, True),
    "vgg19": NetworkInfo(vgg.vgg19, _VGG, _COLOUR, 20_040_522, None, True),
    "resnet8": NetworkInfo(resnet.resnet8, f"{_HE}, section 4.2", _COLOUR, 78_042, None, True),
    "resnet18": NetworkInfo(resnet.resnet18, f"{_HE}; {_DAFL}", _COLOUR, 11_173_962, None, True),
    "resnet18_half": NetworkInfo(
        resnet.resnet18_half, f"{_HE}, half the filters", _COLOUR, 2_797_610, None, True
    ),
    "resnet34": NetworkInfo(resnet.resnet34, f"{_HE}; {_DAFL}", _COLOUR, 21_282_122, None, True),
    "wrn_16_1": _wrn(16, 1),
    "wrn_16_2": _wrn(16, 2),
    "wrn_40_1": _wrn(40, 1),
    "wrn_40_2": _wrn(40, 2),
}


def names() -> tuple[str, ...]:
    """The registered names, sorted. Besides them any ``wrn_D_K`` of a valid depth D and width K is
    known, and any ``mlp_H`` of one hidden layer of H units.
    """
    return tuple(sorted(_NETWORKS))


def describe(name: str) -> NetworkInfo:
    """What is known of a network: paper, number of parameters, the input it needs.

    Raises:
      UnknownNameError: naming the nearest names.
      InputError: for a wide ResNet of a depth that does not exist.
    """
    if name in _NETWORKS:
        return _NETWORKS[name]
    if match := _WRN_NAME.fullmatch(name):
        return _wrn(int(match[1]), int(match[2]))
    if match := _MLP_NAME.fullmatch(name):
        return _one_hidden(int(match[1]))
    raise UnknownNameError("network", name, (*_NETWORKS, "wrn_D_K", "mlp_H"))


def build(name: str, num_classes: int = 10) -> nn.Module:
    """The module of a registered network.

    >>> build("lenet5_half", num_classes=10).filters
    (3, 8)

    Raises:
      UnknownNameError: naming the nearest names.
      InputError: for fewer than two classes, or a wide ResNet of a depth that does not exist.
    """
    info = describe(name)
    if num_classes < 2:
        raise InputError(f"a classifier needs at least two classes, got {num_classes}")
    return info.constructor(num_classes)


__all__ = ["NetworkInfo", "build", "describe", "names"]
