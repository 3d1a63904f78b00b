"""CMI: every batch is inverted by a fresh generator, and told apart from all batches before it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, check_arguments
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Augmentation, Key, PyTree
from dfke_jax.distillation.bank import BankSettings, Made, bank_budget, bank_method
from dfke_jax.distillation.inversion_loss import inversion_loss
from dfke_jax.distillation.needs import check_teacher, named
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.contrastive import Projection
from dfke_jax.nn.generators import DFMEGenerator, draw_latents
from dfke_jax.nn.players import Maker
from dfke_jax.nn.soft_nearest import unit_rows
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.latent import invert


@dataclasses.dataclass(frozen=True)
class CMISettings(BankSettings):
    """How CMI runs. Defaults: the released code's, where it has them.

    Attributes:
      contrastive: weight of the contrastive term; 0 leaves it out. contrast_temperature: its τ.
      negatives: rows of earlier batches that every step draws. feature_bank: rows that are kept,
        the oldest give way.
      projection: width of the space of the contrastive term.
    """

    one_hot: float = 0.5
    contrastive: float = 0.8
    contrast_temperature: float = 0.1
    negatives: int = 4096
    feature_bank: int = 40960
    projection: int = 256

    def __post_init__(self):
        super().__post_init__()
        if not self.contrastive >= 0 or not self.contrast_temperature > 0:
            raise InputError(
                "contrastive must not be negative and contrast_temperature be positive, got "
                f"{self.contrastive} and {self.contrast_temperature}"
            )
        if min(self.negatives, self.projection) < 1 or self.feature_bank < self.batch_size:
            raise InputError(
                "negatives and projection must be at least 1 and feature_bank hold a batch of "
                f"{self.batch_size}, got "
                f"{self.negatives}, {self.projection} and {self.feature_bank}"
            )


class Contrast(NamedTuple):
    """What CMI carries: the projection, and a ring of the features of earlier images.

    Attributes:
      projection: parameters. optimizer_state: of its Adam.
      features: (N, D) of the first view. written: () int32, rows ever written, counted up to twice
        the ring.
    """

    projection: PyTree
    optimizer_state: Any
    features: Array
    written: Array


def cmi(
    teacher: WhiteBox,
    student: Classifier,
    settings: CMISettings,
    *,
    augment: Augmentation | None = None,
    view: Augmentation | None = None,
) -> Method:
    """Contrastive model inversion.

    Per batch min over z and θ of `inversion_loss`(a(x)) + w_c·L_c, x = G_θ(z), θ drawn afresh, z ~
    N(0, I); L_c = −(1/B) Σ_b log [exp(cos(u_b, v_b)/τ) / Σ_j exp(cos(u_b, v_j)/τ)] with v =
    h(f(a(x))) of the B images and of earlier ones out of the bank, u = h(f(a'(x))), f the means
    over places of the teacher's layers and h a projection that learns beside, across batches. Of
    all iterates the batch with the lowest loss is kept.

    Args:
      teacher: frozen, with batch normalisation unless ``statistics`` is 0. student: gives the
        network.
      settings: see `CMISettings`. ``steps=0`` is the control.
      augment: a, of what the teacher sees while images are inverted, and of what the student learns
        (published: crops of the image padded by four, and mirror images).
      view: a', of the second view (published: crops of a quarter of the image to all of it, and
        mirror images: ``compose(resized_crop(0.25), flip())``).

    Returns:
      A `Method` over `BankState`, see `bank_method`.

    Source: Fang, Song, Wang, Shen, Wang and Song, Contrastive Model Inversion for Data-Free
      Knowledge Distillation, IJCAI 2021, and its released code (weights, views, sizes).
    Deviations: f takes the layers that the networks here record (`Classifier.activations`),
      released code the inputs of all normalisation layers; negatives are earlier images' first
      views, those of an empty bank are left out; the bank lies on the device and takes the features
      of the batch that is kept.
    """
    check_teacher(teacher, named("cmi", settings.statistics))
    check_arguments(view, "view")
    inverter = _CMI(augment=augment, view=view, settings=settings)
    return bank_method(teacher, student, settings, inverter, augment)


def cmi_budget(settings: CMISettings, rounds: int) -> dict[str, int]:
    """What so many rounds cost; the teacher looks at two views where they are contrasted."""
    return bank_budget(settings, rounds, passes=1 + bool(settings.contrastive))


def fresh_generator(settings: BankSettings, teacher: WhiteBox) -> Maker:
    """The generator of CMI and its kin; what optimises it is the inversion."""
    module = DFMEGenerator(
        teacher.input_shape, settings.width, settings.latent, normalised_output=False
    )
    return Maker(module, teacher.preprocessing, optax.identity())


def adam(rate: float) -> optax.GradientTransformation:
    """Adam with β = (0.5, 0.999), of inversions."""
    return optax.adam(rate, b1=0.5, b2=0.999)


def pooled(activations: dict[str, Array]) -> Array:
    """(B, D): the means over places of all layers, side by side."""
    means = [
        jnp.mean(maps, tuple(range(1, maps.ndim - 1))) for _, maps in sorted(activations.items())
    ]
    return jnp.concatenate(means, -1)


def contrast(near: Array, far: Array, earlier: Array, known: Array, temperature: float) -> Array:
    """L_c, (): rows of `near` (B, D) against `far` (B, D) and, where `known` (n,), `earlier` (n, D)."""
    near, far, earlier = (unit_rows(rows) for rows in (near, far, earlier))
    among = jnp.matmul(near, jnp.concatenate([far, earlier]).T, precision="highest") / temperature
    there = jnp.concatenate([jnp.ones(far.shape[0], bool), known])
    among = jnp.where(there[None], among, -jnp.inf)
    return jnp.mean(jax.nn.logsumexp(among, -1) - jnp.diagonal(among[:, : far.shape[0]]))


def _width(teacher: WhiteBox) -> int:
    images = jax.ShapeDtypeStruct((2, *teacher.input_shape), jnp.float32)
    rows = jax.eval_shape(
        lambda images: pooled(teacher.observe(images, activations=True).activations), images
    )
    return rows.shape[-1]


@record
class _CMI:
    augment: Augmentation | None
    view: Augmentation | None
    settings: CMISettings = static_field()

    def begin(self, key: Key, teacher: WhiteBox) -> PyTree:
        s = self.settings
        if not s.contrastive:
            return ()
        width = _width(teacher)
        projection = Projection(s.projection).init(key, jnp.zeros((2, width)))["params"]
        features = jnp.zeros((s.feature_bank, width))
        return Contrast(
            projection, adam(s.generator_rate).init(projection), features, jnp.zeros((), jnp.int32)
        )

    def make(
        self, key: Key, teacher: WhiteBox, student: Classifier, number: Array, carried: PyTree
    ) -> Made:
        s = self.settings
        label_key, latent_key, generator_key, negative_key, run_key = jax.random.split(key, 5)
        labels = jax.random.randint(label_key, (s.batch_size,), 0, teacher.num_classes)
        maker = fresh_generator(s, teacher)
        z = draw_latents(latent_key, (s.batch_size,), maker.generator)
        variables = maker.new(generator_key).variables
        start = {"latents": z, "generator": variables["params"]}

        def decode(optimised: dict[str, PyTree]) -> Array:
            return maker.images(
                {**variables, "params": optimised["generator"]}, optimised["latents"]
            )[0]

        if not s.steps:
            return Made(decode(start), labels, carried, {})
        competes = (number >= s.warm_up).astype(jnp.float32)
        if s.contrastive:
            filled = jnp.minimum(carried.written, s.feature_bank)
            chosen = jax.random.randint(negative_key, (s.negatives,), 0, jnp.maximum(filled, 1))
            earlier, known = carried.features[chosen], jnp.broadcast_to(filled > 0, (s.negatives,))

        def objective(
            key: Key, images: Array, optimised: dict[str, PyTree]
        ) -> tuple[Array, PyTree]:
            first_key, second_key = jax.random.split(key)
            first = images if self.augment is None else self.augment(first_key, images)
            loss, seen, terms = inversion_loss(
                s, teacher, student, first, labels, competes, activations=bool(s.contrastive)
            )
            features = jnp.zeros((s.batch_size, 0))
            if s.contrastive:
                second = images if self.view is None else self.view(second_key, images)
                features = pooled(seen.activations)
                other = pooled(teacher.observe(second, activations=True).activations)
                near, far, before = (
                    jnp.asarray(
                        Projection(s.projection).apply({"params": optimised["projection"]}, rows)
                    )
                    for rows in (other, features, earlier)
                )
                terms["contrastive"] = contrast(near, far, before, known, s.contrast_temperature)
                loss += s.contrastive * terms["contrastive"]
            return loss, (terms, jax.lax.stop_gradient(features))

        rules = {name: adam(s.generator_rate) for name in start}
        states = {}
        if s.contrastive:
            start["projection"], states["projection"] = carried.projection, carried.optimizer_state
            rules["projection"] = adam(s.generator_rate)
        found = invert(
            run_key,
            decode,
            objective,
            start,
            steps=s.steps,
            optimizers=rules,
            optimizer_states=states,
        )
        terms, features = found.beside
        if s.contrastive:
            places = (carried.written + jnp.arange(s.batch_size)) % s.feature_bank
            written = carried.written + s.batch_size
            carried = Contrast(
                found.optimised["projection"],
                found.optimizer_states["projection"],
                carried.features.at[places].set(features, unique_indices=True),
                jnp.where(written >= 2 * s.feature_bank, written - s.feature_bank, written),
            )
        return Made(found.images, labels, carried, {"inversion_loss": found.loss, **terms})


__all__ = ["CMISettings", "Contrast", "cmi", "cmi_budget"]
