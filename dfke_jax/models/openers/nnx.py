"""Modules of Flax NNX."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Static
from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found
from dfke_jax.models.openers.images import (
    PREPARED,
    fitted,
    flat_weights,
    image_shape,
    prepared,
    preprocessing,
)
from dfke_jax.nn.whitebox import WhiteBox


def open(where: nnx.Module, said: Declared) -> Found:
    """A module that answers (B, K) for a batch, in evaluation mode; images are NHWC.

    Weights are a safetensors file of the module's state by path: ``layers.0.kernel``.
    """
    said.only(*PREPARED, "weights", kind="an NNX module")
    name = type(where).__name__
    where = nnx.clone(where)  # the caller's stays as it is
    where.eval()
    graph, state = nnx.split(where)
    if said.weights is not None:
        state = _filled(state, said.weights)
    shape = said.shape(getattr(where, "input_shape", None), name)
    ready = prepared(said, shape, "NHWC")

    def adapt(gives: Any) -> WhiteBox:
        from dfke_jax.nn.adapters import from_nnx

        if ready.layout != "NHWC":
            raise InputError("layout=NCHW is no layout of Flax's convolutions")
        return from_nnx(
            nnx.merge(graph, state),
            image_shape(shape, name),
            preprocessing=preprocessing(said),
            gives=gives,
        )

    traced = Partial(_applied, Static((graph, ready)), state)
    return Found("an NNX module", name, shape, traced=traced, adapt=adapt)


def _filled(state: Any, path: str) -> Any:
    """The state with the numbers of a file; keys of randomness stay as they are."""
    flat = dict(nnx.to_flat_state(state))
    named = {
        ".".join(map(str, place)): place
        for place, variable in flat.items()
        if not jnp.issubdtype(jnp.asarray(variable[...]).dtype, jax.dtypes.prng_key)
        and not isinstance(variable, nnx.RngState)
    }
    weights = flat_weights(path)
    fitted(weights, {name: tuple(flat[place][...].shape) for name, place in named.items()}, path)
    for name, place in named.items():
        flat[place] = flat[place].replace(jnp.asarray(weights[name], flat[place][...].dtype))
    return nnx.from_flat_state(flat)


def _applied(fixed: Static, state: Any, rows: jax.Array) -> jax.Array:
    graph, ready = fixed.value
    return nnx.merge(graph, state)(ready(rows, jnp))


__all__ = ["open"]
