"""Endpoints: those of this package, and others by a declared mapping."""

from dfke_jax.core.errors import EndpointError, InputError
from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found
from dfke_jax.models.openers import foreign_endpoint
from dfke_jax.oracle import RemoteVictim

_MAPPING = ("request", "encoding", "answer")


def open(where: str, said: Declared) -> Found:
    """An address. With ``request`` or ``answer`` declared it is a foreign endpoint, else one of
    `create_app`.

    Raises:
      EndpointError: it cannot be reached, or does not describe itself.
    """
    if any(getattr(said, name) for name in _MAPPING):
        return foreign_endpoint.open(where, said)
    said.only("key", kind="an endpoint that describes itself")
    try:
        remote = RemoteVictim(
            where,
            key=said.key,
            batch=said.batch_size,
            input_shape=said.input_shape,
            num_classes=said.num_classes,
        )
    except EndpointError as error:
        raise EndpointError(
            f"{error}; an endpoint of another make is asked by a declared mapping: request, "
            "encoding, answer, shape"
        ) from error
    if said.box is not None and remote.box not in (None, said.box):
        remote.close()
        raise InputError(f"{where} takes values in {remote.box}, and box={said.box} is declared")
    return Found(
        "an endpoint",
        where,
        remote.input_shape,
        remote=remote,
        box=remote.box,
        repeatable=False,
        close=remote.close,
    )


__all__ = ["open"]
