"""What methods that optimise noise have in common: labels, a start, its optimisation, a batch of a
pool.
"""

from typing import ClassVar, Generic, TypedDict, TypeVar

import jax
import jax.numpy as jnp
import optax

from dfke_jax.core.method import Method
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.nn.training import optimiser
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.noise import Parametrisation, Synthesised, optimise_noise
from dfke_jax.synthesis.pool import Batch, fill_pool
from dfke_jax.synthesis.starts import SynthesisSettings
from dfke_jax.synthesis.targets import balanced_labels

S = TypeVar("S", bound=SynthesisSettings)


class Options(TypedDict, total=False):
    """Arguments of `optimise_noise` that a method may give."""

    jitter: int
    parametrisation: Parametrisation
    stop_at: Array


@record
class Synthesis(Generic[S]):
    """A method that makes images by optimising them, one batch a step; itself a `Synthesiser`.

    A method is what a sample should be (`wanted`) and how far an image is from it (`loss`);
    whatever else it does differently, it overrides. The start is drawn before anything else and
    from a key of its own, so that the control has the very images that the method begins with.

    Attributes:
      teacher: frozen. settings: of the method. count: N. batch_size: B, which divides N.
      control: whether the start images are returned as they are.
    """

    teacher: WhiteBox
    settings: S = static_field()
    count: int = static_field()
    batch_size: int = static_field()
    control: bool = static_field(default=False)

    independent: ClassVar[bool] = True
    """Whether samples leave one another alone: then they are optimised in groups that fit a cache.
    """

    optimisation_key: ClassVar[int] = 2
    """Which split of a batch's key the optimisation gets: 0 is the start's and 1 that of `wanted`.
    """

    def method(self) -> Method:
        """A `Method` over `Pool`.

        Raises:
          InputError: when the batches do not fill the pool.
        """
        return fill_pool(
            self, self.count, self.batch_size, self.teacher.input_shape, self.first_carry()
        )

    def __call__(self, key: Key, rows: Array, carry: PyTree) -> Batch:
        """The samples of these numbers."""
        keys = jax.random.split(key, 3)
        labels = self.labels(rows)
        start = self.start(keys[0])
        if self.control:
            return Batch(start, labels, carry, {})
        wanted = self.wanted(keys[1], labels, rows)
        start, state = self.resumed(start, rows, carry)
        made = self.optimise(keys[self.optimisation_key], start, wanted, state)
        return Batch(made.images, labels, self.carried(made), self.metrics(made, wanted))

    def labels(self, rows: Array) -> Array:
        """(B,) int32, the class that each sample is meant for; sample r is of class r mod K by
        default.
        """
        return balanced_labels(rows, self.teacher.num_classes)

    def start(self, key: Key) -> Array:
        """(B, H, W, C), by the settings."""
        return self.settings.draw(key, (self.batch_size, *self.teacher.input_shape))

    def wanted(self, key: Key, labels: Array, rows: Array) -> PyTree:
        """Each sample's own share of what the loss needs, leading axis B; its label by default."""
        return labels

    def loss(self, key: Key, images: Array, wanted: PyTree) -> Array:
        """(B,) of images (B, H, W, C), which may be a group of the batch."""
        raise NotImplementedError

    def objective(self, key: Key, images: Array, wanted: PyTree) -> tuple[Array, Array]:
        """The loss, and a confidence (B,) for methods that stop at one."""
        loss = self.loss(key, images, wanted)
        return loss, jnp.zeros_like(loss)

    def rule(self, key: Key) -> optax.GradientTransformation:
        """The optimiser of the pixels; `key` is that of the optimisation."""
        return optimiser("adam", self.settings.learning_rate)

    def options(self, wanted: PyTree) -> Options:
        """What else `optimise_noise` is told."""
        return {}

    def optimise(
        self, key: Key, start: Array, wanted: PyTree, optimizer_state: PyTree
    ) -> Synthesised:
        """The images that the loss is small for."""
        # only what is given as a context can be taken apart into groups
        together = lambda key, images: self.objective(key, images, wanted)
        return optimise_noise(
            key,
            self.objective if self.independent else together,
            start,
            steps=self.settings.steps,
            optimizer=self.rule(key),
            box=self.teacher.preprocessing.box,
            context=wanted if self.independent else None,
            optimizer_state=optimizer_state,
            **self.options(wanted),
        )

    def first_carry(self) -> PyTree:
        """What the first batch is handed in place of what another left."""
        return ()

    def resumed(self, start: Array, rows: Array, carry: PyTree) -> tuple[Array, PyTree]:
        """Where a batch begins, and its optimiser's state (None: a new one), given what the last
        one left.
        """
        return start, None

    def carried(self, made: Synthesised) -> PyTree:
        """What a batch leaves to the next one."""
        return ()

    def metrics(self, made: Synthesised, wanted: PyTree) -> Metrics:
        """Scalars of a batch."""
        return {"loss": jnp.mean(made.loss)}


__all__ = ["Options", "Synthesis"]
