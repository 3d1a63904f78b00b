"""Generators bound to stored statistics, one for every group of classes."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, as_method
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.distillation.cmi import adam
from dfke_jax.distillation.cost import Cost
from dfke_jax.distillation.needs import check_teacher, named
from dfke_jax.nn.answers import class_metrics
from dfke_jax.nn.generators import DFMEGenerator
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.players import Maker
from dfke_jax.nn.training import Training, descend
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.priors import StatisticsForm, normalisation_statistics


@dataclasses.dataclass(frozen=True)
class GroupSettings:
    """How generators of class groups run; the rates and weights are this project's.

    Attributes:
      groups: G, of classes: group g has the classes k with k mod G = g, and a generator of its own.
      batch_size: B, of all generators together, a multiple of G.
      latent, width: of every generator. rate: of Adam (β = 0.5, 0.999).
      statistics: λ. form: see `dfke_jax.synthesis.priors.normalisation_statistics`.

    Raises:
      InputError: for values that mean nothing.
    """

    groups: int = 10
    batch_size: int = 250
    latent: int = 100
    width: int = 64
    rate: float = 1e-3
    statistics: float = 1.0
    form: StatisticsForm = "norm"

    def __post_init__(self):
        if (
            min(self.groups, self.latent, self.width) < 1
            or self.batch_size < 1
            or self.batch_size % self.groups
        ):
            raise InputError(
                "groups, latent and width must be at least 1 and batch_size a multiple of groups, got "
                f"{self.groups}, {self.latent}, {self.width} and {self.batch_size}"
            )
        if not self.rate > 0 or not self.statistics >= 0:
            raise InputError(
                "rate must be positive and statistics not negative, got "
                f"{self.rate}, {self.statistics}"
            )


def statistics_generators(teacher: WhiteBox, settings: GroupSettings) -> Method:
    """Large-scale generative data-free distillation: its generators.

    min over θ_1..θ_G of mean_b CE(T(x_b), y_b) + λ·R(x), x_b = G_{θ_g(b)}([z_b, onehot(y_b)]), y_b
    uniform in the group g(b), and R the distance of the whole batch's normalisation statistics from
    the stored ones: the mixture of all generators is matched, since what is stored is of all
    classes.

    Args:
      teacher: frozen, with batch normalisation unless ``statistics`` is 0.
      settings: see `GroupSettings`.

    Returns:
      A `Method` over `Training`, its variables stacked (G, ...), with metrics ``loss``,
      ``one_hot``, ``statistics`` and those of `dfke_jax.nn.answers.class_metrics`. `group_images`
      draws from its state; drawn from ``method.init(key)`` they are the control's.

    Raises:
      InputError: more groups than classes, a teacher without batch normalisation.

    Source: Luo, Sandler, Lin, Zhmoginov and Howard, Large-Scale Generative Data-Free Distillation,
      2020: statistics of normalisation layers, one generator per group of classes.
    Deviations: the architecture, rates and weights are this project's; classes within a group are
      told to the generator by a one-hot part of its latents.
    """
    if settings.groups > teacher.num_classes:
        raise InputError(f"{settings.groups} groups of {teacher.num_classes} classes")
    check_teacher(teacher, named("statistics_generators", settings.statistics))
    return as_method(_Groups(teacher=teacher, settings=settings))


def group_cost(settings: GroupSettings) -> Cost:
    """What one step costs."""
    size = settings.batch_size
    return Cost(teacher_forward=size, teacher_backward=size, generator_updates=settings.groups)


def group_images(
    teacher: WhiteBox, settings: GroupSettings, state: Training, key: Key
) -> tuple[Array, Array]:
    """One batch of all generators: images (B, H, W, C), and the classes (B,) they are for."""
    return _draw(settings, teacher, state.variables, key)


def _maker(s: GroupSettings, teacher: WhiteBox) -> Maker:
    latent = s.latent + teacher.num_classes
    module = DFMEGenerator(teacher.input_shape, s.width, latent, normalised_output=False)
    return Maker(module, teacher.preprocessing, optax.identity())


def _draw(s: GroupSettings, teacher: WhiteBox, variables: PyTree, key: Key) -> tuple[Array, Array]:
    maker, classes, each = _maker(s, teacher), teacher.num_classes, s.batch_size // s.groups
    class_key, latent_key = jax.random.split(key)
    group = jnp.arange(s.groups)[:, None]
    members = (
        classes - group + s.groups - 1
    ) // s.groups  # classes of the group: those k < K with k mod G = g
    nth = jax.random.randint(
        class_key, (s.groups, each), 0, jnp.broadcast_to(members, (s.groups, each))
    )
    labels = group + s.groups * nth
    z = jax.random.normal(latent_key, (s.groups, each, s.latent))
    z = jnp.concatenate([z, jax.nn.one_hot(labels, classes)], -1)

    def images(of: tuple[PyTree, Array]) -> Array:
        return maker.images({"params": of[0]}, of[1])[0]

    # kernels of their own under vmap are grouped convolutions, which CPUs have no fast kernel for
    every = (variables["params"], z)
    made = jax.lax.map(images, every) if jax.default_backend() == "cpu" else jax.vmap(images)(every)
    return made.reshape(-1, *teacher.input_shape), labels.reshape(-1).astype(jnp.int32)


@record
class _Groups:
    teacher: WhiteBox
    settings: GroupSettings = static_field()

    def init(self, key: Key) -> Training:
        s, teacher = self.settings, self.teacher
        made = [
            _maker(s, teacher).new(jax.random.fold_in(key, g)).variables["params"]
            for g in range(s.groups)
        ]
        variables = {"params": jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)}
        return Training(variables, adam(s.rate).init(variables["params"]))

    def step(self, key: Key, state: Training) -> tuple[Training, Metrics]:
        s, teacher = self.settings, self.teacher

        def objective(params: PyTree) -> tuple[Array, tuple[tuple[Array, Metrics], PyTree]]:
            images, labels = _draw(s, teacher, {"params": params}, key)
            seen = teacher.observe(images, moments=bool(s.statistics))
            terms = {"one_hot": jnp.mean(cross_entropy(seen.logits, labels))}
            loss = terms["one_hot"]
            if s.statistics:
                terms["statistics"] = normalisation_statistics(seen.moments, s.form)
                loss += s.statistics * terms["statistics"]
            return loss, ((seen.logits, terms), {})

        after, loss, (answers, terms) = descend(adam(s.rate), state, objective)
        return after, {"loss": loss, **terms, **class_metrics(answers)}


__all__ = ["GroupSettings", "group_cost", "group_images", "statistics_generators"]
