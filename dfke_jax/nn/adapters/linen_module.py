"""Flax Linen modules of anybody's as white boxes."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, PyTree
from dfke_jax.nn.adapters.adapted import (
    TOLERANCE,
    AdaptedClassifier,
    Dense,
    Normalised,
    Traced,
    adapted,
)
from dfke_jax.nn.classifier import Preprocessing

EVALUATION: Mapping[str, bool] = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
    "inference": True,
}
"""Arguments by which modules are told that they are not trained, with the value that says so."""

_COLLECTION, _MARK = "dfke_traced", "@"


def from_linen(
    module: nn.Module,
    variables: PyTree,
    input_shape: tuple[int, int, int],
    *,
    preprocessing: Preprocessing | None = None,
    call: Mapping[str, Any] | None = None,
    gives: Literal["logits", "probabilities"] = "logits",
    layers: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
) -> AdaptedClassifier:
    """A Linen module with its variables as a white box.

    Layers are the modules that own parameters, by path (``Block_0/Conv_1``), their outputs before
    any non-linearity that follows. Normalisation layers are those with ``mean`` and ``var`` among
    their ``batch_stats``: `flax.linen.BatchNorm`, and others that keep to its names. Those inside
    `flax.linen.scan` cannot be followed.

    Args:
      module: called as ``module.apply(variables, x, **call)``. variables: all of its collections.
      input_shape: (H, W, C) of one image in pixel space; the module takes (B, H, W, C).
      preprocessing: from pixels to what the module takes.
      call: keyword arguments of evaluation; those of `EVALUATION` that the module knows by default.
      gives, layers, tolerance: see `dfke_jax.nn.adapters.adapted`.

    Raises:
      InputError: no ``params``, or answers that differ from the module's, or are not (B, K).
    """
    if "params" not in variables:
        raise InputError(
            f"variables of a Linen module have 'params', these {', '.join(variables) or 'nothing'}"
        )
    options = tuple(sorted((_evaluation(module) if call is None else call).items()))
    forward = _Forward(module, options)
    original = lambda x: module.apply(variables, jnp.asarray(x), **dict(options))
    return adapted(
        forward, variables, original, input_shape, name=type(module).__name__, preprocessing=preprocessing,
        gives=gives, layers=layers, tolerance=tolerance, norms=_norms(variables.get("batch_stats", {})),
    )  # fmt: skip


def _evaluation(module: nn.Module) -> dict[str, Any]:
    known = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in EVALUATION.items() if name in known}


def _norms(tree: Any) -> int:
    if not isinstance(tree, Mapping):
        return 0
    return 1 if _keeps_statistics(tree) else sum(map(_norms, tree.values()))


def _keeps_statistics(stored: Mapping[str, Any]) -> bool:
    return all(name in stored and not isinstance(stored[name], Mapping) for name in ("mean", "var"))


@dataclasses.dataclass(frozen=True)
class _Forward:
    """The module in evaluation mode; calls are sown into a collection, as checkpointed layers let
    pass.
    """

    module: nn.Module
    options: tuple[tuple[str, Any], ...]

    def __call__(self, variables: PyTree, inputs: Array) -> Traced:
        with nn.intercept_methods(_Recorder()):
            answers, sown = self.module.apply(
                variables, inputs, **dict(self.options), mutable=[_COLLECTION]
            )  # pyright: ignore[reportGeneralTypeIssues]
        calls = sorted(_calls(sown.get(_COLLECTION) or {}), key=lambda call: call[0])
        layers: dict[str, Array] = {}
        normalised, dense = [], None
        for number, path, parts in calls:
            layers[path if path not in layers else f"{path}#{number}"] = parts["output"]
            if "mean" in parts:
                normalised.append(Normalised(parts["input"], parts["mean"], parts["var"]))
            elif "kernel" in parts:
                dense = Dense(parts["input"], parts["kernel"], parts.get("bias", 0.0))
        return Traced(jnp.asarray(answers), layers, tuple(normalised), dense)


class _Recorder:
    """Sows inputs and outputs of every layer that owns parameters or statistics, numbered by call."""

    def __init__(self):
        self.count = 0

    def __call__(self, next_: Callable, arguments: tuple, options: dict, context: Any) -> Any:
        output = next_(*arguments, **options)
        module: nn.Module = context.module
        if context.method_name != "__call__" or not arguments or not isinstance(output, jax.Array):
            return output
        own = module.variables
        params = {k: v for k, v in own.get("params", {}).items() if not isinstance(v, Mapping)}
        stored = own.get("batch_stats", {})
        keeps = _keeps_statistics(stored)
        if not isinstance(arguments[0], jax.Array) or not (params or keeps):
            return output
        parts = {"output": output}
        if keeps:
            axis = getattr(module, "axis", -1)
            if isinstance(axis, int):
                entered = jnp.moveaxis(arguments[0], axis, -1)
                parts |= {"input": entered, "mean": stored["mean"], "var": stored["var"]}
        elif arguments[0].ndim == 2 and getattr(params.get("kernel"), "ndim", 0) == 2:
            parts |= {"input": arguments[0], "kernel": params["kernel"]}
            parts |= {"bias": params["bias"]} if "bias" in params else {}
        last = lambda _, new: new
        module.sow(_COLLECTION, f"{_MARK}{self.count}", parts, reduce_fn=last, init_fn=lambda: None)  # pyright: ignore[reportArgumentType]
        self.count += 1
        return output


def _calls(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[int, str, dict[str, Array]]]:
    found = []
    for name, value in tree.items():
        if name.startswith(_MARK):
            found.append((int(name.removeprefix(_MARK)), prefix.removesuffix("/"), value))
        else:
            found.extend(_calls(value, f"{prefix}{name}/"))
    return found


__all__ = ["EVALUATION", "from_linen"]
