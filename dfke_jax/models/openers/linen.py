"""Linen modules of one's own, with weights in a safetensors file."""

import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Static
from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found
from dfke_jax.models.openers.images import fitted, flat_weights, image_shape
from dfke_jax.nn.adapters import from_linen
from dfke_jax.nn.adapters.linen_module import EVALUATION
from dfke_jax.nn.classifier import Preprocessing
from dfke_jax.nn.whitebox import WhiteBox

_TAKES = ("weights", "size", "fit", "mean", "std")
KEPT = ("params", "batch_stats")
"""Collections of variables that belong to the function."""


def open(where: nn.Module, said: Declared) -> Found:
    """A Linen module and its variables by name (``params/Dense_0/kernel``), as `dfke export` writes
    them.

    It is called as in evaluation: ``train=False`` and such, where it has these arguments.

    Raises:
      InputError: there are no weights, or they are not the module's.
    """
    said.only(*_TAKES, kind="a Linen module")
    name = type(where).__name__
    if said.weights is None:
        raise InputError(
            f"{name} is a network without variables; declare weights=FILE.safetensors, or open a "
            "Classifier"
        )
    shape, default = said.shape(None, name), Preprocessing()
    images = len(shape) == 3
    own = Preprocessing(
        said.size,
        said.fit or default.fit,
        said.mean or default.mean,
        said.std or default.std,
        said.box or default.box,
    )
    if not images and own != Preprocessing(box=own.box):
        raise InputError(f"{name} takes rows of {shape}; size, fit, mean and std are of images")
    known = inspect.signature(type(where).__call__).parameters
    call = {argument: value for argument, value in EVALUATION.items() if argument in known}
    rows = jnp.zeros((1, *shape), jnp.float32)
    try:
        made = jax.eval_shape(
            lambda: where.init(jax.random.key(0), own(rows) if images else rows, **call)  # type: ignore[arg-type]
        )
    except Exception as error:
        raise InputError(
            f"{name} cannot be made for rows {shape}: {type(error).__name__}: {error}"
        ) from error
    weights = flat_weights(said.weights)
    flat: dict[str, Any] = flatten_dict(
        {kind: made[kind] for kind in made if kind in KEPT}, sep="/"
    )  # type: ignore[assignment]
    fitted(weights, {key: tuple(value.shape) for key, value in flat.items()}, said.weights)
    variables = unflatten_dict(
        {key: jnp.asarray(weights[key], flat[key].dtype) for key in flat}, sep="/"
    )

    def adapt(gives: Any) -> WhiteBox:
        return from_linen(
            where, variables, image_shape(shape, name), preprocessing=own, gives=gives
        )

    fixed = Static((where, own if images else None, tuple(call.items())))
    traced = Partial(_applied, fixed, variables)
    return Found("a Linen module", name, shape, traced=traced, box=own.box, adapt=adapt)


def _applied(fixed: Static, variables: Any, rows: jax.Array) -> jax.Array:
    module, preprocessing, call = fixed.value
    return module.apply(
        variables, rows if preprocessing is None else preprocessing(rows), **dict(call)
    )


__all__ = ["open"]
