"""Modules of Equinox."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Static
from dfke_jax.models.declared import Declared, existing
from dfke_jax.models.opened import Found
from dfke_jax.models.openers.images import PREPARED, image_shape, prepared, preprocessing
from dfke_jax.nn.adapters.equinox_module import evaluation
from dfke_jax.nn.whitebox import WhiteBox


def open(where: Any, said: Declared) -> Found:
    """A module that takes one sample, as Equinox's do, or (module, state); in inference mode,
    images CHW. A parameter ``key`` of its call gets None.

    Weights are a file of ``equinox.tree_serialise_leaves``.
    """
    said.only(*PREPARED, "weights", kind="an Equinox module")
    model, state = where if isinstance(where, tuple) else (where, None)
    name = type(model).__name__
    if said.weights is not None:
        file = existing(said.weights, "give a file of equinox.tree_serialise_leaves")
        try:
            loaded = eqx.tree_deserialise_leaves(file, where)
        except Exception as error:
            raise InputError(f"the weights of {file} are not those of {name}: {error}") from error
        model, state = loaded if isinstance(where, tuple) else (loaded, None)
    model = eqx.nn.inference_mode(model)
    shape = said.shape(getattr(model, "input_shape", None), name)
    ready = prepared(said, shape)
    arrays, rest = eqx.partition((model, state), eqx.is_array)
    leaves, structure = jax.tree.flatten(rest)
    fixed = Static((_Rest(tuple(leaves), structure), ready, tuple(evaluation(model).items())))

    def adapt(gives: Any) -> WhiteBox:
        from dfke_jax.nn.adapters import from_equinox

        layout: Any = ready.layout
        return from_equinox(
            model,
            image_shape(shape, name),
            state=state,
            layout=layout,
            preprocessing=preprocessing(said),
            gives=gives,
        )

    return Found(
        "an Equinox module", name, shape, traced=Partial(_applied, fixed, arrays), adapt=adapt
    )


class _Rest:
    """What of a module is no array; the same object is the same program."""

    def __init__(self, leaves: tuple[Any, ...], structure: Any):
        self.leaves, self.structure = leaves, structure

    def tree(self) -> Any:
        return jax.tree.unflatten(self.structure, self.leaves)


def _applied(fixed: Static, arrays: Any, rows: jax.Array) -> jax.Array:
    rest, ready, options = fixed.value
    model, state = eqx.combine(arrays, rest.tree())
    given, options = ready(rows, jnp), dict(options)
    if state is None:
        return jax.vmap(lambda sample: model(sample, **options))(given)
    return jax.vmap(lambda sample: model(sample, state, **options)[0], axis_name="batch")(given)


__all__ = ["open"]
