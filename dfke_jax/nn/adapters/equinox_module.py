"""Equinox modules as white boxes."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Literal

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
from dfke_jax.nn.adapters.calls import calls_seen
from dfke_jax.nn.classifier import Preprocessing


def from_equinox(
    model: Any,
    input_shape: tuple[int, int, int],
    *,
    state: Any = None,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    preprocessing: Preprocessing | None = None,
    gives: Literal["logits", "probabilities"] = "logits",
    layers: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
) -> AdaptedClassifier:
    """An Equinox module, which takes one example, as a white box of batches; in inference mode.

    Layers are the modules that own arrays, by path (``blocks/0/conv``), maps as (B, H, W, C). Those
    that run inside a transformation of the module's own (`jax.jit`, `jax.checkpoint`) cannot be
    followed.

    Args:
      model: called as ``model(x)``, or with a state as ``model(x, state)``, which returns the
        answers and a state; x is one image. A parameter ``key`` of it gets None.
      input_shape: (H, W, C) of one image in pixel space, whatever the layout.
      state: `equinox.nn.State` of modules with batch normalisation.
      layout: of the image that the module takes, ``NCHW``: (C, H, W).
      preprocessing: from pixels to what the module takes.
      gives, layers, tolerance: see `dfke_jax.nn.adapters.adapted`.

    Raises:
      InputError: answers that differ from the module's, or are not (K,) an example.
    """
    import equinox as eqx

    if layout not in ("NCHW", "NHWC"):
        raise InputError(f"layout must be 'NCHW' or 'NHWC', not {layout!r}")
    model = eqx.nn.inference_mode(model)
    options = tuple(evaluation(model).items())
    arrays, rest = eqx.partition((model, state), eqx.is_array)
    forward = _Forward(_Still(rest), layout, state is not None, options, _axis(model))

    def original(inputs: Any) -> Any:
        one = lambda x: forward.answer(model, state, x)
        return jax.vmap(one, axis_name=forward.axis)(forward.laid(jnp.asarray(inputs)))

    norms = sum(isinstance(layer, eqx.nn.BatchNorm) for layer in _layers(model).values())
    return adapted(
        forward, arrays, original, input_shape, name=type(model).__name__, preprocessing=preprocessing,
        gives=gives, layers=layers, tolerance=tolerance, norms=norms,
    )  # fmt: skip


def evaluation(model: Any) -> dict[str, None]:
    """Keyword arguments of a module in inference mode: a parameter ``key`` gets None."""
    known = inspect.signature(type(model).__call__).parameters
    return {"key": None} if "key" in known else {}


@dataclasses.dataclass(frozen=True, eq=False)
class _Still:
    """What of a model is no array, told apart by identity."""

    rest: PyTree


def _layers(model: Any) -> dict[str, Any]:
    """The modules that own arrays, by path."""
    import equinox as eqx

    found: dict[str, Any] = {}

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, eqx.Module):
            fields = {
                field.name: getattr(node, field.name, None) for field in dataclasses.fields(node)
            }
            if any(eqx.is_array(value) for value in fields.values()) or isinstance(
                node, eqx.nn.BatchNorm
            ):
                found["/".join(path)] = node
                return
            parts = fields.items()
        elif isinstance(node, list | tuple):
            parts = enumerate(node)
        elif isinstance(node, Mapping):
            parts = node.items()
        else:
            return
        for name, value in parts:
            walk(value, (*path, str(name)))

    walk(model, ())
    return found


def _axis(model: Any) -> Any:
    """The axis over which normalisation layers average; one name that all of them know."""
    import equinox as eqx

    for layer in _layers(model).values():
        if isinstance(layer, eqx.nn.BatchNorm):
            names = layer.axis_name
            return names[0] if isinstance(names, tuple | list) else names
    return "batch"


@dataclasses.dataclass(frozen=True)
class _Forward:
    still: _Still
    layout: str
    stateful: bool
    options: tuple[tuple[str, None], ...]
    axis: Any

    def laid(self, inputs: Array) -> Array:
        return jnp.moveaxis(inputs, -1, 1) if self.layout == "NCHW" else inputs

    def answer(self, model: Any, state: Any, x: Array) -> Array:
        options = dict(self.options)
        returned = model(x, state, **options) if self.stateful else model(x, **options)
        return returned[0] if self.stateful else returned

    def __call__(self, variables: PyTree, inputs: Array) -> Traced:
        import equinox as eqx

        model, state = eqx.combine(variables, self.still.rest)
        parts = _layers(model)
        fixed: dict[str, Any] = {}  # what is of no example: layers' arrays, by name

        def one(x: Array) -> tuple[Array, dict[str, tuple[Array, Array]]]:
            calls: dict[str, tuple[Array, Array]] = {}

            def seen(name: str, layer: Any, arguments: tuple, returned: Any) -> None:
                output = returned[0] if isinstance(returned, tuple) else returned
                if not arguments or not isinstance(output, jax.Array):
                    return
                shown = name if name not in calls else f"{name}#{len(calls)}"
                calls[shown] = arguments[0], output
                fixed[shown] = layer

            with calls_seen(parts, seen):
                answers = self.answer(model, state, x)
            order.extend(calls)
            return answers, calls

        order: list[str] = []
        answers, calls = jax.vmap(one, axis_name=self.axis)(self.laid(inputs))
        layers: dict[str, Array] = {}
        normalised, dense = [], None
        for name in order:  # vmap returns dictionaries sorted
            entered, output = calls[name]
            layers[name] = self._last(output)
            layer = fixed[name]
            if isinstance(layer, eqx.nn.BatchNorm):
                normalised.append(Normalised(jnp.moveaxis(entered, 1, -1), *_running(layer, state)))
            elif isinstance(layer, eqx.nn.Linear) and entered.ndim == output.ndim == 2:
                dense = Dense(entered, layer.weight.T, 0.0 if layer.bias is None else layer.bias)
        return Traced(answers, layers, tuple(normalised), dense)

    def _last(self, output: Array) -> Array:
        """Maps with channels last."""
        return jnp.moveaxis(output, 1, -1) if output.ndim == 4 and self.layout == "NCHW" else output


def _running(layer: Any, state: Any) -> tuple[Array, Array]:
    """The mean and variance that a normalisation layer divides by in inference."""
    if layer.mode == "ema":
        return state.get(layer.ema_state_index)
    count = state.get(layer.batch_counter)
    scale = jnp.where(count == 0, 1, 1 - layer.momentum**count)
    mean, var = state.get(layer.batch_state_index)
    return mean / scale, var / scale


__all__ = ["evaluation", "from_equinox"]
