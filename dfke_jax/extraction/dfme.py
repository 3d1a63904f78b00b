"""Data-free model extraction: a generator that seeks disagreement with the clone, by differences of
the answers.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack, as_attack
from dfke_jax.core.records import record
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.extraction.common import (
    SMALL,
    GenerativeAttack,
    GenerativeSettings,
    GenerativeSettingsT,
    batches,
)
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.generators import draw_latents
from dfke_jax.nn.training import Training, updated_by
from dfke_jax.oracle.reveal import Reveal
from dfke_jax.synthesis.replay import Replay
from dfke_jax.synthesis.zeroth_order import (
    Differences,
    cache_chunk,
    estimate,
    in_chunks,
    perturbed_rows,
    precise,
)


@dataclasses.dataclass(frozen=True)
class DFMESettings(GenerativeSettings):
    """How data-free model extraction runs. The defaults are the published ones, for 32×32 colour
    images.

    Attributes:
      epsilon: step of the differences in x̃, the image before the tanh, as a whole: a pixel moves
        by about ε/√D.
      directions: m.
      orthogonal, central: see `dfke_jax.synthesis.Differences`.
      reuse: the clone also learns from the rows of the differences, which are paid for: m + 1 more
        updates an iteration, after the generator's. The first block of them enters the replay ring
        as well. Not published.
      replay_batches: not published; 0 is the published algorithm.
      chunk: rows that the clone evaluates together for the differences, to bound memory; all by
        default.

    The released scripts use a generator rate of 1e-4 (CIFAR-10) and 5e-5 (SVHN) where the paper has
    5e-4.
    """

    epsilon: float = 1e-3
    directions: int = 1
    orthogonal: bool = False
    central: bool = False
    reuse: bool = False
    chunk: int | None = None

    def __post_init__(self):
        super().__post_init__()
        _ = self.differences
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"chunk must be at least 1, got {self.chunk}")

    @property
    def differences(self) -> Differences:
        """How the generator's gradient is estimated."""
        return Differences(self.epsilon, self.directions, self.orthogonal, self.central)

    @property
    def rows_per_step(self) -> int:
        """B·(n_S + m + 1); with central differences B·(n_S + 2m)."""
        return self.batch_size * (self.clone_batches + self.differences.rows_per_sample)

    @property
    def extra_clone_updates(self) -> int:
        """Updates of the clone beside those on fresh batches."""
        return self.replay_batches + (self.differences.rows_per_sample if self.reuse else 0)


SMALL_DFME = DFMESettings(**SMALL, reuse=True)
"""For LeNets on grey images; see `dfke_jax.extraction.common.SMALL`."""


class DFMEState(NamedTuple):
    """State of the attack; both are `dfke_jax.nn.Training`.

    Attributes:
      clone: variables of the clone and its optimiser's state.
      generator: the same of the generator. Its running statistics follow the batch of the
        generator's own step.
      replay: answered rows, or None without replay.
    """

    clone: Training
    generator: Training
    replay: Replay | None = None


