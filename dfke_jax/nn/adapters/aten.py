"""The operations of PyTorch's exported programs in JAX: name -> function of arrays, in NCHW as
PyTorch has them.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfke_jax.core.types import Array

Axes = int | Sequence[int] | None
Sizes = int | Sequence[int]


def _pair(sizes: Sizes, count: int = 2) -> tuple[int, ...]:
    values = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return values * count if len(values) == 1 else values


def _conv(
    x: Array, kernel: Array, bias: Array | None = None, stride: Sizes = 1, padding: Sizes | str = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Array:  # fmt: skip
    """kernel (F, C/groups, ...) over x (B, C, ...), any number of spatial axes."""
    space = kernel.ndim - 2
    pads = (
        padding.upper()
        if isinstance(padding, str)
        else [(pad, pad) for pad in _pair(padding, space)]
    )
    letters = "DHW"[-space:]
    layout = (f"NC{letters}", f"OI{letters}", f"NC{letters}")
    y = lax.conv_general_dilated(
        x, kernel, _pair(stride, space), pads, rhs_dilation=_pair(dilation, space), dimension_numbers=layout,
        feature_group_count=groups,
    )  # fmt: skip
    return y if bias is None else y + bias.reshape(-1, *(1,) * space)


def _convolution(
    x: Array, kernel: Array, bias: Array | None, stride: Sizes, padding: Sizes, dilation: Sizes,
    transposed: bool, output_padding: Sizes, groups: int,
) -> Array:  # fmt: skip
    if transposed:
        raise NotImplementedError("transposed convolution")
    return _conv(x, kernel, bias, stride, padding, dilation, groups)


def _linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    y = x @ weight.T
    return y if bias is None else y + bias


def _addmm(bias: Array, x: Array, y: Array, *, beta: float = 1, alpha: float = 1) -> Array:
    return beta * bias + alpha * (x @ y)


def _per_channel(values: Array, x: Array) -> Array:
    return values.reshape(1, -1, *(1,) * (x.ndim - 2))


def batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array,
    var: Array,
    _momentum: float,
    epsilon: float,
) -> tuple[Array, Array, Array]:
    """(x − mean)/√(var + ε)·weight + bias, channel by channel (axis 1); and two arrays that nobody
    reads.
    """
    y = (x - _per_channel(mean, x)) * lax.rsqrt(_per_channel(var, x) + epsilon)
    y = y if weight is None else y * _per_channel(weight, x)
    return (y if bias is None else y + _per_channel(bias, x)), mean, var


def _instance_norm(
    x: Array, weight: Array | None, bias: Array | None, mean: Array, var: Array, own: bool, _momentum: float,
    epsilon: float, _fast: bool,
) -> Array:  # fmt: skip
    """Every image by its own statistics, or all by the running ones."""
    if not own:
        return batch_norm(x, weight, bias, mean, var, 0.0, epsilon)[0]
    y = _normalised(x, tuple(range(2, x.ndim)), epsilon)
    y = y if weight is None else y * _per_channel(weight, x)
    return y if bias is None else y + _per_channel(bias, x)


def _normalised(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    mean = x.mean(axes, keepdims=True)
    return (x - mean) * lax.rsqrt(jnp.square(x - mean).mean(axes, keepdims=True) + epsilon)


def _layer_norm(
    x: Array, shape: Sequence[int], weight: Array | None = None, bias: Array | None = None, epsilon: float = 1e-5,
    _fast: bool = True,
) -> Array:  # fmt: skip
    y = _normalised(x, tuple(range(x.ndim - len(shape), x.ndim)), epsilon)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _group_norm(
    x: Array, groups: int, weight: Array | None = None, bias: Array | None = None, epsilon: float = 1e-5,
    _fast: bool = True,
) -> Array:  # fmt: skip
    grouped = x.reshape(x.shape[0], groups, -1)
    y = _normalised(grouped, (2,), epsilon).reshape(x.shape)
    y = y if weight is None else y * _per_channel(weight, x)
    return y if bias is None else y + _per_channel(bias, x)


def _windows(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil: bool) -> int:
    """Numbers of padding after the last element, so that PyTorch's windows are those of XLA."""
    span = size + 2 * pad - dilation * (kernel - 1) - 1
    count = (math.ceil if ceil else math.floor)(span / stride) + 1
    if ceil and (count - 1) * stride >= size + pad:
        count -= 1  # no window may begin in the padding behind
    return max((count - 1) * stride + dilation * (kernel - 1) + 1 - size - pad, 0)


