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
from dfke_jax.models.openers.images import fitted, flat_weights
from dfke_jax.nn.classifier import Classifier, Preprocessing

_TAKES = ("weights", "size", "fit", "mean", "std")


def open(where: nn.Module, said: Declared) -> Found:
    """A Linen module and its variables by name (``params/Dense_0/kernel``), as `dfke export` writes them.

    One that is called with ``train=`` becomes a `Classifier`; another is traced as it is.

    Raises:
      InputError: there are no weights, or they are not the module's.
    """
    said.only(*_TAKES, kind="a Linen module")
    name = type(where).__name__
    if said.weights is None:
        raise InputError(
            f"{name} is a network without variables; declare weights=FILE.safetensors, or open a Classifier"
        )
    shape = said.shape(None, name)
    default = Preprocessing()
    preprocessing = Preprocessing(
        said.size, said.fit or default.fit, said.mean or default.mean, said.std or default.std, said.box or default.box
    )
    trains = "train" in inspect.signature(type(where).__call__).parameters
    ready = preprocessing if len(shape) == 3 else (lambda rows: rows)
    rows = ready(jnp.zeros((1, *shape), jnp.float32))
    train = {"train": False} if trains else {}
    try:
        made = jax.eval_shape(lambda: where.init(jax.random.key(0), rows, **train))
    except Exception as error:
        raise InputError(f"{name} cannot be made for rows {shape}: {type(error).__name__}: {error}") from error
    kept = {kind: tree for kind, tree in made.items() if kind in ("params", "batch_stats")}
    weights = flat_weights(said.weights)
    flat: dict[str, Any] = flatten_dict(kept, sep="/")  # type: ignore[assignment]
    fitted(weights, {key: tuple(value.shape) for key, value in flat.items()}, said.weights)
    variables = unflatten_dict({key: jnp.asarray(weights[key], flat[key].dtype) for key in flat}, sep="/")
    if trains and len(shape) == 3:
        traced: Any = Classifier(where, variables, preprocessing, (shape[0], shape[1], shape[2]))
    else:
        traced = Partial(_applied, Static((where, ready)), variables)
    return Found("a Linen module", name, shape, traced=traced, box=preprocessing.box)


def _applied(fixed: Static, variables: Any, rows: jax.Array) -> jax.Array:
    module, ready = fixed.value
    return module.apply(variables, ready(rows))


__all__ = ["open"]
