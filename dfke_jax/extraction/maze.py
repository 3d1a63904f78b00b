"""MAZE: zeroth-order extraction by KL divergence, with replay."""

import dataclasses
from typing import Any, NamedTuple

import jax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack, Static
from dfke_jax.core.types import Array, Key, Metrics
from dfke_jax.extraction.common import Game, LossName, batches
from dfke_jax.extraction.dfme import DFMESettings, ask, begin, check_differences, climb, draws
from dfke_jax.extraction.replay import Replay, empty_replay, recall, remember
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.generators import DFMEGenerator
from dfke_jax.nn.training import Training
from dfke_jax.oracle.reveal import Reveal


@dataclasses.dataclass(frozen=True)
class MAZESettings(DFMESettings):
    """How MAZE runs. The defaults are the published ones (both players by SGD, cosine, ten directions).

    Attributes:
      replay_batches: N_R, updates of the clone on old answers per iteration.
      replay_capacity: rows that are kept; the published list has no bound.

    The estimate's factor D matters here: under SGD it sets the generator's rate.
    """

    batch_size: int = 128
    clone_batches: int = 5
    latent: int = 100
    loss: LossName = "kl"
    generator_optimizer: str = "sgd"
    generator_rate: float = 1e-4
    schedule: str = "cosine"
    directions: int = 10
    replay_batches: int = 10
    replay_capacity: int = 100_000

    def __post_init__(self):
        super().__post_init__()
        if self.replay_batches < 0:
            raise InputError(f"replay_batches must not be negative, got {self.replay_batches}")
        if self.reuse:
            raise InputError("MAZE keeps answers in its replay ring; reuse belongs to DFME")
        if self.replay_capacity < self.batch_size * self.clone_batches:
            raise InputError(
                f"replay_capacity must hold one iteration, {self.batch_size * self.clone_batches} rows, got "
                f"{self.replay_capacity}"
            )

    @property
    def extra_clone_updates(self) -> int:
        """Updates of the clone beside those on fresh batches."""
        return self.replay_batches


class MAZEState(NamedTuple):
    """State of the attack.

    Attributes:
      clone, generator: see `dfke_jax.extraction.dfme.DFMEState`. replay: answered rows of the clone's fresh batches.
    """

    clone: Training
    generator: Training
    replay: Replay


def maze(
    clone: Classifier,
    settings: MAZESettings | None = None,
    reveal: Reveal | None = None,
    num_classes: int | None = None,
) -> Attack:
    """Model stealing by zeroth-order gradient estimation.

    L = KL(V(x) ‖ S(x)); S descends it, G ascends it along the estimate of ∇_x̃ L; after its n_S fresh batches the clone
    takes N_R steps on batches drawn from earlier answers.

    Rows and their order are `dfke_jax.extraction.dfme`'s: B·(n_S + m + 1) an iteration, 2,048 by default.

    Args:
      clone, settings, reveal, num_classes: see `dfke_jax.extraction.dfme.dfme`.

    Returns:
      An `Attack` over `MAZEState` with metrics ``loss``, ``disagreement``, ``flat`` and, with replay, ``replay_loss``.

    Raises:
      InputError: as `dfme`.

    Warns:
      UserWarning: for rounded answers.

    Source: Kariyappa, Prakash and Qureshi, MAZE, CVPR 2021, section 3.
    Deviations: all n_S fresh batches enter the ring (released code keeps the last one alone), which is bounded and
      rounded as `remember` says; no batch of the generator serves the clone, as in the text (released code uses one
      twice and asks again for it); the generator is `DFMEGenerator`; no evaluation between iterations. The variant with
      a few real images and a critic (MAZE-PD) is not here.
    """
    settings = settings or MAZESettings()
    reveal = reveal or Reveal()
    check_differences(reveal, "MAZE")
    generator = DFMEGenerator(clone.input_shape, settings.width, settings.latent)
    game = Static(Game.between(clone, generator, settings, reveal, num_classes))
    return Attack(Partial(_begin, game), Partial(ask, game), Partial(_tell, game))


def _begin(game: Static, key: Key) -> MAZEState:
    fixed: Game = game.value
    clone, generator = begin(game, key)
    return MAZEState(clone, generator, new_replay(fixed))


def new_replay(fixed: Game) -> Replay:
    """An empty ring for what this game's clone learns from."""
    kept = None if fixed.loss_name == "cross_entropy" else fixed.num_classes
    return empty_replay(fixed.settings.replay_capacity, fixed.input_shape, kept)


def _tell(game: Static, key: Key, state: MAZEState, rows: Array, answers: Any) -> tuple[MAZEState, Metrics]:
    fixed: Game = game.value
    settings: MAZESettings = fixed.settings
    drawn = draws(fixed, key)
    size, fresh = settings.batch_size, settings.clone_batches
    box = fixed.preprocessing.box
    targets = fixed.targets(answers)
    learn_key, choose_key, again_key = jax.random.split(drawn.updates, 3)
    clone, loss = fixed.clone_steps(learn_key, state.clone, *batches((rows, targets), fresh, size))
    metrics = {"loss": loss}
    replay = remember(state.replay, rows[: fresh * size], targets[: fresh * size], box)
    if settings.replay_batches:
        again = recall(choose_key, replay, (settings.replay_batches, size), box)
        clone, metrics["replay_loss"] = fixed.clone_steps(again_key, clone, *again)
    asked, answered = rows[fresh * size :], targets[fresh * size :]
    generator, disagreement, flat = climb(fixed, drawn, state.generator, clone.variables, asked, answered)
    return MAZEState(clone, generator, replay), metrics | {"disagreement": disagreement, "flat": flat}


__all__ = ["MAZESettings", "MAZEState", "maze", "new_replay"]
