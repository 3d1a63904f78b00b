"""Hard-label extraction by a GAN whose samples keep to a proxy's looks and to all of the victim's
classes.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack, Method, as_attack, as_method
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Augmentation, Key, Metrics, PyTree
from dfke_jax.extraction.common import GenerativeAttack, GenerativeSettings, batches
from dfke_jax.extraction.disagreement import negative_entropy
from dfke_jax.extraction.pool import CloneTraining, PoolAttackSettings
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.discriminators import DCGANDiscriminator
from dfke_jax.nn.generators import DCGANGenerator, Generator, draw_latents
from dfke_jax.nn.players import descend
from dfke_jax.nn.precision import apply
from dfke_jax.nn.training import Training
from dfke_jax.oracle.reveal import Reveal
from dfke_jax.synthesis.replay import Replay


@dataclasses.dataclass(frozen=True)
class DFMSSettings(GenerativeSettings):
    """How DFMS runs. The defaults are the published ones for CIFAR-10 where they are known.

    Attributes:
      diversity: λ of Σ_k α_k log α_k (100 for CIFAR-100). In a small batch α is noisy and this term
        drowns the other: keep B well above K.
      tuning_diversity: λ in `diversity_tuning`.
      adam_decay: β_1 of Adam, for generator and discriminator.
      loss: of the clone; ``auto`` is cross-entropy for labels (DFMS-HL) and l1 on recovered logits
        otherwise (DFMS-SL).
    """

    batch_size: int = 128
    clone_batches: int = 1
    latent: int = 100
    schedule: str = "cosine"
    generator_rate: float = 2e-4
    diversity: float = 500.0
    tuning_diversity: float = 10.0
    adam_decay: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if self.clone_batches != 1:
            raise InputError(
                f"DFMS asks one batch an iteration, got clone_batches = {self.clone_batches}"
            )
        if min(self.diversity, self.tuning_diversity) < 0 or not 0 <= self.adam_decay < 1:
            raise InputError(
                "diversity and tuning_diversity must not be negative and adam_decay must lie in "
                f"[0, 1), got {self.diversity}, {self.tuning_diversity} and {self.adam_decay}"
            )
        if self.generator_optimizer != "adam":
            raise InputError("the generator and the discriminator of DFMS are trained by Adam")


class Adversaries(NamedTuple):
    """State of a generative adversarial network: variables and optimiser states of both sides."""

    generator: Training
    discriminator: Training


class DFMSState(NamedTuple):
    """State of the attack: variables and optimiser states of the three networks, and answered rows
    (None without replay).
    """

    clone: Training
    generator: Training
    discriminator: Training
    replay: Replay | None = None


def adversarial_pretraining(images: Array, settings: DFMSSettings) -> Method:
    """Stage 0, without any question: a DCGAN on proxy images, `synthetic_shapes` or unrelated
    pictures.

    One step of the generator and one of the discriminator per batch, each by binary cross-entropy.

    Args:
      images: (N, H, W, C) on the device, uint8 or float in [0, 1].
      settings: batch size, latent, width, generator rate (of both sides) and β_1.

    Returns:
      A `Method` over `Adversaries` with metrics ``generator_loss`` and ``discriminator_loss``; hand
      its state to `dfms`.

    Source: Sanyal, Addepalli and Babu, Towards Data-Free Model Stealing in a Hard Label Setting,
      CVPR 2022, section 4; Radford, Metz and Chintala, DCGAN, ICLR 2016.
    """
    return as_method(
        _Adversarial(settings=settings, generator=_generator(images, settings), images=images)
    )


def first_samples(
    key: Key,
    start: Adversaries,
    images: Array,
    count: int,
    settings: DFMSSettings,
    *,
    proxy: float = 0.5,
) -> Array:
    """The pool of stage 1: what the victim is asked for the first clone; part proxy images, part
    G(z).

    The first clone is `dfke_jax.extraction.knockoff` on this pool, for instance with `FIRST_CLONE`;
    it pays `count` rows::

        pool = first_samples(key, begun, images, 50_000, settings)
        begin = core.against(knockoff(clone, pool, reveal, FIRST_CLONE), oracle)
        run = core.run(begin, key, FIRST_CLONE.rounds)
        attack = dfms(clone, images, settings, reveal, start=begun, first=run.state.clone)

    Args:
      start: of `adversarial_pretraining`, or of `diversity_tuning`: the released scripts then train
        the clone once more, from the beginning. G is in evaluation mode.
      images: (N, H, W, C) proxy images, uint8 or float in [0, 1]. count: rows in all.
      settings: as for `dfms`. proxy: share of rows that are proxy images, drawn without
        replacement.

    Returns:
      (count, H, W, C) float32, proxy images first.

    Raises:
      InputError: for a count below one, a share outside [0, 1], or fewer proxy images than are
        wanted.

    Source: Sanyal, Addepalli and Babu, CVPR 2022, section 4; the halves are those of the released
    scripts.
    """
    if count < 1 or not 0 <= proxy <= 1:
        raise InputError(
            f"count must be at least 1 and proxy lie in [0, 1], got {count} and {proxy}"
        )
    given = round(count * proxy)
    if given > images.shape[0]:
        raise InputError(
            f"{given} of {count} samples are to be proxy images and there are {images.shape[0]}"
        )
    chosen = jax.random.choice(jax.random.fold_in(key, 0), images.shape[0], (given,), replace=False)
    generator = _generator(images, settings)
    made = _samples(generator, start.generator.variables, jax.random.fold_in(key, 1), count - given)
    return jnp.concatenate([as_float(images[chosen]), made])


FIRST_CLONE = PoolAttackSettings(
    budget=50_000,
    rows_per_step=1000,
    clone=CloneTraining(
        steps=78_125,
        batch_size=128,
        learning_rate=0.1,
        momentum=0.9,
        decay_at=(0.5, 0.75, 0.9),
        decay_factor=0.1,
    ),
)
"""Stage 1 as published: 50,000 rows and 200 epochs over them. The cosine has become three steps;
crops and flips, which belong to it, are `knockoff`'s ``augment``."""


