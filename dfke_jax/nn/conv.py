"""Two-dimensional convolution that stays fast inside `scan` and under `vmap`.

XLA's CPU backend gives convolution *gradients* their fast kernel only at the top level of a
program; inside a loop they fall to a naive one, and `vmap` over kernels becomes a grouped
convolution, slow everywhere. `conv_general_dilated` is a drop-in for `jax.lax.conv_general_dilated`
that avoids both on CPU and is the plain operation elsewhere. Networks get it through
`dfke_jax.nn.layers.Conv`.

Four implementations, equal up to rounding:

- ``banded``: the input's rows are concatenated over the kernel's height, cut into overlapping
  pieces that see n output columns each, and multiplied by the kernel laid out as a banded matrix
  (kh·(n + kw - 1)·C, n·F). Forward, input gradient and weight gradient are one matrix product each;
  under `vmap` a batched one. It does (n + kw - 1)/kw times the arithmetic, so it is for few
  channels.
- ``taps``: one matrix product gives every tap of the kernel its share of every pixel, and the
  shares are shifted and added. For many channels and few filters (a generator's last layer), where
  an ordinary convolution spends its time on memory.
- ``loop_safe``: an ordinary convolution whose gradients are themselves written as forward
  convolutions in the one layout that has a fast kernel; batched over kernels it runs them one after
  another.
- ``lax``: the plain operation. ``loop_safe`` has first derivatives in reverse mode alone, and says
  so where others are asked for: what differentiates twice or forwards stands under
  ``with convolution("lax"):``.

``auto`` takes ``banded``, ``taps`` or ``loop_safe`` on CPU by size, ``lax`` on accelerators. There
members of a population that run side by side would be a grouped convolution too: small kernels
become ``banded`` products (and `dfke_jax.nn.tiles`), which for a hundred LeNets on an H200 is
eleven times as fast.
"""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfke_jax.core.errors import InputError
from dfke_jax.core.population import members_side_by_side
from dfke_jax.core.types import Array
from dfke_jax.nn.derivatives import once, reverse_only

Implementation = Literal["auto", "banded", "taps", "loop_safe", "lax"]
_IMPLEMENTATIONS = ("auto", "banded", "taps", "loop_safe", "lax")
_implementation = jax.make_user_context("auto")
_NHWC = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))


def convolution(implementation: Implementation) -> AbstractContextManager:
    """Context in which every convolution of the package uses one implementation; compiled programs
    know of it.

    Use ``with convolution("lax"):`` around code that differentiates twice through a convolution, or
    forwards.

    Raises:
      InputError: for another name.
    """
    if implementation not in _IMPLEMENTATIONS:
        raise InputError(
            f"convolution must be one of {', '.join(_IMPLEMENTATIONS)}, not {implementation!r}"
        )
    return _implementation(implementation)


def uses_fast_forms() -> bool:
    """Whether operations with a special form for the CPU take it: not on accelerators, and not
    under ``"lax"``.
    """
    chosen = _implementation.value
    return chosen != "lax" and (chosen != "auto" or jax.default_backend() == "cpu")


def uses_products() -> bool:
    """Whether small convolutions are written as matrix products: a fast form, and one for
    populations on accelerators.
    """
    return uses_fast_forms() or (_implementation.value == "auto" and members_side_by_side())


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """`jax.lax.conv_general_dilated` with the implementation chosen as the module says.

    The fast implementations cover 2-D, NHWC/HWIO, undilated, ungrouped convolution (every network
    here); anything else, negative padding too, is passed on to `jax.lax`.

    Args:
      lhs: (B, H, W, C). rhs: (kh, kw, C, F). The others as in `jax.lax`.

    Returns:
      (B, OH, OW, F).

    Raises:
      InputError: for a second or forward-mode derivative of ``loop_safe``.
    """

    def plain() -> Array:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )

    covered = (
        lhs.ndim == 4
        and _is_nhwc(lhs, rhs, dimension_numbers)
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and feature_group_count == batch_group_count == 1
        and preferred_element_type in (None, lhs.dtype)
    )
    if not uses_products() or not covered:
        return plain()
    chosen = _implementation.value
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    padding = tuple((int(low), int(high)) for low, high in padding)
    if min(pad for pads in padding for pad in pads) < 0:
        return plain()
    if chosen == "auto":
        chosen = "loop_safe"
        if _banded_pays(lhs.shape, rhs.shape, strides, padding):
            chosen = "banded"
        elif not uses_fast_forms():
            return plain()
        elif strides == (1, 1) and rhs.shape[0] * rhs.shape[1] * rhs.shape[3] <= rhs.shape[2]:
            chosen = "taps"
    if chosen == "banded":
        return _banded(lhs, rhs, strides, padding, precision)
    if chosen == "taps" and strides == (1, 1):
        return _taps(lhs, rhs, padding, precision)
    return _loop_safe(strides, padding, precision, reverse_only(lhs), reverse_only(rhs))


