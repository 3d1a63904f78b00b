"""MAZE-PD: MAZE with a few images of the victim's kind, which a critic holds the generator to."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Attack, as_attack
from dfke_jax.core.records import record
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.extraction.common import GenerativeAttack
from dfke_jax.extraction.dfme import DFMEState, ZerothOrderAttack, check_differences
from dfke_jax.extraction.maze import MAZESettings
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.discriminators import DCGANDiscriminator, between, gradient_penalty
from dfke_jax.nn.players import OPTIMISERS, scheduled
from dfke_jax.nn.training import Training, updated_by
from dfke_jax.oracle.reveal import Reveal
from dfke_jax.synthesis.replay import Replay, remember


@dataclasses.dataclass(frozen=True)
class MAZEPDSettings(MAZESettings):
    """How MAZE-PD runs. The defaults are the released ones, but for `critic_weight`, for which none
    is known.

    Attributes:
      critic_weight: α of −α·D(G(z)) in the generator's loss; 0 is MAZE.
      penalty: λ of the gradient penalty.
      critic_optimizer, critic_rate: of the critic, which takes `clone_batches` steps an iteration.
        `schedule`, `momentum` and `weight_decay` hold for it too.
      critic_width: filters of its first layer.
    """

    critic_weight: float = 1.0
    penalty: float = 10.0
    critic_optimizer: str = "sgd"
    critic_rate: float = 1e-4
    critic_width: int = 32

    def __post_init__(self):
        super().__post_init__()
        if (
            min(self.critic_weight, self.penalty) < 0
            or not self.critic_rate > 0
            or self.critic_width < 1
        ):
            raise InputError(
                "critic_weight and penalty must not be negative, critic_rate must be positive and "
                f"critic_width at least 1, got {self.critic_weight}, {self.penalty}, "
                f"{self.critic_rate}, {self.critic_width}"
            )
        if self.critic_optimizer not in OPTIMISERS:
            raise UnknownNameError("optimiser", self.critic_optimizer, OPTIMISERS)

    @property
    def critic(self) -> DCGANDiscriminator:
        """The network."""
        return DCGANDiscriminator(self.critic_width, batch_norm=False)

    @property
    def critic_rule(self) -> optax.GradientTransformation:
        """Its optimiser."""
        return scheduled(
            self.critic_optimizer,
            self.critic_rate,
            self.steps * self.clone_batches,
            self.schedule,
            self.drops,
            self.drop_factor,
            self.momentum,
            self.weight_decay,
        )


class MAZEPDState(NamedTuple):
    """State of the attack: the fields of `DFMEState`, and the critic's variables with their
    optimiser's state.
    """

    clone: Training
    generator: Training
    critic: Training
    replay: Replay | None = None


def maze_pd(
    clone: Classifier,
    seeds: Array,
    answers: PyTree,
    settings: MAZEPDSettings | None = None,
    reveal: Reveal | None = None,
    num_classes: int | None = None,
) -> Attack:
    """Model stealing with partial data.

    Beside the players of MAZE there is a critic D, which learns to tell the seeds from G(z):

      L_D = mean D(G(z)) − mean D(seeds) + λ·mean (‖∇D(x̂)‖ − 1)²,  x̂ uniform on the line between
      the two, L_G = −KL(V(x) ‖ S(x)) − α·D(x).

    D takes one step beside each of the clone's on fresh batches, on the same images; D's part of
    the generator's gradient is exact, V's is estimated. Seeds with their answers are the first rows
    of the replay ring.

    Rows and their order are `dfke_jax.extraction.dfme`'s. The seeds are asked once, by the caller,
    who pays for them::

        answers = oracle(seeds)
        attack = maze_pd(clone, seeds, answers, settings)

    Args:
      clone, reveal, num_classes: see `dfke_jax.extraction.dfme.dfme`.
      seeds: (N, H, W, C) images on the device, uint8 or float in [0, 1]; published: 100.
      answers: of the oracle to them, leading axis N.
      settings: see `MAZEPDSettings`.

    Returns:
      An `Attack` over `MAZEPDState` with `maze`'s metrics and ``critic`` (mean D(seeds) − mean
      D(G(z)), over the steps) and ``penalty`` (before λ).

    Raises:
      InputError: as `dfme`; for seeds of another shape, none, or another number of answers, a box
        other than (0, 1), a ring that cannot take the seeds.

    Source: Kariyappa, Prakash and Qureshi, MAZE, CVPR 2021, section on partial data; Gulrajani et
      al., 2017, for the penalty.
    Deviations: those of `maze`; the critic is a DCGAN's without normalisation (released code has
      instance normalisation); seeds are drawn with replacement; seeds leave the ring as any old row
      does; D steps before G of an iteration, as S. The critic's second derivatives are those of
      plain convolutions, which are slow inside a loop on CPU.
    """
    settings = settings or MAZEPDSettings()
    reveal = reveal or Reveal()
    check_differences(reveal, "MAZE-PD")
    if seeds.ndim != 4 or tuple(seeds.shape[1:]) != tuple(clone.input_shape) or not seeds.shape[0]:
        raise InputError(
            f"seeds are {tuple(seeds.shape)} and the clone takes (N, *{clone.input_shape}), N at "
            "least 1"
        )
    answers = jnp.asarray(answers)
    if answers.shape[:1] != seeds.shape[:1]:
        raise InputError(
            f"{seeds.shape[0]} seeds need as many answers; ask the oracle for them first"
        )
    if settings.post_transform or clone.preprocessing.box != (0.0, 1.0):
        raise InputError(
            "the critic compares images with seeds in [0, 1]: the clone's box must be (0, 1) and "
            f"post_transform False, got {clone.preprocessing.box} and {settings.post_transform}"
        )
    if settings.replay_batches and settings.replay_capacity < seeds.shape[0]:
        raise InputError(
            f"replay_capacity must hold the {seeds.shape[0]} seeds, got {settings.replay_capacity}"
        )
    targets = GenerativeAttack.between(clone, settings, reveal, num_classes).targets(answers)
    _ = settings.critic_rule  # a schedule over no steps is refused here
    return as_attack(
        _MAZEPD.between(clone, settings, reveal, num_classes, seeds=seeds, seed_targets=targets)
    )


@record
class _MAZEPD(ZerothOrderAttack[MAZEPDSettings]):
    """Attributes beside those of `GenerativeAttack`: seeds (N, H, W, C), and what the clone learns
    of them (N, K).
    """

    seeds: Array
    seed_targets: Array

    def init(self, key: Key) -> MAZEPDState:
        clone, generator, replay = super().init(key)
        variables = self.settings.critic.init(
            jax.random.fold_in(key, 2), jnp.zeros((2, *self.input_shape))
        )
        critic = Training(variables, self.settings.critic_rule.init(variables["params"]))
        if replay is not None:
            replay = remember(
                replay, as_float(self.seeds), self.seed_targets, self.preprocessing.box
            )
        return MAZEPDState(clone, generator, critic, replay)

    def tell(
        self, key: Key, state: MAZEPDState, rows: Array, answers: PyTree
    ) -> tuple[MAZEPDState, Metrics]:
        settings = self.settings
        critic, judged = self.critic_steps(
            jax.random.fold_in(self.draws(key).updates, 3), state.critic, rows
        )

        def gain(x: Array) -> Array:
            judged = settings.critic.apply(critic.variables, self.maker.shown(x))
            return settings.critic_weight * jnp.sum(judged)  # type: ignore[arg-type]

        before = DFMEState(state.clone, state.generator, state.replay)
        after, metrics = self.iteration(key, before, rows, answers, jax.grad(gain))
        metrics |= {name: jnp.mean(values) for name, values in judged.items()}
        return MAZEPDState(after.clone, after.generator, critic, after.replay), metrics

    def critic_steps(self, key: Key, critic: Training, rows: Array) -> tuple[Training, Metrics]:
        """One step beside each of the clone's, on the same images; metrics (n_S,)."""
        settings = self.settings
        count, size = settings.clone_batches, settings.batch_size
        made = rows[: count * size].reshape(count, size, *self.input_shape)

        def judge(critic: Training, batch: tuple[Array, Array]) -> tuple[Training, Metrics]:
            key, made = batch
            seed_key, point_key = jax.random.split(key)
            given = as_float(
                self.seeds[jax.random.randint(seed_key, (size,), 0, self.seeds.shape[0])]
            )
            return critic_step(settings, critic, given, made, point_key)

        return jax.lax.scan(
            judge, critic, (jax.random.split(key, count), made), unroll=settings.unroll
        )


def critic_step(
    settings: MAZEPDSettings, critic: Training, given: Array, made: Array, key: Key
) -> tuple[Training, Metrics]:
    """One step of the critic on L_D; `given` and `made` are (B, H, W, C) in [0, 1], and `key` is of
    the points between.
    """
    points = between(key, made, given)

    def loss(params: PyTree) -> tuple[Array, Metrics]:
        value = lambda images: settings.critic.apply({"params": params}, images)
        gap = jnp.mean(value(given)) - jnp.mean(value(made))  # type: ignore[arg-type]
        penalty = gradient_penalty(value, points)  # type: ignore[arg-type]
        return settings.penalty * penalty - gap, {"critic": gap, "penalty": penalty}

    gradient, metrics = jax.grad(loss, has_aux=True)(critic.variables["params"])
    return updated_by(settings.critic_rule, critic, gradient, {}), metrics


__all__ = ["MAZEPDSettings", "MAZEPDState", "critic_step", "maze_pd"]
