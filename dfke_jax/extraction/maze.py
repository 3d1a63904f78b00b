"""MAZE: zeroth-order extraction by KL divergence, with replay."""

import dataclasses

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack
from dfke_jax.extraction.common import SMALL, LossName
from dfke_jax.extraction.dfme import DFMESettings, zeroth_order_attack
from dfke_jax.nn.classifier import Classifier
from dfke_jax.oracle.reveal import Reveal


@dataclasses.dataclass(frozen=True)
class MAZESettings(DFMESettings):
    """How MAZE runs. The defaults are the published ones (both players by SGD, cosine, ten
    directions).

    Attributes:
      replay_batches: N_R.
      replay_capacity: the published list has no bound.

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

    def __post_init__(self):
        super().__post_init__()
        if self.reuse:
            raise InputError("MAZE keeps answers in its replay ring; reuse belongs to DFME")


SMALL_MAZE = MAZESettings(**SMALL, generator_optimizer="adam")
"""For LeNets on grey images; see `dfke_jax.extraction.common.SMALL`. An iteration asks 512 rows."""


def maze(
    clone: Classifier,
    settings: MAZESettings | None = None,
    reveal: Reveal | None = None,
    num_classes: int | None = None,
) -> Attack:
    """Model stealing by zeroth-order gradient estimation.

    L = KL(V(x) ‖ S(x)); S descends it, G ascends it along the estimate of ∇_x̃ L; after its n_S
    fresh batches the clone takes N_R steps on batches drawn from earlier answers.

    Rows and their order are `dfke_jax.extraction.dfme`'s: B·(n_S + m + 1) an iteration, 2,048 by
    default.

    Args:
      clone, settings, reveal, num_classes: see `dfke_jax.extraction.dfme.dfme`.

    Returns:
      An `Attack` over `dfke_jax.extraction.dfme.DFMEState` with metrics ``loss``, ``disagreement``,
      ``flat`` and, with replay, ``replay_loss``.

    Raises:
      InputError: as `dfme`.

    Warns:
      UserWarning: for rounded answers.

    Source: Kariyappa, Prakash and Qureshi, MAZE, CVPR 2021, section 3.
    Deviations: all n_S fresh batches enter the ring (released code keeps the last one alone), which
      is bounded and rounded as `remember` says; no batch of the generator serves the clone, as in
      the text (released code uses one twice and asks again for it); the generator is
      `DFMEGenerator`; no evaluation between iterations.
    """
    return zeroth_order_attack("MAZE", clone, settings or MAZESettings(), reveal, num_classes)


__all__ = ["SMALL_MAZE", "MAZESettings", "maze"]
