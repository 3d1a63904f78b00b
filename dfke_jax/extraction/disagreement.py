"""Generators that seek disagreement among clones, for which the victim need not be asked: Dual
Students and DisGUIDE.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Attack, as_attack
from dfke_jax.core.records import record
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.extraction.common import SMALL, GenerativeAttack, GenerativeSettings, batches
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.generators import draw_latents
from dfke_jax.nn.players import descend
from dfke_jax.nn.training import Training, trained
from dfke_jax.oracle.reveal import Reveal
from dfke_jax.synthesis.replay import Replay, recall, remember

OBJECTIVES = ("std", "l1")


@dataclasses.dataclass(frozen=True)
class DisagreementSettings(GenerativeSettings):
    """How an attack with several clones runs. The defaults are DisGUIDE's for CIFAR-10.

    Attributes:
      clones: M.
      objective: ``std``, the standard deviation over clones (of M − 1 degrees of freedom) of every
        class's probability, mean over classes; ``l1``, the mean over classes and pairs of clones of
        the difference of their logits.
      diversity: λ of Σ_k ᾱ_k log ᾱ_k, with ᾱ the mean probability over batch and clones (0.04 for
        CIFAR-100).
      replay_batches: updates of every clone on old answers per iteration.
      replay_capacity: rows that are kept.
      grey_every: every so many-th row that is asked loses its colours (the mean of its channels
        takes their place); 0 for none. Grey images stay as they are.
    """

    clone_batches: int = 1
    clone_rate: float = 0.03
    generator_rate: float = 1e-4
    drops: tuple[float, ...] = (0.4, 0.8)
    clones: int = 2
    objective: Literal["std", "l1"] = "std"
    diversity: float = 0.2
    replay_batches: int = 3
    replay_capacity: int = 1_000_000
    grey_every: int = 8

    def __post_init__(self):
        super().__post_init__()
        if self.clones < 2:
            raise InputError(f"clones disagree when there are at least two, got {self.clones}")
        if self.objective not in OBJECTIVES:
            raise UnknownNameError("objective", self.objective, OBJECTIVES)
        if min(self.diversity, self.grey_every) < 0:
            raise InputError(
                f"diversity and grey_every must not be negative, got {self.diversity} and "
                f"{self.grey_every}"
            )


DUAL_STUDENTS = DisagreementSettings(
    clone_batches=5,
    clone_rate=0.1,
    generator_rate=5e-4,
    drops=(0.1, 0.3, 0.5),
    objective="l1",
    diversity=0.0,
    replay_batches=0,
    grey_every=0,
)
"""Dual Students, with the schedule of DFME on which it builds."""

SMALL_DISGUIDE = DisagreementSettings(**SMALL, clone_batches=5)
"""DisGUIDE for LeNets on grey images; see `dfke_jax.extraction.common.SMALL`."""


class DisagreementState(NamedTuple):
    """State of the attack.

    Attributes:
      clones: variables and optimiser states of M clones, stacked on a leading axis.
      generator: the same of the generator, unstacked.
      replay: answered rows, or None without replay.
    """

    clones: Training
    generator: Training
    replay: Replay | None


def disagreement(
    clone: Classifier,
    settings: DisagreementSettings | None = None,
    reveal: Reveal | None = None,
    num_classes: int | None = None,
) -> Attack:
    """Extraction by clones that are made to disagree.

    Clones S_1, ..., S_M, equal but for their start, learn from the answers to G(z). The generator
    then takes a step with fresh latents against all of them, in evaluation mode, and without asking
    anything:

      L_G = −mean disagreement(S_1(x), ..., S_M(x)) + λ·Σ_k ᾱ_k log ᾱ_k.

    Where two clones disagree, at most one agrees with the victim. `DisagreementSettings()` is
    DisGUIDE, `DUAL_STUDENTS` the other. Any kind of answer serves, labels too. Rows: B·n_S an
    iteration.

    Args:
      clone, settings, reveal, num_classes: see `dfke_jax.extraction.dfme.dfme`.

    Returns:
      An `Attack` over `DisagreementState` with metrics ``loss`` (mean over clones and fresh
      batches), ``disagreement``, ``entropy`` (of ᾱ, in nats) and, with replay, ``replay_loss``.
      Predict with `vote`.

    Raises:
      InputError: as `GenerativeAttack.between`.

    Source: Rosenthal, Enouen, Pham and Tan, DisGUIDE, AAAI 2023; Beetham, Kardan, Mian and Shah,
      Dual Student Networks for Data-Free Model Stealing, ICLR 2023.
    Deviations: an iteration begins at the clones (see `dfme`); replayed images are rounded to 256
      levels; Dual Students' schedule is taken to be DFME's; the l1 objective takes logits for
      labels too. DisGUIDE's released code asks images made in the generator's evaluation mode
      (running statistics), where these batches are normalised by their own; it greys a row by
      copying one channel, drawn anew for every batch, over the others, where this takes their mean;
      and it greys the batch of the generator's own step as well. On grey data sets only the first
      differs.
    """
    settings = settings or DisagreementSettings()
    return as_attack(_Disagreement.between(clone, settings, reveal or Reveal(), num_classes))


def vote(classifier: Classifier, state: DisagreementState) -> Partial:
    """The clones as one model: images (B, H, W, C) -> log mean_m softmax S_m(x), (B, K), which
    serve as logits.

    Args:
      classifier: as given to the attack. state: of the attack.
    """
    return Partial(_vote, trained(classifier, state.clones))


def _vote(stack: Classifier, images: Array) -> Array:
    logs = jax.vmap(lambda clone: jax.nn.log_softmax(clone(images)))(stack)
    return jax.nn.logsumexp(logs, 0) - jnp.log(logs.shape[0])


def spread(logits: Array, objective: str) -> Array:
    """Disagreement per sample, (M, B, K) -> (B,); see `DisagreementSettings.objective`. Its
    gradient is finite.
    """
    members = logits.shape[0]
    if objective == "l1":
        pairs = [(i, j) for i in range(members) for j in range(i)]
        gaps = [logits[i] - logits[j] for i, j in pairs]
        # The derivative of jnp.abs at 0 is 1.
        sizes = [jnp.mean(gap * jax.lax.stop_gradient(jnp.sign(gap)), -1) for gap in gaps]
        return sum(sizes[1:], sizes[0]) / len(pairs)
    probabilities = jax.nn.softmax(logits)
    variance = jnp.sum(jnp.square(probabilities - probabilities.mean(0, keepdims=True)), 0) / (
        members - 1
    )
    positive = variance > 0
    return jnp.mean(jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0), -1)


def negative_entropy(probabilities: Array) -> Array:
    """Σ_k ᾱ_k log ᾱ_k of the mean ᾱ over all axes but the last; −log K where every class is equally
    frequent.
    """
    mean = jnp.mean(probabilities.reshape(-1, probabilities.shape[-1]), 0)
    return jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-12)))


@record
class _Disagreement(GenerativeAttack[DisagreementSettings]):
    def init(self, key: Key) -> DisagreementState:
        clone_key, generator_key = jax.random.split(key)
        clones = jax.vmap(self.learner.new)(jax.random.split(clone_key, self.settings.clones))
        return DisagreementState(clones, self.maker.new(generator_key), self.new_replay())

    def ask(self, key: Key, state: DisagreementState) -> tuple[DisagreementState, Array]:
        settings = self.settings
        z = draw_latents(
            jax.random.fold_in(key, 0),
            (settings.clone_batches, settings.batch_size),
            self.generator,
        )
        rows = self.maker.batches(state.generator.variables, z)
        if settings.grey_every and rows.shape[-1] > 1:
            grey = (jnp.arange(settings.batch_size) % settings.grey_every == 0).reshape(
                1, -1, 1, 1, 1
            )
            rows = jnp.where(grey, rows.mean(-1, keepdims=True), rows)
        return state, rows.reshape(-1, *self.input_shape)

    def tell(
        self, key: Key, state: DisagreementState, rows: Array, answers: PyTree
    ) -> tuple[DisagreementState, Metrics]:
        settings, box = self.settings, self.preprocessing.box
        latent_key, learn_key, choose_key, again_key = (
            jax.random.fold_in(key, i) for i in range(1, 5)
        )
        targets = self.targets(answers)
        fresh = batches((rows, targets), settings.clone_batches, settings.batch_size)
        clones, loss = self.learn_all(learn_key, state.clones, *fresh)
        metrics, replay = {"loss": loss}, state.replay
        if replay is not None:
            replay = remember(replay, rows, targets, box)
            again = recall(choose_key, replay, (settings.replay_batches, settings.batch_size), box)
            clones, metrics["replay_loss"] = self.learn_all(again_key, clones, *again)
        z = draw_latents(latent_key, (settings.batch_size,), self.generator)
        generator, found = self.generator_step(state.generator, clones.variables, z)
        return DisagreementState(clones, generator, replay), metrics | found

    def learn_all(
        self, key: Key, clones: Training, rows: Array, targets: Array
    ) -> tuple[Training, Array]:
        """`learn` by every clone, each with its own randomness; and the mean loss."""
        keys = jax.random.split(key, self.settings.clones)
        clones, losses = jax.vmap(self.learn, (0, 0, None, None))(keys, clones, rows, targets)
        return clones, jnp.mean(losses)

    def generator_step(
        self, generator: Training, clones: PyTree, z: Array
    ) -> tuple[Training, Metrics]:
        """The generator's step, away from agreement."""

        def objective(params: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
            images, statistics = self.maker.images({**generator.variables, "params": params}, z)
            logits = jax.vmap(lambda variables: self.clone(variables)(images))(clones)
            gap = jnp.mean(spread(logits, self.settings.objective))
            balance = negative_entropy(jax.nn.softmax(logits))
            loss = self.settings.diversity * balance - gap
            return loss, ({"disagreement": gap, "entropy": -balance}, statistics)

        generator, _, metrics = descend(self.maker.optimizer, generator, objective)
        return generator, metrics


__all__ = [
    "DUAL_STUDENTS",
    "SMALL_DISGUIDE",
    "DisagreementSettings",
    "DisagreementState",
    "disagreement",
    "negative_entropy",
    "spread",
    "vote",
]
