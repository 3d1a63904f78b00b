"""One door for models of every kind."""

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

from dfke_jax.core.errors import CheckpointError, InputError
from dfke_jax.models.declared import Declared, existing
from dfke_jax.models.directories import read
from dfke_jax.models.opened import OpenedModel, opened
from dfke_jax.models.table import OPENERS
from dfke_jax.nn.classifier import Classifier


def open_model(where: Any, said: Declared | None = None, /, **declared: Any) -> OpenedModel:
    """Opens a model of any kind, asks it two rows, and says what it is.

    Args:
      where: a path, an address, ``FILE.py:NAME``, ``digits``, or a model in memory; see `OPENERS`.
      said: what is said of it; or
      **declared: the fields of `Declared`: input_shape, num_classes, gives, mean, std, layout, ...

    Returns:
      An `OpenedModel`: its ``victim`` is what attacks and tests take, its ``classifier`` what
      white-box methods take, its ``oracle()`` what stands in ``against``.

    Raises:
      InputError: it is of no known kind, its library is not installed, it cannot be read, does not
        say enough, answers NaN or nothing that a classifier answers, or is not what is declared.
      CheckpointError: for a directory without a model, or a damaged one.
      EndpointError: for an endpoint that cannot be reached.
    """
    if said is not None and declared:
        raise InputError("declare either by a Declared or by names, not by both")
    said = said or Declared(**declared)
    where = os.fspath(where) if isinstance(where, os.PathLike) else where
    opener = next((opener for opener in OPENERS if opener.recognises(where)), None)
    if opener is None:
        if isinstance(where, str):
            if not Path(where).expanduser().exists():
                raise CheckpointError(f"there is no model at {where}")
            raise InputError(f"{where} is no model of a known kind; known are {kinds()}")
        raise InputError(
            f"a {type(where).__name__} is no model of a known kind; known are {kinds()}"
        )
    written = isinstance(where, str)  # a model in memory has its library with it
    if written and opener.file is not None:  # before a library is asked for
        existing(where, opener.file)
    if written and opener.needs is not None and importlib.util.find_spec(opener.needs[0]) is None:
        library, extra = opener.needs
        raise InputError(
            f'{where} needs {library}: `pip install -e ".[{extra}]"` in a clone of the repository'
        )
    found = importlib.import_module(opener.module).open(where, said)
    if isinstance(found, OpenedModel):  # by another opener
        return found
    try:
        return opened(found, said)
    except BaseException:
        if found.close is not None:
            found.close()
        raise


def load(path: str | os.PathLike, **declared: Any) -> Classifier:
    """A saved model, whole, from a fresh process: what `Classifier.save` wrote.

    Args:
      path: its directory.
      **declared: fields of `Declared` that it must agree with; of a directory that holds arrays
        alone, network, num_classes, input_shape and fit must be declared, and size, mean, std and
        box as far as they are not those of `Preprocessing`. `module` of a network of one's own
        class.

    Raises:
      CheckpointError: there is none, it is damaged, or it holds arrays alone and not all is
        declared.
      InputError: it is something else than is declared.
    """
    return read(os.fspath(path), Declared(**declared))


def kinds() -> str:
    """What can be opened, in words."""
    return "; ".join(
        f"{opener.takes} ({opener.kind})" for opener in OPENERS if opener.takes != "refused"
    )


__all__ = ["kinds", "load", "open_model"]
