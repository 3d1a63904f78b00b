"""What every attack on a pool does with answers: reads them, labels what was asked, and learns all
of it.
"""

from typing import Any, ClassVar, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp

from dfke_jax.core.method import Attack, as_attack, check_arguments
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Augmentation, Key, Metrics, PyTree
from dfke_jax.extraction.pool import (
    CloneTraining,
    Learner,
    PoolAttackSettings,
    check_pool,
    label,
    learn_labelled,
    prequential,
    read_targets,
    without_temperature,
)
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.training import Training, trained
from dfke_jax.oracle.reveal import Reveal


class Spending(Protocol):
    """Settings of an attack whose steps are of one size."""

    @property
    def rows_per_step(self) -> int:
        """Queries of a step."""
        ...

    @property
    def budget(self) -> int:
        """Queries in all."""
        ...

    @property
    def clone(self) -> CloneTraining:
        """How the clone learns."""
        ...


SpendingT = TypeVar("SpendingT", bound=Spending)
PoolSettingsT = TypeVar("PoolSettingsT", bound=PoolAttackSettings)


@record
class PoolAttack(Generic[SpendingT]):
    """Read, choose, label, learn; an attack says how it chooses (``ask``) and how it learns
    (`learn`).

    States have a field ``clone``, the clone's training state.

    Attributes:
      clone: gives the network. pool: (N, H, W, C). augment: of the training's batches.
      reveal: what the oracle answers. settings: of the attack.
      hard: whether labels alone are learnt, whatever is answered.
    """

    clone: Classifier
    pool: Array
    augment: Augmentation | None = None
    reveal: Reveal = static_field()
    settings: SpendingT = static_field()
    hard: bool = static_field(default=False)

    @classmethod
    def on(
        cls,
        clone: Classifier,
        pool: Array,
        reveal: Reveal,
        settings: SpendingT,
        *,
        augment: Augmentation | None = None,
        hard: bool = False,
        images: int | None = None,
        **more: Any,
    ) -> Attack:
        """The attack on a pool, checked.

        Args:
          images: that the pool must hold; the budget by default. **more: fields of a subclass.

        Raises:
          InputError: for a pool that does not fit, a bare function as augmentation.
        """
        check_arguments(augment, "augment")
        check_pool(clone, pool, settings.budget if images is None else images)
        attack = cls(
            clone=clone,
            pool=pool,
            augment=augment,
            reveal=reveal,
            settings=without_temperature(settings, reveal, hard),
            hard=hard,
            **more,
        )
        return as_attack(attack)

    def init(self, key: Key) -> PyTree:
        """The first state."""
        raise NotImplementedError

    def ask(self, key: Key, state: PyTree) -> tuple[PyTree, Array]:
        """The images (B, H, W, C) to ask next."""
        raise NotImplementedError

    def tell(self, key: Key, state: PyTree, rows: Array, answers: PyTree) -> tuple[PyTree, Metrics]:
        """Reads the answers, labels the images with them, and learns."""
        targets = read_targets(answers, self.reveal, self.clone.num_classes, self.hard)
        metrics = prequential(self.learner(state), rows, targets) | self.report(state)
        told = self.label(key, state, rows, targets)
        metrics["asked"] = self.asked(told).astype(jnp.float32)
        return told._replace(clone=self.learn(key, state, told)), metrics

    def learner(self, state: PyTree) -> Classifier:
        """The clone as it is."""
        return trained(self.clone, state.clone)

    def report(self, state: PyTree) -> Metrics:
        """Metrics of the attack's own, of the state that chose the images."""
        return {}

    def asked(self, state: PyTree) -> Array:
        """Queries answered so far, () int32."""
        raise NotImplementedError

    def label(self, key: Key, state: PyTree, rows: Array, targets: Array) -> PyTree:
        """The state with images (B, H, W, C) and their targets (B, K) among what was answered."""
        raise NotImplementedError

    def learn(self, key: Key, before: PyTree, told: PyTree) -> Training:
        """The clone after learning.

        Args:
          before: the state that chose the images. told: the one that `label` gave.
        """
        raise NotImplementedError


@record
class ChoosingAttack(PoolAttack[PoolSettingsT]):
    """Asks images of the pool. Its states have ``labelled`` and ``chosen``, the numbers of the
    images asked last.

    Attributes:
      learning: how the clone learns everything answered; `learn_labelled` by default.
    """

    learning: Learner | None = None

    held_key: ClassVar[int] = 1
    """Which split of a step's key decides what is held out."""

    def choose(self, key: Key, state: PyTree) -> Array:
        """(q,) int32, the numbers of the images to ask next."""
        raise NotImplementedError

    def chosen(self, state: PyTree) -> Array:
        """(q,) int32, of the step in progress."""
        return state.chosen

    def ask(self, key: Key, state: PyTree) -> tuple[PyTree, Array]:
        """The chosen images, and their numbers in the state."""
        chosen = self.choose(key, state)
        return state._replace(chosen=chosen), as_float(self.pool[chosen])

    def asked(self, state: PyTree) -> Array:
        """Queries answered so far, () int32."""
        return state.labelled.asked

    def label(self, key: Key, state: PyTree, rows: Array, targets: Array) -> PyTree:
        """The state with the chosen images and their targets (B, K) among what was answered."""
        held_key = jax.random.fold_in(key, self.held_key)
        held = self.settings.held_per_step
        return state._replace(
            labelled=label(held_key, state.labelled, self.chosen(state), targets, held)
        )

    def learn_all(
        self,
        key: Key,
        told: PyTree,
        start: Training,
        due: Array | bool = True,
        steps: int | Array | None = None,
    ) -> Training:
        """The clone trained from new parameters on everything answered, where that is due."""
        return (self.learning or learn_labelled)(
            key,
            self.clone,
            self.pool,
            told.labelled,
            self.settings.clone,
            start,
            due,
            self.augment,
            steps,
        )


@record
class GrowingAttack(PoolAttack[SpendingT]):
    """Asks images that it makes. Its states have ``images``, ``targets`` and ``filled``: a table
    filled from the front.
    """

    def asked(self, state: PyTree) -> Array:
        """Queries answered so far, () int32."""
        return state.filled

    def label(self, key: Key, state: PyTree, rows: Array, targets: Array) -> PyTree:
        """The state with images (B, H, W, C) and their targets (B, K) in the table; what exceeds it
        is dropped.
        """
        count = self.settings.rows_per_step
        place = state.filled + jnp.arange(count, dtype=jnp.int32)
        return state._replace(
            images=state.images.at[place].set(rows, mode="drop"),
            targets=state.targets.at[place].set(targets, mode="drop"),
            filled=jnp.minimum(state.filled + count, self.settings.budget),
        )


__all__ = ["ChoosingAttack", "GrowingAttack", "PoolAttack"]
