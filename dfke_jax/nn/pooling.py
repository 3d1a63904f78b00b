"""Pooling over non-overlapping windows."""

import jax

from dfke_jax.core.types import Array
from dfke_jax.nn.conv import uses_products
from dfke_jax.nn.derivatives import reverse_only


def _windows(x: Array, size: int) -> Array:
    batch, height, width, channels = x.shape
    if height % size or width % size:
        x = x[:, : height - height % size, : width - width % size]
        height, width = x.shape[1:3]
    return x.reshape(batch, height // size, size, width // size, size, channels)


def max_pool(x: Array, size: int = 2) -> Array:
    """Maximum over non-overlapping size × size windows; odd rows and columns at the end are dropped
    (``VALID``).

    (B, H, W, C) -> (B, H // size, W // size, C). A reshape, because the gradient of the general
    operation is slow; where several elements tie for the maximum its gradient is shared among them.
    A ReLU that follows the pooling is the same function as one before it, on a quarter of the
    elements. Forward-mode derivatives need ``with convolution("lax")``, like those of `Conv`;
    without it they raise `InputError`.
    """
    windows = _windows(x, size)
    return _window_max(reverse_only(windows)) if uses_products() else windows.max((2, 4))


@jax.custom_vjp
def _window_max(windows: Array) -> Array:
    return windows.max((2, 4))


def _window_max_forward(windows: Array) -> tuple[Array, tuple[Array, Array]]:
    most = windows.max((2, 4))
    return most, (windows, most)


def _window_max_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
    windows, most = residuals
    reached = (windows == most[:, :, None, :, None]).astype(windows.dtype)
    return (reached * (cotangent / reached.sum((2, 4)))[:, :, None, :, None],)


_window_max.defvjp(_window_max_forward, _window_max_backward)


def avg_pool(x: Array, size: int = 2) -> Array:
    """Mean over non-overlapping size × size windows, as `max_pool`."""
    return _windows(x, size).mean((2, 4))


__all__ = ["avg_pool", "max_pool"]