def dfme(
    clone: Classifier,
    settings: DFMESettings | None = None,
    reveal: Reveal | None = None,
    num_classes: int | None = None,
) -> Attack:
    """Data-free model extraction.

    min_S max_G E_z L(V(G(z)), S(G(z))) with L = (1/K) Σ_k |v_k − s_k|, where v_k = log p_k − mean_j
    log p_j is recovered from the answered probabilities. S takes n_S steps on fresh batches; G
    takes one step along the VJP through G of the forward-difference estimate of ∇_x̃ L, with x̃ the
    image before the tanh. Both V and S are evaluated at the perturbed points, S in evaluation mode.

    An iteration asks once. The n_S batches of the clone and the points of the generator's next step
    depend on the same generator, so their B·(n_S + m + 1) rows go out together. Told the answers,
    the clone takes its n_S steps, and then the generator its one, against the clone as it is by
    then. This is the published order S, ..., S, G, S, ..., S, G, ... begun at the first S; the
    published loop begins at a G, whose clone knows nothing yet.

    Rows, block by block: n_S·B for the clone, then those of `perturbed_rows` (B at x̃, then B for
    every direction).

    On an accelerator answer with ``precise(victim)``: differences of this size need full float32
    products. Endpoints that round, quantise images or add noise leave nothing of them; the metric
    ``flat`` says how many differences are exactly zero.

    Args:
      clone: gives module and preprocessing; parameters are drawn afresh.
      settings: `DFMESettings()` by default; `SMALL_DFME` for LeNets. ``settings.steps`` is needed
        by schedules.
      reveal: what the oracle answers; probabilities by default.
      num_classes: K of the victim, to be checked against the clone's.

    Returns:
      An `Attack` over `DFMEState` with metrics ``loss`` (of the clone, mean over its batches),
      ``disagreement`` (the same loss on the generator's batch, clone in evaluation mode), ``flat``
      (share of zero differences) and, with replay, ``replay_loss``.

    Raises:
      InputError: for labels alone, and as `GenerativeAttack.between`.

    Warns:
      UserWarning: for rounded answers.

    Source: Truong, Maini, Walls and Papernot, Data-Free Model Extraction, CVPR 2021, section 3.
    Deviations: the estimate is the mean over directions times D and the batch mean follows
      (released code divides once more by K·B, which Adam does not notice); rows are pictures in the
      box (`post_transform`); n_G = 1; the last batch of a run is the same, while the published loop
      picks its best epoch on test data.
    """
    return zeroth_order_attack("DFME", clone, settings or DFMESettings(), reveal, num_classes)


def zeroth_order_attack(
    name: str,
    clone: Classifier,
    settings: DFMESettings,
    reveal: Reveal | None,
    num_classes: int | None,
) -> Attack:
    """The attack by differences of answers that these settings describe.

    Args:
      name: for messages. The others: see `dfme`.

    Raises:
      InputError: as `dfme`.

    Warns:
      UserWarning: for rounded answers.
    """
    reveal = reveal or Reveal()
    check_differences(reveal, name, stacklevel=4)
    return as_attack(ZerothOrderAttack.between(clone, settings, reveal, num_classes))


def check_differences(reveal: Reveal, attack: str, stacklevel: int = 3) -> None:
    """Refuses labels, warns of rounded answers: neither has differences for small steps."""
    if reveal.kind == "label":
        raise InputError(
            f"{attack} takes differences of answers, which labels do not have; use DFMS-HL or "
            "DisGUIDE"
        )
    if not reveal.differentiable:
        warnings.warn(
            f"{attack} takes differences of answers that are rounded to {reveal.decimals} "
            "decimals: most will be zero and the generator will follow noise",
            stacklevel=stacklevel,
        )


class Draws(NamedTuple):
    """All that is random in an iteration.

    Attributes:
      clone_z: (n_S, B, Z). generator_z: (B, Z). directions, updates: keys.
    """

    clone_z: Array
    generator_z: Array
    directions: Key
    updates: Key


@record
class GeneratorAndClone(GenerativeAttack[GenerativeSettingsT]):
    """An attack whose iteration is n_S batches of a clone, and one of the generator."""

    def init(self, key: Key) -> PyTree:
        """Both players, fresh."""
        clone_key, generator_key = jax.random.split(key)
        return DFMEState(
            self.learner.new(clone_key), self.maker.new(generator_key), self.new_replay()
        )

    def draws(self, key: Key) -> Draws:
        """All that is random in an iteration, the same in ask and tell."""
        clone_key, generator_key, directions, updates = jax.random.split(key, 4)
        size = self.settings.batch_size
        return Draws(
            draw_latents(clone_key, (self.settings.clone_batches, size), self.generator),
            draw_latents(generator_key, (size,), self.generator),
            directions,
            updates,
        )


DFMESettingsT = TypeVar("DFMESettingsT", bound=DFMESettings)


