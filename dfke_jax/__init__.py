"""Data-free knowledge extraction in JAX.

The sub-packages follow the flow of a run: ``core`` (methods and the loop that runs them), ``nn``
(networks), ``data``, ``synthesis`` (batch synthesis), ``oracle`` (victims), ``models`` (anybody's
models, in and out), ``distillation`` and ``extraction`` (methods), ``evaluation``, ``experiments``
(recipes), ``report``. Import what you need from them, e.g.
``from dfke_jax.synthesis import optimise_noise``.
"""

from typing import TYPE_CHECKING, Any

from dfke_jax._version import __version__

if TYPE_CHECKING:
    from dfke_jax.models import load, open_model

_DOORS = ("load", "open_model")


def __getattr__(name: str) -> Any:
    """The doors of `dfke_jax.models`, imported (and JAX with them) when they are first used."""
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dfke_jax import models

    return getattr(models, name)


__all__ = ["__version__", "load", "open_model"]