def diversity_tuning(
    clone: Classifier, images: Array, settings: DFMSSettings, start: Adversaries
) -> Method:
    """Stage 1b, without any question: the generator learns to reach all classes of the first clone,
    which stands still.

    L_G = BCE(D(x), 1) + λ·Σ_k α_k log α_k as in `dfms`, with λ = ``settings.tuning_diversity``; D
    goes on as before.

    Args:
      clone: the first one, trained. images, settings: as for `dfms`. start: of
        `adversarial_pretraining`.

    Returns:
      A `Method` over `Adversaries` with metrics ``generator_loss``, ``discriminator_loss`` and
      ``entropy`` (of α, in nats); published: 100 epochs over the proxy images. Hand its state to
      `dfms`.

    Raises:
      InputError: for images of another shape than the clone takes, another box than [0, 1].

    Source: Sanyal, Addepalli and Babu, CVPR 2022, section 4.
    Deviation: the released scripts begin this stage and the next with a new discriminator.
    """
    _check_proxy(clone, images)
    tuned = dataclasses.replace(settings, diversity=settings.tuning_diversity)
    return as_method(
        _Adversarial(
            settings=tuned,
            generator=_generator(images, tuned),
            images=images,
            clone=clone,
            begun=start,
        )
    )


def dfms(
    clone: Classifier,
    images: Array,
    settings: DFMSSettings | None = None,
    reveal: Reveal | None = None,
    num_classes: int | None = None,
    start: Adversaries | None = None,
    first: Training | None = None,
    augment: Augmentation | None = None,
) -> Attack:
    """Model stealing in the hard-label (DFMS-HL) or soft-label (DFMS-SL) setting; one question a
    sample.

    Every iteration asks G(z), B rows. Told the answers, S takes a step on them; G one on
    L_G = BCE(D(x), 1) + λ·Σ_k α_k log α_k with α the batch mean of softmax S(x), on the same z; D
    one that tells rows of `images` from G(z). Nothing of L_G needs the victim.

    Args:
      clone, reveal, num_classes: see `dfke_jax.extraction.dfme.dfme`; `reveal` is labels by
        default.
      images: (N, H, W, C) proxy images on the device, uint8 or float in [0, 1]; with
        `synthetic_shapes` the attack uses no data at all.
      settings: see `DFMSSettings`.
      start: of generator and discriminator, from `adversarial_pretraining` or `diversity_tuning`;
        fresh ones by default.
      first: of the clone, from stage 1 (see `first_samples`); its variables are taken and its
        optimiser is new. By default the clone begins afresh.
      augment: of the rows before they are asked; the clone learns what was asked. Published:
        AutoAugment.

    Returns:
      An `Attack` over `DFMSState` with metrics ``loss``, ``generator_loss``, ``discriminator_loss``
      and ``entropy`` (of α, in nats).

    Raises:
      InputError: images of another shape than the clone takes, another box than [0, 1]; as
        `GenerativeAttack.between`.

    Source: Sanyal, Addepalli and Babu, CVPR 2022, sections 3 and 4.
    Deviations: no stage but this one is run here; S is in evaluation mode in L_G; the soft loss is
      l1 on recovered logits (`loss` chooses); the clone is the last one and no average of many.
    """
    settings = settings or DFMSSettings()
    _check_proxy(clone, images)
    if settings.post_transform:
        raise InputError(
            "DFMS compares its samples with proxy images in [0, 1]: post_transform must be False"
        )
    generator = DCGANGenerator(clone.input_shape, settings.width, settings.latent)
    attack = _DFMS.between(
        clone,
        settings,
        reveal or Reveal("label"),
        num_classes,
        generator,
        images=images,
        begun=start,
        learnt=None if first is None else first.variables,
        augment=augment,
    )
    return as_attack(attack)


