"""Flax NNX modules as white boxes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

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


def from_nnx(
    model: Any,
    input_shape: tuple[int, int, int],
    *,
    preprocessing: Preprocessing | None = None,
    gives: Literal["logits", "probabilities"] = "logits",
    layers: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
) -> AdaptedClassifier:
    """A Flax NNX module as a white box, in evaluation mode; the module itself stays as it is.

    Layers are the modules that own parameters, by path (``blocks/0/conv``). Those that run inside
    `flax.nnx.jit`, `flax.nnx.scan` and such within the module cannot be followed.

    Args:
      model: a `flax.nnx.Module`, called as ``model(x)`` with x (B, H, W, C).
      input_shape: (H, W, C) of one image in pixel space.
      preprocessing: from pixels to what the module takes.
      gives, layers, tolerance: see `dfke_jax.nn.adapters.adapted`.

    Raises:
      InputError: answers that differ from the module's, or are not (B, K).
    """
    from flax import nnx

    graph, state = nnx.split(model)
    # A merged copy has keys and counters of its own: the caller's module is not touched.
    frozen = nnx.merge(graph, state)
    frozen.eval()
    definition, state = nnx.split(frozen)
    norms = sum(isinstance(layer, nnx.BatchNorm) for layer in _layers(frozen).values())
    original = lambda x: frozen(jnp.asarray(x))
    return adapted(
        _Forward(definition), state, original, input_shape, name=type(model).__name__,
        preprocessing=preprocessing, gives=gives, layers=layers, tolerance=tolerance, norms=norms,
    )  # fmt: skip


def _layers(model: Any) -> dict[str, Any]:
    """The modules that own variables, by path."""
    from flax import nnx

    found = {}
    for path, module in nnx.iter_modules(model):
        if any(isinstance(value, nnx.Param | nnx.BatchStat) for value in vars(module).values()):
            found["/".join(map(str, path))] = module
    return found


@dataclasses.dataclass(frozen=True)
class _Forward:
    definition: Any

    def __call__(self, variables: PyTree, inputs: Array) -> Traced:
        from flax import nnx

        model = nnx.merge(self.definition, variables)
        layers: dict[str, Array] = {}
        normalised: list[Normalised] = []
        last: list[Dense] = []

        def seen(name: str, layer: Any, arguments: tuple, returned: Any) -> None:
            if not arguments or not isinstance(returned, jax.Array):
                return
            layers[name if name not in layers else f"{name}#{len(layers)}"] = returned
            x = arguments[0]
            if isinstance(layer, nnx.BatchNorm):
                entered = jnp.moveaxis(x, layer.axis, -1)
                normalised.append(Normalised(entered, layer.mean[...], layer.var[...]))
            elif isinstance(layer, nnx.Linear) and x.ndim == 2:
                bias = 0.0 if layer.bias is None else layer.bias[...]
                last[:] = [Dense(x, layer.kernel[...], bias)]

        with calls_seen(_layers(model), seen):
            answers = model(inputs)
        return Traced(jnp.asarray(answers), layers, tuple(normalised), last[0] if last else None)


__all__ = ["from_nnx"]