def _is_nhwc(lhs: Array, rhs: Array, dimension_numbers: Any) -> bool:
    if dimension_numbers is None:
        return False  # lax reads this as NCHW
    if not isinstance(dimension_numbers, lax.ConvDimensionNumbers):
        dimension_numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    return dimension_numbers == _NHWC


def _banded_pays(lhs: tuple, rhs: tuple, strides: tuple, padding: tuple) -> bool:
    """Stride one, and either the band is the whole matrix (one output column) or it wastes little
    in absolute terms.
    """
    kh, kw, channels, filters = rhs
    width = lhs[2] + sum(padding[1])
    if strides != (1, 1):
        return False
    if width == kw:
        return True
    return kh * width * channels <= 640 and channels * kw <= 64 and filters <= 32


def _banded(lhs: Array, rhs: Array, strides: tuple, padding: tuple, precision: Any) -> Array:
    if strides != (1, 1):
        return _loop_safe(strides, padding, precision, reverse_only(lhs), reverse_only(rhs))
    if any(pad for pads in padding for pad in pads):
        lhs = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
    batch, height, width, channels = lhs.shape
    kh, kw, _, filters = rhs.shape
    out_height, out_width = height - kh + 1, width - kw + 1
    if out_height < 1 or out_width < 1:
        raise InputError(
            f"a {kh}×{kw} convolution needs an image of at least that size, got {height}×{width}"
        )
    # Few output columns waste less arithmetic, and a product wants some columns for the vector
    # units.
    columns = min((c for c in _divisors(out_width) if c * filters >= 24), default=out_width)
    blocks, span = out_width // columns, columns + kw - 1
    matrix = jnp.einsum("vok,ikcf->ivcof", _band(columns, kw, rhs.dtype), rhs)
    rows = lhs.reshape(batch, height, width * channels)
    starts = [block * columns * channels for block in range(blocks)]
    rows = jnp.stack([rows[:, :, start : start + span * channels] for start in starts], axis=2)
    rows = jnp.concatenate([rows[:, i : i + out_height] for i in range(kh)], axis=-1)
    product = jnp.matmul(
        rows.reshape(batch * out_height * blocks, kh * span * channels),
        matrix.reshape(kh * span * channels, columns * filters),
        precision=precision,
    )
    return product.reshape(batch, out_height, out_width, filters)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _band(outputs: int, kernel: int, dtype: Any) -> np.ndarray:
    """(outputs + kernel - 1, outputs, kernel), one where input column = output column + tap."""
    column = np.arange(outputs + kernel - 1)[:, None, None]
    output = np.arange(outputs)[None, :, None]
    tap = np.arange(kernel)[None, None, :]
    return (column == output + tap).astype(dtype)


def _taps(lhs: Array, rhs: Array, padding: tuple, precision: Any) -> Array:
    batch, height, width, channels = lhs.shape
    kh, kw, _, filters = rhs.shape
    out_height, out_width = height + sum(padding[0]) - kh + 1, width + sum(padding[1]) - kw + 1
    if out_height < 1 or out_width < 1:
        raise InputError(
            f"a {kh}×{kw} convolution needs an image of at least that size, got {height}×{width}"
        )
    matrix = rhs.transpose(2, 0, 1, 3).reshape(channels, kh * kw * filters)
    shares = jnp.matmul(lhs.reshape(-1, channels), matrix, precision=precision)
    shares = jnp.pad(
        shares.reshape(batch, height, width, kh * kw * filters), ((0, 0), *padding, (0, 0))
    )
    total = jnp.zeros((batch, out_height, out_width, filters), shares.dtype)
    for i in range(kh):
        for j in range(kw):
            tap = (i * kw + j) * filters
            total = total + shares[:, i : i + out_height, j : j + out_width, tap : tap + filters]
    return total


