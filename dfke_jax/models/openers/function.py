"""Plain functions of rows."""

from collections.abc import Callable
from typing import Any

from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found


def open(where: Callable[..., Any], said: Declared) -> Found:
    """``predict(rows (B, ...)) -> (B, K)`` or ``(B,)`` labels, on the host.

    Attributes ``input_shape`` and ``num_classes`` of the function, if it has any, say what it
    takes.
    """
    said.only(kind="a function")
    name = getattr(where, "__name__", type(where).__name__)
    shape = said.shape(getattr(where, "input_shape", None), name)
    classes = getattr(where, "num_classes", None)
    return Found("a function", name, shape, ask=where, num_classes=classes)


__all__ = ["open"]
