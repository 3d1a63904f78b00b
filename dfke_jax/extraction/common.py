"""What the attacks that make their own queries share: settings, the players' states, and what is
learned from answers.
"""

import dataclasses
from typing import Any, Generic, Literal, Self, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.generators import DFMEGenerator, Generator
from dfke_jax.nn.losses import cross_entropy, logit_l1, soft_cross_entropy
from dfke_jax.nn.players import OPTIMISERS, SCHEDULES, Learner, Maker, scheduled
from dfke_jax.nn.training import Training, trained
from dfke_jax.oracle.reveal import (
    Reveal,
    answered_labels,
    answered_logits,
    answered_probabilities,
    check_classes,
)
from dfke_jax.synthesis.replay import Replay, empty_replay, recall, remember

LossName = Literal["auto", "l1", "kl", "cross_entropy"]
LOSSES = ("auto", "l1", "kl", "cross_entropy")


@dataclasses.dataclass(frozen=True)
class GenerativeSettings:
    """What every attack with a generator must decide.

    Attributes:
      steps: iterations that the learning-rate schedules span; see `with_budget`. Constant rates
        need none.
      batch_size: B.
      clone_batches: n_S, batches of B fresh images on which the clone takes one step each, per
        iteration.
      latent, width: of the generator.
      loss: of the clone: ``l1`` between its logits and the mean-zero logits recovered from the
        answer; ``kl`` from the answered probabilities; ``cross_entropy`` on the answered label;
        ``auto`` is l1, or cross-entropy for labels.
      clone_optimizer, clone_rate: ``sgd`` (with `momentum` and `weight_decay`) or ``adam`` (without
        them).
      generator_optimizer, generator_rate: the same; a rate of 0 leaves the generator as it was
        drawn (a control).
      schedule: of both rates: ``multistep`` multiplies by `drop_factor` at the fractions `drops` of
        the steps, ``cosine`` falls to zero, ``constant``.
      replay_batches: updates of the clone on old answers per iteration; learning them again costs
        no question.
      replay_capacity: rows that are kept for it.
      post_transform: the generator's tanh is what the network itself sees, behind the normalisation
        of its preprocessing, and not a picture: rows are mean + std·tanh(x̃). Released code of
        several attacks does this; it presumes that the victim's normalisation is known and explores
        a part of the box. Only to compare with figures obtained so.
      unroll: the clone's updates of an iteration are written out one after another in the program
        instead of in a loop: the same results, longer to compile.

    Raises:
      InputError, UnknownNameError: for values that mean nothing.
    """

    steps: int = 0
    batch_size: int = 256
    clone_batches: int = 5
    latent: int = 256
    width: int = 64
    loss: LossName = "auto"
    clone_optimizer: str = "sgd"
    clone_rate: float = 0.1
    generator_optimizer: str = "adam"
    generator_rate: float = 5e-4
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "multistep"
    drops: tuple[float, ...] = (0.1, 0.3, 0.5)
    drop_factor: float = 0.3
    replay_batches: int = 0
    replay_capacity: int = 100_000
    post_transform: bool = False
    unroll: bool = False

    def __post_init__(self):
        for name in ("batch_size", "clone_batches", "latent", "width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("clone_rate", "drop_factor"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        if self.generator_rate < 0 or self.replay_batches < 0:
            raise InputError(
                "generator_rate and replay_batches must not be negative, got "
                f"{self.generator_rate}, {self.replay_batches}"
            )
        if self.replay_batches and self.replay_capacity < self.batch_size * (
            self.clone_batches + 1
        ):
            raise InputError(
                "replay_capacity must hold one iteration, "
                f"{self.batch_size * (self.clone_batches + 1)} rows, got {self.replay_capacity}"
            )
        if self.steps < 0 or self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise InputError(
                "steps and weight_decay must not be negative and momentum must lie in [0, 1), got "
                f"{self.steps}, {self.weight_decay}, {self.momentum}"
            )
        if list(self.drops) != sorted(self.drops) or not all(0 < drop < 1 for drop in self.drops):
            raise InputError(
                f"drops must be increasing fractions of the steps in (0, 1), got {self.drops}"
            )
        for what, name, known in (
            ("loss", self.loss, LOSSES),
            ("schedule", self.schedule, SCHEDULES),
            ("optimiser", self.clone_optimizer, OPTIMISERS),
            ("optimiser", self.generator_optimizer, OPTIMISERS),
        ):
            if name not in known:
                raise UnknownNameError(what, name, known)

    @property
    def rows_per_step(self) -> int:
        """Rows that one iteration asks; what the budget is divided by."""
        return self.batch_size * self.clone_batches

    @property
    def extra_clone_updates(self) -> int:
        """Updates of the clone beside those on fresh batches."""
        return self.replay_batches

    def with_budget(self, budget: int) -> Self:
        """The same settings with `steps` for a number of rows (see `steps_for`)."""
        return dataclasses.replace(self, steps=steps_for(budget, self.rows_per_step))


SMALL: dict[str, Any] = {
    "batch_size": 32,
    "latent": 64,
    "width": 16,
    "clone_optimizer": "adam",
    "clone_rate": 1e-3,
    "generator_rate": 1e-3,
    "schedule": "cosine",
    "replay_batches": 20,
    "replay_capacity": 50_000,
}
"""Settings for LeNets on 28×28 grey images and 10,000 to 100,000 rows: small batches, and every
answer learnt from many times. Chosen for size, not tuned; without the replay so few rows teach a
clone next to nothing.
"""


def steps_for(budget: int, rows_per_step: int) -> int:
    """How many whole iterations a budget of rows pays for.

    Raises:
      InputError: for a budget below one iteration.
    """
    if budget < rows_per_step:
        raise InputError(
            f"a budget of {budget} rows does not pay for one iteration, which asks "
            f"{rows_per_step}; raise the budget or lower the batch size"
        )
    return budget // rows_per_step


def resolved_loss(name: LossName, reveal: Reveal) -> str:
    """The loss that ``auto`` stands for.

    Raises:
      InputError: for a loss on logits or probabilities where only labels are answered.
    """
    if name == "auto":
        return "cross_entropy" if reveal.kind == "label" else "l1"
    if reveal.kind == "label" and name == "l1":
        raise InputError(
            "an l1 loss needs logits, which cannot be recovered from labels; use 'cross_entropy'"
        )
    return name


GenerativeSettingsT = TypeVar("GenerativeSettingsT", bound=GenerativeSettings)


@record
class GenerativeAttack(Generic[GenerativeSettingsT]):
    """Networks without their parameters, settings, and what is answered: all of an attack that
    stays the same.

    An attack is a subclass with ``init``, ``ask`` and ``tell`` (see `dfke_jax.core.as_attack`).

    Attributes:
      module, preprocessing, input_shape: of the clone. generator: the module. settings: of the
        attack. reveal: what the oracle answers. num_classes: K.
    """

    module: nn.Module = static_field()
    preprocessing: Preprocessing = static_field()
    input_shape: tuple[int, int, int] = static_field()
    generator: Generator = static_field()
    settings: GenerativeSettingsT = static_field()
    reveal: Reveal = static_field()
    num_classes: int = static_field()

    @classmethod
    def between(
        cls,
        clone: Classifier,
        settings: GenerativeSettingsT,
        reveal: Reveal,
        num_classes: int | None = None,
        generator: Generator | None = None,
        **more: Any,
    ) -> Self:
        """The attack that learns a clone, checked.

        Args:
          clone: gives module and preprocessing. num_classes: of the victim, to be checked.
          generator: DFME's with the settings' width and latents by default. **more: fields of a
            subclass.

        Raises:
          InputError: the clone has another number of classes than the victim, the generator makes
            other images than the clone takes, the loss does not fit the answers, rows behind the
            normalisation leave the box.
        """
        classes = clone.num_classes
        if num_classes is not None and num_classes != classes:
            raise InputError(
                f"the victim answers {num_classes} classes and the clone has {classes}"
            )
        if generator is None:
            generator = DFMEGenerator(clone.input_shape, settings.width, settings.latent)
        if tuple(generator.shape) != tuple(clone.input_shape):
            raise InputError(
                f"the generator makes {generator.shape} images and the clone takes "
                f"{clone.input_shape}"
            )
        resolved_loss(settings.loss, reveal)
        attack = cls(
            module=clone.module,
            preprocessing=clone.preprocessing,
            input_shape=clone.input_shape,
            generator=generator,
            settings=settings,
            reveal=reveal,
            num_classes=classes,
            **more,
        )
        if settings.post_transform:
            low, high = clone.preprocessing.box
            # one number of either stands for all channels
            for mean, std in np.broadcast(clone.preprocessing.mean, clone.preprocessing.std):
                if mean - std < low - 1e-6 or mean + std > high + 1e-6:
                    raise InputError(
                        f"post_transform asks rows mean ± std = {mean} ± {std}, which leave "
                        f"the box [{low}, {high}]; use post_transform=False"
                    )
        _ = attack.learner, attack.maker  # schedules over no steps are refused here
        return attack

    @property
    def loss_name(self) -> str:
        """The loss of the clone, with ``auto`` resolved."""
        return resolved_loss(self.settings.loss, self.reveal)

    @property
    def clone_updates(self) -> int:
        """Updates of the clone per iteration, which its schedule must know."""
        return self.settings.clone_batches + self.settings.extra_clone_updates

    @property
    def learner(self) -> Learner:
        """The clone."""
        s = self.settings
        rule = self._scheduled(s.clone_optimizer, s.clone_rate, s.steps * self.clone_updates)
        return Learner(self.module, self.preprocessing, self.input_shape, rule)

    @property
    def maker(self) -> Maker:
        """The generator."""
        s = self.settings
        rule = self._scheduled(s.generator_optimizer, s.generator_rate, s.steps)
        return Maker(
            self.generator,
            self.preprocessing,
            rule,
            "normalised_tanh" if s.post_transform else "box",
        )

    def _scheduled(self, name: str, rate: float, steps: int) -> optax.GradientTransformation:
        s = self.settings
        return scheduled(
            name, rate, steps, s.schedule, s.drops, s.drop_factor, s.momentum, s.weight_decay
        )

    def clone(self, variables: PyTree) -> Classifier:
        """The classifier with these variables; calling it is evaluation mode."""
        return self.learner.classifier(variables)

    def targets(self, answers: PyTree) -> Array:
        """What the clone learns from answers: (B, K) logits or probabilities, or (B,) labels."""
        check_classes(answers, self.reveal, self.num_classes)
        if self.loss_name == "l1":
            return answered_logits(answers, self.reveal)
        if self.loss_name == "kl":
            return answered_probabilities(answers, self.reveal, self.num_classes)
        return answered_labels(answers, self.reveal)

    def loss(self, logits: Array, targets: Array) -> Array:
        """(B,): distance of the clone's logits from `targets`."""
        if self.loss_name == "l1":
            return logit_l1(logits, targets)
        if self.loss_name == "kl":
            entropy = -jnp.sum(jax.scipy.special.xlogy(targets, targets), -1)
            return soft_cross_entropy(logits, targets) - entropy
        return cross_entropy(logits, targets)

    def learn(
        self, key: Key, clone: Training, rows: Array, targets: Array
    ) -> tuple[Training, Array]:
        """The clone's updates on n batches one after another, rows (n, B, ...), targets (n, B,
        ...); and the mean loss.
        """
        loss = lambda seen, targets: self.loss(seen.logits, targets)
        return self.learner.learn_all(key, clone, rows, targets, loss, unroll=self.settings.unroll)

    def new_replay(self) -> Replay | None:
        """An empty ring for what the clone learns from, or None without replay."""
        if not self.settings.replay_batches:
            return None
        kept = None if self.loss_name == "cross_entropy" else self.num_classes
        return empty_replay(self.settings.replay_capacity, self.input_shape, kept)

    def replay_steps(
        self, key: Key, clone: Training, replay: Replay | None, rows: Array, targets: Array
    ) -> tuple[Training, Replay | None, Metrics]:
        """Remembers rows and lets the clone learn from old ones; does nothing without replay."""
        if replay is None:
            return clone, None, {}
        box, settings = self.preprocessing.box, self.settings
        choose_key, learn_key = jax.random.split(key)
        replay = remember(replay, rows, targets, box)
        again = recall(choose_key, replay, (settings.replay_batches, settings.batch_size), box)
        clone, loss = self.learn(learn_key, clone, *again)
        return clone, replay, {"replay_loss": loss}


def batches(tree: PyTree, count: int, size: int, start: int = 0) -> PyTree:
    """Rows start, ..., start + count·size − 1 of every leaf as (count, size, ...)."""
    return jax.tree.map(
        lambda leaf: leaf[start : start + count * size].reshape(count, size, *leaf.shape[1:]), tree
    )


def clone_of(classifier: Classifier, state: PyTree) -> Classifier:
    """The clone that an attack's state holds (one with a field ``clone``).

    Args:
      classifier: as given to the attack. state: of the attack.
    """
    return trained(classifier, state.clone)


__all__ = [
    "SMALL",
    "GenerativeAttack",
    "GenerativeSettings",
    "GenerativeSettingsT",
    "batches",
    "clone_of",
    "resolved_loss",
    "steps_for",
]
