"""Operations with hand-written gradients: what they cannot do is said in words."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array

_REMEDY = 'put it, and what compiles it, under `with dfke_jax.nn.convolution("lax"):`'


def reverse_only(array: Array) -> Array:
    """The identity, in front of an operation that has gradients in reverse mode alone.

    Raises:
      InputError: when a program that differentiates it forwards (`jax.jvp`, `jax.jacfwd`,
        `jax.hessian`) is run or compiled.
    """
    return _reverse_only(array)


@jax.custom_jvp
def _reverse_only(array: Array) -> Array:
    return array


@_reverse_only.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return primals[0], _tangent.bind(tangents[0])


def _refuse(*_: Any, **__: Any) -> Any:
    raise InputError(
        "the fast forms of convolution and pooling have no forward-mode derivatives (jvp, jacfwd, "
        "hessian); " + _REMEDY
    )


# In reverse mode a tangent is transposed and never computed: whoever evaluates or compiles this
# goes forwards.
_tangent = Primitive("reverse_only")
_tangent.def_impl(_refuse)
_tangent.def_abstract_eval(lambda tangent: tangent)
ad.deflinear2(_tangent, lambda cotangent, _: [cotangent])
batching.defvectorized(_tangent)
mlir.register_lowering(_tangent, _refuse)


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for the backward pass of an operation whose gradient cannot be differentiated
    again.

    It raises `InputError` where that is tried.
    """

    @jax.custom_jvp
    @functools.wraps(function)
    def call(*arrays: Array) -> Any:
        return function(*arrays)

    @call.defjvp
    def _(primals: tuple, tangents: tuple) -> Any:
        raise InputError("the fast form of convolution has no second derivatives; " + _REMEDY)

    return call


__all__ = ["once", "reverse_only"]