def _pool(x: Array, start: Any, function: Callable, kernel: Sizes, stride: Any, padding: Sizes, dilation: Sizes, ceil: bool) -> Array:  # fmt: skip
    kernel, padding, dilation = _pair(kernel), _pair(padding), _pair(dilation)
    stride = _pair(stride) if stride else kernel
    pads = [
        (pad, _windows(size, k, s, pad, d, ceil))
        for size, k, s, pad, d in zip(x.shape[-2:], kernel, stride, padding, dilation, strict=True)
    ]
    lead = x.ndim - 2
    ones = (1,) * lead
    return lax.reduce_window(
        x,
        start,
        function,
        (*ones, *kernel),
        (*ones, *stride),
        [(0, 0)] * lead + pads,
        None,
        (*ones, *dilation),
    )


def _max_pool2d(x: Array, kernel: Sizes, stride: Any = (), padding: Sizes = 0, dilation: Sizes = 1, ceil: bool = False) -> Array:  # fmt: skip
    return _pool(x, -jnp.inf, lax.max, kernel, stride, padding, dilation, ceil)


def _avg_pool2d(
    x: Array, kernel: Sizes, stride: Any = (), padding: Sizes = 0, ceil: bool = False, count_padding: bool = True,
    divisor: int | None = None,
) -> Array:  # fmt: skip
    total = _pool(x, 0.0, lax.add, kernel, stride, padding, 1, ceil)
    if divisor:
        return total / divisor
    counts = []
    sizes = zip(
        x.shape[-2:],
        total.shape[-2:],
        _pair(kernel),
        _pair(stride or kernel),
        _pair(padding),
        strict=True,
    )
    for size, cells, span, step, pad in sizes:
        start = np.arange(cells) * step - pad
        # padding that was asked for counts, what ceil adds does not
        end = np.minimum(start + span, size + pad)
        counts.append(
            end - start if count_padding else np.minimum(end, size) - np.maximum(start, 0)
        )
    return total / jnp.asarray(np.outer(*counts), x.dtype)


