"""Calls of layers that are Python objects, seen from outside while a model is traced."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_lock = threading.RLock()

Seen = Callable[[str, Any, tuple, Any], None]
"""(name, layer, positional arguments of the call, what it returned) -> nothing."""


@contextmanager
def calls_seen(layers: Mapping[str, Any], seen: Seen) -> Iterator[None]:
    """While it is open, every outermost call of one of these objects is told to `seen`.

    A call of an object goes through its class, so the classes' ``__call__`` is exchanged meanwhile;
    other objects of these classes, also in other threads, behave as ever.

    Args:
      layers: name -> object, told apart by identity.
    """
    names = {id(layer): name for name, layer in layers.items()}
    inside: set[int] = set()

    def exchanged(kind: type) -> Callable:
        plain = kind.__call__

        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            here = id(self)
            if here not in names or here in inside:
                return plain(self, *arguments, **options)
            inside.add(here)
            try:
                returned = plain(self, *arguments, **options)
            finally:
                inside.discard(here)
            seen(names[here], self, arguments, returned)
            return returned

        return call

    kinds = {type(layer) for layer in layers.values()}
    with _lock:
        before = {kind: kind.__dict__.get("__call__") for kind in kinds}
        calls = {kind: exchanged(kind) for kind in kinds}
        try:
            for kind, call in calls.items():
                type.__setattr__(kind, "__call__", call)
            yield
        finally:
            for kind, old in before.items():
                if old is None:
                    type.__delattr__(kind, "__call__")
                else:
                    type.__setattr__(kind, "__call__", old)


__all__ = ["calls_seen"]