@record
class ZerothOrderAttack(GeneratorAndClone[DFMESettingsT]):
    """DFME and MAZE, which differ by their settings."""

    def ask(self, key: Key, state: PyTree) -> tuple[PyTree, Array]:
        """The images of one iteration, for any state with a field ``generator``."""
        drawn = self.draws(key)
        variables = state.generator.variables
        fresh = self.maker.batches(variables, drawn.clone_z)
        x, _ = self.maker.pre_activations(variables, drawn.generator_z)
        points = perturbed_rows(drawn.directions, x, self.settings.differences)
        return state, jnp.concatenate(
            [fresh.reshape(-1, *self.input_shape), self.maker.shown(points)]
        )

    def tell(self, key: Key, state: PyTree, rows: Array, answers: PyTree) -> tuple[PyTree, Metrics]:
        """The clone's steps, on fresh images and old ones, and the generator's."""
        return self.iteration(key, state, rows, answers)

    def iteration(
        self,
        key: Key,
        state: DFMEState,
        rows: Array,
        answers: PyTree,
        extra_gradient: Callable[[Array], Array] | None = None,
    ) -> tuple[DFMEState, Metrics]:
        """`tell`, with what `generator_step` takes besides."""
        settings = self.settings
        drawn = self.draws(key)
        size, fresh = settings.batch_size, settings.clone_batches
        targets = self.targets(answers)
        learn_key, again_key, replay_key = jax.random.split(drawn.updates, 3)
        clone, loss = self.learn(learn_key, state.clone, *batches((rows, targets), fresh, size))
        # with `reuse`, the unperturbed images enter the ring too; the perturbed ones are nearly
        # copies of them
        kept = (fresh + settings.reuse) * size
        clone, replay, metrics = self.replay_steps(
            replay_key, clone, state.replay, rows[:kept], targets[:kept]
        )
        asked, answered = rows[fresh * size :], targets[fresh * size :]
        generator, disagreement, flat = self.generator_step(
            drawn, state.generator, clone.variables, asked, answered, extra_gradient
        )
        if settings.reuse:
            again = batches((asked, answered), settings.differences.rows_per_sample, size)
            clone, _ = self.learn(again_key, clone, *again)
        metrics |= {"loss": loss, "disagreement": disagreement, "flat": flat}
        return DFMEState(clone, generator, replay), metrics

    def generator_step(
        self,
        drawn: Draws,
        generator: Training,
        clone: PyTree,
        rows: Array,
        targets: Array,
        extra_gradient: Callable[[Array], Array] | None = None,
    ) -> tuple[Training, Array, Array]:
        """The generator's step towards disagreement, from the answers at its perturbed points.

        Args:
          drawn: of this iteration. generator: before. clone: variables of the clone to disagree
            with.
          rows, targets: of the perturbed points, in the order of `perturbed_rows`.
          extra_gradient: x̃ (B, H, W, C) -> (B, H, W, C), of another gain; it is added to the
            estimate.

        Returns:
          The generator after, the mean loss at its images, and the share of differences that are
          zero.
        """
        settings = self.settings
        chunk = settings.chunk or cache_chunk(len(rows))
        logits = in_chunks(precise(self.clone(clone)), rows, chunk)
        losses = self.loss(logits, targets)

        def image(params: PyTree) -> tuple[Array, PyTree]:
            return self.maker.pre_activations(
                {**generator.variables, "params": params}, drawn.generator_z
            )

        # the estimate is a gradient by x̃; from there on the generator is differentiated exactly
        x, back, statistics = jax.vjp(image, generator.variables["params"], has_aux=True)
        gradient = estimate(drawn.directions, x, losses, settings.differences)
        if extra_gradient is not None:
            gradient = gradient + extra_gradient(x)
        (descent,) = back(-gradient / settings.batch_size)
        # a difference is zero where rounded answers tell nothing: of two sides, or of a point and
        # x̃
        table = losses.reshape(-1, settings.batch_size)
        if settings.central:
            flat = table[: settings.directions] == table[settings.directions :]
            here = jnp.mean(table)
        else:
            flat = table[1:] == table[:1]
            here = jnp.mean(table[0])
        generator = updated_by(self.maker.optimizer, generator, descent, statistics)
        return generator, here, jnp.mean(flat, dtype=jnp.float32)


__all__ = [
    "SMALL_DFME",
    "DFMESettings",
    "DFMEState",
    "Draws",
    "GeneratorAndClone",
    "ZerothOrderAttack",
    "check_differences",
    "dfme",
    "zeroth_order_attack",
]
