"""Convolutions of functions that others wrote, through `dfke_jax.nn.conv`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dfke_jax.core.types import Array
from dfke_jax.nn.conv import conv_general_dilated, uses_products

_NHWC = ("NHWC", "HWIO", "NHWC")


def with_fast_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of pytrees of arrays; on CPU its convolutions keep fast gradients inside
    loops.

    The function is traced and its program evaluated once more, with
    `dfke_jax.nn.conv.conv_general_dilated` in the place of every 2-D convolution that this covers;
    layouts other than NHWC are transposed there and back. Nested programs (`jax.jit`,
    `jax.checkpoint`) are gone through; a convolution inside `lax.scan`, `lax.cond` or a custom
    derivative of the function's own stays as it is, as do dilated and grouped ones.
    """

    def call(*arguments: Any) -> Any:
        if not uses_products():
            return function(*arguments)
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        found = _evaluate(program.jaxpr, program.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return call


def _evaluate(program: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip(program.constvars, constants, strict=True))
    values.update(zip(program.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else values[atom]

    for equation in program.eqns:
        found = _operation(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in program.outvars]


def _operation(equation: Any, inputs: list[Any]) -> list[Any]:
    primitive, given = equation.primitive, equation.params
    if primitive is lax.conv_general_dilated_p and inputs[0].ndim == 4:
        return [_convolved(inputs[0], inputs[1], given)]
    inner = given.get("jaxpr")
    if inner is not None and _convolves(inner):
        if primitive.name in ("jit", "pjit", "closed_call"):
            return _evaluate(inner.jaxpr, inner.consts, inputs)
        if primitive.name in ("checkpoint", "remat", "remat2"):
            again = jax.checkpoint(
                lambda *arrays: _evaluate(inner, (), arrays),
                prevent_cse=given["prevent_cse"],
                policy=given["policy"],
            )
            return again(*inputs)
    options = primitive.get_bind_params(given)
    functions, options = options if isinstance(options, tuple) else ((), options)  # before JAX 0.10
    with equation.ctx.manager:
        found = primitive.bind(*functions, *inputs, **options)
    return list(found) if primitive.multiple_results else [found]


def _convolves(program: Any) -> bool:
    """Whether there is a convolution in it, however deep."""
    program = getattr(program, "jaxpr", program)
    for equation in program.eqns:
        if equation.primitive is lax.conv_general_dilated_p:
            return True
        inner = equation.params.get("jaxpr")
        if inner is not None and _convolves(inner):
            return True
    return False


def _convolved(lhs: Array, rhs: Array, given: dict[str, Any]) -> Array:
    of_images, of_kernel, of_result = given["dimension_numbers"]
    # Numbers name axes: (batch, feature, height, width), (output, input, height, width).
    batch, feature, *space = of_images
    output, input_, *taps = of_kernel
    found = conv_general_dilated(
        jnp.transpose(lhs, (batch, *space, feature)),
        jnp.transpose(rhs, (*taps, input_, output)),
        given["window_strides"],
        given["padding"],
        given["lhs_dilation"],
        given["rhs_dilation"],
        _NHWC,
        given["feature_group_count"],
        given["batch_group_count"],
        given["precision"],
        given["preferred_element_type"],
    )
    back = [0] * 4
    back[of_result[0]], back[of_result[1]], back[of_result[2]], back[of_result[3]] = 0, 3, 1, 2
    return jnp.transpose(found, back)


__all__ = ["with_fast_convolutions"]