def _adaptive(x: Array, size: Sizes, function: Callable) -> Array:
    """Output cell i covers rows ⌊i·H/n⌋ to ⌈(i + 1)·H/n⌉, columns likewise."""
    for axis, wanted in zip((-2, -1), _pair(size), strict=True):
        length = x.shape[axis]
        if wanted is None or wanted == length:
            continue
        cells = [(i * length // wanted, -(-(i + 1) * length // wanted)) for i in range(wanted)]
        x = jnp.concatenate([
            function(lax.slice_in_dim(x, low, high, axis=axis), axis=axis, keepdims=True) for low, high in cells
        ], axis)  # fmt: skip
    return x


def _gelu(x: Array, *, approximate: str = "none") -> Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def _attention(
    query: Array, key: Array, value: Array, mask: Array | None = None, _dropout: float = 0.0, causal: bool = False,
    *, scale: float | None = None, enable_gqa: bool = False,
) -> Array:  # fmt: skip
    if enable_gqa:
        raise NotImplementedError("grouped-query attention")
    scores = query @ key.swapaxes(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf) if mask.dtype == bool else scores + mask
    return jax.nn.softmax(scores, -1) @ value


def _over(function: Callable) -> Callable:
    """A reduction: (x, axes, keepdim) -> array."""

    def reduce(x: Array, axes: Axes = None, keepdim: bool = False, **_: Any) -> Array:
        whole = axes is None or (not isinstance(axes, int) and not len(axes))
        chosen = None if whole else (axes if isinstance(axes, int) else tuple(axes))  # pyright: ignore[reportArgumentType]
        return function(x, axis=chosen, keepdims=keepdim)

    return reduce


def _spread(function: Callable) -> Callable:
    """Variance or deviation, divided by n − correction."""
    return lambda x, axes=None, *, correction=1, keepdim=False: _over(function(correction))(
        x, axes, keepdim
    )


def _slice(
    x: Array, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    cut = [slice(None)] * x.ndim
    cut[axis] = slice(start, None if end is None or end > x.shape[axis] else end, step)
    return x[tuple(cut)]


def _split(x: Array, sizes: Sizes, axis: int = 0) -> list[Array]:
    length = x.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - i) for i in range(0, length, sizes)]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [_slice(x, axis, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _expand(x: Array, sizes: Sequence[int], **_: Any) -> Array:
    own = (1,) * (len(sizes) - x.ndim) + x.shape
    return jnp.broadcast_to(
        x, [mine if size == -1 else size for mine, size in zip(own, sizes, strict=True)]
    )


def _squeeze(x: Array, axes: Axes = None) -> Array:
    chosen = range(x.ndim) if axes is None else ((axes,) if isinstance(axes, int) else axes)
    return jnp.squeeze(x, tuple(axis % x.ndim for axis in chosen if x.shape[axis] == 1))


def _flatten(x: Array, start: int = 0, end: int = -1) -> Array:
    start, end = start % x.ndim, end % x.ndim
    return x.reshape(*x.shape[:start], -1, *x.shape[end + 1 :])


def _pad(x: Array, pads: Sequence[int], *rest: Any) -> Array:
    """Pads come in pairs from the last axis to the first."""
    mode = rest[0] if rest and isinstance(rest[0], str) else "constant"
    numbers = [value for value in rest if not isinstance(value, str) and value is not None]
    widths = [(0, 0)] * (x.ndim - len(pads) // 2)
    widths += [tuple(pads[i : i + 2]) for i in range(len(pads) - 2, -1, -2)]
    if mode == "constant":
        return lax.pad(
            x, jnp.asarray(numbers[0] if numbers else 0, x.dtype), [(a, b, 0) for a, b in widths]
        )
    return jnp.pad(x, widths, {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode])  # pyright: ignore[reportArgumentType]


def _nearest(x: Array, size: Any, *scales: Any) -> Array:
    if size is None:
        factors = next(factor for factor in scales if factor is not None)
        steps = (factors, factors) if isinstance(factors, float) else factors
        size = [int(length * step) for length, step in zip(x.shape[-2:], steps, strict=True)]
    for axis, wanted in zip((-2, -1), size, strict=True):
        length = x.shape[axis]
        x = jnp.take(x, jnp.arange(wanted) * length // wanted, axis)
    return x


def _arithmetic(function: Callable) -> Callable:
    return lambda x, y, *, alpha=1: function(x, y if alpha == 1 else alpha * y)


def _div(x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return x / y
    return jnp.floor_divide(x, y) if rounding_mode == "floor" else jnp.trunc(x / y)


def _clamp(x: Array, low: float | None = None, high: float | None = None) -> Array:
    return jnp.clip(x, low, high)


def _same(x: Array, *_: Any, **__: Any) -> Array:
    return x


def _cast(x: Array, *_: Any, dtype: str | None = None, **__: Any) -> Array:
    return x if dtype is None else x.astype(_DTYPES[dtype])


def _full(sizes: Sequence[int], value: float, **options: Any) -> Array:
    return jnp.full(
        tuple(sizes), value, _DTYPES.get(options.get("dtype") or "float32", jnp.float32)
    )


def _arange(*bounds: float, dtype: str | None = None, **_: Any) -> Array:
    return jnp.arange(*bounds, dtype=None if dtype is None else _DTYPES[dtype])


_DTYPES = {
    "float32": jnp.float32, "float64": jnp.float32, "float16": jnp.float16, "bfloat16": jnp.bfloat16,
    "int64": jnp.int32, "int32": jnp.int32, "bool": jnp.bool_,
}  # fmt: skip
"""What PyTorch's types are here; what is wider than 32 bits becomes 32."""

_log_softmax = lambda x, axis, *_, **__: jax.nn.log_softmax(x, axis)
_softmax = lambda x, axis, *_, **__: jax.nn.softmax(x, axis)
_reshape = lambda x, sizes: x.reshape(tuple(sizes))

OPERATIONS: dict[str, Callable[..., Any]] = {
    "_native_batch_norm_legit_no_training": batch_norm,
    "_adaptive_avg_pool2d": lambda x, size: _adaptive(x, size, jnp.mean),
    "_log_softmax": _log_softmax,
    "_softmax": _softmax,
    "_to_copy": _cast,
    "_unsafe_view": _reshape,
    "abs": jnp.abs,
    "adaptive_avg_pool2d": lambda x, size: _adaptive(x, size, jnp.mean),
    "adaptive_max_pool2d": lambda x, size: (_adaptive(x, size, jnp.max), None),
    "add": _arithmetic(operator.add),
    "addmm": _addmm,
    "alias": _same,
    "amax": _over(jnp.max),
    "amin": _over(jnp.min),
    "arange": _arange,
    "avg_pool2d": _avg_pool2d,
    "bmm": jnp.matmul,
    "cat": lambda arrays, axis=0: jnp.concatenate(arrays, axis),
    "chunk": lambda x, count, axis=0: _split(x, -(-x.shape[axis] // count), axis),
    "clamp": _clamp,
    "clamp_min": lambda x, low: jnp.maximum(x, low),
    "clone": _same,
    "constant_pad_nd": _pad,
    "contiguous": _same,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "convolution": _convolution,
    "cos": jnp.cos,
    "detach": _same,
    "div": _div,
    "dropout": _same,
    "elu": lambda x, alpha=1.0, *_: jax.nn.elu(x, alpha),
    "erf": jax.scipy.special.erf,
    "exp": jnp.exp,
    "expand": _expand,
    "flatten": _flatten,
    "full": _full,
    "gelu": _gelu,
    "getitem": operator.getitem,
    "group_norm": _group_norm,
    "hardsigmoid": lambda x: jnp.clip(x / 6 + 0.5, 0, 1),
    "hardswish": lambda x: x * jnp.clip(x / 6 + 0.5, 0, 1),
    "hardtanh": lambda x, low=-1.0, high=1.0: jnp.clip(x, low, high),
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "leaky_relu": lambda x, slope=0.01: jnp.where(x >= 0, x, slope * x),
    "linear": _linear,
    "log": jnp.log,
    "log_softmax": _log_softmax,
    "matmul": jnp.matmul,
    "max_pool2d": _max_pool2d,
    "maximum": jnp.maximum,
    "mean": _over(jnp.mean),
    "minimum": jnp.minimum,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "mm": jnp.matmul,
    "mul": operator.mul,
    "native_dropout": lambda x, *_: (x, None),
    "native_group_norm": lambda x, w, b, _n, _c, _hw, groups, eps: (_group_norm(x, groups, w, b, eps), None, None),
    "native_layer_norm": lambda x, shape, w, b, eps: (_layer_norm(x, shape, w, b, eps), None, None),
    "neg": operator.neg,
    "ones": lambda sizes, **options: _full(sizes, 1, **options),
    "pad": _pad,
    "permute": lambda x, axes: x.transpose(tuple(axes)),
    "pow": operator.pow,
    "prelu": lambda x, slope: jnp.where(x >= 0, x, _per_channel(slope, x) * x),
    "reciprocal": lambda x: 1 / x,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "repeat": lambda x, counts: jnp.tile(x, tuple(counts)),
    "reshape": _reshape,
    "rsqrt": lax.rsqrt,
    "rsub": lambda x, y, alpha=1: y - alpha * x,
    "scaled_dot_product_attention": _attention,
    "select": lambda x, axis, index: lax.index_in_dim(x, index % x.shape[axis], axis, keepdims=False),
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "sin": jnp.sin,
    "slice": _slice,
    "softmax": _softmax,
    "softplus": lambda x, beta=1.0, *_: jax.nn.softplus(beta * x) / beta,
    "split": _split,
    "split_with_sizes": _split,
    "sqrt": jnp.sqrt,
    "squeeze": _squeeze,
    "stack": lambda arrays, axis=0: jnp.stack(arrays, axis),
    "std": _spread(lambda correction: lambda x, **options: jnp.std(x, ddof=correction, **options)),
    "sub": _arithmetic(operator.sub),
    "sum": _over(jnp.sum),
    "sym_size": lambda x, axis: x.shape[axis],
    "t": lambda x: x.T,
    "tanh": jnp.tanh,
    "to": _cast,
    "transpose": lambda x, a, b: x.swapaxes(a, b),
    "unbind": lambda x, axis=0: [lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])],
    "unflatten": lambda x, axis, sizes: x.reshape(*x.shape[: axis % x.ndim], *sizes, *x.shape[axis % x.ndim + 1 :]),
    "unsqueeze": lambda x, axis: jnp.expand_dims(x, axis),
    "upsample_nearest2d": _nearest,
    "var": _spread(lambda correction: lambda x, **options: jnp.var(x, ddof=correction, **options)),
    "view": _reshape,
    "where": jnp.where,
    "zeros": lambda sizes, **options: _full(sizes, 0, **options),
    "square": jnp.square,
    "_prelu_kernel": lambda x, slope: jnp.where(x >= 0, x, slope * x),
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
    "eq": operator.eq,
    "ne": operator.ne,
    # whole numbers: sizes of the batch
    "floordiv": operator.floordiv,
    "truediv": operator.truediv,
}  # fmt: skip

CHECKS = frozenset(
    {
        "_assert_tensor_metadata",
        "_assert_scalar",
        "sym_constrain_range_for_size",
        "sym_constrain_range",
    }
)
"""Operations that only check sizes; nothing depends on them."""

__all__ = ["CHECKS", "OPERATIONS", "batch_norm"]
