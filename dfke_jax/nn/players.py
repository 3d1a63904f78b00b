"""Networks that learn from one another: a classifier and a generator without their parameters, and
one step of each.

Both families of methods with generators stand on these: white-box methods, which see the teacher's
gradient, and black-box attacks, which see answers. A player is static and hashable; what it learns
lives in a `Training`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.mesh import constrain_samples
from dfke_jax.core.types import Array, Key, PyTree
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.generators import Generator, squash
from dfke_jax.nn.observation import Observed, observe
from dfke_jax.nn.precision import apply
from dfke_jax.nn.training import Training, descend, learn

SCHEDULES = ("multistep", "cosine", "constant")
OPTIMISERS = ("sgd", "adam")


@functools.lru_cache(maxsize=256)
def scheduled(
    name: str,
    rate: float,
    steps: int,
    schedule: str,
    drops: tuple[float, ...] = (),
    factor: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """Adam, or SGD with momentum (not Nesterov's) and decay in the gradient; the same arguments
    give the same object.

    Args:
      name: ``adam`` or ``sgd``. rate: at the beginning. steps: of this optimiser.
      schedule: ``multistep`` multiplies the rate by `factor` at the fractions `drops` of the steps,
        ``cosine`` falls to zero, ``constant``.
      momentum, weight_decay: of SGD alone.
      clip: largest norm of the whole gradient; 0 for any.

    Raises:
      InputError: for a schedule over no steps.
      UnknownNameError: for another optimiser or schedule.
    """
    for what, given, known in (("optimiser", name, OPTIMISERS), ("schedule", schedule, SCHEDULES)):
        if given not in known:
            raise UnknownNameError(what, given, known)
    if schedule != "constant" and steps < 1:
        raise InputError(
            f"a {schedule} schedule needs the number of steps it spans; use "
            "settings.with_budget(rows) of an attack, set steps, or choose schedule='constant'"
        )
    over: Any = rate
    if schedule == "cosine":
        over = optax.cosine_decay_schedule(rate, steps)
    elif schedule == "multistep":
        boundaries: dict[int, float] = {}
        for drop in drops:
            place = int(drop * steps)
            boundaries[place] = boundaries.get(place, 1.0) * factor
        over = optax.piecewise_constant_schedule(rate, boundaries)
    if name == "adam":
        rule = optax.adam(over)
    else:
        rule = optax.chain(
            optax.add_decayed_weights(weight_decay), optax.sgd(over, momentum or None)
        )
    return optax.chain(optax.clip_by_global_norm(clip), rule) if clip else rule


@dataclasses.dataclass(frozen=True)
class Learner:
    """A classifier that learns from given batches; see the module's description.

    Attributes:
      module, preprocessing, input_shape: as of `Classifier`. optimizer: see `scheduled`.
    """

    module: nn.Module
    preprocessing: Preprocessing
    input_shape: tuple[int, int, int]
    optimizer: optax.GradientTransformation

    @classmethod
    def of(cls, classifier: Classifier, optimizer: optax.GradientTransformation) -> "Learner":
        """The network of a classifier."""
        return cls(classifier.module, classifier.preprocessing, classifier.input_shape, optimizer)

    def new(self, key: Key) -> Training:
        """A network that knows nothing."""
        made = Classifier.create(self.module, key, self.input_shape, self.preprocessing).variables
        return Training(made, self.optimizer.init(made["params"]))

    def classifier(self, variables: PyTree) -> Classifier:
        """The classifier with these variables; calling it is evaluation mode."""
        return Classifier(self.module, variables, self.preprocessing, self.input_shape)

    def observe(self, variables: PyTree, images: Array, **options: Any) -> Observed:
        """`observe`, from pixels."""
        return observe(self.module, variables, self.preprocessing(images), **options)

    def learn(
        self,
        key: Key,
        training: Training,
        images: Array,
        targets: PyTree,
        loss: Callable[[Observed, Any], Array],
        *,
        activations: bool = False,
    ) -> tuple[Training, Array]:
        """One update in training mode on the mean loss of a batch; and that loss.

        Args:
          images: (B, H, W, C). targets: pytree with leading axis B. loss: (seen of the batch,
            targets) -> (B,).
          activations: whether the loss reads them.
        """
        inputs = constrain_samples(self.preprocessing(images))
        targets = jax.tree.map(constrain_samples, targets)

        mean = lambda seen, _: (jnp.mean(loss(seen, targets)), None)
        training, value, _ = learn(
            self.module, self.optimizer, training, inputs, mean, key=key, activations=activations
        )
        return training, value

    def learn_all(
        self, key: Key, training: Training, images: Array, targets: PyTree, loss: Callable, *,
        unroll: bool = False, activations: bool = False,
    ) -> tuple[Training, Array]:  # fmt: skip
        """`learn` on n batches one after another, images (n, B, H, W, C), targets (n, B, ...); and
        the mean loss.
        """

        def step(training: Training, batch: tuple) -> tuple[Training, Array]:
            i, images, targets = batch
            return self.learn(
                jax.random.fold_in(key, i), training, images, targets, loss, activations=activations
            )

        count = jnp.arange(images.shape[0])
        training, losses = jax.lax.scan(step, training, (count, images, targets), unroll=unroll)
        return training, jnp.mean(losses)


@dataclasses.dataclass(frozen=True)
class Maker:
    """A generator of images for networks with a preprocessing.

    Attributes:
      generator: the module. preprocessing: of the networks that see the images. optimizer: see
        `scheduled`.
      output: what of x̃, the generator's last layer before the tanh, is shown. ``box``: pictures,
        low + (high − low)· (tanh x̃ + 1)/2. ``normalised_tanh``: mean + std·tanh x̃, so that the
        networks' input is tanh x̃. ``normalised``: mean + std·x̃, so that it is x̃ itself; these
        leave the box.
    """

    generator: Generator
    preprocessing: Preprocessing
    optimizer: optax.GradientTransformation
    output: str = "box"

    def __post_init__(self):
        if self.output not in OUTPUTS:
            raise UnknownNameError("output of a generator", self.output, OUTPUTS)

    def new(self, key: Key) -> Training:
        """A generator that was never told anything."""
        made = self.generator.init(key, jnp.zeros((2, self.generator.latent)))
        return Training(made, self.optimizer.init(made["params"]))

    def pre_activations(self, variables: PyTree, z: Array) -> tuple[Array, PyTree]:
        """(B, Z) -> x̃ (B, H, W, C) and the updated statistics; training mode."""
        z = constrain_samples(z)
        return apply(
            self.generator,
            variables,
            z,
            train=True,
            mutable=["batch_stats"],
            method="pre_activation",
        )

    def shown(self, pre_activation: Array) -> Array:
        """x̃ -> images, in pixel space."""
        if self.output == "box":
            return squash(pre_activation, self.preprocessing.box)
        per_channel = (1, 1, 1, -1)
        mean, std = (
            jnp.asarray(values, jnp.float32).reshape(per_channel)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return mean + std * (
            pre_activation if self.output == "normalised" else jnp.tanh(pre_activation)
        )

    def images(self, variables: PyTree, z: Array) -> tuple[Array, PyTree]:
        """(B, Z) -> images (B, H, W, C) and the updated statistics; training mode."""
        x, statistics = self.pre_activations(variables, z)
        return self.shown(x), statistics

    def batches(self, variables: PyTree, z: Array) -> Array:
        """(n, B, Z) -> (n, B, H, W, C), every batch normalised by itself; statistics are not kept."""

        def batch(z: Array) -> Array:
            return self.images(variables, z)[0]

        # One batch after another stays in a CPU's cache; an accelerator is filled by all of them.
        return jax.lax.map(batch, z) if jax.default_backend() == "cpu" else jax.vmap(batch)(z)


OUTPUTS: Sequence[str] = ("box", "normalised_tanh", "normalised")

__all__ = [
    "OPTIMISERS",
    "OUTPUTS",
    "SCHEDULES",
    "Learner",
    "Maker",
    "Observed",
    "descend",
    "observe",
    "scheduled",
]
