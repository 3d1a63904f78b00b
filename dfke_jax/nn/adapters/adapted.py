"""A model of another library as a white box: one trace of its layers serves everything that methods
ask for.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import DfkeError, InputError, UnknownNameError
from dfke_jax.core.types import Array, PyTree
from dfke_jax.nn.classifier import Preprocessing, predicted
from dfke_jax.nn.observation import Moments, Observed
from dfke_jax.nn.reroute import with_fast_convolutions

TOLERANCE = 1e-4
"""Largest difference from the original on two rows, relative to its largest answer (at least 1)."""


class Normalised(NamedTuple):
    """What entered a normalisation layer (features last), and its running statistics, (C,) each."""

    entered: Array
    running_mean: Array
    running_var: Array


class Dense(NamedTuple):
    """A dense layer: what entered it (B, D), its kernel (D, F), its bias (F,) or 0."""

    entered: Array
    kernel: Array
    bias: Array | float


class Traced(NamedTuple):
    """One pass through a model, everything in the order of the calls.

    Attributes:
      answers: (B, K). layers: outputs of layers by name, maps as (B, H, W, C).
      normalised: of every normalisation layer with running statistics. dense: the last dense layer.
    """

    answers: Array
    layers: dict[str, Array]
    normalised: tuple[Normalised, ...]
    dense: Dense | None


Forward = Callable[[PyTree, Array], Traced]
"""(variables, inputs (B, H, W, C) after preprocessing) -> `Traced`; hashable, and traceable by JAX.
"""


@flax.struct.dataclass
class AdaptedClassifier:
    """A `dfke_jax.nn.whitebox.WhiteBox` of another library's model, in evaluation mode.

    Attributes:
      variables: its arrays. forward: see `Forward`. preprocessing, input_shape: as of `Classifier`.
      num_classes: K. name: for messages.
      gives: what it answers; of ``probabilities`` the logarithm are the logits.
      missing: (need, why it is not shown) of what the model does not show.
      layers: (name shown, the model's own name) of hidden layers; None for all under their own.
    """

    variables: PyTree
    forward: Forward = flax.struct.field(pytree_node=False)
    preprocessing: Preprocessing = flax.struct.field(pytree_node=False)
    input_shape: tuple[int, int, int] = flax.struct.field(pytree_node=False)
    num_classes: int = flax.struct.field(pytree_node=False)
    name: str = flax.struct.field(pytree_node=False)
    gives: Literal["logits", "probabilities"] = flax.struct.field(
        pytree_node=False, default="logits"
    )
    missing: tuple[tuple[str, str], ...] = flax.struct.field(pytree_node=False, default=())
    layers: tuple[tuple[str, str], ...] | None = flax.struct.field(pytree_node=False, default=None)

    def __call__(self, images: Array) -> Array:
        return self.logits(images)

    def logits(self, images: Array) -> Array:
        """(B, H, W, C) floats in the box, or uint8 -> (B, K), in float32."""
        return self.observe(images).logits

    def traced(self, images: Array) -> Traced:
        """One pass; `answers` are logits."""
        with jax.numpy_rank_promotion("allow"):  # whatever is set for the rest of the program
            seen = with_fast_convolutions(self.forward)(self.variables, self.preprocessing(images))
        answers = jnp.asarray(seen.answers, jnp.float32)
        if self.gives == "probabilities":
            answers = jnp.log(jnp.maximum(answers, jnp.finfo(jnp.float32).tiny))
        return seen._replace(answers=answers)

    def observe(
        self, images: Array, *, activations: bool = False, moments: bool = False
    ) -> Observed:
        """Logits and what else is asked for, in one pass; moments in the order of the layers'
        calls.

        Raises:
          InputError: for moments that the model does not show.
        """
        if moments and (why := self.lacks("moments")):
            raise InputError(f"{self.name} shows no statistics of normalisation inputs: {why}")
        seen = self.traced(images)
        found = tuple(map(_moments, seen.normalised)) if moments else ()
        return Observed(seen.answers, self._shown(seen) if activations else {}, found, {})

    def activations(self, images: Array) -> dict[str, Array]:
        """Outputs of the layers by name; ``features`` (B, D), where there are any; and ``logits``."""
        seen = self.observe(images, activations=True)
        return {**seen.activations, "logits": seen.logits}

    def features(self, images: Array) -> Array:
        """The input of the last layer, (B, D)."""
        return self.activations(images)["features"]

    @property
    def head_kernel(self) -> Array:
        """Weights (D, K) of the last layer.

        Raises:
          InputError: where the model does not show one.
        """
        if why := self.lacks("head"):
            raise InputError(f"{self.name} shows no dense last layer: {why}")
        seen = self.traced(jnp.zeros((2, *self.input_shape)))
        assert seen.dense is not None
        return jnp.asarray(seen.dense.kernel, jnp.float32)

    @property
    def has_normalisation(self) -> bool:
        """Whether statistics of normalisation inputs are shown."""
        return not self.lacks("moments")

    def lacks(self, need: str) -> str:
        """Why the model does not show what a method needs; empty if it does."""
        return dict(self.missing).get(need, "")

    def check_layers(self, names: Sequence[str]) -> None:
        """Raises `UnknownNameError` unless all of these layers are shown."""
        known = jax.eval_shape(
            self.activations, jax.ShapeDtypeStruct((2, *self.input_shape), jnp.float32)
        )
        for name in names:
            if name not in known:
                raise UnknownNameError(f"layer of {self.name}", name, known)

    def predict(self, images: Any, batch_size: int = 500) -> np.ndarray:
        """Logits (N, K) of any number of images, on the host; see `Classifier.predict`."""
        return predicted(self, images, batch_size)

    def _shown(self, seen: Traced) -> dict[str, Array]:
        own = seen.layers
        shown = (
            dict(own) if self.layers is None else {name: own[layer] for name, layer in self.layers}
        )
        if not self.lacks("features") and seen.dense is not None:
            shown["features"] = seen.dense.entered
        return shown


def _moments(layer: Normalised) -> Moments:
    x = jnp.asarray(layer.entered, jnp.float32)
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    var = jnp.mean(jnp.square(x - jnp.expand_dims(mean, axes)), axes)
    stored = (jnp.asarray(value, jnp.float32) for value in layer[1:])
    return Moments(mean, var, *stored)


def adapted(
    forward: Forward,
    variables: PyTree,
    original: Callable[[np.ndarray], Any],
    input_shape: tuple[int, int, int],
    *,
    name: str,
    preprocessing: Preprocessing | None = None,
    gives: Literal["logits", "probabilities"] = "logits",
    layers: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
    norms: int | None = None,
) -> AdaptedClassifier:
    """The model as a white box, checked against the original.

    Args:
      forward, variables: see `AdaptedClassifier`.
      original: inputs (2, H, W, C) after preprocessing -> what the library itself answers, (2, K).
      layers: name to show -> the model's own name of a hidden layer; all by default.
      tolerance: see `TOLERANCE`.
      norms: how many normalisation layers with running statistics the model has; when fewer are
        seen, statistics are not shown.

    Raises:
      InputError: a model that cannot be evaluated in JAX; answers that are not (2, K) finite
        numbers, that differ from the original's, or that are probabilities where logits are
        declared, and the other way round.
      UnknownNameError: for a layer that there is not.
    """
    height, width, channels = (int(size) for size in input_shape)
    shape = (height, width, channels)
    preprocessing = preprocessing or Preprocessing()
    low, high = preprocessing.box
    rows = low + (high - low) * np.random.default_rng(0).random((2, *shape), np.float32)
    expected = np.asarray(original(np.asarray(preprocessing(jnp.asarray(rows)))), np.float32)
    if expected.ndim != 2 or len(expected) != 2 or expected.shape[1] < 2:
        raise InputError(f"{name} must answer 2 rows with shape (2, K), got {expected.shape}")
    if not np.isfinite(expected).all():
        raise InputError(f"{name} answers NaN or infinity for random rows in [{low}, {high}]")
    likely = bool((expected >= 0).all()) and np.abs(expected.sum(1) - 1).max() < 1e-5
    if likely != (gives == "probabilities"):
        said = "probabilities" if likely else "no probabilities"
        raise InputError(
            f"{name} answers {said} where {gives} were declared; say gives={_OTHER[gives]!r}"
        )
    made = AdaptedClassifier(
        variables, forward, preprocessing, shape, expected.shape[1], name, gives
    )
    try:
        seen = jax.jit(AdaptedClassifier.traced)(made, jnp.asarray(rows))
    except DfkeError:
        raise
    except Exception as error:  # of a stranger's model, any
        line = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"{name} cannot be followed in JAX: {type(error).__name__}: {line:.300}"
        ) from error
    wanted = (
        np.log(np.maximum(expected, np.finfo(np.float32).tiny))
        if gives == "probabilities"
        else expected
    )
    apart = _apart(np.asarray(seen.answers), wanted)
    if not apart <= tolerance:
        raise InputError(
            f"{name} as a white box differs from the original by {apart:.2g} on random rows, more "
            f"than {tolerance:g}"
        )
    if layers is not None:
        for layer in layers.values():
            if layer not in seen.layers:
                raise UnknownNameError(f"layer of {name}", layer, seen.layers)
    return dataclasses.replace(
        made,
        missing=_missing(seen, wanted, tolerance, norms),
        layers=None if layers is None else tuple(sorted(layers.items())),
    )


_OTHER = {"logits": "probabilities", "probabilities": "logits"}


def _apart(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def _missing(
    seen: Traced, answers: np.ndarray, tolerance: float, norms: int | None
) -> tuple[tuple[str, str], ...]:
    """What the model does not show, and why."""
    found = {}
    if not seen.normalised:
        found["moments"] = "it has no batch normalisation with running statistics"
    elif norms is not None and len(seen.normalised) < norms:
        found["moments"] = (
            f"only {len(seen.normalised)} of its {norms} normalisation layers could be followed"
        )
    if not seen.layers:
        found["activations"] = "none of its layers could be followed"
    if seen.dense is None:
        why = "it ends in no dense layer that could be followed"
    else:
        entered, kernel = (np.asarray(value, np.float64) for value in seen.dense[:2])
        rows = entered @ kernel + np.asarray(seen.dense.bias)
        # A softmax after the layer, or a number added to every class, changes nothing of it.
        level = lambda values: values - values.mean(1, keepdims=True)
        same = rows.shape == answers.shape and _apart(level(rows), level(answers)) <= 10 * tolerance
        why = "" if same else "its answers are not the output of its last dense layer"
    if why:
        found["features"] = found["head"] = why
    return tuple(found.items())


__all__ = ["TOLERANCE", "AdaptedClassifier", "Dense", "Forward", "Normalised", "Traced", "adapted"]
