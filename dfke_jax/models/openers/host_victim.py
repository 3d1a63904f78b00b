"""Victims that are in the form of an oracle already."""

from typing import Any

from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found
from dfke_jax.oracle import HostVictim


def open(where: HostVictim, said: Declared) -> Found:
    """A `HostVictim`, as it is."""
    said.only(kind="a host victim")
    ask: Any = where.predict
    return Found(
        "a host victim",
        where.name,
        said.shape(where.input_shape, where.name),
        ask=ask,
        num_classes=where.num_classes,
        gives=where.gives,
        classes=where.classes,
        batch_size=where.batch_size,
        repeatable=where.repeatable,
    )


__all__ = ["open"]
