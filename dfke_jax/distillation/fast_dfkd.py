"""Fast-DFKD: a generator learns to be a good start, and a batch is inverted in a few steps."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Method
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Augmentation, Key, PyTree
from dfke_jax.distillation.bank import BankSettings, Made, bank_budget, bank_method
from dfke_jax.distillation.cmi import adam, fresh_generator
from dfke_jax.distillation.inversion_loss import (
    Averages,
    averaged,
    averaging_objective,
    no_averages,
)
from dfke_jax.distillation.needs import check_teacher, named
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.generators import draw_latents
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.latent import invert

META = ("fomaml", "reptile")


@dataclasses.dataclass(frozen=True)
class FastSettings(BankSettings):
    """How Fast-DFKD runs. Defaults: Fast-10 of the released code, where it has them.

    Published for (5, 2) steps: generator_rate 3e-3, 5e-3 and latent_rate 0.01, 0.015.

    Attributes:
      latent_rate: of the latents' Adam. meta: how the shared start θ learns, see `fast_dfkd`.
      reptile_scale: factor of θ − θ' with ``reptile``. average: m of the running averages of batch
        statistics; 0 for none.
    """

    rounds: int = 220
    warm_up: int = 20
    steps: int = 10
    generator_rate: float = 2e-3
    latent_rate: float = 0.01
    statistics: float = 10.0
    one_hot: float = 0.5
    adversarial: float = 1.33
    student_rate: float = 0.2
    meta: Literal["fomaml", "reptile"] = "fomaml"
    reptile_scale: float = 67.0
    average: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        if self.meta not in META:
            raise UnknownNameError("way of meta-learning", self.meta, META)
        if not min(self.latent_rate, self.reptile_scale) > 0 or not 0 <= self.average < 1:
            raise InputError(
                "latent_rate and reptile_scale must be positive and average lie in [0, 1), got "
                f"{self.latent_rate}, {self.reptile_scale} and {self.average}"
            )


class Meta(NamedTuple):
    """What Fast-DFKD carries.

    Attributes:
      generator: θ, parameters of the shared start. optimizer_state: of its Adam. averages: of batch
        statistics.
    """

    generator: PyTree
    optimizer_state: Any
    averages: Averages


def fast_dfkd(
    teacher: WhiteBox,
    student: Classifier,
    settings: FastSettings,
    *,
    augment: Augmentation | None = None,
) -> Method:
    """Fast data-free distillation: meta-learned starts of inversion.

    Per batch: z ~ N(0, I), θ' ← θ; k steps of Adam on (z, θ') down `inversion_loss`(a(G_θ'(z))),
    the statistics blended with their averages over batches; the best batch goes to the bank. Then
    one step of Adam on θ at rate k·η_g along Σ_i ∇_θ' loss_i (``fomaml``, first order) or along
    67·(θ − θ') (``reptile``).

    Args:
      teacher: frozen, with batch normalisation unless ``statistics`` is 0. student: gives the
        network.
      settings: see `FastSettings`. ``steps=0`` is the control: an untrained generator that stays
        so.
      augment: a, of what the networks see while images are inverted, and of what the student
        learns.

    Returns:
      A `Method` over `BankState`, see `bank_method`.

    Source: Fang, Mo, Wang, Song, Bei, Zhang and Song, Up to 100× Faster Data-free Knowledge
      Distillation, AAAI 2022, and its released code (schedule, weights, the factor 67, averages of
      moments).
    Deviations: the first layer is not drawn again late in training, as the released code does once;
      averages take the moments of a batch's last judged iterate, as released.
    """
    check_teacher(teacher, named("fast_dfkd", settings.statistics))
    return bank_method(
        teacher, student, settings, _Fast(augment=augment, settings=settings), augment
    )


def fast_budget(settings: FastSettings, rounds: int) -> dict[str, int]:
    """What so many rounds cost."""
    return bank_budget(settings, rounds)


def _meta_rule(s: FastSettings) -> optax.GradientTransformation:
    return adam(s.generator_rate * max(s.steps, 1))


@record
class _Fast:
    augment: Augmentation | None
    settings: FastSettings = static_field()

    def begin(self, key: Key, teacher: WhiteBox) -> Meta:
        s = self.settings
        generator = fresh_generator(s, teacher).new(key).variables["params"]
        return Meta(generator, _meta_rule(s).init(generator), no_averages(teacher))

    def make(
        self, key: Key, teacher: WhiteBox, student: Classifier, number: Array, carried: Meta
    ) -> Made:
        s = self.settings
        label_key, latent_key, run_key = jax.random.split(key, 3)
        labels = jax.random.randint(label_key, (s.batch_size,), 0, teacher.num_classes)
        maker = fresh_generator(s, teacher)
        start = {
            "latents": draw_latents(latent_key, (s.batch_size,), maker.generator),
            "generator": carried.generator,
        }

        def decode(optimised: dict[str, PyTree]) -> Array:
            # normalisation is the batch's own: running statistics are never read
            return maker.images({"params": optimised["generator"]}, optimised["latents"])[0]

        if not s.steps:
            return Made(decode(start), labels, carried, {})
        competes = (number >= s.warm_up).astype(jnp.float32)

        objective = averaging_objective(
            s, teacher, student, labels, competes, self.augment, carried.averages, s.average
        )
        rules = {"latents": adam(s.latent_rate), "generator": adam(s.generator_rate)}
        found = invert(run_key, decode, objective, start, steps=s.steps, optimizers=rules)
        if s.meta == "fomaml":
            direction = found.gradient["generator"]
        else:
            direction = jax.tree.map(
                lambda theta, moved: s.reptile_scale * (theta - moved),
                carried.generator,
                found.optimised["generator"],
            )
        updates, optimizer_state = _meta_rule(s).update(
            direction, carried.optimizer_state, carried.generator
        )
        _, moments = found.last
        carried = Meta(
            optax.apply_updates(carried.generator, updates),
            optimizer_state,
            averaged(moments, carried.averages, s.average) if moments else carried.averages,
        )
        return Made(
            found.images, labels, carried, {"inversion_loss": found.loss, **found.beside[0]}
        )


__all__ = ["FastSettings", "Meta", "fast_budget", "fast_dfkd"]
