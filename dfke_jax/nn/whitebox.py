"""What white-box methods ask of a model: a small protocol, so that a model need not be of this
package.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array
from dfke_jax.nn.classifier import Preprocessing
from dfke_jax.nn.observation import Observed

Need = Literal["logits", "features", "head", "moments", "activations"]

WORDS: Mapping[Need, str] = {
    "logits": "logits",
    "features": "the input of the last layer",
    "head": "the weights of a dense last layer",
    "moments": "statistics of what enters batch normalisation",
    "activations": "activations of hidden layers",
}
"""Each need in words, for messages and tables."""


class WhiteBox(Protocol):
    """A frozen model that methods differentiate through; a pytree, so that it travels as an
    argument.

    `Classifier` is one, and so is what `dfke_jax.nn.adapters` makes of other libraries' models.
    """

    @property
    def preprocessing(self) -> Preprocessing:
        """From pixels to the network's input; images live in its box."""
        ...

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image in pixel space."""
        ...

    @property
    def num_classes(self) -> int:
        """K."""
        ...

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def head_kernel(self) -> Array:
        """Weights (D, K) of the last layer."""
        ...

    def lacks(self, need: Need) -> str:
        """Why the model does not show this, in words; empty if it does. Nothing is computed."""
        ...

    def __call__(self, images: Array) -> Array:
        """(B, H, W, C) in the box -> logits (B, K), float32."""
        ...

    def observe(
        self, images: Array, *, activations: bool = False, moments: bool = False
    ) -> Observed:
        """Logits and what else is asked for, in one pass with running statistics."""
        ...

    def activations(self, images: Array) -> dict[str, Array]:
        """Hidden layers by name, ``features`` (B, D) and ``logits`` among them."""
        ...

    def check_layers(self, names: Sequence[str]) -> None:
        """Raises `UnknownNameError` unless all of these layers are shown."""
        ...

    def predict(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """Logits (N, K) of any number of images, on the host."""
        ...


def check_shows(
    model: WhiteBox, method: str, needs: Iterable[Need], known: Mapping[str, Iterable[Need]]
) -> None:
    """Raises `InputError` where a model lacks what a method needs; the message lists methods that
    do work.

    Args:
      method: how the message calls it. needs: what it reads of the model.
      known: method -> needs, among which those that work are looked for.
    """
    for need in needs:
        if reason := model.lacks(need):
            able = [name for name, wanted in known.items() if not any(map(model.lacks, wanted))]
            raise InputError(
                f"{method} needs {WORDS[need]}, and {model.name} shows none: {reason}; "
                f"methods that work with it: {', '.join(able) or 'none'}"
            )


__all__ = ["WORDS", "Need", "WhiteBox", "check_shows"]
