"""Pickles, which are not read."""

from typing import Any

from dfke_jax.core.errors import InputError
from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found


def open(where: Any, said: Declared) -> Found:
    """Always refuses.

    Raises:
      InputError: with the reason and the way out.
    """
    raise InputError(
        f"{where} is a pickle, and reading one runs whatever code its maker put into it; if it is "
        "yours, read it in a function of your own (FILE.py:NAME), or save the estimator by "
        "skops.io.dump(estimator, 'FILE.skops')"
    )


__all__ = ["open"]