def _canonical(
    lhs: Array,
    rhs: Array,
    strides: tuple,
    padding: tuple,
    lhs_dilation: tuple,
    rhs_dilation: tuple,
    precision: Any,
):
    return lax.conv_general_dilated(
        lhs,
        rhs,
        strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers=_NHWC,
        precision=precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _loop_safe(strides: tuple, padding: tuple, precision: Any, lhs: Array, rhs: Array) -> Array:
    return _sequential(_canonical, strides, padding, (1, 1), (1, 1), precision)(lhs, rhs)


def _sequential(function, *static):
    """`function(lhs, rhs, *static)` which, batched over kernels, becomes a loop over the members of
    the batch.

    Batched over `lhs` alone, its batch axis is folded into the images', where one kernel serves
    them all.
    """

    @jax.custom_batching.custom_vmap
    def call(lhs: Array, rhs: Array) -> Array:
        return function(lhs, rhs, *static)

    @call.def_vmap
    def rule(size, batched, lhs, rhs):
        lhs_batched, rhs_batched = batched
        if not rhs_batched:
            flat = call(lhs.reshape(-1, *lhs.shape[2:]), rhs)
            return flat.reshape(size, -1, *flat.shape[1:]), True
        if lhs_batched:
            return lax.map(lambda pair: call(*pair), (lhs, rhs)), True
        return lax.map(lambda kernel: call(lhs, kernel), rhs), True

    return call


def _loop_safe_forward(strides: tuple, padding: tuple, precision: Any, lhs: Array, rhs: Array):
    return _loop_safe(strides, padding, precision, reverse_only(lhs), reverse_only(rhs)), (lhs, rhs)


def _loop_safe_backward(
    strides: tuple, padding: tuple, precision: Any, residuals: tuple, cotangent: Array
):
    lhs, rhs = residuals
    arguments = (strides, padding, precision)
    d_lhs = once(_sequential(_input_gradient, lhs.shape[-3:-1], *arguments))(cotangent, rhs)
    d_rhs = once(_weight_gradient_call(rhs.shape[-4:-2], *arguments))(lhs, cotangent)
    return d_lhs, d_rhs


_loop_safe.defvjp(_loop_safe_forward, _loop_safe_backward)


def _input_gradient(
    cotangent: Array, rhs: Array, size: tuple, strides: tuple, padding: tuple, precision: Any
) -> Array:
    """The transposed convolution, as a forward one: flipped kernel, input dilated by the stride."""
    # Without the barrier XLA folds the flip back into the slow layout.
    kernel = lax.optimization_barrier(jnp.flip(rhs, (0, 1)).swapaxes(2, 3))
    pads = []
    for axis in range(2):
        taps, (low, _), stride = rhs.shape[axis], padding[axis], strides[axis]
        dilated = (cotangent.shape[1 + axis] - 1) * stride + 1
        before = taps - 1 - low
        pads.append((before, size[axis] + taps - 1 - dilated - before))
    return _canonical(cotangent, kernel, (1, 1), tuple(pads), strides, (1, 1), precision)


def _weight_gradient(
    lhs: Array, cotangent: Array, taps: tuple, strides: tuple, padding: tuple, precision: Any
) -> Array:
    """Correlation of input and cotangent: channels become the batch, the batch becomes the
    channels.
    """
    images = lax.optimization_barrier(lhs.transpose(3, 1, 2, 0))
    kernel = lax.optimization_barrier(cotangent.transpose(1, 2, 0, 3))
    pads = []
    for axis in range(2):
        low, stride = padding[axis][0], strides[axis]
        reach = (cotangent.shape[1 + axis] - 1) * stride + taps[axis]
        pads.append((low, reach - lhs.shape[1 + axis] - low))
    gradient = _canonical(images, kernel, (1, 1), tuple(pads), (1, 1), strides, precision)
    return lax.optimization_barrier(gradient).transpose(1, 2, 0, 3)


def _weight_gradient_call(*static):
    """`_weight_gradient`, batched as a loop over members: each has a gradient of its own."""

    @jax.custom_batching.custom_vmap
    def call(lhs: Array, cotangent: Array) -> Array:
        return _weight_gradient(lhs, cotangent, *static)

    @call.def_vmap
    def rule(size, batched, lhs, cotangent):
        operands = [
            operand if is_batched else jnp.broadcast_to(operand, (size, *operand.shape))
            for operand, is_batched in zip((lhs, cotangent), batched, strict=True)
        ]
        return lax.map(lambda pair: call(*pair), tuple(operands)), True

    return call


__all__ = [
    "Implementation",
    "conv_general_dilated",
    "convolution",
    "uses_fast_forms",
    "uses_products",
]