def _check_proxy(clone: Classifier, images: Array) -> None:
    if tuple(images.shape[1:]) != tuple(clone.input_shape):
        raise InputError(
            f"proxy images are {tuple(images.shape[1:])} and the clone takes {clone.input_shape}"
        )
    if clone.preprocessing.box != (0.0, 1.0):
        raise InputError(
            "DFMS compares its samples with proxy images in [0, 1]: the clone's box must be (0, "
            f"1), got {clone.preprocessing.box}"
        )


def _generator(images: Array, settings: DFMSSettings) -> DCGANGenerator:
    height, width, channels = images.shape[1:]
    return DCGANGenerator((height, width, channels), settings.width, settings.latent)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _samples(generator: DCGANGenerator, variables: PyTree, key: Key, count: int) -> Array:
    size = min(500, max(count, 1))
    keys = jax.random.split(key, -(-count // size))
    make = lambda key: apply(generator, variables, draw_latents(key, (size,), generator))
    return jax.lax.map(make, keys).reshape(-1, *generator.shape)[:count]


def _adam(settings: DFMSSettings) -> optax.GradientTransformation:
    return optax.adam(settings.generator_rate, b1=settings.adam_decay)


def _new_adversaries(generator: Generator, settings: DFMSSettings, key: Key) -> Adversaries:
    generator_key, discriminator_key = jax.random.split(key)
    made = generator.init(generator_key, jnp.zeros((2, generator.latent)))
    judge = DCGANDiscriminator(settings.width).init(
        discriminator_key, jnp.zeros((2, *generator.shape))
    )
    rule = _adam(settings)
    return Adversaries(
        *(Training(variables, rule.init(variables["params"])) for variables in (made, judge))
    )


@record
class _Adversarial:
    """A generator and a discriminator of proxy images; with a clone, the generator is also to reach
    all its classes.
    """

    images: Array
    clone: Classifier | None = None
    begun: Adversaries | None = None
    settings: DFMSSettings = static_field()
    generator: DCGANGenerator = static_field()

    def init(self, key: Key) -> Adversaries:
        if self.begun is None:
            return _new_adversaries(self.generator, self.settings, key)
        return jax.tree.map(jnp.array, self.begun)

    def step(self, key: Key, state: Adversaries) -> tuple[Adversaries, Metrics]:
        settings = self.settings
        latent_key, image_key = jax.random.split(key)
        z = draw_latents(latent_key, (settings.batch_size,), self.generator)
        made, fake, loss, entropy = _deceive(self.generator, settings, state, z, self.clone)
        judge, judged = _judge(
            settings, state.discriminator, _draw(image_key, self.images, settings), fake
        )
        metrics = {"generator_loss": loss, "discriminator_loss": judged}
        return Adversaries(made, judge), metrics if self.clone is None else metrics | {
            "entropy": entropy
        }


def _draw(key: Key, images: Array, settings: DFMSSettings) -> Array:
    return as_float(images[jax.random.randint(key, (settings.batch_size,), 0, images.shape[0])])


def _deceive(
    generator: Generator, settings: DFMSSettings, state: PyTree, z: Array, clone: Classifier | None
) -> tuple[Training, Array, Array, Array]:
    """The generator's step; its state, the images before it, its adversarial loss, and the entropy
    of the classes.
    """
    before: Training = state.generator
    judge = DCGANDiscriminator(settings.width)

    def objective(params: PyTree) -> tuple[Array, tuple[tuple, PyTree]]:
        images, statistics = apply(
            generator,
            {**before.variables, "params": params},
            z,
            train=True,
            mutable=["batch_stats"],
        )
        judged, _ = apply(
            judge, state.discriminator.variables, images, train=True, mutable=["batch_stats"]
        )
        adversarial = jnp.mean(jax.nn.softplus(-judged))
        if clone is None:
            return adversarial, ((images, adversarial, jnp.zeros(())), statistics)
        balance = negative_entropy(jax.nn.softmax(clone(images)))
        return adversarial + settings.diversity * balance, (
            (images, adversarial, -balance),
            statistics,
        )

    after, _, (images, loss, entropy) = descend(_adam(settings), before, objective)
    return after, images, loss, entropy


def _judge(
    settings: DFMSSettings, before: Training, real: Array, fake: Array
) -> tuple[Training, Array]:
    """The discriminator's step; given and made images are normalised apart, as two batches."""
    judge = DCGANDiscriminator(settings.width)
    fake = jax.lax.stop_gradient(fake)

    def objective(params: PyTree) -> tuple[Array, tuple[None, PyTree]]:
        variables = {**before.variables, "params": params}
        on_real, updated = apply(judge, variables, real, train=True, mutable=["batch_stats"])
        on_fake, updated = apply(
            judge, {**variables, **updated}, fake, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(jax.nn.softplus(-on_real)) + jnp.mean(jax.nn.softplus(on_fake)), (
            None,
            updated,
        )

    after, loss, _ = descend(_adam(settings), before, objective)
    return after, loss


@record
class _DFMS(GenerativeAttack[DFMSSettings]):
    """Attributes beside those of `GenerativeAttack`: as given to `dfms`; learnt, variables of the
    first clone.
    """

    images: Array
    begun: Adversaries | None = None
    learnt: PyTree | None = None
    augment: Augmentation | None = None

    def init(self, key: Key) -> DFMSState:
        clone_key, other_key = jax.random.split(key)
        others = self.begun
        if others is None:
            others = _new_adversaries(self.generator, self.settings, other_key)
        generator, discriminator = jax.tree.map(jnp.array, others)
        clone = self.learner.new(clone_key)
        if self.learnt is not None:
            clone = Training(jax.tree.map(jnp.array, self.learnt), clone.optimizer_state)
        return DFMSState(clone, generator, discriminator, self.new_replay())

    def ask(self, key: Key, state: DFMSState) -> tuple[DFMSState, Array]:
        x, _ = self.maker.pre_activations(state.generator.variables, self.latents(key))
        rows = self.maker.shown(x)
        return state, rows if self.augment is None else self.augment(
            jax.random.fold_in(key, 4), rows
        )

    def tell(
        self, key: Key, state: DFMSState, rows: Array, answers: PyTree
    ) -> tuple[DFMSState, Metrics]:
        settings = self.settings
        learn_key, image_key, replay_key = (jax.random.fold_in(key, i) for i in (1, 2, 3))
        targets = self.targets(answers)
        clone, loss = self.learn(
            learn_key, state.clone, *batches((rows, targets), 1, settings.batch_size)
        )
        clone, replay, metrics = self.replay_steps(replay_key, clone, state.replay, rows, targets)
        made, fake, deceived, entropy = _deceive(
            self.generator, settings, state, self.latents(key), self.clone(clone.variables)
        )
        judge, judged = _judge(
            settings, state.discriminator, _draw(image_key, self.images, settings), fake
        )
        metrics |= {
            "loss": loss,
            "generator_loss": deceived,
            "discriminator_loss": judged,
            "entropy": entropy,
        }
        return DFMSState(clone, made, judge, replay), metrics

    def latents(self, key: Key) -> Array:
        """(B, Z), the same in ask and tell."""
        return draw_latents(jax.random.fold_in(key, 0), (self.settings.batch_size,), self.generator)


__all__ = [
    "FIRST_CLONE",
    "Adversaries",
    "DFMSSettings",
    "DFMSState",
    "adversarial_pretraining",
    "dfms",
    "diversity_tuning",
    "first_samples",
]
