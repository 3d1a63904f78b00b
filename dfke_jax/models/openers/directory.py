"""Saved models: directories that `Classifier.save` wrote, and older ones that hold arrays alone."""

from pathlib import Path
from typing import Any

from dfke_jax.core.errors import InputError
from dfke_jax.models import directories
from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found
from dfke_jax.nn import saved
from dfke_jax.nn.classifier import Classifier

_TAKES = ("network", "size", "fit", "mean", "std", "module")


def open(where: Any, said: Declared) -> Found:
    """A directory, or a `Classifier` in memory; it is white-box."""
    said.only(*_TAKES, kind="a saved model")
    classifier = where if isinstance(where, Classifier) else directories.read(where, said)
    if classifier is where:
        directories.check(where, said, "the classifier")
    if models := classifier.sizes()[0]:
        raise InputError(
            f"{where if isinstance(where, str) else 'it'} is a stack of {models} models; take one "
            "of them"
        )
    name = type(classifier.module).__name__ if classifier is where else Path(str(where)).name
    own = saved.network_name(classifier.module)
    return Found(
        f"a saved model ({own})",
        name,
        classifier.input_shape,
        traced=classifier,
        box=classifier.preprocessing.box,
    )


__all__ = ["open"]
