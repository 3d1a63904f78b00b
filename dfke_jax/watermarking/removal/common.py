"""What every removal attack takes and returns."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.loop import run
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array, Augmentation, Key, PyTree
from dfke_jax.nn.classifier import Classifier, check_images, check_labels
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import optimiser

LOSS = Partial(cross_entropy)


class Suspect(Protocol):
    """Whatever answers images: a `Classifier`, or what an attacker has put before or around one."""

    def predict(self, images: Any, batch_size: int = 500) -> np.ndarray:
        """Logits (N, K) of images (N, H, W, C), on the host."""
        ...


@dataclasses.dataclass(frozen=True)
class Removed:
    """What an attacker has made of a marked network.

    Attributes:
      classifier: what the attacker deploys; clean accuracy is measured on it.
      for_verification: what the mark is looked for in. It is `classifier`, but for attacks that put
        a new output layer on: there the owner plugs the marked network's own output layer, which is
        private, back in.
      attack: name of the attack.
      description: one line for tables.
      settings: the numbers it was run with.
      details: what the attack found on its way (pruned units, flagged classes).
      trace: ``steps`` and the measurements of a `Watch`, each one number per look; empty without
        one.
    """

    classifier: Suspect
    for_verification: Suspect
    attack: str
    description: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    trace: dict[str, list[float]] = dataclasses.field(default_factory=dict)


class Watch(NamedTuple):
    """Looks at an attack that trains, before its first step and at equal distances until its last.

    Attributes:
      measure: `Removed` as it would be if the attack ended now -> numbers by name.
      points: how many looks follow the first.
    """

    measure: Callable[[Removed], dict[str, float]]
    points: int = 10


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How an attacker trains."""

    steps: int = 1000
    """Number of batches."""
    batch_size: int = 100
    """Rows in a batch."""
    learning_rate: float = 0.01
    """Of the optimiser, at its beginning."""
    optimizer: str = "sgd"
    """adam, adamw or sgd (Nesterov momentum)."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """Added to the gradient (SGD) or decoupled (AdamW)."""
    cosine: bool = False
    """Whether the learning rate falls to zero along a cosine; otherwise it is constant."""
    augment: Augmentation | None = None
    """Of every batch."""

    def __post_init__(self):
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0 or self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise InputError(
                "learning_rate must be positive, weight_decay not negative and momentum in [0, 1), "
                f"got {self.learning_rate}, {self.weight_decay} and {self.momentum}"
            )

    def rule(self) -> optax.GradientTransformation:
        """The optimiser; equal settings give the same object."""
        return optimiser(
            self.optimizer,
            self.learning_rate,
            self.steps if self.cosine else 0,
            self.momentum,
            self.weight_decay,
        )

    def numbers(self) -> dict[str, Any]:
        """The settings as a dictionary of numbers and names."""
        found = dataclasses.asdict(dataclasses.replace(self, augment=None))
        return found | {"augment": self.augment is not None}


FINE_TUNING = TrainingSettings()
"""Of attacks that fine-tune: SGD at the constant rate that the last epochs of training may have
had.
"""


def check_attacker(
    marked: Classifier, images: Array, labels: Array | None, num_classes: int | None = None
) -> None:
    """Checks what an attack is given before long work.

    Args:
      marked: the marked network; attacks need its parameters.
      images: (N, H, W, C), uint8 or float in the box. labels: (N,) integers in [0, K), or None
        where none are needed.
      num_classes: K, the marked network's by default.

    Raises:
      InputError: for something else than a `Classifier`, images it cannot take, or labels of
        another length, type or range.
    """
    if not isinstance(marked, Classifier):
        raise InputError(
            "removal works on a network's parameters; give a Classifier, not a "
            f"{type(marked).__name__}"
        )
    check_images(images, marked.input_shape, marked.preprocessing.box)
    if labels is not None:
        check_labels(labels, len(images), num_classes or marked.num_classes, every_class=False)


def check_fraction(fraction: float) -> None:
    """Raises `InputError` unless a fraction lies in [0, 1]."""
    if not 0 <= fraction <= 1:
        raise InputError(f"fraction must lie in [0, 1], got {fraction}")


def count_of(fraction: float, total: int) -> int:
    """⌊fraction · total⌋, with 0.29 · 100 = 29."""
    check_fraction(fraction)
    return math.floor(fraction * total + 1e-9)


def aside(key: Key, index: int) -> Key:
    """The key of something that an attack draws besides its training, which gives step t the key
    ``fold_in(key, t)``.

    ``split(key, n)[t]`` is that key too, so both would be drawn twice.
    """
    return jax.random.fold_in(key, 2**32 - 1 - index)


def carry_out(
    method: Method,
    key: Key,
    steps: int,
    read: Callable[[PyTree], Removed],
    watch: Watch | None = None,
) -> Removed:
    """Runs a method to its end and reads the outcome off its state, with a trace if somebody
    watches.

    Args:
      method, key, steps: as for `core.run`. Watching changes no number of the run. What the attack
        draws besides takes its keys from `aside`, from 1 on.
      read: state -> `Removed`. It must not keep arrays of a state that is going on; classifiers
        measured by `watch` are used within the look alone.
    """
    state = _begin(method, aside(key, 0))
    # Methods that differ in how they begin alone share the program of their steps.
    steps_alone = Method(Partial(_begun), method.step)
    if watch is None:
        return read(run(steps_alone, key, steps, state=state).state)
    if watch.points < 1:
        raise InputError(f"a watch needs at least one point, got {watch.points}")
    trace: dict[str, list[float]] = {}

    def look(step: int, state: PyTree, _: Any = None) -> None:
        for name, value in {"steps": step, **watch.measure(read(state))}.items():
            trace.setdefault(name, []).append(float(value))

    look(0, state)
    chunk = math.ceil(steps / watch.points)
    state = run(steps_alone, key, steps, chunk=chunk, state=state, callback=look).state
    return dataclasses.replace(read(state), trace=trace)


@jax.jit
def _begin(method: Method, key: Key) -> PyTree:
    return method.init(key)


def _begun(key: Key) -> PyTree:
    raise AssertionError("a run that is given its state does not begin")


__all__ = [
    "FINE_TUNING",
    "LOSS",
    "Removed",
    "Suspect",
    "TrainingSettings",
    "Watch",
    "aside",
    "carry_out",
    "check_attacker",
    "check_fraction",
    "count_of",
]
